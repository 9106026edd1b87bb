"""The settings of SVIDStore "disk". Names are spiffe-helper's where the meaning is the same."""

from __future__ import annotations

import re
import shutil
import signal
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from operations.errors import ConfigurationError, InvalidArgument
from operations.quoting import quote
from publishers import ownership

DEFAULT_DIRECTORY = "/run/spire/svids"

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,63}")
_ALL = 0o666
_OF_OTHERS = 0o007
_ADVICE = "write one such as 0640, with the zero"


class Svid(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How the files of one SVID are made, and who is told when they change.

    Modes are numbers such as 0640. `user` and `group` own the files; without them the agent's do. `on_change` is a
    program with its arguments, run without a shell; `renew_signal` goes to the process whose pid `pid_file_name` has.
    """

    user: str = ""
    group: str = ""
    cert_file_mode: int = 0o644
    key_file_mode: int = 0o600
    svid_file_name: str = "svid.pem"
    svid_key_file_name: str = "svid_key.pem"
    svid_bundle_file_name: str = "svid_bundle.pem"
    combined_file_name: str = ""
    add_intermediates_to_bundle: bool = False
    include_federated_domains: bool = False
    on_change: tuple[str, ...] = ()
    pid_file_name: str = ""
    renew_signal: str = ""

    def __post_init__(self) -> None:
        names = [name for name in self.file_names if name]
        for name in names:
            if not is_name(name):
                raise InvalidArgument(f"{quote(name)} cannot be a file's name here: use letters, digits, '.', '_', '-'")
        if len(set(names)) < len(names):
            raise InvalidArgument("two files have the same name: give each its own")
        for key in ("cert_file_mode", "key_file_mode"):
            mode: int = getattr(self, key)
            if mode & ~_ALL or mode < 0:
                raise InvalidArgument(f"{key} {_shown(mode)} is no mode of such a file: {_ADVICE}")
        if self.key_file_mode & _OF_OTHERS:
            raise InvalidArgument("key_file_mode opens the key to everybody: use 0600, or 0640 and a group")
        if self.key_file_mode & stat.S_IWGRP:
            mode = self.key_file_mode
            raise InvalidArgument(f"key_file_mode {_shown(mode)} lets a group change the key: {_ADVICE}")
        if bool(self.pid_file_name) != bool(self.renew_signal):
            raise InvalidArgument("pid_file_name and renew_signal need each other: set both or none")
        if self.renew_signal:
            signal_number(self.renew_signal)

    @property
    def file_names(self) -> Sequence[str]:
        """The names of certificates, key, bundle and all in one; "" for a file that is not wanted."""
        return (self.svid_file_name, self.svid_key_file_name, self.svid_bundle_file_name, self.combined_file_name)


class Configuration(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`svid` has settings by the name that an entry gives in its selector `disk:name:NAME`."""

    directory: str = DEFAULT_DIRECTORY
    svid: Mapping[str, Svid] = msgspec.field(default_factory=dict[str, Svid])

    def __post_init__(self) -> None:
        if not Path(self.directory).is_absolute():
            raise InvalidArgument(f"directory {quote(self.directory)} must begin with a slash")
        for name in self.svid:
            if not is_name(name):
                raise InvalidArgument(f"{quote(name)} cannot be an SVID's name: use letters, digits, '.', '_' and '-'")

    def check_files(self) -> None:
        """Raises ConfigurationError for users, groups and programs that are not there."""
        for name, svid in self.svid.items():
            place = f"svid {quote(name)}"
            owner(svid, place)
            if svid.on_change and shutil.which(svid.on_change[0]) is None:
                raise ConfigurationError(f"{place}: on_change names {quote(svid.on_change[0])}, which cannot be run")


def _shown(mode: int) -> str:
    """Both ways: who has written 640 without a zero has 01200."""
    return f"{mode} (octal 0{mode:o})"


def is_name(text: str) -> bool:
    """Whether a text is the name of one file or folder, and not of a hidden one."""
    return _NAME.fullmatch(text) is not None


def signal_number(name: str) -> signal.Signals:
    """SIGHUP, with or without the SIG. Raises InvalidArgument."""
    try:
        return signal.Signals[name if name.startswith("SIG") else f"SIG{name}"]
    except KeyError:
        raise InvalidArgument(f"renew_signal {quote(name)} is unknown: use one such as SIGHUP") from None


def owner(svid: Svid, place: str) -> tuple[int, int]:
    """The numbers of user and group that own the files; -1 for the agent's own. Raises ConfigurationError."""
    return ownership.numbers(svid.user, svid.group, place, "the agent")
