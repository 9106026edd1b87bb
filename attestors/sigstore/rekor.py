"""Asking the transparency log for the entry of a signature that came without one."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Final

import msgspec
from cryptography.hazmat.primitives.serialization import Encoding

from attestors.sigstore import entries
from attestors.sigstore.entries import InclusionProof, LogEntry
from attestors.sigstore.judgement import ATTESTATIONS, SIGNATURES, Logged, Signature
from attestors.sigstore.trust import TrustRoot
from operations.documents import Malformed, decode
from operations.errors import Refused, TemporarilyUnavailable
from transport.web.client import HttpClient
from transport.web.urls import Url

PUBLIC_REKOR: Final = "https://rekor.sigstore.dev"

_ANSWER_BYTES = 8 << 20
_MOST_ENTRIES = 32
_SEARCH = "/api/v1/log/entries/retrieve"


class Rekor:
    """One log."""

    def __init__(self, url: str, http: HttpClient) -> None:
        """Raises InvalidArgument for what is no URL."""
        self._base = Url.parse(url)
        self._http = http

    async def find(self, signature: Signature, trust: TrustRoot) -> Logged:
        """The earliest entry of a signature or attestation, its promise and its place in the tree verified.

        Raises Refused when there is none, TemporarilyUnavailable when the log cannot be asked.
        """
        answer = await self._search(_proposals(signature))
        found: list[Logged] = []
        fault: Refused | None = None
        for uuid, entry in answer:
            try:
                found.append(_verified(uuid, entry, signature, trust))
            except Refused as error:
                fault = error
        if not found:
            raise fault or Refused("signature not found in transparency log")
        return min(found, key=lambda logged: logged.entry.integrated_time)

    async def _search(self, proposals: Sequence[object]) -> Sequence[tuple[str, _Found]]:
        path = self._base.target.partition("?")[0].rstrip("/")
        url = Url(self._base.scheme, self._base.host, self._base.port, f"{path}{_SEARCH}")
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        body = msgspec.json.encode({"entries": proposals})
        response = await self._http.request("POST", url, headers=headers, body=body, largest=_ANSWER_BYTES)
        if response.status != 200:
            raise TemporarilyUnavailable(f"searching log query: {url.origin} answered {response.status}")
        try:
            answer = decode(response.body, list[dict[str, _Found]])
        except Malformed as error:
            raise TemporarilyUnavailable(f"searching log query: {url.origin} gave no proper answer") from error
        return [item for group in answer for item in group.items()][:_MOST_ENTRIES]


class _Verification(msgspec.Struct, frozen=True, rename="camel"):
    signed_entry_timestamp: str
    inclusion_proof: InclusionProof


class _Found(LogEntry, frozen=True):
    verification: _Verification | None = None


def _verified(uuid: str, entry: _Found, signature: Signature, trust: TrustRoot) -> Logged:
    """Raises Refused."""
    if entry.verification is None:
        raise Refused("inclusion proof not provided")
    # A UUID of Rekor is the tree's id, perhaps, and the leaf's hash.
    if uuid[-64:] != entries.leaf_hash(entry).hex():
        raise Refused("computed leaf hash did not match UUID")
    promise = entry.verification.signed_entry_timestamp
    entries.require_included(entry, entry.verification.inclusion_proof)
    entries.require_promised(entry, promise, trust.rekor_keys(entry.time))
    text = signature.layer.signature
    value = entries.decoded(text, "signature") if text else None
    kinds = SIGNATURES if text else ATTESTATIONS
    entries.require_same(entry, kinds, signature.digest, value, signature.certificate)
    plain = LogEntry(entry.body, entry.integrated_time, entry.log_index, entry.log_id)
    return Logged(plain, promise)


def _proposals(signature: Signature) -> Sequence[object]:
    """The entries that may have been made of it, as they are proposed to a log."""
    certificate = base64.b64encode(signature.certificate.public_bytes(Encoding.PEM)).decode()
    digest = {"algorithm": "sha256", "value": signature.digest}
    if signature.layer.signature:
        spec: object = {
            "data": {"hash": digest},
            "signature": {"content": signature.layer.signature, "publicKey": {"content": certificate}},
        }
        return [{"kind": "hashedrekord", "apiVersion": "0.0.1", "spec": spec}]
    try:
        envelope = signature.payload.decode()
    except UnicodeDecodeError as error:
        raise Refused("the attestation's envelope is malformed") from error
    proposed = {"proposedContent": {"envelope": envelope, "verifiers": [certificate]}}
    intoto = {"content": {"envelope": envelope, "hash": digest}, "publicKey": certificate}
    return [
        {"kind": "dsse", "apiVersion": "0.0.1", "spec": proposed},
        {"kind": "intoto", "apiVersion": "0.0.1", "spec": intoto},
    ]
