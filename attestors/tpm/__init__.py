"""Node attestation by a TPM 2.0: which machine it is, by its endorsement key, and what it booted, by its quote.

`agent` and `server` are the halves and `messages` what they say to each other; all that judges is pure.
"""
