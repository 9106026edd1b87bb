"""How the debug commands of server and agent word what they are told."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING

from operations import duration, times

if TYPE_CHECKING:
    from generated.spire.api.agent.debug.v1 import debug_pb2 as agent
    from generated.spire.api.server.debug.v1 import debug_pb2 as server


def seconds(count: int) -> str:
    """`1h2m3s`."""
    return duration.text(timedelta(seconds=count))


def rows(pairs: Iterable[tuple[str, object]], width: int) -> None:
    """Names and values in two columns, the second of them at `width`."""
    for name, value in pairs:
        print(f"  {name + ':':{width}}{value}")


def chain(certificates: Sequence[server.GetInfoResponse.Cert | agent.GetInfoResponse.Cert]) -> None:
    """The SVID's certificates, numbered from the leaf."""
    if certificates:
        print("  SVID Chain:")
    for index, certificate in enumerate(certificates):
        found = certificate.id
        spiffe_id = f"spiffe://{found.trust_domain}{found.path}" if certificate.HasField("id") else "(none)"
        print(f"    [{index}] SPIFFE ID:  {spiffe_id}")
        print(f"        Subject:    {certificate.subject}")
        print(f"        Expires At: {times.rfc3339(certificate.expires_at)}")
