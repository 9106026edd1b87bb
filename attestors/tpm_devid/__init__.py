"""Attestation by a DevID, an identity whose key was made in a TPM and whose certificate an operator's CA signed.

messages      what the halves send each other, byte for byte as SPIRE's halves do
verification  the pure verifier of the server half
server        the server half
agent         the agent half: settings, files, and the exchange
devices       which TPM there is, and how to connect to it
tpm           the work in a TPM; service does it in a process of its own, calls starts that process
provisioning  `spire-agent tpm devid provision`: a DevID's key, its request for a certificate, and its files
"""
