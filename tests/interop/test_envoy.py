"""The real Envoy takes its secrets from the agent and speaks mutual TLS with them, at both ends."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from identity import pem, tainting
from identity.bundles import to_pem
from identity.spiffeid import TrustDomain
from tests.interop.conftest import Pair, pairs
from tests.simulators import envoy as sds
from tests.simulators import spire
from tests.simulators.envoy_proxy import Envoy, echoing
from tests.simulators.fake_server import Authority
from transport.client import Channel
from transport.status import RpcError

pytestmark = [pytest.mark.interop, pytest.mark.timeout(600)]

NODE = "spiffe://example.org/node"
GATE = "spiffe://example.org/gate"
CALLER = "spiffe://example.org/caller"
OTHER = TrustDomain("other.org")
FOREIGN = f"{OTHER.id}/caller"

WAYS = [(pair, "GRPC") for pair in pairs()] + [(pairs()[0], "DELTA_GRPC")]
"""SPIRE's agent has no incremental discovery, ours has."""


@pytest.fixture(params=WAYS, ids=lambda way: f"{way[0].name}-{way[1]}")
def way(request: pytest.FixtureRequest) -> tuple[Pair, str]:
    pair, api_type = request.param
    assert isinstance(pair, Pair)
    return pair, str(api_type)


class Scene:
    """A server and an agent, and Envoys that end with them."""

    def __init__(self, folder: Path, way: tuple[Pair, str], echo_port: int, *, lifetime: str = "1h") -> None:
        pair, self._api_type = way
        self._folder = folder
        self._echo_port = echo_port
        self._runs: list[spire.Program] = []
        settings = f'default_x509_svid_ttl = "{lifetime}"'
        self.server = spire.Server(folder / "server", program=pair.server, settings=settings)
        self._runs.append(self.server.run)
        self.server.start()
        token = self.server.join_token(NODE)
        settings = 'experimental { sync_interval = "1s" }'
        self.agent = spire.Agent(folder / "agent", self.server, token=token, program=pair.agent, settings=settings)
        self._runs.append(self.agent.run)
        self.agent.start()

    def create_entries(self, *more: str) -> None:
        for each in (GATE, CALLER):
            self.server.create_entry(NODE, each, *more)

    def envoy(self, *peers: str, validation: str = "ROOTCA", by_root_ca: bool = False) -> Envoy:
        """One that is started: its `way_in` is the caller, its `gate` the gate."""
        made = Envoy(
            self._folder / "envoy",
            self.agent.socket,
            self._echo_port,
            GATE,
            peers or (CALLER,),
            gate_certificate=GATE,
            caller_certificate=CALLER,
            validation=validation,
            api_type=self._api_type,
            metadata={"disable_spiffe_cert_validation": True} if by_root_ca else {},
        )
        self._runs.append(made.run)
        made.start()
        return made

    def identity(self) -> tuple[bytes, bytes]:
        """The caller's chain and key (PEM), for another workload that is the caller too, as this test is.

        SPIRE's agent has none for a moment after a taint.
        """

        async def fetched() -> sds.Secret | None:
            channel = Channel.unix(self.agent.socket)
            try:
                return (await sds.fetch(channel, CALLER))[CALLER]
            except RpcError:
                return None
            finally:
                await channel.close()

        return sds.chain_and_key(spire.eventually(lambda: asyncio.run(fetched()), "the caller's SVID"))

    def context(self, chain: bytes, key: bytes) -> ssl.SSLContext:
        """Of who shows this chain, and trusts the server's authorities of now."""
        file = self._folder / "caller.pem"
        file.write_bytes(chain + key)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False  # a SPIFFE ID is no host name; the authorities alone are asked
        context.load_cert_chain(file)
        context.load_verify_locations(cadata=self.server.bundle())
        return context

    def caller(self) -> ssl.SSLContext:
        return self.context(*self.identity())

    def foreign(self, authority: Authority) -> ssl.SSLContext:
        """A workload of another trust domain."""
        identity = authority.identity(FOREIGN)
        return self.context(to_pem(identity.chain).encode(), pem.private_key(identity.private_key).encode())

    def end(self) -> None:
        for each in reversed(self._runs):
            if each.process is not None:
                each.end()


@pytest.fixture
def echo_port() -> Iterator[int]:
    with echoing() as port:
        yield port


@pytest.fixture
def scene(tmp_path: Path, way: tuple[Pair, str], echo_port: int) -> Iterator[Scene]:
    made = Scene(tmp_path, way, echo_port)
    try:
        yield made
    finally:
        made.end()


@pytest.fixture
def brief(tmp_path: Path, way: tuple[Pair, str], echo_port: int) -> Iterator[Scene]:
    """Its SVIDs live for 20 seconds."""
    made = Scene(tmp_path, way, echo_port, lifetime="20s")
    try:
        yield made
    finally:
        made.end()


def works(envoy: Envoy) -> bool:
    return envoy.echo() == b"hello"


def gets_in(envoy: Envoy, context: ssl.SSLContext) -> bool:
    try:
        return envoy.through_gate(context)[0] == b"hello"
    except OSError:
        return False


def nothing_was_rejected(envoy: Envoy) -> bool:
    return set(envoy.counters("update_rejected").values()) == {0}


@pytest.mark.parametrize(("validation", "by_root_ca"), [("ROOTCA", False), ("ALL", False), ("ROOTCA", True)])
def test_both_ends_verify_each_other(scene: Scene, validation: str, by_root_ca: bool) -> None:
    scene.create_entries()
    scene.agent.fetch()
    envoy = scene.envoy(validation=validation, by_root_ca=by_root_ca)
    spire.eventually(lambda: works(envoy), "mutual TLS from end to end")
    assert gets_in(envoy, scene.caller())
    assert nothing_was_rejected(envoy)


def test_peers_with_other_names_are_turned_away(scene: Scene) -> None:
    scene.create_entries()
    scene.agent.fetch()
    envoy = scene.envoy("spiffe://example.org/another")
    shaken = "ssl.fail_verify_san"
    spire.eventually(lambda: not works(envoy) and sum(envoy.counters(shaken).values()), "a name that does not fit")
    assert not gets_in(envoy, scene.caller())


def test_rotations_leave_no_gap(brief: Scene) -> None:
    brief.create_entries()
    brief.agent.fetch()
    envoy = brief.envoy()
    spire.eventually(lambda: works(envoy), "mutual TLS from end to end")
    shown: set[bytes] = set()
    end = time.monotonic() + 45
    handshakes = 0
    while time.monotonic() < end:
        assert works(envoy), f"handshake {handshakes} failed: {envoy.run.output()[-2000:]}"
        shown.add(envoy.through_gate(brief.caller())[1])
        handshakes += 1
        time.sleep(0.2)
    assert len(shown) >= 3
    assert handshakes > 20
    assert nothing_was_rejected(envoy)


def test_a_new_authority_arrives_and_the_old_one_goes(scene: Scene) -> None:
    scene.create_entries()
    scene.agent.fetch()
    envoy = scene.envoy()
    spire.eventually(lambda: works(envoy), "mutual TLS from end to end")
    before = scene.identity()

    def signed_by() -> str:
        return tainting.authority_key_id(envoy.through_gate(scene.caller())[1])

    shown = scene.server.ask_json("localauthority", "x509", "show")
    old = shown["active"]["authority_id"]
    assert signed_by() == old
    new = scene.server.ask_json("localauthority", "x509", "prepare")["prepared_authority"]["authority_id"]
    scene.server.ask("localauthority", "x509", "activate", "-authorityID", new)
    scene.server.ask("localauthority", "x509", "taint", "-authorityID", old)
    spire.eventually(lambda: signed_by() == new, "the gate's certificate by the new authority")
    assert works(envoy)
    assert gets_in(envoy, scene.context(*before)), "a tainted authority is trusted still"
    scene.server.ask("localauthority", "x509", "revoke", "-authorityID", old)
    spire.eventually(lambda: not gets_in(envoy, scene.context(*before)), "the old authority to be trusted no more")
    assert works(envoy)
    assert gets_in(envoy, scene.caller())
    assert nothing_was_rejected(envoy)


def test_federated_callers_get_in_by_all_bundles_alone(scene: Scene) -> None:
    theirs, impostor = Authority(OTHER), Authority(OTHER)
    file = scene.agent.folder / "other.pem"
    file.write_text(theirs.pem)
    scene.server.ask("bundle", "set", "-id", OTHER.id, "-path", str(file))
    scene.create_entries("-federatesWith", OTHER.id)
    scene.agent.fetch()
    envoy = scene.envoy(CALLER, FOREIGN, validation="ALL")
    spire.eventually(lambda: works(envoy), "mutual TLS from end to end")
    spire.eventually(lambda: gets_in(envoy, scene.foreign(theirs)), "a caller of the other trust domain")
    assert not gets_in(envoy, scene.foreign(impostor)), "of its name, but of another authority"
    # Once the bundle is gone, so is the trust.
    scene.server.ask("bundle", "delete", "-id", OTHER.id, "-mode", "dissociate")
    spire.eventually(lambda: not gets_in(envoy, scene.foreign(theirs)), "the other trust domain to be a stranger")
    assert works(envoy)


def test_entries_that_come_later_need_no_restart(scene: Scene) -> None:
    envoy = scene.envoy()
    assert not works(envoy)
    scene.create_entries()
    spire.eventually(lambda: works(envoy), "mutual TLS from end to end")
    assert nothing_was_rejected(envoy)


def test_an_agent_that_comes_back_is_found_again(scene: Scene) -> None:
    scene.create_entries()
    scene.agent.fetch()
    envoy = scene.envoy()
    spire.eventually(lambda: works(envoy), "mutual TLS from end to end")
    before = envoy.through_gate(scene.caller())[1]
    scene.agent.run.end()
    assert works(envoy), "what Envoy has, it keeps"
    # Without what ours keeps for restarts, by which Envoy would be given what it has.
    for kept in scene.agent.folder.glob("agent-store.*"):
        kept.unlink()
    scene.agent.start()
    spire.eventually(lambda: envoy.through_gate(scene.caller())[1] != before, "a certificate of the new agent")
    assert works(envoy)
