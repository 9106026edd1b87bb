"""A policy in its process: what it is told and says, what is refused, and what happens to one that fails."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from contextlib import suppress
from pathlib import Path

import pytest

from generated.spire.api.server.entry.v1 import entry_pb2
from generated.spire.api.types import entry_pb2 as types
from operations.errors import ConfigurationError, PermanentlyUnusable, SpireError, TemporarilyUnavailable
from server.authorization import Role
from server.policy import files
from server.policy.engine import Patience
from server.policy.files import PolicyFiles
from server.policy.rules import STRANGERS_LIMIT, RegoPolicy, roles_of
from tests.unit.policy.conftest import RESULT, MakePolicy
from transport.peer import Peer, Process

CREATE = "/spire.api.server.entry.v1.Entry/BatchCreateEntry"
REMOTE = Peer("127.0.0.1:1")
NO_NAME = "a name is used that is not defined there; within `every`, a `not` needs a rule of its own"
OVER = 'input.full_method == "/over"'
"""What a policy may do when it has passed its tries."""


def create(*paths: str) -> entry_pb2.BatchCreateEntryRequest:
    entries = [types.Entry(spiffe_id={"trust_domain": "example.org", "path": path}) for path in paths]
    return entry_pb2.BatchCreateEntryRequest(entries=entries)


def local(pid: int) -> Peer:
    return Peer("", process=Process(pid, 0, 0, 0))


async def test_a_policy_sees_the_caller_the_method_and_the_request(make_policy: MakePolicy) -> None:
    """And data, loaded once."""
    rules = """
allow if { input.caller == data.friend; input.full_method == "/m"; input.req == null; input.caller_file_path == "" }
allow if { input.caller == ""; endswith(input.caller_file_path, data.program) }
allow if { every each in input.req.entries { startswith(each.spiffe_id.path, "/ü/") }; count(input.req.entries) > 1 }
"""
    program = Path("/proc/self/exe").readlink()
    data = f'{{"friend": "spiffe://example.org/friend", "program": "/{program.name}"}}'
    policy = await RegoPolicy.load(make_policy(RESULT + rules, data))
    try:
        assert await policy.roles("/m", REMOTE, "spiffe://example.org/friend", None) is Role.ANY
        assert not await policy.roles("/m", REMOTE, "spiffe://example.org/stranger", None)
        assert not await policy.roles("/other", REMOTE, "spiffe://example.org/friend", None)
        assert not await policy.roles("/m", REMOTE, "spiffe://example.org/friend", create())
        assert await policy.roles("/x", local(os.getpid()), "", None) is Role.ANY
        assert not await policy.roles("/x", local(2**22 + 1), "", None), "a process that is no more"
        assert await policy.roles(CREATE, REMOTE, "", create("/ü/a", "/ü/b")) is Role.ANY
        assert not await policy.roles(CREATE, REMOTE, "", create("/ü/a", "/b"))
        assert not await policy.roles(CREATE, REMOTE, "", create("/b\0/ü/", "/ü/b"))
        many = create(*("/ü/" + "a" * 100 for _ in range(STRANGERS_LIMIT // 100)))
        assert not await policy.roles(CREATE, REMOTE, "", many), "more than is judged for a stranger"
        assert await policy.roles(CREATE, REMOTE, "spiffe://example.org/a", many) is Role.ANY
    finally:
        await policy.close()
    with pytest.raises(TemporarilyUnavailable, match="has been ended"):
        await policy.roles("/m", REMOTE, "", None)


def test_the_five_booleans() -> None:
    names = ("allow", "allow_if_local", "allow_if_admin", "allow_if_downstream", "allow_if_agent")
    roles = (Role.ANY, Role.LOCAL, Role.ADMIN, Role.DOWNSTREAM, Role.AGENT)
    nothing = dict.fromkeys(names, False)
    assert roles_of(nothing) == Role(0)
    for name, role in zip(names, roles, strict=True):
        assert roles_of(nothing | {name: True, "more": 1}) is role
        for wrong in (None, 0, 1, "true", {}):
            with pytest.raises(PermanentlyUnusable, match=f"has no {name} that is true or false"):
                roles_of(nothing | {name: wrong})


@pytest.mark.parametrize(
    ("rules", "line", "reason"),
    [
        ("allow if {\n  a b\n", 12, "this is unclosed"),
        ("allow if { not forbiden }", 12, NO_NAME),
        ("\nallow if { not input.a == forbiden }", 13, NO_NAME),
        ("allow if { count([x | x == y]) == 0 }", 12, NO_NAME),
        ("allow if { every each in input.req.entries { not each.admin } }", 12, NO_NAME),
        ("f(x) if x == 1\nallow if { every each in input.req.entries { not f(each) } }", 13, NO_NAME),
        ('allow if { not http.send({"url": "http://localhost"}) }', 12, "there is no function http.send"),
        ("allow if { not net.lookup_ip_addr(input.caller) }", 12, "there is no function net.lookup_ip_addr"),
        ("allow if { not checked(input) }", 12, "there is no function checked"),
        ("allow if { f(1) }\nf(x) := f(x + 1)", None, "data.spire.f is recursive"),
        ("allow if { b }\nb if { c }\nc if { b }", None, " is recursive"),
    ],
)
async def test_what_cannot_be_compiled(make_policy: MakePolicy, rules: str, line: int | None, reason: str) -> None:
    """Names and functions that are not there make `not` true: they must not wait for a call."""
    policy = make_policy(RESULT + rules)
    with pytest.raises(ConfigurationError) as error:
        await RegoPolicy.load(policy)
    assert (error.value.file, error.value.line) == (policy.rego, line)
    assert error.value.reason.endswith(reason)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("rego", "reason"),
    [
        ("package other\nresult := {}", "data.spire.result is undefined: does the policy begin with `package spire`?"),
        ("package spire\nresult := [true]", "data.spire.result is no object"),
        ('package spire\nresult := {"allow": true}', "has no allow_if_local that is true or false"),
        (RESULT.replace("false,", '"no",'), "that is true or false"),
        (RESULT + 'allow := true if { input.caller == "" }\nallow := 1 if { input.caller == "" }', "contradict"),
        (
            RESULT + "n := numbers.range(1, 3000)\nallow if { count([1 | some a in n; some b in n; some c in n; a * b * c == 0.5]) > 3 }",
            "the policy gave no answer within 1 s",
        ),
    ],
)
async def test_a_policy_is_tried_before_it_is_used(make_policy: MakePolicy, rego: str, reason: str) -> None:
    policy = make_policy(rego)
    with pytest.raises(ConfigurationError) as error:
        await RegoPolicy.load(policy, Patience(answer=1))
    assert error.value.file == policy.rego
    assert error.value.reason.startswith("a try with /spire.api.server.bundle.v1.Bundle/GetBundle failed: ")
    assert reason in error.value.reason


async def test_a_policy_that_eats_memory_is_ended(make_policy: MakePolicy) -> None:
    policy = make_policy(RESULT + "allow if { count([x | some x in numbers.range(1, 100000000)]) > 3 }")
    with pytest.raises(ConfigurationError, match="the policy's process ended: it may hold no more than 1 GiB"):
        await RegoPolicy.load(policy, Patience(answer=60))


async def test_files_that_are_none(make_policy: MakePolicy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def refusal(policy: PolicyFiles) -> str:
        with pytest.raises(ConfigurationError) as error:
            await RegoPolicy.load(policy)
        return str(error.value)

    missing = tmp_path / "missing"
    assert await refusal(PolicyFiles(str(missing))) == f"{missing}: rego_path cannot be read: No such file or directory"
    policy = make_policy(RESULT)
    wrong = await refusal(PolicyFiles(policy.rego, str(tmp_path)))
    assert wrong == f"{tmp_path}: policy_data_path cannot be read: Is a directory"
    assert "data.json: the policy's data is no JSON: " in await refusal(make_policy(RESULT, "{"))
    assert "data.json: the policy's data has to be a JSON object" in await refusal(make_policy(RESULT, "[]"))
    assert "data.json: the policy's data is nested too deeply" in await refusal(
        make_policy(RESULT, '{"a":' + "[" * 100_000 + "]" * 100_000 + "}")
    )
    assert "a NUL byte" in await refusal(make_policy(RESULT + "\0"))
    Path(policy.rego).write_bytes(b"\xff")
    assert "no UTF-8" in await refusal(policy)
    monkeypatch.setattr(files, "MAX_REGO", 10)
    assert await refusal(make_policy(RESULT)) == f"{policy.rego}: rego_path names a file of more than 10 bytes"


async def test_a_policy_that_hangs_is_ended_and_the_loop_goes_on(make_policy: MakePolicy) -> None:
    rules = f"n := numbers.range(1, 3000)\nallow if {{ {OVER}; count([1 | some a in n; some b in n; some c in n; a * b * c == 0.5]) > 3 }}"
    policy = await RegoPolicy.load(make_policy(RESULT + rules), Patience(answer=1))
    try:
        pid = policy.pid
        hanging = asyncio.create_task(policy.roles("/over", REMOTE, "", None))
        behind = asyncio.create_task(policy.roles("/other", REMOTE, "", None))
        longest, last = 0.0, time.monotonic()
        while not hanging.done():
            await asyncio.sleep(0.01)
            longest, last = max(longest, time.monotonic() - last), time.monotonic()
        assert longest < 0.9, "nothing waited in the loop for the policy"
        with pytest.raises(TemporarilyUnavailable, match="gave no answer within 1 s"):
            await hanging
        assert await behind == Role(0), "by a new process"
        assert policy.pid != pid
    finally:
        await policy.close()


async def test_a_caller_that_goes_takes_nobodys_answer(make_policy: MakePolicy) -> None:
    policy = await RegoPolicy.load(make_policy(RESULT + f"allow if {{ {OVER} }}"))
    try:
        pid = policy.pid
        for _ in range(20):
            gone = asyncio.create_task(policy.roles("/over", REMOTE, "", None))
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            gone.cancel()
            with suppress(asyncio.CancelledError):
                await gone
            assert await policy.roles("/other", REMOTE, "", None) == Role(0)
        assert policy.pid == pid
    finally:
        await policy.close()


async def test_a_process_that_ends_costs_one_call(make_policy: MakePolicy) -> None:
    policy = await RegoPolicy.load(make_policy(RESULT + f"allow if {{ {OVER} }}"))
    try:
        assert policy.pid is not None
        os.kill(policy.pid, signal.SIGKILL)
        with suppress(SpireError):  # it may not have ended yet
            await policy.roles("/over", REMOTE, "", None)
        assert await policy.roles("/over", REMOTE, "", None) is Role.ANY
    finally:
        await policy.close()


async def test_no_policy_reads_the_servers_environment_or_opens_files(
    make_policy: MakePolicy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET_OF_THE_SERVER", "x")
    policy = await RegoPolicy.load(make_policy(RESULT + "allow if { opa.runtime().env.SECRET_OF_THE_SERVER }"))
    try:
        assert await policy.roles("/m", REMOTE, "", None) == Role(0)
        assert policy.pid is not None
        limits = Path(f"/proc/{policy.pid}/limits").read_text().splitlines()
        [open_files] = [line.split() for line in limits if line.startswith("Max open files")]
        assert open_files[3:5] == ["0", "0"]
    finally:
        await policy.close()
