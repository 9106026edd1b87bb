"""A certificate authority over its restarts: what stays is here, processes come and go."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from identity import x509svid
from identity.spiffeid import TrustDomain
from keystores.memory import MemoryKeyManager
from operations.errors import TemporarilyUnavailable
from plugins.keymanager import Key, KeyType
from server.ca import checks, journal, signing
from server.ca.certificate_authority import AuthorityInfo, CaSettings, CertificateAuthority, Status
from server.ca.journal import Journal
from tests.simulators.authority_store import MemoryAuthorityStore
from tests.simulators.pki import NOW, ec_key, spki

TD = TrustDomain("example.org")
SECONDS = int(NOW.timestamp())
HOUR = 3600


class Keys(MemoryKeyManager):
    """Notes which keys were generated, and fails when told to."""

    def __init__(self, calls: list[str]) -> None:
        super().__init__()
        self._calls = calls
        self.failing = False

    async def generate(self, key_id: str, key_type: KeyType) -> Key:
        self._calls.append(f"generate {key_id}")
        if self.failing:
            raise TemporarilyUnavailable("the token is away")
        return await super().generate(key_id, key_type)


class Server:
    """What stays over restarts, and a clock."""

    def __init__(self, ca_ttl: int = 24 * HOUR) -> None:
        self.settings = CaSettings(trust_domain=TD, ca_ttl=ca_ttl)
        self.store = MemoryAuthorityStore()
        self.keys = Keys(self.store.calls)
        self.now: float = SECONDS

    async def start(self) -> CertificateAuthority:
        """A new process on the same store and keys."""
        authority = CertificateAuthority(self.settings, self.keys, self.store, now=lambda: self.now)
        await authority.start()
        return authority

    async def check(self, authority: CertificateAuthority) -> None:
        """It issues, and what it issues verifies with the bundle."""
        [issued] = await authority.issue_x509([checks.approve_server(spki(ec_key()), TD)])
        x509svid.verify(issued.chain, {TD: self.store.roots}, signing.utc(int(self.now)))

    def saved(self) -> Journal:
        assert self.store.journal is not None
        return journal.load(self.store.journal)


def states(infos: list[AuthorityInfo]) -> list[Status]:
    return [info.status for info in infos]


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while True:
            if condition():
                return
            await asyncio.sleep(0.01)
