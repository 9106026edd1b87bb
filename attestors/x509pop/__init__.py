"""Proof of possession of an X.509 certificate's key: agent half, server half, pure verifier."""

import warnings

from cryptography.utils import CryptographyDeprecationWarning

# Certificates of older tools have it, and Go takes them. On a program's standard error it would look like a fault.
warnings.filterwarnings("ignore", "Parsed a serial number which wasn't positive", CryptographyDeprecationWarning)
