"""UpstreamAuthority plugins: each call is a stream, whose first message is the answer and whose others are updates."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from typing import Final, Generic, TypeVar

from google.protobuf.message import Message

from generated.spire.plugin.server.upstreamauthority.v1 import upstreamauthority_pb2 as api
from generated.spire.plugin.types import jwtkey_pb2, x509certificate_pb2
from identity import der
from identity.bundles import JwtAuthority, X509Authority
from operations import errors
from operations.errors import InvalidArgument
from operations.quoting import quote
from plugins.external.conversation import Conversation
from plugins.external.plugin import Plugin
from plugins.upstreamauthority import JwtKeys, LocalBundle, MintedX509Ca, PublishedJwtKeys, X509Roots
from transport.status import Code, RpcError

R = TypeVar("R", bound=Message)
T = TypeVar("T")

MOST_AUTHORITIES: Final = 1000
LONGEST_CHAIN: Final = 32
PACE: Final = 1.0
"""Seconds between two updates that are taken: each is written to the datastore, and a plugin may send without end."""


class Unsupported(RpcError, errors.Unsupported):
    """The plugin has no such ability."""


class TemporarilyUnavailable(RpcError, errors.TemporarilyUnavailable):
    """The plugin has ended, is slow, or says so itself."""


_KINDS: Final[dict[Code, type[RpcError]]] = {
    Code.UNIMPLEMENTED: Unsupported,
    Code.CANCELLED: TemporarilyUnavailable,
    Code.DEADLINE_EXCEEDED: TemporarilyUnavailable,
    Code.RESOURCE_EXHAUSTED: TemporarilyUnavailable,
    Code.ABORTED: TemporarilyUnavailable,
    Code.UNAVAILABLE: TemporarilyUnavailable,
}


def _of_upstream(error: RpcError) -> RpcError:
    """The same status as one of the errors that callers of an upstream authority know."""
    return _KINDS.get(error.code, RpcError)(error.code, error.message, error.details)


class ExternalUpstreamAuthority:
    SERVICE: Final = "spire.plugin.server.upstreamauthority.v1.UpstreamAuthority"

    def __init__(self, plugin: Plugin) -> None:
        self._plugin = plugin

    @property
    def name(self) -> str:
        return self._plugin.name

    async def mint_x509_ca(self, csr: bytes, preferred_ttl: int) -> MintedX509Ca:
        """Raises RpcError, as one of this module's classes where there is one."""
        request = api.MintX509CARequest(csr=csr, preferred_ttl=preferred_ttl)
        call = _Call(self._plugin, f"/{self.SERVICE}/MintX509CAAndSubscribe", api.MintX509CAResponse)
        chain, roots = await call.first(request, self._minted)
        return MintedX509Ca(chain, roots, _Updates(call, self._roots_of_update))

    async def publish_jwt_key(self, key: JwtAuthority) -> PublishedJwtKeys:
        """Raises RpcError, as one of this module's classes where there is one."""
        message = jwtkey_pb2.JWTKey(
            key_id=key.key_id, public_key=key.public_key, expires_at=key.expires_at, tainted=key.tainted
        )
        request = api.PublishJWTKeyRequest(jwt_key=message)
        call = _Call(self._plugin, f"/{self.SERVICE}/PublishJWTKeyAndSubscribe", api.PublishJWTKeyResponse)
        keys = await call.first(request, self._published)
        return PublishedJwtKeys(keys, _Updates(call, self._published))

    async def subscribe_to_local_bundle(self) -> LocalBundle:
        """Raises RpcError, as one of this module's classes where there is one."""
        call = _Call(self._plugin, f"/{self.SERVICE}/SubscribeToLocalBundle", api.SubscribeToLocalBundleResponse)
        roots, keys = await call.first(api.SubscribeToLocalBundleRequest(), self._bundle)
        return LocalBundle(roots, keys, _Updates(call, self._bundle))

    async def close(self) -> None:
        await self._plugin.close()

    def _minted(self, answer: api.MintX509CAResponse) -> tuple[Sequence[bytes], X509Roots]:
        if len(answer.x509_ca_chain) > LONGEST_CHAIN:
            raise self._fault(f"plugin response has an X.509 CA chain of more than {LONGEST_CHAIN} certificates")
        try:
            chain = [each.der for each in _certificates(answer.x509_ca_chain)]
        except InvalidArgument as error:
            raise self._fault(f"plugin response has malformed X.509 CA chain: {error}") from error
        if not chain:
            raise self._fault("plugin response missing X.509 CA chain")
        return chain, self._roots(answer.upstream_x509_roots)

    def _roots_of_update(self, update: api.MintX509CAResponse) -> X509Roots:
        if update.x509_ca_chain:
            raise self._fault("plugin response has an X.509 CA chain after the first response")
        return self._roots(update.upstream_x509_roots)

    def _published(self, answer: api.PublishJWTKeyResponse) -> JwtKeys:
        return self._keys(answer.upstream_jwt_keys)

    def _bundle(self, answer: api.SubscribeToLocalBundleResponse) -> tuple[X509Roots, JwtKeys]:
        return self._roots(answer.upstream_x509_roots), self._keys(answer.upstream_jwt_keys)

    def _roots(self, roots: Sequence[x509certificate_pb2.X509Certificate]) -> X509Roots:
        self._check_number("upstream X.509 roots", len(roots))
        try:
            found = tuple(_certificates(roots))
        except InvalidArgument as error:
            raise self._fault(f"plugin response has malformed upstream X.509 roots: {error}") from error
        if not found:
            raise self._fault("plugin response missing upstream X.509 roots")
        return found

    def _keys(self, keys: Sequence[jwtkey_pb2.JWTKey]) -> JwtKeys:
        self._check_number("upstream JWT keys", len(keys))
        try:
            return tuple(_jwt_key(each) for each in keys)
        except InvalidArgument as error:
            raise self._fault(f"invalid plugin response: {error}") from error

    def _check_number(self, what: str, number: int) -> None:
        if number > MOST_AUTHORITIES:
            raise self._fault(f"plugin response has {number} {what}, of which a bundle takes {MOST_AUTHORITIES}")

    def _fault(self, message: str) -> RpcError:
        return self._plugin.error(Code.INTERNAL, message)


class _Call(Generic[R]):
    """A call of the plugin that stays open until `close`. Its errors are this module's."""

    def __init__(self, plugin: Plugin, path: str, response: type[R]) -> None:
        self._plugin = plugin
        self._conversation: Conversation[R] = plugin.converse(path, response)

    async def first(self, request: Message, read: Callable[[R], T]) -> T:
        """What the plugin answers first. On any failure the call is over."""
        try:
            await self._conversation.__aenter__()
            await self._conversation.ask(request)
            answer = await self._conversation.receive()
            if answer is None:
                raise self._plugin.error(Code.INTERNAL, "plugin closed stream unexpectedly")
            return read(answer)
        except RpcError as error:
            await self.close()
            raise _of_upstream(error) from error
        except BaseException:
            await self.close()
            raise

    async def update(self, read: Callable[[R], T]) -> T | None:
        """The next update that can be read; None when the plugin tells of no more of them."""
        while True:
            try:
                message = await self._conversation.await_message()
            except RpcError as error:
                raise _of_upstream(error) from error
            if message is None:
                return None
            try:
                return read(message)
            except RpcError as error:
                self._plugin.log.warning("Failed to read an update from the upstream authority plugin", error=error)
                await asyncio.sleep(PACE)

    async def close(self) -> None:
        await self._conversation.__aexit__(None, None, None)


class _Updates(Generic[R, T]):
    def __init__(self, call: _Call[R], read: Callable[[R], T]) -> None:
        self._call = call
        self._read = read

    async def __aiter__(self) -> AsyncIterator[T]:
        while (update := await self._call.update(self._read)) is not None:
            yield update
            await asyncio.sleep(PACE)

    async def aclose(self) -> None:
        await self._call.close()


def _certificates(messages: Iterable[x509certificate_pb2.X509Certificate]) -> Iterable[X509Authority]:
    for message in messages:
        if not message.asn1:
            raise InvalidArgument("missing X.509 certificate data")
        der.certificate(message.asn1)
        yield X509Authority(message.asn1, message.tainted)


def _jwt_key(message: jwtkey_pb2.JWTKey) -> JwtAuthority:
    if not message.key_id:
        raise InvalidArgument("missing key ID for JWT key")
    if not message.public_key:
        raise InvalidArgument(f"missing public key for JWT key {quote(message.key_id)}")
    try:
        der.public_key(message.public_key)
    except InvalidArgument as error:
        raise InvalidArgument(f"failed to unmarshal public key for JWT key {quote(message.key_id)}: {error}") from error
    return JwtAuthority(message.key_id, message.public_key, message.expires_at, message.tainted)
