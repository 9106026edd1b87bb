"""Roots in an HSM and in a TPM, made as docs/runbooks/hardware-roots.md has it, sign servers' authorities."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import pytest
from cryptography import x509

from identity import bundles, tainting, x509svid
from identity.spiffeid import TrustDomain
from tests.integration.conftest import MakeAgent, pkcs11
from tests.simulators import ceremony, softhsm, spire, swtpm, tpm_resource_manager
from tests.simulators.softhsm import SoftHsm
from tests.simulators.spire import MEMORY, Server, command, eventually

NODE = "spiffe://example.org/node"
WORKLOAD = "spiffe://example.org/workload"
TD = TrustDomain("example.org")


@dataclass
class Root:
    """A CA in a device, below the root of that certificate, or that root itself.

    `settings` are those of the plugin; `away` and `back` are what happens to the device.
    """

    plugin: str
    certificate: Path
    settings: dict[str, str]
    away: Callable[[], object]
    back: Callable[[], object]
    environment: dict[str, str]

    def block(self, **changes: str) -> str:
        lines = "\n".join(f"    {name} = {value}" for name, value in (self.settings | changes).items() if value)
        return f'UpstreamAuthority "{self.plugin}" {{ plugin_data {{\n{lines}\n  }} }}'


def token_root(token: SoftHsm, folder: Path, words: Mapping[str, str] | None = None) -> Root:
    certificate = ceremony.in_token(token, folder, words)
    hidden = token.folder / "pulled"
    settings = {
        "module_path": f'"{softhsm.MODULE}"',
        "token_label": f'"{token.label}"',
        "pin_file": f'"{token.pin_file}"',
        "key_label": '"root-2026"',
        "cert_file_path": f'"{certificate}"',
    }
    return Root(
        "pkcs11",
        certificate,
        settings,
        partial(token.tokens.rename, hidden),
        partial(hidden.rename, token.tokens),
        {"SOFTHSM2_CONF": str(token.configuration)},
    )


@pytest.fixture
def tpm(tmp_path: Path) -> Iterator[swtpm.Swtpm]:
    with swtpm.started(tmp_path / "tpm") as made:
        yield made


def tpm_root(tpm: swtpm.Swtpm, folder: Path, *, self_signed: bool = False) -> Root:
    certificate = ceremony.self_signed_in_tpm(tpm, folder) if self_signed else ceremony.in_tpm(tpm, folder)
    hidden = tpm.path.with_name("pulled")
    settings = {"tcti": f'"{tpm.tcti}"', "key_handle": f'"{ceremony.HANDLE}"', "cert_file_path": f'"{certificate}"'}
    if not self_signed:
        settings |= {"cert_file_path": f'"{folder / "tpm.pem"}"', "bundle_file_path": f'"{certificate}"'}
    return Root("tpm", certificate, settings, partial(tpm.path.rename, hidden), partial(hidden.rename, tpm.path), {})


@pytest.fixture(params=["pkcs11", "tpm"])
def root(request: pytest.FixtureRequest, token: SoftHsm, tmp_path: Path) -> Root:
    if request.param == "pkcs11":
        return token_root(token, tmp_path)
    tpm: swtpm.Swtpm = request.getfixturevalue("tpm")
    return tpm_root(tpm, tmp_path)


MakeRooted = Callable[..., Server]


@pytest.fixture
def make_rooted(tmp_path: Path, programs: list[spire.Program]) -> MakeRooted:
    """A server below a root; `key_manager` is "disk" or "memory"."""

    def make(root: Root, *, key_manager: str = "disk", settings: str = "", **changes: str) -> Server:
        folder = tmp_path / "server"
        keys = f'KeyManager "disk" {{ plugin_data {{ keys_path = "{folder}/keys.json" }} }}'
        made = Server(
            folder,
            key_manager=f"{MEMORY if key_manager == 'memory' else keys}\n  {root.block(**changes)}",
            settings=settings,
            environment=root.environment,
        )
        programs.append(made.run)
        return made

    return make


def mint(server: Server, spiffe_id: str = WORKLOAD) -> list[bytes]:
    """A chain, leaf first, that this and OpenSSL's verifier find below the bundle's roots."""
    folder = server.folder / "minted"
    folder.mkdir(exist_ok=True)
    server.ask("x509", "mint", "-spiffeID", spiffe_id, "-write", str(folder))
    leaf, *above = bundles.from_pem((folder / "svid.pem").read_text())
    roots = bundles.from_pem((folder / "bundle.pem").read_text())
    assert str(x509svid.verify([leaf, *above], {TD: roots}, datetime.now(UTC))) == spiffe_id
    (folder / "leaf.pem").write_text(bundles.to_pem([leaf]))
    (folder / "above.pem").write_text(bundles.to_pem(above))
    paths = ["-CAfile", str(folder / "bundle.pem"), "-untrusted", str(folder / "above.pem"), str(folder / "leaf.pem")]
    done = command("openssl", "verify", "-x509_strict", *paths)
    assert done.returncode == 0, done.stderr
    return [leaf, *above]


def intermediate(server: Server) -> bytes:
    return mint(server)[1]


def certificate(path: Path) -> bytes:
    return bundles.from_pem(path.read_text())[0]


def authority(server: Server, state: str = "active") -> str:
    found: str = server.ask_json("localauthority", "x509", "show").get(state, {}).get("authority_id", "")
    return found


def rotate(server: Server) -> None:
    prepared = server.ask_json("localauthority", "x509", "prepare")["prepared_authority"]["authority_id"]
    server.ask("localauthority", "x509", "activate", "-authorityID", prepared)


def refusal(server: Server) -> str:
    """What a start that fails says, in its one line."""
    server.run.start()
    assert server.run.wait() == 1
    output = server.run.output()
    assert "Traceback" not in output
    [line] = [line for line in output.splitlines() if "Fatal run error" in line]
    return line


@pytest.mark.timeout(300)
def test_a_root_in_a_device_carries_a_trust_domain(root: Root, make_rooted: MakeRooted, make_agent: MakeAgent) -> None:
    server = make_rooted(root, path_length="0", permitted_uris='["example.org"]')
    server.start()
    assert bundles.from_pem(server.bundle()) == [certificate(root.certificate)]
    agent = make_agent(server, token_value=server.join_token(NODE))
    agent.start()
    server.create_entry(NODE, WORKLOAD)
    assert WORKLOAD in agent.fetch()

    encoded = intermediate(server)
    own = x509.load_der_x509_certificate(encoded)
    assert own.extensions.get_extension_for_class(x509.BasicConstraints).value.path_length == 0
    assert own.extensions.get_extension_for_class(x509.NameConstraints).critical
    life = own.not_valid_after_utc - own.not_valid_before_utc
    assert life.total_seconds() == 24 * 3600 + 10

    # A restart goes on with the same authority, a rotation makes another one below the same root.
    server.run.end()
    server.start()
    assert intermediate(server) == encoded
    rotate(server)
    assert intermediate(server) != encoded
    assert bundles.from_pem(server.bundle()) == [certificate(root.certificate)]
    assert WORKLOAD in agent.fetch()


@pytest.mark.timeout(300)
def test_a_device_that_is_away_is_missed_by_nobody(root: Root, make_rooted: MakeRooted) -> None:
    server = make_rooted(root, ttl='"40s"')
    server.start()
    first = authority(server)
    root.away()
    # The next is due after 20 s, and cannot be had.
    eventually(lambda: "Unable to rotate X509 CA" in server.run.output(), "a line about the device")
    mint(server)
    assert authority(server) == first
    root.back()
    eventually(lambda: "Able to rotate X509 CA again" in server.run.output(), "the next authority")
    assert server.run.output().count("Unable to rotate X509 CA") == 1
    eventually(lambda: authority(server) != first, "the next authority signs")
    mint(server)


@pytest.mark.timeout(300)
def test_a_start_without_the_device(root: Root, make_rooted: MakeRooted) -> None:
    server = make_rooted(root)
    root.away()
    line = refusal(server)
    assert any(name in line for name in ("token_label 'spire'", softhsm.MODULE, "tpm.sock")), line
    root.back()
    server.run.log.unlink()
    server.start()
    before = intermediate(server)
    server.run.end()

    # With an authority in its journal, and its key on disk, it can do without.
    root.away()
    server.start()
    assert "The upstream CA's device is away" in server.run.output()
    assert intermediate(server) == before
    prepare = ("localauthority", "x509", "prepare")
    assert server.ask(*prepare, check=False).returncode == 1
    root.back()
    eventually(lambda: server.ask(*prepare, check=False).returncode == 0, "the device", 30)


def test_keys_in_memory_ask_the_device_at_each_start(root: Root, make_rooted: MakeRooted) -> None:
    server = make_rooted(root, key_manager="memory")
    server.start()
    before = intermediate(server)
    server.run.end()
    server.start()
    assert intermediate(server) != before
    assert bundles.from_pem(server.bundle()) == [certificate(root.certificate)]


@pytest.mark.parametrize("kind", ["EC:secp256r1", "EC:edwards25519", "rsa:3072", "rsa:2048"])
def test_kinds_of_keys_in_a_token(
    token: SoftHsm, tmp_path: Path, make_rooted: MakeRooted, make_agent: MakeAgent, kind: str
) -> None:
    root = token_root(token, tmp_path, {"EC:secp384r1": kind})
    server = make_rooted(root, key_manager="memory", permitted_uris='["example.org"]')
    server.start()
    agent = make_agent(server, token_value=server.join_token(NODE))
    agent.start()
    server.create_entry(NODE, WORKLOAD)
    assert WORKLOAD in agent.fetch()
    mint(server)


def test_a_self_signed_root_in_a_tpm(tpm: swtpm.Swtpm, tmp_path: Path, make_rooted: MakeRooted) -> None:
    root = tpm_root(tpm, tmp_path, self_signed=True)
    server = make_rooted(root, key_manager="memory")
    server.start()
    assert len(mint(server)) == 2
    server.run.end()
    assert tpm.handles() == [int(ceremony.HANDLE, 16)], "nothing else stays in the TPM"


@pytest.mark.timeout(300)
def test_a_root_is_replaced_as_the_runbook_says(
    token: SoftHsm, tmp_path: Path, make_rooted: MakeRooted, make_agent: MakeAgent
) -> None:
    root = token_root(token, tmp_path)
    old = root.certificate.rename(tmp_path / "old.pem")
    new = token_root(token, tmp_path, {"root-2026": "root-2027", "--id 2026": "--id 2027"}).certificate
    both = tmp_path / "both.pem"
    both.write_text(old.read_text() + new.read_text())
    server = make_rooted(root, cert_file_path=f'"{old}"')
    server.start()
    agent = make_agent(server, token_value=server.join_token(NODE), settings='experimental { sync_interval = "1s" }')
    agent.start()
    server.create_entry(NODE, WORKLOAD)
    agent.fetch()

    def restart(**changes: str) -> None:
        server.run.end()
        server.key_manager = re.sub(r"UpstreamAuthority.*", root.block(**changes), server.key_manager, flags=re.DOTALL)
        server.configure()
        server.start()
        rotate(server)

    def fetched(file: str) -> list[bytes]:
        folder = tmp_path / "svid"
        folder.mkdir(exist_ok=True)
        if agent.ask("api", "fetch", "x509", "-write", str(folder), check=False).returncode != 0:
            return []
        return bundles.from_pem((folder / file).read_text())

    # 1. known, by the agent too, 2. used
    restart(cert_file_path=f'"{old}"', bundle_file_path=f'"{both}"')
    assert bundles.from_pem(server.bundle()) == [certificate(old), certificate(new)]
    assert tainting.authority_key_id(intermediate(server)) == tainting.subject_key_id(certificate(old))
    eventually(lambda: certificate(new) in fetched("bundle.0.pem"), "the new root in the workload's bundle")
    changes = {"key_label": '"root-2027"', "cert_file_path": f'"{new}"'}
    restart(bundle_file_path=f'"{both}"', **changes)
    key_id = tainting.subject_key_id(certificate(new))
    assert tainting.authority_key_id(intermediate(server)) == key_id
    assert key_id in server.ask("localauthority", "x509", "show").stdout

    # 3. the old one left, 4. forgotten
    both.write_text(new.read_text())
    former = tainting.subject_key_id(certificate(old))
    server.ask("upstreamauthority", "taint", "-subjectKeyID", former)

    def renewed() -> bool:
        chain = fetched("svid.0.pem")
        return bool(chain) and tainting.authority_key_id(chain[1]) == key_id

    eventually(renewed, "the workload's SVID below the new root")
    eventually(lambda: "Server SVID signed using a tainted authority" in server.run.output(), "the server's own")
    server.ask("upstreamauthority", "revoke", "-subjectKeyID", former)
    rotate(server)
    assert bundles.from_pem(server.bundle()) == [certificate(new)]
    assert WORKLOAD in agent.fetch()


def test_one_token_holds_the_root_and_the_servers_keys(
    token: SoftHsm, tmp_path: Path, programs: list[spire.Program]
) -> None:
    """Which is slow, and possible: neither takes the other's keys for its own."""
    root = token_root(token, tmp_path)
    folder = tmp_path / "server"
    keys = pkcs11(token, folder / "keys.json")
    server = Server(folder, key_manager=f"{keys}\n  {root.block()}", environment=root.environment)
    programs.append(server.run)
    server.start()
    for _ in range(3):
        rotate(server)
        mint(server)
    server.run.end()
    assert token.tool("--list-objects", "--type", "privkey").count("root-2026") == 1
    server.start()
    mint(server)


def test_one_tpm_holds_the_root_and_the_servers_keys(
    tpm: swtpm.Swtpm, tmp_path: Path, programs: list[spire.Program]
) -> None:
    root = tpm_root(tpm, tmp_path)
    folder = tmp_path / "server"
    with tpm_resource_manager.before(tpm) as manager:
        settings = f'tcti = "{manager.client("keys")}"\n keys_path = "{folder}/keys"'
        block = root.block(tcti=f'"{manager.client("root")}"')
        server = Server(folder, key_manager=f'KeyManager "tpm" {{ plugin_data {{ {settings} }} }}\n  {block}')
        programs.append(server.run)
        server.start()
        for _ in range(3):
            rotate(server)
            mint(server)
        server.run.end()
        server.start()
        mint(server)
        server.run.end()


def test_a_certificate_is_renewed_while_the_server_runs(
    token: SoftHsm, tmp_path: Path, make_rooted: MakeRooted
) -> None:
    root = token_root(token, tmp_path)
    old = certificate(root.certificate)
    server = make_rooted(root)
    server.start()
    blocks = ceremony.commands("1. Make the root in a token")
    environment = token.environment | {"MODULE": softhsm.MODULE, "TOKEN": token.label, "GNUTLS_PIN": softhsm.USER_PIN}
    for block in blocks[1:]:
        ceremony.run(block, tmp_path, environment)
    rotate(server)
    new = certificate(root.certificate)
    assert new != old
    mint(server)
    assert bundles.from_pem(server.bundle()) == [old, new]


@pytest.mark.timeout(300)
def test_servers_below(
    token: SoftHsm,
    tmp_path: Path,
    make_rooted: MakeRooted,
    make_agent: MakeAgent,
    programs: list[spire.Program],
) -> None:
    """A path length of 1 below one of 2 has room for a server below this one; with 0 it is refused, by a line."""
    root = token_root(token, tmp_path, {"path_len = 1": "path_len = 2"})
    server = make_rooted(root, permitted_uris='["example.org"]')
    server.start()
    assert x509.load_der_x509_certificate(intermediate(server)).extensions.get_extension_for_class(
        x509.BasicConstraints
    ).value == x509.BasicConstraints(ca=True, path_length=1)
    agent = make_agent(server, token_value=server.join_token(NODE), settings='experimental { sync_interval = "1s" }')
    agent.start()
    server.create_entry(NODE, "spiffe://example.org/downstream", "-downstream")
    agent.fetch()
    plugin = (
        f'UpstreamAuthority "spire" {{ plugin_data {{ server_address = "127.0.0.1"\n server_port = "{server.port}"\n'
        f' workload_api_socket = "{agent.socket}" }} }}'
    )
    below = Server(tmp_path / "below", key_manager=f"{MEMORY}\n  {plugin}")
    programs.append(below.run)
    below.start()
    assert len(mint(below)) == 3
    below.run.end()

    server.run.end()
    server.key_manager = server.key_manager.replace("permitted_uris", "path_length = 0\n    permitted_uris")
    server.configure()
    server.start()
    rotate(server)
    below.run.log.unlink()
    assert "path length 0" in refusal(below)


REFUSALS = {
    "label": ({"key_label": '"root-2025"'}, "root-2025"),
    "token": ({"token_label": '"spare"'}, "spare"),
    "module": ({"module_path": '"/usr/lib/none.so"'}, "/usr/lib/none.so"),
    "pin file": ({"pin_file": '"/none"'}, "/none"),
    "certificate": ({"cert_file_path": '"/none.pem"'}, "/none.pem"),
    "bundle": ({"bundle_file_path": '"/none.pem"'}, "/none.pem"),
    "path length": ({"path_length": "1"}, "path_length: 1 is more than"),
    "names": ({"permitted_uris": '["other.org"]'}, "permitted_uris"),
    "ttl": ({"ttl": '"1 day"'}, "ttl"),
}


@pytest.mark.parametrize(("changes", "named"), REFUSALS.values(), ids=REFUSALS)
def test_refusals_at_the_start(
    token: SoftHsm, tmp_path: Path, make_rooted: MakeRooted, changes: dict[str, str], named: str
) -> None:
    server = make_rooted(token_root(token, tmp_path), **changes)
    began = time.monotonic()
    assert named in refusal(server)
    assert time.monotonic() - began < 60


def test_another_keys_certificate_is_refused(token: SoftHsm, tmp_path: Path, make_rooted: MakeRooted) -> None:
    root = token_root(token, tmp_path)
    token.tool("--keypairgen", "--key-type", "EC:secp256r1", "--usage-sign", "--label", "other", "--id", "07")
    line = refusal(make_rooted(root, key_label='"other"'))
    assert "root.pem: the certificate is of another key than" in line
    assert "other" in line


def test_a_wrong_pin_is_tried_once(token: SoftHsm, tmp_path: Path, make_rooted: MakeRooted) -> None:
    root = token_root(token, tmp_path)
    token.write_pin("000000")
    server = make_rooted(root)
    for _ in range(4):
        assert "PIN" in refusal(server)
        server.run.log.unlink()
    token.write_pin(softhsm.USER_PIN)
    server.start()


def test_validate_reads_the_certificates(token: SoftHsm, tmp_path: Path, make_rooted: MakeRooted) -> None:
    root = token_root(token, tmp_path)
    server = make_rooted(root)
    validate = (spire.SERVER, "validate", "-config", str(server.config))
    assert command(*validate).returncode == 0
    for change, named in (({"token_serial": '"1"'}, "token_serial"), ({"path_length": "1"}, "path_length: 1 is more")):
        server.key_manager = f"{MEMORY}\n{root.block(**change)}"
        server.configure()
        done = command(*validate)
        assert done.returncode == 1
        assert named in done.stdout + done.stderr
    root.certificate.unlink()
    done = command(*validate)
    assert done.returncode == 1
    assert "root.pem: unable to load upstream CA cert: No such file or directory" in done.stdout + done.stderr
