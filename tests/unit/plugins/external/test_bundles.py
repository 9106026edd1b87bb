"""Bundle publishers and notifiers of others: what they are told, and how their errors arrive."""

from __future__ import annotations

import asyncio

import pytest

from identity.bundles import Bundle, JwtAuthority, WitAuthority, X509Authority
from identity.spiffeid import TrustDomain
from plugins.external import bundlepublisher, process
from plugins.external.bundles import to_plugin
from tests.simulators.spire import eventually
from tests.unit.plugins.external.conftest import Load, Log
from transport.status import Code, RpcError

BUNDLE = Bundle(
    TrustDomain("example.org"),
    (X509Authority(b"one"), X509Authority(b"two", tainted=True)),
    (JwtAuthority("jwt", b"key", 17, tainted=True),),
    refresh_hint=300,
    sequence_number=7,
    wit_authorities=(WitAuthority("wit", b"another", 18),),
)
TOLD = "example.org [2, 1, 1] [300, 7]"


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "GRACE", 0.5)


def test_plugins_get_all_of_a_bundle() -> None:
    """The two messages have the same fields with the same numbers."""
    assert to_plugin(BUNDLE).SerializeToString() == BUNDLE.to_proto().SerializeToString()


async def test_a_publisher(load: Load, log: Log) -> None:
    publisher = await load("BundlePublisher")
    assert publisher.name == "py"
    await publisher.publish(BUNDLE)
    await asyncio.to_thread(eventually, lambda: log.named(f"[INFO] published {TOLD}"), "the plugin's line")
    await publisher.close()


async def test_a_notifier(load: Load, log: Log) -> None:
    notifier = await load("Notifier")
    await notifier.bundle_loaded(BUNDLE)
    await notifier.bundle_updated(BUNDLE)
    for word in ("loaded", "updated"):
        line = f"[INFO] {word} {TOLD}"
        await asyncio.to_thread(eventually, lambda: log.named(line), "the plugin's line")  # noqa: B023
    await notifier.close()


async def test_errors_carry_the_plugins_type_and_name(load: Load) -> None:
    publisher = await load("BundlePublisher", "fails-in-publish")
    with pytest.raises(RpcError) as error:
        await publisher.publish(BUNDLE)
    assert error.value.code is Code.PERMISSION_DENIED
    assert error.value.message == "bundlepublisher(py): the bucket is not ours"
    notifier = await load("Notifier", "fails-in-publish")
    for call in (notifier.bundle_loaded, notifier.bundle_updated):
        with pytest.raises(RpcError, match=r"notifier\(py\): the bucket is not ours"):
            await call(BUNDLE)


async def test_one_that_hangs_or_dies_is_unavailable(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundlepublisher, "TIMEOUT", 0.5)
    for word, code in (("hangs-in-publish", Code.DEADLINE_EXCEEDED), ("dies-in-publish", Code.UNAVAILABLE)):
        publisher = await load("BundlePublisher", word)
        with pytest.raises(RpcError) as error:
            await publisher.publish(BUNDLE)
        assert error.value.code is code
