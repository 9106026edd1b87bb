"""`logger get|set|reset` and `debug getinfo` of both programs: what they ask, and what they print."""

from __future__ import annotations

import pytest

from generated.spire.api.agent.debug.v1 import debug_pb2 as agent_debug
from generated.spire.api.agent.logger.v1 import logger_pb2 as agent_logger
from generated.spire.api.server.debug.v1 import debug_pb2 as server_debug
from generated.spire.api.server.logger.v1 import logger_pb2 as server_logger
from generated.spire.api.types import logger_pb2 as types
from generated.spire.api.types import spiffeid_pb2
from tests.simulators.canned import Canned, Run
from transport.status import Code, RpcError

ID = spiffeid_pb2.SPIFFEID(trust_domain="example.org", path="/spire/server")


@pytest.fixture(params=["server", "agent"])
def program(request: pytest.FixtureRequest, spire_server: Run, spire_agent: Run) -> Run:
    return spire_server if request.param == "server" else spire_agent


@pytest.mark.parametrize(
    ("current", "launch", "pretty", "json"),
    [
        (types.INFO, types.INFO, ("info", "info"), '{"current_level":"INFO","launch_level":"INFO"}\n'),
        (types.WARN, types.DEBUG, ("warning", "debug"), '{"current_level":"WARN","launch_level":"DEBUG"}\n'),
        (types.FATAL, types.PANIC, ("fatal", "panic"), '{"current_level":"FATAL","launch_level":"PANIC"}\n'),
        (types.TRACE, types.ERROR, ("trace", "error"), '{"current_level":"TRACE","launch_level":"ERROR"}\n'),
    ],
)
async def test_levels(
    program: Run,
    canned: Canned,
    current: types.LogLevel.ValueType,
    launch: types.LogLevel.ValueType,
    pretty: tuple[str, str],
    json: str,
) -> None:
    logger = types.Logger(current_level=current, launch_level=launch)
    canned.answers.update(GetLogger=logger, SetLogLevel=logger, ResetLogLevel=logger)
    for command in (("logger get",), ("logger set", "-level", "debug"), ("logger reset",)):
        result = await program(*command)
        assert result.out == f"Logger Level : {pretty[0]}\nLaunch Level : {pretty[1]}\n\n"
        assert (await program(*command, "-output", "json")).out == json


async def test_what_is_asked(spire_server: Run, spire_agent: Run, canned: Canned) -> None:
    canned.answers["SetLogLevel"] = types.Logger(current_level=types.WARN, launch_level=types.WARN)
    for level in ("warn", "WARNING"):
        assert (await spire_server("logger set", "-level", level)).status == 0
        assert (await spire_agent("logger set", "-level", level)).status == 0
    assert (
        canned.requests
        == [
            server_logger.SetLogLevelRequest(new_level=types.WARN),
            agent_logger.SetLogLevelRequest(new_level=types.WARN),
        ]
        * 2
    )


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        (("logger set",), "a value (-level) must be set"),
        (("logger set", "-level", "loud"), 'the value "loud" is not a valid setting'),
        (("logger set", "-level", "info"), "failed to set log level: rpc error: code = Unknown desc = no"),
        (("logger get",), "error fetching logger: rpc error: code = Unknown desc = no"),
        (("logger reset",), "failed to reset logger: rpc error: code = Unknown desc = no"),
        (("debug getinfo",), "rpc error: code = Unknown desc = no"),
    ],
)
async def test_failures(program: Run, canned: Canned, command: tuple[str, ...], reason: str) -> None:
    for method in ("GetLogger", "SetLogLevel", "ResetLogLevel", "GetInfo"):
        canned.answers[method] = RpcError(Code.UNKNOWN, "no")
    result = await program(*command)
    assert (result.out, result.err, result.status) == ("", f"Error: {reason}\n", 1)


async def test_a_level_that_nobody_knows(program: Run, canned: Canned) -> None:
    canned.answers["GetLogger"] = types.Logger()
    reason = "internal error: returned current log level is undefined; please report this as a bug"
    assert (await program("logger get")).err == f"Error: {reason}\n"


async def test_the_server_in_words(spire_server: Run, canned: Canned) -> None:
    chain = [
        server_debug.GetInfoResponse.Cert(id=ID, expires_at=1795713929, subject="O=SPIRE,C=US"),
        server_debug.GetInfoResponse.Cert(expires_at=1795796729, subject="O=SPIFFE,C=US"),
    ]
    canned.answers["GetInfo"] = server_debug.GetInfoResponse(
        uptime=3725, agents_count=10, entries_count=50, federated_bundles_count=2, svid_chain=chain
    )
    assert (await spire_server("debug getinfo")).out == (
        "Server Debug Info:\n"
        "  Uptime:                  1h2m5s\n"
        "  Registered Agents:       10\n"
        "  Registration Entries:    50\n"
        "  Federated Bundles:       2\n"
        "  SVID Chain:\n"
        "    [0] SPIFFE ID:  spiffe://example.org/spire/server\n"
        "        Subject:    O=SPIRE,C=US\n"
        "        Expires At: 2026-11-26T17:25:29Z\n"
        "    [1] SPIFFE ID:  (none)\n"
        "        Subject:    O=SPIFFE,C=US\n"
        "        Expires At: 2026-11-27T16:25:29Z\n"
    )
    assert (await spire_server("debug getinfo", "-output", "json")).out == (
        '{"agents_count":10,"entries_count":50,"federated_bundles_count":2,"svid_chain":['
        '{"expires_at":"1795713929","id":{"path":"/spire/server","trust_domain":"example.org"},'
        '"subject":"O=SPIRE,C=US"},{"expires_at":"1795796729","subject":"O=SPIFFE,C=US"}],"uptime":3725}\n'
    )


async def test_the_agent_in_words(spire_agent: Run, canned: Canned) -> None:
    info = agent_debug.GetInfoResponse(
        uptime=42, last_sync_success=1795710335, cached_x509_svids_count=2, cached_jwt_svids_count=1
    )
    canned.answers["GetInfo"] = info
    assert (await spire_agent("debug getinfo")).out == (
        "Agent Debug Info:\n"
        "  Uptime:                          42s\n"
        "  Last Sync Success:               2026-11-26T16:25:35Z\n"
        "  Cached X.509 SVIDs:              2\n"
        "  Cached JWT SVIDs:                1\n"
        "  Cached SVID Store X.509 SVIDs:   0\n"
    )
    canned.answers["GetInfo"] = agent_debug.GetInfoResponse()
    assert "  Last Sync Success:               (never)\n" in (await spire_agent("debug getinfo")).out
