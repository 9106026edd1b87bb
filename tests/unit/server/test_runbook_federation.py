"""The runbook of federation says what the code does. Its blocks are run in tests/integration."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import pytest

from server.config import load
from server.config.file import BundleEndpoint, ServingCertFile

ROOT = Path(__file__).parents[3]
TEXT = (ROOT / "docs" / "runbooks" / "federation.md").read_text()
BLOCKS: list[str] = re.findall(r"```hcl\n(federation .*?)```", TEXT, re.DOTALL)


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_its_blocks_are_taken_without_a_warning(number: int, tmp_path: Path) -> None:
    path = tmp_path / "server.conf"
    path.write_text(f'server {{ trust_domain = "example.org"\n data_dir = "/d"\n{BLOCKS[number]} }}\nplugins {{ }}')
    config = load(str(path))
    assert config.federation.bundle_endpoint is not None or config.federation.federates_with
    assert config.warnings == ()


def test_each_setting_of_the_endpoint_is_described() -> None:
    described = set(re.findall(r"^\| `(\w+)` \|", TEXT, re.MULTILINE))
    for model in (BundleEndpoint, ServingCertFile):
        named = {field.name for field in msgspec.structs.fields(model)} - {"acme", "profile"}
        assert named <= described


def test_the_lines_that_it_quotes_are_those_of_the_code() -> None:
    folders = (ROOT / "server" / "federation", ROOT / "transport")
    code = "".join(path.read_text() for folder in folders for path in sorted(folder.glob("*.py")))
    quoted = re.findall(r"`([A-Z]\w+ [^`]+)`", TEXT)
    assert len(quoted) >= 3
    for line in quoted:
        assert line.replace("\n", " ") in code or line.startswith("GET"), line
