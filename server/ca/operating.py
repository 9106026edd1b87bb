"""What operators are told of an authority, and how what they ask for is done to its end."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any, TypeVar

from server.ca.authority import Authority, X509Ca
from server.ca.journal import Status
from server.ca.rotation import Rotation

_A = TypeVar("_A", bound=Authority)
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class AuthorityInfo:
    """An authority by its id: the hex subject key identifier, or the key id. `expires_at` is in unix seconds.

    `upstream_id` is the hex key identifier of who signed an X.509 authority, "" for a self-signed one.
    """

    authority_id: str
    status: Status
    expires_at: int
    upstream_id: str = ""


def infos(rotation: Rotation[_A]) -> list[AuthorityInfo]:
    """The active authority, then the prepared and the old one where there are any."""
    return [info(authority, status) for authority, status in rotation.slots.with_status()]


def info(authority: Authority, status: Status) -> AuthorityInfo:
    upstream_id = authority.upstream_id if isinstance(authority, X509Ca) else ""
    return AuthorityInfo(authority.authority_id, status, authority.not_after, upstream_id)


async def whole(work: Coroutine[Any, Any, _T]) -> _T:
    """Do it to its end, though the caller may leave: what is saved and what is in memory are not to differ."""
    return await asyncio.shield(asyncio.ensure_future(work))
