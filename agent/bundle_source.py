"""The trust domain's bundle from another Workload API, such as that of the agent above a nested one."""

from __future__ import annotations

from agent.bundle_address import parse_address
from generated.spiffe.workload import workload_pb2
from identity import der
from identity.spiffeid import TrustDomain
from operations.errors import InvalidArgument, TemporarilyUnavailable
from transport.client import Channel
from transport.status import RpcError

TIMEOUT = 60.0
"""Seconds for one try, as in SPIRE."""

_METHOD = "/SpiffeWorkloadAPI/FetchX509Bundles"
_HEADER = {"workload.spiffe.io": "true"}


async def workload_api_bundle(address: str, trust_domain: TrustDomain) -> tuple[bytes, ...]:
    """The X.509 authorities (DER) of the trust domain, as the Workload API at the address has them now.

    Raises TemporarilyUnavailable while it has none, InvalidArgument for what is no bundle.
    """
    response = await _first_response(address)
    found = response.bundles.get(trust_domain.id) or response.bundles.get(trust_domain.name)
    if not found:
        raise TemporarilyUnavailable(
            f'SPIFFE Workload API {address} did not provide a trust bundle for trust domain "{trust_domain.name}": '
            "check trust_bundle_spiffe_workload_api, and the entry of this agent there"
        )
    try:
        authorities = tuple(der.split(found))
        for authority in authorities:
            der.certificate(authority)
    except InvalidArgument as error:
        raise InvalidArgument(f"could not parse the trust bundle of SPIFFE Workload API {address}: {error}") from error
    return authorities


async def _first_response(address: str) -> workload_pb2.X509BundlesResponse:
    place = parse_address(address)
    channel = Channel.unix(place) if isinstance(place, str) else Channel.plain(*place)
    stream = channel.server_stream(
        _METHOD,
        workload_pb2.X509BundlesRequest(),
        workload_pb2.X509BundlesResponse,
        timeout=TIMEOUT,
        metadata=_HEADER,
    )
    try:
        return await anext(stream)
    except (RpcError, StopAsyncIteration) as error:
        reason = error.message if isinstance(error, RpcError) else "it ended the stream without an answer"
        raise TemporarilyUnavailable(
            f"unable to fetch trust bundle from SPIFFE Workload API {address}: {reason}"
        ) from error
    finally:
        await stream.aclose()
        await channel.close()
