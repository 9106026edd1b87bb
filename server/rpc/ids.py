"""SPIFFE IDs of requests, each held to the namespace its field is for. All raise InvalidArgument."""

from __future__ import annotations

from collections.abc import Callable

from generated.spire.api.types import spiffeid_pb2
from identity import spiffeid
from identity.spiffeid import SpiffeId, TrustDomain
from operations.errors import InvalidArgument


def agent(trust_domain: TrustDomain, message: spiffeid_pb2.SPIFFEID | None) -> SpiffeId:
    return _checked(trust_domain, message, spiffeid.require_agent)


def member(trust_domain: TrustDomain, message: spiffeid_pb2.SPIFFEID | None) -> SpiffeId:
    return _checked(trust_domain, message, spiffeid.require_member)


def workload(trust_domain: TrustDomain, message: spiffeid_pb2.SPIFFEID | None) -> SpiffeId:
    return _checked(trust_domain, message, spiffeid.require_workload)


def _checked(
    trust_domain: TrustDomain,
    message: spiffeid_pb2.SPIFFEID | None,
    require: Callable[[TrustDomain, SpiffeId], None],
) -> SpiffeId:
    if message is None:
        raise InvalidArgument("request must specify SPIFFE ID")
    spiffe_id = SpiffeId.from_proto(message)
    require(trust_domain, spiffe_id)
    return spiffe_id
