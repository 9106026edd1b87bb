"""Judging: what satisfies a policy, what does not, and what is said of it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st

from attestors.tpm.event_log.model import BootFacts, Measured
from attestors.tpm.ima.model import ImaEntry
from attestors.tpm.ima.signatures import Keys
from attestors.tpm.pcrs import PcrValues
from attestors.tpm.policy import judging
from attestors.tpm.policy.model import NOT_FOR_IT, Judgement, Observed
from attestors.tpm.policy.patterns import Patterns
from attestors.tpm.policy.reasons import LENGTH, LIMIT
from attestors.tpm.policy.rules import DigestRule, EventRules, FirmwareRule, ImaRules, Policies, Policy


def digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


A, B, C = digest("a"), digest("b"), digest("c")
VALUES = {number: digest(f"PCR {number}") for number in range(15)}
AGGREGATE = ImaEntry(
    10, "ima-ng", "sha256", hashlib.sha256(b"".join(VALUES[number] for number in range(10))).digest(), "boot_aggregate"
)


def entry(path: str, content: bytes = A, **others: Any) -> ImaEntry:
    return ImaEntry(10, "ima-ng", "sha256", content, path, **others)


FACTS = BootFacts(
    bank="sha256",
    secure_boot=True,
    firmware_version="Bench 1.0",
    variables={"PK": (A,), "KEK": (A,), "db": (A, B), "dbx": (A, B), "MokList": (A,), "SbatLevel": (A,)},
    authorities=(A,),
    images=(Measured(2, C, "card.efi"), Measured(4, A, "shimx64.efi"), Measured(4, B)),
    files=(Measured(9, A, "/boot/vmlinuz"), Measured(9, B, "/boot/initrd.img")),
    command_lines=("/boot/vmlinuz root=/dev/vda1 ro",),
)
OBSERVED = Observed(
    selectors=("ek:00", "manufacturer:IFX"),
    pcrs=PcrValues("sha256", VALUES),
    facts=FACTS,
    ima=(AGGREGATE, entry("/usr/bin/x"), entry("/usr/bin/x", B), entry("/var/log/x", C)),
    tpm_firmware=0x700000005,
    standing=frozenset({"golden"}),
)
ONLY_A = DigestRule(allow_only=frozenset({A}))
EVENTS = EventRules(
    secure_boot=True,
    variables={
        "PK": ONLY_A,
        "KEK": DigestRule(require_any=frozenset({A, C})),
        "db": DigestRule(allow_only=frozenset({A, B})),
        "dbx": DigestRule(require=frozenset({A, B})),
        "MokList": DigestRule(forbid=frozenset({B})),
        "SbatLevel": ONLY_A,
    },
    authorities=ONLY_A,
    drivers=DigestRule(allow_only=frozenset({C})),
    images=DigestRule(allow_only=frozenset({A, B})),
    files=DigestRule(require=frozenset({A}), allow_only=frozenset({A, B})),
    command_line=Patterns(["/boot/vmlinuz root=/dev/[a-z0-9]+ ro"]),
    firmware_version=Patterns([r"Bench 1\..*"]),
)
IMA = ImaRules({"sha256": {"/usr/bin/x": (A, B)}}, Patterns(["/var/.*"]), keys=None, allow_violations=False)
GOLDEN = Policy(
    name="golden",
    selectors={"manufacturer": frozenset({"manufacturer:IFX", "manufacturer:STM"})},
    pcr={0: frozenset({VALUES[0]}), 7: frozenset({A, VALUES[7]})},
    events=EVENTS,
    tpm_firmware=FirmwareRule(minimum=0x700000004, allow=frozenset({0x700000005})),
    ima=IMA,
)


def judge(observed: Observed = OBSERVED, *policies: Policy) -> Judgement:
    return judging.judge(Policies(policies or (GOLDEN,), b""), observed)


def test_a_machine_that_keeps_all_rules() -> None:
    judgement = judge()
    assert judgement == Judgement(("golden",), ("golden",), {})
    assert judgement.passed
    assert judgement.reasons == ()


def facts(**changes: Any) -> Observed:
    return replace(OBSERVED, facts=replace(FACTS, **changes))


def variables(**changes: tuple[bytes, ...]) -> Observed:
    return facts(variables={**FACTS.variables, **changes})


def pcrs(changes: Mapping[int, bytes]) -> Observed:
    return replace(OBSERVED, pcrs=PcrValues("sha256", {**VALUES, **changes}))


def files(*added: ImaEntry) -> Observed:
    return replace(OBSERVED, ima=(*(OBSERVED.ima or ()), *added))


def without(mapping: Mapping[Any, Any], key: object) -> dict[Any, Any]:
    return {name: value for name, value in mapping.items() if name != key}


BROKEN: dict[str, tuple[Callable[[], Observed], str]] = {
    "PCR 0": (lambda: pcrs({0: A}), f"PCR 0 is {A.hex()}, not the allowed value; the firmware's code is another"),
    "PCR 7": (
        lambda: pcrs({7: B}),
        f"PCR 7 is {B.hex()}, not one of the 2 allowed values; Secure Boot's state or its keys have changed",
    ),
    "a register that was not quoted": (
        lambda: replace(OBSERVED, pcrs=PcrValues("sha256", without(VALUES, 4))),
        "the quote is without PCR 4, which its rules need",
    ),
    "another bank": (
        lambda: replace(OBSERVED, pcrs=PcrValues("sha1", {number: bytes(20) for number in VALUES})),
        "PCR 0 of the bank sha1 has 40 digits, and its rule none of that length",
    ),
    "no event log": (lambda: replace(OBSERVED, facts=None), "there is no event log, and its events rules need one"),
    "Secure Boot off": (lambda: facts(secure_boot=False), "Secure Boot is off: secure_boot wants it on"),
    "Secure Boot not proven": (
        lambda: facts(secure_boot=None, doubts=("PCR 7: it is told twice",)),
        "Secure Boot is not proven by the event log (PCR 7: it is told twice): secure_boot wants it on",
    ),
    "another owner": (lambda: variables(PK=(B,)), f"the platform key is {B.hex()}, which PK.allow_only has not"),
    "one more owner": (lambda: variables(PK=(A, B)), "which PK.allow_only has not"),
    "none of the exchange keys": (lambda: variables(KEK=(B,)), "KEK has none of the 2 digests of KEK.require_any"),
    "one more trusted key": (
        lambda: variables(db=(A, B, C)),
        f"a key or image that Secure Boot trusts is {C.hex()}, which db.allow_only has not",
    ),
    "a revocation taken back": (lambda: variables(dbx=(A,)), f"dbx is without {B.hex()}, which dbx.require has"),
    "an unproven variable": (
        lambda: facts(variables=without(FACTS.variables, "db")),
        "the event log does not prove the variable db",
    ),
    "an owner's key that is forbidden": (
        lambda: variables(MokList=(B,)),
        f"the list of the machine owner's keys is {B.hex()}, which MokList.forbid has",
    ),
    "owner's keys that are not proven": (
        lambda: facts(variables=without(FACTS.variables, "MokList"), unproven=(Measured(14, C),)),
        "MokList cannot be judged: PCR 14 has an event",
    ),
    "another authority": (lambda: facts(authorities=(A, B)), "an authority by which an image was verified is"),
    "an unproven authority": (lambda: facts(unproven=(Measured(7, C),)), "authorities cannot be judged: PCR 7"),
    "another driver": (
        lambda: facts(images=(Measured(2, A, "x"), *FACTS.images)),
        f'the driver "x" is {A.hex()}, which drivers.allow_only has not',
    ),
    "another image": (
        lambda: facts(images=(*FACTS.images, Measured(4, C))),
        f"the image is {C.hex()}, which images.allow_only has not",
    ),
    "an image in a strange register": (
        lambda: facts(images=(*FACTS.images, Measured(3, C))),
        "which images.allow_only",
    ),
    "no image": (lambda: facts(images=()), "the event log has no images: it does not say what was booted"),
    "another kernel": (
        lambda: facts(files=(Measured(9, A), Measured(9, C, "/boot/vmlinuz"))),
        f'the file "/boot/vmlinuz" is {C.hex()}, which files.allow_only has not',
    ),
    "no kernel": (lambda: facts(files=(Measured(9, B),)), f"files is without {A.hex()}, which files.require has"),
    "no files": (lambda: facts(files=()), "the event log has no files"),
    "another command line": (
        lambda: facts(command_lines=(*FACTS.command_lines, "/boot/vmlinuz init=/bin/sh")),
        'the command line "/boot/vmlinuz init=/bin/sh" matches no pattern of command_line',
    ),
    "more behind the command line": (
        lambda: facts(command_lines=("/boot/vmlinuz root=/dev/vda1 ro init=/bin/sh",)),
        "matches no pattern of command_line",
    ),
    "a line below the command line": (
        lambda: facts(command_lines=("/boot/vmlinuz root=/dev/vda1 ro\n",)),
        'ro\\n" matches no pattern of command_line',
    ),
    "no command line": (lambda: facts(command_lines=()), "the event log proves no command line"),
    "an unproven command line": (lambda: facts(unproven=(Measured(12, C),)), "command_line cannot be judged: PCR 12"),
    "other firmware": (lambda: facts(firmware_version="Bench 2.0"), '"Bench 2.0" matches no pattern of'),
    "unknown firmware": (lambda: facts(firmware_version=None), "the event log proves no firmware version"),
    "an older TPM": (
        lambda: replace(OBSERVED, tpm_firmware=0x700000003),
        "the TPM's firmware is 0x00000007_00000003, older than tpm_firmware.minimum 0x00000007_00000004: update it",
    ),
    "a newer TPM": (
        lambda: replace(OBSERVED, tpm_firmware=0x700000006),
        "the TPM's firmware is 0x00000007_00000006, which tpm_firmware.allow does not have",
    ),
    "no list of files": (lambda: replace(OBSERVED, ima=None), "there is no IMA list, and its ima rules need one"),
    "an unknown file": (
        lambda: files(entry("/tmp/x")),
        f'the file "/tmp/x" (sha256:{A.hex()}) is not among the allowed files',
    ),
    "a changed file": (
        lambda: files(entry("/usr/bin/x", C)),
        f'the file "/usr/bin/x" is sha256:{C.hex()}, which is not allowed for it: it was changed or updated',
    ),
    "a digest by another hash": (
        lambda: files(ImaEntry(10, "ima-ng", "sm3-256", A, "/usr/bin/x")),
        'the file "/usr/bin/x" is sm3-256:',
    ),
    "a violation": (
        lambda: files(entry("/usr/bin/x", violation=True)),
        'the file "/usr/bin/x" changed while it was measured (a violation)',
    ),
    "a violation that calls itself excluded": (
        lambda: files(entry("/var/log/x", violation=True)),
        "changed while it was measured",
    ),
    "a file that calls itself the aggregate": (lambda: files(entry("boot_aggregate")), "it is of another boot"),
    "a file refused earlier": (
        lambda: replace(OBSERVED, standing=frozenset({"silver"})),
        "files that were measured earlier in this boot did not satisfy it",
    ),
    "a path that is excluded in part": (lambda: files(entry("/tmp/var/x")), "is not among the allowed files"),
    "a path with a line end": (lambda: files(entry("/tmp/\n/var/x")), '"/tmp/\\n/var/x"'),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_rule_is_told(case: str) -> None:
    observed, reason = BROKEN[case]
    judgement = judge(observed())
    assert not judgement.passed
    assert judgement.ima == ()
    assert any(line.startswith("policy golden: ") and reason in line for line in judgement.failures["golden"])
    assert judgement.reasons == judgement.failures["golden"]
    assert all("\n" not in line and len(line) <= LENGTH for line in judgement.reasons)


def test_nothing_at_all_is_nothing_proven() -> None:
    nothing = Observed(OBSERVED.selectors, PcrValues("sha256", {}), None, None, 0)
    assert not judge(nothing).passed
    assert len(judge(nothing).reasons) >= 5


def test_owners_keys_that_shim_did_not_measure_are_none() -> None:
    assert judge(facts(variables=without(FACTS.variables, "MokList"))).passed


def test_a_policy_is_for_some_nodes() -> None:
    both = replace(GOLDEN, selectors={**GOLDEN.selectors, "ek": frozenset({"ek:00", "ek:11"})})
    assert judge(OBSERVED, both).passed
    for selectors in (
        (),
        ("ek:00",),
        ("manufacturer:IFX",),
        ("ek:22", "manufacturer:IFX"),
        ("ek:00", "manufacturer:X"),
    ):
        judgement = judge(replace(OBSERVED, selectors=selectors), both)
        assert not judgement.passed
        assert judgement.failures == {}
        assert judgement.reasons == (NOT_FOR_IT,)


def test_one_satisfied_policy_is_enough() -> None:
    silver = Policy("silver", pcr={0: frozenset({A})})
    bronze = Policy("bronze", pcr={0: frozenset({VALUES[0]})})
    other = Policy("other", selectors={"ek": frozenset({"ek:11"})}, pcr={0: frozenset({A})})
    judgement = judge(OBSERVED, silver, GOLDEN, bronze, other)
    assert judgement.satisfied == ("golden", "bronze")
    assert judgement.ima == ("golden",)
    assert set(judgement.failures) == {"silver"}
    assert judgement.passed


def test_reasons_are_bounded_and_the_gravest_come_first() -> None:
    bad = [entry(f"/tmp/{'x' * 1000}{number}") for number in range(5000)]
    judgement = judge(replace(facts(secure_boot=False), ima=bad))
    lines = judgement.reasons
    assert len(lines) == LIMIT + 1
    assert "Secure Boot is off" in lines[0]
    assert lines[-1] == f"policy golden: and {5001 - LIMIT} more"
    assert all(len(line) <= LENGTH for line in lines)


def test_violations_may_be_let_be() -> None:
    lenient = replace(GOLDEN, ima=replace(IMA, allow_violations=True))
    assert judge(files(entry("/usr/bin/x", bytes(32), violation=True)), lenient).passed


def test_the_digest_of_another_path_helps_nobody() -> None:
    assert not judge(files(entry("/usr/bin/y", A))).passed


def test_signed_files_are_let_be() -> None:
    """By signatures as evmctl makes them: a header, and ECDSA over the digest."""
    key = ec.generate_private_key(ec.SECP256R1())
    public = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    point = key.public_key().public_bytes(serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint)
    identifier = hashlib.sha1(point, usedforsecurity=False).digest()[-4:]
    content = b"content"
    signature = key.sign(content, ec.ECDSA(hashes.SHA256()))
    header = b"\x03\x02\x04" + identifier + len(signature).to_bytes(2)
    signing = replace(GOLDEN, ima=replace(IMA, keys=Keys.load([public])))
    signed = entry("/opt/x", hashlib.sha256(content).digest(), signature=header + signature)
    assert judge(files(signed), signing).passed
    assert not judge(files(signed)).passed
    for other in (
        entry("/opt/x", C, signature=header + signature),
        entry("/opt/x", signed.digest, signature=header + signature[:-1] + b"\0"),
        entry("/opt/x", signed.digest),
    ):
        judgement = judge(files(other), signing)
        assert not judgement.passed
        assert "nor is it signed by a key of signed_by" in judgement.reasons[0]


DIGESTS = st.sampled_from([A, B, C])
SETS = st.frozensets(DIGESTS)
RULES = st.none() | st.builds(DigestRule, SETS, SETS, st.none() | SETS, SETS)


def holds(rule: DigestRule | None, found: Sequence[bytes]) -> bool:
    """The rule's words, one by one."""
    if rule is None:
        return True
    for each in found:
        if each in rule.forbid or (rule.allow_only is not None and each not in rule.allow_only):
            return False
    some = not rule.require_any or any(each in rule.require_any for each in found)
    return some and all(each in found for each in rule.require)


@given(
    pinned=st.dictionaries(st.integers(0, 2), SETS),
    values=st.lists(DIGESTS, min_size=3, max_size=3),
    secure_boot=st.none() | st.booleans(),
    proven=st.none() | st.booleans(),
    rules=st.tuples(RULES, RULES, RULES, RULES, RULES),
    found=st.tuples(*[st.lists(DIGESTS, max_size=3)] * 5),
    db_proven=st.booleans(),
    minimum=st.none() | st.integers(0, 3),
    firmware=st.integers(0, 3),
    allowed=SETS,
    measured=st.lists(DIGESTS, max_size=3),
    stands=st.booleans(),
    logs=st.tuples(st.booleans(), st.booleans()),
)
def test_a_policy_is_satisfied_if_each_of_its_rules_is(
    pinned: dict[int, frozenset[bytes]],
    values: list[bytes],
    secure_boot: bool | None,
    proven: bool | None,
    rules: tuple[DigestRule | None, ...],
    found: tuple[list[bytes], ...],
    db_proven: bool,
    minimum: int | None,
    firmware: int,
    allowed: frozenset[bytes],
    measured: list[bytes],
    stands: bool,
    logs: tuple[bool, bool],
) -> None:
    """Held against the rules' meaning written down as plainly as can be."""
    db, authorities, drivers, images, files_rule = rules
    policy = Policy(
        "golden",
        pcr=pinned,
        events=EventRules(
            secure_boot=secure_boot,
            variables={} if db is None else {"db": db},
            authorities=authorities,
            drivers=drivers,
            images=images,
            files=files_rule,
        ),
        tpm_firmware=FirmwareRule(minimum=minimum),
        ima=ImaRules({"sha256": {"/x": tuple(allowed)}}, Patterns([]), keys=None, allow_violations=False),
    )
    facts_of_it = BootFacts(
        bank="sha256",
        secure_boot=proven,
        variables={"db": tuple(found[0])} if db_proven else {},
        authorities=tuple(found[1]),
        images=(*(Measured(2, each) for each in found[2]), *(Measured(4, each) for each in found[3])),
        files=tuple(Measured(9, each) for each in found[4]),
    )
    observed = Observed(
        selectors=(),
        pcrs=PcrValues("sha256", {**VALUES, **dict(enumerate(values))}),
        facts=facts_of_it if logs[0] else None,
        ima=[entry("/x", each) for each in measured] if logs[1] else None,
        tpm_firmware=firmware,
        standing=frozenset({"golden"} if stands else ()),
    )
    expected = (
        all(values[number] in pinned[number] for number in pinned)
        and all(logs)
        and stands
        and (secure_boot is None or proven is secure_boot)
        and (db is None or db_proven)
        and all(holds(rule, each) for rule, each in zip(rules, found, strict=True))
        and not any(rule and rule.allow_only and not found[place] for place, rule in ((3, images), (4, files_rule)))
        and (minimum is None or firmware >= minimum)
        and all(each in allowed for each in measured)
    )
    judgement = judge(observed, policy)
    assert judgement.passed is expected
    assert judgement.passed is not bool(judgement.failures)
