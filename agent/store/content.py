"""What is kept: entries with what workloads get by them, and the bundles."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import msgspec
from google.protobuf.message import DecodeError

from agent.entries import Entry
from agent.jwt_cache import JwtSvid, Key
from agent.workload_update import X509Svid
from generated.spire.api.types import bundle_pb2
from identity.bundles import Bundle
from operations.errors import Corrupt, InvalidArgument


@dataclass(frozen=True, slots=True)
class Held:
    """Entries and X509-SVIDs by entry id, bundles by trust domain name, JWT-SVIDs by what they are cached by."""

    entries: Mapping[str, Entry]
    x509_svids: Mapping[str, X509Svid]
    jwt_svids: Mapping[Key, JwtSvid]
    bundles: Mapping[str, Bundle]

    def in_force(self, now: float) -> Held:
        """Without SVIDs that have expired at `now` (Unix seconds), and entries that are of no use without them."""
        x509_svids = {each: svid for each, svid in self.x509_svids.items() if svid.expires_at > now}
        jwt_svids = {each: svid for each, svid in self.jwt_svids.items() if not svid.is_expired(now)}
        with_tokens = {spiffe_id for spiffe_id, _ in jwt_svids}
        entries = {
            each: entry
            for each, entry in self.entries.items()
            if not entry.store_svid and (each in x509_svids or entry.spiffe_id in with_tokens)
        }
        x509_svids = {each: svid for each, svid in x509_svids.items() if each in entries}
        return Held(entries, x509_svids, jwt_svids, self.bundles)

    def bundle_with(self, own: Bundle) -> Bundle:
        """The bundle of `own`'s trust domain, with the X.509 authorities of `own`, which are stored at each change.

        What of them is tainted, and the JWT authorities, only the store knows.
        """
        kept = self.bundles.get(own.trust_domain.name)
        if kept is None:
            return own
        known = {each.der: each for each in kept.x509_authorities}
        return replace(kept, x509_authorities=tuple(known.get(each.der, each) for each in own.x509_authorities))

    @property
    def is_empty(self) -> bool:
        return not self.x509_svids and not self.jwt_svids


class _Content(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    entries: list[Entry]
    x509_svids: dict[str, X509Svid]
    jwt_svids: list[tuple[Key, JwtSvid]]
    bundles: list[bytes]


def encode(held: Held) -> bytes:
    content = _Content(
        entries=list(held.entries.values()),
        x509_svids=dict(held.x509_svids),
        jwt_svids=list(held.jwt_svids.items()),
        bundles=[bundle.to_proto().SerializeToString() for bundle in held.bundles.values()],
    )
    return msgspec.msgpack.encode(content)


def decode(data: bytes) -> Held:
    """Raises Corrupt."""
    try:
        content = msgspec.msgpack.decode(data, type=_Content)
        bundles = [Bundle.from_proto(bundle_pb2.Bundle.FromString(each)) for each in content.bundles]
    except (msgspec.MsgspecError, DecodeError, InvalidArgument) as error:
        raise Corrupt(f"its content cannot be understood: {error}") from error
    return Held(
        entries={entry.id: entry for entry in content.entries},
        x509_svids=content.x509_svids,
        jwt_svids=dict(content.jwt_svids),
        bundles={bundle.trust_domain.name: bundle for bundle in bundles},
    )
