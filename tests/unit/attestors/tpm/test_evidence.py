"""Evidence as a file."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

import pytest

from attestors.tpm import evidence
from attestors.tpm.evidence import Evidence
from operations.errors import ConfigurationError

WHOLE = Evidence(
    taken_at=1_790_000_000,
    agent_id="spiffe://example.org/spire/agent/tpm/00",
    selectors=("ek:00", "manufacturer:IFX"),
    bank="sha256",
    pcrs={0: bytes(32), 10: b"\xff" * 32},
    tpm_firmware=0x0007005500_11CB00,
    nonce=b"nonce",
    quote=b"\xffTCG",
    signature=b"\x00",
    ak_public=b"\x01",
    event_log=b"events",
    ima=b"files",
)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "node.json"
    evidence.write(path, WHOLE)
    assert evidence.read(path) == WHOLE
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == [path]


def test_it_is_a_json_document_that_others_can_read(tmp_path: Path) -> None:
    path = tmp_path / "node.json"
    evidence.write(path, WHOLE)
    document = json.loads(path.read_text())
    assert document["pcrs"]["10"] == "/" * 42 + "8="
    assert document["selectors"] == ["ek:00", "manufacturer:IFX"]


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "another version": ({"version": 2}, "evidence of version 2"),
    "an unknown bank": ({"bank": "sha3"}, 'unknown PCR bank "sha3": use one of sha1, sha256'),
    "an unknown register": ({"pcrs": {"24": "AA=="}}, "there is no PCR 24"),
    "a short value": ({"pcrs": {"0": "AA=="}}, "PCR 0 has 1 bytes, not the 32 of sha256"),
    "an unknown key": ({"colour": 1}, "unknown field `colour`"),
    "a value of another kind": ({"ima": 1}, "Expected `bytes`"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_no_evidence_is_refused_with_the_files_name(case: str, tmp_path: Path) -> None:
    change, reason = BAD[case]
    path = tmp_path / "node.json"
    path.write_text(json.dumps({"taken_at": 1, "bank": "sha256", "pcrs": {}, **change}))
    with pytest.raises(ConfigurationError) as caught:
        evidence.read(path)
    assert str(caught.value).startswith(f"{path}: no evidence of a TPM: ")
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


def test_files_that_cannot_be_read_or_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigurationError, match=r"absent\.json: cannot read the evidence: No such file"):
        evidence.read(tmp_path / "absent.json")
    with pytest.raises(ConfigurationError, match="cannot write the evidence: No such file"):
        evidence.write(tmp_path / "absent" / "node.json", WHOLE)
    monkeypatch.setattr(evidence, "FILE_LIMIT", 100)
    with pytest.raises(ConfigurationError, match="longer than"):
        evidence.write(tmp_path / "node.json", WHOLE)
    (tmp_path / "node.json").write_bytes(b" " * 101)
    with pytest.raises(ConfigurationError, match="longer than"):
        evidence.read(tmp_path / "node.json")


@pytest.mark.parametrize(
    "text", [b"", b"\xff", b"[" * 10_000, b"{}", b"null"], ids=["empty", "binary", "deep", "bare", "null"]
)
def test_what_is_no_document_is_refused(text: bytes, tmp_path: Path) -> None:
    path = tmp_path / "node.json"
    path.write_bytes(text)
    with pytest.raises(ConfigurationError, match="no evidence of a TPM"):
        evidence.read(path)
