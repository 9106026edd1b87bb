"""A CA in a TPM whose transport fails in every way: waits are bounded, errors typed, and it works again afterwards."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio
from cryptography import x509

from authorities.hardware import HardwareAuthority
from keystores.errors import KeyStoreError, TemporarilyUnavailable
from operations import hcl, logs
from operations.errors import ConfigurationError, SpireError
from plugins import catalog
from plugins.catalog import PluginBlock, PluginContext
from server.catalog import BUILTINS
from tests.simulators import ceremony, faulty_tpm, swtpm
from tests.simulators.faulty_tpm import FaultyTpm, Trouble
from tests.simulators.pki import csr, ec_key
from tests.simulators.swtpm import Swtpm

REQUEST = csr(ec_key(), uris=["spiffe://example.org"])
TPM_RC_FAILURE = 0x101


@dataclass
class Place:
    """A TPM with an intermediate, behind a transport that fails on demand."""

    folder: Path
    tpm: Swtpm
    faults: FaultyTpm

    def block(self, **changes: str) -> PluginBlock:
        settings = {
            "tcti": f'"{self.faults.tcti}"',
            "key_handle": f'"{ceremony.HANDLE}"',
            "cert_file_path": f'"{self.folder / "tpm.pem"}"',
            "bundle_file_path": f'"{self.folder / "root.pem"}"',
        } | changes
        lines = "\n".join(f"{name} = {value}" for name, value in settings.items() if value)
        text = f'plugins {{\n  UpstreamAuthority "tpm" {{ plugin_data {{\n{lines}\n}} }}\n}}'
        [block] = catalog.read(hcl.parse(text, "server.conf").blocks[0].body)
        return block

    async def load(self, **changes: str) -> HardwareAuthority:
        context = PluginContext("example.org", str(self.folder), logs.get("test"))
        loaded: HardwareAuthority = await catalog.load(self.block(**changes), BUILTINS, context)
        return loaded


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    with swtpm.started(tmp_path / "tpm") as tpm:
        ceremony.in_tpm(tpm, tmp_path)
        with faulty_tpm.before(tpm) as faults:
            yield Place(tmp_path, tpm, faults)


@pytest_asyncio.fixture
async def authority(place: Place) -> AsyncIterator[HardwareAuthority]:
    loaded = await place.load()
    yield loaded
    await loaded.close()


async def signs(authority: HardwareAuthority, place: Place) -> None:
    issuer = x509.load_pem_x509_certificate((place.folder / "tpm.pem").read_bytes())
    own, above = (await authority.mint_x509_ca(REQUEST, 60)).chain
    assert x509.load_der_x509_certificate(above) == issuer
    x509.load_der_x509_certificate(own).verify_directly_issued_by(issuer)


async def works_again(authority: HardwareAuthority, place: Place) -> None:
    end = time.monotonic() + 25
    while True:
        try:
            return await signs(authority, place)
        except TemporarilyUnavailable:
            assert time.monotonic() < end, "it is back, and not used again within 25 s"
            await asyncio.sleep(0.2)


@pytest.mark.parametrize("fault", [*Trouble, TPM_RC_FAILURE])
async def test_no_fault_makes_a_wrong_certificate(
    authority: HardwareAuthority, place: Place, fault: faulty_tpm.Fault
) -> None:
    await signs(authority, place)
    began = time.monotonic()
    place.faults.fail(fault, faulty_tpm.SIGN)
    try:
        await signs(authority, place)
    except KeyStoreError as error:
        assert 'UpstreamAuthority "tpm"' in str(error)  # noqa: PT017
    assert time.monotonic() - began < 30
    place.faults.mend()
    await works_again(authority, place)


async def test_a_start_without_the_tpm_is_a_warning(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    place.faults.fail(Trouble.REFUSE)
    authority = await place.load()
    [warning] = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert "The upstream CA's device is away" in warning
    with pytest.raises(TemporarilyUnavailable, match=r"faulty\.sock"):
        await authority.mint_x509_ca(REQUEST, 60)
    place.faults.mend()
    await works_again(authority, place)
    await authority.close()


async def test_nothing_stays_in_the_tpm(place: Place) -> None:
    authority = await place.load()
    for _ in range(3):
        await signs(authority, place)
    await authority.close()
    assert place.tpm.handles() == [int(ceremony.HANDLE, 16)]


async def test_an_empty_handle_is_refused(place: Place) -> None:
    with pytest.raises(SpireError, match="0x81000101") as caught:
        await place.load(key_handle='"0x81000101"')
    assert not isinstance(caught.value, TemporarilyUnavailable)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"key_handle": ""}, r"server\.conf:2: UpstreamAuthority .tpm.: .*key_handle and key_file"),
        ({"key_file": '"/etc/spire/root.tss"'}, "key_handle and key_file"),
        ({"key_handle": '"0x01"'}, "key_handle"),
        ({"cert_file_path": ""}, "cert_file_path"),
        ({"bundle_file_path": '"/none.pem"'}, r"/none\.pem"),
        (
            {"bundle_file_path": ""},
            r"bundle_file_path: name the file with its root, since .*tpm\.pem is not self-signed",
        ),
        ({"handle": '"0x81000100"'}, r"server\.conf:\d+: unknown key"),
        ({"tcti": '"../../lib"'}, "tcti"),
        ({"path_length": "1"}, r"server\.conf:2: UpstreamAuthority .tpm.: path_length: 1 is more than"),
    ],
)
async def test_a_configuration_is_refused_with_its_place(place: Place, changes: dict[str, str], reason: str) -> None:
    with pytest.raises(ConfigurationError, match=reason) as caught:
        await place.load(**changes)
    assert "\n" not in str(caught.value)
