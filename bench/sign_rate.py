"""How fast a token signs: C_Sign alone, and through the KeyManager, which checks every signature.

    python -m bench.sign_rate [--module PATH --token-label LABEL --pin-file FILE] [--key-type ec-p256] [--seconds 2]
                              [--sign-ms 1] [--sessions 4]

Without a module it makes a SoftHSM token of its own; `--sign-ms` slows that one's C_Sign, to stand for a device. Its
keys are in a namespace of their own and are destroyed. CPU is this process's and its worker's.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import secrets
import tempfile
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.measure import cpu_seconds
from keystores import public_keys
from keystores.pkcs11 import encoding
from keystores.pkcs11.configuration import Configuration, token_name
from keystores.pkcs11.connection import Connection
from keystores.pkcs11.manager import load_server
from keystores.pkcs11.module import Module
from keystores.pkcs11.protocol import Generate, Sign
from keystores.pkcs11.session import TokenSession
from operations import logs
from operations.files import read_secret
from plugins.catalog import PluginContext
from plugins.keymanager import Hash, Key, KeyType, Scheme

SCHEME = Scheme(Hash.SHA256)
CALLERS = (1, 4, 16)
BATCHES = (50, 500)


@dataclass(frozen=True, slots=True)
class Rate:
    """`per_second` in wall time, `cpu` in microseconds per signature."""

    what: str
    per_second: float
    cpu: float

    def __str__(self) -> str:
        return f"{self.what:36} {self.per_second:9.0f}/s {self.cpu:8.0f} µs CPU each"


class _Measured:
    def __init__(self, what: str) -> None:
        self._what = what
        self._cpu, self._began = cpu_seconds(os.getpid()), time.perf_counter()

    def rate(self, count: int) -> Rate:
        elapsed, cpu = time.perf_counter() - self._began, cpu_seconds(os.getpid()) - self._cpu
        return Rate(self._what, count / elapsed, cpu / count * 1e6)


@dataclass
class _Pin:
    """Tried once, as everywhere: a refusal ends the measurement."""

    pin: str

    def accepted(self) -> None:
        pass

    def refused(self) -> None:
        raise SystemExit("the token refused the PIN")


def _digests(count: int) -> list[bytes]:
    return [secrets.token_bytes(32) for _ in range(count)]


@contextmanager
def _connected(configuration: Configuration) -> Generator[Connection]:
    """A session in this process, as a worker's thread has it."""
    pin = read_secret(str(configuration.pin_file), "PIN")
    module = Module(configuration.module_path)
    connection = Connection(module, token_name(configuration), configuration.profile, lambda: _Pin(pin))
    try:
        yield connection
    finally:
        connection.close()
        module.finalize()


def raw(configuration: Configuration, key_type: KeyType, seconds: float) -> Rate:
    """C_SignInit and C_Sign on one session, one thread, nothing checked."""
    cka_id = secrets.token_bytes(20)
    parameters, bits = encoding.EC_PARAMETERS.get(key_type), public_keys.MODULUS_BITS.get(key_type)
    mechanism, payloads = encoding.signing(key_type, _digests(100), SCHEME)

    def measure(session: TokenSession) -> Rate:
        session.generate(Generate(cka_id, "sign-rate/raw", key_type.value, parameters, bits))
        list(session.sign(Sign(cka_id, None, mechanism, payloads[:1])))
        count, end, measured = 0, time.perf_counter() + seconds, _Measured("C_Sign")
        while time.perf_counter() < end:
            count += len(list(session.sign(Sign(cka_id, None, mechanism, payloads))))
        rate = measured.rate(count)
        session.destroy(cka_id)
        return rate

    with _connected(configuration) as connection:
        return connection.run(measure)


async def verification(key: Key, seconds: float) -> Rate:
    """What the check of a signature costs by itself."""
    digest = secrets.token_bytes(32)
    signature, verifier = await key.sign(digest, SCHEME), public_keys.from_der(key.public_key)
    count, end, measured = 0, time.perf_counter() + seconds, _Measured("verification, apart")
    while time.perf_counter() < end:
        public_keys.verify(verifier, [digest] * 50, [signature] * 50, SCHEME)
        count += 50
    return measured.rate(count)


async def _callers(key: Key, callers: int, size: int, seconds: float) -> Rate:
    """That many callers, each signing batches of that size one after another."""
    digests = _digests(size)

    async def sign() -> int:
        return len(await key.sign_batch(digests, SCHEME))

    async def caller(end: float) -> int:
        count = 0
        while time.perf_counter() < end:
            count += await sign()
        return count

    measured = _Measured(f"KeyManager, {callers} callers, batch {size}".replace("1 callers", "1 caller"))
    end = time.perf_counter() + seconds
    return measured.rate(sum(await asyncio.gather(*(caller(end) for _ in range(callers)))))


async def through_the_key_manager(configuration: Configuration, key_type: KeyType, seconds: float) -> Sequence[Rate]:
    context = PluginContext(trust_domain="bench", data_dir=None, log=logs.get("bench"))
    manager = await load_server(configuration, context)
    try:
        key = await manager.generate("bench", key_type)
        rates = [await _callers(key, callers, 1, seconds) for callers in CALLERS]
        rates += [await _callers(key, 1, size, seconds) for size in BATCHES]
        return [*rates, await _callers(key, 8, 50, seconds), await verification(key, seconds)]
    finally:
        await manager.close()


def measure(configuration: Configuration, key_type: KeyType, seconds: float) -> Sequence[Rate]:
    """C_Sign first, then the KeyManager by callers and batch sizes. Destroys the keys it made."""
    try:
        return [
            raw(configuration, key_type, seconds),
            *asyncio.run(through_the_key_manager(configuration, key_type, seconds)),
        ]
    finally:
        _clean_up(configuration)


def _clean_up(configuration: Configuration) -> None:
    def destroy(session: TokenSession) -> None:
        for key in session.keys(lambda label: label.startswith(f"{configuration.namespace}/")):
            session.destroy(key.cka_id)

    with _connected(configuration) as connection:
        connection.run(destroy)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--module")
    parser.add_argument("--token-label", default="spire")
    parser.add_argument("--pin-file")
    parser.add_argument("--key-type", type=KeyType, default=KeyType.EC_P256)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--sign-ms", type=float, help="milliseconds that C_Sign of the token made here takes longer")
    parser.add_argument("--sessions", type=int)
    arguments = parser.parse_args()
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        module, pin_file = arguments.module, arguments.pin_file
        if module is None:
            from tests.simulators import softhsm

            hsm = softhsm.SoftHsm.create(folder / "hsm", arguments.token_label)
            os.environ["SOFTHSM2_CONF"] = str(hsm.configuration)
            module, pin_file = softhsm.MODULE, str(hsm.pin_file)
            if arguments.sign_ms is not None:
                os.environ["SLOW_PKCS11_US"] = str(round(arguments.sign_ms * 1000))
                module = str(softhsm.slow_module(folder))
        configuration = Configuration(
            module_path=module,
            token_label=arguments.token_label,
            pin_file=pin_file,
            namespace="sign-rate",
            keys_path=str(folder / "keys.json"),
            sessions=arguments.sessions,
        )
        rates = measure(configuration, arguments.key_type, arguments.seconds)
        for rate in rates:
            print(rate, f"{rate.per_second / rates[0].per_second:6.0%} of C_Sign")


if __name__ == "__main__":
    main()
