"""HashiCorp Vault, or OpenBao: how it is reached and logged in to, and keys in its transit engine."""
