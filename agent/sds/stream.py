"""One client's conversation by the xDS transport protocol in its plain form: all that was asked for, at each change."""

from __future__ import annotations

import os
from collections.abc import Sequence

from agent.config.file import Sds
from agent.sds.asked import checked_names, checked_type, select, validator_of
from agent.sds.secrets import Resource, Secrets, Validator
from agent.sds.telling import Telling
from generated.envoy.service.discovery.v3 import discovery_pb2


def new_nonce() -> str:
    return os.urandom(4).hex()


class Conversation:
    """Hears requests and learns of secrets, in any order; `answer` says what is to be sent then.

    A response is due for the first request, when other names are asked for, and when one of the secrets asked for has
    changed; nothing is due for an ACK or a NACK. A version counts the updates that brought something.
    """

    def __init__(self, settings: Sds, telling: Telling) -> None:
        self._settings = settings
        self._telling = telling
        self._secrets: Secrets | None = None
        self._names: frozenset[str] | None = None
        self._type_url = ""
        self._validator = Validator.SPIFFE
        self._version = 0
        self._nonce = ""
        self._due = False
        self._updated = False
        self._sent: list[tuple[str, str]] | None = None  # names and versions, of the names asked for now

    def learn(self, secrets: Secrets) -> None:
        self._secrets = secrets
        self._due = self._updated = True

    def hear(self, request: discovery_pb2.DiscoveryRequest) -> None:
        """Raises RpcError for what no client needs to ask."""
        names = checked_names(request.resource_names)
        self._telling.received(names, version_info=request.version_info, nonce=request.response_nonce)
        self._telling.rejected(request, names)
        if self._nonce:
            if request.response_nonce != self._nonce:
                # It was sent before the client had our last response, which it has yet to speak of.
                self._telling.stale(request.response_nonce, self._nonce)
                return
            if request.version_info != str(self._version):
                self._telling.rolled_back(request.version_info, str(self._version))
        if self._names is None or request.HasField("node"):
            self._validator = validator_of(request.node, self._settings)
        self._type_url = checked_type(request.type_url)
        if names != self._names:
            self._names = names
            self._sent = None
            self._due = True

    def answer(self) -> bytes | None:
        """Raises RpcError when the workload may not have what it asks for."""
        if not self._due or self._secrets is None or self._names is None:
            return None
        self._due = False
        resources = select(self._names, self._secrets, self._validator)
        versions = [(each.name, each.version) for each in resources]
        if versions == self._sent:
            return None
        self._sent = versions
        self._version += self._updated
        self._updated = False
        self._nonce = new_nonce()
        head = discovery_pb2.DiscoveryResponse(
            version_info=str(self._version), type_url=self._type_url, nonce=self._nonce
        )
        self._telling.sending(len(resources), version_info=head.version_info, nonce=head.nonce)
        return b"".join((head.SerializeToString(), *(each.framed for each in resources)))


def fetched(request: discovery_pb2.DiscoveryRequest, resources: Sequence[Resource]) -> bytes:
    """The response to a request that stands alone: it has no version and no nonce."""
    head = discovery_pb2.DiscoveryResponse(type_url=request.type_url)
    return b"".join((head.SerializeToString(), *(each.framed for each in resources)))
