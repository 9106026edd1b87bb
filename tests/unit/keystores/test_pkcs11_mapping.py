"""What a start makes of keys_path and the token, without a token."""

from __future__ import annotations

from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from keystores import public_keys, state
from keystores.errors import NotFound, Refused
from keystores.pkcs11 import mapping
from keystores.pkcs11.mapping import MappedKey, Mapping, RetiredKey, TokenKey, reconcile
from operations.errors import Corrupt
from plugins.keymanager import KeyType

PUBLIC = public_keys.to_der(ec.generate_private_key(ec.SECP256R1()).public_key())
OTHER = public_keys.to_der(ec.generate_private_key(ec.SECP256R1()).public_key())
NOW = 1_800_000_000


def in_token(cka_id: str, label: str, public_key: bytes | None = PUBLIC) -> TokenKey:
    return TokenKey(bytes.fromhex(cka_id), label, public_key)


def mapped(cka_id: str) -> MappedKey:
    return MappedKey(cka_id=cka_id, key_type=KeyType.EC_P256, public_key=PUBLIC)


def retired(cka_id: str, at: int = NOW) -> RetiredKey:
    return RetiredKey(cka_id=cka_id, key_id="A", retired_at=at)


def test_a_mapping_that_agrees_with_the_token_stays() -> None:
    stored = Mapping(namespace="ns", keys={"A": mapped("aa")}, retired=(retired("bb"),))
    found = [in_token("aa", "ns/A"), in_token("bb", "ns/A (retired)")]
    assert reconcile(stored, found, "ns", NOW, shared=False).mapping == stored


def test_a_key_that_a_crash_left_is_retired() -> None:
    stored = Mapping(namespace="ns", keys={"A": mapped("aa")})
    found = [in_token("aa", "ns/A"), in_token("cc", "ns/A")]
    result = reconcile(stored, found, "ns", NOW, shared=False)
    assert list(result.orphans) == [retired("cc")]
    assert result.mapping.retired == (retired("cc"),)
    assert result.mapping.keys == stored.keys


def test_shared_keys_are_nobodys_orphans() -> None:
    stored = Mapping(namespace="ns", keys={"A": mapped("aa")})
    found = [in_token("aa", "ns/A"), in_token("cc", "ns/A")]
    assert reconcile(stored, found, "ns", NOW, shared=True).mapping == stored


def test_a_retired_key_that_is_gone_is_forgotten() -> None:
    stored = Mapping(namespace="ns", retired=(retired("bb"),))
    assert reconcile(stored, [], "ns", NOW, shared=False).mapping == Mapping(namespace="ns")


def test_a_mapped_key_that_is_gone_is_named() -> None:
    with pytest.raises(NotFound, match=r"lacks key 'A' \(CKA_ID aa\).*keys_path"):
        reconcile(Mapping(namespace="ns", keys={"A": mapped("aa")}), [], "ns", NOW, shared=False)


def test_a_key_with_another_public_key_is_refused() -> None:
    stored = Mapping(namespace="ns", keys={"A": mapped("aa")})
    with pytest.raises(Refused, match="is not the one in keys_path"):
        reconcile(stored, [in_token("aa", "ns/A", OTHER)], "ns", NOW, shared=False)


def test_a_mapping_of_another_namespace_is_refused() -> None:
    with pytest.raises(Refused, match="namespace 'other'"):
        reconcile(Mapping(namespace="other"), [], "ns", NOW, shared=False)


def test_without_a_mapping_the_labels_are_adopted() -> None:
    found = [in_token("aa", "ns/A"), in_token("bb", "ns/B"), in_token("cc", "ns/A (retired)")]
    result = reconcile(None, found, "ns", NOW, shared=False)
    assert list(result.adopted) == ["A", "B"]
    assert result.mapping == Mapping(
        namespace="ns", keys={"A": mapped("aa"), "B": mapped("bb")}, retired=(retired("cc"),)
    )


def test_two_candidates_for_one_id_are_refused_not_chosen_between() -> None:
    with pytest.raises(Refused, match=r"2 keys in the token are labelled 'ns/A' .*aa and bb"):
        reconcile(None, [in_token("aa", "ns/A"), in_token("bb", "ns/A")], "ns", NOW, shared=False)


def test_a_candidate_without_a_public_key_is_refused() -> None:
    with pytest.raises(Refused, match="no public key object"):
        reconcile(None, [in_token("aa", "ns/A", None)], "ns", NOW, shared=False)


def test_two_private_keys_with_one_cka_id_are_refused() -> None:
    with pytest.raises(Refused, match="CKA_ID aa"):
        reconcile(None, [in_token("aa", "ns/A"), in_token("aa", "ns/B")], "ns", NOW, shared=False)


@pytest.mark.parametrize(
    ("limit", "now", "due"),
    [
        (8, NOW, []),
        (8, NOW + 50, ["01"]),
        (8, NOW + 500, ["01", "02"]),
        (2, NOW, ["01"]),
        (1, NOW, ["01", "02"]),
        (0, NOW, ["01", "02"]),
    ],
)
def test_retired_keys_go_after_their_grace_or_when_room_is_needed(limit: int, now: int, due: list[str]) -> None:
    stored = Mapping(namespace="ns", keys={"A": mapped("aa")}, retired=(retired("02"), retired("01", NOW - 50)))
    assert [key.cka_id for key in stored.due(now, 100, limit)] == due


def test_the_file_comes_back_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    stored = Mapping(namespace="ns", keys={"A": mapped("aa")}, retired=(retired("bb"),))
    assert mapping.read(path) is None
    state.write(path, stored)
    assert mapping.read(path) == stored
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("content", [b"", b"{}", b'{"keys": {"a": "AAAA"}}', b'{"namespace": "a", "version": 2}'])
def test_a_damaged_mapping_is_left_as_it_is(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "keys.json"
    path.write_bytes(content)
    with pytest.raises(Corrupt, match=str(path)):
        mapping.read(path)
    assert path.read_bytes() == content
