"""Logger, Debug and Health through a running server: on its private socket, and nowhere else."""

from __future__ import annotations

import asyncio
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from urllib.error import HTTPError

import pytest

from generated.grpc.health.v1 import health_pb2
from generated.spire.api.server.debug.v1 import debug_pb2
from generated.spire.api.server.logger.v1 import logger_pb2
from generated.spire.api.types import logger_pb2 as types
from operations import logs, metrics
from operations.errors import TemporarilyUnavailable
from server.config import load
from server.health import parts
from server.run import serve
from tests.simulators.house import CONFIG, HEALTH, PATIENCE, House, new_entry, refused, running, spiffe_id
from tests.simulators.spire import free_port
from transport.status import Code

LOGGER = "/spire.api.server.logger.v1.Logger/"
DEBUG = "/spire.api.server.debug.v1.Debug/"


@pytest.fixture
def _usual_log() -> Iterator[None]:
    logs.setup("info", "text")
    yield
    logs.reset_level()


async def level(house: House, name: str = "") -> types.Logger:
    """Ask for the level, or set it first."""
    if name:
        request = logger_pb2.SetLogLevelRequest(new_level=types.LogLevel.Value(name))
        return await house.local.unary(LOGGER + "SetLogLevel", request, types.Logger)
    return await house.local.unary(LOGGER + "GetLogger", logger_pb2.GetLoggerRequest(), types.Logger)


@pytest.mark.usefixtures("_usual_log")
async def test_the_level_changes_while_running(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    async with running(tmp_path, "audit_log_enabled = true") as house:
        assert await level(house) == types.Logger(current_level=types.INFO, launch_level=types.INFO)
        for name in ("PANIC", "FATAL", "ERROR", "WARN", "INFO", "DEBUG", "TRACE"):
            changed = await level(house, name)
            assert (changed.current_level, changed.launch_level) == (types.LogLevel.Value(name), types.INFO)
        assert logs.level() == "trace"
        reset = await house.local.unary(LOGGER + "ResetLogLevel", logger_pb2.ResetLogLevelRequest(), types.Logger)
        assert reset == types.Logger(current_level=types.INFO, launch_level=types.INFO)
    lines = capfd.readouterr().out.splitlines()
    audited = [line for line in lines if 'msg="API accessed"' in line and "method=SetLogLevel" in line]
    assert "new_log_level=TRACE" in audited[-1]
    assert any('msg="SetLogLevel Called"' in line and "new_log_level=debug" in line for line in lines)
    assert any('msg="ResetLogLevel Called"' in line and "launch_log_level=info" in line for line in lines)


@pytest.mark.parametrize(
    ("number", "message"),
    [(0, "newLevel value cannot be LogLevel_UNSPECIFIED"), (99, "unsupported log level")],
)
async def test_levels_that_do_not_exist(house: House, number: int, message: str) -> None:
    request = logger_pb2.SetLogLevelRequest.FromString(b"\x08" + bytes((number,)))
    error = await refused(house.local, LOGGER + "SetLogLevel", request)
    assert (error.code, error.message) == (Code.INVALID_ARGUMENT, message)


async def info(house: House) -> debug_pb2.GetInfoResponse:
    return await house.local.unary(DEBUG + "GetInfo", debug_pb2.GetInfoRequest(), debug_pb2.GetInfoResponse)


async def test_what_the_server_is(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    agent = await house.attest()
    await house.create(new_entry("/a", agent.id), new_entry("/b", agent.id))
    first = await info(house)
    assert (first.agents_count, first.entries_count, first.federated_bundles_count) == (1, 2, 1)
    assert 0 <= first.uptime < 3600
    leaf, root = first.svid_chain
    assert (leaf.id, leaf.subject) == (spiffe_id("/spire/server"), "O=SPIRE,C=US")
    assert root.id == spiffe_id("")
    assert root.subject.startswith("SERIALNUMBER=")
    assert root.subject.endswith(",O=SPIFFE,C=US")
    assert leaf.expires_at < root.expires_at

    await house.create(new_entry("/c", agent.id))
    assert (await info(house)).entries_count == 2, "an answer is good for some seconds"
    monkeypatch.setattr("server.rpc.debug.MAX_AGE", 0.0)
    assert (await info(house)).entries_count == 3


async def test_over_tcp_there_are_none(house: House) -> None:
    agent = await house.attest()
    for channel in (await house.remote(), agent.channel):
        for path, request in (
            (DEBUG + "GetInfo", debug_pb2.GetInfoRequest()),
            (LOGGER + "GetLogger", logger_pb2.GetLoggerRequest()),
            (HEALTH + "Check", health_pb2.HealthCheckRequest()),
        ):
            error = await refused(channel, path, request)
            assert error.code is Code.UNIMPLEMENTED


async def test_health_by_grpc(house: House) -> None:
    listed = await house.local.unary(HEALTH + "List", health_pb2.HealthListRequest(), health_pb2.HealthListResponse)
    assert {name: each.status for name, each in listed.statuses.items()} == {"": health_pb2.HealthCheckResponse.SERVING}
    error = await refused(house.local, HEALTH + "Check", health_pb2.HealthCheckRequest(service="x"))
    assert (error.code, error.message) == (Code.INVALID_ARGUMENT, "per-service health is not supported")
    async with asyncio.timeout(PATIENCE):
        async for state in house.local.server_stream(
            HEALTH + "Watch", health_pb2.HealthCheckRequest(), health_pb2.HealthCheckResponse
        ):
            assert state.status == health_pb2.HealthCheckResponse.SERVING
            break


def fetch(url: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(url, timeout=30) as response:  # noqa: S310 - of our own making
            return response.status, response.read().decode()
    except HTTPError as error:
        with error:
            return error.code, error.read().decode()


async def test_health_and_metrics_over_http(tmp_path: Path) -> None:
    port, health, scraped = free_port(), free_port(), free_port()
    path = tmp_path / "server.conf"
    path.write_text(
        CONFIG.format(port=port, folder=tmp_path, settings="", ratelimit="", plugins="")
        + f'health_checks {{ listener_enabled = true bind_address = "127.0.0.1" bind_port = "{health}" }}\n'
        + f'telemetry {{ Prometheus {{ host = "127.0.0.1" port = {scraped} }} EnableHostnameLabel = false }}\n'
    )
    ready = asyncio.Event()
    serving = asyncio.create_task(serve(load(str(path)), ready.set))
    try:
        await asyncio.wait_for(ready.wait(), PATIENCE)
        async with asyncio.timeout(PATIENCE):
            while (await asyncio.to_thread(fetch, f"http://127.0.0.1:{health}/ready"))[0] != 200:  # noqa: ASYNC110
                await asyncio.sleep(0.1)
        for name in ("live", "ready"):
            status, body = await asyncio.to_thread(fetch, f"http://127.0.0.1:{health}/{name}")
            assert status == 200
            assert body == '{"catalog.datastore":{},"server":{},"server.ca":{},"server.ca.rotator":{}}\n'
        status, text = await asyncio.to_thread(fetch, f"http://127.0.0.1:{scraped}/metrics")
        assert status == 200
        lines = text.splitlines()
        assert 'spire_server_started{trust_domain_id="example_org",version="0_1_0"} 1' in lines
        assert 'spire_server_ca_manager_x509_ca_prepare{status="OK"} 1' in lines
        assert 'spire_server_server_key_manager_generate_key{status="OK"} 2' in lines
        assert 'spire_server_rpc_bundle_v1_bundle_get_bundle{status="OK"} 1' in lines, "asked by the health check"
        assert "spire_server_ca_manager_x509_ca_activate 1" in lines
        assert any(line.startswith("process_resident_memory_bytes ") for line in lines)
    finally:
        serving.cancel()
        await asyncio.wait([serving])
    assert not metrics.on(), "what ends leaves nothing behind"


async def test_parts_that_fail(tmp_path: Path) -> None:
    """Each part says by its own name what is wrong with it."""

    class Broken:
        failed_rotations = 11
        overdue = True

        async def list_bundles(self, *, page_size: int) -> None:
            raise TemporarilyUnavailable(f"locked {page_size}")

        async def probe(self) -> None:
            raise TemporarilyUnavailable("the token is away")

    checks = parts(Broken(), Broken(), str(tmp_path / "gone.sock"))  # type: ignore[arg-type]
    states = {name: await check() for name, check in checks.items()}
    assert not any(state.live or state.ready for state in states.values())
    details = {name: dict(state.ready_details or {}) for name, state in states.items()}
    assert details["catalog.datastore"] == {"list_bundle_err": "locked 1"}
    assert details["server.ca"] == {"sign_x509_svid_err": "the token is away"}
    assert details["server.ca.rotator"] == {"rotation_err": "rotations exceed the threshold number of failures"}
    assert details["server"]["get_bundle_err"].startswith("unable to fetch bundle: rpc error: code = Unavailable")
