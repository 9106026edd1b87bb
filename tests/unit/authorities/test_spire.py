"""UpstreamAuthority "spire": a server below another one, and what may go wrong between them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
import pytest_asyncio

from authorities import spire
from authorities.spire import Configuration, Experimental, SpireAuthority
from generated.spiffe.workload import workload_pb2
from generated.spire.api.server.localauthority.v1 import localauthority_pb2 as api
from identity import tainting
from identity.spiffeid import TrustDomain
from operations import logs
from operations.errors import PermanentlyUnusable, SpireError, TemporarilyUnavailable
from server.ca import upstream
from tests.simulators.house import House, new_entry, running
from tests.simulators.nested import Nest, nest
from tests.simulators.pki import Authority, csr, ec_key
from transport.status import Code, RpcError

TD = TrustDomain("example.org")
LOCAL = "/spire.api.server.localauthority.v1.LocalAuthority/"


@pytest_asyncio.fixture
async def nested(tmp_path: Path) -> AsyncIterator[Nest]:
    async with nest(tmp_path) as made:
        yield made


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spire, "POLL_INTERVAL", 0.1)
    monkeypatch.setattr(spire, "RETRY", 0.05)
    monkeypatch.setattr(upstream, "SUBSCRIBE_DELAY", 0.05)
    monkeypatch.setattr("server.ca.authorities._TAINT_RETRY", 0.2)


def authority(nested: Nest, trust_domain: TrustDomain = TD, port: int = 0) -> SpireAuthority:
    configuration = Configuration(
        server_address="127.0.0.1",
        server_port=port or nested.root.port,
        workload_api_socket=nested.workload_api.path,
    )
    return SpireAuthority(configuration, trust_domain, logs.get("test"))


async def until(condition: Callable[[], Awaitable[object]]) -> None:
    async with asyncio.timeout(60):
        while not await condition():  # noqa: ASYNC110 - the condition has no event
            await asyncio.sleep(0.05)


async def rotate(root: House) -> tuple[str, str]:
    """Prepare and activate; the ids of the old and the new authority."""
    prepared = await root.local.unary(
        LOCAL + "PrepareX509Authority", api.PrepareX509AuthorityRequest(), api.PrepareX509AuthorityResponse
    )
    request = api.ActivateX509AuthorityRequest(authority_id=prepared.prepared_authority.authority_id)
    await root.local.unary(LOCAL + "ActivateX509Authority", request, api.ActivateX509AuthorityResponse)
    found = await state(root)
    return found.old.authority_id, found.active.authority_id


async def state(house: House) -> api.GetX509AuthorityStateResponse:
    return await house.local.unary(
        LOCAL + "GetX509AuthorityState", api.GetX509AuthorityStateRequest(), api.GetX509AuthorityStateResponse
    )


async def test_a_taint_at_the_root_runs_down_the_tree(nested: Nest, tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    async with running(tmp_path / "below", plugins=nested.plugin) as below:
        root = nested.root
        first = (await state(root)).active.authority_id
        assert (await state(below)).active.upstream_authority_subject_key_id == first
        assert (await below.bundle()).x509_authorities == (await root.bundle()).x509_authorities
        agent = await below.attest()
        assert len(agent.svid.cert_chain) == 2

        old, new = await rotate(root)
        assert old == first

        async def told() -> bool:
            return (await below.bundle()).x509_authorities == (await root.bundle()).x509_authorities

        await until(told)
        await nested.renew()
        assert (await state(below)).active.upstream_authority_subject_key_id == first
        request = api.TaintX509AuthorityRequest(authority_id=old)
        await root.local.unary(LOCAL + "TaintX509Authority", request, api.TaintX509AuthorityResponse)
        await until(told)
        assert [each.tainted for each in (await below.bundle()).x509_authorities] == [True, False]
        assert (await state(below)).active.upstream_authority_subject_key_id == new
        renewed = await (await below.as_agent(agent.svid, agent.key)).renew()
        assert tainting.authority_key_id(renewed.svid.cert_chain[1]) == new

        # Revoked at the root, it is gone below, though this server's own credentials were of it.
        revoke = api.RevokeX509AuthorityRequest(authority_id=old)
        await root.local.unary(LOCAL + "RevokeX509Authority", revoke, api.RevokeX509AuthorityResponse)
        await until(told)
        assert [tainting.subject_key_id(each.asn1) for each in (await below.bundle()).x509_authorities] == [new]


async def test_credentials_that_are_not_current_any_more_are_replaced(nested: Nest) -> None:
    made = authority(nested)
    await made.subscribe_to_local_bundle()
    old, _ = await rotate(nested.root)
    for verb in ("Taint", "Revoke"):
        request = getattr(api, f"{verb}X509AuthorityRequest")(authority_id=old)
        await nested.root.local.unary(LOCAL + f"{verb}X509Authority", request, api.TaintX509AuthorityResponse)
    nested.agent = await nested.root.attest()
    with pytest.raises(SpireError):
        await made.subscribe_to_local_bundle()  # the Workload API still gives the old ones
    nested.entry_id = await downstream(nested)
    await nested.renew()
    asked = len(nested.workload_api.requests)
    await made.subscribe_to_local_bundle()
    await made.subscribe_to_local_bundle()
    assert len(nested.workload_api.requests) == asked + 1


async def downstream(nested: Nest) -> str:
    entry = new_entry("/downstream2", nested.agent.id)
    entry.downstream = True
    [made] = await nested.root.create(entry)
    return made.id


async def test_a_mint_waits_for_its_entry_and_its_server(nested: Nest, caplog: pytest.LogCaptureFixture) -> None:
    nested.workload_api.answers["FetchX509SVID"] = [RpcError(Code.PERMISSION_DENIED, "no identity issued")]
    minting = asyncio.create_task(authority(nested).mint_x509_ca(csr(ec_key(), uris=[TD.id]), 60))
    await until(lambda: logged(caplog, "no identity issued"))
    nested.workload_api.answers["FetchX509SVID"] = [workload_pb2.X509SVIDResponse()]
    await until(lambda: logged(caplog, "has no X509-SVID for this server"))
    assert not minting.done()
    await nested.renew()
    assert len((await minting).chain) == 1


async def test_a_mint_gives_up_with_the_last_reason(nested: Nest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spire, "PATIENCE", 0.2)
    nested.workload_api.answers["FetchX509SVID"] = [RpcError(Code.PERMISSION_DENIED, "no identity issued")]
    with pytest.raises(
        TemporarilyUnavailable, match=r"unable to request a new Downstream X509CA: .*no identity issued"
    ):
        await authority(nested).mint_x509_ca(csr(ec_key(), uris=[TD.id]), 60)


async def logged(caplog: pytest.LogCaptureFixture, text: str) -> bool:
    return any(text in str(record.__dict__) for record in caplog.records)


async def test_a_server_that_is_away_is_temporary(nested: Nest) -> None:
    with pytest.raises(TemporarilyUnavailable, match="failed to fetch bundle from upstream server: rpc error"):
        await authority(nested, port=1).subscribe_to_local_bundle()
    nested.workload_api.answers["FetchX509SVID"] = RpcError(Code.INTERNAL, "broken")
    with pytest.raises(PermanentlyUnusable, match="broken"):
        await authority(nested).subscribe_to_local_bundle()


async def test_other_trust_domains_are_refused(nested: Nest) -> None:
    with pytest.raises(SpireError, match=r"no X\.509 bundle|trust domain|not trusted"):
        await authority(nested, TrustDomain("other.org")).subscribe_to_local_bundle()


async def test_another_server_is_not_believed(nested: Nest) -> None:
    nested.given.svids[0].bundle = Authority.root().der
    with pytest.raises(SpireError, match="could not verify leaf certificate"):
        await authority(nested).subscribe_to_local_bundle()


@pytest.mark.parametrize(
    ("broken", "reason"),
    [(b"garbage", "malformed certificate"), (b"", "without certificates"), (b"\x30\x03abc", "unable to parse")],
)
async def test_broken_answers_of_the_workload_api(nested: Nest, broken: bytes, reason: str) -> None:
    response = workload_pb2.X509SVIDResponse()
    response.svids.add(x509_svid=broken, bundle=b"\x30\x03abc", x509_svid_key=b"key")
    nested.workload_api.answers["FetchX509SVID"] = [response]
    with pytest.raises(SpireError, match=reason):
        await authority(nested).subscribe_to_local_bundle()


async def test_polling_outlives_failures(nested: Nest, caplog: pytest.LogCaptureFixture) -> None:
    made = authority(nested)
    bundle = await made.subscribe_to_local_bundle()
    given = nested.workload_api.answers["FetchX509SVID"]
    nested.workload_api.answers["FetchX509SVID"] = RpcError(Code.UNAVAILABLE, "away")
    await made.close()
    updates = aiter(bundle.updates)
    waiting = asyncio.ensure_future(anext(updates))
    await until(lambda: logged(caplog, "Failed to fetch bundle while polling"))
    nested.workload_api.answers["FetchX509SVID"] = given
    await rotate(nested.root)
    roots, _keys = await waiting
    assert len(roots) == 2
    await bundle.updates.aclose()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"server_address": ""}, "server_address is required"),
        ({"server_port": 0}, "server_port is required"),
        ({"server_port": 70000}, "is no port"),
        ({"workload_api_socket": ""}, "workload_api_socket is required"),
    ],
)
def test_settings_that_are_missing(change: dict[str, object], reason: str) -> None:
    given: dict[str, object] = {"server_address": "a", "server_port": 1, "workload_api_socket": "/s"}
    with pytest.raises(ValueError, match=reason):
        Configuration(**{**given, **change})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="please use workload_api_socket instead"):
        Experimental(workload_api_named_pipe_name="x")
