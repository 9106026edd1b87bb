"""Hosts with SSH keys, and the CAs that certify them, made by ssh-keygen."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

KINDS = ("rsa-2048", "ecdsa-256", "ecdsa-384", "ecdsa-521", "ed25519")


@dataclass(frozen=True)
class SshKey:
    """A private key without a passphrase; its public half and its certificate stand beside it."""

    path: Path

    @property
    def public(self) -> str:
        """As a line of authorized_keys."""
        return self.path.with_suffix(".pub").read_text()

    @property
    def certificate(self) -> Path:
        return self.path.with_name(f"{self.path.name}-cert.pub")

    def plugin(self) -> str:
        """The NodeAttestor block of an agent on this host."""
        data = f'host_key_path = "{self.path}"\n host_cert_path = "{self.certificate}"'
        return f'NodeAttestor "sshpop" {{ plugin_data {{ {data} }} }}'


def make_key(path: Path, kind: str = "ed25519") -> SshKey:
    name, _, bits = kind.partition("-")
    _keygen("-t", name, *(("-b", bits) if bits else ()), "-f", str(path), "-N", "", "-C", "")
    return SshKey(path)


def certify(
    ca: SshKey, host: SshKey, *options: str, principals: str = "node-1.example.org", user: bool = False
) -> None:
    """Make the host's certificate, or make it anew. `options` are further ones of ssh-keygen."""
    kind = () if user else ("-h",)
    named = ("-n", principals) if principals else ()
    _keygen("-s", str(ca.path), "-I", "rack-7", "-z", "42", *kind, *named, *options, str(host.path.with_suffix(".pub")))


def _keygen(*arguments: str) -> None:
    subprocess.run(["ssh-keygen", "-q", *arguments], check=True, capture_output=True, stdin=subprocess.DEVNULL)


def rewrite(key: SshKey, form: str, passphrase: str = "") -> None:
    """Write the private key anew: PEM, PKCS8, or RFC4716, which stands for OpenSSH's own."""
    _keygen("-p", "-m", form, "-P", "", "-N", passphrase, "-f", str(key.path))
