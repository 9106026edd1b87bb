from __future__ import annotations

import base64
import json

from agent.jwt_cache import JwtCache, JwtSvid, key


def svid(kid: str = "k", issued_at: float = 0, expires_at: float = 100) -> JwtSvid:
    header = base64.urlsafe_b64encode(json.dumps({"kid": kid}).encode()).rstrip(b"=").decode()
    return JwtSvid(f"{header}.e30.c2ln", issued_at, expires_at)


def test_the_order_of_audiences_does_not_matter() -> None:
    cache = JwtCache()
    cache.put(key("spiffe://td/w", ["a", "b"]), svid())
    assert cache.get(key("spiffe://td/w", ["b", "a"])) == svid()
    assert cache.get(key("spiffe://td/w", ["a"])) is None
    assert cache.get(key("spiffe://td/v", ["a", "b"])) is None


def test_the_least_recently_used_is_dropped() -> None:
    cache = JwtCache(2)
    first, second, third = (key(each, ["a"]) for each in ("1", "2", "3"))
    cache.put(first, svid())
    cache.put(second, svid())
    cache.get(first)
    cache.put(third, svid())
    assert cache.get(second) is None
    assert cache.get(first) is not None
    assert len(cache) == 2


def test_what_a_tainted_authority_signed_is_dropped() -> None:
    cache = JwtCache()
    cache.put(key("1", ["a"]), svid("good"))
    cache.put(key("2", ["a"]), svid("bad"))
    others = (b"", b"[]", b'{"kid": 1}', b'{"kid": "\xff"}', b'{"kid": "bad", "x": ' + b"[" * 10_000)
    for number, header in enumerate(others):
        token = f"{base64.urlsafe_b64encode(header).decode()}.e30.c2ln"
        cache.put(key(f"other {number}", ["a"]), JwtSvid(token, 0, 100))
    cache.put(key("3", ["a"]), JwtSvid("no token", 0, 100))
    assert cache.drop_signed_by({"bad"}) == 1
    assert len(cache) == 2 + len(others)


def test_expiry() -> None:
    token = svid(issued_at=0, expires_at=100)
    assert not token.expires_soon(49)
    assert token.expires_soon(50)
    assert not token.is_expired(99)
    assert token.is_expired(100)
