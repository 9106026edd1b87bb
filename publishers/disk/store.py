"""The store itself: from an SVID and its selectors to files, and to those who are told of them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from identity import bundles, pem
from operations.errors import InvalidArgument, PermanentlyUnusable, Refused
from operations.logs import Logger
from operations.quoting import quote
from plugins.svidstore import StoredX509Svid, SvidStore
from publishers.disk import folder, telling
from publishers.disk.configuration import Configuration, Svid, is_name, owner, signal_number

if TYPE_CHECKING:
    from plugins.catalog import PluginContext

_DEFAULTS = Svid()


class DiskStore:
    """Each SVID has a folder of its own, whose name is in its entry's selector `disk:name:NAME`."""

    name = "disk"

    def __init__(self, configuration: Configuration, log: Logger) -> None:
        self._configuration = configuration
        self._log = log
        self._directory = Path(configuration.directory)
        self._written: dict[str, StoredX509Svid] = {}

    async def put(self, svid: StoredX509Svid, metadata: Sequence[str]) -> None:
        """Write the files, then tell of them. When telling fails, the same `put` does it again.

        Raises InvalidArgument for selectors that name no place, PermanentlyUnusable when files cannot be written, and
        what `telling` raises.
        """
        name = name_of(metadata)
        settings = self._configuration.svid.get(name, _DEFAULTS)
        before = self._written.get(name)
        if before != svid:
            if before is not None and before.spiffe_id != svid.spiffe_id:
                self._log.warning("Replacing the SVID of another SPIFFE ID", name=name, spiffe_id=before.spiffe_id)
            await self._write(name, settings, svid)
            self._written[name] = svid
        await self._tell(name, settings, svid.spiffe_id)

    async def delete(self, metadata: Sequence[str]) -> None:
        name = name_of(metadata)
        try:
            await asyncio.to_thread(folder.remove, self._directory / name)
        except OSError as error:
            raise PermanentlyUnusable(f"cannot remove {self._directory / name}: {error.strerror}") from error
        self._written.pop(name, None)
        self._log.info("SVID files removed", folder=str(self._directory / name))

    async def _write(self, name: str, settings: Svid, svid: StoredX509Svid) -> None:
        place = self._directory / name
        try:
            await asyncio.to_thread(_write, place, settings, svid, f"svid {quote(name)}")
        except OSError as error:
            raise PermanentlyUnusable(f"cannot write SVID files in {place}: {error.strerror}") from error
        self._log.info("SVID files written", folder=str(place), spiffe_id=svid.spiffe_id)

    async def _tell(self, name: str, settings: Svid, spiffe_id: str) -> None:
        if settings.on_change:
            await telling.run(settings.on_change, self._directory / name, spiffe_id)
        if settings.pid_file_name:
            number = signal_number(settings.renew_signal)
            sent = await asyncio.to_thread(telling.send, number, Path(settings.pid_file_name))
            if not sent:
                self._log.debug("Nobody to signal", pid_file_name=settings.pid_file_name)


def name_of(metadata: Sequence[str]) -> str:
    """The NAME of `name:NAME`. Raises InvalidArgument unless that is all there is."""
    advice = "give the entry the one selector disk:name:NAME"
    if len(metadata) != 1:
        raise InvalidArgument(f"expected one selector of type disk, found {len(metadata)}: {advice}")
    key, _, name = metadata[0].partition(":")
    if key != "name" or not is_name(name):
        raise InvalidArgument(f"the selector disk:{metadata[0]} names no place for files: {advice}")
    return name


def _write(place: Path, settings: Svid, svid: StoredX509Svid, words: str) -> None:
    place.parent.mkdir(folder.FOLDER_MODE, parents=True, exist_ok=True)
    uid, gid = owner(settings, words)
    certificates, key, bundle = _texts(settings, svid)
    public, secret = settings.cert_file_mode, settings.key_file_mode
    files = {
        settings.svid_file_name: folder.File(certificates, public, uid, gid),
        settings.svid_key_file_name: folder.File(key, secret, uid, gid),
        settings.svid_bundle_file_name: folder.File(bundle, public, uid, gid),
        # For programs that want one file, such as HAProxy.
        settings.combined_file_name: folder.File(certificates + key, secret, uid, gid),
    }
    folder.replace(place, {name: file for name, file in files.items() if name})


def _texts(settings: Svid, svid: StoredX509Svid) -> tuple[bytes, bytes, bytes]:
    """Certificates, key and bundle in PEM."""
    leaf, *intermediates = svid.chain
    chain, authorities = list(svid.chain), list(svid.bundle)
    if settings.add_intermediates_to_bundle:
        chain, authorities = [leaf], [*intermediates, *authorities]
    if settings.include_federated_domains:
        authorities += [der for name in sorted(svid.federated_bundles) for der in svid.federated_bundles[name]]
    key = pem.private_key(svid.private_key)
    return bundles.to_pem(chain).encode(), key.encode(), bundles.to_pem(authorities).encode()


async def load(configuration: Configuration, context: PluginContext) -> SvidStore:
    """Raises ConfigurationError for what cannot work, Refused for a directory that cannot be made."""
    await asyncio.to_thread(configuration.check_files)
    try:
        await asyncio.to_thread(Path(configuration.directory).mkdir, folder.FOLDER_MODE, parents=True, exist_ok=True)
    except OSError as error:
        raise Refused(f"cannot create {configuration.directory}: {error.strerror}; check directory") from error
    return DiskStore(configuration, context.log)
