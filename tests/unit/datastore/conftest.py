from __future__ import annotations

from tests.simulators.postgres import postgres

__all__ = ["postgres"]
