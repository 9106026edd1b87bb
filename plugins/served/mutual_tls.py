"""go-plugin's AutoMTLS: host and plugin show each other certificates made for this one run, over the Unix socket."""

from __future__ import annotations

import base64
import datetime
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from operations.errors import InvalidArgument
from transport.peer import Peer
from transport.router import Context, Method
from transport.status import Code, RpcError
from transport.tls import InProcessIdentity, TlsContext, server_context

_NAME: Final = "localhost"  # what go-plugin's hosts look for
_YEARS: Final = 30
"""A plugin may run for long, and nobody renews its certificate."""


class MutualTls:
    """`context` is for the listener, `certificate` for the handshake's line."""

    def __init__(self, client_certificate: str) -> None:
        """From the host's PEM. Raises InvalidArgument for one that cannot be read."""
        try:
            certificate = x509.load_pem_x509_certificate(client_certificate.encode())
        except ValueError as error:
            raise InvalidArgument(f"PLUGIN_CLIENT_CERT is no certificate in PEM: {error}") from error
        self._client = certificate.public_bytes(serialization.Encoding.DER)
        identity = own_identity()
        self.context: Final[TlsContext] = server_context(identity)
        self.certificate: Final = base64.b64encode(identity.chain[0]).rstrip(b"=").decode()

    async def check(self, _method: Method, peer: Peer, _context: Context) -> None:
        """Before each call: TLS proved who has the key of the certificate shown; it must be the host's very own.

        Raises RpcError, UNAUTHENTICATED.
        """
        if peer.certificates[:1] != (self._client,):
            raise RpcError(Code.UNAUTHENTICATED, "the caller is not the host that started this plugin")


def own_identity() -> InProcessIdentity:
    """A key and its self-signed certificate, for one run."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, _NAME)])
    now = datetime.datetime.now(datetime.UTC)
    usage = x509.KeyUsage(
        digital_signature=True,
        key_agreement=True,
        key_cert_sign=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        crl_sign=False,
        encipher_only=False,
        decipher_only=False,
    )
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(minutes=1))
        .not_valid_after(now + datetime.timedelta(days=365 * _YEARS))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(_NAME)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    return InProcessIdentity(
        chain=(certificate.public_bytes(serialization.Encoding.DER),),
        private_key=key.private_bytes(
            serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        ),
    )
