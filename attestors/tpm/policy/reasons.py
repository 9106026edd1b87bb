"""Why a policy is not satisfied: lines for people, the gravest first, and not more than anybody reads."""

from __future__ import annotations

from typing import Final

from operations.quoting import quote

LIMIT: Final = 20
"""Reasons of one policy; one more line says how many there are besides."""
LENGTH: Final = 400
"""Characters of one."""
NAME_LENGTH: Final = 120
"""Characters of a name or text in it that the node chose."""


class Reasons:
    """Collects them; what comes first is gravest."""

    def __init__(self, policy: str) -> None:
        self._policy = policy
        self._lines: list[str] = []
        self._more = 0

    def __len__(self) -> int:
        return len(self._lines) + self._more

    def __call__(self, reason: str) -> None:
        if len(self._lines) >= LIMIT:
            self._more += 1
            return
        line = f"policy {self._policy}: {reason}"
        self._lines.append(line if len(line) <= LENGTH else line[: LENGTH - 1] + "…")

    def lines(self) -> tuple[str, ...]:
        if not self._more:
            return tuple(self._lines)
        return (*self._lines, f"policy {self._policy}: and {self._more} more")


def shown(text: str) -> str:
    """A text that the node chose, in quotes, on one line and cut."""
    return quote(text if len(text) <= NAME_LENGTH else text[: NAME_LENGTH - 1] + "…")
