"""A run's state, with what the scheduler knows beside its records.   records -> one query for all of them -> RunState

The records decide wherever they hold an end that nothing follows. The scheduler decides what they cannot know: that a job waits
and why, that it will start again, that it is gone without a word. Where it does not answer nothing is called lost.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from hpcai import runs, scheduler
from hpcai.lease import RunState
from hpcai.rundir import RunDir

OPEN = ("pending", "running", "lost", "stopped")  # the states that a job in the queue may change
ASK_S = 10.0  # who waits asks the scheduler so often
SILENT = "its records fell silent, and Slurm does not answer"


class Watch:
    """States, asked for again and again: records are read each time, the scheduler is asked at most every ASK_S seconds."""

    def __init__(self) -> None:
        self._answer = scheduler.Answer({}, queue=False, accounting=False)
        self._asked: set[str] = set()
        self._when = -math.inf

    def states(self, targets: Iterable[RunDir]) -> dict[Path, RunState]:
        """The state of each run, by its folder."""
        told = {run.path: runs.state_of(run) for run in targets}
        jobs = {path: state.slurm_job for path, state in told.items() if state.slurm_job and state.state in OPEN}
        if jobs and (not self._asked.issuperset(jobs.values()) or time.monotonic() - self._when > ASK_S):
            self._asked |= set(jobs.values())
            self._answer, self._when = scheduler.look(self._asked), time.monotonic()
            # Last words may have come between our look at the records and at the queue.
            told |= {path: runs.state_of(RunDir(path)) for path in jobs}
        return {path: with_scheduler(state, self._answer) for path, state in told.items()}


def states(targets: Iterable[RunDir]) -> dict[Path, RunState]:
    """The state of each run, by its folder; one question to the scheduler at most, for all of them."""
    return Watch().states(targets)


def state_of(run: RunDir) -> RunState:
    """The state of one run."""
    return states([run])[run.path]


def with_scheduler(state: RunState, answer: scheduler.Answer) -> RunState:
    """What records and queue say together."""
    if state.slurm_job is None or state.state not in OPEN:
        return state
    job = answer.jobs.get(state.slurm_job)
    if job is not None and job.active:
        if job.state == "PENDING" or job.state.startswith("REQUEUE"):
            return replace(state, state="pending", code=None, message=scheduler.reason_words(job))
        return replace(state, state="running", code=None, message="")
    if not answer.queue:
        return replace(state, state="running", code=None, message=SILENT) if state.state == "lost" else state
    if state.state == "stopped":
        return state
    return replace(state, state="lost", code=5, message=scheduler.cause_words(job))
