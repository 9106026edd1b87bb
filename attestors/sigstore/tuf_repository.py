"""Trust from a TUF repository (https://theupdateframework.io), Sigstore's own where the environment names no other.

As in cosign: TUF_ROOT is the folder where metadata are kept, `~/.sigstore/root` without it, nowhere with
SIGSTORE_NO_CACHE; TUF_MIRROR is the repository, and TUF_ROOT_JSON the first root of one that is not Sigstore's. What
`cosign initialize` left in the folder counts, too. While the repository cannot be reached, what is kept will do until
it expires.

`tuf_root.json` is version 14 of the root of Sigstore's repository (The Sigstore Authors, Apache-2.0). It is where trust
begins: later roots are signed by those before them.
"""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final
from urllib.parse import unquote, urlsplit

import msgspec
import urllib3
from tuf.api.exceptions import DownloadError, DownloadHTTPError, RepositoryError
from tuf.ngclient.fetcher import FetcherInterface
from tuf.ngclient.updater import Updater
from tuf.ngclient.urllib3_fetcher import Urllib3Fetcher

from attestors.sigstore.trust import Authority, Log, logs_of, read_certificates, read_key
from attestors.sigstore.trusted_root import TrustedRoot
from operations.documents import Malformed, decode
from operations.errors import ConfigurationError, InvalidArgument, TemporarilyUnavailable
from operations.logs import get

PUBLIC_MIRROR: Final = "https://tuf-repo-cdn.sigstore.dev"

_OLD_NAMES_OF_PUBLIC_MIRROR = frozenset((
    "sigstore-tuf-root",
    "https://sigstore-tuf-root.storage.googleapis.com",
    "https://storage.googleapis.com/sigstore-tuf-root",
))  # fmt: skip
_TRUSTED_ROOT = "trusted_root.json"
_FALLBACKS = {
    "Fulcio": ("fulcio.crt.pem", "fulcio_v1.crt.pem", "fulcio_intermediate_v1.crt.pem"),
    "Rekor": ("rekor.pub",),
    "CTFE": ("ctfe.pub",),
}
_LONGEST_TARGET = 1 << 20
_SOCKET_SECONDS = 10

_one_at_a_time = threading.Lock()
_log = get("sigstore")


class TufTrust:
    """Targets by what they are used for: those that say so themselves, or those in `trusted_root.json`."""

    def __init__(self, targets: Mapping[str, Sequence[bytes]], trusted_root: TrustedRoot | None) -> None:
        self._targets = targets
        self._trusted_root = trusted_root

    def fulcio(self) -> tuple[Authority, ...]:
        """Raises ConfigurationError, as the others do."""
        found = self._targets["Fulcio"]
        if not found and self._trusted_root is not None:
            return self._trusted_root.fulcio()
        try:
            certificates = tuple(certificate for target in found for certificate in read_certificates(target))
        except InvalidArgument as error:
            raise ConfigurationError(f"the TUF repository's fulcio certificates cannot be used: {error}") from error
        if not certificates:
            raise ConfigurationError("none of the Fulcio roots have been found in the TUF repository")
        return (Authority(certificates),)

    def rekor(self) -> Mapping[str, Log]:
        trusted = {} if self._trusted_root is None else self._trusted_root.rekor()
        return self._logs("Rekor", trusted)

    def ct(self) -> Mapping[str, Log]:
        trusted = {} if self._trusted_root is None else self._trusted_root.ct()
        return self._logs("CTFE", trusted)

    def _logs(self, usage: str, trusted: Mapping[str, Log]) -> Mapping[str, Log]:
        found = self._targets[usage]
        try:
            logs = logs_of([read_key(target) for target in found]) if found else trusted
        except InvalidArgument as error:
            raise ConfigurationError(f"the TUF repository's {usage} keys cannot be used: {error}") from error
        if not logs:
            raise ConfigurationError(f"none of the {usage} public keys have been found in the TUF repository")
        return logs


def load(environment: Mapping[str, str]) -> TufTrust:
    """Blocks. Raises ConfigurationError, TemporarilyUnavailable when the repository cannot be reached."""
    with _one_at_a_time, _folder(environment) as folder:
        mirror = _mirror(environment, folder)
        kept = folder / _folder_name(mirror)
        try:
            return _refreshed(mirror, kept, _first_root(environment, mirror, kept))
        except OSError as error:
            advice = "set TUF_ROOT to a folder that the agent may write to, or SIGSTORE_NO_CACHE=true"
            raise ConfigurationError(f"cannot keep TUF metadata in {kept}: {error.strerror}: {advice}") from error


def _refreshed(mirror: str, kept: Path, first_root: bytes) -> TufTrust:
    try:
        return _read(_updater(mirror, kept, _fetcher(mirror), first_root), kept)
    except (DownloadError, urllib3.exceptions.HTTPError) as error:  # a body that is cut off is none of TUF's
        if not (kept / "timestamp.json").is_file():
            raise TemporarilyUnavailable(f"error updating to TUF remote mirror {mirror}: {error}") from error
        _log.warning("The TUF repository cannot be reached; going on with what is kept", mirror=mirror, error=error)
    except (RepositoryError, ValueError) as error:
        raise ConfigurationError(f"the TUF repository {mirror} cannot be trusted: {error}") from error
    try:
        return _read(_updater(mirror, kept, _Kept(kept), None), kept)
    except (DownloadError, RepositoryError, ValueError) as error:
        raise TemporarilyUnavailable(
            f"the TUF repository {mirror} cannot be reached, and what is kept of it will not do: {error}"
        ) from error


def _updater(mirror: str, kept: Path, fetcher: FetcherInterface, first_root: bytes | None) -> Updater:
    updater = Updater(
        metadata_dir=str(kept),
        metadata_base_url=mirror,
        target_dir=str(kept / "targets"),
        target_base_url=f"{mirror.rstrip('/')}/targets",
        fetcher=fetcher,
        bootstrap=first_root,
    )
    updater.refresh()
    return updater


class _Note(msgspec.Struct, frozen=True):
    usage: str = ""


class _Custom(msgspec.Struct, frozen=True):
    """Sigstore's own note on a target."""

    sigstore: _Note = _Note()


class _Target(msgspec.Struct, frozen=True):
    custom: _Custom | None = None


class _Signed(msgspec.Struct, frozen=True):
    targets: Mapping[str, _Target]


class _Targets(msgspec.Struct, frozen=True):
    signed: _Signed


def _read(updater: Updater, kept: Path) -> TufTrust:
    """What the updater verified last is what it wrote."""
    try:
        listed = decode((kept / "targets.json").read_bytes(), _Targets).signed.targets
    except Malformed as error:
        raise ConfigurationError(f"the TUF repository's list of targets cannot be read: {error}") from error
    found: dict[str, list[bytes]] = {usage: [] for usage in _FALLBACKS}
    for name, target in listed.items():
        if target.custom is not None and target.custom.sigstore.usage in found:
            found[target.custom.sigstore.usage].append(_target(updater, name))
    for usage, names in _FALLBACKS.items():
        if not found[usage]:
            found[usage] = [_target(updater, name) for name in names if name in listed]
    root = TrustedRoot.parse(_target(updater, _TRUSTED_ROOT)) if _TRUSTED_ROOT in listed else None
    return TufTrust(found, root)


def _target(updater: Updater, name: str) -> bytes:
    info = updater.get_targetinfo(name)
    if info is None or info.length > _LONGEST_TARGET:
        raise ConfigurationError(f"the TUF repository's target {name} cannot be used: it is too large")
    path = updater.find_cached_target(info) or updater.download_target(info)
    return Path(path).read_bytes()


@contextmanager
def _folder(environment: Mapping[str, str]) -> Generator[Path]:
    """Where metadata are kept, perhaps for a moment only."""
    named = environment.get("TUF_ROOT")
    home = environment.get("HOME")
    if environment.get("SIGSTORE_NO_CACHE", "").lower() in ("1", "t", "true") or not (named or home):
        with tempfile.TemporaryDirectory(prefix="spire-sigstore-") as temporary:
            yield Path(temporary)
    else:
        yield Path(named) if named else Path(str(home)) / ".sigstore" / "root"


class _Remote(msgspec.Struct, frozen=True):
    """What `cosign initialize` notes."""

    mirror: str = ""


def _mirror(environment: Mapping[str, str], folder: Path) -> str:
    named = environment.get("TUF_MIRROR")
    if not named:
        try:
            named = decode((folder / "remote.json").read_bytes(), _Remote).mirror
        except (FileNotFoundError, NotADirectoryError):
            named = None
        except (OSError, Malformed) as error:
            raise ConfigurationError(f"cannot read {folder / 'remote.json'}: run cosign initialize anew") from error
    if not named or named in _OLD_NAMES_OF_PUBLIC_MIRROR:
        return PUBLIC_MIRROR
    mirror = named.rstrip("/")
    if urlsplit(mirror).scheme not in ("https", "http", "file"):
        raise ConfigurationError(f"the TUF repository {mirror} cannot be used: set TUF_MIRROR to https://HOST/PATH")
    return mirror


def _first_root(environment: Mapping[str, str], mirror: str, kept: Path) -> bytes:
    """Only the public repository's root comes along."""
    if mirror == PUBLIC_MIRROR:
        return Path(__file__).with_name("tuf_root.json").read_bytes()
    path = Path(environment.get("TUF_ROOT_JSON") or kept / "root.json")
    try:
        return path.read_bytes()
    except OSError as error:
        advice = f"run cosign initialize --mirror={mirror} --root=ROOT.json, or set TUF_ROOT_JSON"
        raise ConfigurationError(f"{path}, the root of {mirror}, cannot be read: {error.strerror}: {advice}") from error


def _folder_name(mirror: str) -> str:
    """As cosign's client names it."""
    plain = mirror.removeprefix("https://").removeprefix("http://")
    return plain.replace("/", "-").replace(":", "-").lower()


def _fetcher(mirror: str) -> FetcherInterface:
    return _Files() if mirror.startswith("file:") else Urllib3Fetcher(_SOCKET_SECONDS, app_user_agent="spire-agent")


class _Files(FetcherInterface):
    """A repository in a folder of this host, `file:///…`."""

    def _fetch(self, url: str) -> Iterator[bytes]:
        try:
            return iter((Path(unquote(urlsplit(url).path)).read_bytes(),))
        except FileNotFoundError as error:
            raise DownloadHTTPError(f"{url} does not exist", 404) from error


class _Kept(FetcherInterface):
    """What is kept, in the repository's place: no root is newer, and the timestamp is the same."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def _fetch(self, url: str) -> Iterator[bytes]:
        if url.endswith("/timestamp.json"):
            return iter(((self._folder / "timestamp.json").read_bytes(),))
        raise DownloadHTTPError(f"{url} is not kept", 404)
