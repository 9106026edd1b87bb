"""The node's certificate and key from a SPIFFE Workload API: another agent's on the same node."""

from __future__ import annotations

from contextlib import aclosing
from urllib.parse import urlsplit

from generated.spiffe.workload import workload_pb2
from operations.errors import InvalidArgument, TemporarilyUnavailable
from operations.quoting import quote
from transport.client import Channel
from transport.status import RpcError

_FETCH = "/SpiffeWorkloadAPI/FetchX509SVID"
_HEADER = {"workload.spiffe.io": "true"}
_TIMEOUT = 30.0


def socket_path(address: str) -> str:
    """The path in a Workload API address, `unix:///path` (SPIFFE Workload Endpoint, 4). Raises InvalidArgument."""
    parts = urlsplit(address)
    if parts.scheme != "unix" or parts.netloc or not parts.path.startswith("/"):
        raise InvalidArgument(f"spiffe_endpoint_socket {quote(address)} cannot be used: give it as unix:///path")
    return parts.path


async def fetch(address: str) -> tuple[list[bytes], bytes]:
    """The default X509-SVID: its chain, DER, leaf first, and its key, DER PKCS #8.

    Raises TemporarilyUnavailable when there is none now, InvalidArgument for one that cannot be read.
    """
    async with Channel.unix(socket_path(address)) as channel:
        stream = channel.server_stream(
            _FETCH, workload_pb2.X509SVIDRequest(), workload_pb2.X509SVIDResponse, timeout=_TIMEOUT, metadata=_HEADER
        )
        try:
            async with aclosing(stream):
                async for response in stream:
                    if response.svids:
                        return _split(response.svids[0].x509_svid), response.svids[0].x509_svid_key
                    break
        except RpcError as error:
            reason = f"unable to fetch SVID from workload API: {error.message}"
            raise TemporarilyUnavailable(reason) from error
    raise TemporarilyUnavailable("unable to fetch SVID from workload API: it has none for this agent")


def _split(data: bytes) -> list[bytes]:
    """DER certificates that stand one after the other; only their lengths are read (X.690, 8.1.3)."""
    certificates: list[bytes] = []
    while data:
        octets = data[1] & 0x7F if len(data) > 1 and data[1] & 0x80 else 0
        length = int.from_bytes(data[2 : 2 + octets]) if octets else int.from_bytes(data[1:2])
        end = 2 + octets + length
        if end > len(data):
            raise InvalidArgument("the SVID from the workload API is cut short")
        certificates.append(data[:end])
        data = data[end:]
    return certificates
