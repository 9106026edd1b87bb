"""How fast a TPM signs: TPM2_Sign alone, and through the KeyManager, which checks every signature.

    python -m bench.tpm_sign_rate [--tcti device:/dev/tpmrm0] [--key-type ec-p256] [--seconds 2]

Without a TCTI it starts a swtpm of its own. "TPM2_Sign" is what one thread gets from tpm2-pytss in the same kind of
session, salted and encrypting, with nothing besides; the password session of the first row has no protection.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import secrets
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from bench.sign_rate import Rate
from keystores.tpm.configuration import Configuration
from keystores.tpm.manager import load_server
from keystores.tpm.messages import Blob, Create, Place, Wrapped
from operations import logs
from plugins.catalog import PluginContext
from plugins.keymanager import Hash, Key, KeyType, Scheme

SCHEME = Scheme(Hash.SHA256)
CALLERS = (1, 4, 16)
BATCH = 50


def raw(tcti: str, key_type: KeyType, seconds: float) -> Sequence[Rate]:
    """TPM2_Sign on one connection, one thread, nothing checked: by a password session, then by an encrypting one."""
    from tpm2_pytss import ESYS_TR, TPM2_ALG  # which only the worker's process has otherwise

    from keystores.tpm import templates
    from keystores.tpm.device import Device
    from keystores.tpm.jobs import answer

    device = Device(Place(tcti=tcti))
    made = answer(device, Create(key_type=key_type.value), lambda: None)
    assert isinstance(made, Wrapped)
    handle = device.load(Blob(public=made.public, private=made.private))
    algorithm = TPM2_ALG.RSASSA if key_type.value.startswith("rsa") else TPM2_ALG.ECDSA
    scheme, ticket = templates.scheme(algorithm, TPM2_ALG.SHA256), templates.no_ticket()

    def signer(session: Callable[[], ESYS_TR]) -> Callable[[bytes], object]:
        return lambda digest: device.esapi.sign(handle, digest, scheme, ticket, session1=session())

    try:
        return [
            _rate("TPM2_Sign, password session", signer(lambda: ESYS_TR.PASSWORD), seconds),
            _rate("TPM2_Sign", signer(device.session), seconds),
        ]
    finally:
        device.close()


def _rate(what: str, sign: Callable[[bytes], object], seconds: float) -> Rate:
    count, began, cpu = 0, time.perf_counter(), time.process_time()
    while (elapsed := time.perf_counter() - began) < seconds:
        sign(secrets.token_bytes(32))
        count += 1
    return Rate(what, count / elapsed, (time.process_time() - cpu) / count * 1e6)


async def _caller(key: Key, size: int, end: float) -> int:
    """Signs batches until the end, a `perf_counter` time, and returns how many digests."""
    count = 0
    while time.perf_counter() < end:
        count += len(await key.sign_batch([secrets.token_bytes(32) for _ in range(size)], SCHEME))
    return count


async def through_the_key_manager(configuration: Configuration, key_type: KeyType, seconds: float) -> Sequence[Rate]:
    context = PluginContext(trust_domain="bench", data_dir=None, log=logs.get("bench"))
    manager = await load_server(configuration, context)
    key = await manager.generate("bench", key_type)
    rates: list[Rate] = []
    for size in (1, BATCH):
        for callers in CALLERS:
            began, cpu = time.perf_counter(), time.process_time()
            counts = await asyncio.gather(*(_caller(key, size, began + seconds) for _ in range(callers)))
            elapsed, count = time.perf_counter() - began, sum(counts)
            what = f"KeyManager, {callers} callers, batch {size}"
            rates.append(Rate(what, count / elapsed, (time.process_time() - cpu) / count * 1e6))
    await manager.close()
    return rates


def measure(configuration: Configuration, key_type: KeyType, seconds: float) -> Sequence[Rate]:
    """TPM2_Sign first, then the KeyManager by batch and callers. Leaves nothing in the TPM."""
    return [
        *raw(configuration.tcti, key_type, seconds),
        *asyncio.run(through_the_key_manager(configuration, key_type, seconds)),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--tcti")
    parser.add_argument("--key-type", type=KeyType, default=KeyType.EC_P256)
    parser.add_argument("--seconds", type=float, default=2.0)
    arguments = parser.parse_args()
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        tcti = arguments.tcti
        if tcti is None:
            from tests.simulators import swtpm

            tcti = stack.enter_context(swtpm.started(folder / "tpm")).tcti
        configuration = Configuration(tcti=tcti, keys_path=str(folder / "keys"))
        rates = measure(configuration, arguments.key_type, arguments.seconds)
        for rate in rates:
            print(f"{rate} {rate.per_second / rates[1].per_second:6.0%} of TPM2_Sign")


if __name__ == "__main__":
    main()
