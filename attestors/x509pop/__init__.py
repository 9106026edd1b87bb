"""Proof of possession of an X.509 certificate's key: agent half, server half, pure verifier."""
