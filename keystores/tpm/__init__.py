"""KeyManager "tpm": keys made in a TPM 2.0, kept as blobs that only this TPM can load.

manager   the KeyManager: ids, the durable mapping, checked signatures
blobs     the folder of wrapped blobs, and which of them has which id
worker    the process that talks to the TPM, as seen from the event loop
service   that process; device, templates and responses are its parts, and import tpm2-pytss
root      a root's key in a TPM, for UpstreamAuthority "tpm"
"""
