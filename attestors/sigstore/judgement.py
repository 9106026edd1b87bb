"""One signature or attestation, judged: bytes, policy and time in, verdict or Refused out."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from cryptography import x509

from attestors.sigstore import certificates, entries, payloads
from attestors.sigstore.entries import LogEntry
from attestors.sigstore.identities import Identities
from attestors.sigstore.layers import Layer
from attestors.sigstore.trust import TrustRoot
from operations.errors import InvalidArgument, Refused

SIGNATURES = ("hashedrekord", "rekord")
ATTESTATIONS = ("intoto", "dsse")
"""The kinds of log entries that stand for them."""


@dataclass(frozen=True, slots=True)
class Policy:
    """What is asked of a signature besides being one. `now` is aware, and counts where no log tells the time."""

    trust: TrustRoot
    identities: Identities
    now: datetime
    require_sct: bool = True
    require_log: bool = True


@dataclass(frozen=True, slots=True)
class Logged:
    """A log's entry, and its promise to have it in base64."""

    entry: LogEntry
    promise: str


@dataclass(frozen=True, slots=True)
class Signature:
    """A layer that was read: its payload, its certificate and those that came with it, what the log has of it."""

    layer: Layer
    payload: bytes
    certificate: x509.Certificate
    others: tuple[x509.Certificate, ...]
    logged: Logged | None

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.payload).hexdigest()


def read(layer: Layer, payload: bytes) -> Signature:
    """Raises Refused for a layer that cannot be read."""
    try:
        loaded = certificates.load(layer.certificate)
        above = certificates.load(layer.chain) if layer.chain else []
    except InvalidArgument as error:
        raise Refused(str(error)) from error
    if not loaded:
        raise Refused("no certificate found on signature")
    bundle = layer.bundle
    logged = None if bundle is None else Logged(bundle.payload, bundle.signed_entry_timestamp)
    # The last one is the root, which comes from nobody but ourselves.
    return Signature(layer, payload, loaded[0], tuple(above[:-1]), logged)


def found_in_log(signature: Signature, logged: Logged) -> Signature:
    return replace(signature, logged=logged)


def judge_signature(signature: Signature, image_digest: str, policy: Policy) -> None:
    """Raise Refused unless somebody who may has signed the image (`sha256:…`)."""
    text = signature.layer.signature
    _require_trusted(signature, entries.decoded(text, "signature"), SIGNATURES, policy)
    payloads.require_signature(signature.payload, text, certificates.key_of(signature.certificate), image_digest)


def judge_attestation(attestation: Signature, image_digest: str, policy: Policy) -> None:
    """Raise Refused unless somebody who may has attested to the image (`sha256:…`)."""
    _require_trusted(attestation, None, ATTESTATIONS, policy)
    payloads.require_attestation(attestation.payload, certificates.key_of(attestation.certificate), image_digest)


def _require_trusted(signature: Signature, value: bytes | None, kinds: Sequence[str], policy: Policy) -> None:
    """The certificate at the time of signing, which the log tells; it has to be in force now where none is asked."""
    at = _logged_time(signature, value, kinds, policy) if policy.require_log else policy.now
    path = certificates.require_trusted(signature.certificate, signature.others, policy.trust, at)
    policy.identities.require(signature.certificate)
    if policy.require_sct:
        certificates.require_logged(path, policy.trust.ct_keys(at))


def _logged_time(signature: Signature, value: bytes | None, kinds: Sequence[str], policy: Policy) -> datetime:
    logged = signature.logged
    if logged is None:
        raise Refused("signature not found in transparency log")
    entry = logged.entry
    entries.require_same(entry, kinds, signature.digest, value, signature.certificate)
    entries.require_promised(entry, logged.promise, policy.trust.rekor_keys(entry.time))
    return entry.time
