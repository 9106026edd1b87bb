"""The TPM, as seen from the event loop: each step in a process of its own, with a deadline."""

from __future__ import annotations

import asyncio
import os
import subprocess
import threading
from typing import Final, TypeVar

import msgspec

from attestors.tpm_devid import jobs
from attestors.tpm_devid.jobs import Failed
from keystores import errors, processes
from keystores.tpm.responses import AUTH_FAIL, error_number, is_tpm
from keystores.tpm.worker import KINDS

SERVICE: Final = "attestors.tpm_devid.service"
PATIENCE: Final = 60.0
"""Seconds of one step. Hardware may take half a minute for an RSA key, though seldom for one from a template."""

T = TypeVar("T", bound=jobs.Answer)


class WrongPassword(errors.Refused):
    """Of the DevID's key; the TPM counts it as a guess."""


async def call(request: jobs.Request, expected: type[T], patience: float = PATIENCE) -> T:
    """Raises what the step failed with, and TemporarilyUnavailable after the patience.

    A step that has begun goes on to its end, also when its caller has gone: what is ended midway leaves its objects in
    a bare TPM.
    """
    answer = await asyncio.to_thread(_run, request, patience)
    if isinstance(answer, Failed):
        if is_tpm(answer.code) and error_number(answer.code) == AUTH_FAIL:
            raise WrongPassword(answer.message)
        raise KINDS.get(answer.kind, errors.PermanentlyUnusable)(answer.message)
    if not isinstance(answer, expected):
        raise errors.PermanentlyUnusable(f"the process at the TPM answered with {type(answer).__name__}")
    return answer


def _run(request: jobs.Request, patience: float) -> jobs.Answer:
    try:
        process = subprocess.Popen(
            processes.command(SERVICE),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            # The library's log says what the errors say, and would be in the agent's.
            env=processes.environment({"TSS2_LOG": os.environ.get("TSS2_LOG", "all+NONE")}),
        )
    except OSError as error:
        raise errors.TemporarilyUnavailable(f"the process at the TPM does not start: {error}") from error
    try:
        output, _ = process.communicate(jobs.encode(request), patience)
    except subprocess.TimeoutExpired as error:
        process.kill()
        # One that hangs in the kernel ends when the device lets it; nobody waits for that.
        threading.Thread(target=process.communicate, name="tpm-devid-end", daemon=True).start()
        raise errors.TemporarilyUnavailable(f"the TPM gave no answer within {patience:g} s") from error
    try:
        return jobs.answer(output)
    except msgspec.MsgspecError as error:
        raise errors.TemporarilyUnavailable("the process at the TPM ended without an answer") from error
