"""How fast a TPM signs: TPM2_Sign alone, and through the KeyManager, which checks every signature.

    python -m bench.tpm_sign_rate [--tcti device:/dev/tpmrm0] [--key-type ec-p256] [--seconds 2]

Without a TCTI it starts swtpms of its own. "TPM2_Sign" is what one thread gets from tpm2-pytss in the same kind of
session, salted and encrypting, with nothing besides; the password session of the second row has no protection.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import secrets
import tempfile
import time
from collections.abc import Awaitable, Callable, Generator, Sequence
from dataclasses import dataclass
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
BATCHES = (1, 50)
ROUNDS = 6
"""Rows take turns, so that what else the machine does meets them alike."""

Round = Callable[[float], Awaitable[int]]
"""Signs for so many seconds; returns how often."""


@dataclass
class Row:
    what: str
    run: Round
    count: int = 0
    elapsed: float = 0.0
    cpu: float = 0.0

    async def take_turn(self, seconds: float) -> None:
        began, cpu = time.perf_counter(), time.process_time()
        self.count += await self.run(seconds)
        self.elapsed += time.perf_counter() - began
        self.cpu += time.process_time() - cpu

    @property
    def rate(self) -> Rate:
        return Rate(self.what, self.count / self.elapsed, self.cpu / self.count * 1e6)


@contextlib.contextmanager
def raw(tcti: str, key_type: KeyType) -> Generator[Sequence[Row]]:
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

    def row(what: str, session: Callable[[], ESYS_TR]) -> Row:
        async def sign(seconds: float) -> int:
            count, end = 0, time.perf_counter() + seconds
            while time.perf_counter() < end:
                device.esapi.sign(handle, secrets.token_bytes(32), scheme, ticket, session1=session())
                count += 1
            return count

        return Row(what, sign)

    try:
        yield [row("TPM2_Sign", device.session), row("TPM2_Sign, password session", lambda: ESYS_TR.PASSWORD)]
    finally:
        device.close()


def through(key: Key, callers: int, size: int) -> Row:
    async def caller(end: float) -> int:
        count = 0
        while time.perf_counter() < end:
            count += len(await key.sign_batch([secrets.token_bytes(32) for _ in range(size)], SCHEME))
        return count

    async def sign(seconds: float) -> int:
        end = time.perf_counter() + seconds
        return sum(await asyncio.gather(*(caller(end) for _ in range(callers))))

    return Row(f"KeyManager, {callers} callers, batch {size}", sign)


async def measure(raw_tcti: str, configuration: Configuration, key_type: KeyType, seconds: float) -> Sequence[Rate]:
    """TPM2_Sign first, then the KeyManager by batch and callers. Leaves nothing in the TPM."""
    context = PluginContext(trust_domain="bench", data_dir=None, log=logs.get("bench"))
    manager = await load_server(configuration, context)
    try:
        key = await manager.generate("bench", key_type)
        with raw(raw_tcti, key_type) as alone:
            rows = [*alone, *(through(key, callers, size) for size in BATCHES for callers in CALLERS)]
            for _ in range(ROUNDS):
                for row in rows:
                    await row.take_turn(seconds / ROUNDS)
        return [row.rate for row in rows]
    finally:
        await manager.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--tcti")
    parser.add_argument("--key-type", type=KeyType, default=KeyType.EC_P256)
    parser.add_argument("--seconds", type=float, default=3.0)
    arguments = parser.parse_args()
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        tctis = [arguments.tcti] * 2
        if arguments.tcti is None:
            from tests.simulators import swtpm

            # One each: a bare TPM has no room for two programs.
            tctis = [stack.enter_context(swtpm.started(folder / name)).tcti for name in ("alone", "managed")]
        configuration = Configuration(tcti=tctis[1], keys_path=str(folder / "keys"))
        rates = asyncio.run(measure(tctis[0], configuration, arguments.key_type, arguments.seconds))
        for rate in rates:
            print(f"{rate} {rate.per_second / rates[0].per_second:6.0%} of TPM2_Sign")


if __name__ == "__main__":
    main()
