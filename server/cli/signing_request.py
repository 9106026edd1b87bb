"""A new key and a signing request for it: the one place of the commands where cryptography is imported."""

from __future__ import annotations

from collections.abc import Sequence

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from identity.spiffeid import SpiffeId
from operations.errors import InvalidArgument
from operations.quoting import quote


def generate(spiffe_id: SpiffeId, dns_names: Sequence[str]) -> tuple[bytes, bytes]:
    """A PKCS#10 request in DER, and its new P-256 key as PKCS#8 in DER. Raises InvalidArgument."""
    for name in dns_names:
        if not name.isascii():
            raise InvalidArgument(f"unable to generate CSR: x509: {quote(name)} cannot be encoded as an IA5String")
    key = ec.generate_private_key(ec.SECP256R1())
    try:
        names = [x509.UniformResourceIdentifier(str(spiffe_id)), *(x509.DNSName(name) for name in dns_names)]
    except ValueError as error:
        raise InvalidArgument(f"unable to generate CSR: {error}") from error
    request = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(x509.Name([]))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return request.public_bytes(serialization.Encoding.DER), private
