"""The job and step of Slurm that a process belongs to, by the cgroup that slurmstepd put it into."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from attestors import processes
from attestors.containers import proc_files
from identity.selectors import Selector
from operations.errors import Refused
from operations.quoting import quote
from plugins.workloadattestor import WorkloadAttestor
from transport.peer import Process

if TYPE_CHECKING:
    from plugins.catalog import PluginContext

_LARGEST = 256 << 10  # some twenty hierarchies with paths of at most a page each

# /system.slice/[NODE_]slurmstepd.scope/JOB/step_STEP/…, where slurmstepd makes it (Slurm's cgroup/v2 plugin). Only
# root may make anything in the system's slice: users may do so in slices of their own, so the path is looked at from
# its very beginning. JOB is job_ and a number, or an SLUID, which begins with an s.
_STEP = re.compile(rb"/system\.slice/[^/]*slurmstepd\.scope/(?:job_([0-9]+)|(s[0-9A-Za-z]+))/step_([^/]+)")
_OUTSIDE = b"/.."  # of the reader's namespace (cgroup_namespaces(7))
_BLIND = "outside of the agent's cgroup namespace: run the agent in the host's, where it sees Slurm's"


class Configuration(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """There is nothing to set."""


@dataclass(frozen=True, slots=True)
class Step:
    """`job` is the selector of the job: `job_id:NUMBER` or `sluid:SLUID`. `name` is a number, `batch`, `extern`, …"""

    job: str
    name: str


class SlurmAttestor:
    """Selectors `job_id` or `sluid`, and `step`; none for what is no part of a job.

    Cgroups are seen from the agent's own cgroup namespace, which has to be the host's.
    """

    name = "slurm"

    async def attest(self, process: Process) -> Sequence[Selector]:
        """Raises NotFound when the process is gone, Refused when its cgroups cannot be understood or disagree."""
        # The kernel answers this from memory, so it needs no thread.
        paths = proc_files.cgroup_paths(processes.read(process.pid, "cgroup", limit=_LARGEST))
        step = step_of(paths)
        if step is None and any(path.startswith(_OUTSIDE) for path in paths):
            raise Refused(f"the cgroups of process {process.pid} are {_BLIND}")
        processes.require_running(process)
        return [] if step is None else [Selector(self.name, step.job), Selector(self.name, f"step:{step.name}")]


def step_of(paths: Iterable[bytes]) -> Step | None:
    """The one step that the paths of a process's cgroups name. Raises Refused where they name several."""
    known: Step | None = None
    for path in paths:
        found = _step(path)
        if found is not None and known is not None and found != known:
            raise Refused(f"multiple Slurm jobs found in cgroups ({_text(known)}, {_text(found)})")
        known = found or known
    return known


def _step(path: bytes) -> Step | None:
    match = _STEP.match(path)
    if match is None:
        return None
    number, sluid, name = match.groups()
    try:
        return Step(f"job_id:{number.decode()}" if number else f"sluid:{sluid.decode()}", name.decode())
    except UnicodeDecodeError as error:
        raise Refused(f"the name of a Slurm step is no UTF-8: {quote(name.decode(errors='replace'))}") from error


def _text(step: Step) -> str:
    return f"{step.job}/step_{step.name}"


async def load(_configuration: Configuration, _context: PluginContext) -> WorkloadAttestor:
    return SlurmAttestor()
