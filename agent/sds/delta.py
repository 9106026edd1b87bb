"""One client's conversation by the incremental variant of the xDS transport protocol: what has changed, by name.

SPIRE answers Unimplemented here. An Envoy that is configured so (DELTA_GRPC) works with ours: a stream is told of the
secrets that changed, and one that does not exist yet is removed rather than the stream ended, so that it comes as soon
as it is there.
"""

from __future__ import annotations

from typing import Final

from agent.config.file import Sds
from agent.sds.asked import EVERYTHING, WILDCARD, checked_names, checked_type, validator_of
from agent.sds.secrets import Resource, Secrets, Validator
from agent.sds.stream import new_nonce
from agent.sds.telling import Telling
from generated.envoy.service.discovery.v3 import discovery_pb2

_LONGEST_VERSION: Final = 64


class DeltaConversation:
    """Hears requests and learns of secrets, in any order; `answer` says what is to be sent then.

    A response is due for names that are subscribed to anew, even when the client has them, and when one of the secrets
    subscribed to has another version than the client was last told of, whether it took that over or not.
    """

    def __init__(self, settings: Sds, telling: Telling) -> None:
        self._settings = settings
        self._telling = telling
        self._secrets: Secrets | None = None
        self._names: frozenset[str] | None = None
        self._waiting: frozenset[str] = frozenset()  # names that an answer is owed for, be it that there is none
        self._known: dict[str, str] = {}  # the versions that the client was told of, by name
        self._type_url = ""
        self._validator = Validator.SPIFFE
        self._due = False
        self._count = 0

    def learn(self, secrets: Secrets) -> None:
        self._secrets = secrets
        self._due = True

    def hear(self, request: discovery_pb2.DeltaDiscoveryRequest) -> None:
        """Raises RpcError for what no client needs to ask."""
        added = checked_names(request.resource_names_subscribe)
        removed = checked_names(request.resource_names_unsubscribe)
        self._telling.received(added, nonce=request.response_nonce)
        self._telling.rejected(request, added or self._names or ())
        self._type_url = checked_type(request.type_url)
        if self._names is None:
            self._validator = validator_of(request.node, self._settings)
            # A client that begins without a name wants all.
            self._names = added = added or EVERYTHING
            self._known = _versions(request, added)
            self._waiting = added - self._known.keys()
        else:
            self._names = checked_names((self._names | added) - removed)
            self._known = {name: version for name, version in self._known.items() if name not in added | removed}
            self._waiting = (self._waiting | added) & self._names
        self._due = self._due or bool(added or removed)

    def answer(self) -> bytes | None:
        """Raises RpcError when the client cannot have what it asks for, whoever it is."""
        if not self._due or self._secrets is None or self._names is None:
            return None
        self._due = False
        found = self._found(self._secrets, self._names)
        changed = [each for each in found.values() if self._known.get(each.name) != each.version]
        gone = sorted((self._known.keys() | self._waiting) - found.keys() - EVERYTHING)
        self._known = {name: each.version for name, each in found.items()}
        self._waiting = frozenset()
        if not changed and not gone:
            return None
        self._count += 1
        head = discovery_pb2.DeltaDiscoveryResponse(
            system_version_info=str(self._count), type_url=self._type_url, nonce=new_nonce(), removed_resources=gone
        )
        self._telling.sending(len(changed), version_info=head.system_version_info, nonce=head.nonce)
        return b"".join((head.SerializeToString(), *(each.framed_delta for each in changed)))

    def _found(self, secrets: Secrets, names: frozenset[str]) -> dict[str, Resource]:
        """Those of the names that there are secrets of."""
        offers = secrets.offers(self._validator)
        found = {name: offers[name].make() for name in sorted(names & offers.keys())}
        for each in secrets.all(self._validator) if WILDCARD in names else ():
            found.setdefault(each.name, each)
        return found


def _versions(request: discovery_pb2.DeltaDiscoveryRequest, names: frozenset[str]) -> dict[str, str]:
    """What the client has of these names from an earlier stream."""
    told = request.initial_resource_versions
    everything = WILDCARD in names
    return {name: told[name][:_LONGEST_VERSION] for name in checked_names(told) if everything or name in names}
