"""The dashboard and the alerts in docs/monitoring load, ask for what the programs tell, and fire when they should."""

from __future__ import annotations

import ast
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec.json
import msgspec.yaml
import pytest

from generated.spire.api.server.agent.v1 import agent_pb2
from generated.spire.api.server.entry.v1 import entry_pb2
from generated.spire.api.server.svid.v1 import svid_pb2
from operations import metrics
from operations.process_stats import process_stats
from server.metrics import DATASTORE

ROOT = Path(__file__).parents[3]
FOLDER = ROOT / "docs" / "monitoring"
AUTHORITIES = ("x509_ca", "jwt_key")
"""What names the kind in metrics of server/ca."""

CODE = ("operations", "server", "agent")


def promtool(*args: str) -> str:
    """Needs Debian's package prometheus (ci/packages)."""
    found = shutil.which("promtool")
    assert found is not None
    done = subprocess.run([found, *args], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def emitted() -> Iterator[str]:
    """All names of metrics that the code has, as Prometheus sees them."""
    yield from ("up", *(name for _, name, _ in process_stats()))
    keys: set[tuple[str, ...]] = set(DATASTORE.values())
    for package in CODE:
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                words = (
                    [each.value for each in getattr(node, "args", ()) if isinstance(each, ast.Constant)]
                    if isinstance(node, ast.Call) and ast.unparse(node.func).startswith("metrics.")
                    else []
                )
                if isinstance(node, ast.Tuple):
                    words = [each.value for each in node.elts if isinstance(each, ast.Constant)]
                if words and all(isinstance(word, str) for word in words):
                    keys.add(tuple(map(str, words)))
    keys |= {("ca", "manager", kind, "prepare") for kind in AUTHORITIES}
    keys |= {(api, "connections") for api in ("workload_api", "sds_api")}
    for module in (agent_pb2, entry_pb2, svid_pb2):
        for service in module.DESCRIPTOR.services_by_name.values():
            keys |= {("rpc", *metrics.rpc_key(service.full_name, method.name)) for method in service.methods}
    keys |= {("rpc", *metrics.rpc_key("SpiffeWorkloadAPI", "FetchX509SVID"))}
    for key in keys:
        for program in ("spire_server", "spire_agent"):
            yield "_".join((program, *key))
            yield "_".join((program, *key, "elapsed_time"))


def dashboard() -> dict[str, Any]:
    return msgspec.json.decode((FOLDER / "dashboard.json").read_bytes(), type=dict[str, Any])


def panels() -> list[dict[str, Any]]:
    return [panel for panel in dashboard()["panels"] if panel["type"] != "row"]


def expressions() -> list[str]:
    return [target["expr"] for panel in panels() for target in panel["targets"]]


def rules() -> list[dict[str, Any]]:
    loaded = msgspec.yaml.decode((FOLDER / "alerts.yml").read_bytes(), type=dict[str, Any])
    return [rule for group in loaded["groups"] for rule in group["rules"]]


def test_each_name_is_one_that_a_program_tells() -> None:
    known = set(emitted())
    for text in [*expressions(), *(rule["expr"] for rule in rules())]:
        several = r'__name__=~"(\w+)\(([^)]*)\)"'
        single = r"\b(?:spire_(?:server|agent)_[a-z0-9_]*[a-z0-9]|process_[a-z_]+)"
        names = set(re.findall(single, re.sub(several, "", text)))
        for prefix, inner in re.findall(several, text):
            names |= {prefix + word for word in inner.split("|")}
        assert names - known == set(), text


def test_the_dashboard_is_one_for_any_data_source() -> None:
    found = dashboard()
    assert found["schemaVersion"] >= 39
    assert [each["name"] for each in found["templating"]["list"]] == ["datasource", "job"]
    ids = [panel["id"] for panel in found["panels"]]
    assert len(set(ids)) == len(ids)
    places = {(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in found["panels"]}
    assert len(places) == len(ids)
    for panel in panels():
        assert panel["datasource"]["uid"] == "${datasource}"
        assert panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24
        assert panel["targets"]
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])


def test_prometheus_reads_each_expression_of_the_dashboard(tmp_path: Path) -> None:
    found = [{"record": f"panel:{at}", "expr": text} for at, text in enumerate(expressions())]
    (tmp_path / "rules.yml").write_text(json.dumps({"groups": [{"name": "dashboard", "rules": found}]}))
    assert f"{len(found)} rules found" in promtool("check", "rules", str(tmp_path / "rules.yml"))


def test_alerts_fire_when_they_should_and_not_when_all_is_well() -> None:
    assert f"{len(rules())} rules found" in promtool("check", "rules", str(FOLDER / "alerts.yml"))
    cases = (FOLDER / "alerts_test.yml").read_text()
    for rule in rules():
        assert cases.count(f'"{rule["alert"]}"') == 2
    promtool("test", "rules", str(FOLDER / "alerts_test.yml"))


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: rule["alert"])
def test_an_alert_says_what_to_do(rule: dict[str, Any]) -> None:
    notes = rule["annotations"]
    assert notes["summary"]
    assert notes["description"]
    path, _, anchor = notes["runbook_url"].partition("#")
    assert f"### {rule['alert']}\n" in (ROOT / path).read_text()
    assert anchor == rule["alert"].lower()
