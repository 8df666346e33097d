"""What records and the scheduler's queue say together."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from hpcai import lease, queued, scheduler
from hpcai.lease import RunState
from hpcai.queued import SILENT, Watch, with_scheduler
from hpcai.rundir import RunDir
from hpcai.scheduler import Answer, Job

TERM, USR2 = 143, 140


def answer(*jobs: Job, queue: bool = True) -> Answer:
    return Answer({job.id: job for job in jobs}, queue=queue, accounting=True)


def of(state: lease.State, code: int | None = None) -> RunState:
    return RunState(state, 1, code, "as recorded", slurm_job="7")


@pytest.mark.parametrize(("recorded", "job", "said"), [
    (of("pending"), Job("7", "PENDING", reason="Priority"), "pending"),
    (of("pending"), Job("7", "RUNNING"), "running"),  # its ranks have not begun
    (of("running"), Job("7", "RUNNING"), "running"),
    (of("running"), Job("7", "PENDING", reason="BeginTime"), "pending"),  # its node died; it is queued again
    (of("lost"), Job("7", "RUNNING"), "running"),  # between two lives
    (of("lost"), Job("7", "PENDING"), "pending"),
    (of("lost"), Job("7", "NODE_FAIL"), "lost"),
    (of("running"), Job("7", "OUT_OF_MEMORY"), "lost"),
    (of("pending"), Job("7", "CANCELLED"), "lost"),
    (of("stopped", USR2), Job("7", "PENDING", reason="BeginTime"), "pending"),
    (of("stopped", USR2), Job("7", "TIMEOUT"), "stopped"),
    (of("stopped", TERM), Job("7", "COMPLETING"), "running"),
    (of("completed", 0), Job("7", "RUNNING"), "completed"),  # the records hold the end; the batch script still tidies up
    (of("failed", 5), Job("7", "RUNNING"), "failed"),
])  # fmt: skip
def test_queue_decides_what_records_cannot_know(recorded: RunState, job: Job, said: str) -> None:
    assert with_scheduler(recorded, answer(job)).state == said


def member(state: lease.State, code: int | None = None, *, claimed: bool = True) -> RunState:
    return RunState(state, 1, code, "as recorded", slurm_job="7_3" if claimed else "7", sweep="grid-1", claimed=claimed)


@pytest.mark.parametrize(("recorded", "job", "said"), [
    (member("pending", claimed=False), Job("7", "RUNNING"), "pending"),  # of other members
    (member("pending", claimed=False), Job("7", "PENDING", reason="Priority"), "pending"),
    (member("pending", claimed=False), Job("7", "NODE_FAIL"), "lost"),
    (member("pending"), Job("7_3", "RUNNING"), "running"),
    (member("running"), Job("7_3", "PENDING", reason="BeginTime"), "pending"),
    (member("stopped", USR2), Job("7_3", "RUNNING"), "pending"),  # the job does others: it has its turn again
    (member("stopped", USR2), Job("7_3", "COMPLETED"), "stopped"),
    (member("lost"), Job("7_3", "RUNNING"), "pending"),
    (member("failed", 5), Job("7_3", "RUNNING"), "failed"),
])  # fmt: skip
def test_a_member_is_told_apart_from_the_others_of_its_job(recorded: RunState, job: Job, said: str) -> None:
    assert with_scheduler(recorded, answer(job)).state == said


def test_a_member_that_was_cancelled_is_stopped_while_its_job_does_others(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "x-1")
    lease.life_dir(run, 1).mkdir(parents=True)
    lease.note_cancelled(run, 1)
    for state in (member("stopped", TERM), member("stopped", TERM, claimed=False)):
        assert with_scheduler(state, answer(Job(str(state.slurm_job), "RUNNING")), run.path).state == "stopped"


@pytest.mark.parametrize("recorded", [of("pending"), of("running"), of("lost")])
def test_who_is_gone_without_an_end_is_lost_with_a_cause(recorded: RunState) -> None:
    state = with_scheduler(recorded, answer())
    assert (state.state, state.code) == ("lost", 5)
    assert state.message and state.message != "as recorded"


def test_nothing_is_called_lost_while_the_scheduler_does_not_answer() -> None:
    silent = answer(queue=False)
    assert [with_scheduler(of(s), silent).state for s in ("pending", "running")] == ["pending", "running"]
    lost = with_scheduler(of("lost", 5), silent)
    assert (lost.state, lost.message) == ("running", SILENT)
    assert with_scheduler(of("stopped", TERM), silent).state == "stopped"


def test_a_run_that_is_no_job_is_as_its_records_say() -> None:
    local = RunState("lost", 1, 5, "as recorded")
    assert with_scheduler(local, answer(queue=False)) is local


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[set[str]]:
    """The ids of each question to the scheduler, which has them all waiting."""
    questions: list[set[str]] = []

    def look(ids: Iterable[str], **more: Any) -> Answer:
        questions.append(set(ids))
        return answer(*(Job(i, "PENDING", reason="Priority") for i in ids))

    monkeypatch.setattr(scheduler, "look", look)
    return questions


def a_run(folder: Path, job: str | None) -> RunDir:
    run = RunDir(folder)
    facts = {"kind": "slurm", "job": job, "restart": 0} if job else {}
    lease.take(run, 1, **facts)
    return run


def test_any_number_of_runs_is_one_question_and_local_ones_none(tmp_path: Path, asked: list[set[str]]) -> None:
    many = [a_run(tmp_path / str(n), str(n) if n % 2 else None) for n in range(10)]
    states = queued.states(many)
    assert asked == [{"1", "3", "5", "7", "9"}]
    assert {states[run.path].state for run in many} == {"pending"}
    queued.states(many[::2])
    assert len(asked) == 1


def test_who_waits_asks_seldom_and_reads_records_each_time(
    tmp_path: Path,
    asked: list[set[str]],
) -> None:
    a, b = a_run(tmp_path / "a", "1"), a_run(tmp_path / "b", "2")
    watch = Watch()
    for _ in range(5):
        watch.states([a])
        watch.states([b])
    assert asked == [{"1"}, {"1", "2"}]
    lease.append(a, 1, 0, "end", code=0)
    assert watch.states([a])[a.path].state == "completed"
    watch.every_s = 0.0
    watch.states([b])
    assert len(asked) == 3
