"""JWT-SVIDs by SPIFFE ID and audience, the least recently used dropped first."""

from __future__ import annotations

import base64
import binascii
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass

import msgspec

from operations import metrics
from operations.documents import Malformed, decode

DEFAULT_SIZE = 1000
_LARGEST = 16 << 10

Key = tuple[str, tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class JwtSvid:
    """A token and its times in Unix seconds."""

    token: str
    issued_at: float
    expires_at: float

    def is_expired(self, now: float) -> bool:
        return now >= self.expires_at

    def expires_soon(self, now: float) -> bool:
        """Whether more than half of its life is over."""
        return self.expires_at - now <= (self.expires_at - self.issued_at) / 2


def key(spiffe_id: str, audience: Iterable[str]) -> Key:
    return spiffe_id, tuple(sorted(audience))


class JwtCache:
    def __init__(self, size: int = 0) -> None:
        self._size = size or DEFAULT_SIZE
        self._svids: OrderedDict[Key, JwtSvid] = OrderedDict()

    def __len__(self) -> int:
        return len(self._svids)

    def svids(self) -> Mapping[Key, JwtSvid]:
        """A copy, the least recently used first."""
        return dict(self._svids)

    def get(self, of: Key) -> JwtSvid | None:
        svid = self._svids.get(of)
        if svid is not None:
            self._svids.move_to_end(of)
        return svid

    def put(self, of: Key, svid: JwtSvid) -> None:
        """Remember a token. One that is far longer than any use needs is not: its audience came from a workload."""
        if len(svid.token) > _LARGEST:
            return
        self._svids[of] = svid
        self._svids.move_to_end(of)
        while len(self._svids) > self._size:
            self._svids.popitem(last=False)
        metrics.gauge("jwt_svid_cache_size", value=len(self._svids))

    def drop_signed_by(self, key_ids: Set[str]) -> int:
        """Forget what tainted authorities signed; returns how many that were."""
        tainted = [of for of, svid in self._svids.items() if _key_id(svid.token) in key_ids]
        for of in tainted:
            del self._svids[of]
        return len(tainted)


class _Header(msgspec.Struct, frozen=True):
    kid: str | None = None


def _key_id(token: str) -> str | None:
    """The `kid` of a token's protected header (RFC 7515, 4.1.4)."""
    head = token.partition(".")[0]
    try:
        return decode(base64.urlsafe_b64decode(head + "=" * (-len(head) % 4)), _Header).kid
    except (binascii.Error, ValueError, Malformed):
        return None
