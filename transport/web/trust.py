"""Whom a client of the web trusts."""

from __future__ import annotations

import ssl


def trusting(ca_file: str = "") -> ssl.SSLContext:
    """Trusts the CAs in a PEM file, or without one the host's, or those that SSL_CERT_FILE and SSL_CERT_DIR name.

    Blocks. Raises OSError, ssl.SSLError among them, for a file that cannot be read or used.
    """
    context = ssl.create_default_context(cafile=ca_file or None)
    # Python 3.13 sets it, and private CAs seldom are so strict (RFC 5280, 4.2.1.1); Go does not ask for it either.
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    return context
