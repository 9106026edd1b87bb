"""What a process loads before it serves or asks: most of a start's CPU is imports, so each has to be wanted.

Held by names, in fresh interpreters; docs/adr/0006-start-up.md has the figures.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]

NEVER = frozenset({"grpc", "hypothesis", "pytest", "unittest", "pkg_resources", "setuptools", "tests", "bench"})
HTTP = frozenset({"http", "email.parser", "urllib.request"})
TOKEN = frozenset({"pkcs11", "asn1crypto", "ctypes", "tpm2_pytss"})
SCHEMA_CHANGES = frozenset({"alembic", "mako", "sqlalchemy.orm", "sqlalchemy.ext", "sqlalchemy.dialects.postgresql"})
COMMANDS = frozenset({"cryptography", "OpenSSL", "sqlalchemy", "msgspec", "urllib.parse", "pathlib", "server.run"})

UNWANTED = {
    "server.run": NEVER | TOKEN | SCHEMA_CHANGES | {"http", "h11", "urllib.request", "jwt", "agent", "difflib"},
    "agent.run": NEVER | TOKEN | HTTP | {"h11", "sqlalchemy", "alembic", "jwt", "server", "difflib"},
    "server.cli.run": NEVER | TOKEN | HTTP | {"sqlalchemy", "cryptography", "OpenSSL", "agent"},
    "agent.cli.run": NEVER | TOKEN | HTTP | {"sqlalchemy", "cryptography", "OpenSSL", "server"},
    "server.cli.healthcheck": NEVER | TOKEN | HTTP | COMMANDS,
    "server.cli.entry": NEVER | TOKEN | HTTP | COMMANDS,
    "server.cli.entry_queries": NEVER | TOKEN | HTTP | COMMANDS,
    "server.cli.bundle": NEVER | TOKEN | HTTP | COMMANDS - {"pathlib", "urllib.parse"},
    "server.cli.federation": NEVER | TOKEN | HTTP | COMMANDS - {"pathlib", "urllib.parse"},
    "server.cli.localauthority": NEVER | TOKEN | HTTP | COMMANDS - {"pathlib", "urllib.parse"},
    "server.cli.upstreamauthority": NEVER | TOKEN | HTTP | COMMANDS - {"pathlib", "urllib.parse"},
    "server.cli.wit": NEVER | TOKEN | HTTP | COMMANDS - {"pathlib", "urllib.parse"},
    "server.cli.logger": NEVER | TOKEN | HTTP | COMMANDS,
    "server.cli.debug": NEVER | TOKEN | HTTP | COMMANDS,
    "server.cli.keys": NEVER | TOKEN | HTTP | COMMANDS,
    "server.cli.tpm": NEVER | TOKEN | HTTP | COMMANDS | {"attestors", "asyncio"},
    "server.cli.boot_policies": NEVER | TOKEN | HTTP | {"sqlalchemy", "OpenSSL", "jwt", "re2", "asyncio", "server.run"},
    "agent.cli.keys": NEVER | TOKEN | HTTP | COMMANDS - {"pathlib", "urllib.parse"},
    "agent.cli.logger": NEVER | TOKEN | HTTP | COMMANDS - {"pathlib", "urllib.parse"},
    "agent.cli.debug": NEVER | TOKEN | HTTP | COMMANDS - {"pathlib", "urllib.parse"},
    "agent.cli.tpm": NEVER | TOKEN | HTTP | COMMANDS | {"asyncio"},
    "agent.cli.devid": NEVER | TOKEN | HTTP | COMMANDS,
    "agent.cli.healthcheck": NEVER | TOKEN | HTTP | COMMANDS - {"pathlib", "urllib.parse"},
    "agent.cli.x509": NEVER | TOKEN | HTTP | COMMANDS - {"pathlib", "urllib.parse"},
    "plugins.served.by_hand": NEVER | TOKEN | HTTP | COMMANDS - {"pathlib", "urllib.parse"} | {"asyncio"},
    "keystores.programs.pkcs11_store, plugins.served.program": NEVER
    | TOKEN
    | HTTP
    | {"sqlalchemy", "OpenSSL", "jwt", "plugins.external", "server", "agent", "tpm2_pytss"},
    "keystores.pkcs11.manager": NEVER | TOKEN | HTTP | {"sqlalchemy", "OpenSSL", "jwt"},
    "keystores.pkcs11.root": NEVER | TOKEN | HTTP | {"sqlalchemy", "OpenSSL", "jwt"},
    "keystores.pkcs11.service": NEVER | HTTP | {"asyncio", "cryptography", "sqlalchemy", "OpenSSL", "jwt", "difflib"},
    "keystores.tpm.manager": NEVER | HTTP | TOKEN | {"sqlalchemy", "OpenSSL", "jwt"},
    "keystores.tpm.service": NEVER | HTTP | {"sqlalchemy", "OpenSSL", "jwt", "asyncio", "plugins"},
    "attestors.tpm.agent": NEVER | HTTP | TOKEN | {"sqlalchemy", "OpenSSL", "jwt", "attestors.tpm.server"},
    "attestors.oidc.configuration": NEVER | TOKEN | HTTP | {"sqlalchemy", "OpenSSL", "jwt", "cryptography"},
    "attestors.tpm_devid.agent": NEVER | TOKEN | HTTP | {"sqlalchemy", "jwt"},
    "attestors.tpm_devid.server": NEVER | TOKEN | HTTP | {"sqlalchemy", "jwt"},
    "attestors.tpm_devid.service": NEVER | HTTP | {"sqlalchemy", "OpenSSL", "jwt", "asyncio"},
    "authorities.pkcs11": NEVER | TOKEN | HTTP | {"sqlalchemy", "jwt", "tpm2_pytss"},
    "authorities.tpm": NEVER | TOKEN | HTTP | {"sqlalchemy", "jwt", "tpm2_pytss"},
}
"""For each module that a process begins with: what must not come with it."""


@pytest.mark.parametrize("module", UNWANTED)
def test_a_process_loads_only_what_it_needs(module: str) -> None:
    code = f"import sys, {module}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert not UNWANTED[module] & set(done.stdout.split())
