"""`go tool pprof` reads what a running program gives."""

from __future__ import annotations

import subprocess

import pytest

from operations import profiling
from operations.profiling_settings import Profiling
from tests.simulators.spire import free_port
from transport.endpoints import serve_profiles

pytestmark = pytest.mark.interop


@pytest.mark.parametrize(
    ("name", "said"), [("profile?seconds=1", "cpu"), ("heap?seconds=1", "inuse_space"), ("goroutine", "goroutine")]
)
async def test_go_tool_pprof(name: str, said: str) -> None:
    import asyncio

    port = free_port()
    server = await serve_profiles(profiling.Profiler(Profiling(port, 0, ()), "server").handler(), port, 300)
    url = f"http://localhost:{port}/debug/pprof/{name}"
    try:
        done = await asyncio.to_thread(
            subprocess.run,
            ["go", "tool", "pprof", "-top", url],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
    finally:
        await server.close()
    assert done.returncode == 0, done.stderr
    assert f"Type: {said}" in done.stdout
