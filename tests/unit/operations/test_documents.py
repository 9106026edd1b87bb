from __future__ import annotations

import msgspec
import pytest

from operations.documents import Malformed, decode


class Document(msgspec.Struct, frozen=True):
    name: str = ""


def test_keys_that_are_not_known_are_let_be() -> None:
    assert decode(b'{"name": "a", "other": [1]}', Document) == Document("a")


HOSTILE: dict[str, bytes | str] = {
    "no JSON": b"{",
    "another kind": b'{"name": 1}',
    "no UTF-8": b'{"name": "\xff"}',
    "no text": '{"name": "\ud800"}',
    "half a pair": b'{"name": "\\ud800"}',
    "too deep": b'{"other": ' + b"[" * 100_000,
    "too deep in objects": b'{"other": ' * 100_000,
}


@pytest.mark.parametrize("name", HOSTILE)
def test_whatever_is_wrong_is_one_error(name: str) -> None:
    with pytest.raises(Malformed) as refusal:
        decode(HOSTILE[name], Document)
    assert 0 < len(str(refusal.value)) < 200
