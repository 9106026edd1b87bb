"""Both halves of tpm_devid with a real TPM, as far as swtpm is one: verdicts, failures, and nothing left behind."""

from __future__ import annotations

import asyncio
import shutil
import socket
from collections.abc import AsyncIterator, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest
from cryptography import x509

from attestors.tpm_devid import agent, blobs, calls, devices, jobs, messages, refusals, server, verification
from attestors.tpm_devid.jobs import Access, Begin, Begun
from identity.selectors import Selector
from operations import logs
from operations.errors import (
    ConfigurationError,
    InvalidArgument,
    PermanentlyUnusable,
    Refused,
    SpireError,
    TemporarilyUnavailable,
    Unsupported,
)
from plugins.catalog import PluginContext
from plugins.nodeattestor import Attestation, AttestedNode
from tests.simulators import spire, tpm_resource_manager
from tests.simulators.devids import DevId, DevIdCa, is_clean, provision
from tests.simulators.swtpm import Swtpm, started
from tests.simulators.tpm_manufacturer import NV_RSA, Manufacturer, SoldTpm


@dataclass
class House:
    manufacturer: Manufacturer
    tpm: SoldTpm
    ca: DevIdCa
    devids: dict[str, DevId]


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    folder = tmp_path_factory.mktemp("d")
    manufacturer = Manufacturer(folder / "m")
    with manufacturer.started(folder / "1") as tpm:
        ca = DevIdCa(folder / "ca")
        made = {kind: ca.certify(provision(tpm, folder / kind, kind)) for kind in ("ec-p256", "rsa-2048")}
        yield House(manufacturer, tpm, ca, made)


async def agent_half(devid: DevId, tpm: Swtpm, data_dir: str | None = None, **changes: str) -> agent.TpmDevIdAttestor:
    settings = {
        "devid_cert_path": str(devid.certificate),
        "devid_priv_path": str(devid.private),
        "devid_pub_path": str(devid.public),
        "tpm_device_path": str(tpm.path),
    }
    context = PluginContext("example.org", data_dir, logs.get())
    made = await agent.load(agent.Configuration(**(settings | changes)), context)
    assert isinstance(made, agent.TpmDevIdAttestor)
    return made


async def attest(house: House, proving: agent.TpmDevIdAttestor) -> AttestedNode:
    configuration = server.Configuration(
        devid_ca_path=str(house.ca.root_path), endorsement_ca_path=str(house.manufacturer.intermediate_path)
    )
    verifying = await server.load(configuration, PluginContext("example.org", None, logs.get()))
    attestation = await proving.begin()
    return await verifying.attest(attestation.payload, attestation.respond)


@pytest.mark.parametrize("kind", ["ec-p256", "rsa-2048"])
async def test_a_node_attests_and_its_tpm_is_as_before(house: House, kind: str) -> None:
    devid = house.devids[kind]
    before = house.tpm.handles()
    node = await attest(house, await agent_half(devid, house.tpm))
    [leaf, above] = x509.load_pem_x509_certificates(devid.certificate.read_bytes())
    assert node == AttestedNode(
        f"spiffe://example.org/spire/agent/tpm_devid/{verification.fingerprint(leaf)}",
        [
            Selector("tpm_devid", "subject:cn:node-1"),
            Selector("tpm_devid", "issuer:cn:devid-intermediate"),
            Selector("tpm_devid", f"ca:fingerprint:{verification.fingerprint(above)}"),
            Selector("tpm_devid", f"ca:fingerprint:{verification.fingerprint(house.ca.root.certificate)}"),
        ],
        can_reattest=True,
    )
    assert house.tpm.handles() == before


async def test_nothing_is_in_the_tpm_between_payload_and_challenge(house: House) -> None:
    """Others have it meanwhile: a bare TPM serves one program at a time."""
    attestation = await (await agent_half(house.devids["ec-p256"], house.tpm)).begin()
    assert is_clean(house.tpm)
    assert "attestation" not in repr(attestation)
    assert "Access" not in repr(attestation)


async def test_a_socket_for_commands_alone_is_enough(house: House) -> None:
    """As for SPIRE's agent, which knows of no control channel beside it."""
    control = house.tpm.path.with_name(f"{house.tpm.path.name}.ctrl")
    away = control.with_name("away")
    control.rename(away)
    try:
        await attest(house, await agent_half(house.devids["ec-p256"], house.tpm))
    finally:
        away.rename(control)


async def test_behind_a_resource_manager(house: House) -> None:
    """As at /dev/tpmrm0, which shows each program what is its own."""
    with tpm_resource_manager.before(house.tpm) as kernel:
        path = kernel.client("agent").removeprefix("swtpm:path=")
        await attest(house, await agent_half(house.devids["rsa-2048"], house.tpm, tpm_device_path=path))
        assert kernel.held("agent") == 0
    assert is_clean(house.tpm)


async def test_the_platform_hierarchy_may_be_off(house: House) -> None:
    """As firmware leaves it that is done with it. SPIRE's agent needs it on."""
    house.tpm.tool("hierarchycontrol", "-C", "p", "phEnable", "clear")
    try:
        await attest(house, await agent_half(house.devids["rsa-2048"], house.tpm))
    finally:
        house.tpm.reset()


async def test_blobs_with_their_sizes_as_tpm2_tools_write_them(house: House, tmp_path: Path) -> None:
    devid = house.devids["ec-p256"]
    shutil.copytree(devid.folder, tmp_path / "d")
    copy = DevId(tmp_path / "d")
    for path in (copy.public, copy.private):
        path.write_bytes(blobs.sized(path.read_bytes()))
    await attest(house, await agent_half(copy, house.tpm))


@contextmanager
def passwords(tpm: SoldTpm) -> Generator[None]:
    for hierarchy in ("o", "e"):
        tpm.tool("changeauth", "-c", hierarchy, f"{hierarchy}-secret")
    try:
        yield
    finally:
        for hierarchy in ("o", "e"):
            tpm.tool("changeauth", "-c", hierarchy, "-p", f"{hierarchy}-secret", "")


async def test_passwords_of_hierarchies_and_of_the_key(house: House, tmp_path: Path) -> None:
    key, owner = tmp_path / "key", tmp_path / "owner"
    for path, secret in ((key, "k-secret"), (owner, "o-secret")):
        path.touch(0o600)
        path.write_text(f"{secret}\n")
    with passwords(house.tpm):
        more = ("-passwordFile", str(key), "-ownerPasswordFile", str(owner))
        devid = house.ca.certify(provision(house.tpm, tmp_path / "d", more=more))
        good = {
            "devid_password": "k-secret",
            "owner_hierarchy_password": "o-secret",
            "endorsement_hierarchy_password": "e-secret",
        }
        await attest(house, await agent_half(devid, house.tpm, **good))
        in_files = {"devid_password": "", "owner_hierarchy_password": ""} | {
            "devid_password_file": str(key),
            "owner_hierarchy_password_file": str(owner),
        }
        await attest(house, await agent_half(devid, house.tpm, **(good | in_files)))
        for name, words in (
            ("owner_hierarchy_password", "unable to start a new TPM session: cannot load DevID key on TPM: "),
            ("endorsement_hierarchy_password", "unable to start a new TPM session: cannot create endorsement key: "),
            ("devid_password", "unable to certify DevID key: "),
        ):
            proving = await agent_half(devid, house.tpm, str(tmp_path), **(good | {name: "wrong"}))
            with pytest.raises(Refused, match=f"{words}the TPM refused the authorization"):
                await proving.begin()
            assert is_clean(house.tpm)
        # A guess at the key's counts towards the lockout: not even another process tries the same one again.
        again = await agent_half(devid, house.tpm, str(tmp_path), **(good | {"devid_password": "wrong"}))
        with pytest.raises(Refused, match="it was tried once and is not tried again"):
            await again.begin()
        await attest(house, await agent_half(devid, house.tpm, str(tmp_path), **good))
        note = tmp_path / refusals.NAME
        assert note.stat().st_mode & 0o777 == 0o600
        assert b"wrong" not in note.read_bytes()
        note.write_bytes(b"x")
        with pytest.raises(Refused, match="cannot be read: check devid_password, then remove it"):
            await again.begin()
    house.tpm.tool("dictionarylockout", "--clear-lockout")


@pytest.fixture
async def begun(house: House) -> AsyncIterator[Attestation]:
    yield await (await agent_half(house.devids["ec-p256"], house.tpm)).begin()
    assert is_clean(house.tpm)


GOOD = messages.ChallengeRequest(devid=bytes(32), cred_activation=messages.CredentialActivation(bytes(70), b"\1" * 256))
"""An encrypted seed of zeros puts libtpms into its failure mode."""


@pytest.mark.parametrize(
    ("challenge", "kind", "words"),
    [
        (b"no challenge", InvalidArgument, "unable to unmarshall challenges: "),
        (b'{"DevID":"bg=="}', PermanentlyUnusable, "received empty credential activation challenge from server"),
        (
            messages.encode(msgspec.structs.replace(GOOD, devid=bytes(1025))),
            InvalidArgument,
            "unable to solve proof of possession challenge: failed to sign nonce: ",
        ),
        (
            messages.encode(GOOD),
            SpireError,
            "unable to solve proof of residency challenge: failed to activate credential: ",
        ),
        (
            messages.encode(msgspec.structs.replace(GOOD, cred_activation=messages.CredentialActivation())),
            SpireError,
            "unable to solve proof of residency challenge: failed to activate credential: ",
        ),
    ],
)
async def test_challenges_that_no_server_should_send(
    begun: Attestation, challenge: bytes, kind: type[SpireError], words: str
) -> None:
    with pytest.raises(kind) as caught:
        await begun.respond(challenge)
    assert str(caught.value).startswith(words)
    assert "\n" not in str(caught.value)


async def test_a_tpm_that_was_reset_between_the_steps(house: House, begun: Attestation) -> None:
    house.tpm.reset()
    with pytest.raises(SpireError, match="unable to solve proof of possession challenge: "):
        await begun.respond(messages.encode(GOOD))


async def test_a_key_of_another_tpm_and_one_without_certificate(house: House, tmp_path: Path) -> None:
    with started(tmp_path / "t") as other:
        with pytest.raises(
            PermanentlyUnusable, match=r"unable to start a new TPM session: cannot load DevID key on TPM: .*another TPM"
        ):
            await (await agent_half(house.devids["ec-p256"], other)).begin()
        assert other.handles() == []
        devid = house.ca.certify(provision(other, tmp_path / "d"))
        with pytest.raises(
            Unsupported, match="unable to get endorsement certificate: failed to read NV index 01c00002: "
        ):
            await (await agent_half(devid, other)).begin()
        assert other.handles() == []


async def test_a_tpm_that_is_away(house: House, tmp_path: Path) -> None:
    for path in (tmp_path / "tpm0", tmp_path / "gone.sock"):
        if path.suffix:
            with socket.socket(socket.AF_UNIX) as listener:
                listener.bind(str(path))
        proving = await agent_half(house.devids["ec-p256"], house.tpm, tpm_device_path=str(path))
        with pytest.raises(TemporarilyUnavailable, match="unable to start a new TPM session: "):
            await proving.begin()


async def test_an_agent_that_is_told_to_end_meanwhile(house: House) -> None:
    task = asyncio.create_task((await agent_half(house.devids["rsa-2048"], house.tpm)).begin())
    await asyncio.to_thread(spire.eventually, lambda: not is_clean(house.tpm) or task.done(), "work in the TPM")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.to_thread(spire.eventually, lambda: is_clean(house.tpm), "a clean TPM")


async def test_a_tpm_that_hangs(house: House, tmp_path: Path) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        step = Begin(access=Access(tcti=f"{devices.SOCKET}{path}"), public=b"", private=b"")
        step = msgspec.structs.replace(step, public=house.devids["ec-p256"].public.read_bytes())
        with pytest.raises(TemporarilyUnavailable, match="the TPM gave no answer within 2 s"):
            await calls.call(step, Begun, 2)


async def test_a_garbled_answer_is_an_error_of_one_line(house: House, tmp_path: Path) -> None:
    path = tmp_path / "s"

    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"\x80\x01\x00\x00\x00\x05")
        writer.close()

    async with await asyncio.start_unix_server(answer, path):
        step = Begin(
            access=Access(tcti=f"{devices.SOCKET}{path}"),
            public=house.devids["ec-p256"].public.read_bytes(),
            private=b"",
        )
        with pytest.raises(SpireError) as caught:
            await calls.call(step, Begun)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"devid_cert_path": "/nonexistent/c"}, "cannot load certificate(s): open /nonexistent/c: No such file"),
        ({"devid_priv_path": "/nonexistent/p"}, "cannot load private key: open /nonexistent/p: No such file"),
        ({"devid_pub_path": "/nonexistent/q"}, "cannot load public key: open /nonexistent/q: No such file"),
        ({"devid_cert_path": "/dev/null"}, "no certificates found in file"),
        ({"devid_pub_path": "/dev/null"}, "the public blob is none of a signing key"),
    ],
)
async def test_files_that_cannot_be_used(house: House, changes: dict[str, str], words: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        await agent_half(house.devids["ec-p256"], house.tpm, **changes)
    assert str(caught.value).startswith("unable to load DevID files: ")
    assert words in str(caught.value)


async def test_a_key_bound_to_another_hash(house: House, tmp_path: Path) -> None:
    """The server's check of the nonce is by SHA-256, as SPIRE's is."""
    devid = house.devids["ec-p256"]
    path = tmp_path / "pub"
    ecdsa, sha384 = bytes.fromhex("0018000b"), bytes.fromhex("0018000c")
    path.write_bytes(devid.public.read_bytes().replace(ecdsa, sha384))
    with pytest.raises(ConfigurationError, match="signs with sha384: servers take SHA-256"):
        await agent_half(devid, house.tpm, devid_pub_path=str(path))


async def test_a_password_file_that_cannot_be_used(house: House, tmp_path: Path) -> None:
    path = tmp_path / "password"
    path.write_text("secret")
    path.chmod(0o644)
    with pytest.raises(ConfigurationError, match="the devid_password is open to others"):
        await agent_half(house.devids["ec-p256"], house.tpm, devid_password_file=str(path))


async def test_a_certificate_of_another_key(house: House) -> None:
    changes = {"devid_cert_path": str(house.devids["rsa-2048"].certificate)}
    with pytest.raises(ConfigurationError, match="is a certificate of another key than"):
        await agent_half(house.devids["ec-p256"], house.tpm, **changes)


@pytest.mark.parametrize("missing", ["devid_cert_path", "devid_priv_path", "devid_pub_path"])
def test_settings_that_are_required(missing: str) -> None:
    settings = {name: "x" for name in ("devid_cert_path", "devid_priv_path", "devid_pub_path") if name != missing}
    with pytest.raises(InvalidArgument, match=f"invalid configuration: {missing} is required"):
        agent.Configuration(**settings)
    settings = {missing: "x", "devid_password": "x", "devid_password_file": "x"} | settings
    with pytest.raises(InvalidArgument, match="set one of devid_password and devid_password_file"):
        agent.Configuration(**settings)
    with pytest.raises(InvalidArgument, match="endorsement_ca_path is required"):
        server.Configuration(devid_ca_path="x")


def test_ca_files_that_cannot_be_used(tmp_path: Path) -> None:
    empty = tmp_path / "ca.pem"
    empty.touch()
    for path, words in ((empty, "ca.pem"), (tmp_path / "none", "open .*none: No such file or directory")):
        configuration = server.Configuration(devid_ca_path=str(path), endorsement_ca_path=str(path))
        with pytest.raises(ConfigurationError, match=f"unable to load DevID trust bundle: .*{words}"):
            configuration.check_files()


@pytest.mark.parametrize(
    ("files", "found"),
    [
        (("tpm0", "tpmrm0", "null"), "tpmrm0"),
        (("tpm0",), "tpm0"),
        (("tpmrm0", "tpmrm1"), "more than one possible TPM device was found: tpmrm0, tpmrm1"),
        (("xtpm0x", "tpm"), "not found"),
    ],
)
def test_which_tpm_is_found(tmp_path: Path, files: tuple[str, ...], found: str) -> None:
    for name in files:
        (tmp_path / name).touch()
    if found.startswith("tpm"):
        assert devices.detect(tmp_path) == str(tmp_path / found)
    else:
        with pytest.raises(ConfigurationError, match=f"tpm autodetection failed: {found}"):
            devices.detect(tmp_path)
    with pytest.raises(ConfigurationError, match="tpm autodetection failed"):
        devices.detect(tmp_path / "none")


def test_connections() -> None:
    assert devices.named("/dev/tpm9") == "device:/dev/tpm9"
    assert devices.named("swtpm:path=/x") == "swtpm:path=/x"
    with pytest.raises(ConfigurationError, match="is no TCTI"):
        devices.named("../x:y")


def test_frames_that_are_none() -> None:
    with pytest.raises(msgspec.MsgspecError):
        jobs.answer(b"x")


async def test_a_certificate_that_its_manufacturer_padded(house: House, tmp_path: Path) -> None:
    """Some fill the index up; behind the certificate is nothing that a server could read."""
    with house.manufacturer.started(tmp_path / "t") as tpm:
        certificate = tpm.certificates["rsa"]
        tpm.tool("nvundefine", "-C", "p", f"{NV_RSA:#x}")
        tpm.write_nv(NV_RSA, certificate + b"\xff" * 100)
        devid = house.ca.certify(provision(tpm, tmp_path / "d"))
        await attest(house, await agent_half(devid, tpm))
        tpm.tool("nvundefine", "-C", "p", f"{NV_RSA:#x}")
        tpm.write_nv(NV_RSA, certificate[:-1])
        with pytest.raises(PermanentlyUnusable, match=r"unable to get endorsement certificate: .*cut short"):
            await (await agent_half(devid, tpm)).begin()
        assert is_clean(tpm)
