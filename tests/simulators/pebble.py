"""Pebble, the ACME server that clients are tested with, and a DNS server by which every name is this machine."""

from __future__ import annotations

import json
import ssl
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.simulators.ports import free_port
from tests.simulators.spire import Program, eventually
from tests.simulators.web_pki import WebAuthority


@dataclass
class Pebble:
    """`programs` is where its two programs are; `validated` the port that proofs are looked for at."""

    programs: Path
    folder: Path
    validated: int
    validity: int = 90 * 86400  # seconds
    refused_nonces: int = 50  # percent
    port: int = field(default_factory=free_port)
    management: int = field(default_factory=free_port)

    def __enter__(self) -> Self:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.authority = WebAuthority(self.folder, "pebble-tls-ca")
        files = self.authority.issue("pebble", "127.0.0.1")
        configuration = self.folder / "pebble.json"
        configuration.write_text(
            json.dumps({
                "pebble": {
                    "listenAddress": f"127.0.0.1:{self.port}",
                    "managementListenAddress": f"127.0.0.1:{self.management}",
                    "certificate": str(files.certificate),
                    "privateKey": str(files.key),
                    "httpPort": free_port(),
                    "tlsPort": self.validated,
                    "domainBlocklist": ["blocked.test"],
                    "retryAfter": {"authz": 1, "order": 1},
                    "keyAlgorithm": "ecdsa",
                    "profiles": {"default": {"description": "the only one", "validityPeriod": self.validity}},
                }
            })
        )  # fmt: skip
        names = free_port()
        dns = [str(self.programs / "pebble-challtestsrv"), "-dnsserver", f"127.0.0.1:{names}"]
        dns += ["-management", f"127.0.0.1:{free_port()}", "-defaultIPv4", "127.0.0.1", "-defaultIPv6", ""]
        dns += ["-http01", "", "-https01", "", "-tlsalpn01", "", "-doh", ""]
        pebble = [str(self.programs / "pebble"), "-config", str(configuration), "-dnsserver", f"127.0.0.1:{names}"]
        environment = {"PEBBLE_VA_NOSLEEP": "1", "PEBBLE_WFE_NONCEREJECT": str(self.refused_nonces)}
        self._programs = [
            Program(dns, self.folder / "dns.log"),
            Program(pebble, self.folder / "pebble.log", environment | {"PEBBLE_CHAIN_LENGTH": "2"}),
        ]
        for program in self._programs:
            program.start()
        eventually(self._answers, f"Pebble: {self._programs[1].output()}")
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        for program in self._programs:
            program.end()

    @property
    def directory(self) -> str:
        return f"https://127.0.0.1:{self.port}/dir"

    def root(self) -> str:
        """The root of what it issues, PEM: another one in each run."""
        return self._get(f"https://127.0.0.1:{self.management}/roots/0")

    def output(self) -> str:
        return self._programs[1].output()

    def _answers(self) -> bool:
        assert all(program.running for program in self._programs), self.output() + self._programs[0].output()
        try:
            return "newOrder" in self._get(self.directory)
        except OSError:
            return False

    def _get(self, url: str) -> str:
        context = ssl.create_default_context(cafile=str(self.authority.file))
        context.verify_flags &= ~ssl.VERIFY_X509_STRICT
        with urllib.request.urlopen(url, context=context, timeout=30) as answer:  # noqa: S310 - it is our own
            found: bytes = answer.read()
        return found.decode()
