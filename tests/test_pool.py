"""What a job of a sweep may start, over real folders as the submitter leaves them; no Slurm is there. With one: test_pack."""

from __future__ import annotations

import errno
import math
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from conftest import tiny_words, until

from hpcai import arrays, cancellation, lease, pack, queued, rundir, runs, scheduler, submit
from hpcai.driver import Options
from hpcai.errors import OwnedError, PlanError
from hpcai.pack import Steps
from hpcai.pool import Job, Pool, read_job
from hpcai.queue import Entry, Share
from hpcai.rundir import RunDir
from hpcai.runs import Sweep
from hpcai.scheduler import Answer
from hpcai.submit import Frozen
from hpcai.sweep import plan_members, sweep_of

SHARE = Share(1, 0.0, ())
Send = Callable[..., Sweep]


@pytest.fixture
def needs() -> list[list[str]]:
    """What each sweep that was sent waits for."""
    return []


@pytest.fixture
def send(tiny_npz: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, needs: list[list[str]]) -> Send:
    """Sends a sweep of so many seeds to a Slurm that takes it as job 77, the next as 88; its srun does what the file says."""
    monkeypatch.setattr(scheduler, "unavailable", lambda: "")
    monkeypatch.setattr(scheduler, "submitted", lambda: 0)
    monkeypatch.setattr(scheduler, "named", lambda *_: None)
    slurm_says(monkeypatch, "RUNNING")
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=":")
    srun(tmp_path, "sleep 60")

    def given(run: RunDir, plan: Any, life: int, waves: Any, after: Any = ()) -> list[str]:
        needs.append(list(after))
        lease.give_to_job(run, life, id[0], [*id])
        return [*id]

    monkeypatch.setattr(submit, "send", given)
    id = ["77"]

    def sent(*words: str, name: str = "", junit: Path | None = None) -> Sweep:
        id[0] = name or str(77 + 11 * len(needs))
        told = tiny_words(tiny_npz) | {"runs_dir": str(tmp_path / "runs"), "cluster": "testbed", "resources.timeout_min": "10"}
        line = [f"{k}='{v}'" if "/" in v else f"{k}={v}" for k, v in told.items()] + ["resources.cpus_per_task=1", *words]
        entries = plan_members(line, Options())
        sweep = sweep_of(line, entries, Options())
        assert arrays.send(sweep, entries, Options(junit=junit)) == 0
        return sweep

    return sent


def slurm_says(monkeypatch: pytest.MonkeyPatch, state: str, nodes: str = "n1", *, answers: bool = True) -> None:
    """Of every job that it is asked about."""

    def look(ids: Iterable[str], **_: Any) -> Answer:
        return Answer({id: scheduler.Job(id, state, nodes=nodes) for id in ids} if answers else {}, answers, answers)

    monkeypatch.setattr(scheduler, "look", look)


def srun(home: Path, does: str) -> None:
    """From now on a step is this."""
    (home / "bin" / "srun").write_text(f"#!/bin/bash\n{does}\n")
    (home / "bin" / "srun").chmod(0o755)


def job(
    sweep: Sweep, monkeypatch: pytest.MonkeyPatch, task: int = 0, restart: int = 0, elapsed: float = 0.0, array: str = "77"
) -> Job:
    """One of its jobs."""
    for name, value in {"SLURM_ARRAY_JOB_ID": array, "SLURM_ARRAY_TASK_ID": str(task), "SLURM_JOB_ID": str(78 + task)}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("SLURM_RESTART_COUNT", str(restart))
    monkeypatch.setenv("SLURM_JOB_NODELIST", "n1")
    return read_job(sweep.path, elapsed)


def at_work(job: Job) -> tuple[Pool, Steps]:
    pool = Pool(job, list(job.sweep.members))
    return pool, Steps(job, pool, Frozen(job.sweep.dir.code, rundir.read_json(job.sweep.dir.environment)))


def upcoming(pool: Pool) -> Entry:
    pool.looked = 0.0
    entry = pool.next()
    assert entry is not None
    return entry


def ends(run: RunDir, code: int = 0, message: str = "") -> None:
    """Its rank begins and ends."""
    life = lease.last_life(run)
    lease.append(run, life, 0, "begin", **lease.me())
    lease.append(run, life, 0, "end", code=code, message=message)


# --- who takes what


def test_of_two_jobs_that_look_at_once_one_takes_the_member(send: Send, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep = send("seed=0,1")
    (one, ours), (other, theirs) = (at_work(job(sweep, monkeypatch, task)) for task in (0, 1))
    mine, same = upcoming(one), upcoming(other)
    assert mine.plan.run_id == same.plan.run_id
    assert ours.start(mine, SHARE) == 1
    with pytest.raises(OwnedError):
        theirs.start(same, SHARE)
    assert upcoming(other).plan.run_id != mine.plan.run_id
    assert lease.read_owner(mine.dir, 1)["job"] == "77_0"


@pytest.mark.parametrize(("code", "state"), [(0, "completed"), (5, "failed")])
def test_who_looked_before_another_job_did_it_does_it_not_again(
    send: Send, monkeypatch: pytest.MonkeyPatch, code: int, state: str
) -> None:
    sweep = send("seed=0")
    (one, ours), (other, theirs) = (at_work(job(sweep, monkeypatch, task)) for task in (0, 1))
    mine, stale = upcoming(one), upcoming(other)
    ours.start(mine, SHARE)
    ends(mine.dir, code, "no.")
    with pytest.raises(OwnedError):
        theirs.start(stale, SHARE)
    assert lease.last_life(mine.dir) == 1 and lease.read_state(mine.dir).state == state
    pool = at_work(job(sweep, monkeypatch, 1))[0]
    assert pool.next() is None and pool.is_over()


def test_what_a_job_held_when_it_was_killed_is_its_own_in_its_next_start_alone(
    send: Send, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the claim and the note of the job, and after it."""
    sweep = send("seed=0,1")
    runs = [member.dir for member in sweep.members]
    lease.claim(runs[0], 1, "77_0 0")
    lease.claim(runs[1], 1, "77_0 0")
    lease.give_to_job(runs[1], 1, "77_0")
    assert at_work(job(sweep, monkeypatch, 1))[0].next() is None
    assert at_work(job(sweep, monkeypatch, 0))[0].next() is None  # the same start: that is this process
    pool, steps = at_work(job(sweep, monkeypatch, 0, restart=1))
    assert [steps.start(upcoming(pool), SHARE) for _ in runs] == [2, 2]
    assert pool.next() is None and not pool.is_over()


def test_a_member_that_was_stopped_goes_on_in_any_job_and_a_cancelled_one_in_none(
    send: Send, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = send("seed=0,1")
    pool, steps = at_work(job(sweep, monkeypatch))
    first, second = (upcoming(pool), None)
    steps.start(first, SHARE)
    second = upcoming(pool)
    steps.start(second, SHARE)
    lease.append(first.dir, 1, 0, "progress", step=3)
    ends(first.dir, 128 + signal.SIGUSR2, "stopped.")
    lease.note_cancelled(second.dir, 1)
    ends(second.dir, 128 + signal.SIGTERM, "stopped.")
    other, theirs = at_work(job(sweep, monkeypatch, 1))
    assert theirs.start(upcoming(other), SHARE) == 2 and lease.last_life(first.dir) == 2
    assert other.next() is None and [m.run_id for m in other.left] == [first.plan.run_id]


def test_after_a_word_that_the_time_ends_nobody_is_started(send: Send, monkeypatch: pytest.MonkeyPatch) -> None:
    """It comes once, up to a minute early: who began after it would be killed without one."""
    pool, steps = at_work(job(send("seed=0,1"), monkeypatch))
    entry = upcoming(pool)
    steps.start(entry, SHARE)
    ends(entry.dir, 128 + signal.SIGUSR2, "stopped.")
    pool.ended(entry, lease.read_state(entry.dir))
    assert pool.next() is None and pool.startable() == 2


def test_a_member_is_begun_only_with_as_much_time_as_the_longest_took(send: Send, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep = send("seed=0,1")
    assert at_work(job(sweep, monkeypatch, elapsed=410))[0].next() is not None  # 480 s in all: a tenth of 600 is left
    pool = at_work(job(sweep, monkeypatch, elapsed=425))[0]
    assert pool.next() is None and pool.startable() == 2
    pool = at_work(job(sweep, monkeypatch, elapsed=100))[0]
    pool.took["train"] = 400.0
    assert pool.next() is None
    pool.took["train"], pool.looked = 300.0, 0.0
    assert pool.next() is not None


def test_a_process_outside_of_slurm_or_of_another_job_starts_nothing(send: Send, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep = send("seed=0")
    slurm_says(monkeypatch, "", answers=False)
    with pytest.raises(PlanError, match="is no job of Slurm"):
        read_job(sweep.path, 0.0)
    monkeypatch.setenv("SLURM_JOB_ID", "99")
    with pytest.raises(OwnedError):
        read_job(sweep.path, 0.0)
    slurm_says(monkeypatch, "NODE_FAIL")
    assert read_job(sweep.path, 0.0).life == 2  # those that had it are gone


def test_a_job_that_was_cut_off_leaves_all_to_its_next_start(send: Send, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep = send("seed=0,1")
    old = job(sweep, monkeypatch)
    old.begin()
    pool, steps = at_work(old)
    entry, stale = upcoming(pool), upcoming(pool)
    steps.start(entry, SHARE)
    job(sweep, monkeypatch, restart=1).begin()
    asked: list[str] = []
    monkeypatch.setattr(scheduler, "requeue", lambda id, *_: asked.append(id) or "")
    for what in (lambda: steps.start(stale, SHARE), lambda: pack._finish(old, pool, ()), old.begin):
        with pytest.raises(OwnedError, match="a later start of job 77_0"):
            what()
    assert not asked and lease.read_state(sweep.dir).state == "pending"


def test_of_two_starts_that_were_killed_at_their_claim_and_after_it_neither_member_is_lost_nor_asked_for_at_each_look(
    send: Send, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = send("seed=0")
    (run,) = [member.dir for member in sweep.members]
    claim = lease.life_dir(run, 1) / "claim"
    claim.touch()  # made, and killed before it said whose
    pool, steps = at_work(job(sweep, monkeypatch))
    with pytest.raises(OwnedError):
        steps.start(upcoming(pool), SHARE)
    pool.looked = 0.0
    assert pool.next() is None  # not at once, again and again
    os.utime(claim, (time.time() - 2 * lease.SILENT_S,) * 2)
    pool.beaten.clear()
    assert steps.start(upcoming(pool), SHARE) == 2


def test_a_claim_that_a_full_disk_cut_short_is_nobodys(send: Send, monkeypatch: pytest.MonkeyPatch) -> None:
    (run,) = [member.dir for member in send("seed=0").members]
    with monkeypatch.context() as full:
        full.setattr(os, "fdopen", _full)
        with pytest.raises(OSError, match="No space"):
            lease.claim(run, 1, "77_0 0")
    assert lease.claim(run, 1, "77_1 0")


def _full(*_: Any, **__: Any) -> Any:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_member_that_dies_is_not_begun_again_before_its_end_was_noted(send: Send, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its place on the node would be given away twice."""
    pool, steps = at_work(job(send("seed=0"), monkeypatch))
    entry = upcoming(pool)
    steps.start(entry, SHARE)
    vanishes(entry.dir)
    pool.looked = 0.0
    assert pool.next() is None and pool.left
    pool.ended(entry, steps.state(entry))
    assert upcoming(pool).plan.run_id == entry.plan.run_id


def vanishes(run: RunDir) -> None:
    """Its rank has begun, made a step, and is gone without a word."""
    life = lease.last_life(run)
    lease.append(run, life, 0, "begin", **{**lease.me(), "started": "gone"})
    lease.append(run, life, 0, "progress", step=3)


def test_what_a_job_that_does_not_come_again_has_lost_goes_on_in_another(send: Send, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep = send("seed=0")
    pool, steps = at_work(job(sweep, monkeypatch))
    entry = upcoming(pool)
    steps.start(entry, SHARE)
    vanishes(entry.dir)
    other, theirs = at_work(job(sweep, monkeypatch, 1))
    assert other.next() is None  # it may be about to start it again
    slurm_says(monkeypatch, "TIMEOUT")
    other.answered = -math.inf
    assert theirs.start(upcoming(other), SHARE) == 2


def test_jobs_of_an_array_that_is_sent_while_others_run_are_of_the_sweep(send: Send, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep = send("seed=0,1")
    (first,) = [at_work(job(sweep, monkeypatch))[0]]
    owner = lease.life_dir(sweep.dir, 1) / "owner.json"
    rundir.write_json(owner, rundir.read_json(owner) | {"arrays": 2})
    monkeypatch.setattr(time, "sleep", lambda _: rundir.write_json(owner, rundir.read_json(owner) | {"chain": ["77", "79"]}))
    late, theirs = at_work(job(sweep, monkeypatch, array="79"))  # began before its submitter has written it down
    taken = upcoming(late)
    theirs.start(taken, SHARE)
    assert upcoming(first).plan.run_id != taken.plan.run_id


def test_records_that_seem_damaged_for_a_moment_end_no_member(send: Send, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep = send("seed=0")
    pool, steps = at_work(job(sweep, monkeypatch))
    read, moments = runs.state_of, [0]

    def torn(run: RunDir) -> lease.RunState:
        moments[0] += 1
        return lease.RunState("unreadable") if moments[0] == 1 else read(run)

    monkeypatch.setattr(runs, "state_of", torn)
    monkeypatch.setattr(time, "sleep", lambda _: None)
    entry = upcoming(pool)
    steps.start(entry, SHARE)
    moments[0] = 0
    assert steps.state(entry).state == "running" and steps.state(entry).state == "pending"


def test_a_damaged_old_life_costs_its_member_alone(send: Send, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep = send("seed=0,1")
    pool, steps = at_work(job(sweep, monkeypatch))
    entry = upcoming(pool)
    for _ in range(2):
        steps.start(entry, SHARE)
        lease.append(entry.dir, lease.last_life(entry.dir), 0, "progress", step=lease.last_life(entry.dir))
        ends(entry.dir, 128 + signal.SIGUSR2, "stopped.")
        pool.ended(entry, lease.read_state(entry.dir))
        pool.told = False
    (lease.life_dir(entry.dir, 1) / "rank0.jsonl").write_bytes(b"[1]\n")
    assert upcoming(pool).plan.run_id != entry.plan.run_id
    assert lease.read_state(entry.dir).message == "its folder is damaged."


def test_a_full_disk_does_not_hide_a_step_that_has_started(send: Send, monkeypatch: pytest.MonkeyPatch) -> None:
    pool, steps = at_work(job(send("seed=0"), monkeypatch))
    entry = upcoming(pool)
    monkeypatch.setattr(lease, "hand_over", _full)
    assert steps.start(entry, SHARE) == 1 and steps.state(entry).state == "pending"
    assert entry.plan.run_dir in pool.began


def test_a_step_that_never_begins_is_ended_when_it_is_asked_to_stop(send: Send, monkeypatch: pytest.MonkeyPatch) -> None:
    pool, steps = at_work(job(send("seed=0,1"), monkeypatch))
    stuck, young = upcoming(pool), None
    steps.start(stuck, SHARE)
    young = upcoming(pool)
    steps.start(young, SHARE)
    pool.began[stuck.plan.run_dir] -= 2 * pack.BEGIN_S
    steps.end_stuck()
    until(lambda: steps.state(stuck).state == "lost")
    assert steps.state(young).state == "pending"


# --- two sweeps


def test_a_member_that_another_sweep_has_is_left_to_it_while_its_jobs_are_there(
    send: Send, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool, steps = at_work(job(send("seed=0,1"), monkeypatch))
    entry = upcoming(pool)
    steps.start(entry, SHARE)
    more = send("seed=0,1,2")
    other, theirs = at_work(job(more, monkeypatch, array="88"))
    assert upcoming(other).member.label == "seed=2"
    theirs.start(upcoming(other), SHARE)
    other.looked = 0.0
    assert other.next() is None and len(other.left) == 3 and lease.last_life(entry.dir) == 1
    slurm_says(monkeypatch, "COMPLETED")
    other.answered = -math.inf
    ends(entry.dir)
    again = upcoming(other)  # seed=1: nobody began it, and nobody will
    assert again.member.label == "seed=1" and theirs.start(again, SHARE) == 2
    assert lease.read_state(again.dir).sweep == more.id and len(other.left) == 2


def test_a_member_that_a_later_sweep_was_sent_with_is_not_taken_by_the_jobs_of_the_first(
    send: Send, monkeypatch: pytest.MonkeyPatch, needs: list[list[str]]
) -> None:
    sweep = send("seed=0,1")
    pool, steps = at_work(job(sweep, monkeypatch))
    entry = upcoming(pool)
    steps.start(entry, SHARE)
    ends(entry.dir, 5, "no.")
    send("seed=0")
    assert needs[-1] == [] and lease.last_life(entry.dir) == 2
    other = at_work(job(sweep, monkeypatch, 1))[0]
    assert upcoming(other).plan.run_id != entry.plan.run_id


def test_what_depends_on_a_sweeps_member_waits_for_all_of_its_jobs_however_they_end(
    send: Send, monkeypatch: pytest.MonkeyPatch, needs: list[list[str]]
) -> None:
    pool, steps = at_work(job(send("seed=0,1"), monkeypatch))
    entry = upcoming(pool)
    steps.start(entry, SHARE)
    send(f"depends_on={entry.plan.run_id}", "seed=7")
    assert needs[-1] == ["afterany:77"]


def test_a_member_that_stopped_in_a_job_that_is_over_waits_for_the_others(send: Send, monkeypatch: pytest.MonkeyPatch) -> None:
    pool, steps = at_work(job(send("seed=0"), monkeypatch))
    entry = upcoming(pool)
    steps.start(entry, SHARE)
    ends(entry.dir, 128 + signal.SIGUSR2, "stopped.")
    known = {"77_0": "COMPLETED", "77": "RUNNING"}

    def look(ids: Iterable[str], **_: Any) -> Answer:
        return Answer({id: scheduler.Job(id, known[id]) for id in ids}, queue=True, accounting=True)

    monkeypatch.setattr(scheduler, "look", look)
    assert queued.state_of(entry.dir).state == "pending"
    known["77"] = "COMPLETED"
    assert queued.state_of(entry.dir).state == "stopped"


# --- what needs what


def test_what_needs_a_failed_member_is_cancelled_in_its_own_records(send: Send, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep = send("pipeline=[train,evaluate]", "seed=0")
    pool, steps = at_work(job(sweep, monkeypatch))
    train = upcoming(pool)
    assert train.member.job == "train"
    steps.start(train, SHARE)
    pool.looked = 0.0
    assert pool.next() is None and len(pool.left) == 2
    ends(train.dir, 5, "the loss is nan.")
    pool.looked = 0.0
    assert pool.next() is None and pool.is_over()
    evaluate = next(o for o in pool.outcomes() if o.member.job == "evaluate")
    assert evaluate.state == "cancelled" and evaluate.message.startswith(f"cancelled: needs {train.plan.run_id}, which failed")
    assert lease.read_state(evaluate.member.dir).code == 3


# --- how a step ends


@pytest.mark.parametrize(("does", "state", "says"), [
    ("exit 0", "failed", "its step ended with 0 before any rank began"),
    ("exit 3", "failed", "its step ended with 3 before any rank began"),
    ("kill -9 $$", "lost", "vanished without a word"),
])  # fmt: skip
def test_a_step_that_ends_before_its_rank_begins_is_no_run(
    send: Send, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, does: str, state: str, says: str
) -> None:
    sweep = send("seed=0")
    srun(tmp_path, does)
    pool, steps = at_work(job(sweep, monkeypatch))
    entry = upcoming(pool)
    steps.start(entry, SHARE)
    until(lambda: steps.state(entry).state != "pending")
    assert steps.state(entry).state == state and says in steps.state(entry).message
    pool.ended(entry, steps.state(entry))
    assert (pool.next() is not None) == (state == "lost")


@pytest.mark.parametrize(("state", "nodes"), [("PENDING", ""), ("RUNNING", "n2"), ("COMPLETING", "n1")])
def test_steps_that_vanish_with_their_job_are_not_judged_by_the_start_that_lives_on(
    send: Send, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, state: str, nodes: str
) -> None:
    """A node that Slurm has given up: its job is queued again, or runs elsewhere."""
    sweep = send("seed=0")
    srun(tmp_path, "exit 1")
    pool, steps = at_work(job(sweep, monkeypatch))
    entry = upcoming(pool)
    slurm_says(monkeypatch, state, nodes, answers=False)
    steps.start(entry, SHARE)
    until(lambda: steps._steps[entry.plan.run_dir][1].poll() is not None)
    assert steps.state(entry).state == "pending"  # nobody knows
    slurm_says(monkeypatch, state, nodes)
    steps._asked = 0.0
    with pytest.raises(OwnedError, match="Slurm has ended this start of job 77_0"):
        steps.state(entry)
    assert lease.read_state(entry.dir).state == "pending" and lease.last_life(entry.dir) == 1


def test_a_step_gets_its_life_its_code_and_its_part_of_the_node(
    send: Send, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    sweep = send("resources.gpus_per_node=1", "seed=0,1")
    srun(tmp_path, f'echo "$@" > {tmp_path}/words; echo "$HPCAI_LIFE $PYTHONPATH" > {tmp_path}/env')
    pool, steps = at_work(job(sweep, monkeypatch))
    entry = upcoming(pool)
    steps.start(entry, SHARE)
    until(lambda: (tmp_path / "env").is_file() and (tmp_path / "env").read_text().endswith("\n"))
    words = (tmp_path / "words").read_text().split()
    assert {"--exact", "--nodes=1", "--ntasks=1", "--gpus-per-node=1", "--mem=0", "--cpus-per-task=1"} <= set(words)
    assert words[-5:] == [sys.executable, "-u", "-m", "hpcai.worker", str(entry.dir.path)]
    assert f"--output={entry.dir.submitit}/77_0-1_%t_log.out" in words
    life, path = (tmp_path / "env").read_text().split()
    assert life == "1" and path.split(":")[0] == str(entry.dir.code)


# --- the end


def finish(job: Job, pool: Pool, asked: tuple[int, ...] = ()) -> None:
    job.begin()
    pack._finish(job, pool, asked)


def test_the_job_that_finds_all_ended_writes_the_sweeps_end(send: Send, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep = send("seed=0,1")
    mine = job(sweep, monkeypatch)
    pool, steps = at_work(mine)
    for code in (0, 5):
        entry = upcoming(pool)
        steps.start(entry, SHARE)
        ends(entry.dir, code, "no.")
    finish(mine, pool)
    state = lease.read_state(sweep.dir)
    assert (state.state, state.code) == ("failed", 5) and state.message.startswith("1 of 2 did not end well.")
    assert [m["state"] for m in rundir.read_json(sweep.path / "results.json")["members"]] == ["completed", "failed"]


@pytest.mark.parametrize(("jobs", "again"), [(1, True), (2, True), (3, False)])
def test_a_job_comes_again_for_what_those_that_have_not_begun_cannot_hold(
    send: Send, monkeypatch: pytest.MonkeyPatch, jobs: int, again: bool
) -> None:
    sweep = send("sweep.per_node=1", "seed=range(0,3)")
    owner = lease.life_dir(sweep.dir, 1) / "owner.json"
    rundir.write_json(owner, rundir.read_json(owner) | {"jobs": jobs})
    asked: list[str] = []
    monkeypatch.setattr(scheduler, "requeue", lambda id, *_: asked.append(id) or "")
    mine = job(sweep, monkeypatch, elapsed=500)
    pool, _ = at_work(mine)
    lease.claim(sweep.members[0].dir, 1, "77_5 0")  # another job has one
    assert pool.next() is None
    finish(mine, pool)
    assert asked == ["77_0"] * again and lease.read_state(sweep.dir).state == "pending"
    finish(mine, pool, (signal.SIGTERM,))  # Slurm ends it, and decides
    assert asked == ["77_0"] * again


def test_a_job_whose_starts_begin_nothing_does_not_come_again_for_ever(send: Send, monkeypatch: pytest.MonkeyPatch) -> None:
    """Say, what comes before its members takes all of its time."""
    sweep, asked = send("seed=0"), []
    monkeypatch.setattr(scheduler, "requeue", lambda id, *_: asked.append(id) or "")
    for restart in (0, 1, 2, 3, 4):
        mine = job(sweep, monkeypatch, restart=restart, elapsed=500)
        pool, _ = at_work(mine)
        assert pool.next() is None
        finish(mine, pool)
    assert len(asked) == 3


def test_a_member_that_is_told_to_end_again_and_again_without_a_step_is_given_up(
    send: Send, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = send("seed=0")
    run = sweep.members[0].dir
    for life in (1, 2, 3):
        pool, steps = at_work(job(sweep, monkeypatch))
        assert steps.start(upcoming(pool), SHARE) == life
        ends(run, 128 + signal.SIGTERM, "stopped.")
    assert at_work(job(sweep, monkeypatch))[0].next() is None
    assert "3 starts without a new step" in lease.read_state(run).message


def test_a_cancelled_sweep_ends_when_the_last_of_its_jobs_has_stopped(send: Send, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep = send("seed=0,1")
    (one, ours), (_, theirs) = (at_work(job(sweep, monkeypatch, task)) for task in (0, 1))
    mine = upcoming(one)
    ours.start(mine, SHARE)
    running = upcoming(one)
    theirs.start(running, SHARE)
    lease.append(running.dir, 1, 0, "begin", **lease.me())
    lease.note_cancelled(sweep.dir, 1)
    ends(mine.dir, 128 + signal.SIGTERM, "stopped.")
    finish(job(sweep, monkeypatch), one, (signal.SIGTERM,))
    assert lease.read_state(sweep.dir).state == "pending"
    lease.append(running.dir, 1, 0, "end", code=128 + signal.SIGTERM, message="stopped.")
    finish(job(sweep, monkeypatch, 1), at_work(job(sweep, monkeypatch, 1))[0], (signal.SIGTERM,))
    assert lease.read_state(sweep.dir).code == 128 + signal.SIGTERM
    assert time.time() - (lease.read_state(sweep.dir).ended or 0) < 60


def test_places_in_jobs_that_never_come_hold_nobody(send: Send, monkeypatch: pytest.MonkeyPatch) -> None:
    """Refused when they were sent, or cancelled one by one."""
    sweep = send("seed=0,1")
    owner = lease.life_dir(sweep.dir, 1) / "owner.json"
    rundir.write_json(owner, rundir.read_json(owner) | {"jobs": 5})
    asked: list[str] = []
    monkeypatch.setattr(scheduler, "requeue", lambda id, *_: asked.append(id) or "")
    mine = job(sweep, monkeypatch, elapsed=500)
    pool = at_work(mine)[0]
    finish(mine, pool)
    assert not asked  # they wait
    monkeypatch.setattr(scheduler, "look", lambda *_, **__: Answer({}, queue=True, accounting=False))
    pack._finish(mine, pool, ())
    assert asked == ["77_0"]


def test_a_sweep_whose_last_members_completed_by_themselves_has_ended_when_it_is_asked_for_again(
    send: Send, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = send("seed=0,1")
    mine = job(sweep, monkeypatch)
    pool, steps = at_work(mine)
    for code in (0, 5):
        entry = upcoming(pool)
        steps.start(entry, SHARE)
        ends(entry.dir, code, "no.")
    finish(mine, pool)
    slurm_says(monkeypatch, "COMPLETED")
    lease.take(entry.dir, 1)
    ends(entry.dir)
    assert send("seed=0,1").id == sweep.id
    assert lease.read_state(sweep.dir).state == "completed"
    assert {m["state"] for m in rundir.read_json(sweep.path / "results.json")["members"]} == {"completed"}


def test_a_job_that_lives_on_takes_nothing_from_those_that_were_sent_when_it_was_gone(
    send: Send, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A node that Slurm has given up, and a sweep that was resumed meanwhile."""
    sweep = send("seed=0")
    old = job(sweep, monkeypatch)
    old.begin()
    left = at_work(old)[0]
    slurm_says(monkeypatch, "NODE_FAIL")
    assert send("seed=0").id == sweep.id
    slurm_says(monkeypatch, "RUNNING")
    pool, steps = at_work(job(sweep, monkeypatch, array="88"))
    steps.start(upcoming(pool), SHARE)
    assert left.next() is None and lease.last_life(sweep.members[0].dir) == 2
    with pytest.raises(OwnedError, match="others have the sweep now"):
        old.check()


def test_a_sweep_that_is_through_when_it_is_cancelled_is_completed(send: Send, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep = send("seed=0")
    mine = job(sweep, monkeypatch)
    pool, steps = at_work(mine)
    entry = upcoming(pool)
    steps.start(entry, SHARE)
    lease.note_cancelled(sweep.dir, 1)
    ends(entry.dir)
    finish(mine, pool, (signal.SIGTERM,))
    assert lease.read_state(sweep.dir).state == "completed"


def test_a_lost_member_whose_job_waits_is_cancelled_at_once(send: Send, monkeypatch: pytest.MonkeyPatch) -> None:
    pool, steps = at_work(job(send("seed=0"), monkeypatch))
    entry = upcoming(pool)
    steps.start(entry, SHARE)
    vanishes(entry.dir)
    slurm_says(monkeypatch, "PENDING", "")
    assert not cancellation.stop([entry.dir], wait=True)
    assert lease.read_state(entry.dir).code == 128 + signal.SIGTERM


# --- members that another command has too


def test_a_member_that_another_sweep_has_is_not_taken_from_it(send: Send, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither one that runs, nor one that waits for that sweep's jobs; its own are done, and the end says what is left."""
    first = send("seed=0,1")
    pool, steps = at_work(job(first, monkeypatch))
    theirs = upcoming(pool)
    steps.start(theirs, SHARE)
    second = send("seed=0,1,2", name="78")
    mine = job(second, monkeypatch, array="78")
    other, ours = at_work(mine)
    third = upcoming(other)
    assert third.member.label == "seed=2" and ours.start(third, SHARE) == 1
    assert other.next() is None and lease.last_life(theirs.dir) == 1
    ends(third.dir)
    finish(mine, other)
    state = lease.read_state(second.dir)
    assert (state.state, state.code) == ("failed", OwnedError.code)
    assert state.message.startswith(f"another command has {first.members[0].run_id}, {first.members[1].run_id}.")
    assert lease.read_state(first.dir).state == "pending"


def test_what_waits_for_a_run_of_another_command_holds_no_node_and_says_so(send: Send, monkeypatch: pytest.MonkeyPatch) -> None:
    first = send("seed=0")
    pool, steps = at_work(job(first, monkeypatch))
    theirs = upcoming(pool)
    steps.start(theirs, SHARE)
    second = send("seed=1", f"depends_on={theirs.plan.run_id}", name="78")
    mine = job(second, monkeypatch, array="78")
    other, _ = at_work(mine)
    assert other.next() is None
    finish(mine, other)
    assert lease.read_state(second.members[0].dir).message == (
        f"cancelled: needs {theirs.plan.run_id}, which another command has."
    )
    assert lease.read_state(second.dir).code == OwnedError.code


def test_a_sweep_whose_rest_another_command_did_is_settled_by_the_same_words(
    send: Send, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = send("seed=0")
    pool, steps = at_work(job(first, monkeypatch))
    theirs = upcoming(pool)
    steps.start(theirs, SHARE)
    second = send("seed=0,1", name="78")
    mine = job(second, monkeypatch, array="78")
    other, ours = at_work(mine)
    entry = upcoming(other)
    ours.start(entry, SHARE)
    ends(entry.dir)
    finish(mine, other)
    assert lease.read_state(second.dir).state == "failed"
    ends(theirs.dir)
    assert send("seed=0,1", name="79").id == second.id
    assert lease.read_state(second.dir).state == "completed"
    assert [m["state"] for m in rundir.read_json(second.path / "results.json")["members"]] == ["completed", "completed"]


def test_a_report_for_ci_that_cannot_be_written_is_said_before_anything_is_sent(send: Send, tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=r"--junit=/proc/x/y\.xml: No such file"):
        send("seed=0", junit=Path("/proc/x/y.xml"))
    assert not (tmp_path / "runs").exists()
    sweep = send("seed=0", junit=tmp_path / "y.xml")
    assert 'tests="1"' in (tmp_path / "y.xml").read_text() and sweep.dir.script.is_file()


def test_the_script_of_one_run_speaks_of_one(send: Send) -> None:
    sweep = send("seed=0")
    assert f": the run of {sweep.id} for account" in sweep.dir.script.read_text()
