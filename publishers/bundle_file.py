"""The bundle in a file: BundlePublisher "disk", and Notifier "disk", without whose file a server does not start."""

from __future__ import annotations

import asyncio
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from identity.bundles import Bundle
from operations.errors import ConfigurationError, InvalidArgument, PermanentlyUnusable, TemporarilyUnavailable
from operations.files import write_atomically
from operations.logs import Logger
from operations.quoting import quote
from publishers import documents, ownership

if TYPE_CHECKING:
    from plugins.catalog import PluginContext

_ALL = 0o666
_WRITABLE_BY_OTHERS = 0o002
_LARGEST = 16 << 20


class _Configuration(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`mode` is a number such as 0644. `user` and `group` own the file; without them the server's do."""

    path: str = ""
    format: str = ""
    refresh_hint: str = ""
    mode: int = 0o644
    user: str = ""
    group: str = ""

    def __post_init__(self) -> None:
        if not Path(self.path).is_absolute():
            said = f"path {quote(self.path)} must begin with a slash" if self.path else "path is missing"
            raise InvalidArgument(f"{said}: name the file that gets the bundle")
        documents.check(self.format, self.refresh_hint)
        shown = f"mode {self.mode} (octal 0{self.mode:o})" if self.mode >= 0 else f"mode {self.mode}"
        if self.mode < 0 or self.mode & ~_ALL:
            raise InvalidArgument(f"{shown} is no mode of such a file: write one such as 0644, with the zero")
        if self.mode & _WRITABLE_BY_OTHERS:
            raise InvalidArgument(f"{shown} lets everybody change whom others trust: use 0644")

    @property
    def owner(self) -> tuple[int, int]:
        """Raises ConfigurationError."""
        return ownership.numbers(self.user, self.group, self.path, "the server")

    def check_files(self) -> None:
        """Raises ConfigurationError."""
        _ = self.owner
        folder = Path(self.path).parent
        if not folder.is_dir():
            raise ConfigurationError(f"there is no folder {folder}: make it, or correct path")
        if fault := _not_a_file(Path(self.path)):
            raise ConfigurationError(fault)


class PublisherConfiguration(_Configuration, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Of BundlePublisher "disk"."""


class NotifierConfiguration(_Configuration, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Of Notifier "disk"."""

    format: str = "pem"


class BundleFile:
    """The file, which is left alone while it has what it should."""

    def __init__(self, configuration: _Configuration, log: Logger) -> None:
        self._configuration = configuration
        self._log = log
        self._writing: asyncio.Task[bool] | None = None

    @property
    def name(self) -> str:
        return "disk"

    async def publish(self, bundle: Bundle) -> None:
        """Raises SpireError; what the file had stays in it."""
        configuration = self._configuration
        if self._writing is not None and not self._writing.done():
            # A file system that hangs has one thread, not one more for each try.
            raise TemporarilyUnavailable(f"{configuration.path} is still being written: look at its file system")
        document = documents.render(bundle, configuration.format, configuration.refresh_hint)
        self._writing = asyncio.create_task(asyncio.to_thread(_write, configuration, document))
        if await asyncio.shield(self._writing):
            self._log.info("Bundle written", path=configuration.path, sequence_number=bundle.sequence_number)

    async def bundle_loaded(self, bundle: Bundle) -> None:
        await self.publish(bundle)

    async def bundle_updated(self, bundle: Bundle) -> None:
        await self.publish(bundle)

    async def close(self) -> None:
        """Nothing is held."""


def _write(configuration: _Configuration, document: bytes) -> bool:
    """Whether there was something to write. Raises PermanentlyUnusable."""
    path = Path(configuration.path)
    try:
        if fault := _not_a_file(path):
            raise PermanentlyUnusable(fault)
        owner = configuration.owner
        if _has(path, document, configuration.mode, owner):
            return False
        write_atomically(path, document, configuration.mode, owner=owner)
    except OSError as error:
        raise PermanentlyUnusable(f"cannot write {path}: {error.strerror}; what was there before stays") from error
    return True


def _not_a_file(path: Path) -> str | None:
    """Why something else is in the file's place, which must not be replaced. A link may be somebody else's choice."""
    try:
        found = path.lstat().st_mode
    except FileNotFoundError:
        return None
    except OSError as error:
        return f"cannot look at {path}: {error.strerror}"
    if stat.S_ISREG(found):
        return None
    if stat.S_ISLNK(found):
        return f"{path} is a symbolic link: name the file that it leads to, or remove it"
    return f"{path} is {'a folder' if stat.S_ISDIR(found) else 'no regular file'}: remove it, or correct path"


def _has(path: Path, document: bytes, mode: int, owner: tuple[int, int]) -> bool:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW)
    except OSError:  # missing, or unreadable: the write shows what can be done
        return False
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        uid, gid = owner
        fits = stat.S_IMODE(status.st_mode) == mode and uid in (-1, status.st_uid) and gid in (-1, status.st_gid)
        return fits and file.read(_LARGEST) == document


async def load_publisher(configuration: PublisherConfiguration, context: PluginContext) -> BundleFile:
    """Raises ConfigurationError."""
    await asyncio.to_thread(configuration.check_files)
    return BundleFile(configuration, context.log)


async def load_notifier(configuration: NotifierConfiguration, context: PluginContext) -> BundleFile:
    """Raises ConfigurationError."""
    await asyncio.to_thread(configuration.check_files)
    return BundleFile(configuration, context.log)
