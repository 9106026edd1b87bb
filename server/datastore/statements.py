"""Telling the statements that run (log_sql): without their values, which may be secrets such as join tokens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sqlalchemy import Connection, Engine, event


def log_to(engine: Engine, tell: Callable[[str], None] | None) -> None:
    """Have `tell` called with each statement of the engine; it may be called from any thread."""
    if tell is None:
        return

    def before(_: Connection, __: Any, statement: str, *___: Any) -> None:
        tell(" ".join(statement.split()))

    event.listen(engine, "before_cursor_execute", before)
