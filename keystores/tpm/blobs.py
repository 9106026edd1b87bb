"""The folder of wrapped blobs, and which of them has which id.

`key-<Name>.json` is one blob, written once and never again; `keys.json` is the mapping that says which id is whose, and
is replaced as a whole. A key is written first and named then, so that a crash leaves at most a blob without a name.
Nothing here is secret: a blob is of use to the TPM that made it.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final, TypeVar

import msgspec

from keystores import public_keys, state
from keystores.errors import KeyStoreError, NotFound, PermanentlyUnusable, Refused
from keystores.tpm import messages, public_area
from keystores.tpm.public_area import PublicArea
from operations.errors import Corrupt
from operations.files import sync_directory
from plugins.keymanager import KeyType

MAPPING: Final = "keys.json"
SEALED: Final = "sealing.json"
SEALING_ID: Final = "sealing"
_FILE_NAME: Final = re.compile(r"key-([0-9a-f]{64})\.json")
T = TypeVar("T", "Stored", "Index")
_ADVICE: Final = "it was left as it is: restore it from a backup, or move it away"


class Stored(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The content of a blob's file. `public` and `private` are TPM2B structures, `created_at` is in Unix seconds."""

    id: str
    public: bytes
    private: bytes
    created_at: int
    pcrs: str | None = None
    version: int = 1

    @property
    def blob(self) -> messages.Blob:
        return messages.Blob(public=self.public, private=self.private, pcrs=self.pcrs)


class RetiredKey(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A key that no id refers to since `retired_at` (Unix seconds); `name` is its file's."""

    name: str
    id: str
    retired_at: int


class Index(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The content of keys.json. `source` and `parent` (a Name in hex) say which key wraps the blobs."""

    source: str
    parent: str
    keys: dict[str, str] = {}
    retired: tuple[RetiredKey, ...] = ()
    version: int = 1

    def with_key(self, key_id: str, name: str, now: int) -> Index:
        """`key_id` names the new key from now on; the one it named is retired."""
        former = self.keys.get(key_id)
        retired = self.retired
        if former is not None:
            retired = (*retired, RetiredKey(name=former, id=key_id, retired_at=now))
        return msgspec.structs.replace(self, keys={**self.keys, key_id: name}, retired=retired)

    def without_key(self, key_id: str, now: int) -> Index:
        """`key_id` names nothing any more; the key it named is retired."""
        retired = RetiredKey(name=self.keys[key_id], id=key_id, retired_at=now)
        keys = {other: name for other, name in self.keys.items() if other != key_id}
        return msgspec.structs.replace(self, keys=keys, retired=(*self.retired, retired))

    def id_of(self, name: str) -> str | None:
        return next((key_id for key_id, used in self.keys.items() if used == name), None)

    def without_retired(self, name: str) -> Index:
        return msgspec.structs.replace(self, retired=tuple(key for key in self.retired if key.name != name))

    def due(self, now: int, grace: float, limit: int) -> Sequence[RetiredKey]:
        """Whom to dispose of, oldest first: past the grace time, or in the way of the limit on all keys."""
        oldest_first = sorted(self.retired, key=lambda key: key.retired_at)
        surplus = len(self.keys) + len(oldest_first) - limit
        return [key for index, key in enumerate(oldest_first) if index < surplus or now >= key.retired_at + grace]


class Entry:
    """A blob with what its public area says."""

    def __init__(self, stored: Stored, area: PublicArea, key_type: KeyType) -> None:
        self.stored: Final = stored
        self.area: Final = area
        self.key_type: Final = key_type
        self.name: Final = area.name[2:].hex()


def entry(stored: Stored) -> Entry:
    """Raises InvalidArgument and Unsupported for a public area that is no key of ours."""
    area = public_area.parse(stored.public)
    return Entry(stored, area, public_keys.key_type_of(area.key))


class Folder:
    """keys_path. Every method blocks on the disk. Raises PermanentlyUnusable for what the disk refuses."""

    def __init__(self, path: Path) -> None:
        self.path: Final = path

    @contextmanager
    def locked(self) -> Generator[None]:
        """Make the folder if it is missing, and keep other processes from it. Raises Refused."""
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise PermanentlyUnusable(f"keys_path: {self.path} cannot be written: {error.strerror}") from error
        with state.locked(self.path / MAPPING, self.path):
            yield

    def read_index(self) -> Index | None:
        """None when there is no mapping. Raises Corrupt for one that cannot be understood."""
        return self._read(MAPPING, Index)

    def write_index(self, index: Index) -> None:
        self._write(MAPPING, index)

    def read_key(self, name: str) -> Entry:
        """Raises NotFound, Corrupt."""
        file = f"key-{name}.json"
        stored = self._read(file, Stored)
        if stored is None:
            raise NotFound(
                f"keys_path: {self.path / file} is gone, which {MAPPING} names: restore it from a backup, or move "
                "the folder away to start with new keys"
            )
        try:
            found = entry(stored)
        except KeyStoreError as error:
            raise Corrupt(f"keys_path: {self.path / file} is damaged ({error}); {_ADVICE}") from error
        if found.name != name:
            raise Corrupt(f"keys_path: {self.path / file} holds another key, {found.name}; {_ADVICE}")
        return found

    def write_key(self, key: Entry) -> None:
        self._write(f"key-{key.name}.json", key.stored)

    def remove_key(self, name: str) -> None:
        """Durably; without a complaint where it is gone already."""
        path = self.path / f"key-{name}.json"
        try:
            path.unlink(missing_ok=True)
            sync_directory(self.path)
        except OSError as error:
            raise PermanentlyUnusable(f"keys_path: {path} cannot be removed: {error.strerror}") from error

    def clear_unfinished(self) -> None:
        """Remove what writings that a crash cut off have left. The lock says that nobody else is writing."""
        try:
            for path in self.path.glob(".key*.json.*"):
                path.unlink()
        except OSError as error:
            raise PermanentlyUnusable(f"keys_path: {self.path} cannot be written: {error.strerror}") from error

    def names(self) -> Iterator[str]:
        """The blobs that are there, named or not."""
        try:
            files = sorted(path.name for path in self.path.iterdir())
        except OSError as error:
            raise PermanentlyUnusable(f"keys_path: {self.path} cannot be read: {error.strerror}") from error
        return (match[1] for file in files if (match := _FILE_NAME.fullmatch(file)))

    def read_sealed(self) -> Stored | None:
        return self._read(SEALED, Stored)

    def write_sealed(self, stored: Stored) -> None:
        self._write(SEALED, stored)

    def _read(self, file: str, kind: type[T]) -> T | None:
        return state.read(self.path / file, kind, "", _ADVICE)

    def _write(self, file: str, content: Stored | Index) -> None:
        state.write(self.path / file, content)


def adopted(folder: Folder, source: str, parent: str) -> Index:
    """The mapping for blobs whose mapping is gone, by the ids in them. Raises Refused where two have one id."""
    candidates: defaultdict[str, list[str]] = defaultdict(list)
    for name in folder.names():
        candidates[folder.read_key(name).stored.id].append(name)
    for key_id, names in candidates.items():
        if len(names) > 1:
            files = " and ".join(f"key-{name}.json" for name in names)
            raise Refused(
                f"keys_path: {folder.path / MAPPING} is gone and {len(names)} blobs have the id {key_id!r} ({files}): "
                f"restore {MAPPING}, or move all but one of them away"
            )
    return Index(source=source, parent=parent, keys={key_id: names[0] for key_id, names in candidates.items()})


def with_orphans(folder: Folder, index: Index, now: int) -> tuple[Index, Mapping[str, Entry], Sequence[RetiredKey]]:
    """The mapping and the named keys; blobs that a crash left without a name are retired, and retired ones whose file
    is gone are forgotten. Raises NotFound, Corrupt."""
    entries = {key_id: folder.read_key(name) for key_id, name in index.keys.items()}
    present = set(folder.names())
    retired = [key for key in index.retired if key.name in present]
    referred = set(index.keys.values()) | {key.name for key in retired}
    orphans = [
        RetiredKey(name=name, id=folder.read_key(name).stored.id, retired_at=now) for name in sorted(present - referred)
    ]
    return msgspec.structs.replace(index, retired=(*retired, *orphans)), entries, orphans
