"""The selectors of a verified image, by SPIRE's names and in its order. Pure."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Iterator
from typing import Final

from attestors.sigstore import certificates, entries
from attestors.sigstore.judgement import Signature
from operations.errors import Refused

SIGNED: Final = "image-signature:verified"
ATTESTED: Final = "image-attestations:verified"


def selectors_of(signatures: Iterable[Signature], *, attested: bool, with_log: bool) -> tuple[str, ...]:
    """Raises Refused for a signature whose certificate does not say who signed."""
    found = [SIGNED]
    if attested:
        found.append(ATTESTED)
    for signature in signatures:
        found += (f"image-signature-{name}:{value}" for name, value in _details(signature, with_log) if value)
    return tuple(found)


def _details(signature: Signature, with_log: bool) -> Iterator[tuple[str, str]]:
    names, issuer = certificates.names(signature.certificate), certificates.issuer(signature.certificate)
    if not names:
        raise Refused("no subject found in certificate")
    if not issuer:
        raise Refused("no OIDC issuer found in certificate extensions")
    yield "subject", names[0]
    yield "issuer", issuer
    yield "value", signature.layer.signature
    if with_log and signature.logged is not None:
        entry = signature.logged.entry
        yield "log-id", entry.log_id
        yield "log-index", str(entry.log_index)
        yield "integrated-time", str(entry.integrated_time)
        promise = entries.decoded(signature.logged.promise, "signed entry timestamp")
        yield "signed-entry-timestamp", base64.b64encode(promise).decode()
