"""Software TPMs as a manufacturer sells them: with endorsement and platform certificates, by swtpm's own tools.

Each manufacturer has a root and an intermediate CA of its own, made by swtpm_localca. A TPM has three endorsement
keys: RSA-2048 and ECC P-256 (low range templates, certificates in NV 0x01C00002 and 0x01C0000A), and ECC P-384 (high
range, 0x01C00016), and an X.509 platform certificate for its RSA key (0x01C08000).
"""

from __future__ import annotations

import struct
import subprocess
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from keystores.tpm import public_area
from tests.simulators.swtpm import Swtpm

NV_RSA: Final = 0x01C00002
NV_ECC: Final = 0x01C0000A
NV_ECC_P384: Final = 0x01C00016
NV_CHAIN: Final = 0x01C00100
NV_PLATFORM: Final = 0x01C08000
EK_RSA: Final = 0x81010001
EK_ECC_P384: Final = 0x81010016
"""Where swtpm_setup makes keys persistent."""
MADE_BY_HAND: Final = 0x20191023
"""The firmware version in certificates that swtpm_setup did not ask for."""

_SPECIFICATION: Final = ("--tpm-spec-family", "2.0", "--tpm-spec-level", "0", "--tpm-spec-revision", "164")
_READABLE: Final = "ppwrite|ppread|ownerread|authread|no_da|platformcreate"


@dataclass
class SoldTpm(Swtpm):
    """`certificates` are the DER endorsement certificates: "rsa", "ecc" (P-256) and "ecc-p384"."""

    certificates: dict[str, bytes] = field(default_factory=dict[str, bytes])
    platform_certificate: bytes = b""

    def read_nv(self, index: int) -> bytes:
        self.tool("nvread", f"{index:#x}", "-C", f"{index:#x}", "-o", "nv.out")
        return (self.folder / "nv.out").read_bytes()

    def write_nv(self, index: int, content: bytes) -> None:
        """Define an index that anybody can read, as a manufacturer does it by the platform hierarchy."""
        (self.folder / "nv.in").write_bytes(content)
        self.tool("nvdefine", f"{index:#x}", "-C", "p", "-s", str(len(content)), "-a", _READABLE)
        self.tool("nvwrite", f"{index:#x}", "-C", "p", "-i", "nv.in")

    def firmware(self) -> int:
        """TPM2_PT_FIRMWARE_VERSION_1 and _2, as a quote has them (TPM2_GetCapability, TPM_CAP_TPM_PROPERTIES)."""
        _, answer = self.command(0x17A, struct.pack(">III", 6, 0x10B, 2))
        first, second = struct.unpack_from(">4xI4xI", answer, 9)
        return int(first) << 32 | int(second)

    def flush(self) -> None:
        """Let tpm2-tools' objects and sessions go, which they leave behind without a resource manager."""
        for kind in ("-t", "-l", "-s"):
            self.tool("flushcontext", kind)


@dataclass
class Manufacturer:
    """A CA whose keys and certificates are in `folder`. Each TPM's folder is another one."""

    folder: Path

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        place = self.folder
        (place / "localca.conf").write_text(
            f"statedir = {place}\nsigningkey = {place}/signkey.pem\nissuercert = {place}/issuercert.pem\n"
            f"certserial = {place}/certserial\n"
        )
        (place / "localca.options").write_text(
            "--platform-manufacturer Acme\n--platform-model Anvil\n--platform-version 2.1\n"
        )
        (place / "setup.conf").write_text(
            "create_certs_tool = swtpm_localca\n"
            f"create_certs_tool_config = {place}/localca.conf\n"
            f"create_certs_tool_options = {place}/localca.options\n"
            "active_pcr_banks = sha256\n"
        )

    @property
    def root_path(self) -> Path:
        """PEM. There once the first TPM is made."""
        return self.folder / "swtpm-localca-rootca-cert.pem"

    @property
    def intermediate_path(self) -> Path:
        """PEM, of the CA that signs endorsement certificates."""
        return self.folder / "issuercert.pem"

    @property
    def root(self) -> bytes:
        return _der(self.root_path)

    @property
    def intermediate(self) -> bytes:
        return _der(self.intermediate_path)

    def make(
        self,
        folder: Path,
        *,
        banks: str = "sha1,sha256,sha384",
        persistent: bool = True,
        chain_in_nv: bool = False,
    ) -> SoldTpm:
        """A TPM, switched off. Its RSA and P-384 keys are `persistent`, as swtpm_setup leaves them, or not.

        `chain_in_nv` puts the intermediate CA's certificate where a node finds it (0x01C00100 and on).
        """
        tpm = SoldTpm(folder)
        (folder / "state").mkdir(parents=True)
        done = subprocess.run(
            [
                *("swtpm_setup", "--tpm2", "--tpm-state", str(folder / "state"), "--config"),
                *(str(self.folder / "setup.conf"), "--create-ek-cert", "--create-platform-cert"),
                *("--pcr-banks", banks, "--logfile", str(folder / "setup.log")),
            ],
            capture_output=True,
            text=True,
            check=False,
            timeout=170,
        )
        assert done.returncode == 0, done.stdout + done.stderr + (folder / "setup.log").read_text()
        tpm.start()
        try:
            self._finish(tpm, persistent=persistent, chain_in_nv=chain_in_nv)
        finally:
            tpm.tool("shutdown", "-c")
            tpm.power_off()
        return tpm

    @contextmanager
    def started(self, folder: Path, *, persistent: bool = True, chain_in_nv: bool = False) -> Generator[SoldTpm]:
        """A TPM, switched on until the block ends."""
        tpm = self.make(folder, persistent=persistent, chain_in_nv=chain_in_nv)
        tpm.start()
        try:
            yield tpm
        finally:
            tpm.power_off()

    def certify(self, folder: Path, key: ec.EllipticCurvePublicKey) -> bytes:
        """A DER endorsement certificate of a key, which nobody looks at: what a bad manufacturer might sign."""
        point = key.public_numbers()
        names = {"secp256r1": "", "secp384r1": ",id=secp384r1"}
        size = (key.curve.key_size + 7) // 8 * 2
        done = subprocess.run(
            [
                *("swtpm_localca", "--type", "ek", "--dir", str(folder), "--tpm2", *_SPECIFICATION),
                *("--ek", f"x={point.x:0{size}x},y={point.y:0{size}x}{names[key.curve.name]}"),
                *(
                    "--tpm-manufacturer",
                    "id:00001014",
                    "--tpm-model",
                    "swtpm",
                    "--tpm-version",
                    f"id:{MADE_BY_HAND:08x}",
                ),
                *("--configfile", str(self.folder / "localca.conf")),
                *("--optsfile", str(self.folder / "localca.options"), "--logfile", str(folder / "localca.log")),
            ],
            capture_output=True,
            text=True,
            check=False,
            timeout=170,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return (folder / "ek.cert").read_bytes()

    def _finish(self, tpm: SoldTpm, *, persistent: bool, chain_in_nv: bool) -> None:
        tpm.tool("createek", "-G", "ecc", "-c", "ek.ctx", "-u", "ek.pub", "-f", "tss")
        tpm.flush()
        key = public_area.parse((tpm.folder / "ek.pub").read_bytes()).key
        assert isinstance(key, ec.EllipticCurvePublicKey)
        tpm.write_nv(NV_ECC, self.certify(tpm.folder, key))
        if chain_in_nv:
            tpm.write_nv(NV_CHAIN, self.intermediate)
        tpm.certificates = {
            "rsa": tpm.read_nv(NV_RSA),
            "ecc": tpm.read_nv(NV_ECC),
            "ecc-p384": tpm.read_nv(NV_ECC_P384),
        }
        tpm.platform_certificate = tpm.read_nv(NV_PLATFORM)
        if not persistent:
            for handle in (EK_RSA, EK_ECC_P384):
                tpm.tool("evictcontrol", "-C", "o" if handle < 0x81800000 else "p", "-c", f"{handle:#x}")


def _der(path: Path) -> bytes:
    return x509.load_pem_x509_certificate(path.read_bytes()).public_bytes(Encoding.DER)
