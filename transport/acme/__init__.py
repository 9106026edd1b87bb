"""Certificates of the web's CAs by ACME (RFC 8555), proven on the serving port itself by TLS-ALPN-01 (RFC 8737)."""
