"""The agent half of NodeAttestor "tpm" on software TPMs: keys, proofs, and what is left in a TPM afterwards."""

from __future__ import annotations

import os
import signal
import struct
import threading
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from attestors.tpm.agent import Configuration, TpmAttestor, opened
from attestors.tpm.choice import FILE
from attestors.tpm.messages import PART_LIMIT, Activate, Ask, Hello, Part, Proof, decode, encode
from attestors.tpm.pcrs import COUNT
from attestors.tpm.verification import certify, credential, quote
from keystores.errors import Refused, TemporarilyUnavailable, Unsupported
from keystores.memory import MemoryKeyManager
from keystores.tpm import public_area
from keystores.tpm.configuration import Configuration as KeyConfiguration
from keystores.tpm.manager import AGENT_KEYS, load
from keystores.tpm.messages import Endorse, Endorsed, Place
from keystores.tpm.worker import Worker
from operations import logs
from operations.errors import Corrupt, InvalidArgument
from plugins.catalog import PluginContext
from plugins.keymanager import KeyType
from plugins.nodeattestor import Attestation, KeyAttesting, Reattesting
from tests.simulators import swtpm, tpm_resource_manager
from tests.simulators.booted import Booted
from tests.simulators.swtpm import Swtpm
from tests.simulators.tpm_manufacturer import EK_RSA, NV_ECC, NV_RSA, Manufacturer, SoldTpm

NONCE = b"n" * 32
SECRET = b"s" * 32
LOG = logs.get("test")
ALL = tuple(range(COUNT))
NV_RSA_NONCE, NV_RSA_TEMPLATE = 0x01C00003, 0x01C00004


@pytest.fixture(scope="module")
def maker(tmp_path_factory: pytest.TempPathFactory) -> Manufacturer:
    return Manufacturer(tmp_path_factory.mktemp("maker"))


@pytest.fixture(scope="module")
def sold(maker: Manufacturer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SoldTpm]:
    """Nobody changes it."""
    with maker.started(tmp_path_factory.mktemp("sold") / "tpm", chain_in_nv=True) as tpm:
        yield tpm


@pytest.fixture
def tpm(tmp_path: Path) -> Iterator[Swtpm]:
    """Without certificates, and for one test alone."""
    with swtpm.started(tmp_path / "tpm") as started:
        yield started


async def attestor_of(tcti: str, folder: Path, **settings: object) -> TpmAttestor:
    configuration = Configuration(tcti=tcti, **settings)  # type: ignore[arg-type]
    return await opened(configuration, folder / FILE, LOG)


def hello_of(conversation: Attestation) -> Hello:
    return decode(Hello, conversation.payload, 1 << 20)


def asked_of(hello: Hello, *, bank: str = "sha256", pcrs: tuple[int, ...] = ALL) -> Activate:
    """What a server would ask of this node."""
    endorsement, key = public_area.parse(hello.ek_public), public_area.parse(hello.ak_public)
    hidden, secret = credential.make(endorsement, key.name, SECRET)
    return Activate(credential=hidden, secret=secret, nonce=NONCE, bank=bank, pcrs=pcrs)


async def proven(conversation: Attestation, *, bank: str = "sha256", pcrs: tuple[int, ...] = ALL) -> Proof:
    """The proof, which a server would believe."""
    hello = hello_of(conversation)
    asked = asked_of(hello, bank=bank, pcrs=pcrs)
    proof = decode(Proof, await conversation.respond(encode(asked)), 1 << 20)
    assert proof.secret == SECRET
    found = quote.verify(quote.attestation_key(hello.ak_public, public_area.parse(hello.ek_public)), proof, asked)
    assert set(found.pcrs.values) == set(pcrs)
    return proof


def spki(certificate: bytes) -> bytes:
    key = x509.load_der_x509_certificate(certificate).public_key()
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


@pytest.mark.parametrize("setting", ["auto", "rsa", "ecc"])
async def test_the_endorsement_key_is_the_certified_one_and_nothing_stays(
    sold: SoldTpm, tmp_path: Path, setting: str
) -> None:
    before = sold.handles()
    attestor = await attestor_of(sold.tcti, tmp_path, ek=setting)
    conversation = await attestor.begin()
    hello = hello_of(conversation)
    own, issuer = hello.ek_certificates
    assert own == sold.certificates["ecc" if setting == "ecc" else "rsa"]
    assert spki(own) == public_area.parse(hello.ek_public).der
    assert spki(issuer) != spki(own)
    await proven(conversation)
    await attestor.close()
    assert sold.handles() == before


@pytest.mark.parametrize(
    ("template", "certificate"), [("rsa-2048", "rsa"), ("ecc-p256", "ecc"), ("ecc-p384-high", "ecc-p384")]
)
async def test_each_template_makes_the_key_that_the_manufacturer_certified(
    sold: SoldTpm, template: str, certificate: str
) -> None:
    worker = Worker(Place(tcti=sold.tcti))
    found = await worker.call(Endorse(template=template), Endorsed, creation=True)
    await worker.close()
    assert public_area.parse(found.public).der == spki(sold.certificates[certificate])
    assert found.certificates[0] == sold.certificates[certificate]


@pytest.mark.parametrize("template", ["rsa-2048-high", "ecc-p256-high", "ecc-p384-high"])
async def test_keys_of_the_high_range_attest_too(tpm: Swtpm, tmp_path: Path, template: str) -> None:
    attestor = await attestor_of(tpm.tcti, tmp_path)
    await attestor.endorsed()
    kept = tmp_path / FILE
    kept.write_text(kept.read_text().replace('"rsa-2048"', f'"{template}"'))
    await proven(await attestor.begin())
    await attestor.close()
    assert tpm.handles() == []


async def test_a_persistent_key_is_used_and_another_program_s_key_in_its_place_is_not(
    tpm: Swtpm, tmp_path: Path
) -> None:
    attestor = await attestor_of(tpm.tcti, tmp_path)
    made = (await attestor.endorsed()).public
    await attestor.close()
    tpm.tool("createek", "-G", "rsa", "-c", f"{EK_RSA:#x}")
    for kind in ("-t", "-l", "-s"):
        tpm.tool("flushcontext", kind)
    attestor = await attestor_of(tpm.tcti, tmp_path)
    assert (await attestor.endorsed()).public == made
    await proven(await attestor.begin())
    await attestor.close()
    assert tpm.handles() == [EK_RSA]
    tpm.tool("evictcontrol", "-C", "o", "-c", f"{EK_RSA:#x}")
    tpm.make_srk(f"{EK_RSA:#x}")
    attestor = await attestor_of(tpm.tcti, tmp_path)
    assert (await attestor.endorsed()).public == made
    await attestor.close()


@contextmanager
def with_nv(maker: Manufacturer, folder: Path, **contents: bytes) -> Generator[SoldTpm]:
    with maker.started(folder, persistent=False) as tpm:
        for index, content in contents.items():
            tpm.write_nv(int(index.removeprefix("x"), 16), content)
        yield tpm


async def test_a_nonce_or_a_template_in_nv_changes_the_key(maker: Manufacturer, tmp_path: Path) -> None:
    with with_nv(maker, tmp_path / "tpm", x01C00003=b"\x07" * 16) as tpm:
        attestor = await attestor_of(tpm.tcti, tmp_path, ek="rsa")
        hello = hello_of(conversation := await attestor.begin())
        assert public_area.parse(hello.ek_public).der != spki(tpm.certificates["rsa"])
        await proven(conversation)
        await attestor.close()
        # The same as the template's own makes it: with zeros.
        area = struct.pack(">HHI", 0x0001, 0x000B, 0x000300B2) + struct.pack(">H", 32)
        area += bytes.fromhex("837197674484b3f81a90cc8d46a5d724fd52d76e06520b64f2a1da1b331469aa")
        area += struct.pack(">HHHHHIH", 0x0006, 128, 0x0043, 0x0010, 2048, 0, 256) + bytes(256)
        tpm.write_nv(NV_RSA_TEMPLATE, area)
        attestor = await attestor_of(tpm.tcti, tmp_path, ek="rsa")
        hello = hello_of(conversation := await attestor.begin())
        assert public_area.parse(hello.ek_public).der == spki(tpm.certificates["rsa"])
        await proven(conversation)
        await attestor.close()


async def test_what_auto_chose_stays_chosen(maker: Manufacturer, tmp_path: Path) -> None:
    with maker.started(tmp_path / "tpm", persistent=False) as tpm:
        tpm.tool("nvundefine", "-C", "p", f"{NV_RSA:#x}")
        attestor = await attestor_of(tpm.tcti, tmp_path)
        first = await attestor.endorsed()
        assert first.template == "ecc-p256"
        await attestor.close()
        tpm.write_nv(NV_RSA, tpm.certificates["rsa"])
        tpm.tool("nvundefine", "-C", "p", f"{NV_ECC:#x}")
        attestor = await attestor_of(tpm.tcti, tmp_path)
        again = await attestor.endorsed()
        assert (again.template, again.public, again.key) == (first.template, first.public, first.key)
        assert again.certificates == []
        await attestor.close()
        attestor = await attestor_of(tpm.tcti, tmp_path, ek="rsa")
        assert (await attestor.endorsed()).template == "rsa-2048"
        await attestor.close()


async def test_without_any_certificate_auto_takes_rsa(tpm: Swtpm, tmp_path: Path) -> None:
    attestor = await attestor_of(tpm.tcti, tmp_path)
    assert (await attestor.endorsed()).template == "rsa-2048"
    assert (tmp_path / FILE).stat().st_mode & 0o777 == 0o600
    await attestor.close()


async def test_an_attestation_key_that_the_tpm_does_not_load_is_made_anew(tpm: Swtpm, tmp_path: Path) -> None:
    attestor = await attestor_of(tpm.tcti, tmp_path)
    first = await attestor.endorsed()
    assert (await attestor.endorsed()).key == first.key
    await attestor.close()
    tpm.tool("clear", "-c", "p")  # the endorsement key stays; what is below it does not
    attestor = await attestor_of(tpm.tcti, tmp_path)
    second = await attestor.endorsed()
    assert second.public == first.public
    assert second.key != first.key
    await proven(await attestor.begin())
    await attestor.close()
    with swtpm.started(tmp_path / "other") as other:
        attestor = await attestor_of(other.tcti, tmp_path)
        third = await attestor.endorsed()
        assert third.key != second.key
        await proven(await attestor.begin())
        await attestor.close()


async def test_a_damaged_file_is_left_as_it_is_and_the_line_says_what_to_do(tpm: Swtpm, tmp_path: Path) -> None:
    (tmp_path / FILE).write_text("{")
    attestor = await attestor_of(tpm.tcti, tmp_path)
    with pytest.raises(Corrupt, match="move it away"):
        await attestor.begin()
    assert (tmp_path / FILE).read_text() == "{"
    await attestor.close()


def context(folder: Path) -> PluginContext:
    return PluginContext("example.org", str(folder), LOG)


async def test_the_key_managers_worker_is_used_and_the_key_is_certified(sold: SoldTpm, tmp_path: Path) -> None:
    """A bare TPM takes one connection."""
    before = sold.handles()
    keys = await load(KeyConfiguration(tcti=sold.tcti), context(tmp_path), AGENT_KEYS)
    attestor = await attestor_of(sold.tcti, tmp_path)
    assert isinstance(attestor, KeyAttesting)
    key = await keys.generate("agent-svid-A", KeyType.EC_P256)
    conversation = await attestor.begin_with(keys, key)
    proof = await proven(conversation)
    assert proof.certification is not None
    signer = quote.attestation_key(
        hello_of(conversation).ak_public, public_area.parse(hello_of(conversation).ek_public)
    )
    assert certify.verify(signer, proof.certification, NONCE) == key.public_key
    await attestor.close()
    await keys.generate("agent-svid-B", KeyType.EC_P256)  # the worker is the key manager's still
    await keys.close()
    assert sold.handles() == before


async def test_a_key_bound_to_registers_is_certified_too(tpm: Swtpm, tmp_path: Path) -> None:
    keys = await load(KeyConfiguration(tcti=tpm.tcti, pcrs="sha256:0,7"), context(tmp_path), AGENT_KEYS)
    attestor = await attestor_of(tpm.tcti, tmp_path)
    key = await keys.generate("agent-svid-A", KeyType.EC_P256)
    assert (await proven(await attestor.begin_with(keys, key))).certification is not None
    await keys.close()


async def test_a_key_elsewhere_is_not_certified(tpm: Swtpm, tmp_path: Path) -> None:
    attestor = await attestor_of(tpm.tcti, tmp_path)
    memory = MemoryKeyManager()
    key = await memory.generate("agent-svid-A", KeyType.EC_P256)
    assert (await proven(await attestor.begin_with(memory, key))).certification is None
    await attestor.close()


async def test_a_reset_or_a_killed_worker_in_between_costs_nothing(tpm: Swtpm, tmp_path: Path) -> None:
    attestor = await attestor_of(tpm.tcti, tmp_path)
    conversation = await attestor.begin()
    tpm.reset()
    await proven(conversation)
    conversation = await attestor.begin()
    worker = attestor.own_worker()
    assert worker.pid is not None
    os.kill(worker.pid, signal.SIGKILL)
    await proven(conversation)
    await attestor.close()
    assert tpm.handles() == []


async def test_registers_that_change_meanwhile(tpm: Swtpm, tmp_path: Path) -> None:
    """As IMA's does on a busy machine: the values are those of the quote."""
    machine = Booted(tpm, tmp_path / "securityfs")
    machine.start()
    stop = threading.Event()

    def measure() -> None:
        while not stop.wait(0.02):
            machine.measure("/usr/bin/something")

    with tpm_resource_manager.before(tpm) as kernel:
        attestor = await attestor_of(kernel.client("agent"), tmp_path)
        thread = threading.Thread(target=measure)
        conversation = await attestor.begin()
        thread.start()
        try:
            for _ in range(3):
                await proven(conversation)
                conversation = await attestor.begin()
        finally:
            stop.set()
            thread.join()
            await attestor.close()


async def test_a_bank_that_the_tpm_does_not_keep(sold: SoldTpm, tmp_path: Path) -> None:
    attestor = await attestor_of(sold.tcti, tmp_path)
    conversation = await attestor.begin()
    with pytest.raises(Unsupported, match="no sha512 bank"):
        await proven(conversation, bank="sha512")
    await attestor.close()


async def test_a_credential_for_another_tpm_is_not_opened(tpm: Swtpm, tmp_path: Path) -> None:
    with swtpm.started(tmp_path / "other") as other:
        stranger = await attestor_of(other.tcti, tmp_path / "other")
        foreign = asked_of(hello_of(await stranger.begin()))
        await stranger.close()
    attestor = await attestor_of(tpm.tcti, tmp_path)
    conversation = await attestor.begin()
    with pytest.raises(Refused, match="another endorsement or attestation key"):
        await conversation.respond(encode(foreign))
    await proven(await attestor.begin())
    await attestor.close()
    assert tpm.handles() == []


@pytest.mark.parametrize(
    "challenge",
    [
        b"",
        b"\x00" * 100,
        encode(Activate(credential=b"c", secret=b"s", nonce=NONCE, bank="sha256", pcrs=(0,))),
        encode(Activate(credential=b"", secret=b"", nonce=NONCE, bank="md5", pcrs=(0,))),
        encode(Activate(credential=b"", secret=b"", nonce=NONCE, bank="sha256", pcrs=(24,))),
        encode(Ask(log="ima", offset=0, size=1)),
    ],
    ids=["nothing", "noise", "no-credential", "no-bank", "no-register", "log-first"],
)
async def test_what_no_server_asks_is_refused(tpm: Swtpm, tmp_path: Path, challenge: bytes) -> None:
    attestor = await attestor_of(tpm.tcti, tmp_path)
    conversation = await attestor.begin()
    with pytest.raises(InvalidArgument):
        await conversation.respond(challenge)
    await attestor.close()
    assert tpm.handles() == []


async def test_the_endorsement_hierarchys_authorization(tpm: Swtpm, tmp_path: Path) -> None:
    tpm.tool("changeauth", "-c", "e", "hidden")
    secret = tmp_path / "auth"
    secret.write_text("hidden\n")
    secret.chmod(0o600)
    attestor = await attestor_of(tpm.tcti, tmp_path)
    with pytest.raises(Refused, match="endorsement_auth_file"):
        await attestor.begin()
    await attestor.close()
    attestor = await attestor_of(tpm.tcti, tmp_path, endorsement_auth_file=str(secret))
    await proven(await attestor.begin())
    await attestor.close()
    assert tpm.handles() == []


async def test_a_disabled_endorsement_hierarchy(tpm: Swtpm, tmp_path: Path) -> None:
    tpm.tool("hierarchycontrol", "-C", "p", "ehEnable", "clear")
    attestor = await attestor_of(tpm.tcti, tmp_path)
    with pytest.raises(Refused, match="hierarchy is disabled"):
        await attestor.begin()
    await attestor.close()


@pytest.mark.parametrize("template", ["rsa-2048", "ecc-p256-high", "ecc-p384-high"])
async def test_a_lockout_that_others_caused_stops_no_attestation(tpm: Swtpm, tmp_path: Path, template: str) -> None:
    attestor = await attestor_of(tpm.tcti, tmp_path)
    await attestor.endorsed()
    kept = tmp_path / FILE
    kept.write_text(kept.read_text().replace('"rsa-2048"', f'"{template}"'))
    await attestor.close()
    limits = ("--max-tries=1", "--recovery-time=1000", "--lockout-recovery-time=1000")
    tpm.tool("dictionarylockout", "--setup-parameters", *limits)
    tpm.tool("nvdefine", "0x01500001", "-C", "o", "-s", "1", "-p", "right", "-a", "authread|authwrite")
    with pytest.raises(AssertionError):
        tpm.tool("nvread", "0x01500001", "-C", "0x01500001", "-P", "wrong", "-s", "1")
    assert "inLockout:                 1" in tpm.tool("getcap", "properties-variable")
    attestor = await attestor_of(tpm.tcti, tmp_path)
    await proven(await attestor.begin())
    await attestor.close()


async def test_what_a_killed_program_left_in_a_bare_tpm_makes_room(tpm: Swtpm, tmp_path: Path) -> None:
    for number in range(3):
        tpm.tool("createprimary", "-C", "o", "-G", "ecc", "-c", f"{number}.ctx")
    for number in range(3):
        tpm.tool("startauthsession", "-S", f"{number}.session")
    assert len(tpm.handles()) >= 3
    attestor = await attestor_of(tpm.tcti, tmp_path)
    await proven(await attestor.begin())
    await attestor.close()


async def test_a_tpm_that_is_away_is_asked_again(tpm: Swtpm, tmp_path: Path) -> None:
    attestor = await attestor_of(tpm.tcti, tmp_path)
    await proven(await attestor.begin())
    tpm.power_off()
    with pytest.raises(TemporarilyUnavailable, match="no TPM answers"):
        await attestor.begin()
    tpm.start()
    for _ in range(100):
        try:
            await proven(await attestor.begin())
            break
        except TemporarilyUnavailable:
            continue
    await attestor.close()


async def test_parts_of_the_logs(tpm: Swtpm, tmp_path: Path) -> None:
    event_log, ima = tmp_path / "event_log", tmp_path / "ima"
    event_log.write_bytes(bytes(range(256)) * 8)
    ima.write_bytes(b"entry" * 300_000)
    attestor = await attestor_of(tpm.tcti, tmp_path, event_log_path=str(event_log), ima_path=str(ima))
    conversation = await attestor.begin()
    proof = await proven(conversation)
    assert (proof.event_log_size, proof.ima_size) == (2048, 1_500_000)
    with ima.open("ab") as file:
        file.write(b"later")

    async def part(ask: Ask) -> bytes:
        return decode(Part, await conversation.respond(encode(ask)), PART_LIMIT + 64).data

    assert await part(Ask(log="event_log", offset=0, size=2048)) == event_log.read_bytes()
    assert await part(Ask(log="event_log", offset=2000, size=100)) == event_log.read_bytes()[2000:]
    assert await part(Ask(log="event_log", offset=9999, size=100)) == b""
    whole = await part(Ask(log="ima", offset=0, size=PART_LIMIT))
    whole += await part(Ask(log="ima", offset=len(whole), size=PART_LIMIT))
    assert whole == b"entry" * 300_000
    assert await part(Ask(log="ima", offset=1_499_995, size=100)) == b"entry"
    assert await part(Ask(log="ima", offset=1_500_000, size=100)) == b""
    for ask in (
        Ask(log="ima", offset=-1, size=1),
        Ask(log="ima", offset=0, size=0),
        Ask(log="ima", offset=0, size=PART_LIMIT + 1),
    ):
        with pytest.raises(InvalidArgument, match="of a log"):
            await part(ask)
    await attestor.close()


def test_the_interval_is_what_an_agent_goes_by(tmp_path: Path) -> None:
    configuration = Configuration(reattest_interval=timedelta(seconds=90))
    attestor = TpmAttestor(configuration, Place(tcti=configuration.tcti), b"", tmp_path / FILE, LOG)
    assert isinstance(attestor, Reattesting)
    assert attestor.interval == 90
    with pytest.raises(InvalidArgument, match="1s or longer"):
        Configuration(reattest_interval=timedelta(milliseconds=1))
