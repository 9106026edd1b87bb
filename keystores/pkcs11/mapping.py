"""Which key in the token has which id: the durable mapping, and what a start makes of it and of the token's content.

The mapping names keys by CKA_ID; the CKA_LABEL, `<namespace>/<key id>`, is for people and for the day when the
mapping is lost. It holds no secret.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from keystores import public_keys, state
from keystores.errors import NotFound, Refused
from plugins.keymanager import KeyType

RETIRED_SUFFIX = " (retired)"
"""Ends the label of a key that a newer one replaced."""


@dataclass(frozen=True, slots=True)
class TokenKey:
    """A private key in the token. `public_key` (DER) is None when the token has no public key object for it."""

    cka_id: bytes
    label: str
    public_key: bytes | None


class MappedKey(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`cka_id` in hex, `public_key` the DER SubjectPublicKeyInfo, `created_at` in Unix seconds; None for a key that was
    adopted, or made by a release that did not write it down.
    """

    cka_id: str
    key_type: KeyType
    public_key: bytes
    created_at: int | None = None


class RetiredKey(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A key that no id refers to since `retired_at` (Unix seconds); to be destroyed."""

    cka_id: str
    key_id: str
    retired_at: int
    created_at: int | None = None


class Mapping(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The content of keys_path. Values are replaced, never changed in place.

    `sealing_key` is the hex CKA_ID of the secret key for what is sealed, once there is one.
    """

    namespace: str
    version: int = 1
    keys: dict[str, MappedKey] = {}
    retired: tuple[RetiredKey, ...] = ()
    sealing_key: str | None = None

    def with_key(self, key_id: str, key: MappedKey, now: int) -> Mapping:
        """`key_id` names the new key from now on; the one it named is retired."""
        freed = self.without_key(key_id, now)
        return msgspec.structs.replace(freed, keys={**freed.keys, key_id: key})

    def without_key(self, key_id: str, now: int) -> Mapping:
        """`key_id` names nothing from now on; the key that it named, if there was one, is retired."""
        keys = dict(self.keys)
        former = keys.pop(key_id, None)
        if former is None:
            return self
        retired = RetiredKey(cka_id=former.cka_id, key_id=key_id, retired_at=now, created_at=former.created_at)
        return msgspec.structs.replace(self, keys=keys, retired=(*self.retired, retired))

    def id_of(self, cka_id: str) -> str | None:
        """The id that names the key."""
        return next((key_id for key_id, key in self.keys.items() if key.cka_id == cka_id), None)

    def without_retired(self, cka_id: str) -> Mapping:
        return msgspec.structs.replace(self, retired=tuple(key for key in self.retired if key.cka_id != cka_id))

    def due(self, now: int, grace: float, limit: int) -> Sequence[RetiredKey]:
        """Whom to destroy, oldest first: past the grace time, or in the way of the limit on all keys."""
        oldest_first = sorted(self.retired, key=lambda key: key.retired_at)
        surplus = len(self.keys) + len(oldest_first) - limit
        return [key for index, key in enumerate(oldest_first) if index < surplus or now >= key.retired_at + grace]


def read(path: Path) -> Mapping | None:
    """None when there is no file. Raises Corrupt for one that cannot be understood; it is left as it is."""
    return state.read(
        path,
        Mapping,
        " or no mapping of PKCS#11 keys",
        "it was left as it is: restore it from a backup, or move it away to have the token's keys adopted by their "
        "labels",
    )


def label(namespace: str, key_id: str) -> str:
    return f"{namespace}/{key_id}"


@dataclass(frozen=True, slots=True)
class Reconciled:
    """The mapping to go on with, and what is worth a log line."""

    mapping: Mapping
    adopted: Sequence[str] = ()
    orphans: Sequence[RetiredKey] = ()


def reconcile(
    mapping: Mapping | None, found: Sequence[TokenKey], namespace: str, now: int, *, shared: bool
) -> Reconciled:
    """Bring the mapping and the keys that carry the namespace's labels together.

    Raises NotFound for a mapped key that the token lacks, Refused where one name stands for two keys or a key is not
    what the mapping says. Keys that nothing refers to, left by a crash, are retired, unless other servers share them.
    """
    by_cka_id: dict[str, TokenKey] = {}
    for key in found:
        if key.cka_id.hex() in by_cka_id:
            raise Refused(f"the token has two private keys with CKA_ID {key.cka_id.hex()}; remove one")
        by_cka_id[key.cka_id.hex()] = key
    if mapping is None:
        return _adopt(by_cka_id, namespace, now)
    if mapping.namespace != namespace:
        raise Refused(
            f"keys_path belongs to namespace {mapping.namespace!r}, and the configuration says {namespace!r}: "
            "correct one of them"
        )
    for key_id, mapped in mapping.keys.items():
        _check_mapped(key_id, mapped, by_cka_id.get(mapped.cka_id))
    retired = [key for key in mapping.retired if key.cka_id in by_cka_id]
    referred = {key.cka_id for key in mapping.keys.values()} | {key.cka_id for key in retired}
    orphans = (
        [] if shared else [_retire(key, namespace, now) for cka_id, key in by_cka_id.items() if cka_id not in referred]
    )
    return Reconciled(msgspec.structs.replace(mapping, retired=(*retired, *orphans)), orphans=orphans)


def _check_mapped(key_id: str, mapped: MappedKey, key: TokenKey | None) -> None:
    if key is None:
        raise NotFound(
            f"the token lacks key {key_id!r} (CKA_ID {mapped.cka_id}), which keys_path names: is it the right token? "
            "To go on without the key, move keys_path away"
        )
    if key.public_key is not None and key.public_key != mapped.public_key:
        raise Refused(f"the public key of {key_id!r} (CKA_ID {mapped.cka_id}) in the token is not the one in keys_path")


def id_in(label: str, namespace: str) -> str:
    """The id that a label of the namespace tells of."""
    return label[len(namespace) + 1 :].removesuffix(RETIRED_SUFFIX)


def _key_id(key: TokenKey, namespace: str) -> str:
    return id_in(key.label, namespace)


def _retire(key: TokenKey, namespace: str, now: int) -> RetiredKey:
    return RetiredKey(cka_id=key.cka_id.hex(), key_id=_key_id(key, namespace), retired_at=now)


def _adopt(by_cka_id: dict[str, TokenKey], namespace: str, now: int) -> Reconciled:
    candidates: defaultdict[str, list[TokenKey]] = defaultdict(list)
    retired: list[RetiredKey] = []
    for key in by_cka_id.values():
        if key.label.endswith(RETIRED_SUFFIX):
            retired.append(_retire(key, namespace, now))
        else:
            candidates[_key_id(key, namespace)].append(key)
    keys: dict[str, MappedKey] = {}
    for key_id, named in candidates.items():
        if len(named) > 1:
            cka_ids = " and ".join(key.cka_id.hex() for key in named)
            raise Refused(
                f"keys_path is gone and {len(named)} keys in the token are labelled {named[0].label!r} "
                f"(CKA_ID {cka_ids}): restore keys_path, or remove all but one of them"
            )
        if named[0].public_key is None:
            raise Refused(
                f"keys_path is gone and the token has no public key object for {named[0].label!r} "
                f"(CKA_ID {named[0].cka_id.hex()}): restore keys_path"
            )
        keys[key_id] = MappedKey(
            cka_id=named[0].cka_id.hex(),
            key_type=public_keys.key_type_of(public_keys.from_der(named[0].public_key)),
            public_key=named[0].public_key,
        )
    return Reconciled(Mapping(namespace=namespace, keys=keys, retired=tuple(retired)), adopted=sorted(keys))
