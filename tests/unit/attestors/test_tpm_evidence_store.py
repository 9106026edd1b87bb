"""The evidence that the TPM's server half keeps: of each node the latest, and the latest that was refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from attestors.tpm import evidence
from operations.errors import Refused
from tests.simulators.tpm_node import Attesting, TpmNode

POLICY = 'policy "golden" { ima { exclude = ["/usr/.*"] } }'


@pytest.fixture
def node() -> TpmNode:
    return TpmNode().started()


@pytest.fixture
def attesting(tmp_path: Path, node: TpmNode) -> Attesting:
    made = Attesting(tmp_path)
    made.know(node)
    return made


async def test_evidence_is_kept(attesting: Attesting, node: TpmNode, tmp_path: Path) -> None:
    folder = tmp_path / "evidence"
    folder.mkdir()
    await attesting.start(POLICY, evidence_path=str(folder))
    await attesting.attest(node)
    node.boot.run("/usr/bin/true")
    await attesting.attest(node)
    assert len(node.asked_for) == 1, "only what is new"
    latest = evidence.read(str(folder / f"{node.hash}.json"))
    assert (latest.event_log, latest.ima) == (node.boot.event_log, node.boot.ima)
    assert latest.agent_id == node.id
    good = len(node.boot.ima)
    node.boot.run("/opt/bad")
    with pytest.raises(Refused):
        await attesting.attest(node)
    refused = evidence.read(str(folder / f"{node.hash}.refused.json"))
    assert refused.ima == node.boot.ima
    assert evidence.read(str(folder / f"{node.hash}.json")).ima == node.boot.ima[:good]


async def test_evidence_that_is_lost_is_asked_for_anew(attesting: Attesting, node: TpmNode, tmp_path: Path) -> None:
    folder = tmp_path / "evidence"
    folder.mkdir()
    await attesting.start(ima=True, evidence_path=str(folder))
    await attesting.attest(node)
    (folder / f"{node.hash}.json").write_text("{")
    await attesting.attest(node)
    assert len(node.asked_for) == 2
    assert evidence.read(str(folder / f"{node.hash}.json")).ima == node.boot.ima


async def test_evidence_is_bounded(attesting: Attesting, node: TpmNode, tmp_path: Path) -> None:
    folder = tmp_path / "evidence"
    folder.mkdir()
    (folder / "old.json").write_text("{}")
    await attesting.start(evidence_path=str(folder), max_evidence_files=1)
    await attesting.attest(node)
    assert [each.name for each in folder.iterdir()] == [f"{node.hash}.json"]


async def test_evidence_that_cannot_be_written_refuses_nobody(
    attesting: Attesting, node: TpmNode, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "evidence"
    folder.mkdir()
    await attesting.start(evidence_path=str(folder))
    folder.rmdir()
    await attesting.attest(node)
    assert "The node's evidence is not kept" in caplog.text
