"""Where trust comes from: files that the environment names, as cosign has them, or else Sigstore's TUF repository.

SIGSTORE_ROOT_FILE has Fulcio's certificates, SIGSTORE_REKOR_PUBLIC_KEY and SIGSTORE_CT_LOG_PUBLIC_KEY_FILE a key each.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

from attestors.sigstore.trust import Authority, Log, TrustRoot, logs_of, read_certificates, read_key
from operations.errors import ConfigurationError, InvalidArgument

if TYPE_CHECKING:
    from attestors.sigstore.tuf_repository import TufTrust

ROOT_FILE: Final = "SIGSTORE_ROOT_FILE"
REKOR_KEY: Final = "SIGSTORE_REKOR_PUBLIC_KEY"
CT_KEY: Final = "SIGSTORE_CT_LOG_PUBLIC_KEY_FILE"

_MOST_BYTES = 1 << 20

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Need:
    """Which logs are asked for anything."""

    rekor: bool
    ct: bool


def uses_tuf(environment: Mapping[str, str], need: Need) -> bool:
    """Whether the files leave something to be had from a TUF repository."""
    wanted = [ROOT_FILE, *([REKOR_KEY] if need.rekor else ()), *([CT_KEY] if need.ct else ())]
    return not all(environment.get(name) for name in wanted)


def load(environment: Mapping[str, str], need: Need) -> TrustRoot:
    """Blocks: on files, and on the network where they leave something open.

    Raises ConfigurationError, TemporarilyUnavailable when the repository cannot be asked.
    """
    tuf: TufTrust | None = None
    if uses_tuf(environment, need):
        from attestors.sigstore import tuf_repository  # for those who use it

        tuf = tuf_repository.load(environment)
    return TrustRoot(
        fulcio=_authorities(environment, tuf),
        rekor=_logs(environment, REKOR_KEY, tuf.rekor if tuf else _none) if need.rekor else {},
        ct=_logs(environment, CT_KEY, tuf.ct if tuf else _none) if need.ct else {},
    )


def _authorities(environment: Mapping[str, str], tuf: TufTrust | None) -> tuple[Authority, ...]:
    path = environment.get(ROOT_FILE)
    if path:
        return (Authority(_read(ROOT_FILE, path, read_certificates)),)
    return tuf.fulcio() if tuf is not None else ()


def _logs(environment: Mapping[str, str], name: str, otherwise: Callable[[], Mapping[str, Log]]) -> Mapping[str, Log]:
    path = environment.get(name)
    return logs_of([_read(name, path, read_key)]) if path else otherwise()


def _none() -> Mapping[str, Log]:
    return {}


def _read(name: str, path: str, parse: Callable[[bytes], T]) -> T:
    try:
        with Path(path).open("rb") as file:
            return parse(file.read(_MOST_BYTES))
    except OSError as error:
        raise ConfigurationError(f"{name} names {path}, which cannot be read: {error.strerror}") from error
    except InvalidArgument as error:
        raise ConfigurationError(f"{name} names {path}, which cannot be used: {error}") from error
