from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import pytest

from agent import attestor_lane
from agent.attestor_lane import Lane, NoAnswer
from agent.workload_attestation import WorkloadAttestation
from attestors import processes
from identity.selectors import Selector
from operations.errors import Refused, TemporarilyUnavailable
from transport.peer import Peer, Process


def peer(started: int | None = None) -> Peer:
    pid = os.getpid()
    return Peer(
        "test", process=Process(pid, os.getuid(), os.getgid(), processes.started(pid) if started is None else started)
    )


class Good:
    name = "good"

    def __init__(self, *values: str) -> None:
        self.values = values

    async def attest(self, process: Process) -> Sequence[Selector]:
        del process
        return [Selector("good", each) for each in self.values]


class Bad:
    name = "bad"

    async def attest(self, process: Process) -> Sequence[Selector]:
        raise Refused("not today")


class Hanging:
    name = "hanging"

    async def attest(self, process: Process) -> Sequence[Selector]:
        await asyncio.sleep(3600)
        raise AssertionError


class Slow:
    """Hangs for this user's processes alone."""

    name = "slow"

    async def attest(self, process: Process) -> Sequence[Selector]:
        if process.uid == os.getuid():
            await asyncio.sleep(3600)
        return []


class Waiting:
    """Lets the first `crowd` wait until it is released, within bounds of its own, and answers all others at once."""

    name = "waiting"
    patience = 60.0

    def __init__(self, crowd: int) -> None:
        self._crowd = crowd
        self.released = asyncio.Event()

    async def attest(self, process: Process) -> Sequence[Selector]:
        del process
        self._crowd -= 1
        if self._crowd >= 0:
            await self.released.wait()
        return [Selector("waiting", "done")]


async def test_the_selectors_of_all_are_joined() -> None:
    found = await WorkloadAttestation([Good("a", "b"), Good("b", "c")]).attest(peer())
    assert found == {Selector("good", each) for each in "abc"}


async def test_one_that_fails_or_hangs_costs_only_its_own() -> None:
    attestation = WorkloadAttestation([Good("a"), Bad(), Hanging()], timeout=0.05)
    assert await attestation.attest(peer()) == {Selector("good", "a")}


async def test_when_all_fail_the_call_may_be_tried_again() -> None:
    with pytest.raises(TemporarilyUnavailable, match="workload attestation failed"):
        await WorkloadAttestation([Bad(), Bad()]).attest(peer())


async def test_a_reused_pid_is_refused_whatever_attestors_say() -> None:
    with pytest.raises(TemporarilyUnavailable):
        await WorkloadAttestation([Good("a")]).attest(peer(started=1))


async def test_a_caller_that_became_another_users_is_refused_whatever_attestors_say() -> None:
    me = peer()
    assert me.process
    changed = Peer("test", process=replace(me.process, uid=me.process.uid + 1))
    with pytest.raises(TemporarilyUnavailable):
        await WorkloadAttestation([Good("a")]).attest(changed)


async def test_a_user_who_calls_often_leaves_room_for_others() -> None:
    attestation = WorkloadAttestation([Slow()], timeout=60)
    me = peer()
    assert me.process
    crowd = [asyncio.ensure_future(attestation.attest(me)) for _ in range(200)]
    await asyncio.sleep(0)
    other = Peer("test", process=replace(me.process, uid=61234))
    async with asyncio.timeout(30):
        # It comes as far as being told that it is somebody else.
        with pytest.raises(TemporarilyUnavailable):
            await attestation.attest(other)
    for each in crowd:
        each.cancel()
    await asyncio.gather(*crowd, return_exceptions=True)


@dataclass
class Counting:
    """Counts who asked, and those who had asked when another one was given up."""

    name: str
    others: list[Counting] = field(default_factory=list["Counting"])
    asked: int = 0
    before: list[int] = field(default_factory=list[int])

    async def attest(self, process: Process) -> Sequence[Selector]:
        del process
        self.asked += 1
        try:
            await asyncio.sleep(3600 if self.others else 0)
        except asyncio.CancelledError:
            self.before.append(sum(each.asked for each in self.others))
            raise
        return [Selector(self.name, "a")]


async def test_one_that_hangs_keeps_nobody_from_the_others() -> None:
    """There are many more callers than it has places: all of them have asked the other before the first is given up."""
    good = Counting("good")
    hanging = Counting("hanging", [good])
    attestation = WorkloadAttestation([hanging, good], timeout=3.0)
    answers = await asyncio.gather(*(attestation.attest(peer()) for _ in range(1000)))
    assert set(answers) == {frozenset((Selector("good", "a"),))}
    assert 0 < hanging.asked < 1000
    assert set(hanging.before) == {1000}


class Faltering:
    """Answers, or hangs until it does."""

    name = "faltering"

    def __init__(self) -> None:
        self.answers = asyncio.Event()
        self.asked = 0
        self.asking = 0

    async def attest(self, process: Process) -> Sequence[Selector]:
        del process
        self.asked += 1
        self.asking += 1
        try:
            await self.answers.wait()
        finally:
            self.asking -= 1
        return [Selector("faltering", "a")]


async def test_one_that_has_hung_is_waited_for_briefly_until_it_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attestor_lane, "BRIEFLY", 0.01)
    faltering = Faltering()
    lane = Lane(faltering, 3600)
    process = peer().process
    assert process

    async def ask() -> Sequence[Selector]:
        return await lane.ask(0, lambda: faltering.attest(process))

    with pytest.raises(TimeoutError):  # a caller's own deadline
        async with asyncio.timeout(0.1):
            await ask()
    for _ in range(100):
        with pytest.raises(NoAnswer, match=r"within 0\.01 s"):
            await ask()
    assert faltering.asked == 101
    assert faltering.asking == 1, "one question is left with it"
    faltering.answers.set()
    monkeypatch.setattr(attestor_lane, "BRIEFLY", 60.0)
    assert await ask() == [Selector("faltering", "a")]
    faltering.answers.clear()
    monkeypatch.setattr(attestor_lane, "BRIEFLY", 0.01)
    waiting = asyncio.ensure_future(ask())
    await asyncio.sleep(0.2)
    assert not waiting.done(), "all wait again"
    faltering.answers.set()
    assert await waiting == [Selector("faltering", "a")]


async def test_the_answer_to_a_question_that_was_left_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attestor_lane, "BRIEFLY", 0.01)
    faltering = Faltering()
    lane = Lane(faltering, 0.05)
    process = peer().process
    assert process

    async def ask() -> Sequence[Selector]:
        return await lane.ask(0, lambda: faltering.attest(process))

    for _ in range(2):
        with pytest.raises(NoAnswer):
            await ask()
    faltering.answers.set()
    await asyncio.sleep(0.1)
    monkeypatch.setattr(attestor_lane, "BRIEFLY", 60.0)
    assert await ask() == [Selector("faltering", "a")]


async def test_a_caller_that_is_gone_is_asked_nobody_about() -> None:
    good = Counting("good")
    with pytest.raises(TemporarilyUnavailable):
        await WorkloadAttestation([good]).attest(peer(started=1))
    assert not good.asked


async def test_what_failed_is_told_by_name(caplog: pytest.LogCaptureFixture) -> None:
    await WorkloadAttestation([Good("a"), Bad()]).attest(peer())
    assert [record.getMessage() for record in caplog.records] == [
        'workload attestor "bad" failed',
        "Failed to collect all selectors",
    ]
    assert getattr(caplog.records[1], "fields", {})["error"] == 'workload attestor "bad" failed: not today'
    caplog.clear()
    with pytest.raises(TemporarilyUnavailable):
        await WorkloadAttestation([Bad()]).attest(peer())
    assert [record.getMessage() for record in caplog.records][-1] == "Workload attestation failed"


class Patient:
    """Waits for what comes late, longer than others may take."""

    name = "patient"
    patience = 60.0

    async def attest(self, process: Process) -> Sequence[Selector]:
        del process
        await asyncio.sleep(0.3)
        return [Selector("patient", "a")]


async def test_one_that_is_patient_is_waited_for() -> None:
    attestation = WorkloadAttestation([Hanging(), Patient()], timeout=0.05)
    assert await attestation.attest(peer()) == {Selector("patient", "a")}


async def test_a_caller_without_a_process_is_refused() -> None:
    with pytest.raises(TemporarilyUnavailable):
        await WorkloadAttestation([Good("a")]).attest(Peer("127.0.0.1:1"))


async def test_those_who_wait_take_no_places() -> None:
    attestor = Waiting(500)
    attestation = WorkloadAttestation([attestor], timeout=0.01)
    waiting = [asyncio.ensure_future(attestation.attest(peer())) for _ in range(500)]
    await asyncio.sleep(0.05)
    assert await attestation.attest(peer()) == {Selector("waiting", "done")}
    assert not any(each.done() for each in waiting), "they wait for as long as the attestor says"
    attestor.released.set()
    assert set(await asyncio.gather(*waiting)) == {frozenset([Selector("waiting", "done")])}


async def test_one_that_hangs_takes_the_places_of_no_other() -> None:
    asked: list[int] = []
    all_asked = asyncio.Event()

    class Counting(Good):
        async def attest(self, process: Process) -> Sequence[Selector]:
            asked.append(process.pid)
            if len(asked) == 200:
                all_asked.set()
            return await super().attest(process)

    attestation = WorkloadAttestation([Hanging(), Counting("a")], timeout=60)
    calls = [asyncio.ensure_future(attestation.attest(peer())) for _ in range(200)]
    async with asyncio.timeout(30):
        await all_asked.wait()
    for each in calls:
        each.cancel()
    await asyncio.gather(*calls, return_exceptions=True)
