"""Key managers: memory, disk and PKCS #11 tokens, behind the boundary in plugins.keymanager."""
