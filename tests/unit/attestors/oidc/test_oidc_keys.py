"""An issuer's keys: how often they are asked for, and what is done while they are not to be had."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from attestors.oidc import fetching, keys
from attestors.oidc.keys import KeySet
from operations.errors import ConfigurationError, Refused, SpireError, TemporarilyUnavailable
from tests.simulators import virtual_time
from tests.simulators.issuer import JWKS, Issuer, issuing, jwk, new_key
from tests.simulators.registry import Answer

KEY = new_key("ES256")
NO_PATH = Path("/none")


class Source:
    """Keys by id, or an error, after a while."""

    def __init__(self, *key_ids: str) -> None:
        self.key_ids: Sequence[str] = key_ids
        self.error: SpireError | None = None
        self.takes = 1.0
        self.asked = 0

    async def fetch(self) -> list[msgspec.Raw]:
        self.asked += 1
        await asyncio.sleep(self.takes)
        if self.error is not None:
            raise self.error
        return [msgspec.Raw(json.dumps(jwk(KEY, each)).encode()) for each in self.key_ids]


def test_many_ask_at_once_and_the_issuer_is_asked_once() -> None:
    async def life() -> None:
        source = Source("a")
        key_set = KeySet("i", source.fetch)
        found = await asyncio.gather(*(key_set.find("a") for _ in range(50)))
        assert all(len(each) == 1 for each in found)
        assert source.asked == 1

    virtual_time.run(life(), virtual_time.VirtualLoop())


def test_a_rotated_key_is_found_and_unknown_ones_do_not_flood_the_issuer() -> None:
    async def life() -> None:
        source = Source("a")
        key_set = KeySet("i", source.fetch)
        await key_set.find("a")
        source.key_ids = ("b",)
        await asyncio.sleep(keys.PAUSE)
        assert [each.key_id for each in await key_set.find("b")] == ["b"]
        for number in range(100):
            with pytest.raises(Refused, match="has no key"):
                await key_set.find(f"made up {number}")
        assert source.asked == 2
        with pytest.raises(Refused):
            await key_set.find("a")

    virtual_time.run(life(), virtual_time.VirtualLoop())


def test_keys_are_fetched_anew_in_the_background_and_last_while_the_issuer_is_away() -> None:
    async def life() -> None:
        source = Source("a")
        key_set = KeySet("i", source.fetch)
        await key_set.find("a")
        source.error = TemporarilyUnavailable("away")
        source.takes = 5.0
        await asyncio.sleep(keys.FRESH)
        loop = asyncio.get_running_loop()
        while loop.time() < keys.STALE - 20:
            before = loop.time()
            assert await key_set.find("a")
            assert loop.time() == before, "nobody waits for what is fetched in the background"
            await asyncio.sleep(1)
        assert source.asked <= keys.STALE / keys.PAUSE + 1
        await asyncio.sleep(60)
        with pytest.raises(TemporarilyUnavailable, match="not to be had: away"):
            await key_set.find("a")
        source.error = None
        await asyncio.sleep(keys.PAUSE)
        assert await key_set.find("a")
        await key_set.close()

    virtual_time.run(life(), virtual_time.VirtualLoop())


def test_a_caller_who_gives_up_takes_nothing_from_the_others() -> None:
    async def life() -> None:
        source = Source("a")
        key_set = KeySet("i", source.fetch)
        first = asyncio.create_task(key_set.find("a"))
        second = asyncio.create_task(key_set.find("a"))
        await asyncio.sleep(0.5)
        first.cancel()
        assert await second
        assert source.asked == 1

    virtual_time.run(life(), virtual_time.VirtualLoop())


async def fetched(issuer: Issuer, jwks_url: str = "", ca_path: Path | None = None) -> int:
    http = fetching.client(issuer.url, "" if ca_path == NO_PATH else str(ca_path or issuer.ca_path))
    try:
        return len(await fetching.fetch(issuer.url, jwks_url, http))
    finally:
        http.close()


async def test_discovery_leads_to_the_keys(tmp_path: Path) -> None:
    with issuing(tmp_path) as issuer:
        issuer.add("second", "RS256")
        assert await fetched(issuer) == 2
        assert issuer.web.paths() == [fetching.DISCOVERY, JWKS]
        assert await fetched(issuer, f"{issuer.url}{JWKS}") == 2
        assert issuer.web.paths()[2:] == [JWKS]


def endless() -> Any:
    while True:
        yield b" " * 65536


BAD: dict[str, tuple[str, Answer, str]] = {
    "another's document": (
        fetching.DISCOVERY,
        Answer(body=b'{"issuer": "https://other.example", "jwks_uri": "https://other.example/keys"}'),
        "discovery document is of",
    ),
    "keys in the clear": (fetching.DISCOVERY, Answer(body=b'{"issuer": "URL", "jwks_uri": "http://URL/"}'), "no https"),
    "no document": (fetching.DISCOVERY, Answer(status=404), "404"),
    "no JSON": (fetching.DISCOVERY, Answer(body=b"<html>"), "configuration: "),
    "a redirect": (JWKS, Answer(status=302, headers={"Location": "https://other.example/"}), "302"),
    "endless keys": (JWKS, Answer(body=endless()), "more than 262144 bytes"),
    "no keys": (JWKS, Answer(body=b'{"keys": 7}'), "keys: "),
}


@pytest.mark.parametrize("case", BAD)
async def test_what_no_issuer_should_publish(tmp_path: Path, case: str) -> None:
    path, answer, reason = BAD[case]
    with issuing(tmp_path) as issuer:
        if isinstance(answer.body, bytes):
            answer = Answer(
                answer.status, answer.body.replace(b'"URL"', json.dumps(issuer.url).encode()), answer.headers
            )
        issuer.answers[path] = answer
        with pytest.raises((Refused, TemporarilyUnavailable), match=reason):
            await fetched(issuer)


async def test_only_the_pinned_authorities_count(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    with issuing(tmp_path) as issuer, issuing(tmp_path / "other") as other:
        with pytest.raises(TemporarilyUnavailable, match="certificate"):
            await fetched(issuer, ca_path=other.ca_path)
        with pytest.raises(TemporarilyUnavailable, match="certificate"):
            await fetched(issuer, ca_path=NO_PATH)
    with pytest.raises(ConfigurationError, match=r"ca_path: .*none: No such file"):
        fetching.tls_context("https://x", str(tmp_path / "none"))
    (tmp_path / "empty").write_text("nothing")
    with pytest.raises(ConfigurationError, match="no certificates in PEM"):
        fetching.tls_context("https://x", str(tmp_path / "empty"))


async def test_a_slow_issuer_ends_in_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetching, "TIMEOUT", 0.5)
    with issuing(tmp_path) as issuer:

        def drip() -> Any:
            while not issuer.web.closing.wait(0.1):
                yield b" "

        issuer.answers[JWKS] = Answer(body=drip())
        with pytest.raises(TemporarilyUnavailable, match=r"has not answered within 0\.5 s"):
            await fetched(issuer)
