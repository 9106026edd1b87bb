"""The pure verifier: bytes, trust and time in, what was proven or a typed error out. It fails closed."""
