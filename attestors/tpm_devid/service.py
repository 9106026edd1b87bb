"""The process at the TPM, for one step of an attestation: a request on its standard input, the answer on its output.

A TCTI may hang or crash, and only a process of its own can be ended then.
"""

from __future__ import annotations

import signal
import sys
from typing import Final

from attestors.tpm_devid import jobs, tpm
from attestors.tpm_devid.jobs import Answer, Begin, Failed
from keystores.tpm.failures import Fault

LONGEST: Final = 120
"""Seconds after which the kernel ends the process, when nobody else has."""


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.alarm(LONGEST)
    request = jobs.request(sys.stdin.buffer.read(jobs.LIMIT))
    sys.stdout.buffer.write(jobs.encode(_answer(request)))
    sys.stdout.buffer.flush()


def _answer(request: jobs.Request) -> Answer:
    try:
        return tpm.begin(request) if isinstance(request, Begin) else tpm.respond(request)
    except Fault as fault:
        return Failed(kind=fault.failed.kind, message=str(fault), code=fault.failed.code)


if __name__ == "__main__":
    main()
