"""A root in a token whose module fails in every way: waits are bounded, errors typed, and it works again afterwards."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest
import pytest_asyncio
from cryptography import x509

from authorities.hardware import HardwareAuthority
from keystores.errors import AlreadyExists, KeyStoreError, NotFound, PermanentlyUnusable, TemporarilyUnavailable
from operations import hcl, logs
from operations.errors import ConfigurationError
from plugins import catalog
from plugins.catalog import PluginBlock, PluginContext
from server.catalog import BUILTINS
from tests.simulators import ceremony, softhsm
from tests.simulators.faulty_hsm import CKR_DEVICE_ERROR, FaultyHsm
from tests.simulators.pki import csr, ec_key

REQUEST = csr(ec_key(), uris=["spiffe://example.org"])


@dataclass
class Place:
    """A token with a root, behind a module that fails on demand."""

    folder: Path
    token: softhsm.SoftHsm
    faults: FaultyHsm
    certificate: Path

    def block(self, **changes: str) -> PluginBlock:
        settings = {
            "module_path": f'"{self.faults.module_path}"',
            "token_label": f'"{self.token.label}"',
            "pin_file": f'"{self.token.pin_file}"',
            "key_label": '"root-2026"',
            "cert_file_path": f'"{self.certificate}"',
        } | changes
        lines = "\n".join(f"{name} = {value}" for name, value in settings.items() if value)
        text = f'plugins {{\n  UpstreamAuthority "pkcs11" {{ plugin_data {{\n{lines}\n}} }}\n}}'
        [block] = catalog.read(hcl.parse(text, "server.conf").blocks[0].body)
        return block

    async def load(self, **changes: str) -> HardwareAuthority:
        context = PluginContext("example.org", str(self.folder), logs.get("test"))
        loaded: HardwareAuthority = await catalog.load(self.block(**changes), BUILTINS, context)
        return loaded


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    token = softhsm.SoftHsm.create(tmp_path / "token")
    certificate = ceremony.in_token(token, tmp_path)
    with token.installed(), FaultyHsm.create(tmp_path / "faults").installed() as faults:
        yield Place(tmp_path, token, faults, certificate)


@pytest_asyncio.fixture
async def authority(place: Place) -> AsyncIterator[HardwareAuthority]:
    loaded = await place.load()
    yield loaded
    await loaded.close()


async def signs(authority: HardwareAuthority, place: Place) -> None:
    root = x509.load_pem_x509_certificate(place.certificate.read_bytes())
    [own] = (await authority.mint_x509_ca(REQUEST, 60)).chain
    x509.load_der_x509_certificate(own).verify_directly_issued_by(root)


async def works_again(authority: HardwareAuthority, place: Place) -> None:
    end = time.monotonic() + 25
    while True:
        try:
            return await signs(authority, place)
        except TemporarilyUnavailable:
            assert time.monotonic() < end, "it is back, and not used again within 25 s"
            await asyncio.sleep(0.2)


@pytest.mark.parametrize("action", ["wrong", "truncated", "empty"])
async def test_a_wrong_signature_never_leaves(authority: HardwareAuthority, place: Place, action: str) -> None:
    with place.faults.planted("C_Sign", action), pytest.raises(KeyStoreError, match='UpstreamAuthority "pkcs11"'):
        await authority.mint_x509_ca(REQUEST, 60)
    await works_again(authority, place)


async def test_a_der_encoded_signature_is_taken(authority: HardwareAuthority, place: Place) -> None:
    with place.faults.planted("C_Sign", "der"):
        await signs(authority, place)


async def test_another_keys_signature_never_leaves(authority: HardwareAuthority, place: Place) -> None:
    place.token.tool("--keypairgen", "--key-type", "EC:secp384r1", "--usage-sign", "--label", "other", "--id", "07")
    with place.faults.planted("C_SignInit", "swap"), contextlib.suppress(PermanentlyUnusable):
        await signs(authority, place)  # verified, whichever key it was
    await works_again(authority, place)


@pytest.mark.parametrize("function", ["C_SignInit", "C_Sign"])
async def test_a_module_that_hangs_is_given_up(authority: HardwareAuthority, place: Place, function: str) -> None:
    began = time.monotonic()
    with place.faults.planted(function, "hang"), pytest.raises(TemporarilyUnavailable):
        await authority.mint_x509_ca(REQUEST, 60)
    assert time.monotonic() - began < 30
    await works_again(authority, place)


@pytest.mark.parametrize("how", ["segv", "exit"])
async def test_a_module_that_crashes_costs_a_worker(authority: HardwareAuthority, place: Place, how: str) -> None:
    with place.faults.planted("C_Sign", "crash", how, times=1):
        try:
            await signs(authority, place)
        except TemporarilyUnavailable:
            await works_again(authority, place)
    await signs(authority, place)


async def test_a_device_error_passes(authority: HardwareAuthority, place: Place) -> None:
    with place.faults.planted("C_Sign", "return", CKR_DEVICE_ERROR), pytest.raises(KeyStoreError):
        await authority.mint_x509_ca(REQUEST, 60)
    await works_again(authority, place)


async def test_a_token_that_is_pulled_out_and_put_back(authority: HardwareAuthority, place: Place) -> None:
    with place.faults.token_removed(), pytest.raises(TemporarilyUnavailable):
        await authority.mint_x509_ca(REQUEST, 60)
    await works_again(authority, place)


async def test_a_start_without_the_token_is_a_warning(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    with place.faults.token_removed():
        authority = await place.load()
        [warning] = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
        assert "The upstream CA's device is away" in warning
        with pytest.raises(TemporarilyUnavailable, match="token_label 'spire'"):
            await authority.mint_x509_ca(REQUEST, 60)
    await works_again(authority, place)
    await authority.close()


async def test_many_starts_and_ends_leave_no_session(place: Place) -> None:
    for _ in range(3):
        loaded = await place.load()
        await signs(loaded, place)
        await loaded.close()
        assert place.faults.sessions == 0


async def test_the_label_names_one_key(place: Place) -> None:
    with pytest.raises(NotFound, match=r"UpstreamAuthority .pkcs11.: key_label: .* labelled 'root-2025'"):
        await place.load(key_label='"root-2025"')
    place.token.tool("--keypairgen", "--key-type", "EC:secp384r1", "--usage-sign", "--label", "root-2026", "--id", "07")
    with pytest.raises(AlreadyExists, match="2 private keys labelled 'root-2026'"):
        await place.load()


async def test_a_key_without_its_public_half_is_known_by_its_certificate(place: Place) -> None:
    place.token.tool("--delete-object", "--type", "pubkey", "--label", "root-2026")
    authority = await place.load()
    await signs(authority, place)
    await authority.close()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"key_label": ""}, r"server\.conf:2: .*key_label"),
        ({"key_label": '""'}, r"server\.conf:2: .*'key_label' must not be empty"),
        ({"cert_file_path": ""}, "cert_file_path"),
        ({"key": '"root"'}, r"server\.conf:\d+: unknown key"),
        ({"token_label": ""}, "token_label, token_serial and token_uri"),
        ({"token_serial": '"1"'}, "token_label, token_serial and token_uri"),
        ({"ttl": '"a day"'}, r"server\.conf:2: UpstreamAuthority .pkcs11.: ttl"),
        ({"ttl": "24"}, "ttl"),
        ({"path_length": '"none"'}, "path_length"),
        ({"path_length": "-1"}, r"server\.conf:2: UpstreamAuthority .pkcs11.: path_length"),
        ({"permitted_uris": '"example.org"'}, "permitted_uris"),
        ({"profile": '"best"'}, "profile"),
    ],
)
async def test_a_configuration_is_refused_with_its_place(place: Place, changes: dict[str, str], reason: str) -> None:
    with pytest.raises(ConfigurationError, match=reason) as caught:
        await place.load(**changes)
    assert "\n" not in str(caught.value)
    assert place.faults.begun("C_Login") == 0


async def test_the_clock_is_the_machines(authority: HardwareAuthority) -> None:
    [own] = (await authority.mint_x509_ca(REQUEST, 60)).chain
    left = x509.load_der_x509_certificate(own).not_valid_after_utc - datetime.now(UTC)
    assert 0 < left.total_seconds() <= 60
