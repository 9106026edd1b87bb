"""The runbook's examples are configurations, and what it quotes is what the code says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from keystores.pkcs11 import configuration as settings
from keystores.pkcs11 import device
from keystores.pkcs11.profiles import ProfileName, profile
from operations import config, hcl
from operations.hcl import Block

ROOT = Path(__file__).parents[3]
TEXT = (ROOT / "docs" / "runbooks" / "hsm.md").read_text()
EXAMPLES = re.findall(r"```hcl\n(.*?)```", TEXT, re.DOTALL)
CODE = "".join(path.read_text() for path in (ROOT / "keystores" / "pkcs11").glob("*.py"))


@pytest.mark.parametrize("example", EXAMPLES)
def test_each_example_is_a_configuration(example: str) -> None:
    [block] = hcl.parse(example, "hsm.md").items
    assert isinstance(block, Block)
    [data] = block.body.named("plugin_data")
    assert isinstance(data, Block)
    read = config.bind(settings.Configuration, data.body)
    settings.token_spec(read)
    for name in read.clone:
        settings.token_spec(settings.clone(read, name))


@pytest.mark.parametrize(
    "line",
    [
        "The token is away: calls are refused until it is back",
        "The token is back",
        "gave no answer within",
        "the module crashed, or was stopped",
        "The PKCS#11 module says",
        "no session left",
        "is not tried again",
        "is locked",
        "the token lacks key",
        "does not verify; it was not used",
        "The token has fewer sessions than wanted",
        "A clone signs in place of the primary token",
        "The clone lacks a key: copy it there from the primary",
    ],
)
def test_each_line_that_is_quoted_is_said(line: str) -> None:
    assert line in TEXT
    assert line in CODE or line in (ROOT / "keystores" / "public_keys.py").read_text()


def test_the_table_of_devices_has_the_profiles_sessions() -> None:
    rows = dict(re.findall(r"^\| [^|]+ \| `(\w+)` \| (\d+) \|", TEXT, re.MULTILINE))
    named = [name for name in ProfileName if name not in (ProfileName.AUTO, ProfileName.GENERIC)]
    assert {name.value: str(profile(name).sessions) for name in named} == rows


def test_the_times_are_the_codes() -> None:
    assert f"after {device.PATIENCE:g} seconds" in TEXT
    assert f"every {device.FIRST_PROBE:g} to {device.LAST_PROBE:g} seconds" in TEXT
