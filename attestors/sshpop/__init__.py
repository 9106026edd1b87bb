"""Proof of possession of an SSH host key that a CA certified: agent half, server half, pure verifier."""
