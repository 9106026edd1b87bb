"""From a configuration to an attested agent: what is stored, what is to be proven, and how long that is tried."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass

from agent.attest import Attestation, attest
from agent.backoff import Backoff
from agent.denial import HOPELESS, is_unknown_authority
from agent.identity import AgentSvid, key_of
from agent.server_client import ServerAddress
from agent.storage import Storage
from agent.store.content import Held
from agent.store.store import Store
from agent.trust import Trust
from identity import der
from identity.bundles import Bundle, X509Authority
from operations import logs
from operations.errors import ConfigurationError, Corrupt, InvalidArgument, SpireError
from plugins.keymanager import Key, KeyManager
from plugins.nodeattestor import AgentNodeAttestor
from transport.status import Code, RpcError

_RETRY_INTERVAL = 5.0
_CLOCK_SKEW = 1.0

_log = logs.get("attestor")


@dataclass(frozen=True, slots=True)
class Start:
    """What an agent starts from."""

    address: ServerAddress
    trust: Trust
    keys: KeyManager
    attestor: AgentNodeAttestor
    storage: Storage
    store: Store


@dataclass(frozen=True, slots=True)
class Begun:
    """What an agent goes on from, and what of its last run workloads can be served while the server is away."""

    attestation: Attestation
    held: Held | None = None


async def begin(start: Start) -> Begun:
    """Take up what is stored, or attest; see `attested`.

    An agent whose own SVID has expired takes it up as well where it can serve others: it attests once it does.
    """
    kept = await _kept(start)
    held = None if kept is None else await start.store.load(kept.svid.spiffe_id)
    if kept is not None and held is not None:
        start.trust.require_reattestable(kept.svid.reattestable)
        return Begun(kept, held)
    return Begun(await attested(start))


async def attested(start: Start) -> Attestation:
    """Take up the stored SVID, or attest, trying for a minute; for a day where the agent may rebootstrap.

    Raises RpcError or another SpireError, the last one met. A refusal by the server's policy, and a configuration that
    cannot work, end it at once.
    """
    trust = start.trust
    if start.storage.state.svid:
        trust.require_reattestable(start.storage.state.reattestable)
    backoff = Backoff(_RETRY_INTERVAL, budget=trust.budget)
    while True:
        try:
            found = await _try(start)
            await trust.established()
            trust.require_reattestable(found.svid.reattestable)
            return found
        except SpireError as error:
            if is_unknown_authority(error):
                await trust.meets_stranger_at_start()
            refused = isinstance(error, RpcError) and error.code is Code.PERMISSION_DENIED
            wait = None if refused or isinstance(error, HOPELESS) else backoff.next()
            if wait is None:
                raise
            _log.warning("Failed to retrieve attestation result", error=error, retry_interval=f"{wait:.1f}s")
        await asyncio.sleep(wait)


async def _try(start: Start) -> Attestation:
    authorities: tuple[bytes, ...] | None = start.storage.state.bundle
    if authorities:
        _check_stored(authorities)
        _log.info("Bundle loaded", trust_domain_id=start.address.trust_domain.id)
    else:
        authorities = await start.trust.bundle()
        _log.info("Bundle is not found" if authorities is None else "Bundle loaded")
    svid, key = await _recover(start)
    if svid is None:
        _log.info("SVID is not found. Starting node attestation")
        return await attest(start.address, start.attestor, start.keys, key, authorities)
    if authorities is None:
        raise ConfigurationError("SVID loaded but no bundle in cache: remove agent-data.json to attest anew")
    _log.info("SVID loaded", spiffe_id=svid.spiffe_id)
    return Attestation(svid, _bundle(start, authorities))


def _bundle(start: Start, authorities: Sequence[bytes]) -> Bundle:
    return Bundle(start.address.trust_domain, tuple(X509Authority(der) for der in authorities))


async def _kept(start: Start) -> Attestation | None:
    """The stored SVID and bundle, also when the SVID has expired; None unless both are there, and the key."""
    state = start.storage.state
    if not (state.svid and state.bundle):
        return None
    try:
        _check_stored(state.bundle)
        key = await key_of(start.keys, state.svid)
        if key is None:
            return None
        svid = AgentSvid(state.svid, key, state.reattestable)
        if svid.spiffe_id.trust_domain != start.address.trust_domain:
            return None
    except SpireError:
        return None  # `attested` tells, and tries again
    return Attestation(svid, _bundle(start, state.bundle))


def _check_stored(authorities: Sequence[bytes]) -> None:
    try:
        for each in authorities:
            der.certificate(each)
    except InvalidArgument as error:
        raise Corrupt(
            f"the bundle in agent-data.json is damaged ({error}); restore the file, or move it away to let the agent "
            "attest anew"
        ) from error


async def _recover(start: Start) -> tuple[AgentSvid | None, Key | None]:
    """The stored SVID if it is good still; else the key that a new one must not replace."""
    state = start.storage.state
    if not state.svid:
        if await start.keys.list():
            _log.warning("Keys recovered, but no SVID found. Generating new keypair")
        return None, None
    try:
        key = await key_of(start.keys, state.svid)
        if key is None:
            _log.warning("SVID recovered, but no SVID key found. Generating new keypair")
            return None, None
        svid = AgentSvid(state.svid, key, state.reattestable)
        if svid.spiffe_id.trust_domain != start.address.trust_domain:
            raise ConfigurationError(
                f"the stored SVID is of trust domain {svid.spiffe_id.trust_domain}: "
                "use another data_dir, or remove agent-data.json"
            )
        if svid.expires <= time.time() + _CLOCK_SKEW:
            _log.warning("SVID key recovered, but SVID is expired. Generating new keypair", expiry=int(svid.expires))
            return None, key
    except ConfigurationError:
        raise
    except InvalidArgument as error:
        _log.warning("Could not read the stored SVID. Generating new keypair", error=error)
        return None, None
    return svid, key
