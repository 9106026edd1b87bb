"""`spire-agent api …` and `healthcheck`: what is asked of the agent, and the whole output."""

from __future__ import annotations

import base64
import json
import re
import stat
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from google.protobuf.message import Message

from agent.cli import client, watch
from generated.grpc.health.v1 import health_pb2
from generated.spiffe.workload import workload_pb2
from identity.bundles import to_pem
from operations.flags import FlagSet
from tests.simulators import pki
from tests.simulators.canned import Canned, Run
from transport.status import Code, RpcError

Status = health_pb2.HealthCheckResponse

NOW = datetime.now(UTC).replace(microsecond=0)
HOUR = timedelta(hours=1)
GOOD = pki.Certificate(not_before=NOW - HOUR, not_after=NOW + HOUR)
AUTHORITY = replace(GOOD, uris=("spiffe://example.org",), ca=True, usage=("key_cert_sign", "crl_sign"), subject="ca")
ROOT = pki.Authority.root()
CA = ROOT.sub(AUTHORITY)
KEY = pki.ec_key()


def workload_svid(name: str, hint: str = "") -> workload_pb2.X509SVID:
    spiffe_id = f"spiffe://example.org/{name}"
    leaf = CA.sign(replace(GOOD, uris=(spiffe_id,)), KEY)
    return workload_pb2.X509SVID(
        spiffe_id=spiffe_id, x509_svid=leaf, x509_svid_key=pki.pkcs8(KEY), bundle=CA.der, hint=hint
    )


RESPONSE = workload_pb2.X509SVIDResponse(
    svids=[workload_svid("one"), workload_svid("two", "internal")],
    federated_bundles={"spiffe://z.test": CA.der, "spiffe://a.test": CA.der + CA.der},
)
FROM, TO = (moment.strftime("%Y-%m-%d %H:%M:%S +0000 UTC") for moment in (NOW - HOUR, NOW + HOUR))


def validity(*labels: str) -> str:
    return "".join(f"{label} Valid After:\t{FROM}\n{label} Valid Until:\t{TO}\n" for label in labels)


FEDERATED = ("[spiffe://a.test] CA #1", "[spiffe://a.test] CA #2", "[spiffe://z.test] CA #1")
TEXT = (
    f"Received 2 svids after TIME\n\nSPIFFE ID:\t\tspiffe://example.org/one\n{validity('SVID', 'CA #1', *FEDERATED)}"
    f"\nSPIFFE ID:\t\tspiffe://example.org/two\nHint:\t\t\tinternal\n{validity('SVID', 'CA #1', *FEDERATED)}\n"
)


def timeless(text: str) -> str:
    return re.sub(r"after [0-9.]+(µs|ms|s)\n", "after TIME\n", text)


@pytest.mark.parametrize("command", ["api fetch", "api fetch x509"])
async def test_fetch_x509(spire_agent: Run, canned: Canned, command: str) -> None:
    canned.answers["FetchX509SVID"] = [RESPONSE]
    result = await spire_agent(command)
    assert (timeless(result.out), result.err, result.status) == (TEXT, "", 0)
    assert canned.requests == [workload_pb2.X509SVIDRequest()]
    assert canned.metadata[0]["workload.spiffe.io"] == "true"


async def test_fetch_x509_shows_intermediates(spire_agent: Run, canned: Canned) -> None:
    middle = CA.sub(replace(AUTHORITY, subject="middle"))
    svid = workload_svid("one")
    svid.x509_svid = middle.sign(replace(GOOD, uris=(svid.spiffe_id,)), KEY) + middle.der
    canned.answers["FetchX509SVID"] = [workload_pb2.X509SVIDResponse(svids=[svid])]
    result = await spire_agent("api fetch")
    assert timeless(result.out) == (
        f"Received 1 svid after TIME\n\nSPIFFE ID:\t\tspiffe://example.org/one\n"
        f"{validity('SVID', 'Intermediate #1', 'CA #1')}\n"
    )


async def test_fetch_x509_as_json(spire_agent: Run, canned: Canned) -> None:
    canned.answers["FetchX509SVID"] = [workload_pb2.X509SVIDResponse(svids=[workload_svid("one")])]
    result = await spire_agent("api fetch x509", "-output", "json")
    (svid,) = json.loads(result.out)["svids"]
    assert result.out == (
        '{"crl":[],"federated_bundles":{},"svids":[{'
        f'"bundle":"{base64.b64encode(CA.der).decode()}","hint":"","spiffe_id":"spiffe://example.org/one",'
        f'"x509_svid":"{svid["x509_svid"]}","x509_svid_key":"{base64.b64encode(pki.pkcs8(KEY)).decode()}"}}]}}\n'
    )


async def test_fetch_x509_to_files(spire_agent: Run, canned: Canned, tmp_path: Path) -> None:
    canned.answers["FetchX509SVID"] = [RESPONSE]
    result = await spire_agent("api fetch", "-write", str(tmp_path), "-silent")
    assert result.out == "".join(
        f"Writing SVID #{number} to file {tmp_path}/svid.{number}.pem.\n"
        f"Writing key #{number} to file {tmp_path}/svid.{number}.key.\n"
        f"Writing bundle #{number} to file {tmp_path}/bundle.{number}.pem.\n"
        f"Writing federated bundle #0 for trust domain spiffe://a.test to file "
        f"{tmp_path}/federated_bundle.{number}.0.pem.\n"
        f"Writing federated bundle #1 for trust domain spiffe://z.test to file "
        f"{tmp_path}/federated_bundle.{number}.1.pem.\n"
        for number in (0, 1)
    )
    assert (result.err, result.status) == ("", 0)
    assert (tmp_path / "svid.1.pem").read_text() == to_pem([RESPONSE.svids[1].x509_svid])
    assert (tmp_path / "svid.1.key").read_text().startswith("-----BEGIN PRIVATE KEY-----\n")
    assert (tmp_path / "federated_bundle.1.0.pem").read_text() == to_pem([CA.der, CA.der])
    modes = {name: stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("svid.0.pem", "svid.0.key")}
    assert modes == {"svid.0.pem": 0o644, "svid.0.key": 0o600}


def broken(**fields: bytes | str) -> workload_pb2.X509SVIDResponse:
    svid = workload_svid("one")
    for name, value in fields.items():
        setattr(svid, name, value)
    return workload_pb2.X509SVIDResponse(svids=[svid])


ENTRY = 'SVID 0, "spiffe://example.org/one", cannot be used: '


@pytest.mark.parametrize(
    ("response", "reason"),
    [
        (workload_pb2.X509SVIDResponse(), "workload response contains no svids"),
        (broken(x509_svid=b""), f"{ENTRY}it has no certificate"),
        (broken(x509_svid=b"\x30"), f"{ENTRY}malformed certificate"),
        (broken(x509_svid=CA.der[:-1]), f"{ENTRY}malformed certificate"),
        (broken(bundle=b""), f"{ENTRY}its bundle is empty"),
        (broken(bundle=b"\x31\x00"), f"{ENTRY}its bundle cannot be read: malformed certificate"),
        (broken(spiffe_id="spiffe://other.org/one"), None),
        (broken(bundle=pki.Authority.root().der), None),
        (
            workload_pb2.X509SVIDResponse(svids=[workload_svid("one")], federated_bundles={"spiffe://a.test": b""}),
            'the bundle of "spiffe://a.test", a federated trust domain, is empty',
        ),
        (
            workload_pb2.X509SVIDResponse(svids=[workload_svid("one")], federated_bundles={"spiffe://a.test": b"00"}),
            'the bundle of "spiffe://a.test", a federated trust domain, cannot be read: malformed certificate',
        ),
    ],
)
async def test_a_response_that_does_not_verify_is_refused(
    spire_agent: Run, canned: Canned, tmp_path: Path, response: workload_pb2.X509SVIDResponse, reason: str | None
) -> None:
    canned.answers["FetchX509SVID"] = [response]
    result = await spire_agent("api fetch", "-write", str(tmp_path))
    assert (result.out, result.status) == ("", 1)
    if reason is None:
        prefix = f'the SVID of "{response.svids[0].spiffe_id}" does not verify against its bundle: '
        assert re.fullmatch(re.escape(prefix) + ".+\n", result.err)
    else:
        assert result.err == f"{reason}\n"
    assert not (tmp_path / "svid.0.pem").exists()


async def test_a_key_that_cannot_be_read_is_refused(spire_agent: Run, canned: Canned) -> None:
    canned.answers["FetchX509SVID"] = [broken(x509_svid_key=b"not a key")]
    result = await spire_agent("api fetch")
    assert result.err.startswith(f"{ENTRY}its private key cannot be read: ")
    assert (result.out, result.status) == ("", 1)


async def test_fetch_x509_fails_in_one_line(spire_agent: Run, canned: Canned, tmp_path: Path) -> None:
    canned.answers["FetchX509SVID"] = RpcError(Code.PERMISSION_DENIED, "no identity issued")
    result = await spire_agent("api fetch")
    assert result.err == "rpc error: code = PermissionDenied desc = no identity issued\n"
    assert (result.out, result.status) == ("", 1)
    canned.answers["FetchX509SVID"] = [RESPONSE]
    result = await spire_agent("api fetch", "-write", str(tmp_path / "gone"), "-silent")
    assert result.err == f"open {tmp_path}/gone/svid.0.pem: no such file or directory\n"
    assert result.status == 1


async def test_an_agent_that_is_silent_is_given_up(spire_agent: Run, canned: Canned) -> None:
    canned.answers["FetchX509SVID"] = []
    result = await spire_agent("api fetch", "-timeout", "100ms")
    assert result.err == "rpc error: code = DeadlineExceeded desc = context deadline exceeded\n"
    assert result.status == 1


JWT_RESPONSE = workload_pb2.JWTSVIDResponse(
    svids=[
        workload_pb2.JWTSVID(spiffe_id="spiffe://example.org/one", svid="t1"),
        workload_pb2.JWTSVID(spiffe_id="spiffe://example.org/two", svid="t2", hint="internal"),
    ]
)
BUNDLES = workload_pb2.JWTBundlesResponse(bundles={"spiffe://z.test": b"{}", "spiffe://a.test": b'{"keys": []}'})


async def test_fetch_jwt(spire_agent: Run, canned: Canned) -> None:
    canned.answers["FetchJWTSVID"] = JWT_RESPONSE
    canned.answers["FetchJWTBundles"] = [BUNDLES]
    result = await spire_agent("api fetch jwt", "-audience", "a,b", "-spiffeID", "spiffe://example.org/one")
    assert result.out == (
        "token(spiffe://example.org/one):\n\tt1\n"
        "token(spiffe://example.org/two):\n\tt2\n"
        "hint(spiffe://example.org/two):\n\tinternal\n"
        'bundle(spiffe://a.test):\n\t{"keys": []}\n'
        "bundle(spiffe://z.test):\n\t{}\n"
    )
    assert (result.err, result.status) == ("", 0)
    assert canned.requests == [
        workload_pb2.JWTBundlesRequest(),
        workload_pb2.JWTSVIDRequest(audience=["a", "b"], spiffe_id="spiffe://example.org/one"),
    ]
    assert [metadata["workload.spiffe.io"] for metadata in canned.metadata] == ["true", "true"]


@pytest.mark.parametrize("flag", ["-output", "-format"])
async def test_fetch_jwt_as_json(spire_agent: Run, canned: Canned, flag: str) -> None:
    canned.answers["FetchJWTSVID"] = JWT_RESPONSE
    canned.answers["FetchJWTBundles"] = [BUNDLES]
    result = await spire_agent("api fetch jwt", "-audience", "a", flag, "json")
    assert result.out == (
        '[{"svids":[{"hint":"","spiffe_id":"spiffe://example.org/one","svid":"t1"},'
        '{"hint":"internal","spiffe_id":"spiffe://example.org/two","svid":"t2"}]},'
        '{"bundles":{"spiffe://a.test":"eyJrZXlzIjogW119","spiffe://z.test":"e30="}}]\n'
    )


async def test_fetch_jwt_needs_an_audience(spire_agent: Run) -> None:
    result = await spire_agent("api fetch jwt")
    assert (result.out, result.err, result.status) == ("", "-audience is required\n", 1)


async def test_validate_jwt(spire_agent: Run, canned: Canned) -> None:
    valid = workload_pb2.ValidateJWTSVIDResponse(spiffe_id="spiffe://example.org/one")
    valid.claims.update({"sub": "spiffe://example.org/one", "aud": ["a"], "exp": 1900000000, "x": 1.5, "é": "<"})
    canned.answers["ValidateJWTSVID"] = valid
    result = await spire_agent("api validate jwt", "-audience", "a", "-svid", "t")
    assert result.out == (
        "SVID is valid.\nSPIFFE ID : spiffe://example.org/one\n"
        'Claims    : {"aud":["a"], "exp":1900000000, "sub":"spiffe://example.org/one", "x":1.5, "é":"<"}\n'
    )
    result = await spire_agent("api validate jwt", "-audience", "a", "-svid", "t", "-output", "json")
    assert result.out == (
        '{"claims":{"aud":["a"],"exp":1900000000,"sub":"spiffe://example.org/one","x":1.5,"é":"\\u003c"},'
        '"spiffe_id":"spiffe://example.org/one"}\n'
    )
    assert canned.requests == [workload_pb2.ValidateJWTSVIDRequest(audience="a", svid="t")] * 2


@pytest.mark.parametrize(
    ("args", "reason"),
    [
        ((), "-audience is required"),
        (("-audience", "a"), "-svid is required"),
        (("-audience", "a", "-svid", "t"), "SVID is not valid: expired"),
    ],
)
async def test_validate_jwt_fails_in_one_line(
    spire_agent: Run, canned: Canned, args: tuple[str, ...], reason: str
) -> None:
    canned.answers["ValidateJWTSVID"] = RpcError(Code.INVALID_ARGUMENT, "expired")
    result = await spire_agent("api validate jwt", *args)
    assert (result.out, result.err, result.status) == ("", f"{reason}\n", 1)


async def test_validate_jwt_without_an_agent(spire_agent: Run, canned: Canned) -> None:
    canned.answers["ValidateJWTSVID"] = RpcError(Code.UNAVAILABLE, "gone")
    result = await spire_agent("api validate jwt", "-audience", "a", "-svid", "t")
    assert result.err == "unable to validate JWT SVID: rpc error: code = Unavailable desc = gone\n"


async def test_watch_prints_every_update(spire_agent: Run, canned: Canned) -> None:
    end = RpcError(Code.INVALID_ARGUMENT, "enough")
    canned.answers["FetchX509SVID"] = [RESPONSE, workload_pb2.X509SVIDResponse(), RESPONSE, end]
    result = await spire_agent("api watch")
    assert timeless(result.out) == TEXT.replace("Hint:\t\t\tinternal\n", "").replace("[spiffe://", "[") * 2
    assert result.err == "workload response contains no svids\nrpc error: code = InvalidArgument desc = enough\n"
    assert result.status == 1


async def test_watch_tries_again(spire_agent: Run, canned: Canned, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "FIRST_PAUSE", 0.01)
    ends = iter(
        [
            RpcError(Code.UNAVAILABLE, "lost"),
            RpcError(Code.PERMISSION_DENIED, "no identity issued"),
            RpcError(Code.INVALID_ARGUMENT, "enough"),
        ]
    )

    def end(_: Message) -> Message:
        raise next(ends)

    canned.answers["FetchX509SVID"] = end
    result = await spire_agent("api watch")
    assert result.err == (
        "rpc error: code = Unavailable desc = lost\n"
        "rpc error: code = PermissionDenied desc = no identity issued\n"
        "rpc error: code = InvalidArgument desc = enough\n"
    )
    assert (result.out, result.status) == ("", 1)


async def test_a_healthy_agent(spire_agent: Run, canned: Canned) -> None:
    canned.answers["Check"] = Status(status=Status.SERVING)
    result = await spire_agent("healthcheck", "-verbose")
    assert (result.out, result.err, result.status) == ("Checking agent health...\nAgent is healthy.\n", "", 0)


async def test_an_agent_that_does_not_serve(spire_agent: Run, canned: Canned) -> None:
    canned.answers["Check"] = Status(status=Status.NOT_SERVING)
    result = await spire_agent("healthcheck")
    assert result.err == 'Agent is unhealthy: agent returned status "NOT_SERVING"\n'
    assert (result.out, result.status) == ("", 1)


async def test_an_agent_that_does_not_answer(spire_agent: Run, tmp_path: Path) -> None:
    gone = str(tmp_path / "gone.sock")
    result = await spire_agent("healthcheck", "-verbose", "-socketPath", gone)
    reason, unhealthy = result.err.splitlines()
    assert reason.startswith("Failed to check health: rpc error: code = Unavailable desc = ")
    assert unhealthy == "Agent is unhealthy: unable to determine health"
    assert (result.out, result.status) == ("Checking agent health...\n", 1)


@pytest.mark.parametrize(
    ("args", "environment", "found"),
    [
        (["-socketPath", "/given", "-instance", "a"], {client.TEMPLATE: "/run/%i/api"}, "/given"),
        (["-instance", "a"], {client.TEMPLATE: "/run/%i/api", client.SOCKET: "/other"}, "/run/a/api"),
        ([], {client.TEMPLATE: "/run/%i/api", client.SOCKET: "/other"}, "/other"),
        ([], {}, client.DEFAULT_SOCKET),
        (["-socketPath", "api.sock"], {}, str(Path.cwd() / "api.sock")),
    ],
)
def test_where_the_agent_is(
    monkeypatch: pytest.MonkeyPatch, args: list[str], environment: dict[str, str], found: str
) -> None:
    for name in (client.SOCKET, client.TEMPLATE):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    flags = FlagSet("")
    socket = client.SocketFlags.declare(flags)
    flags.parse(args)
    assert socket.resolve() == found


async def test_an_instance_needs_a_template(spire_agent: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(client.TEMPLATE, raising=False)
    result = await spire_agent("api fetch", "-instance", "a")
    reason = f"-instance needs {client.TEMPLATE} in the environment: set it to a socket path with %i in it\n"
    assert (result.out, result.err, result.status) == ("", reason, 1)
    monkeypatch.setenv(client.TEMPLATE, "/run/api")
    assert (
        await spire_agent("api watch", "-instance", "a")
    ).err == f"{client.TEMPLATE} has no %i for the name that -instance gives\n"
