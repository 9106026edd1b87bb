"""Whatever comes in whatever order: a client that takes in what it is sent has what it asks for, as it is now."""

from __future__ import annotations

import time

from hypothesis import given, settings
from hypothesis import strategies as st

from agent.config.file import Sds
from agent.entries import Entry
from agent.sds.delta import DeltaConversation
from agent.sds.secrets import Secrets, Validator
from agent.sds.stream import Conversation
from agent.sds.telling import Telling
from agent.workload_update import WorkloadUpdate, X509Identity, X509Svid
from generated.envoy.service.discovery.v3 import discovery_pb2
from identity.bundles import Bundle, X509Authority
from identity.spiffeid import TrustDomain
from tests.simulators import envoy as sds
from transport.peer import Peer

OWN = TrustDomain("example.org")
OTHER = TrustDomain("other.org")
IDS = [f"{OWN.id}/a", f"{OWN.id}/b"]

Held = dict[str, bytes]
"""Serialised secrets by name."""

# The entries that there are, each with its SVID's generation; the generation of our bundle, and of the other's if any.
States = st.tuples(
    st.dictionaries(st.sampled_from(IDS), st.integers(1, 2)), st.integers(1, 2), st.none() | st.integers(1, 2)
)
Names = st.lists(st.sampled_from(["default", "ROOTCA", *IDS, OTHER.id, "strange"]), unique=True, max_size=4)
State = tuple[dict[str, int], int, int | None]


def secrets_of(state: State) -> Secrets:
    entries, own, other = state
    identities = [
        X509Identity(
            Entry(spiffe_id, spiffe_id, frozenset()),
            X509Svid(spiffe_id, (b"%d of %s" % (number, spiffe_id.encode()),), b"key", time.time() + 60, 0),
        )
        for spiffe_id, number in sorted(entries.items())
    ]
    federated = {} if other is None else {OTHER.name: bundle(OTHER, other)}
    return Secrets(WorkloadUpdate(identities, bundle(OWN, own), federated, complete=True), Sds())


def bundle(trust_domain: TrustDomain, number: int) -> Bundle:
    return Bundle(trust_domain, (X509Authority(b"%d of %s" % (number, trust_domain.name.encode())),))


def expected(secrets: Secrets, names: frozenset[str]) -> Held:
    """By the offers, which other tests hold against what is to be offered."""
    offers = secrets.offers(Validator.SPIFFE)
    return {name: offers[name].make().packed.value for name in names & offers.keys()}


def fits(secrets: Secrets, names: frozenset[str]) -> bool:
    """Whether the plain variant answers: each is there, and no two are the same."""
    offers = secrets.offers(Validator.SPIFFE)
    subjects = [offers[name].subject for name in names if name in offers]
    return len(subjects) == len(names) and len(set(subjects)) == len(subjects)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.one_of(States, Names), max_size=12))
def test_plain(events: list[State | list[str]]) -> None:
    conversation = Conversation(Sds(), Telling("StreamSecrets", Peer("test")))
    secrets: Secrets | None = None
    names: frozenset[str] | None = None
    last = sds.Response()
    held: Held = {}

    def ask(wanted: frozenset[str]) -> None:
        conversation.hear(
            discovery_pb2.DiscoveryRequest(
                resource_names=wanted, version_info=last.version_info, response_nonce=last.nonce
            )
        )

    for event in events:
        if isinstance(event, tuple):
            fresh = secrets_of(event)
            if names is not None and not fits(fresh, names):
                continue
            secrets = fresh
            conversation.learn(secrets)
        else:
            wanted = frozenset(event)
            if not wanted or (secrets is not None and not fits(secrets, wanted)):
                continue
            names = wanted
            ask(names)
        answer = conversation.answer() if secrets is None or names is None or fits(secrets, names) else None
        if answer is not None and names is not None:
            last = sds.Response.FromString(answer)
            held = {name: each.SerializeToString() for name, each in sds.secrets_of(last).items()}
            ask(names)
            assert conversation.answer() is None, "an ACK is not answered"
        if secrets is not None and names is not None and fits(secrets, names):
            assert held == expected(secrets, names)


class Incremental:
    """A client of the incremental variant, on one stream after the other."""

    def __init__(self) -> None:
        self.names: frozenset[str] | None = None
        self.held: Held = {}
        self._versions: dict[str, str] = {}
        self._telling = Telling("DeltaSecrets", Peer("test"))
        self._conversation = DeltaConversation(Sds(), self._telling)

    def learn(self, secrets: Secrets) -> None:
        self._conversation.learn(secrets)

    def ask(self, added: frozenset[str], removed: frozenset[str]) -> None:
        first = self.names is None
        if first and not added:
            return  # which would be for everything
        self.names = added if self.names is None else (self.names | added) - removed
        for name in self.held.keys() - self.names:
            del self.held[name], self._versions[name]
        request = discovery_pb2.DeltaDiscoveryRequest(
            resource_names_subscribe=added, resource_names_unsubscribe=() if first else removed
        )
        self._conversation.hear(request)

    def come_back(self, secrets: Secrets) -> None:
        """On a new stream, with what there is from the one before."""
        if self.names:
            self._conversation = DeltaConversation(Sds(), self._telling)
            self._conversation.learn(secrets)
            request = discovery_pb2.DeltaDiscoveryRequest(
                resource_names_subscribe=self.names, initial_resource_versions=self._versions
            )
            self._conversation.hear(request)

    def read(self) -> None:
        response = sds.DeltaResponse.FromString(self._conversation.answer() or b"")
        for each in response.resources:
            self.held[each.name], self._versions[each.name] = each.resource.value, each.version
        for name in response.removed_resources:
            self.held.pop(name, None)
            self._versions.pop(name, None)
        assert self._conversation.answer() is None


@settings(max_examples=300, deadline=None)
@given(st.lists(st.one_of(States, st.tuples(Names, Names)), max_size=12), st.booleans())
def test_incremental(events: list[State | tuple[list[str], list[str]]], forgetful: bool) -> None:
    """`forgetful` clients lose their stream now and again."""
    client = Incremental()
    secrets: Secrets | None = None
    for event in events:
        if len(event) == 3:
            secrets = secrets_of(event)
            if forgetful:
                client.come_back(secrets)
            client.learn(secrets)
        else:
            client.ask(*map(frozenset, event))
        client.read()
        if secrets is not None and client.names is not None:
            assert client.held == expected(secrets, client.names)
