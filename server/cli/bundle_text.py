"""Bundles as the commands read and print them: PEM certificates, or SPIFFE bundle documents."""

from __future__ import annotations

import sys
from pathlib import Path

from generated.spire.api.types import bundle_pb2
from identity import bundles
from identity.spiffeid import TrustDomain
from operations.errors import InvalidArgument
from operations.quoting import quote

PEM = "pem"
SPIFFE = "spiffe"
MAX_FILE = 8 * 1024 * 1024
"""Bytes; a server takes messages of half as many."""


def chosen(bundle_format: str) -> str:
    """PEM or SPIFFE, whatever its case; PEM when empty. Raises InvalidArgument for another format."""
    found = bundle_format.lower() or PEM
    if found not in (PEM, SPIFFE):
        raise InvalidArgument(f"invalid format: {quote(found)}")
    return found


def print_bundle(bundle: bundle_pb2.Bundle, bundle_format: str) -> None:
    """Raises InvalidArgument for another format than PEM and SPIFFE."""
    if chosen(bundle_format) == PEM:
        print(bundles.to_pem([authority.asn1 for authority in bundle.x509_authorities]), end="")
    else:
        print(bundles.Bundle.from_proto(bundle).to_jwks())


def parse(content: bytes, bundle_format: str, trust_domain: str) -> bundle_pb2.Bundle:
    """The checked bundle that a file of that format, PEM or SPIFFE, holds. Raises InvalidArgument."""
    if bundle_format == SPIFFE:
        return _parse_document(content, TrustDomain.parse(trust_domain))
    from identity import der  # what only prints bundles needs no cryptography

    try:
        certificates = bundles.from_pem(content)
        for certificate in certificates:
            der.certificate(certificate)
    except InvalidArgument as error:
        raise InvalidArgument(f"unable to parse bundle data: {error}") from error
    authorities = [bundle_pb2.X509Certificate(asn1=certificate) for certificate in certificates]
    return bundle_pb2.Bundle(trust_domain=trust_domain, x509_authorities=authorities)


def _parse_document(content: bytes, trust_domain: TrustDomain) -> bundle_pb2.Bundle:
    try:
        return bundles.Bundle.from_jwks(trust_domain, content).to_proto()
    except InvalidArgument as error:
        raise InvalidArgument(f"unable to parse to spiffe bundle: {error}") from error


def read(path: str) -> bytes:
    """A file's content, standard input's for "". Raises InvalidArgument."""
    try:
        with Path(path).open("rb") if path else sys.stdin.buffer as file:
            content = file.read(MAX_FILE + 1)
    except OSError as error:
        raise InvalidArgument(f"open {path}: {(error.strerror or str(error)).lower()}") from error
    if len(content) > MAX_FILE:
        raise InvalidArgument(f"{path or 'standard input'} is longer than {MAX_FILE} bytes: no bundle is")
    return content
