"""From a configuration to an attested agent: what is stored, what is to be proven, and how long that is tried."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass

from agent.attest import Attestation, attest
from agent.backoff import Backoff
from agent.bootstrap import TrustBundleSource, bootstrap_bundle
from agent.identity import AgentSvid, key_of
from agent.metrics import Bootstrap
from agent.server_client import ServerAddress
from agent.storage import Storage
from identity import der
from identity.bundles import Bundle, X509Authority
from operations import logs
from operations.errors import (
    ConfigurationError,
    Corrupt,
    InvalidArgument,
    PermanentlyUnusable,
    SpireError,
    Unsupported,
)
from plugins.keymanager import Key, KeyManager
from plugins.nodeattestor import AgentNodeAttestor
from transport.status import Code, RpcError

_RETRY_INTERVAL = 5.0
_RETRY_BUDGET = 60.0
_CLOCK_SKEW = 1.0

# Only somebody who mends the configuration or the device can help.
_HOPELESS = (ConfigurationError, PermanentlyUnusable, Unsupported)

_log = logs.get("attestor")


@dataclass(frozen=True, slots=True)
class Start:
    """What an agent starts from."""

    address: ServerAddress
    source: TrustBundleSource
    keys: KeyManager
    attestor: AgentNodeAttestor
    storage: Storage


async def attested(start: Start) -> Attestation:
    """Take up the stored SVID, or attest, trying for a minute.

    Raises RpcError or another SpireError, the last one met. A refusal by the server's policy, and a configuration that
    cannot work, end it at once.
    """
    backoff = Backoff(_RETRY_INTERVAL, budget=_RETRY_BUDGET)
    bootstrap = Bootstrap()
    while True:
        bootstrap.trying()
        try:
            found = await _try(start)
            bootstrap.done()
            return found
        except SpireError as error:
            refused = isinstance(error, RpcError) and error.code is Code.PERMISSION_DENIED
            wait = None if refused or isinstance(error, _HOPELESS) else backoff.next()
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
        authorities = await bootstrap_bundle(start.source)
        _log.info("Bundle is not found" if authorities is None else "Bundle loaded")
    svid, key = await _recover(start)
    if svid is None:
        _log.info("SVID is not found. Starting node attestation")
        return await attest(start.address, start.attestor, start.keys, key, authorities)
    if authorities is None:
        raise ConfigurationError("SVID loaded but no bundle in cache: remove agent-data.json to attest anew")
    _log.info("SVID loaded", spiffe_id=svid.spiffe_id)
    trust_domain = start.address.trust_domain
    return Attestation(svid, Bundle(trust_domain, tuple(X509Authority(der) for der in authorities)))


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
