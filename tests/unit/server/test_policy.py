"""A policy of the operator's in a running server."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from generated.spire.api.server.bundle.v1 import bundle_pb2 as bundle_api
from generated.spire.api.server.entry.v1 import entry_pb2
from generated.spire.api.server.svid.v1 import svid_pb2
from generated.spire.api.types import bundle_pb2
from operations.errors import ConfigurationError
from tests.simulators.house import BUNDLE, ENTRY, SVID, new_entry, refused, running, spiffe_id
from tests.unit.policy.conftest import RESULT
from transport.status import Code

RULES = (
    RESULT.replace('"allow_if_local": false', '"allow_if_local": local')
    .replace('"allow_if_agent": false', '"allow_if_agent": agent')
    .replace('"allow_if_downstream": false', '"allow_if_downstream": downstream')
    + """
default local := false
default agent := false
default downstream := false

local if { input.full_method == "/grpc.health.v1.Health/Check" }
local if {
  input.full_method == "/spire.api.server.agent.v1.Agent/CreateJoinToken"
  endswith(input.caller_file_path, data.program)
}
local if {
  input.full_method == "/spire.api.server.entry.v1.Entry/BatchCreateEntry"
  not powerful
}
powerful if { some each in input.req.entries; each.admin }
allow if { input.full_method == "/spire.api.server.agent.v1.Agent/AttestAgent"; input.req == null }
allow if { input.full_method == "/spire.api.server.bundle.v1.Bundle/GetBundle"; not broken }
allow if { input.full_method == "/spire.api.server.svid.v1.SVID/NewDownstreamX509CA" }
allow := 1 if { input.full_method == "/spire.api.server.bundle.v1.Bundle/GetBundle"; broken }
broken if { input.req.output_mask.sequence_number }
agent if {
  input.full_method == "/spire.api.server.entry.v1.Entry/GetAuthorizedEntries"
  startswith(input.caller, "spiffe://example.org/spire/agent/")
}
"""
)


def settings(folder: Path, rules: str = RULES, data: str = "{}") -> str:
    (folder / "policy.rego").write_text(rules)
    (folder / "policy_data.json").write_text(data)
    return f"""experimental {{ auth_opa_policy_engine {{ local {{
      rego_path = "{folder}/policy.rego"
      policy_data_path = "{folder}/policy_data.json"
    }} }} }}"""


async def test_the_policy_decides_instead_of_the_table(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    program = Path("/proc/self/exe").readlink().name
    async with running(tmp_path, settings=settings(tmp_path, data=f'{{"program": "/{program}"}}')) as house:
        agent = await house.attest()
        assert await agent.entries() == []
        created = await house.create(new_entry("/a", agent.id))
        assert created
        powerful = new_entry("/b", spiffe_id("/parent"))
        powerful.admin = True
        create = ENTRY + "BatchCreateEntry"
        error = await refused(house.local, create, entry_pb2.BatchCreateEntryRequest(entries=[powerful]))
        assert (error.code, error.message) == (Code.PERMISSION_DENIED, f"authorization denied for method {create}")

        # What the table allows and the policy does not name.
        for channel, path in ((house.local, ENTRY + "CountEntries"), (agent.channel, SVID + "BatchNewX509SVID")):
            error = await refused(channel, path, entry_pb2.CountEntriesRequest())
            assert (error.code, error.message) == (Code.PERMISSION_DENIED, f"authorization denied for method {path}")

        # Allowed, and yet nobody whom the handler could serve.
        error = await refused(agent.channel, SVID + "NewDownstreamX509CA", svid_pb2.NewDownstreamX509CARequest())
        assert error.code is Code.INTERNAL

        # A policy that fails refuses, and says why in the log alone.
        mask = bundle_pb2.BundleMask(sequence_number=True)
        caplog.set_level(logging.ERROR)
        error = await refused(agent.channel, BUNDLE + "GetBundle", bundle_api.GetBundleRequest(output_mask=mask))
        message = f"authorization policy failed for method {BUNDLE}GetBundle"
        assert (error.code, error.message) == (Code.UNKNOWN, message)
        assert await house.bundle()


async def test_a_server_does_not_start_with_a_policy_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError) as error:
        async with running(tmp_path, settings=settings(tmp_path, RESULT + "allow if { not forbiden }")):
            pass
    assert str(error.value) == f"{tmp_path}/policy.rego:12: a name is used that is not defined there; within `every`, a `not` needs a rule of its own"
