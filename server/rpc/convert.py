"""Between the API's messages and the records of the datastore. What comes in is checked; texts are SPIRE's."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from generated.spire.api.types import agent_pb2, entry_pb2, federateswith_pb2, selector_pb2, x509svid_pb2
from identity.selectors import Selector
from identity.spiffeid import SpiffeId, TrustDomain
from operations.errors import InvalidArgument
from server.ca.dns import check_dns_name
from server.datastore.records import AttestedNode, ByFederatesWith, BySelectors, Entry, Match
from server.rpc import ids

MAX_HINT = 1024

_MATCHES = (Match.EXACT, Match.SUBSET, Match.SUPERSET, Match.ANY)


def selectors_from_proto(messages: Iterable[selector_pb2.Selector]) -> tuple[Selector, ...]:
    """Raises InvalidArgument."""
    return tuple(Selector.of(each.type, each.value) for each in messages)


def selectors_to_proto(selectors: Iterable[Selector]) -> list[selector_pb2.Selector]:
    return [selector_pb2.Selector(type=each.type, value=each.value) for each in selectors]


def selectors_text(messages: Iterable[selector_pb2.Selector]) -> str:
    """For logs: `type:value,…`."""
    return ",".join(f"{each.type}:{each.value}" for each in messages)


def selector_match(message: selector_pb2.SelectorMatch) -> BySelectors:
    """Raises InvalidArgument."""
    return BySelectors(selectors_from_proto(message.selectors), _match(message.match))


def federates_with_match(message: federateswith_pb2.FederatesWithMatch) -> ByFederatesWith:
    """Raises InvalidArgument."""
    names = tuple(TrustDomain.parse(each).name for each in message.trust_domains)
    if not names:
        raise InvalidArgument("empty trust domain set")
    return ByFederatesWith(names, _match(message.match))


def match_text(message: selector_pb2.SelectorMatch | federateswith_pb2.FederatesWithMatch) -> str:
    """For logs: the name of the match behaviour, or the number where it has none."""
    value = message.MatchBehavior.DESCRIPTOR.values_by_number.get(message.match)
    return str(message.match) if value is None else value.name


def _match(number: int) -> Match:
    if not 0 <= number < len(_MATCHES):
        raise InvalidArgument(f"unhandled match behavior {number}")
    return _MATCHES[number]


def entry_from_proto(
    trust_domain: TrustDomain, message: entry_pb2.Entry, fields: frozenset[str] | None = None
) -> Entry:
    """A checked record of what `fields` (None: all) of the message say; the other fields are empty.

    Raises InvalidArgument.
    """

    def wanted(field: str) -> bool:
        return fields is None or field in fields

    parent_id = spiffe_id = ""
    if wanted("parent_id"):
        with _Prefix("invalid parent ID"):
            parent_id = str(ids.member(trust_domain, message.parent_id if message.HasField("parent_id") else None))
    if wanted("spiffe_id"):
        with _Prefix("invalid spiffe ID"):
            spiffe_id = str(ids.workload(trust_domain, message.spiffe_id if message.HasField("spiffe_id") else None))
    attributes = message.additional_attributes if wanted("additional_attributes") else None
    return Entry(
        id=message.id,
        parent_id=parent_id,
        spiffe_id=spiffe_id,
        dns_names=_dns_names(message.dns_names) if wanted("dns_names") else (),
        federates_with=_trust_domains(message.federates_with) if wanted("federates_with") else (),
        selectors=_required_selectors(message.selectors) if wanted("selectors") else (),
        hint=_hint(message.hint) if wanted("hint") else "",
        admin=wanted("admin") and message.admin,
        downstream=wanted("downstream") and message.downstream,
        store_svid=wanted("store_svid") and message.store_svid,
        expires_at=message.expires_at if wanted("expires_at") else 0,
        x509_svid_ttl=message.x509_svid_ttl if wanted("x509_svid_ttl") else 0,
        jwt_svid_ttl=message.jwt_svid_ttl if wanted("jwt_svid_ttl") else 0,
        jwt_svid_include_jti=attributes is not None and attributes.jwt_svid_include_jti,
        disable_x509_svid_prefetch=attributes is not None and attributes.disable_x509_svid_prefetch,
    )


class _Prefix:
    """Put a few words in front of an InvalidArgument of the block."""

    def __init__(self, words: str) -> None:
        self._words = words

    def __enter__(self) -> None:
        return None

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if isinstance(error, InvalidArgument):
            raise InvalidArgument(f"{self._words}: {error}") from error


def _dns_names(names: Iterable[str]) -> tuple[str, ...]:
    with _Prefix("invalid DNS name"):
        for name in names:
            check_dns_name(name)
    return tuple(names)


def _trust_domains(names: Iterable[str]) -> tuple[str, ...]:
    with _Prefix("invalid federated trust domain"):
        return tuple(TrustDomain.parse(name).name for name in names)


def _required_selectors(messages: Sequence[selector_pb2.Selector]) -> tuple[Selector, ...]:
    if not messages:
        raise InvalidArgument("selector list is empty")
    return selectors_from_proto(messages)


def _hint(hint: str) -> str:
    if len(hint.encode()) > MAX_HINT:
        raise InvalidArgument(f"hint is too long, max length is {MAX_HINT} characters")
    return hint


def agent_to_proto(node: AttestedNode) -> agent_pb2.Agent:
    return agent_pb2.Agent(
        id=SpiffeId.parse(node.spiffe_id).to_proto(),
        attestation_type=node.attestation_type,
        x509svid_serial_number=node.serial_number,
        x509svid_expires_at=node.expires_at,
        selectors=selectors_to_proto(node.selectors),
        banned=node.banned,
        can_reattest=node.can_reattest,
        agent_version=node.agent_version,
    )


def svid_to_proto(spiffe_id: SpiffeId, chain: Iterable[bytes], expires_at: int) -> x509svid_pb2.X509SVID:
    return x509svid_pb2.X509SVID(id=spiffe_id.to_proto(), cert_chain=chain, expires_at=expires_at)
