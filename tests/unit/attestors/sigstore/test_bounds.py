"""What hostile registries and very many callers may cost."""

from __future__ import annotations

import asyncio
import gc
import threading
from dataclasses import replace

import pytest

from attestors.sigstore import attached, verifier
from operations.errors import Refused, TemporarilyUnavailable
from tests.simulators.registry import Answer, Asked
from tests.simulators.signed_images import House
from tests.simulators.sigstore import (
    BUNDLE,
    CERTIFICATE,
    SIGNATURE,
)


async def test_very_many_signatures_are_refused(house: House) -> None:
    digest = house.registry.push_image()
    signature = house.sigstore.signature(digest)
    house.registry.attach(digest, *[signature.without(BUNDLE)] * 1001)
    with pytest.raises(Refused, match=r"number of layers \(1001\) exceeded the limit \(1000\)"):
        await house.verifier().verify(house.image(digest))


async def test_many_signatures_over_the_same_payload_read_it_once_and_fail_in_a_short_line(house: House) -> None:
    digest = house.registry.push_image()
    signature = house.sigstore.signature(digest)
    broken = [signature.having(SIGNATURE, "!"), signature.having(CERTIFICATE, "x"), signature.having(BUNDLE, "x")]
    house.registry.attach(digest, *broken * 100, signature.without(SIGNATURE), signature.without(CERTIFICATE))
    with pytest.raises(Refused, match="; and 2 more") as refusal:
        await house.verifier().verify(house.image(digest))
    assert len(str(refusal.value)) < 1000
    assert sum("/blobs/" in path for path in house.server.paths()) == 1


async def test_large_payloads_are_not_read(house: House) -> None:
    digest = house.registry.push_image()
    signature = house.sigstore.signature(digest)
    large = replace(signature, payload=bytes(attached.SIGNATURE_BYTES + 1))
    house.registry.attach(digest, large)
    with pytest.raises(Refused, match=r"size of layer \(1048577\) exceeded the limit"):
        await house.verifier().verify(house.image(digest))
    assert not any("/blobs/" in path for path in house.server.paths())


async def test_payloads_together_have_a_limit(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attached, "TOTAL_BYTES", 1000)
    digest = house.registry.push_image()
    house.registry.attach(
        digest, *(house.sigstore.signed(bytes(400 + number), house.sigstore.signer()) for number in range(5))
    )
    with pytest.raises(Refused, match=r"exceeded the limit \(1000 bytes\)"):
        await house.verifier().verify(house.image(digest))
    assert sum("/blobs/" in path for path in house.server.paths()) == 2


async def test_all_who_ask_for_an_image_at_once_get_one_answer(house: House) -> None:
    digest = house.registry.push_image()
    house.registry.attach(digest, house.sigstore.signature(digest))
    verifier = house.verifier()
    answers = await asyncio.gather(*(verifier.verify(house.image(digest)) for _ in range(1000)))
    assert all(answer == answers[0] for answer in answers)
    assert sum(path.endswith(".sig") for path in house.server.paths()) == 1


async def test_whoever_gives_up_leaves_the_answer_to_the_next(house: House) -> None:
    digest = house.registry.push_image()
    house.registry.attach(digest, house.sigstore.signature(digest))
    asked, go_on = threading.Event(), threading.Event()

    def slow(request: Asked) -> Answer | None:
        if request.path.endswith(".sig"):
            asked.set()
            go_on.wait(60)
        return None

    house.server.routes.insert(0, slow)
    verifier = house.verifier()
    first = asyncio.create_task(verifier.verify(house.image(digest)))
    await asyncio.to_thread(asked.wait, 60)
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    second = asyncio.create_task(verifier.verify(house.image(digest)))
    go_on.set()
    assert len(await second) == 8
    assert sum(path.endswith(".sig") for path in house.server.paths()) == 1


async def test_a_registry_that_hangs_costs_its_image_only(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verifier, "IMAGE_SECONDS", 2.0)
    good, bad = house.registry.push_image("good"), house.registry.push_image("bad")
    house.registry.attach(good, house.sigstore.signature(good))

    def hang(request: Asked) -> Answer | None:
        if bad.replace(":", "-") in request.path:
            house.server.closing.wait(60)
        return None

    house.server.routes.insert(0, hang)
    both = house.verifier()
    waiting = asyncio.create_task(both.verify(house.image(bad)))
    assert len(await both.verify(house.image(good))) == 8
    with pytest.raises(TemporarilyUnavailable, match="took more than 2 s"):
        await waiting


async def test_a_closed_verifier_leaves_nothing_behind(house: House) -> None:
    digest = house.registry.push_image()
    asked = threading.Event()

    def hang(request: Asked) -> Answer | None:
        asked.set()
        house.server.closing.wait(60)
        return None

    house.server.routes.insert(0, hang)
    closing = house.verifier()
    waiting = asyncio.create_task(closing.verify(house.image(digest)))
    await asyncio.to_thread(asked.wait, 60)
    await closing.close()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    gc.collect()


async def test_too_many_images_at_once_are_told_to_wait(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verifier, "_MOST_WAITING", 3)

    def hang(_: Asked) -> Answer:
        house.server.closing.wait(60)
        return Answer(503)

    house.server.routes.insert(0, hang)
    busy = house.verifier()
    images = [house.image(f"sha256:{number:064x}") for number in range(3)]
    waiting = [asyncio.create_task(busy.verify(image)) for image in images]
    await asyncio.sleep(0)
    with pytest.raises(TemporarilyUnavailable, match="too many images are being verified"):
        await busy.verify(house.image("sha256:" + "f" * 64))
    await busy.close()
    await asyncio.gather(*waiting, return_exceptions=True)
