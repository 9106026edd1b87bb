"""Figures for this server and agent; beside others' when SPIRE_SERVER_BIN and SPIRE_AGENT_BIN name their binaries.

    make bench                        everything
    make bench ARGS='svid startup'    some of: svid, fetch, stream, startup
    make bench ARGS='--seconds 5'     how long each row is measured

CPU is that of the server or agent with its descendants, user and system. It is the figure to compare: rates share the
machine with the load generator.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import tempfile
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from bench import clients, sign_rate, streams
from bench.measure import Meter, cpu_seconds, rss_mib
from generated.spire.api.server.svid.v1 import svid_pb2
from keystores.pkcs11.configuration import Configuration
from plugins.keymanager import KeyType
from tests.simulators import softhsm, spire

BATCHES = (1, 50, 500)
ENTRIES = 500
NODE = "spiffe://example.org/node"


@dataclass(frozen=True)
class Target:
    """A server and an agent to measure, and the key manager that the server is given; FOLDER in it is the run's."""

    name: str
    server: str
    agent: str
    key_manager: str = 'KeyManager "disk" { plugin_data { keys_path = "FOLDER/keys.json" } }'
    environment: dict[str, str] = field(default_factory=dict[str, str])

    def make_server(self, folder: Path) -> spire.Server:
        key_manager = self.key_manager.replace("FOLDER", str(folder))
        return spire.Server(folder, key_manager=key_manager, program=self.server, environment=self.environment)


@dataclass(frozen=True)
class Row:
    """One line of the table. `ratio` compares its CPU with the other implementation's, where there is one."""

    target: str
    name: str
    rate: str = ""
    cpu_ms: float | None = None
    note: str = ""


def targets(folder: Path) -> list[Target]:
    token = softhsm.SoftHsm.create(folder / "token")
    block = f"""KeyManager "pkcs11" {{ plugin_data {{
      module_path = "{softhsm.MODULE}"
      token_label = "{token.label}"
      pin_file = "{token.pin_file}"
      namespace = "bench"
      keys_path = "FOLDER/pkcs11-keys.json"
    }} }}"""
    environment = {"SOFTHSM2_CONF": str(token.configuration)}
    found = [
        Target("ours, disk", spire.SERVER, spire.AGENT),
        Target("ours, pkcs11", spire.SERVER, spire.AGENT, block, environment),
    ]
    others = os.environ.get("SPIRE_SERVER_BIN"), os.environ.get("SPIRE_AGENT_BIN")
    if others[0] and others[1]:
        found.append(Target("other, disk", others[0], others[1]))
    return found


async def svid(target: Target, folder: Path, seconds: float) -> list[Row]:
    """BatchNewX509SVID, one caller."""
    server = target.make_server(folder)
    await asyncio.to_thread(server.start)
    assert server.run.process is not None
    pid = server.run.process.pid
    try:
        agent = clients.Agent(server)
        await agent.attest(await asyncio.to_thread(server.join_token, NODE))
        request, _ = clients.signing_request("spiffe://example.org/workload")
        entries = await asyncio.to_thread(many_entries, server, folder)
        params = [svid_pb2.NewX509SVIDParams(entry_id=entry, csr=request) for entry in entries]
        await until_served(agent, params[-1])
        rows: list[Row] = []
        for size in BATCHES:
            with Meter(pid) as meter:
                end = time.perf_counter() + seconds
                while time.perf_counter() < end:
                    meter.operations += await agent.batch(params[:size])
            cost = meter.cost
            rows.append(Row(target.name, f"X509-SVID, batch of {size}", f"{cost.rate:,.0f}/s", cost.cpu_ms))
        rows.append(Row(target.name, "server memory after load", f"{rss_mib(pid):.0f} MiB"))
        await agent.close()
        return rows
    finally:
        server.run.end()


async def until_served(agent: clients.Agent, one: svid_pb2.NewX509SVIDParams) -> None:
    """Entries reach another server's cache after seconds; wait for the last one made."""
    end = time.perf_counter() + spire.PATIENCE
    while True:
        try:
            await agent.batch([one])
        except AssertionError:
            if time.perf_counter() > end:
                raise
            await asyncio.sleep(0.5)
        else:
            return


def many_entries(server: spire.Server, folder: Path) -> list[str]:
    """ENTRIES entries of the node, by one command. Returns their IDs."""
    data = folder / "entries.json"
    made = ",".join(
        f'{{"selectors":[{{"type":"unix","value":"uid:{number}"}}],"parent_id":"{NODE}",'
        f'"spiffe_id":"spiffe://example.org/workload/{number}"}}'
        for number in range(ENTRIES)
    )
    data.write_text(f'{{"entries":[{made}]}}')
    results = server.ask_json("entry", "create", "-data", str(data))["results"]
    return [result["entry"]["id"] for result in results]


@asynccontextmanager
async def pair(target: Target, folder: Path) -> AsyncGenerator[tuple[spire.Server, spire.Agent], None]:
    """A server and an agent, and an entry for workloads of this user that the agent has an SVID of."""
    server = target.make_server(folder)
    await asyncio.to_thread(server.start)
    agent: spire.Agent | None = None
    try:
        token = await asyncio.to_thread(server.join_token, NODE)
        agent = await asyncio.to_thread(
            lambda: spire.Agent(folder / "agent", server, token=token, program=target.agent, log_level="INFO")
        )
        await asyncio.to_thread(agent.start)
        await asyncio.to_thread(server.create_entry, NODE, "spiffe://example.org/workload")
        await asyncio.to_thread(agent.fetch)
        yield server, agent
    finally:
        for program in (agent, server):
            if program is not None and program.run.process is not None:
                program.run.end()


async def fetch(target: Target, folder: Path, seconds: float) -> list[Row]:
    """Workload API: FetchX509SVID on a new connection, one workload after another."""
    async with pair(target, folder) as (_, agent):
        assert agent.run.process is not None
        pid = agent.run.process.pid
        times: list[float] = []
        with Meter(pid) as meter:
            end = time.perf_counter() + seconds
            while time.perf_counter() < end:
                start = time.perf_counter()
                assert await clients.fetch_on_a_new_connection(agent.socket) == 1
                times.append(time.perf_counter() - start)
            meter.operations = len(times)
        name = "Workload API fetch, new connection"
        middle = f"p50 {statistics.median(times) * 1000:.1f} ms"
        return [
            Row(target.name, name, middle, meter.cost.cpu_ms),
            Row(target.name, "agent memory after load", f"{rss_mib(pid):.0f} MiB"),
        ]


async def stream(target: Target, folder: Path, seconds: float) -> list[Row]:
    """A thousand processes with a stream each: what holding them and updating them takes."""
    async with pair(target, folder) as (server, agent):
        found = await streams.measure(server, agent, NODE, max(3, int(seconds)))
    delays = (("p50", found.percentile(50)), ("p99", found.percentile(99)), ("max", found.percentile(100)))
    many = f"{streams.PROCESSES} streams"
    return [
        Row(target.name, f"{many}, to take them on", "", found.gathering * 1000),
        *(Row(target.name, f"{many}, entry to update, {name}", f"{delay * 1000:,.0f} ms") for name, delay in delays),
        Row(target.name, f"{many}, first to last update", f"{found.spread * 1000:,.0f} ms", found.cpu * 1000),
        Row(target.name, f"{many}, agent memory before", f"{found.idle:.0f} MiB"),
        Row(target.name, f"{many}, agent memory with all", f"{found.held:.0f} MiB"),
        Row(target.name, f"{many}, agent memory after", f"{found.after:.0f} MiB"),
    ]


async def startup(target: Target, folder: Path, seconds: float) -> list[Row]:
    """From exec to healthy, with keys, database and SVID in place; the median of a few."""
    server = target.make_server(folder)
    agent: spire.Agent | None = None
    try:
        await asyncio.to_thread(server.start)
        token = await asyncio.to_thread(server.join_token, NODE)
        agent = await asyncio.to_thread(
            lambda: spire.Agent(folder / "agent", server, token=token, program=target.agent)
        )
        await asyncio.to_thread(agent.start)
        return [
            *await restarts(target, "server", server.run, server.socket, seconds),
            *await restarts(target, "agent", agent.run, agent.socket, seconds),
        ]
    finally:
        for program in (agent, server):
            if program is not None and program.run.process is not None:
                program.run.end()


async def restarts(target: Target, name: str, program: spire.Program, socket: str, seconds: float) -> list[Row]:
    """Ends and starts a program again and again, and looks at its memory a second after the last start."""
    walls: list[float] = []
    used: list[float] = []
    pid = 0
    for _ in range(max(3, int(seconds))):
        await asyncio.to_thread(program.end)
        start = time.perf_counter()
        program.start()
        await healthy(socket)
        walls.append(time.perf_counter() - start)
        assert program.process is not None
        pid = program.process.pid
        used.append(cpu_seconds(pid))
    await asyncio.sleep(1)
    wall, cpu = (statistics.median(times) * 1000 for times in (walls, used))
    return [
        Row(target.name, f"{name} restart, exec to healthy", f"{wall:.0f} ms", cpu),
        Row(target.name, f"{name} memory, idle", f"{rss_mib(pid):.0f} MiB"),
    ]


async def healthy(socket: str) -> None:
    """Returns when the program behind the socket says SERVING."""
    from generated.grpc.health.v1 import health_pb2
    from operations.errors import SpireError
    from transport.client import Channel

    end = time.perf_counter() + spire.PATIENCE
    while time.perf_counter() < end:
        channel = Channel.unix(socket)
        try:
            answer = await channel.unary(
                "/grpc.health.v1.Health/Check",
                health_pb2.HealthCheckRequest(),
                health_pb2.HealthCheckResponse,
                timeout=5,
            )
            if answer.status == health_pb2.HealthCheckResponse.SERVING:
                return
        except SpireError:
            pass  # Not listening yet.
        finally:
            await channel.close()
        await asyncio.sleep(0.005)
    raise TimeoutError(f"no healthy server on {socket}")


SCENARIOS: dict[str, Callable[[Target, Path, float], Awaitable[list[Row]]]] = {
    "svid": svid,
    "fetch": fetch,
    "stream": stream,
    "startup": startup,
}


def table(rows: list[Row]) -> str:
    """Rows side by side, with the ratio of CPU to the other implementation's row of the same name."""
    other = {row.name: row.cpu_ms for row in rows if row.target.startswith("other")}
    lines = [f"{'':38} {'':14} {'rate or time':>14} {'CPU ms':>9} {'CPU / other':>12}"]
    for row in sorted(rows, key=lambda row: [each.name for each in rows].index(row.name)):
        cpu = "" if row.cpu_ms is None else f"{row.cpu_ms:.3f}"
        beside = other.get(row.name)
        ratio = f"{row.cpu_ms / beside:.2f}" if row.cpu_ms and beside and not row.target.startswith("other") else ""
        lines.append(f"{row.name:38} {row.target:14} {row.rate:>14} {cpu:>9} {ratio:>12}")
    return "\n".join(lines)


async def main() -> None:
    parser = argparse.ArgumentParser(prog="bench", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("scenario", nargs="*", choices=[*SCENARIOS, []], help="some of these; all by default")
    parser.add_argument("--seconds", type=float, default=5.0, help="how long each row is measured")
    chosen = parser.parse_args()
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="spire-bench.") as scratch:
        folder = Path(scratch)
        found = targets(folder)
        for name in chosen.scenario or SCENARIOS:
            for number, target in enumerate(found):
                print(f"measuring {name}: {target.name}", flush=True)
                rows += await SCENARIOS[name](target, folder / f"{name}-{number}", chosen.seconds)
        if not chosen.scenario or "svid" in chosen.scenario:
            rows += await asyncio.to_thread(token_rows, folder, rows, chosen.seconds)
    print(table(rows))


def token_rows(folder: Path, rows: list[Row], seconds: float) -> list[Row]:
    """The token's own signature rate, that through the key manager, and the share of the first that reached an SVID."""
    hsm = softhsm.SoftHsm.create(folder / "raw-token")
    configuration = Configuration(
        module_path=softhsm.MODULE,
        token_label=hsm.label,
        pin_file=str(hsm.pin_file),
        namespace="sign-rate",
        keys_path=str(folder / "raw-keys.json"),
    )
    with hsm.installed():
        rates = sign_rate.measure(configuration, KeyType.EC_P256, seconds)
    found = [Row("SoftHSM", f"{rate.what}, P-256", f"{rate.per_second:,.0f}/s", rate.cpu / 1000) for rate in rates]
    name = f"X509-SVID, batch of {BATCHES[-1]}"
    reached = next(row for row in rows if row.target == "ours, pkcs11" and row.name == name)
    share = float(reached.rate.removesuffix("/s").replace(",", "")) / rates[0].per_second
    return [*found, Row("SoftHSM", "share of C_Sign that reaches an SVID", f"{share:.0%}")]


if __name__ == "__main__":
    asyncio.run(main())
