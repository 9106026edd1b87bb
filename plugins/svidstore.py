"""Stores for the X509-SVIDs of workloads that have no agent beside them (spire.plugin.agent.svidstore.v1)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol


@dataclass(frozen=True, slots=True)
class StoredX509Svid:
    """What is put into a store.

    `chain` and `bundle` are DER certificates, leaf first; `private_key` is DER PKCS #8; `expires_at` is in unix
    seconds; `federated_bundles` are DER certificates by the trust domain's name.
    """

    spiffe_id: str
    chain: Sequence[bytes]
    private_key: bytes = field(repr=False)
    bundle: Sequence[bytes]
    expires_at: int
    federated_bundles: Mapping[str, Sequence[bytes]]


class SvidStore(Protocol):
    @property
    def name(self) -> str: ...

    async def put(self, svid: StoredX509Svid, metadata: Sequence[str]) -> None:
        """Create or replace. `metadata` says where: the values of the entry's selectors for this store.

        Raises SpireError classes.
        """
        ...

    async def delete(self, metadata: Sequence[str]) -> None:
        """Succeeds when there is nothing left to delete. Raises SpireError classes."""
        ...
