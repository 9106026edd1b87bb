"""The version of both programs, the same as in pyproject.toml (a test holds it)."""

from __future__ import annotations

from typing import Final

VERSION: Final = "0.1.0"
