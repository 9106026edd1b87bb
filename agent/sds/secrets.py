"""What a workload is given, as Envoy's secrets: certificates with their keys, and validation contexts.

Of the streams that share an update all share its secrets, each of which is serialised once, when somebody asks for it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import cached_property, partial
from weakref import WeakValueDictionary

from google.protobuf import any_pb2
from google.protobuf.message import Message

from agent.config.file import Sds
from agent.workload_update import WorkloadUpdate, X509Identity
from generated.envoy.config.core.v3 import base_pb2, extension_pb2
from generated.envoy.extensions.transport_sockets.tls.v3 import (
    common_pb2,
    secret_pb2,
    tls_spiffe_validator_config_pb2,
)
from generated.envoy.service.discovery.v3 import discovery_pb2
from identity import pem
from identity.bundles import Bundle, to_pem
from operations.quoting import quote
from transport.status import Code, RpcError

SPIFFE_VALIDATOR = "envoy.tls.cert_validator.spiffe"


class Validator(Enum):
    """What Envoy verifies its peers by.

    Its SPIFFE validator takes the bundle of the trust domain that a peer names. By a root CA any peer below it is good,
    whichever trust domain it names: for Envoys that have no such validator, and where an operator wants it so.
    """

    SPIFFE = "SPIFFE"
    ROOT_CA = "root CA"


@dataclass(frozen=True, eq=False)
class Resource:
    """One secret. `version` tells it from another of the same name, and nothing of its private key.

    `framed` and `framed_delta` are responses with this and nothing else in them, serialised. Serialised messages one
    after the other are one message with the fields of all (protobuf's encoding guide, "Last One Wins"), so a response
    is put together without touching its resources again.
    """

    name: str
    version: str
    packed: any_pb2.Any

    @cached_property
    def framed(self) -> bytes:
        return discovery_pb2.DiscoveryResponse(resources=[self.packed]).SerializeToString()

    @cached_property
    def framed_delta(self) -> bytes:
        resource = discovery_pb2.Resource(name=self.name, version=self.version, resource=self.packed)
        return discovery_pb2.DeltaDiscoveryResponse(resources=[resource]).SerializeToString()


@dataclass(frozen=True, slots=True)
class Offer:
    """A secret by one of its names. Those with the same `subject` are of one certificate or bundle, the best first."""

    rank: int
    subject: str
    make: Callable[[], Resource]


class Secrets:
    """The secrets of one update."""

    def __init__(self, update: WorkloadUpdate, settings: Sds) -> None:
        self._update = update
        self._settings = settings
        self._offers: dict[Validator, Mapping[str, Offer]] = {}
        self._made: dict[tuple[str, str, Validator | None], Resource] = {}

    def all(self, validator: Validator) -> Sequence[Resource]:
        """Bundles by their trust domain IDs, the agent's own first, and certificates by their SPIFFE IDs."""
        bundles = [self._validation(each, each.trust_domain.id, validator) for each in self._update.bundles]
        return bundles + [self._certificate(each) for each in self._update.all_identities]

    def offers(self, validator: Validator) -> Mapping[str, Offer]:
        """What there is, by each name that it can be asked for.

        Where a configured name is that of something else too, the earlier of the two has it.
        """
        known = self._offers.get(validator)
        if known is None:
            known = self._offers[validator] = {}
            for rank, (name, subject, make) in enumerate(self._each(validator)):
                known.setdefault(name, Offer(rank, subject, make))
        return known

    def _each(self, validator: Validator) -> Iterator[tuple[str, str, Callable[[], Resource]]]:
        """Names, subjects and how to make them."""
        settings = self._settings
        own, *federated = self._update.bundles
        for name in (own.trust_domain.id, settings.default_bundle_name):
            yield name, own.trust_domain.id, partial(self._validation, own, name, validator)
        yield settings.default_all_bundles_name, own.trust_domain.id, partial(self._validation_of_all, validator)
        for bundle in federated:
            name = bundle.trust_domain.id
            yield name, name, partial(self._validation, bundle, name, validator)
        for index, identity in enumerate(self._update.all_identities):
            yield identity.entry.spiffe_id, identity.entry.id, partial(self._certificate, identity)
            if index == 0:
                name = settings.default_svid_name
                yield name, identity.entry.id, partial(self._certificate, identity, name)

    def _certificate(self, identity: X509Identity, name: str = "") -> Resource:
        name = name or identity.entry.spiffe_id

        def make() -> Resource:
            chain = to_pem(identity.svid.chain)
            certificate = common_pb2.TlsCertificate(
                certificate_chain=_inline(chain), private_key=_inline(pem.private_key(identity.svid.private_key))
            )
            return _resource(secret_pb2.Secret(name=name, tls_certificate=certificate), chain.encode())

        return self._once((name, identity.entry.id, None), make)

    def _validation(self, bundle: Bundle, name: str, validator: Validator) -> Resource:
        def make() -> Resource:
            if validator is Validator.SPIFFE:
                return _spiffe_validation(name, [bundle])
            authorities = bundle.to_pem()
            context = common_pb2.CertificateValidationContext(trusted_ca=_inline(authorities))
            return _resource(secret_pb2.Secret(name=name, validation_context=context), authorities.encode())

        return self._once((name, bundle.trust_domain.id, validator), make)

    def _validation_of_all(self, validator: Validator) -> Resource:
        """Of all trust domains at once. Raises RpcError for an Envoy that verifies by a root CA alone."""
        if validator is not Validator.SPIFFE:
            raise RpcError(
                Code.INTERNAL,
                'unable to use "SPIFFE validator" on Envoy below 1.17, or with disable_spiffe_cert_validation: '
                f"ask for {quote(self._settings.default_bundle_name)}",
            )
        name = self._settings.default_all_bundles_name

        def make() -> Resource:
            return _spiffe_validation(name, sorted(self._update.bundles, key=lambda each: each.trust_domain.name))

        return self._once((name, "", validator), make)

    def _once(self, key: tuple[str, str, Validator | None], make: Callable[[], Resource]) -> Resource:
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]


class SharedSecrets:
    """The secrets of each update that some stream holds."""

    def __init__(self, settings: Sds) -> None:
        self._settings = settings
        # By identity: an update is kept by its secrets, so no other has its id as long as they are here.
        self._known: WeakValueDictionary[int, Secrets] = WeakValueDictionary()

    def of(self, update: WorkloadUpdate) -> Secrets:
        known = self._known.get(id(update))
        if known is None:
            known = self._known[id(update)] = Secrets(update, self._settings)
        return known


def _spiffe_validation(name: str, bundles: Iterable[Bundle]) -> Resource:
    config = tls_spiffe_validator_config_pb2.SPIFFECertValidatorConfig()
    for bundle in bundles:
        config.trust_domains.add(name=bundle.trust_domain.name, trust_bundle=_inline(bundle.to_pem()))
    extension = extension_pb2.TypedExtensionConfig(name=SPIFFE_VALIDATOR, typed_config=_packed(config))
    context = common_pb2.CertificateValidationContext(custom_validator_config=extension)
    return _resource(secret_pb2.Secret(name=name, validation_context=context), extension.typed_config.value)


def _resource(secret: secret_pb2.Secret, distinguishing: bytes) -> Resource:
    return Resource(secret.name, hashlib.sha256(distinguishing).hexdigest()[:16], _packed(secret))


def _packed(message: Message) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(message)
    return packed


def _inline(text: str) -> base_pb2.DataSource:
    return base_pb2.DataSource(inline_bytes=text.encode())
