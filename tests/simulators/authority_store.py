"""An AuthorityStore in memory, which notes the order of its calls and can be told to fail."""

from __future__ import annotations

from identity.bundles import JwtAuthority
from operations.errors import TemporarilyUnavailable


class MemoryAuthorityStore:
    def __init__(self) -> None:
        self.journal: bytes | None = None
        self.roots: list[bytes] = []
        self.jwt_authorities: list[JwtAuthority] = []
        self.pruned: list[int] = []
        self.calls: list[str] = []
        self.failing: set[str] = set()

    async def load_journal(self) -> bytes | None:
        self._note("load_journal")
        return self.journal

    async def save_journal(self, data: bytes) -> None:
        self._note("save_journal")
        self.journal = data

    async def append_x509_authority(self, der: bytes) -> None:
        self._note("append_x509_authority")
        if der not in self.roots:
            self.roots.append(der)

    async def append_jwt_authority(self, authority: JwtAuthority) -> None:
        self._note("append_jwt_authority")
        if authority not in self.jwt_authorities:
            self.jwt_authorities.append(authority)

    async def prune(self, expires_before: int) -> None:
        self._note("prune")
        self.pruned.append(expires_before)

    def _note(self, call: str) -> None:
        self.calls.append(call)
        if call in self.failing:
            raise TemporarilyUnavailable(f"{call} fails, as the test wants")
