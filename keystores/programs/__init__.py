"""`spire-keystore-pkcs11` and `spire-keystore-tpm`: key stores as plugins of any SPIRE server or agent.

Each is a program of its own, and one file (ci/keystore-plugins). Nothing else here is imported until a host asks.
"""
