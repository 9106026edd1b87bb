"""Bundle publishers and notifiers on the published SDK, in Go; and the SDK's formats of a bundle beside ours."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from identity.bundles import Bundle, JwtAuthority, X509Authority, from_pem
from identity.spiffeid import TrustDomain
from publishers import documents
from tests.interop.plugins.test_plugins import Loader, loader, program
from tests.simulators.pki import Authority, ec_key, spki
from transport.status import Code, RpcError

__all__ = ["loader", "program"]

pytestmark = [pytest.mark.interop, pytest.mark.timeout(600)]


def bundle() -> Bundle:
    return Bundle(
        TrustDomain("example.org"),
        (X509Authority(Authority.root().der), X509Authority(Authority.root(name="next").der)),
        (JwtAuthority("a-key", spki(ec_key())),),
        refresh_hint=300,
        sequence_number=7,
    )


async def test_ours_are_the_documents_of_a_publisher_in_go(loader: Loader, tmp_path: Path) -> None:
    publisher = await loader.load("BundlePublisher", "bundlepublisher", str(tmp_path), side="server")
    given = bundle()
    await publisher.publish(given)
    theirs = {name: await asyncio.to_thread((tmp_path / name).read_bytes) for name in documents.FORMATS}
    for name in ("spiffe", "jwks"):
        assert _plain(theirs[name]) == _plain(documents.render(given, name))
    assert from_pem(theirs["pem"]) == from_pem(documents.render(given, "pem"))


async def test_a_publishers_errors(loader: Loader, tmp_path: Path) -> None:
    publisher = await loader.load("BundlePublisher", "bundlepublisher", str(tmp_path / "none"), side="server")
    with pytest.raises(RpcError, match=r"bundlepublisher\(go\): not written: ") as error:
        await publisher.publish(bundle())
    assert error.value.code is Code.INTERNAL


async def test_a_notifier_advises_against_a_start(loader: Loader) -> None:
    notifier = await loader.load("Notifier", "notifier", "a = 1", side="server")
    await notifier.bundle_loaded(bundle())
    await notifier.bundle_updated(bundle())
    with pytest.raises(RpcError) as error:
        await notifier.bundle_loaded(Bundle(TrustDomain("example.org")))
    assert error.value.code is Code.FAILED_PRECONDITION
    assert error.value.message == "notifier(go): a bundle without roots is no beginning"


def _plain(document: bytes) -> dict[str, Any]:
    """Without what Go's encoder adds: hashes of certificates are no part of the standard's document."""
    read: dict[str, Any] = json.loads(document)
    for key in read["keys"]:
        for name in ("x5t", "x5t#S256"):
            key.pop(name, None)
    return read
