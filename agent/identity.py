"""The agent's own identity: its certificate chain, and the key in the key manager that goes with it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from OpenSSL import crypto

from identity import der, x509svid
from identity.spiffeid import SpiffeId, TrustDomain, require_agent, server_id
from operations.errors import InvalidArgument, Refused
from plugins.keymanager import Key, KeyManager, KeyType

_KEY_IDS = ("agent-svid-A", "agent-svid-B")


@dataclass(frozen=True, slots=True)
class AgentSvid:
    """`chain` is DER, leaf first. `reattestable` says that the node may attest again with the same proof."""

    chain: tuple[bytes, ...]
    key: Key
    reattestable: bool

    @property
    def spiffe_id(self) -> SpiffeId:
        return x509svid.leaf_id(self.chain[0])

    @property
    def begins(self) -> float:
        """Unix seconds."""
        return der.certificate(self.chain[0]).not_valid_before_utc.timestamp()

    @property
    def expires(self) -> float:
        """Unix seconds."""
        return der.certificate(self.chain[0]).not_valid_after_utc.timestamp()


def received(
    chain: tuple[bytes, ...],
    key: Key,
    trust_domain: TrustDomain,
    *,
    reattestable: bool,
    previous: AgentSvid | None = None,
) -> AgentSvid:
    """What the server sent for this key, as an SVID in the place of `previous`, if there was one.

    Raises InvalidArgument or Refused for what the agent could not go on with, so that it keeps what it has. Whether an
    SVID of a first attestation is in force is for the server to say, whose clock counts.
    """
    if not chain:
        raise InvalidArgument("the server sent an empty certificate chain")
    for certificate in chain:
        der.certificate(certificate)
    svid = AgentSvid(chain, key, reattestable)
    if der.certificate_key(chain[0]) != key.public_key:
        raise Refused("the server sent an SVID for another key than the agent's")
    require_agent(trust_domain, svid.spiffe_id)
    if previous is not None:
        if svid.spiffe_id != previous.spiffe_id:
            raise Refused(f'the server sent the SVID of "{svid.spiffe_id}" to "{previous.spiffe_id}"')
        if svid.expires <= time.time() < previous.expires:
            raise Refused("the server sent an SVID that has expired; compare the clocks of server and agent")
    return svid


async def next_key(manager: KeyManager, current: Key | None) -> Key:
    """A fresh key under the id that the current one does not have: that one stays until the new one is certified."""
    first, second = _KEY_IDS
    return await manager.generate(second if current is not None and current.id == first else first, KeyType.EC_P256)


async def key_of(manager: KeyManager, chain: Sequence[bytes]) -> Key | None:
    """The key that the chain's leaf certifies, if the key manager has it."""
    public_key = der.certificate_key(chain[0])
    for key in await manager.list():
        if key.public_key == public_key:
            return key
    return None


class UnknownAuthority(Refused):
    """The server's certificate was issued by nobody in the bundle that the agent has."""


# Of X509_STORE_CTX_get_error(3): the chain leads to no anchor, or to one of the same name with another key.
_NO_ANCHOR = frozenset((2, 7, 18, 19, 20, 21))


def verify_server(chain: Sequence[bytes], trust_domain: TrustDomain, authorities: Sequence[bytes]) -> None:
    """Raise UnknownAuthority or Refused unless the chain is the server's of this trust domain."""
    try:
        found = x509svid.verify(chain, {trust_domain: authorities}, datetime.now(UTC))
    except Refused as error:
        kind = UnknownAuthority if _leads_nowhere(error.__cause__) else Refused
        raise kind(f"the server's certificate is not trusted: {error}") from error
    require_server(found, trust_domain)


def _leads_nowhere(cause: BaseException | None) -> bool:
    return isinstance(cause, crypto.X509StoreContextError) and cause.errors[0] in _NO_ANCHOR


def require_server(found: SpiffeId, trust_domain: TrustDomain) -> None:
    expected = server_id(trust_domain)
    if found != expected:
        raise Refused(f'unexpected server: its SPIFFE ID is "{found}", not "{expected}"')
