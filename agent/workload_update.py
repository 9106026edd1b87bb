"""What a workload is given: its identities and the bundles to verify others with, serialised once for all streams."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from agent.bundle_set import jwt_authorities, x509_authorities
from agent.entries import Entry, without_duplicate_hints
from generated.spiffe.workload import workload_pb2
from identity.bundles import Bundle

_OVERHEAD = 512  # of an SVID in a response, with its SPIFFE ID and hint


@dataclass(frozen=True, slots=True)
class X509Svid:
    """A workload's certificate chain (DER, leaf first) and key (DER PKCS #8). Times are Unix seconds."""

    spiffe_id: str
    chain: tuple[bytes, ...]
    private_key: bytes
    expires_at: float
    rotate_at: float


@dataclass(frozen=True, slots=True)
class X509Identity:
    entry: Entry
    svid: X509Svid


@dataclass(frozen=True)
class WorkloadUpdate:
    """The state of affairs for one set of selectors.

    `all_identities` are sorted by entry id. `complete` says that every entry of the
    workload has an SVID that is in force.
    The responses are the Workload API's messages, serialised.
    """

    all_identities: Sequence[X509Identity]
    bundle: Bundle
    federated: Mapping[str, Bundle]
    complete: bool

    @cached_property
    def identities(self) -> Sequence[X509Identity]:
        """Those that a workload is given: of several with the same hint, the oldest entry's."""
        entries = without_duplicate_hints(identity.entry for identity in self.all_identities)
        if len(entries) == len(self.all_identities):
            return self.all_identities
        kept = {entry.id for entry in entries}
        return [identity for identity in self.all_identities if identity.entry.id in kept]

    @cached_property
    def expires_at(self) -> float:
        """When the first of its SVIDs runs out, in Unix seconds."""
        return min((identity.svid.expires_at for identity in self.all_identities), default=float("inf"))

    @cached_property
    def size(self) -> int:
        """Roughly the bytes that a response with all of it takes, the own bundle beside each SVID."""
        each = _OVERHEAD + len(x509_authorities(self.bundle))
        svids = (identity.svid for identity in self.all_identities)
        federated = sum(len(x509_authorities(bundle)) for bundle in self.federated.values())
        return federated + sum(each + len(svid.private_key) + sum(map(len, svid.chain)) for svid in svids)

    @property
    def bundles(self) -> list[Bundle]:
        """The trust domain's own bundle first."""
        return [self.bundle, *self.federated.values()]

    @cached_property
    def x509_svid_response(self) -> bytes:
        own = x509_authorities(self.bundle)
        response = workload_pb2.X509SVIDResponse(
            svids=[
                workload_pb2.X509SVID(
                    spiffe_id=identity.entry.spiffe_id,
                    x509_svid=b"".join(identity.svid.chain),
                    x509_svid_key=identity.svid.private_key,
                    bundle=own,
                    hint=identity.entry.hint,
                )
                for identity in self.identities
            ],
            federated_bundles={each.trust_domain.id: x509_authorities(each) for each in self.federated.values()},
        )
        return response.SerializeToString(deterministic=True)

    @cached_property
    def x509_bundles_response(self) -> bytes:
        bundles = {each.trust_domain.id: x509_authorities(each) for each in self.bundles}
        return workload_pb2.X509BundlesResponse(bundles=bundles).SerializeToString(deterministic=True)

    @cached_property
    def jwt_bundles_response(self) -> bytes:
        bundles = {each.trust_domain.id: jwt_authorities(each) for each in self.bundles}
        return workload_pb2.JWTBundlesResponse(bundles=bundles).SerializeToString(deterministic=True)
