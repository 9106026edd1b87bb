"""The settings of KeyManager "tpm": what they mean, and what is refused in which words."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from keystores import state
from keystores.errors import Refused
from keystores.tpm import configuration
from keystores.tpm.authorizations import Authorization
from keystores.tpm.configuration import Configuration
from operations import hcl
from operations.config import bind
from operations.errors import ConfigurationError


def test_what_is_unset_is_the_kernels_resource_manager_and_the_srk() -> None:
    settings = Configuration()
    assert (settings.tcti, settings.parent, settings.pcrs) == ("device:/dev/tpmrm0", "srk", None)
    assert configuration.keys_path(settings, "/var/lib/spire/agent") == Path("/var/lib/spire/agent/tpm-keys")
    assert configuration.parent(settings.parent) is None
    assert state.grace(settings.grace).total_seconds() == 86400


def test_unknown_keys_are_refused_with_file_and_line(tmp_path: Path) -> None:
    path = tmp_path / "agent.conf"
    path.write_text('tcti = "device:/dev/tpmrm0"\nkey_path = "/x"\n')
    with pytest.raises(ConfigurationError, match=r"agent\.conf:2: .*key_path"):
        bind(Configuration, hcl.load(path), section='KeyManager "tpm"')


@pytest.mark.parametrize(
    ("text", "meaning", "numbers"),
    [("sha256:0,7", "sha256:0,7", (0, 7)), ("sha1:7,0,7", "sha1:0,7", (0, 7)), ("sha384:23", "sha384:23", (23,))],
)
def test_pcrs_have_one_form(text: str, meaning: str, numbers: tuple[int, ...]) -> None:
    assert configuration.pcrs(text) == meaning
    assert configuration.pcr_selection(meaning) == (meaning.partition(":")[0], numbers)


@pytest.mark.parametrize(
    ("read", "value", "line"),
    [
        (configuration.pcrs, "sha256", "pcrs: 'sha256' is no bank and its PCRs, 0 to 23"),
        (configuration.pcrs, "sha256:24", "pcrs: 'sha256:24' is no bank"),
        (configuration.pcrs, "md5:0", "pcrs: 'md5:0' is no bank"),
        (configuration.pcrs, "sha256:", "pcrs: 'sha256:' is no bank"),
        (configuration.parent, "0x80000001", "parent: '0x80000001' is no persistent handle.*nor \"srk\""),
        (configuration.parent, "81000001", "parent: '81000001' is no persistent handle"),
        (configuration.tcti, "../x:y", r"tcti: '\.\./x:y' is no TCTI"),
        (configuration.tcti, "", "tcti: '' is no TCTI"),
    ],
)
def test_what_cannot_be_meant_is_refused(read: Callable[[str], object], value: str, line: str) -> None:
    with pytest.raises(ConfigurationError, match=line):
        read(value)


def test_handles_and_tctis() -> None:
    assert configuration.parent("0x81000001") == 0x81000001
    for text in ("device:/dev/tpmrm0", "swtpm:path=/run/swtpm.sock", "mssim:host=h,port=1", "tabrmd:bus_type=session"):
        assert configuration.tcti(text) == text


def test_a_grace_that_is_none_and_a_missing_path_are_refused() -> None:
    for grace, line in (("-1s", "grace: it must not be negative"), ("soon", "grace: time: invalid duration")):
        with pytest.raises(ConfigurationError, match=line):
            state.grace(grace)
    with pytest.raises(ConfigurationError, match="tpm: set keys_path"):
        configuration.keys_path(Configuration(), None)


def authorization(file: Path | str | None, credential: str | None = None, marker: Path | None = None) -> bytes:
    return Authorization.configured("owner_auth", None if file is None else str(file), credential, marker).read()


def test_an_authorization_comes_from_a_file_or_a_credential(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = tmp_path / "owner"
    secret.write_text("value\n")
    secret.chmod(0o600)
    assert authorization(None) == b""
    assert authorization(secret) == b"value"
    secret.chmod(0o640)
    with pytest.raises(ConfigurationError, match=r"owner: the authorization is open to others"):
        authorization(secret)
    with pytest.raises(ConfigurationError, match="set one of owner_auth_file and owner_auth_credential"):
        authorization("a", "b")
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    with pytest.raises(ConfigurationError, match="add LoadCredential=owner:… to the unit"):
        authorization(None, "owner")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    assert authorization(None, "owner") == b"value"
    with pytest.raises(ConfigurationError, match="is no name of a systemd credential"):
        authorization(None, "../owner")
    with pytest.raises(ConfigurationError, match="cannot be read: No such file"):
        authorization(None, "none")
    secret.write_text("\n")
    with pytest.raises(ConfigurationError, match="is empty"):
        authorization(None, "owner")


def test_a_refused_authorization_is_not_read_again_until_its_file_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret, marker = tmp_path / "parent", tmp_path / "marker"
    secret.write_text("wrong")
    secret.chmod(0o600)
    Authorization.configured("parent_auth", str(secret), None, marker).refused()
    with pytest.raises(Refused, match=r"the TPM refused the authorization in .*parent; it was tried once"):
        authorization(secret, None, marker)
    secret.write_text("right")
    assert authorization(secret, None, marker) == b"right"

    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    Authorization.configured("parent_auth", None, "parent", marker).refused()
    secret.write_text("another")
    with pytest.raises(Refused, match=f"correct it, then remove {marker}"):
        authorization(None, "parent", marker)
    marker.write_text("{")
    with pytest.raises(Refused, match="cannot be read; check the authorization"):
        authorization(None, "parent", marker)
    marker.unlink()
    assert authorization(None, "parent", marker) == b"another"
