"""A run's state, with what the scheduler knows beside its records.   records -> one query for all of them -> RunState

The records decide wherever they hold an end that nothing follows. The scheduler decides what they cannot know: that a job waits
and why, that it will start again, that it is gone without a word. Where it does not answer nothing is called lost.
"""

from __future__ import annotations

import contextlib
import math
import signal
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from hpcai import lease, runs, scheduler
from hpcai.lease import RunState
from hpcai.rundir import RunDir, read_json

OPEN = ("pending", "running", "lost", "stopped")  # the states that a job in the queue may change
SILENT = "its records fell silent, and Slurm does not answer"
TAIL = 16 * 1024  # bytes of a log in which Slurm's last words are looked for
START = "hpcai: start "  # the batch script's first word in each start: what stands before the last one is an older start's


class Watch:
    """States, asked for again and again: records are read each time, the scheduler is asked at most every `every_s` seconds.

    `answer`: what it said last.
    """

    def __init__(self, every_s: float = scheduler.POLL_S) -> None:
        self.every_s = every_s
        self.answer = scheduler.Answer({}, queue=False, accounting=False)
        self._asked: set[str] = set()
        self._when = -math.inf

    def states(self, targets: Iterable[RunDir]) -> dict[Path, RunState]:
        """The state of each run, by its folder."""
        told = {run.path: runs.state_of(run) for run in targets}
        told |= _adopted({path: state for path, state in told.items() if state.slurm_job == "" and state.state == "lost"})
        jobs = {path: ids_of(state) for path, state in told.items() if state.slurm_job and state.state in OPEN}
        wanted = {job for ids in jobs.values() for job in ids}
        if wanted and (not self._asked.issuperset(wanted) or time.monotonic() - self._when > self.every_s):
            self._asked |= wanted
            unexplained = {job for path, ids in jobs.items() if told[path].state != "stopped" for job in ids}
            self.answer = scheduler.look(self._asked, history=unexplained)
            self._when = time.monotonic()
            # Last words may have come between our look at the records and at the queue. A new job too: it was not asked about.
            again = {path: runs.state_of(RunDir(path)) for path in jobs}
            told |= {path: state for path, state in again.items() if self._asked.issuperset(ids_of(state))}
        return {path: with_scheduler(state, self.answer, path) for path, state in told.items()}


def states(targets: Iterable[RunDir]) -> dict[Path, RunState]:
    """The state of each run, by its folder; one question to the scheduler at most, for all of them."""
    return Watch().states(targets)


def state_of(run: RunDir) -> RunState:
    """The state of one run."""
    return states([run])[run.path]


def ids_of(state: RunState) -> tuple[str, ...]:
    """The jobs that a run may come back by."""
    return tuple(dict.fromkeys((state.slurm_job or "", *state.chain))) if state.slurm_job else ()


def jobs_of(state: RunState, answer: scheduler.Answer, folder: Path | None = None) -> list[scheduler.Job]:
    """What is known of a run's jobs. A Slurm built anew gives numbers again: an active one by another name is not ours."""
    found = [answer.jobs[job] for job in ids_of(state) if job in answer.jobs]
    return [job for job in found if folder is None or not job.active or _has_name(job.name, folder, state.sweep)]


def _has_name(name: str, folder: Path, sweep: str) -> bool:
    if name in ("", folder.name, sweep):
        return True
    with contextlib.suppress(*runs.DAMAGED):  # the folder may have been moved
        return bool(name == read_json(RunDir(folder).plan)["run_id"])
    return True


def _adopted(orphans: dict[Path, RunState]) -> dict[Path, RunState]:
    """Runs whose submitter was killed between sbatch and writing the job's number down: found by name, if they are there.

    Of a sweep's members the sweep is looked for, once.
    """
    sent = {path: path.parent / runs.SWEEPS / state.sweep if state.sweep else path for path, state in orphans.items()}
    for target in map(RunDir, dict.fromkeys(sent.values())):
        life = lease.last_life(target)
        if (job := scheduler.named(target.path.name, str(target.script))) is not None:
            with contextlib.suppress(OSError):  # another user's folder, or a full disk: the next look finds it again
                lease.give_to_job(target, life, job)
    return {path: runs.state_of(RunDir(path)) for path in orphans}


def with_scheduler(state: RunState, answer: scheduler.Answer, folder: Path | None = None) -> RunState:
    """What records and queue say together; `folder`: where the run's logs are, for the cause of an end."""
    if not state.slurm_job or state.state not in OPEN:
        return state
    known = jobs_of(state, answer, folder)
    active = next((job for job in known if job.active), None)
    if active is not None:
        if state.sweep and state.state == "stopped" and folder and lease.is_cancelled(RunDir(folder), state.life):
            return state
        if state.sweep and not (state.claimed and (active.waits or state.state in lease.ACTIVE)):
            return replace(state, state="pending", code=None, message="waits for its turn")  # none of its sweep's jobs runs it
        if active.waits:
            return replace(state, state="pending", code=None, message=scheduler.reason_words(active))
        return replace(state, state="running", code=None, message="")
    if not answer.queue:
        comes_again = state.state == "lost" or (state.state == "stopped" and state.code == 128 + signal.SIGUSR2)
        return replace(state, state="running", code=None, message=SILENT) if comes_again else state
    if state.state == "stopped":
        return state
    log = last_words(folder, f"{state.slurm_job}-{state.life}" if state.sweep else state.slurm_job) if folder else ""
    return replace(state, state="lost", code=5, message=scheduler.cause_words(next(iter(known), None), log))


def last_words(folder: Path, job: str) -> str:
    """What the batch script and the ranks of the newest start printed past their logs, at its end."""
    told = []
    for file in (*folder.glob(f"submitit/{job}_*_log.err"), folder / "submitit" / f"{job}_batch.log"):
        with contextlib.suppress(OSError), file.open("rb") as f:
            f.seek(max(0, f.seek(0, 2) - TAIL))
            told.append(f.read().decode("utf-8", "replace").rpartition(START)[2])
    return "\n".join(told)
