"""Signatures that came without their log entry."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from attestors.sigstore.configuration import Configuration
from operations.errors import Refused, TemporarilyUnavailable
from tests.simulators.registry import Answer, Asked, Route
from tests.simulators.signed_images import ALLOWED, House
from tests.simulators.sigstore import (
    BUNDLE,
)

Change = Callable[[dict[str, Any]], object]


def log_of(house: House, change: Change = lambda _: None) -> Route:
    """Rekor's search for entries, which answers with all it has."""

    def route(asked: Asked) -> Answer | None:
        if asked.path != "/rekor/api/v1/log/entries/retrieve":
            return None
        log = house.sigstore.log
        answers = [log.answer(index) for index in range(len(log.bodies))]
        for answer in answers:
            for entry in answer.values():
                change(entry)
        return Answer(body=json.dumps(answers[-20:]).encode())

    return route


async def test_the_log_is_asked_where_an_entry_did_not_come_along(house: House) -> None:
    digest = house.registry.push_image()
    complete = house.sigstore.signature(digest)
    house.registry.attach(digest, complete.without(BUNDLE))
    house.registry.attach(digest, house.sigstore.attestation(digest).without(BUNDLE), suffix="att")
    house.server.routes.insert(0, log_of(house))
    configuration = Configuration(allowed_identities=ALLOWED, rekor_url=f"{house.server.url}/rekor/")
    found = await house.verifier(configuration).verify(house.image(digest))
    # ECDSA's signatures differ each time: the promise is another one.
    assert list(found)[:-1] == [
        "image-signature:verified",
        "image-attestations:verified",
        *house.details(complete)[:-1],
    ]
    kinds = [entry["kind"] for asked in house.server.asked if asked.body for entry in json.loads(asked.body)["entries"]]
    assert kinds == ["hashedrekord", "dsse", "intoto"]


LIES: dict[str, Change] = {
    "inclusion proof not provided": lambda entry: entry.pop("verification"),
    "proof does not hold": lambda entry: entry["verification"]["inclusionProof"].update(rootHash="ab" * 32),
    "unable to verify SET": lambda entry: entry["verification"].update(signedEntryTimestamp="AAAA"),
    "leaf hash did not match UUID": lambda entry: entry.update(body="e30="),
}
"""By what is said of them."""


@pytest.mark.parametrize("reason", LIES)
async def test_a_log_that_answers_wrongly_is_not_believed(house: House, reason: str) -> None:
    digest = house.registry.push_image()
    house.registry.attach(digest, house.sigstore.signature(digest).without(BUNDLE))
    house.server.routes.insert(0, log_of(house, LIES[reason]))
    with pytest.raises(Refused, match=reason):
        await house.verifier(asking_the_log(house)).verify(house.image(digest))


def asking_the_log(house: House) -> Configuration:
    return Configuration(allowed_identities=ALLOWED, ignore_attestations=True, rekor_url=f"{house.server.url}/rekor")


async def test_the_logs_entry_of_another_signature_does_not_stand_for_this_one(house: House) -> None:
    digest = house.registry.push_image()
    unlogged = house.sigstore.signature(digest).without(BUNDLE)
    house.sigstore.log.bodies.pop()
    house.sigstore.log.times.pop()
    house.sigstore.signature(digest)
    house.registry.attach(digest, unlogged)
    house.server.routes.insert(0, log_of(house))
    with pytest.raises(Refused, match=r"signature in bundle does not match|the log entry is of another"):
        await house.verifier(asking_the_log(house)).verify(house.image(digest))


async def test_a_log_that_is_away_is_not_held_against_the_image(house: House) -> None:
    digest = house.registry.push_image()
    house.registry.attach(digest, house.sigstore.signature(digest).without(BUNDLE))
    house.server.routes.insert(0, lambda asked: Answer(503) if "rekor" in asked.path else None)
    with pytest.raises(TemporarilyUnavailable, match="answered 503"):
        await house.verifier(asking_the_log(house)).verify(house.image(digest))


async def test_what_is_found_without_the_log_is_not_remembered(house: House) -> None:
    digest = house.registry.push_image()
    with_entry, without = house.sigstore.signature(digest), house.sigstore.signature(digest).without(BUNDLE)
    house.registry.attach(digest, with_entry, without)
    answers = log_of(house)
    away = [True]
    house.server.routes.insert(0, lambda asked: Answer(503) if "rekor" in asked.path and away else answers(asked))
    verifier = house.verifier(asking_the_log(house))
    assert len(await verifier.verify(house.image(digest))) == 8
    away.clear()
    assert len(await verifier.verify(house.image(digest))) == 15


async def test_the_log_is_asked_a_few_times_only(house: House) -> None:
    digest = house.registry.push_image()
    house.registry.attach(digest, *(house.sigstore.signature(digest).without(BUNDLE) for _ in range(12)))
    house.server.routes.insert(0, lambda asked: Answer(body=b"[]") if "rekor" in asked.path else None)
    with pytest.raises(Refused, match="signature not found in transparency log; too many signatures have no log entry"):
        await house.verifier(asking_the_log(house)).verify(house.image(digest))
    assert sum("rekor" in path for path in house.server.paths()) == 8
