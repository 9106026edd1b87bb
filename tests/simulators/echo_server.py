"""The echo service in a process of its own: `python -m tests.simulators.echo_server SOCKET`.

Prints the port on which it listens with TLS, and ends with its standard input.
"""

from __future__ import annotations

import asyncio
import sys

from tests.simulators.echo import EchoService
from tests.simulators.svids import self_signed
from transport.server import Server
from transport.tls import server_context


async def main(path: str) -> None:
    server = Server(EchoService().router())
    context = server_context(self_signed("spiffe://example.org/spire/server"))
    await server.listen_unix(path, mode=0o700)
    port = await server.listen_tcp("127.0.0.1", 0, lambda: context)
    sys.stdout.write(f"{port}\n")
    sys.stdout.flush()
    await asyncio.to_thread(sys.stdin.read)
    await server.drain(1)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
