"""An AuthorityStore in memory, which notes the order of its calls and can be told to fail."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from identity.bundles import Bundle, JwtAuthority, WitAuthority, X509Authority
from identity.spiffeid import TrustDomain
from operations.errors import TemporarilyUnavailable


class MemoryAuthorityStore:
    def __init__(self) -> None:
        self.journal: bytes | None = None
        self.x509_authorities: list[X509Authority] = []
        self.jwt_authorities: list[JwtAuthority] = []
        self.wit_authorities: list[WitAuthority] = []
        self.pruned: list[int] = []
        self.calls: list[str] = []
        self.failing: set[str] = set()

    @property
    def roots(self) -> list[bytes]:
        """The X.509 authorities, DER."""
        return [each.der for each in self.x509_authorities]

    async def load_journal(self) -> bytes | None:
        self._note("load_journal")
        return self.journal

    async def save_journal(self, data: bytes) -> None:
        self._note("save_journal")
        self.journal = data

    async def bundle(self) -> Bundle | None:
        if not self.x509_authorities and not self.jwt_authorities:
            return None
        return self._bundle()

    async def edit(self, change: Callable[[Bundle], Bundle]) -> Bundle:
        self._note("edit")
        changed = change(self._bundle())
        self.x509_authorities = list(changed.x509_authorities)
        self.jwt_authorities = list(changed.jwt_authorities)
        self.wit_authorities = list(changed.wit_authorities)
        return changed

    async def append_x509_authority(self, der: bytes) -> None:
        self._note("append_x509_authority")
        if der not in self.roots:
            self.x509_authorities.append(X509Authority(der))

    async def append_jwt_authority(self, authority: JwtAuthority) -> None:
        self._note("append_jwt_authority")
        if authority.key_id not in [each.key_id for each in self.jwt_authorities]:
            self.jwt_authorities.append(authority)

    async def append_wit_authority(self, authority: WitAuthority) -> None:
        self._note("append_wit_authority")
        if authority.key_id not in [each.key_id for each in self.wit_authorities]:
            self.wit_authorities.append(authority)

    async def prune(self, expires_before: int) -> None:
        self._note("prune")
        self.pruned.append(expires_before)

    def taint(self, der: bytes) -> None:
        """As another server that shares the database would."""
        self.x509_authorities = [
            replace(each, tainted=True) if each.der == der else each for each in self.x509_authorities
        ]

    def _bundle(self) -> Bundle:
        return Bundle(
            TrustDomain("example.org"),
            tuple(self.x509_authorities),
            tuple(self.jwt_authorities),
            wit_authorities=tuple(self.wit_authorities),
        )

    def _note(self, call: str) -> None:
        self.calls.append(call)
        if call in self.failing:
            raise TemporarilyUnavailable(f"{call} fails, as the test wants")
