"""`spire-server healthcheck`, `token generate`, `bundle show`, and how a server is found."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest

from generated.grpc.health.v1 import health_pb2
from generated.spire.api.server.agent.v1 import agent_pb2
from generated.spire.api.types import bundle_pb2, jointoken_pb2, spiffeid_pb2
from server.cli import client
from tests.simulators import pki
from tests.simulators.canned import Canned, Run
from transport.status import Code, RpcError

TOKEN = jointoken_pb2.JoinToken(value="secret-1", expires_at=1900000000)
Status = health_pb2.HealthCheckResponse


async def test_a_healthy_server(spire_server: Run, canned: Canned) -> None:
    canned.answers["Check"] = Status(status=Status.SERVING)
    result = await spire_server("healthcheck")
    assert (result.out, result.err, result.status) == ("Server is healthy.\n", "", 0)
    result = await spire_server("healthcheck", "-verbose", "-shallow")
    assert result.out == "Checking server health...\nServer is healthy.\n"


async def test_a_server_that_does_not_serve(spire_server: Run, canned: Canned) -> None:
    canned.answers["Check"] = Status(status=Status.NOT_SERVING)
    result = await spire_server("healthcheck")
    assert result.err == 'Error: server is unhealthy: server returned status "NOT_SERVING"\n'
    assert (result.out, result.status) == ("", 1)


async def test_a_server_that_does_not_answer(spire_server: Run, canned: Canned, tmp_path: Path) -> None:
    gone = str(tmp_path / "gone.sock")
    result = await spire_server("healthcheck", "-verbose", "-socketPath", gone)
    assert result.out == "Checking server health...\n"
    reason, unhealthy = result.err.splitlines()
    assert reason.startswith("Failed to check health: rpc error: code = Unavailable desc = ")
    assert gone in reason
    assert unhealthy == "Error: server is unhealthy: unable to determine health"
    assert result.status == 1
    assert not canned.requests


async def test_generate(spire_server: Run, canned: Canned) -> None:
    canned.answers["CreateJoinToken"] = TOKEN
    result = await spire_server("token generate", "-spiffeID", "spiffe://example.org/node", "-ttl", "60")
    assert (result.out, result.err, result.status) == ("Token: secret-1\n", "", 0)
    agent_id = spiffeid_pb2.SPIFFEID(trust_domain="example.org", path="/node")
    assert canned.requests == [agent_pb2.CreateJoinTokenRequest(ttl=60, agent_id=agent_id)]


async def test_generate_without_an_id(spire_server: Run, canned: Canned) -> None:
    canned.answers["CreateJoinToken"] = TOKEN
    assert (await spire_server("token generate")).out == "Token: secret-1\nWarning: Missing SPIFFE ID.\n"
    result = await spire_server("token generate", "-output", "json")
    assert result.out == '{"expires_at":"1900000000","value":"secret-1"}\n'
    assert canned.requests == [agent_pb2.CreateJoinTokenRequest(ttl=600)] * 2


@pytest.mark.parametrize(
    ("args", "reason"),
    [
        (("-spiffeID", "x"), "scheme is missing or invalid"),
        (("-ttl", "99999999999"), "invalid value for TTL: 99999999999 is out of range, use at most 2147483647"),
        ((), "rpc error: code = InvalidArgument desc = ttl is required, you must provide one"),
    ],
)
async def test_generate_fails_in_one_line(
    spire_server: Run, canned: Canned, args: tuple[str, ...], reason: str
) -> None:
    canned.answers["CreateJoinToken"] = RpcError(Code.INVALID_ARGUMENT, "ttl is required, you must provide one")
    result = await spire_server("token generate", *args)
    assert (result.out, result.err, result.status) == ("", f"Error: {reason}\n", 1)


@pytest.fixture
def bundle(canned: Canned) -> bundle_pb2.Bundle:
    bundle = bundle_pb2.Bundle(trust_domain="example.org", sequence_number=7, refresh_hint=60)
    bundle.x509_authorities.add(asn1=pki.Authority.root().der)
    bundle.jwt_authorities.add(public_key=pki.spki(pki.ec_key()), key_id="key-1", expires_at=1900000000)
    canned.answers["GetBundle"] = bundle
    return bundle


async def test_show_as_pem(spire_server: Run, bundle: bundle_pb2.Bundle) -> None:
    result = await spire_server("bundle show")
    lines = result.out.splitlines()
    assert lines[0] == "-----BEGIN CERTIFICATE-----"
    assert lines[-1] == "-----END CERTIFICATE-----"
    assert {len(line) for line in lines[1:-2]} == {64}
    assert base64.b64decode("".join(lines[1:-1])) == bundle.x509_authorities[0].asn1
    assert (result.err, result.status) == ("", 0)


async def test_show_as_spiffe_document(spire_server: Run, bundle: bundle_pb2.Bundle) -> None:
    result = await spire_server("bundle show", "-format", "SPIFFE")
    document = json.loads(result.out)
    assert result.out == json.dumps(document, indent=4) + "\n"
    assert [(key["use"], key["kty"], key.get("kid")) for key in document["keys"]] == [
        ("x509-svid", "EC", None),
        ("jwt-svid", "EC", "key-1"),
    ]
    assert document["keys"][0]["x5c"] == [base64.b64encode(bundle.x509_authorities[0].asn1).decode()]
    assert (document["spiffe_sequence"], document["spiffe_refresh_hint"]) == (7, 60)


async def test_show_as_json(spire_server: Run, bundle: bundle_pb2.Bundle) -> None:
    result = await spire_server("bundle show", "-output", "json", "-format", "unused")
    key = base64.b64encode(bundle.jwt_authorities[0].public_key).decode()
    certificate = base64.b64encode(bundle.x509_authorities[0].asn1).decode()
    assert result.out == (
        f'{{"jwt_authorities":[{{"expires_at":"1900000000","key_id":"key-1","public_key":"{key}","tainted":false}}],'
        '"refresh_hint":"60","sequence_number":"7","trust_domain":"example.org","wit_authorities":[],'
        f'"x509_authorities":[{{"asn1":"{certificate}","tainted":false}}]}}\n'
    )


@pytest.mark.usefixtures("bundle")
async def test_show_in_an_unknown_format(spire_server: Run) -> None:
    result = await spire_server("bundle show", "-format", "der")
    assert (result.out, result.err, result.status) == ("", 'Error: invalid format: "der"\n', 1)


@pytest.mark.parametrize(
    ("path", "instance", "environment", "found"),
    [
        ("/given", "a", {client.TEMPLATE: "/run/%i/api"}, "/given"),
        (client.DEFAULT_SOCKET, "a", {client.TEMPLATE: "/run/%i/api", client.SOCKET: "/other"}, "/run/a/api"),
        (client.DEFAULT_SOCKET, "", {client.TEMPLATE: "/run/%i/api", client.SOCKET: "/other"}, "/other"),
        (client.DEFAULT_SOCKET, "", {}, client.DEFAULT_SOCKET),
    ],
)
def test_where_the_server_is(
    monkeypatch: pytest.MonkeyPatch, path: str, instance: str, environment: dict[str, str], found: str
) -> None:
    for name in (client.SOCKET, client.TEMPLATE):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert client.socket_path(path, instance) == found


async def test_an_instance_needs_a_template(spire_server: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(client.TEMPLATE, raising=False)
    result = await spire_server("healthcheck", "-instance", "a")
    assert result.err == f"Error: you must define {client.TEMPLATE} to use the instance flag\n"
    monkeypatch.setenv(client.TEMPLATE, "/run/api")
    result = await spire_server("healthcheck", "-instance", "a")
    assert result.err == f"Error: failed to find %i in {client.TEMPLATE}\n"
