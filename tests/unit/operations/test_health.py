"""The state of subsystems, and what those hear who ask over HTTP."""

from __future__ import annotations

import json
from typing import Any

import pytest

from operations.errors import TemporarilyUnavailable
from operations.health import Checker, State, failing
from operations.http import Request

GET = Request("GET", "/")


class Part:
    def __init__(self) -> None:
        self.error = ""

    async def probe(self) -> None:
        if self.error:
            raise TemporarilyUnavailable(self.error)


async def answers(checker: Checker) -> tuple[tuple[int, Any], tuple[int, Any]]:
    live, ready = await checker.live(GET), await checker.ready(GET)
    return (live.status, json.loads(live.body)), (ready.status, json.loads(ready.body))


async def test_all_parts_count() -> None:
    good, bad = Part(), Part()
    checker = Checker({"server": failing("a_err")(good.probe), "server.ca": failing("b_err")(bad.probe)})
    assert await answers(checker) == ((500, {"server": None, "server.ca": None}),) * 2, "nothing is known yet"
    await checker.look()
    assert await answers(checker) == ((200, {"server": {}, "server.ca": {}}),) * 2
    bad.error = "the token is away"
    await checker.look()
    assert await answers(checker) == ((500, {"server": {}, "server.ca": {"b_err": "the token is away"}}),) * 2


async def test_the_body_is_spires(capsys: pytest.CaptureFixture[str]) -> None:
    checker = Checker({"b": failing("e")(Part().probe), "a": failing("e")(Part().probe)})
    await checker.look()
    response = await checker.live(GET)
    assert (response.body, response.content_type) == (b'{"a":{},"b":{}}\n', "application/json")
    assert not capsys.readouterr().out


async def test_live_and_ready_are_apart() -> None:
    async def starting() -> State:
        return State(live=True, ready=False, started=False, ready_details={"make_new_x509_err": "not yet"})

    checker = Checker({"agent": starting})
    await checker.look()
    assert await answers(checker) == ((200, {"agent": {}}), (500, {"agent": {"make_new_x509_err": "not yet"}}))


async def test_paths() -> None:
    checker = Checker({"a": failing("e")(Part().probe)})
    await checker.look()
    usual = checker.handler("", "")
    assert (await usual(Request("GET", "/live"))).status == 200
    assert (await usual(Request("GET", "/ready"))).status == 200
    missing = await usual(Request("GET", "/metrics"))
    assert (missing.status, missing.body) == (404, b"404 page not found\n")
    chosen = checker.handler("/a", "/b")
    assert [(await chosen(Request("GET", path))).status for path in ("/a", "/b", "/live")] == [200, 200, 404]
