"""Two trust domains that know each other's bundles: a workload of one verifies the SVIDs of the other."""

from __future__ import annotations

import asyncio
import json
from contextlib import aclosing
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key

from generated.spiffe.workload import workload_pb2
from generated.spire.api.server.bundle.v1 import bundle_pb2
from identity.bundles import from_pem
from tests.simulators.spire import Agent, Program, Server, command, eventually
from transport.client import Channel
from transport.status import Code, RpcError
from transport.tls import InProcessIdentity, client_context

NODE = "spiffe://example.org/node"
WORKLOAD = "spiffe://example.org/workload"
FOREIGN = "spiffe://other.org/workload"
FEDERATED = "federated_bundle.0.0.pem"


@pytest.fixture
def ours(tmp_path: Path, programs: list[Program]) -> Server:
    return _started(Server(tmp_path / "ours"), programs)


@pytest.fixture
def theirs(tmp_path: Path, programs: list[Program]) -> Server:
    return _started(Server(tmp_path / "theirs", trust_domain="other.org"), programs)


@pytest.fixture
def agent(tmp_path: Path, ours: Server, programs: list[Program]) -> Agent:
    made = Agent(tmp_path / "agent", ours, token=ours.join_token(NODE))
    programs.append(made.run)
    made.start()
    return made


def _started(server: Server, programs: list[Program]) -> Server:
    programs.append(server.run)
    server.start()
    return server


def take_bundle(ours: Server, theirs: Server, folder: Path, form: str = "spiffe") -> None:
    """What two operators do: one shows, the other sets."""
    file = folder / "their.bundle"
    file.write_text(theirs.ask("bundle", "show", "-format", form).stdout)
    done = ours.ask("bundle", "set", "-id", "spiffe://other.org", "-path", str(file), "-format", form)
    assert done.stdout == "bundle set.\n"


def written(agent: Agent, folder: Path) -> set[str]:
    """The files of the workload's SVIDs and bundles."""
    folder.mkdir(exist_ok=True)
    for file in folder.iterdir():
        file.unlink()
    agent.ask("api", "fetch", "x509", "-write", str(folder), check=False)
    return {file.name for file in folder.iterdir()}


def federates(agent: Agent, folder: Path) -> bool:
    return {"svid.0.pem", FEDERATED} <= written(agent, folder)


def verifies(authorities: Path, leaf: Path) -> bool:
    return command("openssl", "verify", "-CAfile", str(authorities), str(leaf)).returncode == 0


async def bundle_streams(agent: Agent) -> tuple[workload_pb2.X509BundlesResponse, workload_pb2.JWTBundlesResponse]:
    """The first message of each."""
    channel = Channel.unix(agent.socket)
    header = {"workload.spiffe.io": "true"}
    try:
        x509 = channel.server_stream(
            "/SpiffeWorkloadAPI/FetchX509Bundles",
            workload_pb2.X509BundlesRequest(),
            workload_pb2.X509BundlesResponse,
            metadata=header,
        )
        jwt = channel.server_stream(
            "/SpiffeWorkloadAPI/FetchJWTBundles",
            workload_pb2.JWTBundlesRequest(),
            workload_pb2.JWTBundlesResponse,
            metadata=header,
        )
        async with aclosing(x509), aclosing(jwt):
            return await anext(x509), await anext(jwt)
    finally:
        await channel.close()


def test_a_workload_verifies_what_the_other_trust_domain_signed(
    ours: Server, theirs: Server, agent: Agent, tmp_path: Path
) -> None:
    take_bundle(ours, theirs, tmp_path)
    ours.create_entry(NODE, WORKLOAD, "-federatesWith", "spiffe://other.org")
    files = tmp_path / "files"
    eventually(lambda: federates(agent, files), "an SVID with the other trust domain's bundle")
    minted = tmp_path / "minted"
    minted.mkdir()
    theirs.ask("x509", "mint", "-spiffeID", FOREIGN, "-write", str(minted))
    assert verifies(files / FEDERATED, minted / "svid.pem")
    assert not verifies(files / "bundle.0.pem", minted / "svid.pem")

    token = theirs.ask("jwt", "mint", "-spiffeID", FOREIGN, "-audience", "billing").stdout.strip()
    valid = agent.ask("api", "validate", "jwt", "-audience", "billing", "-svid", token)
    assert f"SPIFFE ID : {FOREIGN}" in valid.stdout

    x509, jwt = asyncio.run(bundle_streams(agent))
    assert x509.bundles["spiffe://other.org"] == b"".join(from_pem(theirs.bundle()))
    both = ["spiffe://example.org", "spiffe://other.org"]
    assert sorted(x509.bundles) == sorted(jwt.bundles) == both
    [key] = json.loads(jwt.bundles["spiffe://other.org"])["keys"]
    assert key["kid"] == theirs.ask_json("bundle", "show")["jwt_authorities"][0]["key_id"]


def test_a_new_bundle_reaches_workloads_and_a_deleted_one_leaves_them(
    ours: Server, theirs: Server, agent: Agent, tmp_path: Path
) -> None:
    take_bundle(ours, theirs, tmp_path, "pem")
    entry = ours.create_entry(NODE, WORKLOAD, "-federatesWith", "other.org")
    files = tmp_path / "files"
    eventually(lambda: federates(agent, files), "the bundle")
    before = (files / FEDERATED).read_text()

    both = tmp_path / "both.pem"
    both.write_text(ours.bundle() + theirs.bundle())
    ours.ask("bundle", "set", "-id", "other.org", "-path", str(both))

    def changed() -> bool:
        return federates(agent, files) and (files / FEDERATED).read_text() != before

    eventually(changed, "the changed bundle")

    refused = ours.ask("bundle", "delete", "-id", "other.org", check=False)
    assert refused.returncode == 1
    assert "federated with 1 registration entries" in refused.stderr
    ours.ask("bundle", "delete", "-id", "other.org", "-mode", "dissociate")
    eventually(lambda: FEDERATED not in written(agent, files), "no bundle of the other trust domain")
    assert "svid.0.pem" in written(agent, files), "the workload keeps its own"
    [shown] = ours.ask_json("entry", "show", "-entryID", entry)["entries"]
    assert shown["federates_with"] == []


def test_what_was_acknowledged_is_there_after_a_crash(
    ours: Server, theirs: Server, programs: list[Program], tmp_path: Path
) -> None:
    data = tmp_path / "data.json"
    relationship = {
        "trustDomain": "other.org",
        "bundleEndpointURL": "https://other.org/bundle",
        "bundleEndpointProfile": "https_spiffe",
        "endpointSPIFFEID": "spiffe://other.org/endpoint",
        "trustDomainBundleFormat": "spiffe",
        "trustDomainBundle": json.loads(theirs.ask("bundle", "show", "-format", "spiffe").stdout),
    }
    data.write_text(json.dumps({"federationRelationships": [relationship]}))
    ours.ask("federation", "create", "-data", str(data))
    ours.run.end(9)
    _started(ours, programs)
    assert ours.ask("federation", "list").stdout == (
        "Found 1 federation relationship\n\n"
        "Trust domain              : other.org\n"
        "Bundle endpoint URL       : https://other.org/bundle\n"
        "Bundle endpoint profile   : https_spiffe\n"
        "Endpoint SPIFFE ID        : spiffe://other.org/endpoint\n"
    )
    assert ours.ask("bundle", "list", "-id", "other.org").stdout == theirs.bundle()


async def bundles_counted(server: Server, identity: InProcessIdentity) -> int:
    """Asked over TCP with this X509-SVID. Which server answers is not the question here."""
    channel = Channel.tcp("127.0.0.1", server.port, lambda: client_context(identity), lambda _: None)
    try:
        method = "/spire.api.server.bundle.v1.Bundle/CountBundles"
        return (await channel.unary(method, bundle_pb2.CountBundlesRequest(), bundle_pb2.CountBundlesResponse)).count
    finally:
        await channel.close()


def test_an_admin_of_the_other_trust_domain(theirs: Server, programs: list[Program], tmp_path: Path) -> None:
    """Is one as soon as the bundle that verifies it is there."""
    settings = 'admin_ids = ["spiffe://other.org/admin"]'
    ours = _started(Server(tmp_path / "ours", settings=settings), programs)
    minted = tmp_path / "minted"
    minted.mkdir()
    theirs.ask("x509", "mint", "-spiffeID", "spiffe://other.org/admin", "-write", str(minted))
    key = load_pem_private_key((minted / "key.pem").read_bytes(), None)
    admin = InProcessIdentity(
        tuple(from_pem((minted / "svid.pem").read_text())),
        key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption()),
    )
    with pytest.raises(RpcError) as error:
        asyncio.run(bundles_counted(ours, admin))
    assert error.value.code is Code.UNAUTHENTICATED
    take_bundle(ours, theirs, tmp_path)
    assert asyncio.run(bundles_counted(ours, admin)) == 2
