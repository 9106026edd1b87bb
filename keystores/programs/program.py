"""What both programs do when they start: serve a host of plugins, or tell a person what they are for."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from operations.version import VERSION
from plugins.served.handshake import invited

TYPE = "KeyManager"


def main(name: str, example: str, serve: Callable[[], int]) -> int:
    """Returns the status to exit with."""
    if invited(TYPE, os.environ):
        return serve()
    if sys.argv[1:] in (["--version"], ["-version"]):
        print(VERSION)
        return 0
    asked = sys.argv[1:] in (["-h"], ["-help"], ["--help"])
    print(advice(name, example), end="", file=sys.stdout if asked else sys.stderr)
    return 0 if asked else 1


def advice(name: str, example: str) -> str:
    """What a person who runs a plugin by hand needs to know."""
    where = _where(sys.argv[0])
    # With a checksum the host refuses any other file; without the one file it would be of a few lines that import.
    checksum = {"plugin_checksum": _sha256(where)} if _is_one_file(where) else {}
    settings = _aligned({"plugin_cmd": where, **checksum})
    return (
        f"spire-keystore-{name} is a plugin: SPIRE runs it, not you. It keeps the keys of a SPIRE server or agent "
        f"in a {'token' if name == 'pkcs11' else name.upper()}.\n"
        "Put this in place of the other KeyManager into the plugins section of server.conf or agent.conf:\n\n"
        f'KeyManager "{name}" {{\n{settings}    plugin_data {{\n{example}    }}\n}}\n\n'
        f"See spire-keystore-{name}(1), and docs/runbooks/go-spire.md, for every setting.\n"
    )


def _where(program: str) -> str:
    return str(Path(program).absolute())


def _is_one_file(path: str) -> bool:
    import zipfile

    return zipfile.is_zipfile(path)


def _sha256(path: str) -> str:
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _aligned(settings: Mapping[str, str]) -> str:
    width = max(map(len, settings))
    return "".join(f'    {name:<{width}} = "{value}"\n' for name, value in settings.items())
