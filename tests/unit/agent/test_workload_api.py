from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import AsyncIterator
from types import SimpleNamespace

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from google.protobuf.message import Message

from agent import manager
from generated.grpc.health.v1 import health_pb2
from generated.spiffe.workload import workload_pb2
from generated.spire.api.types import bundle_pb2
from tests.simulators import pki, spire
from tests.simulators.in_process_agent import PATIENCE, Home, RunningAgent, until
from transport.status import Code, RpcError

X509 = ("FetchX509SVID", workload_pb2.X509SVIDRequest(), workload_pb2.X509SVIDResponse)
X509_BUNDLES = ("FetchX509Bundles", workload_pb2.X509BundlesRequest(), workload_pb2.X509BundlesResponse)
JWT_BUNDLES = ("FetchJWTBundles", workload_pb2.JWTBundlesRequest(), workload_pb2.JWTBundlesResponse)


def jwt(key: ec.EllipticCurvePrivateKey, kid: str, claims: dict[str, object]) -> str:
    def encode(value: bytes) -> str:
        return base64.urlsafe_b64encode(value).rstrip(b"=").decode()

    head = encode(json.dumps({"alg": "ES256", "kid": kid, "typ": "JWT"}).encode())
    signed = f"{head}.{encode(json.dumps(claims).encode())}"
    r, s = decode_dss_signature(key.sign(signed.encode(), ec.ECDSA(hashes.SHA256())))
    return f"{signed}.{encode(r.to_bytes(32, 'big') + s.to_bytes(32, 'big'))}"


async def refusal(agent: RunningAgent, call: tuple[str, Message, type[Message]], *, header: bool = True) -> RpcError:
    with pytest.raises(RpcError) as caught:
        await agent.first(*call, header=header)
    return caught.value


@pytest.mark.parametrize("call", [X509, X509_BUNDLES, JWT_BUNDLES])
async def test_a_call_without_the_security_header_is_refused(
    agent: RunningAgent, call: tuple[str, Message, type[Message]]
) -> None:
    error = await refusal(agent, call, header=False)
    assert (error.code, error.message) == (Code.INVALID_ARGUMENT, "security header missing from request")


@pytest.mark.parametrize("call", [X509, X509_BUNDLES, JWT_BUNDLES])
async def test_a_workload_without_an_entry_is_refused(
    agent: RunningAgent, call: tuple[str, Message, type[Message]]
) -> None:
    agent.attestor.selectors = ("unix:uid:2",)
    error = await refusal(agent, call)
    assert (error.code, error.message) == (Code.PERMISSION_DENIED, "no identity issued")


async def test_what_turned_away_workloads_are_is_logged_as_far_as_wanted(
    home: Home, caplog: pytest.LogCaptureFixture
) -> None:
    home.log_selectors = ("unix:uid",)
    async with home.running() as agent:
        agent.attestor.selectors = ("unix:uid:2", "unix:user:me")
        # The agent's own calls, which these are, are not logged: another process has to ask.
        await asyncio.to_thread(
            spire.command, spire.AGENT, "api", "fetch", "x509", "-socketPath", f"{home.folder}/api.sock"
        )
    (line,) = [each for each in caplog.records if each.message == "No identity issued"]
    assert vars(line)["fields"]["selectors"] == "unix:uid:2"


async def test_x509_svid(agent: RunningAgent) -> None:
    response = await agent.first(*X509)
    (svid,) = response.svids
    assert svid.spiffe_id == "spiffe://example.org/workload"
    key = serialization.load_der_private_key(svid.x509_svid_key, None)
    certificate = x509.load_der_x509_certificate(svid.x509_svid)
    assert key.public_key() == certificate.public_key()
    certificate.verify_directly_issued_by(x509.load_der_x509_certificate(svid.bundle))


async def test_identities_come_by_entry_id_and_of_equal_hints_the_oldest(home: Home) -> None:
    home.server.add_entry("c", "/third", hint="x", created_at=1)
    home.server.add_entry("a", "/first", hint="x", created_at=2)
    home.server.add_entry("b", "/second")
    async with home.running() as agent:
        response = await agent.first(*X509)
        assert [each.spiffe_id for each in response.svids] == [
            "spiffe://example.org/second",
            "spiffe://example.org/third",
        ]


async def test_a_stream_hears_of_new_entries_and_ends_with_the_last_one(agent: RunningAgent, home: Home) -> None:
    async with asyncio.timeout(PATIENCE):
        stream = aiter(agent.stream(*X509))
        assert len((await anext(stream)).svids) == 1
        home.server.add_entry("b", "/second")
        while len((await anext(stream)).svids) != 2:
            pass
        home.server.entries.clear()
        with pytest.raises(RpcError, match="no identity issued"):
            await _exhaust(stream)


async def test_a_thousand_streams_on_one_connection_hear_of_a_new_entry(agent: RunningAgent, home: Home) -> None:
    streams = [aiter(agent.stream(*X509)) for _ in range(1000)]

    async def until_it_has(stream: AsyncIterator[workload_pb2.X509SVIDResponse], count: int) -> None:
        while len((await anext(stream)).svids) != count:
            pass

    async with asyncio.timeout(PATIENCE):
        await asyncio.gather(*(until_it_has(stream, 1) for stream in streams))
        home.server.add_entry("b", "/second")
        await asyncio.gather(*(until_it_has(stream, 2) for stream in streams))


async def _exhaust(stream: AsyncIterator[object]) -> None:
    async for _ in stream:
        pass


async def test_bundles(home: Home) -> None:
    home.server.add_entry("a", federates_with=["other.org", "unknown.org"])
    home.server.federated["other.org"] = bundle_pb2.Bundle(
        trust_domain="other.org", x509_authorities=[bundle_pb2.X509Certificate(asn1=home.server.authority.der)]
    )
    async with home.running() as agent:
        root = home.server.authority.der
        assert (await agent.first(*X509)).federated_bundles == {"spiffe://other.org": root}
        bundles = (await agent.first(*X509_BUNDLES)).bundles
        assert bundles == {"spiffe://example.org": root, "spiffe://other.org": root}
        jwks = (await agent.first(*JWT_BUNDLES)).bundles
        assert json.loads(jwks["spiffe://example.org"]) == {"keys": []}


async def test_verifiers_without_identity_may_be_allowed_the_bundles(home: Home) -> None:
    home.allow_unauthenticated_verifiers = True
    async with home.running() as agent:
        bundles = (await agent.first(*X509_BUNDLES)).bundles
        assert list(bundles) == ["spiffe://example.org"]
        assert (await refusal(agent, X509)).code is Code.PERMISSION_DENIED


async def test_jwt_svids_are_cached_by_audience(agent: RunningAgent) -> None:
    async def fetch(*audience: str) -> str:
        request = workload_pb2.JWTSVIDRequest(audience=audience)
        response = await agent.ask("FetchJWTSVID", request, workload_pb2.JWTSVIDResponse)
        assert response.svids[0].spiffe_id == "spiffe://example.org/workload"
        return response.svids[0].svid

    first = await fetch("x", "y")
    assert await fetch("y", "x") == first
    assert await fetch("x") != first


async def test_a_jwt_svid_with_an_id_of_its_own_is_always_fresh(home: Home) -> None:
    home.server.add_entry("a").additional_attributes.jwt_svid_include_jti = True
    async with home.running() as agent:
        request = workload_pb2.JWTSVIDRequest(audience=["x"])
        first = await agent.ask("FetchJWTSVID", request, workload_pb2.JWTSVIDResponse)
        second = await agent.ask("FetchJWTSVID", request, workload_pb2.JWTSVIDResponse)
        assert first.svids[0].svid != second.svids[0].svid


async def test_a_cached_jwt_svid_serves_while_the_server_is_away(agent: RunningAgent, home: Home) -> None:
    request = workload_pb2.JWTSVIDRequest(audience=["x"])
    first = await agent.ask("FetchJWTSVID", request, workload_pb2.JWTSVIDResponse)
    home.server.failing = RpcError(Code.UNKNOWN, "away")
    assert await agent.ask("FetchJWTSVID", request, workload_pb2.JWTSVIDResponse) == first
    request = workload_pb2.JWTSVIDRequest(audience=["y"])
    with pytest.raises(RpcError, match="could not fetch JWT-SVID") as caught:
        await agent.ask("FetchJWTSVID", request, workload_pb2.JWTSVIDResponse)
    assert caught.value.code is Code.UNAVAILABLE


async def test_a_jwt_svid_is_asked_for_again_while_the_server_is_away(agent: RunningAgent, home: Home) -> None:
    home.server.failing = RpcError(Code.UNAVAILABLE, "away")
    request = workload_pb2.JWTSVIDRequest(audience=["x"])
    asked = asyncio.ensure_future(agent.ask("FetchJWTSVID", request, workload_pb2.JWTSVIDResponse))
    await until(lambda: home.server.calls["NewJWTSVID"])
    home.server.failing = None
    assert (await asked).svids
    assert home.server.calls["NewJWTSVID"] == 2


async def test_with_a_token_in_hand_the_server_is_waited_for_less_long(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    home.settings = manager.Settings(jwt_hit_timeout=0.5)
    home.server.svid_ttl = 60
    home.server.add_entry("a")
    async with home.running() as agent:
        request = workload_pb2.JWTSVIDRequest(audience=["x"])
        first = await agent.ask("FetchJWTSVID", request, workload_pb2.JWTSVIDResponse)
        # It has 20 s left, and the server would be asked again and again for 30.
        later = SimpleNamespace(time=lambda: time.time() + 40, monotonic=time.monotonic)
        monkeypatch.setattr("agent.jwt_svids.time", later)
        home.server.failing = RpcError(Code.UNAVAILABLE, "away")
        assert await agent.ask("FetchJWTSVID", request, workload_pb2.JWTSVIDResponse) == first
        assert home.server.calls["NewJWTSVID"] == 2


@pytest.mark.parametrize(
    ("request_", "code", "text"),
    [
        (workload_pb2.JWTSVIDRequest(), Code.INVALID_ARGUMENT, "audience must be specified"),
        (
            workload_pb2.JWTSVIDRequest(audience=["x"], spiffe_id="nonsense"),
            Code.INVALID_ARGUMENT,
            "invalid requested SPIFFE ID: scheme is missing or invalid",
        ),
        (
            workload_pb2.JWTSVIDRequest(audience=["x"], spiffe_id="spiffe://example.org/other"),
            Code.PERMISSION_DENIED,
            "no identity issued",
        ),
    ],
)
async def test_refused_jwt_requests(
    agent: RunningAgent, request_: workload_pb2.JWTSVIDRequest, code: Code, text: str
) -> None:
    with pytest.raises(RpcError) as caught:
        await agent.ask("FetchJWTSVID", request_, workload_pb2.JWTSVIDResponse)
    assert (caught.value.code, caught.value.message) == (code, text)


async def validate(agent: RunningAgent, token: str, audience: str = "x") -> workload_pb2.ValidateJWTSVIDResponse:
    request = workload_pb2.ValidateJWTSVIDRequest(audience=audience, svid=token)
    return await agent.ask("ValidateJWTSVID", request, workload_pb2.ValidateJWTSVIDResponse)


async def test_what_a_workload_sends_does_not_fill_the_log(
    agent: RunningAgent, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(RpcError):
        await validate(agent, "nonsense", "a" * 1_000_000)
    (line,) = [each for each in caplog.records if each.message == "Failed to validate JWT"]
    assert len(str(vars(line)["fields"])) < 1000


async def test_validation(home: Home) -> None:
    own, foreign = pki.ec_key(), pki.ec_key()
    home.server.jwt_authorities.append(bundle_pb2.JWTKey(public_key=pki.spki(own), key_id="own"))
    home.server.federated["other.org"] = bundle_pb2.Bundle(
        trust_domain="other.org", jwt_authorities=[bundle_pb2.JWTKey(public_key=pki.spki(foreign), key_id="foreign")]
    )
    home.server.add_entry("a", federates_with=["other.org"])
    expires = int(time.time()) + 300
    claims: dict[str, object] = {"sub": "spiffe://example.org/w", "aud": "x", "exp": expires, "more": [1], "extra": 2}
    strange = {**claims, "sub": "spiffe://other.org/w"}
    async with home.running() as agent:
        await agent.first(*X509)
        valid = await validate(agent, jwt(own, "own", claims))
        assert valid.spiffe_id == "spiffe://example.org/w"
        assert dict(valid.claims) == {**claims, "aud": ["x"], "more": [1]}
        # Of a foreign token only the allowed claims are shown.
        assert sorted((await validate(agent, jwt(foreign, "foreign", strange))).claims) == [
            "aud",
            "exp",
            "extra",
            "sub",
        ]
        for token, audience in ((jwt(own, "own", claims), "y"), (jwt(foreign, "own", claims), "x"), ("nonsense", "x")):
            with pytest.raises(RpcError) as caught:
                await validate(agent, token, audience)
            assert caught.value.code is Code.INVALID_ARGUMENT
        # A caller without identity validates by the own bundle only.
        agent.attestor.selectors = ("unix:uid:2",)
        assert (await validate(agent, jwt(own, "own", claims))).spiffe_id == "spiffe://example.org/w"
        with pytest.raises(RpcError, match="no keys found"):
            await validate(agent, jwt(foreign, "foreign", strange))


@pytest.mark.parametrize(("audience", "svid", "text"), [("", "t", "audience"), ("x", "", "svid")])
async def test_validation_needs_both(agent: RunningAgent, audience: str, svid: str, text: str) -> None:
    with pytest.raises(RpcError, match=f"{text} must be specified"):
        await validate(agent, svid, audience)


async def test_health(agent: RunningAgent) -> None:
    async def check(service: str = "") -> int:
        request = health_pb2.HealthCheckRequest(service=service)
        path = "/grpc.health.v1.Health/Check"
        return (await agent.channel.unary(path, request, health_pb2.HealthCheckResponse, timeout=PATIENCE)).status

    assert await check() == health_pb2.HealthCheckResponse.SERVING
    agent.attestor.selectors = ("unix:uid:2",)
    assert await check() == health_pb2.HealthCheckResponse.SERVING
    with pytest.raises(RpcError, match="per-service health is not supported"):
        await check("x")


async def test_wit_svids_are_not_implemented(agent: RunningAgent) -> None:
    with pytest.raises(RpcError) as caught:
        await agent.ask("FetchWITSVID", workload_pb2.X509SVIDRequest(), workload_pb2.X509SVIDResponse)
    assert caught.value.code is Code.UNIMPLEMENTED
