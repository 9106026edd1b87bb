"""A client of the Secret Discovery Service, as Envoy is one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from typing import TypeVar

import pytest
from google.protobuf.message import Message

from generated.envoy.config.core.v3 import base_pb2
from generated.envoy.extensions.transport_sockets.tls.v3 import secret_pb2, tls_spiffe_validator_config_pb2
from generated.envoy.service.discovery.v3 import discovery_pb2
from generated.google.rpc import status_pb2
from generated.spiffe.workload import workload_pb2
from tests.simulators.in_process_agent import RunningAgent
from transport.client import Channel
from transport.client_stream import Bidi
from transport.status import Code, RpcError

R = TypeVar("R", bound=Message)

SDS = "/envoy.service.secret.v3.SecretDiscoveryService/"
TYPE = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret"
PATIENCE = 60.0

Response = discovery_pb2.DiscoveryResponse
DeltaResponse = discovery_pb2.DeltaDiscoveryResponse
Secret = secret_pb2.Secret


class SecretStream:
    """StreamSecrets. `last` is the response that the next request speaks of."""

    def __init__(self, stream: Bidi[Response], node: base_pb2.Node | None) -> None:
        self.stream = stream
        self._node = node
        self.last = Response()
        self.accepted = ""

    async def ask(self, *names: str, nonce: str | None = None, error: str = "") -> None:
        """Also the ACK of `last`, or its NACK when there is an `error`."""
        if not error:
            self.accepted = self.last.version_info
        request = discovery_pb2.DiscoveryRequest(
            version_info=self.accepted,
            node=self._node,
            resource_names=names,
            type_url=TYPE,
            response_nonce=self.last.nonce if nonce is None else nonce,
            error_detail=status_pb2.Status(code=Code.INTERNAL, message=error) if error else None,
        )
        self._node = None
        await self.stream.send(request)

    async def next(self) -> Response:
        async with asyncio.timeout(PATIENCE):
            response = await self.stream.recv()
        assert response is not None, "the stream has ended"
        self.last = response
        return response

    async def secrets(self) -> dict[str, Secret]:
        return secrets_of(await self.next())


async def nothing_came(agent: RunningAgent, stream: Bidi[R]) -> bool:
    """Nothing is on its way to the stream: calls that take longer, on the same connection, are answered first."""
    request = workload_pb2.ValidateJWTSVIDRequest(audience="x", svid="nonsense")
    for _ in range(2):
        with pytest.raises(RpcError, match="token"):
            await agent.ask("ValidateJWTSVID", request, workload_pb2.ValidateJWTSVIDResponse)
    receiving = asyncio.ensure_future(stream.recv())
    await asyncio.sleep(0)
    came = receiving.done()
    receiving.cancel()
    await asyncio.gather(receiving, return_exceptions=True)
    return not came


@asynccontextmanager
async def secret_stream(channel: Channel, node: base_pb2.Node | None = None) -> AsyncGenerator[SecretStream, None]:
    async with channel.bidi(SDS + "StreamSecrets", Response) as stream:
        yield SecretStream(stream, node)


async def fetch(channel: Channel, *names: str, node: base_pb2.Node | None = None) -> dict[str, Secret]:
    request = discovery_pb2.DiscoveryRequest(resource_names=names, node=node, type_url=TYPE)
    response = await channel.unary(SDS + "FetchSecrets", request, Response, timeout=PATIENCE)
    assert (response.version_info, response.nonce, response.type_url) == ("", "", TYPE)
    return secrets_of(response)


def secrets_of(response: Response) -> dict[str, Secret]:
    """The secrets by name, which no two of them share."""
    secrets = [Secret.FromString(each.value) for each in response.resources]
    assert {each.type_url for each in response.resources} <= {TYPE}
    assert len({each.name for each in secrets}) == len(secrets)
    return {each.name: each for each in secrets}


def chain_and_key(secret: Secret) -> tuple[bytes, bytes]:
    """Both PEM."""
    certificate = secret.tls_certificate
    return certificate.certificate_chain.inline_bytes, certificate.private_key.inline_bytes


def root_ca(secret: Secret) -> bytes:
    """PEM, of a context without any other validator."""
    assert not secret.validation_context.HasField("custom_validator_config")
    return secret.validation_context.trusted_ca.inline_bytes


def trust_domains(secret: Secret) -> Mapping[str, bytes]:
    """The bundles of the SPIFFE validator: PEM by trust domain name."""
    context = secret.validation_context
    assert not context.HasField("trusted_ca")
    assert context.custom_validator_config.name == "envoy.tls.cert_validator.spiffe"
    config = tls_spiffe_validator_config_pb2.SPIFFECertValidatorConfig()
    assert context.custom_validator_config.typed_config.Unpack(config)
    return {each.name: each.trust_bundle.inline_bytes for each in config.trust_domains}


def envoy(
    version: tuple[int, int] | None = None, *, disable_spiffe_cert_validation: bool | str | float | None = None
) -> base_pb2.Node:
    node = base_pb2.Node()
    if version is not None:
        node.user_agent_build_version.version.major_number, node.user_agent_build_version.version.minor_number = version
    if disable_spiffe_cert_validation is not None:
        node.metadata["disable_spiffe_cert_validation"] = disable_spiffe_cert_validation
    return node
