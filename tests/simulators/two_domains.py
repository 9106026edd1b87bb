"""Two trust domains that federate, each with a server, an agent and a workload: ours or another's programs.

The first serves its bundle by https_spiffe and has the other in its configuration; the second serves its own by
https_web and was told of the first by an operator.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Generator, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_der_private_key
from OpenSSL import SSL, crypto

from generated.spiffe.workload import workload_pb2
from identity import bundles, x509svid
from identity.spiffeid import TrustDomain
from operations.errors import SpireError
from tests.simulators import spire
from tests.simulators.spire import Agent, Program, Server, eventually, free_port
from tests.simulators.web_pki import WebAuthority
from transport.client import Channel
from transport.status import RpcError

ONE, OTHER = "one.org", "other.org"
QUICK = 'experimental { sync_interval = "1s" }'
CHUNK = 65536


@dataclass(frozen=True)
class Programs:
    server: str = spire.SERVER
    agent: str = spire.AGENT


@dataclass(frozen=True)
class Identity:
    """What a workload is given: its SVID, leaf first, its key in PKCS #8, and roots by trust domain. All DER."""

    chain: Sequence[bytes]
    key: bytes
    roots: dict[str, Sequence[bytes]]


@dataclass
class Domain:
    name: str
    server: Server
    agent: Agent

    @property
    def workload(self) -> str:
        return f"spiffe://{self.name}/workload"

    def identity(self) -> Identity:
        """Raises RpcError or OSError while the agent has none."""
        return asyncio.run(_identity(self.agent.socket))

    def roots(self, trust_domain: str) -> set[bytes]:
        """What the workload trusts now; nothing while it has no SVID."""
        try:
            return set(self.identity().roots.get(trust_domain, ()))
        except (RpcError, OSError):
            return set()

    def refresh(self, other: Domain) -> None:
        self.server.ask("federation", "refresh", "-id", other.name)

    def token(self) -> str:
        """A JWT-SVID of the workload."""
        return self.agent.ask("api", "fetch", "jwt", "-audience", "billing").stdout.split("\n")[1].strip()


async def _identity(socket: str) -> Identity:
    channel = Channel.unix(socket)
    try:
        async with asyncio.timeout(spire.PATIENCE):
            stream = channel.server_stream(
                "/SpiffeWorkloadAPI/FetchX509SVID",
                workload_pb2.X509SVIDRequest(),
                workload_pb2.X509SVIDResponse,
                metadata={"workload.spiffe.io": "true"},
            )
            async with aclosing(stream):
                response = await anext(stream)
    finally:
        await channel.close()
    [svid] = response.svids
    trust_domain = svid.spiffe_id.removeprefix("spiffe://").partition("/")[0]
    roots = {name.removeprefix("spiffe://"): _split(data) for name, data in response.federated_bundles.items()}
    return Identity(_split(svid.x509_svid), svid.x509_svid_key, {trust_domain: _split(svid.bundle), **roots})


def _split(certificates: bytes) -> list[bytes]:
    """DER certificates that stand one behind the other, as the Workload API has them."""
    found: list[bytes] = []
    while certificates:
        long = certificates[1] & 0x7F if certificates[1] & 0x80 else 0
        size = int.from_bytes(certificates[2 : 2 + long]) if long else certificates[1]
        found.append(certificates[: 2 + long + size])
        certificates = certificates[2 + long + size :]
    return found


def shake_hands(caller: Identity, caller_id: str, called: Identity, called_id: str) -> None:
    """Mutual TLS, each end knowing the other by the other's bundle alone. Raises what either end says against it."""
    client = SSL.Connection(_context(caller, called_id), None)
    server = SSL.Connection(_context(called, caller_id), None)
    client.set_connect_state()
    server.set_accept_state()
    waiting = {client: server, server: client}
    while waiting:
        for end, other in list(waiting.items()):
            try:
                end.do_handshake()
                del waiting[end]
            except SSL.WantReadError:
                pass
            _pass_on(end, other)


def _pass_on(source: SSL.Connection, target: SSL.Connection) -> None:
    try:
        while data := source.bio_read(CHUNK):
            target.bio_write(data)
    except SSL.WantReadError:
        pass


def _context(identity: Identity, peer_id: str) -> SSL.Context:
    leaf, *above = map(x509.load_der_x509_certificate, identity.chain)
    context = SSL.Context(SSL.TLS_METHOD)
    context.use_certificate(leaf)
    for certificate in above:
        context.add_extra_chain_cert(certificate)
    key = load_der_private_key(identity.key, None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    context.use_privatekey(key)
    peer = peer_id.removeprefix("spiffe://").partition("/")[0]
    store = context.get_cert_store()
    assert store is not None
    for root in identity.roots[peer]:
        store.add_cert(crypto.X509.from_cryptography(x509.load_der_x509_certificate(root)))

    def judge(_: SSL.Connection, certificate: crypto.X509, _error: int, depth: int, good: int) -> bool:
        der = crypto.dump_certificate(crypto.FILETYPE_ASN1, certificate)
        return bool(good) and (depth > 0 or str(x509svid.leaf_id(der)) == peer_id)

    context.set_verify(SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT, judge)
    return context


@dataclass
class Traffic:
    """Handshakes of both workloads, in both directions, one after the other, until it is told to end."""

    domains: tuple[Domain, Domain]
    handshakes: int = 0
    leaves: set[bytes] = field(default_factory=set[bytes])
    failures: list[str] = field(default_factory=list[str])
    done: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        while not self.done.wait(0.2):
            try:
                self.once()
            except (SSL.Error, SpireError, RpcError, OSError, ValueError) as error:
                self.failures.append(f"{datetime.now(UTC):%H:%M:%S} {error!r}")

    def once(self) -> None:
        one, other = self.domains
        first, second = one.identity(), other.identity()
        shake_hands(first, one.workload, second, other.workload)
        shake_hands(second, other.workload, first, one.workload)
        self.leaves |= {first.chain[0], second.chain[0]}
        self.handshakes += 2

    @contextmanager
    def flowing(self) -> Generator[None]:
        """Its failures are the test's."""
        thread = threading.Thread(target=self.run)
        thread.start()
        try:
            yield
        finally:
            self.done.set()
            thread.join()
        assert not self.failures, "\n".join(self.failures)


def federated(
    folder: Path, programs: list[Program], one: Programs | None = None, other: Programs | None = None
) -> tuple[Domain, Domain]:
    """Both up, attested and federated, their workloads with SVIDs and each other's bundles."""
    one, other = one or Programs(), other or Programs()
    authority = WebAuthority(folder)
    files = authority.issue("bundles", "localhost")
    ports = free_port(), free_port()
    first = Server(
        folder / "one",
        program=one.server,
        trust_domain=ONE,
        environment={"SSL_CERT_FILE": str(authority.file)},
        settings=f"""federation {{
    bundle_endpoint {{
      address = "127.0.0.1"
      port = {ports[0]}
      refresh_hint = "1m"
      profile "https_spiffe" {{}}
    }}
    federates_with "{OTHER}" {{
      bundle_endpoint_url = "https://localhost:{ports[1]}"
      bundle_endpoint_profile "https_web" {{}}
    }}
  }}""",
    )
    second = Server(
        folder / "other",
        program=other.server,
        trust_domain=OTHER,
        settings=f"""federation {{
    bundle_endpoint {{
      address = "127.0.0.1"
      port = {ports[1]}
      refresh_hint = "1m"
      profile "https_web" {{
        serving_cert_file {{
          cert_file_path = "{files.certificate}"
          key_file_path = "{files.key}"
          file_sync_interval = "1m"
        }}
      }}
    }}
  }}""",
    )
    programs += [first.run, second.run]
    first.start()
    second.start()
    first.ask("federation", "refresh", "-id", OTHER)  # whose server was not there when the first one looked
    bundle = folder / "one.bundle"
    bundle.write_text(first.ask("bundle", "show", "-format", "spiffe").stdout)
    second.ask(
        "federation", "create", "-trustDomain", ONE, "-bundleEndpointURL", f"https://localhost:{ports[0]}",
        "-bundleEndpointProfile", "https_spiffe", "-endpointSpiffeID", f"spiffe://{ONE}/spire/server",
        "-trustDomainBundlePath", str(bundle), "-trustDomainBundleFormat", "spiffe",
    )  # fmt: skip
    domains = (
        _with_workload(folder / "one-agent", first, one.agent, OTHER, programs),
        _with_workload(folder / "other-agent", second, other.agent, ONE, programs),
    )
    for mine, theirs in (domains, domains[::-1]):
        mine.refresh(theirs)
        eventually(partial(_trusts, mine, theirs), f"the roots of {theirs.name}")
    return domains


def _with_workload(folder: Path, server: Server, program: str, federates_with: str, programs: list[Program]) -> Domain:
    node = f"spiffe://{server.trust_domain}/node"
    agent = Agent(folder, server, token=server.join_token(node), program=program, settings=QUICK)
    programs.append(agent.run)
    agent.start()
    domain = Domain(server.trust_domain, server, agent)
    eventually(
        lambda: server.ask("bundle", "list", "-id", federates_with, check=False).returncode == 0,
        f"a bundle of {federates_with}: {server.run.output()[-2000:]}",
    )
    server.create_entry(node, domain.workload, "-federatesWith", federates_with)
    return domain


def _trusts(mine: Domain, theirs: Domain) -> bool:
    return mine.roots(theirs.name) == _authorities(theirs)


def _authorities(domain: Domain) -> set[bytes]:
    return set(bundles.from_pem(domain.server.bundle()))


def rotate_root(domain: Domain, verifier: Domain, *, polled: bool = False) -> None:
    """The way of the runbook: the new root is known to the other domain before it signs, the old one until it is left.

    With `polled` the other domain is not told to look: it does by itself.
    """
    server = domain.server
    before = _authorities(domain)
    prepared = server.ask_json("localauthority", "x509", "prepare")["prepared_authority"]["authority_id"]
    old = server.ask_json("localauthority", "x509", "show")["active"]["authority_id"]
    verifier.refresh(domain)
    both = _authorities(domain)
    assert len(both) == len(before) + 1
    eventually(lambda: verifier.roots(domain.name) == both, "both roots at the other domain's workload")

    server.ask("localauthority", "x509", "activate", "-authorityID", prepared)
    server.ask("localauthority", "x509", "taint", "-authorityID", old)
    eventually(lambda: _signed_by(domain, both - before), "an SVID of the new root")
    eventually(
        lambda: "Server SVID signed using a tainted authority" in server.run.output(), "the server's own new SVID"
    )
    server.ask("localauthority", "x509", "revoke", "-authorityID", old)
    if not polled:
        verifier.refresh(domain)
    eventually(
        lambda: verifier.roots(domain.name) == both - before, "the new root alone at the other domain's workload"
    )


def _signed_by(domain: Domain, roots: set[bytes]) -> bool:
    try:
        x509svid.verify(domain.identity().chain, {TrustDomain(domain.name): tuple(roots)}, datetime.now(UTC))
    except (SpireError, RpcError, OSError):
        return False
    return True
