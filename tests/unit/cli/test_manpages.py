"""The manual pages say what the programs' own help says."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
PAGES = ROOT / "docs" / "man"
NAMES = ("spire-server.1", "spire-agent.1", "spire-keystore-pkcs11.1", "spire-keystore-tpm.1")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("man")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "ci/manpages", folder], cwd=ROOT, env=environment, check=True)
    return folder


def test_every_page_is_made(made: Path) -> None:
    assert {page.name for page in made.iterdir()} == {page.name for page in PAGES.glob("*.1")}


@pytest.mark.parametrize("name", NAMES)
def test_pages_are_current(made: Path, name: str) -> None:
    """Where this fails, `ci/manpages` makes them anew."""
    page = (made / name).read_text()
    assert (PAGES / name).read_text() == page
    assert "@" not in page


@pytest.mark.parametrize("name", NAMES)
def test_nothing_starts_a_line_that_roff_would_swallow(made: Path, name: str) -> None:
    """Every request is one of mdoc's or roff's comment; a text that begins with a dot would vanish."""
    requests = [line for line in (made / name).read_text().splitlines() if line.startswith((".", "'"))]
    assert [line for line in requests if not line.startswith('.\\"') and not line[1:3].istitle()] == []
