"""Entries of the transparency log Rekor: what they say, that the log promised them and has them in its tree. Pure.

https://github.com/sigstore/rekor/blob/main/openapi.yaml and the schemas in its pkg/types; RFC 6962, 2.1 for the tree.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from attestors.sigstore.certificates import verifies
from attestors.sigstore.trust import LogKey
from operations.documents import Malformed, decode
from operations.errors import Refused

_SAFE_INTEGER = 1 << 53  # the canonical form has JavaScript's numbers (RFC 8785, 3.2.2.3)
_MOST_HASHES = 64
_LEAF, _NODE = b"\0", b"\1"


class InclusionProof(msgspec.Struct, frozen=True, rename="camel"):
    """Hashes are in hex; `log_index` is the one within the tree."""

    hashes: tuple[str, ...]
    log_index: int
    root_hash: str
    tree_size: int


class LogEntry(msgspec.Struct, frozen=True, rename={"integrated_time": "integratedTime", "log_index": "logIndex",
                                                     "log_id": "logID"}):  # fmt: skip
    """`body` is base64, `integrated_time` in seconds since 1970, `log_id` in hex."""

    body: str
    integrated_time: int
    log_index: int
    log_id: str

    @property
    def time(self) -> datetime:
        """Raises Refused."""
        try:
            return datetime.fromtimestamp(self.integrated_time, UTC)
        except (OverflowError, OSError, ValueError) as error:
            raise Refused("the log entry's time is none") from error


class Bundle(msgspec.Struct, frozen=True, rename="pascal"):
    """What cosign keeps beside a signature: an entry with the log's promise to have it, a signature in base64."""

    signed_entry_timestamp: str
    payload: LogEntry


@dataclass(frozen=True, slots=True)
class Claim:
    """What an entry says: who signed what how. `digest` is a SHA-256 in hex; `signature` is None where it has none."""

    kind: str
    digest: str
    key: bytes
    signature: bytes | None


def require_promised(entry: LogEntry, signature: str, keys: Mapping[str, LogKey]) -> None:
    """Raise Refused unless the log with this id signed the entry (a "signed entry timestamp")."""
    key = keys.get(entry.log_id)
    if key is None:
        raise Refused("rekor log public key not found for payload: see SIGSTORE_REKOR_PUBLIC_KEY")
    if not (0 <= entry.integrated_time < _SAFE_INTEGER and 0 <= entry.log_index < _SAFE_INTEGER):
        raise Refused("the log entry has numbers that none has")
    if not verifies(key, decoded(signature, "signed entry timestamp"), _canonical(entry)):
        raise Refused("unable to verify SET: the log did not sign this entry")


def _canonical(entry: LogEntry) -> bytes:
    """RFC 8785, of texts in ASCII and integers below 2^53."""
    if not (entry.body.isascii() and entry.log_id.isascii()):
        raise Refused("the log entry is malformed")
    content = {
        "body": entry.body,
        "integratedTime": entry.integrated_time,
        "logID": entry.log_id,
        "logIndex": entry.log_index,
    }
    return json.dumps(content, separators=(",", ":"), ensure_ascii=False).encode()


def require_included(entry: LogEntry, proof: InclusionProof) -> None:
    """Raise Refused unless the entry is at its place in the tree (RFC 6962, 2.1.1; RFC 9162, 2.1.3.2)."""
    index, size = proof.log_index, proof.tree_size
    if not 0 <= index < size < _SAFE_INTEGER or len(proof.hashes) > _MOST_HASHES:
        raise Refused("the log's inclusion proof is malformed")
    computed = leaf_hash(entry)
    last = size - 1
    for text in proof.hashes:
        sibling = _unhexed(text)
        if last == 0:
            raise Refused("the log's inclusion proof is too long")
        if index & 1 or index == last:
            computed = hashlib.sha256(_NODE + sibling + computed).digest()
            while not index & 1 and index:
                index, last = index >> 1, last >> 1
        else:
            computed = hashlib.sha256(_NODE + computed + sibling).digest()
        index, last = index >> 1, last >> 1
    if last != 0 or computed != _unhexed(proof.root_hash):
        raise Refused("the log's inclusion proof does not hold")


def leaf_hash(entry: LogEntry) -> bytes:
    return hashlib.sha256(_LEAF + decoded(entry.body, "log entry")).digest()


def _unhexed(text: str) -> bytes:
    try:
        value = bytes.fromhex(text)
    except ValueError as error:
        raise Refused("the log's inclusion proof is malformed") from error
    if len(value) != hashlib.sha256().digest_size:
        raise Refused("the log's inclusion proof is malformed")
    return value


def decoded(text: str, what: str) -> bytes:
    """Strict base64. Raises Refused."""
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise Refused(f"{what} is not in base64") from error


def require_same(entry: LogEntry, kinds: Sequence[str], payload_digest: str, signature: bytes | None,
                 certificate: x509.Certificate) -> None:  # fmt: skip
    """Raise Refused unless the entry is about this signature: its payload's SHA-256 in hex, its value, its certificate.

    An attestation has its signatures inside its payload, and `signature` is None.
    """
    claim = claim_of(entry)
    if claim.kind not in kinds:
        raise Refused(f"a log entry of kind {claim.kind} does not stand for this")
    if claim.digest != payload_digest:
        raise Refused("the log entry is of another payload")
    if signature is not None and claim.signature != signature:
        raise Refused("signature in bundle does not match signature being verified")
    try:
        signer = x509.load_pem_x509_certificate(claim.key)
    except ValueError as error:
        raise Refused("the log entry has no certificate") from error
    if signer.public_bytes(Encoding.DER) != certificate.public_bytes(Encoding.DER):
        raise Refused("the log entry is of another certificate")


class _Hash(msgspec.Struct, frozen=True):
    algorithm: str
    value: str


class _Key(msgspec.Struct, frozen=True):
    content: str


class _Body(msgspec.Struct, frozen=True, rename={"api_version": "apiVersion"}):
    kind: str
    api_version: str
    spec: msgspec.Raw


class _Data(msgspec.Struct, frozen=True):
    hash: _Hash


class _RekordSignature(msgspec.Struct, frozen=True, rename="camel"):
    content: str
    public_key: _Key


class _Rekord(msgspec.Struct, frozen=True):
    """rekord and hashedrekord, 0.0.1."""

    data: _Data
    signature: _RekordSignature


class _IntotoSignature(msgspec.Struct, frozen=True, rename="camel"):
    sig: str
    public_key: str


class _IntotoEnvelope(msgspec.Struct, frozen=True):
    signatures: tuple[_IntotoSignature, ...]


class _IntotoContent(msgspec.Struct, frozen=True):
    hash: _Hash
    envelope: _IntotoEnvelope | None = None


class _Intoto(msgspec.Struct, frozen=True, rename="camel"):
    """intoto 0.0.1, which has the key beside, and 0.0.2, which has it in the envelope."""

    content: _IntotoContent
    public_key: str | None = None


class _DsseSignature(msgspec.Struct, frozen=True):
    signature: str
    verifier: str


class _Dsse(msgspec.Struct, frozen=True, rename="camel"):
    """dsse 0.0.1."""

    envelope_hash: _Hash
    signatures: tuple[_DsseSignature, ...]


def claim_of(entry: LogEntry) -> Claim:
    """Raises Refused for an entry of another kind, or with several signatures."""
    try:
        body = decode(decoded(entry.body, "log entry"), _Body)
        match body.kind, body.api_version:
            case (("rekord" | "hashedrekord"), "0.0.1"):
                return _rekord(body.kind, decode(body.spec, _Rekord))
            case "intoto", ("0.0.1" | "0.0.2"):
                return _intoto(decode(body.spec, _Intoto))
            case "dsse", "0.0.1":
                return _dsse(decode(body.spec, _Dsse))
            case _:
                raise Refused("the log entry is of an unknown kind")
    except Malformed as error:
        raise Refused("the log entry is malformed") from error


def _rekord(kind: str, spec: _Rekord) -> Claim:
    signature = decoded(spec.signature.content, "log entry's signature")
    key = decoded(spec.signature.public_key.content, "log entry's key")
    return Claim(kind, _sha256(spec.data.hash), key, signature)


def _intoto(spec: _Intoto) -> Claim:
    key = spec.public_key
    if key is None:
        signatures = spec.content.envelope.signatures if spec.content.envelope is not None else ()
        if len(signatures) != 1:
            raise Refused("a log entry with more or less than one signature is not supported")
        key = signatures[0].public_key
    return Claim("intoto", _sha256(spec.content.hash), decoded(key, "log entry's key"), None)


def _dsse(spec: _Dsse) -> Claim:
    if len(spec.signatures) != 1:
        raise Refused("a log entry with more or less than one signature is not supported")
    return Claim("dsse", _sha256(spec.envelope_hash), decoded(spec.signatures[0].verifier, "log entry's key"), None)


def _sha256(hash_: _Hash) -> str:
    if hash_.algorithm != "sha256":
        raise Refused(f"the log entry has a hash of another kind: {hash_.algorithm[:20]}")
    return hash_.value
