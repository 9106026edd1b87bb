"""What hostile registries and very many callers may cost."""

from __future__ import annotations

import asyncio
import gc
import json
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from attestors.sigstore import attached, current_trust, trust_files, verifier
from attestors.sigstore.current_trust import CurrentTrust
from attestors.sigstore.registry import MANIFEST_BYTES
from attestors.sigstore.remembered import REFUSED_SECONDS, Remembered
from attestors.sigstore.trust import TrustRoot
from attestors.sigstore.trust_files import Need
from operations.errors import Refused, TemporarilyUnavailable
from operations.logs import get
from tests.simulators.registry import Answer, Asked, WebServer
from tests.simulators.signed_images import WITH_ATTESTATIONS, House
from tests.simulators.sigstore import (
    BUNDLE,
    CERTIFICATE,
    SIGNATURE,
    Sigstore,
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


async def test_very_many_images_of_a_registry_that_hangs_keep_no_others_waiting(house: House) -> None:
    with WebServer() as other:

        def hang(_: Asked) -> Answer:
            other.closing.wait(60)
            return Answer(503)

        other.routes.append(hang)
        busy = house.verifier()
        images = [f"{other.host}/app@sha256:{number:064x}" for number in range(64)]
        waiting = [asyncio.create_task(busy.verify(image)) for image in images]
        await asyncio.sleep(0)
        with pytest.raises(TemporarilyUnavailable, match=f"too many images of {other.host} are being verified"):
            await busy.verify(f"{other.host}/app@sha256:{'f' * 64}")
        digest = house.registry.push_image()
        house.registry.attach(digest, house.sigstore.signature(digest))
        assert len(await busy.verify(house.image(digest))) == 8
        assert len(other.asked) <= 4
        await busy.close()
        await asyncio.gather(*waiting, return_exceptions=True)


async def test_large_attestations_are_read_and_judged(house: House) -> None:
    digest = house.registry.push_image()
    house.registry.attach(digest, house.sigstore.signature(digest))
    statement = {
        "_type": "https://in-toto.io/Statement/v0.1",
        "subject": [{"name": "app", "digest": {"sha256": digest.partition(":")[2]}}],
        "predicate": {"packages": ["x" * 1000] * 4000},
    }
    attestation = house.sigstore.attested(json.dumps(statement).encode(), house.sigstore.signer())
    house.registry.attach(digest, attestation, suffix="att")
    assert "image-attestations:verified" in await house.verifier(WITH_ATTESTATIONS).verify(house.image(digest))


async def test_attestations_that_are_too_large_are_refused(house: House) -> None:
    digest = house.registry.push_image()
    house.registry.attach(digest, house.sigstore.signature(digest))
    attestation = house.sigstore.attestation(digest)
    large = replace(attestation, payload=attestation.payload + b" " * attached.ATTESTATION_BYTES)
    house.registry.attach(digest, large, suffix="att")
    with pytest.raises(Refused, match="exceeded the limit"):
        await house.verifier(WITH_ATTESTATIONS).verify(house.image(digest))


async def test_a_manifest_that_is_too_large_is_refused(house: House) -> None:
    digest = house.registry.push_image()
    house.registry.manifests[f"{digest.replace(':', '-')}.sig"] = b" " * (MANIFEST_BYTES + 1)
    with pytest.raises(Refused, match=f"sent more than {MANIFEST_BYTES} bytes"):
        await house.verifier().verify(house.image(digest))


@pytest.mark.parametrize(
    "manifest", [b"", b"[]", b"null", b"\xff", b"[" * 1_000_000, b'{"layers": [{}]}', b'{"layers": 1}']
)
async def test_a_manifest_that_is_none_is_refused(house: House, manifest: bytes) -> None:
    digest = house.registry.push_image()
    house.registry.manifests[f"{digest.replace(':', '-')}.sig"] = manifest
    with pytest.raises(Refused, match="failed to verify signatures: the manifest of the signatures is malformed"):
        await house.verifier().verify(house.image(digest))


async def test_a_manifest_without_layers_has_no_signatures(house: House) -> None:
    digest = house.registry.push_image()
    house.registry.manifests[f"{digest.replace(':', '-')}.sig"] = b"{}"
    with pytest.raises(Refused, match="no signatures found"):
        await house.verifier().verify(house.image(digest))


def test_what_is_remembered_has_bounds() -> None:
    now = [0.0]
    known = Remembered(lambda: now[0])
    for number in range(300):
        known.verified(f"image {number}", ("selector",) * 1000)
        assert known.find("image 0") is not None
    assert known.find("image 199") is None
    assert known.find("image 299") is not None
    for number in range(2000):
        known.refused(f"refused {number}", Refused("no"))
    assert known.find("refused 0") is None
    with pytest.raises(Refused, match="no"):
        known.find("refused 1999")
    now[0] += REFUSED_SECONDS
    assert known.find("refused 1999") is None


async def test_trust_is_loaded_anew_while_the_old_one_serves(sigstore: Sigstore, tmp_path: Path) -> None:
    environment = sigstore.environment(tmp_path / "trust")
    loads: list[TrustRoot] = []

    def load() -> TrustRoot:
        if len(loads) == 1:
            loads.append(loads[0])
            raise TemporarilyUnavailable("the mirror is away")
        loads.append(trust_files.load(environment, Need(rekor=True, ct=True)))
        return loads[-1]

    trust = CurrentTrust(load, get(), life=0.0)
    first = await trust.get()
    async with asyncio.timeout(60):
        while len(loads) < 2:
            assert await trust.get() is first
            await asyncio.sleep(0.01)
    assert await trust.get() is first
    await trust.close()


async def test_trust_that_never_was_is_asked_for_again(sigstore: Sigstore, tmp_path: Path) -> None:
    environment = sigstore.environment(tmp_path / "trust")
    away = [True]

    def load() -> TrustRoot:
        if away:
            raise TemporarilyUnavailable("the mirror is away")
        return trust_files.load(environment, Need(rekor=True, ct=True))

    trust = CurrentTrust(load, get())
    with pytest.raises(TemporarilyUnavailable):
        await trust.get()
    away.clear()
    assert await trust.get() is await trust.get()
    await trust.close()


async def test_trust_that_hangs_is_given_up(
    sigstore: Sigstore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(current_trust, "LOAD_SECONDS", 0.2)
    environment = sigstore.environment(tmp_path / "trust")
    go_on = threading.Event()

    def load() -> TrustRoot:
        go_on.wait(60)
        return trust_files.load(environment, Need(rekor=True, ct=True))

    trust = CurrentTrust(load, get())
    with pytest.raises(TemporarilyUnavailable, match="gave no answer within"):
        await trust.get()
    with pytest.raises(TemporarilyUnavailable, match="still gives no answer"):
        await trust.get()
    go_on.set()
    monkeypatch.setattr(current_trust, "LOAD_SECONDS", 60.0)
    async with asyncio.timeout(60):
        while True:
            try:
                assert await trust.get()
                break
            except TemporarilyUnavailable:
                await asyncio.sleep(0.01)
    await trust.close()
