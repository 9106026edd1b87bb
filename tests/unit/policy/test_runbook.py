"""The policies of docs/runbooks/authorization-policy say what the runbook says they do."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from google.protobuf.message import Message

from generated.spire.api.server.entry.v1 import entry_pb2
from generated.spire.api.types import entry_pb2 as types
from server.authorization import POLICY, Role
from server.policy.files import PolicyFiles
from server.policy.rules import RegoPolicy
from transport.peer import Peer, Process

EXAMPLES = Path(__file__).parents[3] / "docs/runbooks/authorization-policy"
ENTRY = "/spire.api.server.entry.v1.Entry/"
REMOTE = Peer("127.0.0.1:1")
CI = "spiffe://example.org/ci"
OTHER = "spiffe://example.org/other"
OPERATORS = Role.LOCAL | Role.ADMIN


async def loaded(name: str, tmp_path: Path, more: Mapping[str, object] | None = None) -> RegoPolicy:
    data = json.loads((EXAMPLES / "policy_data.json").read_text()) | (more or {})
    path = tmp_path / "data.json"
    path.write_text(json.dumps(data))
    return await RegoPolicy.load(PolicyFiles(str(EXAMPLES / name), str(path)))


def create(*paths: str, admin: bool = False) -> Message:
    entries = [types.Entry(spiffe_id={"trust_domain": "example.org", "path": path}, admin=admin) for path in paths]
    return entry_pb2.BatchCreateEntryRequest(entries=entries)


async def test_the_default_policy_is_the_built_in_table(tmp_path: Path) -> None:
    policy = await loaded("policy.rego", tmp_path)
    try:
        for path, roles in POLICY.items():
            for caller in ("", CI):
                assert await policy.roles(path, REMOTE, caller, None) == roles, path
        assert await policy.roles("/unknown.Service/Method", REMOTE, CI, None) == Role(0)
    finally:
        await policy.close()


async def test_entries_below_ci_are_the_ci_admins(tmp_path: Path) -> None:
    policy = await loaded("ci-namespace.rego", tmp_path, {"ci_admin": CI})
    try:

        async def create_as(caller: str, *paths: str, admin: bool = False) -> Role:
            return await policy.roles(ENTRY + "BatchCreateEntry", REMOTE, caller, create(*paths, admin=admin))

        assert await create_as(CI, "/ci/a", "/ci/b") is Role.ANY
        assert await create_as(CI, "/ci/a", "/b") == Role(0)
        assert await create_as(CI, "/ci/a", admin=True) == Role(0)
        assert await create_as(CI, "/cinema") == Role(0)
        for caller in (OTHER, ""):
            assert await create_as(caller, "/a", "/cinema", admin=True) == OPERATORS
            assert await create_as(caller, "/a", "/ci/b") == Role(0)
        for name, roles in (("BatchUpdateEntry", Role.LOCAL), ("BatchDeleteEntry", Role.LOCAL)):
            assert await policy.roles(ENTRY + name, REMOTE, CI, None) == roles
        assert await policy.roles(ENTRY + "ListEntries", REMOTE, CI, None) == OPERATORS
        assert await policy.roles(ENTRY + "SyncAuthorizedEntries", REMOTE, OTHER, None) is Role.AGENT
    finally:
        await policy.close()


async def test_operators_that_only_read(tmp_path: Path) -> None:
    program = str(Path("/proc/self/exe").readlink())
    policy = await loaded("read-only.rego", tmp_path, {"writers": [CI]})
    trusting = await loaded("read-only.rego", tmp_path, {"writers": [program]})
    own = Peer("", process=Process(int(Path("/proc/self").readlink().name), 0, 0, 0))
    try:
        for path, roles in POLICY.items():
            operators = roles & OPERATORS
            reads = path.rpartition("/")[2].startswith(("Get", "List", "Count", "Check", "Watch", "Verify"))
            for caller in (CI, OTHER, ""):
                expected = roles if reads or caller == CI else roles & ~operators
                assert await policy.roles(path, REMOTE, caller, None) == expected, path
        assert await policy.roles(ENTRY + "BatchDeleteEntry", own, "", None) == Role(0)
        assert await trusting.roles(ENTRY + "BatchDeleteEntry", own, "", None) == OPERATORS
    finally:
        await policy.close()
        await trusting.close()
