"""What cosign attaches to an image: an OCI manifest whose every layer is a signature or an attestation. Pure.

https://github.com/sigstore/cosign/blob/main/specs/SIGNATURE_SPEC.md
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import msgspec

from attestors.sigstore.entries import Bundle
from operations.documents import Malformed, decode
from operations.errors import Refused

MOST_LAYERS: Final = 1000
"""As in cosign."""

_SIGNATURE = "dev.cosignproject.cosign/signature"
_CERTIFICATE = "dev.sigstore.cosign/certificate"
_CHAIN = "dev.sigstore.cosign/chain"
_BUNDLE = "dev.sigstore.cosign/bundle"


class Layer(msgspec.Struct, frozen=True):
    """`digest` and `size` (in bytes) are of the payload, which is a blob of its own."""

    digest: str
    size: int
    annotations: Mapping[str, str] = {}

    @property
    def signature(self) -> str:
        """In base64; empty for an attestation. Raises Refused where cosign's annotation is missing."""
        signature = self.annotations.get(_SIGNATURE)
        if signature is None:
            raise Refused(f"signature layer {self.digest[:80]} is missing annotation {_SIGNATURE}")
        return signature

    @property
    def certificate(self) -> str:
        """In PEM. Raises Refused when there is none: a bare key proves no identity."""
        certificate = self.annotations.get(_CERTIFICATE, "")
        if not certificate:
            raise Refused("no certificate found on signature")
        return certificate

    @property
    def chain(self) -> str:
        """The certificates above, in PEM; empty where there are none."""
        return self.annotations.get(_CHAIN, "")

    @property
    def bundle(self) -> Bundle | None:
        """Raises Refused for one that cannot be read."""
        text = self.annotations.get(_BUNDLE, "")
        if not text:
            return None
        try:
            return decode(text, Bundle)
        except Malformed as error:
            raise Refused("the signature's rekor bundle is malformed") from error


class _Manifest(msgspec.Struct, frozen=True):
    layers: Sequence[msgspec.Raw] = ()


def layers_of(manifest: bytes) -> list[Layer]:
    """Raises Refused for a manifest that is none, or has very many layers."""
    try:
        raw = decode(manifest, _Manifest).layers
        if len(raw) > MOST_LAYERS:
            raise Refused(f"number of layers ({len(raw)}) exceeded the limit ({MOST_LAYERS})")
        return [decode(layer, Layer) for layer in raw]
    except Malformed as error:
        raise Refused("the manifest of the signatures is malformed") from error
