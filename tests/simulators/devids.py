"""DevIDs as an operator has them: keys made by `spire-agent tpm devid provision`, certified by a CA by openssl."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.simulators.nodes import Authority, root, rsa_key
from tests.simulators.spire import AGENT, command
from tests.simulators.swtpm import Swtpm
from tests.simulators.tpm_manufacturer import EK_ECC_P384, EK_RSA


def is_clean(tpm: Swtpm) -> bool:
    """Whether the TPM holds the keys that its manufacturer left there, and nothing else."""
    return not set(tpm.handles()) - {EK_RSA, EK_ECC_P384}


@dataclass(frozen=True)
class DevId:
    """What provisioning made in `folder`, with the certificate beside it."""

    folder: Path

    @property
    def certificate(self) -> Path:
        return self.folder / "devid.crt.pem"

    @property
    def private(self) -> Path:
        return self.folder / "devid.priv.blob"

    @property
    def public(self) -> Path:
        return self.folder / "devid.pub.blob"

    @property
    def request(self) -> Path:
        return self.folder / "devid.csr.pem"

    def block(self, tpm: Swtpm, **changes: str) -> str:
        """An agent's NodeAttestor, with settings changed."""
        settings = {
            "devid_cert_path": str(self.certificate),
            "devid_priv_path": str(self.private),
            "devid_pub_path": str(self.public),
            "tpm_device_path": str(tpm.path),
        } | changes
        lines = "\n".join(f'    {name} = "{value}"' for name, value in settings.items())
        return f'NodeAttestor "tpm_devid" {{ plugin_data {{\n{lines}\n  }} }}'


class DevIdCa:
    """A root with an intermediate CA, which signs requests."""

    def __init__(self, folder: Path, name: str = "devid-root") -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self.root: Authority = root(name, rsa_key())
        self.intermediate: Authority = self.root.sub("devid-intermediate")
        self.root_path, _ = self.root.write(folder, "root")
        self._certificate, self._key = self.intermediate.write(folder, "intermediate")

    def certify(self, devid: DevId) -> DevId:
        """Sign the request, and put the intermediate CA's certificate behind the new one."""
        subprocess.run(
            [
                *("openssl", "x509", "-req", "-in", str(devid.request), "-copy_extensions", "copy"),
                *("-CA", str(self._certificate), "-CAkey", str(self._key), "-days", "30"),
                *("-out", str(devid.certificate)),
            ],
            check=True,
            capture_output=True,
        )
        with devid.certificate.open("ab") as file:
            file.write(self.intermediate.pem)
        return devid


def provision(tpm: Swtpm, folder: Path, key_type: str = "ec-p256", more: Sequence[str] = ()) -> DevId:
    """A key, and the request for its certificate."""
    done = command(
        *(AGENT, "tpm", "devid", "provision", "-tcti", tpm.tcti, "-out", str(folder)),
        *("-keyType", key_type, "-subject", "CN=node-1,O=Example", *more),
    )
    assert done.returncode == 0, done.stderr
    return DevId(folder)
