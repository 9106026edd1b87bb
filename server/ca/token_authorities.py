"""The authorities of one kind of token, JWT-SVIDs or WIT-SVIDs: made, published, rotated, tainted, revoked."""

from __future__ import annotations

import asyncio
import secrets
import string
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from identity.bundles import JwtAuthority, WitAuthority
from operations import metrics
from plugins.keymanager import KeyManager, KeyType
from server.ca.authority import TokenKind, TokenSigner
from server.ca.journal import Status, TokenRecord
from server.ca.jwt import TokenEncoder
from server.ca.operating import AuthorityInfo, info, infos, whole
from server.ca.restoring import Restoring
from server.ca.rotation import Rotation, Slots
from server.ca.settings import AuthorityStore

_KEY_ID_LENGTH = 32
_KEY_ID_LETTERS = string.ascii_letters + string.digits


@dataclass(frozen=True, slots=True)
class Making:
    """How new ones are made. `ttl` is in seconds; tokens name no `issuer` when it is ""."""

    key_type: KeyType
    issuer: str
    ttl: int


class TokenAuthorities:
    """`rotation` holds what signs now. `publish` makes a new key known before it is used; `now` gives unix seconds."""

    def __init__(
        self,
        kind: TokenKind,
        making: Making,
        keys: KeyManager,
        store: AuthorityStore,
        now: Callable[[], float],
        *,
        enabled: bool,
        publish: Callable[[TokenSigner], Awaitable[None]],
        save: Callable[[Slots[TokenSigner]], Awaitable[None]],
        journal: asyncio.Lock,
    ) -> None:
        """`save` and `journal` as in Rotation. What is not enabled makes and publishes nothing."""
        self.kind = kind
        self.enabled = enabled
        self._making = making
        self._keys = keys
        self._store = store
        self._now = now
        self._publish = publish
        prepare = metrics.timed("ca", "manager", kind.metric, "prepare")(self._prepare)
        self.rotation: Rotation[TokenSigner] = Rotation(kind.name, prepare, save, journal=journal)

    async def restore(self, restoring: Restoring, records: Sequence[TokenRecord]) -> None:
        """Go on with the journal's. Raises what the key manager raises."""
        self.rotation.slots = await restoring.tokens(self.kind, records, self._making.issuer)

    async def republish(self, append: Callable[[TokenSigner], Awaitable[None]]) -> None:
        """Have the bundle hold what signs and what is about to."""
        for signer, status in self.rotation.slots.with_status() if self.enabled else ():
            if status is not Status.OLD:
                await append(signer)

    def infos(self) -> list[AuthorityInfo]:
        """The active authority, then the prepared and the old one where there are any."""
        return infos(self.rotation)

    def records(self, slots: Slots[TokenSigner] | None = None) -> tuple[TokenRecord, ...]:
        """For the journal: of these slots, or of those that are."""
        return tuple(signer.record(status) for signer, status in (slots or self.rotation.slots).with_status())

    async def prepare(self) -> AuthorityInfo:
        """Make the next authority now. Raises SpireError."""
        return info(await whole(self.rotation.prepare()), Status.PREPARED)

    async def activate(self, authority_id: str) -> AuthorityInfo:
        """Sign with the prepared authority. Raises SpireError, Refused for any other id."""
        return info(await whole(self.rotation.activate(authority_id)), Status.ACTIVE)

    async def taint(self, key_id: str) -> None:
        """Mark a key in the bundle as tainted. Raises SpireError."""
        await self._store.edit(lambda bundle: self.kind.taint(bundle, key_id))

    async def revoke(self, key_id: str) -> None:
        """Take a tainted key out of the bundle. Raises SpireError."""
        await self._store.edit(lambda bundle: self.kind.revoke(bundle, key_id))

    async def published(self) -> Sequence[JwtAuthority | WitAuthority]:
        """The bundle's keys of this kind."""
        return self.kind.published(await self._store.bundle())

    async def _prepare(self, slot: str) -> TokenSigner:
        key = await self._keys.generate(self.kind.key_id(slot), self._making.key_type)
        issued_at = int(self._now())
        key_id = "".join(secrets.choice(_KEY_ID_LETTERS) for _ in range(_KEY_ID_LENGTH))
        encoder = TokenEncoder(key, key_id, self._making.issuer, self.kind.header_type)
        signer = TokenSigner(slot, issued_at, issued_at + self._making.ttl, key_id, key, encoder)
        await self._publish(signer)
        return signer
