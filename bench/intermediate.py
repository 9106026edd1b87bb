"""What a slow device costs, with and without a short-lived intermediate: `python -m bench.intermediate [--seconds 5]`.

The device is a SoftHSM token whose C_Sign waits 5 ms, as a network HSM, and 70 ms, as a TPM; it signs one after the
other. Without an intermediate it signs every SVID (KeyManager "pkcs11"); with one it signs the server's authority once
(UpstreamAuthority "pkcs11"), and a key in memory the SVIDs. Everything but the network is measured: the CSR's check,
the certificate, the signature, and its verification where a device made it.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import tempfile
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import msgspec

from authorities import pkcs11
from identity.spiffeid import TrustDomain
from keystores.memory import MemoryKeyManager
from keystores.pkcs11 import manager
from keystores.pkcs11.configuration import Configuration
from operations import logs
from plugins.catalog import PluginContext
from server.ca import checks
from server.ca.certificate_authority import CaSettings, CertificateAuthority
from server.ca.checks import ApprovedX509
from tests.simulators import ceremony, softhsm
from tests.simulators.authority_store import MemoryAuthorityStore
from tests.simulators.faulty_hsm import FaultyHsm
from tests.simulators.pki import csr, ec_key

TRUST_DOMAIN = TrustDomain("example.org")
DELAYS = (0.005, 0.070)
"""Seconds of each signature by the device."""
BATCH = 50

_T = TypeVar("_T")


@dataclass(frozen=True)
class Entry:
    spiffe_id: str
    dns_names: tuple[str, ...] = ()
    x509_svid_ttl: int = 0


@dataclass(frozen=True)
class Device:
    """A token with a root in it, in a folder, whose signatures are slow."""

    folder: Path
    token: softhsm.SoftHsm
    faults: FaultyHsm
    certificate: Path

    @property
    def context(self) -> PluginContext:
        return PluginContext(TRUST_DOMAIN.name, str(self.folder), logs.get("bench"))

    def configured(self, kind: type[_T], **settings: object) -> _T:
        token = {
            "module_path": self.faults.module_path,
            "token_label": self.token.label,
            "pin_file": str(self.token.pin_file),
            "sessions": 1,
        }
        return msgspec.convert(token | settings, kind)


@asynccontextmanager
async def without(device: Device) -> AsyncGenerator[CertificateAuthority]:
    keys = await manager.load_server(device.configured(Configuration, namespace="bench"), device.context)
    try:
        yield CertificateAuthority(CaSettings(trust_domain=TRUST_DOMAIN), keys, MemoryAuthorityStore())
    finally:
        await keys.close()


@asynccontextmanager
async def with_intermediate(device: Device) -> AsyncGenerator[CertificateAuthority]:
    root = {"key_label": "root-2026", "cert_file_path": str(device.certificate)}
    upstream = await pkcs11.load(device.configured(pkcs11.Configuration, **root), device.context)
    authority = CertificateAuthority(
        CaSettings(trust_domain=TRUST_DOMAIN), MemoryKeyManager(), MemoryAuthorityStore(), upstream=upstream
    )
    try:
        yield authority
    finally:
        await authority.close()


async def rate(authority: CertificateAuthority, seconds: float) -> float:
    """X509-SVIDs a second, in wall time."""
    request = csr(ec_key())
    batch = [(request, Entry(f"spiffe://example.org/workload/{number}")) for number in range(BATCH)]
    await authority.start()
    count, began = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - began) < seconds:
        approved = await checks.approve_workloads(batch, TRUST_DOMAIN)
        count += len(await authority.issue_x509([each for each in approved if isinstance(each, ApprovedX509)]))
    return count / elapsed


async def measure(device: Device, seconds: float) -> None:
    for delay in DELAYS:
        with device.faults.planted("C_Sign", "sleep", int(delay * 1e6)):
            async with without(device) as authority:
                slow = await rate(authority, seconds)
            async with with_intermediate(device) as authority:
                fast = await rate(authority, seconds)
        print(
            f"{delay * 1000:3.0f} ms a signature: {slow:7.0f} SVIDs/s by the device, "
            f"{fast:7.0f}/s below an intermediate: {fast / slow:.0f} times"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seconds", type=float, default=5.0, help="how long each figure is measured")
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        token = stack.enter_context(softhsm.SoftHsm.create(folder / "token").installed())
        faults = stack.enter_context(FaultyHsm.create(folder / "faults").installed())
        device = Device(folder, token, faults, ceremony.in_token(token, folder))
        asyncio.run(measure(device, arguments.seconds))


if __name__ == "__main__":
    main()
