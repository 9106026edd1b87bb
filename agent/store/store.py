"""The file: read at the start, replaced as a whole, and never believed unless it is this agent's and the newest.

What cannot be used is set aside under another name with one line in the log, and the agent starts as without it.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from pathlib import Path

from agent.storage import Storage
from agent.store.content import Held, decode, encode
from agent.store.sealed import VERSION, Header, read_header, seal, unseal
from agent.tasks import in_own_thread
from identity.spiffeid import SpiffeId, TrustDomain
from operations import files, logs
from operations.errors import Corrupt, Refused, SpireError, TemporarilyUnavailable, Unsupported
from plugins.keymanager import KeyManager, Sealing

NAME = "agent-store.sealed"
SET_ASIDE = "agent-store.refused"
LARGEST = 64 << 20
"""Bytes of the file. A thousand X509-SVIDs take two millions."""

_LABEL = "spire-agent/store/1"
_CLOCKS_MAY_DIFFER = 60.0
_PATIENCE = 10.0

_log = logs.get("store")


class Store:
    """Not for use by two agents at once; `Storage`, beside which it lies, is not either."""

    def __init__(
        self,
        folder: str,
        trust_domain: TrustDomain,
        keys: KeyManager,
        storage: Storage,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._path = Path(folder) / NAME
        self._trust_domain = trust_domain
        self._keys = keys
        self._storage = storage
        self._clock = clock
        self._secret: bytes | None = None
        self._writing = threading.Lock()

    @property
    def possible(self) -> bool:
        """Whether the key manager can seal what is stored."""
        return isinstance(self._keys, Sealing)

    async def load(self, agent: SpiffeId) -> Held | None:
        """What is still in force of what was stored for this agent; None if there is nothing."""
        if not self.possible:
            return None
        try:
            sealed = await in_own_thread(self._read)
            if sealed is None:
                return None
            secret = await self._sealing_secret()
            held = await in_own_thread(lambda: self._open(secret, sealed, agent))
        except Corrupt as error:
            await self._set_aside(error)
            return None
        except (OSError, SpireError) as error:
            _log.warning("What was kept for outages cannot be used now; it stays as it is", error=error)
            return None
        found = held.in_force(self._clock())
        return None if found.is_empty else found

    async def write(self, agent: SpiffeId, held: Held) -> None:
        """Replace the content. Raises OSError and SpireError; what was there before is there still."""
        secret = await self._sealing_secret()
        await in_own_thread(lambda: self._write(secret, agent, held))

    async def drop(self) -> None:
        """Have nothing served any more of what was stored, not even by a copy of the file."""
        if not self.possible:
            return
        try:
            async with asyncio.timeout(_PATIENCE):
                await in_own_thread(self._drop)
        except OSError as error:  # TimeoutError is one
            _log.error("Failed to remove what was kept for outages", path=str(self._path), error=error)

    async def _sealing_secret(self) -> bytes:
        if not isinstance(self._keys, Sealing):
            raise Unsupported("the key manager cannot seal what is stored")
        if self._secret is None:
            self._secret = await self._keys.sealing_secret(_LABEL)
        return self._secret

    # What is below blocks.

    def _read(self) -> bytes | None:
        try:
            with self._path.open("rb") as file:
                return file.read(LARGEST + 1)
        except FileNotFoundError:
            return None

    def _open(self, secret: bytes, sealed: bytes, agent: SpiffeId) -> Held:
        header = read_header(sealed)
        if header.version != VERSION:
            raise Corrupt(f"it is of version {header.version}, and this agent reads {VERSION}")
        if (header.trust_domain, header.agent) != (self._trust_domain.name, str(agent)):
            raise Corrupt(f"it is of another agent, {header.agent}")
        if header.generation < self._storage.state.generation:
            raise Corrupt("it is older than what this agent stored last")
        held = decode(unseal(secret, sealed))
        if header.saved_at > self._clock() + _CLOCKS_MAY_DIFFER:
            # Nobody can say what has expired. The clock may be set soon.
            raise TemporarilyUnavailable("the clock is behind the moment when it was stored: set the clock")
        return held

    def _write(self, secret: bytes, agent: SpiffeId, held: Held) -> None:
        with self._writing:
            self._replace(secret, agent, held)

    def _replace(self, secret: bytes, agent: SpiffeId, held: Held) -> None:
        generation = self._storage.state.generation + 1
        header = Header(
            trust_domain=self._trust_domain.name,
            agent=str(agent),
            generation=generation,
            saved_at=self._clock(),
        )
        sealed = seal(secret, header, encode(held.in_force(self._clock())))
        if len(sealed) > LARGEST:
            raise Refused(f"{len(sealed)} bytes are more than the {LARGEST} that are kept")
        files.write_atomically(self._path, sealed)
        # After it: a crash in between leaves a file that is newer than is known, and good.
        self._storage.store_generation(generation)

    def _drop(self) -> None:
        """After what is being written, so that it cannot appear again."""
        with self._writing:
            self._path.unlink(missing_ok=True)
            self._storage.store_generation(self._storage.state.generation + 1)

    async def _set_aside(self, reason: Corrupt) -> None:
        target = self._path.with_name(SET_ASIDE)
        _log.warning("What was kept for outages is not used", error=reason, moved_to=str(target))
        try:
            await in_own_thread(lambda: self._path.replace(target))
        except OSError as error:
            _log.warning("It could not be moved", path=str(self._path), error=error)
