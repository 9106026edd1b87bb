"""How fast a token signs: C_Sign alone, and through the KeyManager, which checks every signature.

    python -m bench.sign_rate [--module PATH --token-label LABEL --pin-file FILE] [--key-type ec-p256] [--seconds 2]

Without a module it makes a SoftHSM token of its own. Its keys are in a namespace of their own and are destroyed.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import secrets
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from keystores.pkcs11.configuration import Configuration, token_name
from keystores.pkcs11.connection import Connection
from keystores.pkcs11.manager import load_server
from keystores.pkcs11.module import TokenSession
from keystores.pkcs11.pin import Pin
from keystores.pkcs11.profiles import profile
from operations import logs
from plugins.catalog import PluginContext
from plugins.keymanager import Hash, Key, KeyType, Scheme

SCHEME = Scheme(Hash.SHA256)
BATCHES = (1, 50, 500)
CALLERS = 8


@dataclass(frozen=True, slots=True)
class Rate:
    """`per_second` in wall time, `cpu` in microseconds of this process per signature."""

    what: str
    per_second: float
    cpu: float

    def __str__(self) -> str:
        return f"{self.what:32} {self.per_second:9.0f}/s {self.cpu:8.0f} µs CPU each"


def _digests(count: int) -> list[bytes]:
    return [secrets.token_bytes(32) for _ in range(count)]


def raw(configuration: Configuration, key_type: KeyType, seconds: float) -> Rate:
    """C_SignInit and C_Sign on one session, one thread, nothing checked."""
    path = Path(str(configuration.keys_path))
    pin = Pin.configured(configuration.pin_file, configuration.pin_credential, path.with_suffix(".pin-refused"))
    connection = Connection(configuration.module_path, token_name(configuration), pin)
    cka_id = secrets.token_bytes(20)

    def measure(session: TokenSession) -> Rate:
        session.generate(cka_id, "sign-rate/raw", key_type, profile(configuration.profile))
        digests = _digests(100)
        list(session.sign(cka_id, key_type, digests[:1], SCHEME))
        count, began, cpu = 0, time.perf_counter(), time.process_time()
        while (elapsed := time.perf_counter() - began) < seconds:
            count += len(list(session.sign(cka_id, key_type, digests, SCHEME)))
        rate = Rate("C_Sign", count / elapsed, (time.process_time() - cpu) / count * 1e6)
        session.destroy(cka_id)
        return rate

    try:
        return connection.run(measure)
    finally:
        connection.close()


async def _caller(key: Key, end: float) -> int:
    """Signs batches of 50 until the end, a `perf_counter` time, and returns how many digests."""
    count, digests = 0, _digests(50)
    while time.perf_counter() < end:
        count += len(await key.sign_batch(digests, SCHEME))
    return count


async def through_the_key_manager(configuration: Configuration, key_type: KeyType, seconds: float) -> Sequence[Rate]:
    context = PluginContext(trust_domain="bench", data_dir=None, log=logs.get("bench"))
    manager = await load_server(configuration, context)
    key = await manager.generate("bench", key_type)
    rates: list[Rate] = []
    for size in BATCHES:
        digests = _digests(size)
        count, began, cpu = 0, time.perf_counter(), time.process_time()
        while (elapsed := time.perf_counter() - began) < seconds:
            count += len(await key.sign_batch(digests, SCHEME))
        rates.append(Rate(f"KeyManager, batch {size}", count / elapsed, (time.process_time() - cpu) / count * 1e6))
    began, cpu = time.perf_counter(), time.process_time()
    counts = await asyncio.gather(*(_caller(key, began + seconds) for _ in range(CALLERS)))
    elapsed, count = time.perf_counter() - began, sum(counts)
    what = f"KeyManager, {CALLERS} callers, batch 50"
    rates.append(Rate(what, count / elapsed, (time.process_time() - cpu) / count * 1e6))
    await manager.close()
    return rates


def measure(configuration: Configuration, key_type: KeyType, seconds: float) -> Sequence[Rate]:
    """C_Sign first, then the KeyManager at each batch size. Destroys the keys it made."""
    try:
        return [
            raw(configuration, key_type, seconds),
            *asyncio.run(through_the_key_manager(configuration, key_type, seconds)),
        ]
    finally:
        _clean_up(configuration)


def _clean_up(configuration: Configuration) -> None:
    path = Path(str(configuration.keys_path))
    pin = Pin.configured(configuration.pin_file, configuration.pin_credential, path.with_suffix(".pin-refused"))
    connection = Connection(configuration.module_path, token_name(configuration), pin)

    def destroy(session: TokenSession) -> None:
        for key in session.keys(f"{configuration.namespace}/"):
            session.destroy(key.cka_id)

    connection.run(destroy)
    connection.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--module")
    parser.add_argument("--token-label", default="spire")
    parser.add_argument("--pin-file")
    parser.add_argument("--key-type", type=KeyType, default=KeyType.EC_P256)
    parser.add_argument("--seconds", type=float, default=2.0)
    arguments = parser.parse_args()
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        module, pin_file = arguments.module, arguments.pin_file
        if module is None:
            from tests.simulators import softhsm

            hsm = softhsm.SoftHsm.create(folder / "hsm", arguments.token_label)
            os.environ["SOFTHSM2_CONF"] = str(hsm.configuration)
            module, pin_file = softhsm.MODULE, str(hsm.pin_file)
        configuration = Configuration(
            module_path=module,
            token_label=arguments.token_label,
            pin_file=pin_file,
            namespace="sign-rate",
            keys_path=str(folder / "keys.json"),
        )
        for rate in measure(configuration, arguments.key_type, arguments.seconds):
            print(rate)


if __name__ == "__main__":
    main()
