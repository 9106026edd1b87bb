"""Plugins that start, or do not: each fault is one line with its place, and leaves no process behind."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from keystores.external import ServerKeyManager
from operations.errors import ConfigurationError
from plugins import catalog
from plugins.external import hosting, plugin, process
from plugins.external.loading import ExternalPlugins, validate
from plugins.keymanager import KeyType
from tests.simulators.spire import eventually
from tests.unit.plugins.external.conftest import FACADES, TRUST_DOMAIN, Load, Log, block


def gone(pid: int) -> bool:
    """Ended, or ended and not yet waited for by its parent."""
    try:
        return "\nState:\tZ" in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return True


async def until(condition: object) -> None:
    assert callable(condition)
    await asyncio.to_thread(eventually, condition, "the plugin")


async def test_a_plugin_from_start_to_end(load: Load, log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "GRACE", 60.0)
    manager = await load("KeyManager", data_text='b = "c"')
    assert isinstance(manager, ServerKeyManager)
    await until(lambda: log.named("[INFO] configured 'example.org b = \"c\"'"))
    (started,) = log.named("plugin started")
    assert not gone(started["pid"])
    assert started == {
        "external": True,
        "path": sys.executable,
        "pid": started["pid"],
        "plugin_name": "py",
        "plugin_type": "KeyManager",
        "subsystem_name": "catalog",
    }

    await manager.close()

    assert gone(started["pid"])
    stdio = "stdio service not available, stdout/stderr syncing unavailable"
    assert log.named(stdio)
    messages = [
        (level, text)
        for level, text, fields in log.lines
        if fields["subsystem_name"] == "catalog" and text != stdio  # which comes when it comes
    ]
    assert messages == [
        ("warning", "Plugin checksum not configured"),
        ("debug", "starting plugin"),
        ("debug", "plugin started"),
        ("debug", "waiting for RPC address"),
        ("debug", "using plugin"),
        *[("warning", "Unsupported plugin service found")] * len(log.named("Unsupported plugin service found")),
        ("info", "Configured plugin"),
        ("info", "Plugin loaded"),
        ("debug", "Unloading plugin"),
        ("debug", "Plugin deinitialized"),
        ("info", "plugin process exited"),
        ("debug", "plugin exited"),
        ("info", "Plugin unloaded"),
    ]
    program = {fields["subsystem_name"] for _, text, fields in log.lines if text.startswith("[INFO]")}
    assert program == {f"py.{Path(sys.executable).name}"}
    assert log.named("[INFO] deinitialized")


async def test_a_plugin_on_tcp_without_broker_and_controller(
    load: Load, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "GRACE", 0.2)
    manager = await load("KeyManager", "tcp", "no-broker", "no-controller", side="agent")
    assert (await manager.generate("key", KeyType.EC_P256)).id == "key"
    assert log.named("The plugin has no broker for host services")
    await manager.close()
    assert log.named("plugin failed to exit gracefully")


async def test_the_host_services_socket(load: Load, log: Log) -> None:
    await load("KeyManager")
    await until(lambda: [text for _, text, _ in log.lines if text.startswith("[INFO] host services at service_id: 1 ")])


@pytest.mark.parametrize(
    ("words", "fault"),
    [
        (
            ["dies-at-once"],
            (
                "failed to launch plugin: plugin exited before we could connect: exit status 7; "
                'it said "the device is not plugged in"'
            ),
        ),
        (["leaves-child"], "plugin exited before we could connect: exit status 0"),
        (["leaves-daemon"], "plugin exited before we could connect: exit status 0"),
        (["no-handshake"], 'failed to launch plugin: Unrecognized remote plugin message: "hello, world"'),
        (["long-line"], 'Unrecognized remote plugin message: "a line of more than 65536 bytes"'),
        (["2|1|unix|/a|grpc"], "incompatible core API version with plugin. Plugin version: 2, Core version: 1"),
        (["1|7|unix|/a|grpc"], "incompatible API version with plugin. Plugin version: 7, Client versions: [1]"),
        (["1|1|unix|/a|netrpc"], 'unsupported plugin protocol "netrpc". Supported: [grpc]'),
        (["1|1|tcp|192.0.2.1:80|grpc"], "is not one of this machine's own"),
        (["1|1|unix|/nonexistent/socket|grpc"], "dial unix /nonexistent/socket: connect: no such file or directory"),
        (["dies-in-init"], 'failed to load plugin "py": rpc error: code = Unavailable desc = '),
        (["dies-in-configure"], 'failed to configure plugin "py": rpc error: code = Unavailable desc = '),
        (
            ["refuses"],
            'failed to configure plugin "py": rpc error: code = InvalidArgument desc = this configuration is refused',
        ),
        (["without-config"], 'failed to configure plugin "py": no supported configuration interface found'),
    ],
    ids=str,
)
async def test_a_plugin_that_does_not_start(
    load: Load, log: Log, words: list[str], fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "GRACE", 0.5)
    with pytest.raises(ConfigurationError) as error:
        await load("KeyManager", *words)
    assert str(error.value).startswith('s.conf:2: KeyManager "py": failed to ')
    assert fault in str(error.value)
    assert "\n" not in str(error.value)
    (started,) = log.named("plugin started")
    assert gone(started["pid"])
    assert [fields for level, _, fields in log.lines if level == "error" and "error" in fields]


@pytest.mark.parametrize("word", ["silent", "hangs-in-init", "hangs-in-configure"])
async def test_a_plugin_that_hangs_at_its_start(
    load: Load, log: Log, word: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "GRACE", 0.2)
    monkeypatch.setattr(process, "START_TIMEOUT", 5.0 if word != "silent" else 1.0)
    monkeypatch.setattr(plugin, "INIT_TIMEOUT", 0.5)
    monkeypatch.setattr(plugin, "CONFIGURE_TIMEOUT", 0.5)
    with pytest.raises(ConfigurationError, match=r"timeout while waiting for plugin to start|DeadlineExceeded"):
        await load("KeyManager", word)
    assert gone(log.named("plugin started")[0]["pid"])


async def test_a_plugin_of_another_type(load: Load, log: Log) -> None:
    go_on = block("KeyManager")
    external = ExternalPlugins({"KeyManager": "tests.unit.plugins.external.test_loading:Wanting"}, tuple)
    with pytest.raises(ConfigurationError) as error:
        await external.load(go_on, TRUST_DOMAIN)
    assert 'failed to bind plugin "py": no supported plugin interface found in: ["spire.plugin.agent.keymanager' in str(
        error.value
    )
    assert str(error.value).endswith("expected spire.plugin.server.nothing.v1.Nothing")
    assert gone(log.named("plugin started")[0]["pid"])


class Wanting:
    SERVICE = "spire.plugin.server.nothing.v1.Nothing"


def test_faults_that_need_no_start(tmp_path: Path) -> None:
    faults: list[str] = []
    for given in (
        block("SVIDStore", command=str(tmp_path / "none")),
        block("SVIDStore", checksum="00"),
        block("DataStore"),
    ):
        with pytest.raises(ConfigurationError) as error:
            catalog.check([given], {"SVIDStore": catalog.Count(), "DataStore": catalog.Count()}, {}, "s.conf", FACADES)
        faults.append(str(error.value))
    assert faults == [
        f's.conf:2: SVIDStore "py": plugin_cmd {tmp_path}/none: no such file or directory',
        's.conf:2: SVIDStore "py": plugin_checksum: expected checksum of length 64; got 2 (SHA-256 in hex)',
        (
            's.conf:2: DataStore "py": external plugins (plugin_cmd) of this type are not available in this version: '
            "use a built-in one (external ones may be: KeyManager, NodeAttestor, SVIDStore, WorkloadAttestor)"
        ),
    ]


async def test_a_wrong_checksum_starts_nothing(load: Load, log: Log) -> None:
    with pytest.raises(ConfigurationError, match="checksums did not match"):
        await load("KeyManager", checksum="00" * 32)
    assert not log.named("starting plugin")


async def test_what_a_plugin_started_ends_with_it(load: Load, tmp_path: Path) -> None:
    script = tmp_path / "plugin"
    pid_file = tmp_path / "pid"
    script.write_text(f"#!/bin/sh\nsleep 3600 &\necho $! > {pid_file}\necho wrong\nwait\n")
    script.chmod(0o755)
    with pytest.raises(ConfigurationError, match="Unrecognized remote plugin message"):
        await load("KeyManager", command=str(script))
    await until(lambda: gone(int(pid_file.read_text())))


async def test_a_plugin_that_stays_is_ended(load: Load, log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "GRACE", 0.3)
    manager = await load("KeyManager", "stays")
    await manager.close()
    assert log.named("plugin failed to exit gracefully")
    (exited,) = log.named("plugin process exited")
    assert exited["error"] == "signal: killed"


async def test_a_flood_on_standard_error_is_bounded(load: Load, log: Log) -> None:
    manager = await load("KeyManager", "floods")
    assert (await manager.generate("key", KeyType.EC_P256)).id == "key"
    await manager.close()
    written = [text for _, text, _ in log.lines if text.startswith("[INFO] line ")]
    dropped = log.named("The plugin wrote more than its share to the log; lines were dropped")
    assert len(written) + sum(fields["lines"] for fields in dropped) >= 100_000
    assert len(written) < 20_000
    assert len(dropped) < 50


async def test_a_panic_is_told_as_an_error(load: Load, log: Log) -> None:
    await load("KeyManager", "panics")
    await until(lambda: log.named("goroutine 1 [running]:"))
    assert {
        level for level, text, _ in log.lines if text in {"panic: everything is lost", "goroutine 1 [running]:"}
    } == {"error"}


async def test_the_process_goes_on_when_a_plugin_dies(load: Load, log: Log) -> None:
    manager = await load("KeyManager")
    pid = log.named("plugin started")[0]["pid"]
    os.kill(pid, signal.SIGKILL)
    await until(lambda: log.named("plugin process exited"))
    (exited,) = log.named("plugin process exited")
    assert exited["error"] == "signal: killed"
    assert exited["id"] == str(pid)
    await manager.close()
    assert log.named("Plugin unloaded")


async def test_data_from_a_file_is_read_again_on_demand(tmp_path: Path, log: Log) -> None:
    file = tmp_path / "data"
    file.write_text("- any: text\n")
    external = ExternalPlugins(FACADES, tuple)
    await external.load(block("KeyManager", data_text=None, data_file=str(file)), TRUST_DOMAIN)
    await external.reconfigure()
    file.write_text("- another\n")
    await external.reconfigure()
    file.write_text("refuse\n")
    await external.reconfigure()
    file.unlink()
    await external.reconfigure()
    await external.close()

    (configured,) = log.named("Configured plugin")
    (unchanged,) = log.named("Plugin not reconfigured since the config is unchanged")
    (changed,) = log.named("Plugin reconfigured")
    refused, lost = log.named("Failed to reconfigure plugin")
    assert configured["reconfigurable"]
    assert configured["hash"] == unchanged["hash"] == changed["old_hash"] != changed["new_hash"]
    assert str(refused["error"]) == "rpc error: code = InvalidArgument desc = this configuration is refused"
    assert str(lost["error"]) == f"failed to load plugin data: open {file}: no such file or directory"
    assert log.named("[INFO] configured 'example.org - another\\n'")


async def test_a_signal_makes_plugins_look_at_their_data_again(tmp_path: Path, log: Log) -> None:
    file = tmp_path / "data"
    file.write_text("one\n")
    external = ExternalPlugins(FACADES, tuple)
    external.reconfigure_on_signal()
    try:
        await external.load(block("KeyManager", data_text=None, data_file=str(file)), TRUST_DOMAIN)
        file.write_text("two\n")
        os.kill(os.getpid(), signal.SIGUSR1)
        await until(lambda: log.named("Plugin reconfigured"))
        assert log.named("Reconfigure signal received")
    finally:
        await external.close()


async def test_a_plugin_says_what_it_finds_in_its_configuration() -> None:
    external = ExternalPlugins(FACADES, tuple)
    assert await external.validate(block("KeyManager"), TRUST_DOMAIN) == []
    assert await external.validate(block("KeyManager", data_text="refuse"), TRUST_DOMAIN) == ["it says refuse"]
    assert await external.validate(block("KeyManager", "without-config"), TRUST_DOMAIN) == []


async def test_validation_tells_what_every_plugin_finds(log: Log) -> None:
    blocks = [
        block("KeyManager"),
        block("KeyManager", data_text="refuse"),
        block("KeyManager", "dies-at-once", enabled=False),
        block("KeyManager", command="/nonexistent/plugin"),
        block("KeyManager", "dies-at-once"),
        block("DataStore"),
    ]
    found = [str(each) for each in await validate(blocks, FACADES, tuple, TRUST_DOMAIN)]
    assert found[0] == 's.conf:2: KeyManager "py": it says refuse'
    assert [text.split(": ")[2].split(",")[0] for text in found[1:]] == [
        "plugin_cmd /nonexistent/plugin",
        'failed to load plugin "py"',
        "external plugins (plugin_cmd) of this type are not available in this version",
    ]
    assert not log.named("[INFO] configured 'example.org a = 1'")
    assert all(gone(fields["pid"]) for fields in log.named("plugin started"))


async def test_plugins_end_in_reverse_order(log: Log) -> None:
    external = ExternalPlugins(FACADES, tuple)
    for kind in ("KeyManager", "NodeAttestor"):
        await external.load(block(kind), TRUST_DOMAIN)
    await external.close()
    assert [fields["plugin_type"] for fields in log.named("Plugin unloaded")] == ["NodeAttestor", "KeyManager"]


HOST = """
import asyncio
from plugins.external.loading import ExternalPlugins
from tests.unit.plugins.external.conftest import FACADES, block

async def main():
    external = ExternalPlugins(FACADES, tuple)
    attestor = await external.load(block("WorkloadAttestor"), "example.org")
    print(attestor._plugin._process.pid, flush=True)
    await asyncio.sleep(3600)

asyncio.run(main())
"""


def test_a_plugin_ends_with_its_host_even_by_kill_9() -> None:
    host = subprocess.Popen([sys.executable, "-c", HOST], stdout=subprocess.PIPE, text=True)
    assert host.stdout is not None
    try:
        pid = int(host.stdout.readline())
        assert not gone(pid)
    finally:
        host.kill()
        host.wait()
        host.stdout.close()
    eventually(lambda: gone(pid), "the plugin's end")


def test_hosting_names_spires_number() -> None:
    """private.HostServiceProviderID of the plugin SDK; both sides have to agree on it."""
    assert hosting.HOST_SERVICES == 1
