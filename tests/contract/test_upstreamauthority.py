"""What every upstream authority does."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
import pytest_asyncio
from cryptography import x509

from identity import x509svid
from identity.bundles import JwtAuthority
from operations.errors import SpireError, Unsupported
from plugins.upstreamauthority import UpstreamAuthority
from tests.contract.upstream_backends import BACKENDS, TD
from tests.simulators.pki import Authority, Certificate, csr, ec_key, spki

HOUR = 3600


@pytest_asyncio.fixture(params=BACKENDS)
async def upstream(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[UpstreamAuthority]:
    async with BACKENDS[request.param](tmp_path) as authority:
        yield authority
        await authority.close()


async def test_what_is_below_it_verifies(upstream: UpstreamAuthority) -> None:
    for key in (ec_key(), ec_key()):
        minted = await upstream.mint_x509_ca(csr(key, uris=[TD.id]), 600)
        own = x509.load_der_x509_certificate(minted.chain[0])
        assert own.public_key() == key.public_key()
        now = datetime.now(UTC)
        assert 500 < (own.not_valid_after_utc - now).total_seconds() <= 600
        leaf = Authority(key, own).sign(Certificate(not_before=now, not_after=own.not_valid_after_utc))
        roots = [root.der for root in minted.roots]
        assert x509svid.verify((leaf, *minted.chain), {TD: roots}, now).path == "/workload"
        assert not any(root.tainted for root in minted.roots)
        assert not set(roots) & set(minted.chain)
        await minted.updates.aclose()


async def test_a_lifetime_is_a_wish(upstream: UpstreamAuthority) -> None:
    for ttl in (0, 1000 * 24 * HOUR):
        minted = await upstream.mint_x509_ca(csr(ec_key(), uris=[TD.id]), ttl)
        ends = x509.load_der_x509_certificate(minted.chain[0]).not_valid_after_utc.timestamp()
        assert time.time() < ends < time.time() + 3 * 24 * HOUR


_GOOD = csr(ec_key(), uris=[TD.id])


@pytest.mark.parametrize("request_", [b"", b"garbage", _GOOD[:-1] + bytes((_GOOD[-1] ^ 1,))])
async def test_what_is_no_request_is_refused(upstream: UpstreamAuthority, request_: bytes) -> None:
    async with asyncio.timeout(20):
        with pytest.raises(SpireError) as caught:
            await upstream.mint_x509_ca(request_, 60)
    assert "\n" not in str(caught.value)


async def test_updates_are_given_back_though_never_read(upstream: UpstreamAuthority) -> None:
    minted = await upstream.mint_x509_ca(csr(ec_key(), uris=[TD.id]), 60)
    await minted.updates.aclose()
    try:
        bundle = await upstream.subscribe_to_local_bundle()
    except Unsupported:
        return
    assert tuple(bundle.roots) == tuple(minted.roots)
    await bundle.updates.aclose()


async def test_published_keys_are_known(upstream: UpstreamAuthority) -> None:
    key = JwtAuthority("published", spki(ec_key()), int(time.time()) + HOUR)
    try:
        published = await upstream.publish_jwt_key(key)
    except Unsupported:
        return
    assert key in published.keys
    await published.updates.aclose()


async def test_it_has_a_name(upstream: UpstreamAuthority) -> None:
    assert upstream.name in ("disk", "spire", "pkcs11", "tpm", "vault")
