"""Signatures and attestations of container images, as cosign makes them.

An attestor's configuration has a field `sigstore: sigstore.configuration.Configuration | None`; only where one is
given is `verifier` imported.
"""
