"""What a plugin's program does when it starts: serve a host of plugins, or tell a person what it is for."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from operations.version import VERSION
from plugins.served.handshake import invited


@dataclass(frozen=True, slots=True)
class About:
    """`type` and `name` are the plugin's, as a configuration has them; `purpose` and `place` are parts of sentences.

    `example` are lines of plugin_data, indented by eight spaces.
    """

    program: str
    type: str
    name: str
    purpose: str
    place: str
    example: str
    runbook: str


def main(about: About, serve: Callable[[], int]) -> int:
    """Returns the status to exit with."""
    if invited(about.type, os.environ):
        return serve()
    if sys.argv[1:] in (["--version"], ["-version"]):
        print(VERSION)
        return 0
    asked = sys.argv[1:] in (["-h"], ["-help"], ["--help"])
    print(advice(about), end="", file=sys.stdout if asked else sys.stderr)
    return 0 if asked else 1


def advice(about: About) -> str:
    """What a person who runs a plugin by hand needs to know."""
    where = _where(sys.argv[0])
    # With a checksum the host refuses any other file; without the one file it would be of a few lines that import.
    checksum = {"plugin_checksum": _sha256(where)} if _is_one_file(where) else {}
    settings = _aligned({"plugin_cmd": where, **checksum})
    return (
        f"{about.program} is a plugin: SPIRE runs it, not you. {about.purpose}\n"
        f"Put this {about.place}:\n\n"
        f'{about.type} "{about.name}" {{\n{settings}    plugin_data {{\n{about.example}    }}\n}}\n\n'
        f"See {about.program}(1), and docs/runbooks/{about.runbook}, for every setting.\n"
    )


def _where(program: str) -> str:
    return str(Path(program).absolute())


def _is_one_file(path: str) -> bool:
    import zipfile

    return zipfile.is_zipfile(path)


def _sha256(path: str) -> str:
    import hashlib

    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _aligned(settings: Mapping[str, str]) -> str:
    width = max(map(len, settings))
    return "".join(f'    {name:<{width}} = "{value}"\n' for name, value in settings.items())
