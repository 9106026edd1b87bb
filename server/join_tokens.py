"""The datastore's join tokens as the join_token attestor takes them."""

from __future__ import annotations

from server.datastore.store import DataStore


class StoredJoinTokens:
    def __init__(self, store: DataStore) -> None:
        self._store = store

    async def take(self, token: str) -> int | None:
        """Use a token up and return its end in unix seconds; None for one that is not there."""
        taken = await self._store.take_join_token(token)
        return None if taken is None else taken.expires_at
