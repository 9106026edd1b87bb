"""Upstream authorities of others: what they mint, what they tell of later, and what is not believed."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from identity import x509svid
from identity.bundles import JwtAuthority
from identity.spiffeid import TrustDomain
from keystores.memory import MemoryKeyManager
from operations import errors
from plugins.external import conversation, process, upstreamauthority
from server.ca import checks, signing, upstream
from server.ca.certificate_authority import CaSettings, CertificateAuthority
from tests.simulators.authority_store import MemoryAuthorityStore
from tests.simulators.pki import csr, ec_key, spki
from tests.simulators.spire import eventually
from tests.unit.plugins.external.conftest import Load, Log
from transport.status import RpcError

TD = TrustDomain("example.org")
CSR = csr(ec_key(), uris=[TD.id])


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "GRACE", 0.5)
    monkeypatch.setattr(upstreamauthority, "PACE", 0.01)
    monkeypatch.setattr(upstream, "SUBSCRIBE_DELAY", 0.01)


class Server:
    """A server's authorities below the plugin."""

    def __init__(self, plugin: Any) -> None:
        self.store = MemoryAuthorityStore()
        settings = CaSettings(trust_domain=TD, ca_ttl=3600)
        self.authority = CertificateAuthority(settings, MemoryKeyManager(), self.store, upstream=plugin, now=time.time)

    async def issue(self) -> None:
        """An SVID that verifies with the bundle."""
        [issued] = await self.authority.issue_x509([checks.approve_server(spki(ec_key()), TD)])
        x509svid.verify(issued.chain, {TD: self.store.roots}, signing.utc(int(time.time())))

    async def has_roots(self, number: int) -> None:
        await asyncio.to_thread(eventually, lambda: len(self.store.roots) == number, "the roots")


async def test_a_server_below_it_follows_its_roots(load: Load) -> None:
    server = Server(await load("UpstreamAuthority", "rotates"))
    await server.authority.start()
    await server.issue()
    await server.has_roots(2)
    await server.issue()
    await server.authority.close()


async def test_keys_and_the_bundle(load: Load) -> None:
    plugin = await load("UpstreamAuthority")
    key = JwtAuthority("published", spki(ec_key()), int(time.time()) + 3600)
    published = await plugin.publish_jwt_key(key)
    assert published.keys == (key,)
    assert [update async for update in published.updates] == []
    bundle = await plugin.subscribe_to_local_bundle()
    assert bundle.keys == (key,)
    assert len(bundle.roots) == 1
    await bundle.updates.aclose()


async def test_what_it_does_not_serve_is_unsupported(load: Load) -> None:
    plugin = await load("UpstreamAuthority", "no-publishing")
    for call in (plugin.publish_jwt_key(JwtAuthority("a", spki(ec_key()))), plugin.subscribe_to_local_bundle()):
        with pytest.raises(errors.Unsupported):
            await call


@pytest.mark.parametrize(
    ("word", "fault"),
    [
        ("no-chain", "plugin response missing X.509 CA chain"),
        ("garbage-chain", "plugin response has malformed X.509 CA chain"),
        ("long-chain", "plugin response has an X.509 CA chain of more than 32 certificates"),
        ("no-roots", "plugin response missing upstream X.509 roots"),
        ("garbage-roots", "plugin response has malformed upstream X.509 roots"),
        ("many-roots", "plugin response has 1001 upstream X.509 roots, of which a bundle takes 1000"),
        ("closes-in-mint", "plugin closed stream unexpectedly"),
        (
            "foreign-chain",
            'X509 CA minted by upstream authority is invalid: invalid X509 CA: expected URI SAN "spiffe:',
        ),
        ("foreign-request", "X509 CA minted by upstream authority is invalid"),
    ],
)
async def test_what_a_server_does_not_believe(load: Load, word: str, fault: str) -> None:
    server = Server(await load("UpstreamAuthority", word))
    with pytest.raises(errors.SpireError) as caught:
        await server.authority.start()
    assert fault in str(caught.value)
    assert "\n" not in str(caught.value)
    assert server.store.roots == []
    await server.authority.close()


@pytest.mark.parametrize(("word", "fault"), [("no-key-id", "missing key ID"), ("bad-jwt-key", "failed to unmarshal")])
async def test_wrong_keys(load: Load, word: str, fault: str) -> None:
    plugin = await load("UpstreamAuthority", word)
    with pytest.raises(RpcError, match=fault):
        await plugin.publish_jwt_key(JwtAuthority("a", spki(ec_key())))


async def test_one_that_never_answers(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conversation, "ANSWER_TIMEOUT", 1.0)
    plugin = await load("UpstreamAuthority", "hangs-in-mint")
    with pytest.raises(errors.TemporarilyUnavailable, match="gave no answer within 1 s"):
        await plugin.mint_x509_ca(CSR, 3600)


async def test_a_wrong_update_is_left_out(load: Load, log: Log) -> None:
    server = Server(await load("UpstreamAuthority", "chain-in-update"))
    await server.authority.start()
    await server.has_roots(2)
    [told] = log.named("Failed to read an update from the upstream authority plugin")
    assert "has an X.509 CA chain after the first response" in str(told["error"])
    await server.authority.close()


async def test_updates_without_end_are_taken_one_by_one(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upstreamauthority, "PACE", 0.2)
    plugin = await load("UpstreamAuthority", "endless-updates")
    minted = await plugin.mint_x509_ca(CSR, 3600)
    began, taken = time.monotonic(), 0
    async for roots in minted.updates:
        assert len(roots) == 2
        taken += 1
        if taken == 4:
            break
    assert time.monotonic() - began >= 0.6
    await minted.updates.aclose()


async def test_a_plugin_that_ends_leaves_the_authority(load: Load, log: Log) -> None:
    server = Server(await load("UpstreamAuthority", "dies-after-mint"))
    await server.authority.start()
    text = "The upstream authority plugin stopped streaming X.509 root updates prematurely. Will retry later."
    await asyncio.to_thread(eventually, lambda: log.named(text), "the line in the log")
    await server.issue()
    await server.authority.close()
