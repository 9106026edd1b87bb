"""Policies in files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from server.policy.files import PolicyFiles

RESULT = """package spire

result := {
  "allow": allow,
  "allow_if_local": false,
  "allow_if_admin": false,
  "allow_if_downstream": false,
  "allow_if_agent": false,
}

default allow := false
"""
"""The rules of `allow` follow, from line 12."""

MakePolicy = Callable[..., PolicyFiles]


@pytest.fixture
def make_policy(tmp_path: Path) -> MakePolicy:
    def make(rego: str, data: str = "") -> PolicyFiles:
        path, data_path = tmp_path / "policy.rego", tmp_path / "data.json"
        path.write_text(rego)
        if data:
            data_path.write_text(data)
        return PolicyFiles(str(path), str(data_path) if data else "")

    return make
