"""Workload attestation by an OIDC token that the process holds: who its issuer says that it is."""
