"""Attacks on the TPM's server half: nodes that differ from an honest one in one thing, and a table of them.

Every node that attacks would be let in if it left off, which the tests try as well.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import TypeVar

import msgspec
from msgspec.structs import replace

from attestors.tpm.messages import Activate, Ask, Hello, Part, Proof
from operations.errors import InvalidArgument, Refused
from tests.simulators.pki import ec_key
from tests.simulators.soft_tpm import SoftTpm
from tests.simulators.tpm_node import Attesting, TpmNode

S = TypeVar("S", bound=msgspec.Struct)
Setup = Callable[[TpmNode], object]
Proving = Callable[[TpmNode, Proof, Activate], Proof]
Changing = Callable[[bytes], bytes]


class Table:
    """Attacks by kind: how many were tried and refused, and what got through or was refused for another reason."""

    def __init__(self) -> None:
        self._rows: dict[str, list[bool]] = {}
        self._amiss: list[str] = []

    async def attack(self, kind: str, what: str, reason: str, attempt: Callable[[], Awaitable[object]]) -> None:
        """`reason` is part of the refusal's text."""
        refused = False
        try:
            await attempt()
            found = "let in"
        except (Refused, InvalidArgument) as error:
            found = str(error)
            refused = reason in found
        self._rows.setdefault(kind, []).append(refused)
        if not refused:
            self._amiss.append(f"{kind}: {what}: {found}")

    def end(self) -> None:
        """Print the table, and fail unless all is refused."""
        width = max(map(len, self._rows))
        lines = [f"{'attack':<{width}}  tried  refused"]
        lines += [f"{kind:<{width}}  {len(found):>5}  {sum(found):>7}" for kind, found in self._rows.items()]
        every = [each for found in self._rows.values() for each in found]
        print("\n".join(["", *lines, f"{'all':<{width}}  {len(every):>5}  {sum(every):>7}"]))
        assert every
        assert self._amiss == []


def mutations() -> Iterator[tuple[str, Changing]]:
    """A bit of some bytes, what is cut off, and what is added."""

    def flip(eighths: int, offset: int) -> Changing:
        def changed(data: bytes) -> bytes:
            at = min(max(len(data) * eighths // 8 + offset, 0), len(data) - 1)
            return data[:at] + bytes((data[at] ^ 0x10,)) + data[at + 1 :]

        return changed

    for eighths, offset in ((0, 0), (0, 1), (0, 2), (0, 3), (2, 0), (4, 0), (6, 0), (8, -2), (8, -1)):
        yield f"a bit at {eighths}/8{offset:+}", flip(eighths, offset)
    yield "the first half", lambda data: data[: len(data) // 2]
    yield "without the last byte", lambda data: data[:-1]
    yield "empty", lambda _: b""
    yield "a byte more", lambda data: data + b"\0"
    yield "zeros", lambda data: bytes(len(data))


def altering(name: str, change: Changing) -> Callable[[S], S]:
    """The change of one field of a message."""

    def altered(message: S) -> S:
        return replace(message, **{name: change(getattr(message, name))})

    return altered


class Ground:
    """One node, boot after boot, at a server that wants all: a policy, the IMA list, a certified key."""

    def __init__(self, folder: Path) -> None:
        self.attesting = Attesting(folder)
        self.tpm = SoftTpm()
        self.key = ec_key()
        self.table = Table()

    def node(self) -> TpmNode:
        """The honest node, which has just booted."""
        self.tpm.reset()
        return TpmNode(self.tpm, svid_key=self.key).started()

    async def start(self) -> None:
        node = self.node()
        self.attesting.know(node)
        rules = f'pcr = {{ "4" = "{node.tpm.pcrs["sha256"][4].hex()}" }}\n ima {{ exclude = ["/usr/.*"] }}'
        await self.attesting.start(f'policy "golden" {{ {rules} }}', require_tpm_key=True)
        await self.attesting.attest(node)

    async def attack(
        self,
        kind: str,
        what: str,
        reason: str = "",
        *,
        setup: Setup | None = None,
        hello: Callable[[Hello], Hello] | None = None,
        proof: Proving | None = None,
        part: Callable[[Part, Ask], Part] | None = None,
    ) -> None:
        """By a node that is prepared by `setup`, or whose messages are altered."""
        node = self.node()
        if setup is not None:
            setup(node)
        if hello is not None:
            node.alter_hello = hello
        if proof is not None:
            proving = proof
            node.alter_proof = lambda made, asked: proving(node, made, asked)
        if part is not None:
            node.alter_part = part
        await self.table.attack(kind, what, reason, lambda: self.attesting.attest(node))

    async def end(self) -> None:
        """The honest node is let in, as before."""
        await self.attesting.attest(self.node())
        self.table.end()
