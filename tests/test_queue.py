"""The queue: what fits is started, first come first served; records alone say who runs; a stop reaches everyone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from conftest import tiny_words, until
from hypothesis import given, settings
from hypothesis import strategies as st

from hpcai import lease, rundir
from hpcai.config.check import load
from hpcai.errors import OwnedError, RunError
from hpcai.lease import RunState
from hpcai.plan import JobPlan, make_plan
from hpcai.queue import Entry, Queue, Running, Share, Slots
from hpcai.rundir import RunDir
from hpcai.runs import Member


@pytest.fixture
def plan(tiny_npz: Path, tmp_path: Path) -> JobPlan:
    return entry(tiny_npz, tmp_path).plan


def entry(npz: Path, home: Path, seed: int = 0, **resources: Any) -> Entry:
    words = tiny_words(npz) | {"runs_dir": str(home / "runs"), "seed": str(seed)}
    config = load([f"{k}='{v}'" if "/" in v else f"{k}={v}" for k, v in words.items()])
    made, config, files = make_plan(config)
    made = replace(made, resources={**made.resources, **resources})
    return Entry(Member(made.run_id, made.run_dir, f"seed={seed}", "", "train"), config, made, files)


# --- slots


asks = st.lists(
    st.tuples(st.integers(1, 9), st.integers(1, 3), st.one_of(st.none(), st.floats(0.5, 40)), st.integers(0, 5)),
    min_size=1, max_size=12,
)  # fmt: skip


@given(asks, st.data())
@settings(max_examples=200, deadline=None)
def test_what_is_held_never_exceeds_the_machine_and_comes_back_whole(asked: list[Any], data: st.DataObject) -> None:
    slots = Slots(8, 32.0, [0, 1, 2, 3])
    plans = [JobPlan(str(n), f"/r/{n}", "train", "local", "local",
                     {"nodes": 1, "tasks_per_node": ranks, "gpus_per_node": gpus, "mem_gb": memory}, threads, "", [], [])
             for n, (threads, ranks, memory, gpus) in enumerate(asked)]  # fmt: skip
    for plan in plans:
        alone = not slots.shares
        share = slots.take(plan.run_dir, plan)
        fits = plan.ranks * plan.threads <= 8 and (plan.resources["mem_gb"] or 0) <= 32 and plan.resources["gpus_per_node"] <= 4
        assert share is not None or not alone  # nobody waits for ever: alone, everybody starts
        if share and fits:
            assert slots.cores >= 0 and slots.mem_gb >= -1e-9 and len(share.gpus) == plan.resources["gpus_per_node"]
        if share and not fits:
            assert alone
        held = [g for s in slots.shares.values() for g in s.gpus]
        assert len(held) == len(set(held)) and not set(held) & set(slots.gpus)
        if slots.shares and data.draw(st.booleans()):
            slots.give(data.draw(st.sampled_from(sorted(slots.shares))))
    for name in list(slots.shares):
        slots.give(name)
    assert (slots.cores, slots.gpus) == (8, [0, 1, 2, 3]) and slots.mem_gb == pytest.approx(32)


def test_who_runs_already_counts_even_where_there_is_no_room(plan: JobPlan) -> None:
    slots = Slots(1, 1.0, [])
    assert slots.take("a", plan) == Share(1, 0.0, ())
    assert slots.take("b", plan) is None
    assert slots.take("b", plan, force=True) == Share(1, 0.0, ())
    slots.give("a")
    assert slots.take("c", plan) is None  # b holds what there is
    slots.give("b")
    assert slots.take("c", plan)


# --- the queue, on records that a test writes


@dataclass
class Written:
    """Starts nothing: takes the life and leaves what it is told to leave in the records."""

    ends: dict[str, list[Any]] = field(default_factory=dict)  # run_id -> an outcome a start; missing: completed
    began: list[str] = field(default_factory=list)
    most: int = 0
    running: set[str] = field(default_factory=set)

    def start(self, entry: Entry, share: Share) -> int:
        outcome = (self.ends.get(entry.plan.run_id) or [0]).pop(0)
        self.began.append(entry.plan.run_id)
        if isinstance(outcome, Exception):
            raise outcome
        run = entry.dir
        life = lease.take(run, 1)
        lease.append(run, life, 0, "begin", **lease.me())
        self.running.add(entry.plan.run_id)
        self.most = max(self.most, len(self.running))
        if outcome == "live":
            return life
        if isinstance(outcome, tuple):  # a rank that vanished after this step
            lease.append(run, life, 0, "progress", step=outcome[1])
            dead = {**lease.me(), "pid": 2**22 + 5, "started": "gone 1"}
            rundir.write_json(lease.life_dir(run, life) / "owner.json", {**dead, "ranks": 1, "time": 0.0})
            told = [{**r, **dead} if r["event"] == "begin" else r for r in lease.records(run, life)[0]]
            (lease.life_dir(run, life) / "rank0.jsonl").unlink()
            rundir.append_lines(lease.life_dir(run, life) / "rank0.jsonl", told)
        else:
            lease.append(run, life, 0, "end", code=outcome)
        return life

    def reap(self) -> None:
        pass

    def close(self) -> None:
        pass


@dataclass
class Given:
    """A source that gives these, in their order."""

    entries: list[Entry]
    starter: Written
    told: dict[str, RunState] = field(default_factory=dict)
    order: list[str] = field(default_factory=list)

    def next(self) -> Entry | None:
        return self.entries.pop(0) if self.entries else None

    def ended(self, entry: Entry, state: RunState) -> None:
        self.starter.running.discard(entry.plan.run_id)
        self.told[entry.plan.run_id] = state
        self.order.append(entry.plan.run_id)

    def prune(self, running: Sequence[Entry]) -> Sequence[Entry]:
        return ()

    def waiting(self) -> bool:
        return False


def driven(entries: list[Entry], starter: Written, cores: int = 2, asked: list[int] | None = None) -> Given:
    source = Given(list(entries), starter)
    queue = Queue(source, Slots(cores, 64.0, []), starter, lambda running: None)
    queue.drive(asked if asked is not None else [])
    return source


@pytest.fixture
def five(tiny_npz: Path, tmp_path: Path) -> list[Entry]:
    return [entry(tiny_npz, tmp_path, seed) for seed in range(5)]


def test_all_are_started_in_their_order_and_no_more_at_once_than_fit(five: list[Entry]) -> None:
    starter = Written()
    source = driven(five, starter, cores=2)
    assert starter.began == [e.plan.run_id for e in five]
    assert {s.state for s in source.told.values()} == {"completed"} and len(source.told) == 5
    assert starter.most <= 2


def test_a_failed_member_does_not_hurt_the_rest(five: list[Entry]) -> None:
    starter = Written(ends={five[1].plan.run_id: [5], five[3].plan.run_id: [4]})
    source = driven(five, starter)
    assert [source.told[e.plan.run_id].code for e in five] == [0, 5, 0, 4, 0]
    assert len(starter.began) == 5  # nobody is started twice


def test_one_that_cannot_start_has_failed_with_its_reason(five: list[Entry]) -> None:
    starter = Written(ends={
        five[0].plan.run_id: [RunError("run=x: its code has changed. --anew starts another folder.")],
        five[2].plan.run_id: [OSError(28, "No space left on device")],
    })  # fmt: skip
    source = driven(five, starter)
    first, full = source.told[five[0].plan.run_id], source.told[five[2].plan.run_id]
    assert (first.state, first.code) == ("failed", 5) and "its code has changed" in first.message
    assert (full.state, full.code) == ("failed", 5) and "No space left on device" in full.message
    assert sum(s.state == "completed" for s in source.told.values()) == 3


def test_a_lost_member_goes_on_while_each_life_gets_further(five: list[Entry]) -> None:
    name = five[0].plan.run_id
    starter = Written(ends={name: [("lost", 3), ("lost", 7), 0]})
    assert driven(five[:1], starter).told[name].state == "completed"
    assert starter.began == [name] * 3


@pytest.mark.parametrize("steps", [[0], [4, 4], [4, 2], [4, 6, 6]])
def test_one_that_dies_without_getting_further_is_lost(five: list[Entry], steps: list[int]) -> None:
    name = five[0].plan.run_id
    starter = Written(ends={name: [("lost", s) for s in steps]})
    source = driven(five[:2], starter)
    assert source.told[name].state == "lost"
    assert starter.began.count(name) == len(steps)
    assert source.told[five[1].plan.run_id].state == "completed"


def test_damaged_records_fail_their_member_alone(five: list[Entry]) -> None:
    life = lease.life_dir(five[0].dir, 1)
    life.mkdir(parents=True)
    (life / "owner.json").write_text("{torn")
    starter = Written()
    source = driven(five[:2], starter)
    assert source.told[five[0].plan.run_id].state == "unreadable"
    assert starter.began == [five[1].plan.run_id]


# --- members that live


@pytest.fixture
def process() -> Iterator[subprocess.Popen[bytes]]:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    yield child
    child.kill()
    child.wait()


def owned(run: RunDir, child: subprocess.Popen[bytes]) -> int:
    """A life that `child` holds and whose rank has begun."""
    life = lease.take(run, 1)
    lease.hand_over(run, life, child.pid)
    begin = {
        "event": "begin",
        "time": 0.0,
        "rank": 0,
        **lease.me(),
        "pid": child.pid,
        "started": lease.process_start(child.pid),
    }
    rundir.append_lines(lease.life_dir(run, life) / "rank0.jsonl", [begin])
    return life


def test_a_member_that_runs_already_is_waited_for_and_not_started(five: list[Entry], process: Any) -> None:
    life = owned(five[0].dir, process)
    starter, seen = Written(), []
    source = Given(five[:2], starter)

    def look(running: Sequence[Running]) -> None:
        seen.append([r.entry.plan.run_id for r in running])
        if starter.began or len(seen) > 3:
            lease.append(five[0].dir, life, 0, "end", code=0)

    Queue(source, Slots(1, 64.0, []), starter, look).drive([])
    assert [five[0].plan.run_id] in seen
    assert starter.began == [five[1].plan.run_id]
    assert source.told[five[0].plan.run_id].state == "completed"


def test_one_that_another_driver_took_a_moment_ago_is_waited_for(five: list[Entry], process: Any) -> None:
    class Raced(Written):
        def start(self, entry: Entry, share: Share) -> int:
            owned(entry.dir, process)
            raise OwnedError("run=x: another launch was faster. Wait for it.")

    source = Given(five[:1], Written())

    def look(running: Sequence[Running]) -> None:
        for r in running:
            lease.append(r.entry.dir, r.life, 0, "end", code=0)

    Queue(source, Slots(1, 64.0, []), Raced(), look).drive([])
    assert source.told[five[0].plan.run_id].state == "completed"


def test_a_stop_is_asked_of_all_and_nobody_is_started_any_more(five: list[Entry], process: Any) -> None:
    owned(five[0].dir, process)
    starter = Written()
    source, asked = Given(list(five), starter), [int(signal.SIGINT)]
    queue = Queue(source, Slots(8, 64.0, []), starter, lambda running: None)
    queue.running[five[0].plan.run_dir] = Running(five[0], 1)
    queue.slots.take(five[0].plan.run_dir, five[0].plan)
    queue.drive(asked)
    assert process.wait(60) == -signal.SIGTERM
    assert source.told[five[0].plan.run_id].state == "lost" and starter.began == []  # and is not started again either


def test_who_has_not_begun_yet_is_asked_once_it_has(five: list[Entry], process: Any) -> None:
    run = five[0].dir
    life = lease.take(run, 1)
    lease.hand_over(run, life, process.pid)
    source, looks = Given([], Written()), []

    def look(running: Sequence[Running]) -> None:
        looks.append(process.poll())
        if len(looks) == 3:
            begin = {**lease.me(), "pid": process.pid, "started": lease.process_start(process.pid)}
            rundir.append_lines(
                lease.life_dir(run, life) / "rank0.jsonl", [{"event": "begin", "time": 0.0, "rank": 0, **begin}]
            )

    queue = Queue(source, Slots(8, 64.0, []), Written(), look)
    queue.running[five[0].plan.run_dir] = Running(five[0], life)
    queue.slots.take(five[0].plan.run_dir, five[0].plan)
    queue.drive([int(signal.SIGTERM)])
    assert looks[:3] == [None] * 3  # SIGTERM before the begin record would just have ended it
    assert process.wait(60) == -signal.SIGTERM


def test_a_pid_that_another_process_has_now_gets_no_signal(five: list[Entry], process: Any) -> None:
    from hpcai import submit

    life = owned(five[0].dir, process)
    path = lease.life_dir(five[0].dir, life) / "owner.json"
    rundir.write_json(path, {**rundir.read_json(path), "started": "another boot 17"})
    assert submit.ask_to_stop(five[0].dir, life, 1) is False
    assert process.poll() is None and os.getpgid(process.pid)
    rundir.write_json(path, {**rundir.read_json(path), "started": lease.process_start(process.pid)})
    assert submit.ask_to_stop(five[0].dir, life, 1) is True
    until(lambda: process.poll() is not None)
