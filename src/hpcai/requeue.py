"""`python -m hpcai.requeue RUN_DIR CODE`: after the step, in the batch script: shall this job come again?

    finished, or failed for a stated reason          no: the same would happen again
    told that its time ends (USR2), a checkpoint     yes: scontrol requeue, and it goes on
    a rank vanished without a word, or lost a peer   yes, while starts bring steps
    out of memory, by Slurm's notice in its log      no: it says how much more to ask for
    SIGTERM: cancelled, preempted, out of time       Slurm's decision, not ours: it requeues what it preempts
    Slurm ends the job already                       the same, whatever the ranks left behind
    STARTS starts in a row without a new step        no, and the run says so

Where a site allows no requeue the next job of the chain does the same by starting. Light: nothing heavy is imported.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from hpcai import lease, queued, scheduler
from hpcai.context import current_job, this_start
from hpcai.errors import HpcaiError, one_line
from hpcai.lease import RunState
from hpcai.output import steady
from hpcai.plan import read_config
from hpcai.rundir import RunDir, read_json
from hpcai.runs import DAMAGED, state_of

STARTS = 3  # so many in a row without a new step are a fault that time does not cure
TOLD = "told to end before any rank began."
PATIENCE_S = 90.0  # a controller that restarts is away for less


def main(argv: list[str]) -> int:
    """Decides, says so on standard output, and acts; returns the step's own exit code, so that the job ends with it."""
    if len(argv) != 2 or not argv[1].isdigit():
        print("usage: python -m hpcai.requeue RUN_DIR CODE", file=sys.stderr)
        return 2
    run, code = RunDir(Path(argv[0]).absolute()), int(argv[1])
    job = current_job(os.environ)
    try:
        life = lease.last_life(run)
        if job is None or lease.read_owner(run, life).get("job") != job:
            return code  # the run belongs to another job by now, or none began
        state = _without_a_step(state_of(run))
        lost = scheduler.cause(None, queued.last_words(run.path, job)) if state.state == "lost" else None
        verdict = "" if state.state == "completed" else _never_began(run, life, job, code)
        if not verdict and not lease.is_cancelled(run, life):
            verdict = judge(state, steps_by_life(run), lost)
        if verdict == "again":
            if state.state != "lost" or not _is_ending(job):
                _again(run, job)
        elif verdict == TOLD:  # somebody's will, or Slurm's, which then starts it again in a life of its own
            lease.give_up(run, life, f"{verdict} The same command starts it.", 128 + signal.SIGTERM)
        elif verdict:
            lease.give_up(run, life, f"run={run.path.name}: {verdict}")
            print(one_line(f"hpcai: {verdict}", 400))
        ended = state.state in ("completed", "failed") or lease.is_cancelled(run, life)
        if verdict not in ("again", TOLD) and (verdict or ended):
            _end_chain(run, life, job)
    except (HpcaiError, *DAMAGED) as e:
        print(f"hpcai: the job is not queued again ({type(e).__name__}). hpcai resume {run.path.name} goes on.")
    return code


def _without_a_step(state: RunState) -> RunState:
    """The step has ended: a rank that seems to live is dead on another host, whose beat is fresh, or about to be ended."""
    if state.state != "running":
        return state
    return replace(state, state="lost", code=5, message="a rank vanished without a word.")


def _never_began(run: RunDir, life: int, job: str, code: int) -> str:
    """Why no rank of this start has begun, if none has: an unfit node, or a step that ended at once. Time cures neither."""
    if lease.claimed_by(run, life) == this_start(os.environ):
        return ""
    if code == 128 + signal.SIGTERM:
        return TOLD
    begun, unfit = float(os.environ.get("SLURM_JOB_START_TIME", 0)), []
    for file in sorted(run.preflight.glob("*.json")):
        told = read_json(file)
        fresh = told["job"] == os.environ.get("SLURM_JOB_ID") and told["time"] >= begun
        unfit += [str(check["words"]) for check in told["checks"] if fresh and not check["ok"]]
    if unfit:
        return f"its nodes are not fit: {' '.join(unfit[:3])}"
    return f"its step ended with {code} before any rank began. See its batch log in submitit/; hpcai resume starts it again."


def judge(state: RunState, steps: Sequence[int | None], lost: scheduler.Cause | None = None) -> str:
    """`again`, a reason to give up, or nothing: it has ended, or Slurm decides.

    Args:
        state: what the records say.
        steps: the newest step of each life.
        lost: why a rank vanished, as far as Slurm's notices in the log tell.
    """
    stopped_by_time = state.state == "stopped" and state.code == 128 + signal.SIGUSR2
    if not (stopped_by_time or state.state == "lost"):
        return ""
    if lost is not None and lost.kind in ("out_of_memory", "gpu_memory"):
        return f"{lost.words}. {lost.todo}"
    if idle_starts(steps) >= STARTS:
        return f"{STARTS} starts without a new step: {state.message.rstrip('.')}. See its log; hpcai resume starts it again."
    return "again"


def steps_by_life(run: RunDir) -> list[int | None]:
    """The newest step on record of each life, oldest first; None: none."""
    found: list[int | None] = []
    for life in range(1, lease.last_life(run) + 1):
        told = lease.outline(run, life)
        found.append(max((r["step"] for rank in told.values() for r in rank if r.get("step") is not None), default=None))
    return found


def idle_starts(steps: Sequence[int | None]) -> int:
    """How many of the last lives brought no step beyond those before them."""
    best, idle = 0, 0
    for step in steps:
        idle = 0 if (step or 0) > best else idle + 1
        best = max(best, step or 0)
    return idle


def _is_ending(job: str) -> bool:
    """Slurm ends the job already: it was cancelled, or preempted. A requeue would bring a cancelled one back."""
    known = scheduler.look([job], history=False).jobs.get(job)
    return known is not None and known.state != "RUNNING"


def _again(run: RunDir, job: str) -> None:
    if read_config(run).cluster.facts.requeue is False:
        later = [other for other in lease.read_owner(run, lease.last_life(run)).get("chain", []) if other != job]
        print(f"hpcai: {'the next job of the chain' if later else f'hpcai resume {run.path.name}'} goes on.")
        return
    if why := scheduler.requeue(job, PATIENCE_S):
        print(f"hpcai: could not be queued again ({one_line(why, 200)}). hpcai resume {run.path.name} goes on.")


def _end_chain(run: RunDir, life: int, job: str) -> None:
    """The jobs that wait behind this one have nothing left to do."""
    chain = [str(other) for other in lease.read_owner(run, life).get("chain", []) if str(other) != job]
    if chain:
        scheduler.cancel(chain)


if __name__ == "__main__":
    steady()
    sys.exit(main(sys.argv[1:]))
