"""The block auth_opa_policy_engine of a server's file."""

from __future__ import annotations

from pathlib import Path

import pytest

from operations.errors import ConfigurationError
from server.config import load
from server.policy.files import PolicyFiles
from tests.simulators.house import CONFIG


def written(folder: Path, block: str) -> str:
    path = folder / "server.conf"
    settings = f"experimental {{ {block} }}" if block else ""
    path.write_text(CONFIG.format(port=8081, folder=folder, ratelimit="", settings=settings, plugins=""))
    return str(path)


@pytest.mark.parametrize(
    ("block", "expected"),
    [
        ("", None),
        ('auth_opa_policy_engine { local { rego_path = "p" } }', PolicyFiles("p")),
        (
            'auth_opa_policy_engine { local { rego_path = "p"\n policy_data_path = "d" } }',
            PolicyFiles("p", "d"),
        ),
    ],
)
def test_what_the_block_says(tmp_path: Path, block: str, expected: PolicyFiles | None) -> None:
    assert load(written(tmp_path, block)).policy == expected


@pytest.mark.parametrize(
    ("block", "reason"),
    [
        ("auth_opa_policy_engine {}", "auth_opa_policy_engine needs a block local that has a rego_path"),
        ("auth_opa_policy_engine { local {} }", "auth_opa_policy_engine: local needs a rego_path"),
        ('auth_opa_policy_engine { local { rego = "p" } }', "rego"),
    ],
)
def test_a_block_that_names_no_policy(tmp_path: Path, block: str, reason: str) -> None:
    path = written(tmp_path, block)
    with pytest.raises(ConfigurationError) as error:
        load(path)
    assert str(error.value).startswith(f"{path}:10: ")
    assert reason in str(error.value)
