"""CPU to verify an IMA list: the whole one of a first attestation, and what is new at a renewal.

    python -m bench.ima_replay [--mib 20] [--new 100] [--rounds 7]

The best of the rounds, since the machine does other things besides.
"""

from __future__ import annotations

import argparse
import hashlib
import time
from collections.abc import Callable
from functools import partial

from attestors.tpm.ima import records, replay
from attestors.tpm.ima.model import Prefix
from attestors.tpm.ima.signatures import Keys
from attestors.tpm.pcrs import IMA_PCR
from tests.simulators import ima_lists
from tests.simulators.booted import MACHINES, Boot, registers


def cpu(run: Callable[[], object], rounds: int) -> float:
    """Seconds."""
    best = float("inf")
    for _ in range(rounds):
        began = time.process_time()
        run()
        best = min(best, time.process_time() - began)
    return best


def quoted(data: bytes, value: bytes | None = None) -> bytes:
    digests = [hashlib.sha256(records.hashed(record)).digest() for record in records.scan(data)]
    return ima_lists.replayed("sha256", digests, value)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mib", type=int, default=20, help="size of the whole list")
    parser.add_argument("--new", type=int, default=100, help="entries at a renewal")
    parser.add_argument("--rounds", type=int, default=7)
    given = parser.parse_args()

    count = (given.mib << 20) // len(ima_lists.long(1))
    whole, new = ima_lists.long(count), ima_lists.long(given.new, first=count)
    before = Prefix(entries=count, size=len(whole), value=quoted(whole))
    after = quoted(new, before.value)
    print(f"the whole list, {len(whole) / 2**20:.1f} MiB, {count} entries")
    first = cpu(lambda: replay.replay(whole, Prefix(), before.value, "sha256"), given.rounds)
    print(f"  {first:.2f} s, {first / count * 1e6:.1f} us an entry")
    print(f"{given.new} new entries, {len(new) / 2**10:.1f} KiB")
    print(f"  {cpu(lambda: replay.replay(new, before, after, 'sha256'), given.rounds * 20) * 1e3:.2f} ms")

    entries = replay.replay(Boot.of().ima, Prefix(), registers("golden", "sha256").values[IMA_PCR], "sha256").entries
    signers = [(MACHINES / f"signer-{name}.pem").read_bytes() for name in ("rsa", "ec")]
    for entry in entries:
        if entry.signature is not None:
            once = min(cpu(partial(Keys.load(signers).signed, entry), 1) for _ in range(100))
            known = Keys.load(signers)
            again = cpu(partial(known.signed, entry), 100)
            print(f"signature of {entry.path}: {once * 1e6:.0f} us, {again * 1e6:.1f} us once it is known")


if __name__ == "__main__":
    main()
