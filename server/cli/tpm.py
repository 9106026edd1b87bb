"""`spire-server tpm policy learn|check|show`: boot policies of stored evidence, and tried on it. No server is asked."""

from __future__ import annotations

from operations import output
from operations.errors import InvalidArgument
from operations.flags import Flag, FlagSet, Run

_EVIDENCE = "`FILE` of {} evidence, or a folder such as the server's evidence_path; repeatable"


def learn(flags: FlagSet) -> Run:
    evidence = _evidence_flag(flags, "a golden machine's")
    path = flags.string("policy", "", "New `FILE` to write the policy to; it is printed without it")
    name = flags.string("name", "golden", "Name of the policy: nodes get the selector tpm:policy:NAME")
    form = output.add_flag(flags)

    def run(_: list[str]) -> int:
        from server.cli import boot_policies

        boot_policies.learn(_required(evidence), name.value, path.value, form.value)
        return 0

    return run


def check(flags: FlagSet) -> Run:
    evidence = _evidence_flag(flags, "a machine's")
    path = flags.string("policy", "", "`FILE` of the policy to be tried; required")
    form = output.add_flag(flags)

    def run(_: list[str]) -> int:
        from server.cli import boot_policies

        if not path.value:
            raise InvalidArgument("a policy is required: name its file with -policy")
        boot_policies.check(path.value, _required(evidence), form.value)
        return 0

    return run


def show(flags: FlagSet) -> Run:
    evidence = _evidence_flag(flags, "a machine's")
    path = flags.string("policy", "", "`FILE` of the policy to be shown")
    form = output.add_flag(flags)

    def run(_: list[str]) -> int:
        from server.cli import boot_policies

        if bool(path.value) == bool(evidence.value):
            raise InvalidArgument("name what to show: a policy with -policy, or evidence with -evidence")
        if path.value:
            boot_policies.show_policy(path.value, form.value)
        else:
            boot_policies.show_evidence(evidence.value, form.value)
        return 0

    return run


def _evidence_flag(flags: FlagSet, whose: str) -> Flag[tuple[str, ...]]:
    return flags.strings("evidence", _EVIDENCE.format(whose))


def _required(evidence: Flag[tuple[str, ...]]) -> tuple[str, ...]:
    """The files. Raises InvalidArgument when there is none."""
    if not evidence.value:
        raise InvalidArgument("evidence is required: name its file with -evidence")
    return evidence.value
