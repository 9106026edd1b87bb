"""The TPM, as seen from the event loop: each step in a process of its own, with a deadline."""

from __future__ import annotations

import asyncio
import os
from typing import Final, TypeVar

import msgspec

from attestors.tpm_devid import jobs
from attestors.tpm_devid.jobs import Failed
from keystores import errors, processes
from keystores.tpm.responses import AUTH_FAIL, error_number, is_tpm
from keystores.tpm.worker import KINDS

SERVICE: Final = "attestors.tpm_devid.service"
PATIENCE: Final = 90.0
"""Seconds of one step. Hardware may take half a minute for an RSA key, and a first step may need three."""

T = TypeVar("T", bound=jobs.Answer)


class WrongPassword(errors.Refused):
    """Of the DevID's key; the TPM counts it as a guess."""


async def call(request: jobs.Request, expected: type[T], patience: float = PATIENCE) -> T:
    """Raises what the step failed with, and TemporarilyUnavailable after the patience."""
    answer = await _run(request, patience)
    if isinstance(answer, Failed):
        if is_tpm(answer.code) and error_number(answer.code) == AUTH_FAIL:
            raise WrongPassword(answer.message)
        raise KINDS.get(answer.kind, errors.PermanentlyUnusable)(answer.message)
    if not isinstance(answer, expected):
        raise errors.PermanentlyUnusable(f"the process at the TPM answered with {type(answer).__name__}")
    return answer


async def _run(request: jobs.Request, patience: float) -> jobs.Answer:
    try:
        process = await asyncio.create_subprocess_exec(
            *processes.command(SERVICE),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            # The library's log says what the errors say, and would be in the agent's.
            env=processes.environment({"TSS2_LOG": os.environ.get("TSS2_LOG", "all+NONE")}),
        )
    except OSError as error:
        raise errors.TemporarilyUnavailable(f"the process at the TPM does not start: {error}") from error
    try:
        async with asyncio.timeout(patience):
            output, _ = await process.communicate(jobs.encode(request))
    except TimeoutError as error:
        raise errors.TemporarilyUnavailable(f"the TPM gave no answer within {patience:g} s") from error
    finally:
        if process.returncode is None:
            process.kill()
    try:
        return jobs.answer(output)
    except msgspec.MsgspecError as error:
        raise errors.TemporarilyUnavailable("the process at the TPM ended without an answer") from error
