"""`python -m hpcai.pack SWEEP_DIR SECONDS`: what a job of a sweep runs, in its batch script, which has run for SECONDS.

    members that no job has taken -> claim -> srun --exact ... python -m hpcai.worker RUN -> records -> the next

All jobs of a sweep share its members; a claim is a file that is made once. Those that this job's time has stopped wait for its
next start, or for another job. The one that finds all ended writes the sweep's end. Light: nothing heavy is imported.
"""

from __future__ import annotations

import contextlib
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from hpcai import arrays, hunt, lease, requeue, rundir, runs, scheduler, script, standings, submit, watch
from hpcai.errors import HpcaiError, OwnedError, RunError
from hpcai.hunt import Hunt
from hpcai.lease import RunState
from hpcai.output import steady
from hpcai.plan import JobPlan
from hpcai.pool import VANISHED, Job, Pool, code_of, name_of, read_job
from hpcai.queue import Entry, Queue, Running, Share, Slots
from hpcai.rundir import RunDir
from hpcai.runs import Member
from hpcai.search import Trial
from hpcai.standings import Outcome
from hpcai.submit import Frozen
from hpcai.trials import Trials

BEGIN_S = 120.0  # a rank that has not begun by then will not

# --- starting one


class Steps:
    """Starts members as steps of this job, and knows which of them have ended."""

    def __init__(self, job: Job, pool: Pool, frozen: Frozen) -> None:
        self.job, self.pool, self.frozen = job, pool, frozen
        self._steps: dict[str, tuple[int, subprocess.Popen[bytes]]] = {}  # by run_dir: its life and srun
        self._asked, self._held = -math.inf, False

    def start(self, entry: Entry, share: Share) -> int:
        """Its new life. What a step holds of the node is Slurm's to choose.

        Raises: OwnedError if another job was faster; Faults if it cannot go on as it began; OSError for a full disk.
        """
        run, plan = entry.dir, entry.plan
        try:
            life = self._claim(entry.member, plan)
        except OwnedError:
            self.pool.beaten[plan.run_dir] = time.monotonic()
            raise
        if entry.member.needs or not run.plan.is_file():
            submit.prepare(run, arrays.shared_by(plan, self.job.beside), entry.config, entry.files, self.frozen)
        run.submitit.mkdir(exist_ok=True)
        log = f"{self.job.id}-{life}"
        python = entry.config.cluster.python or sys.executable
        words = script.step(plan, entry.config, str(run.path), python, beside=log)
        env = {**os.environ, "HPCAI_LIFE": str(life), "PYTHONPATH": submit.pythonpath(run.code)}
        with submit.apart(run.submitit / f"{log}_srun.log"):
            process = subprocess.Popen(words, env=env)
        self._steps[plan.run_dir] = (life, process)
        with contextlib.suppress(OSError):  # a full disk: it has started, whoever is written down
            lease.hand_over(run, life, process.pid)
        self.pool.began[plan.run_dir] = time.monotonic()
        self.job.say(f"{name_of(entry.member)} starts, life {life}")
        return life

    def _claim(self, member: Member, plan: JobPlan) -> int:
        """The life that waits for a job, or the one after those that have ended.

        Raises: OwnedError if another job has it by now, or has done it.
        """
        self.job.check()
        run, life = member.dir, lease.last_life(member.dir)
        if self.pool.verdict(member)[1] != "go":
            raise OwnedError(f"run={member.run_id}: another job was faster.")
        owner, who = lease.read_owner(run, life), lease.claimed_by(run, life)
        ours = Path(str(owner.get("sweep"))).name == self.job.sweep.path.name
        if ours and owner.get("job") is None and not who:
            if not (lease.is_untouched(run, life) and lease.claim(run, life, self.job.start)):
                raise OwnedError(f"run={member.run_id}: another job was faster.")
            lease.give_to_job(run, life, self.job.id)
            return life
        where = os.path.relpath(self.job.sweep.path, run.path.parent)
        facts = {"kind": "slurm", "job": self.job.id, "restart": int(self.job.start.partition(" ")[2]), "sweep": where}
        life = lease.take(run, plan.ranks, over=life, after=life, **facts)
        lease.claim(run, life, self.job.start)
        return life

    def _is_ours(self) -> bool:
        """Whether what vanished is ours to judge; not before Slurm has said so.

        Where a node is given up by Slurm, steps vanish and those who started them live on: all of it begins anew elsewhere.

        Raises: OwnedError if Slurm has ended this start.
        """
        if time.monotonic() - self._asked < scheduler.POLL_S:
            return self._held
        held = self.job.is_held()
        if held is False:
            raise OwnedError(
                f"sweep={self.job.sweep.id}: Slurm has ended this start of job {self.job.id}. Its next one goes on."
            )
        self._asked, self._held = time.monotonic(), bool(held)
        return self._held

    def end_stuck(self) -> None:
        """Ends the steps whose ranks have not begun by now, which hear no signal: there is no checkpoint to wait for."""
        for key, (life, process) in self._steps.items():
            late = time.monotonic() - self.pool.began.get(key, math.inf) > BEGIN_S
            if late and process.poll() is None and not lease.outline(RunDir(Path(key)), life):
                process.terminate()

    def reap(self) -> None:
        """Waits for steps that have ended."""
        for _, process in self._steps.values():
            process.poll()

    def state(self, entry: Entry) -> RunState:
        """By its records; where its step has ended without them, no rank lives whatever they say."""
        life, process = self._steps[entry.plan.run_dir]
        over = process.poll() is not None
        state = runs.state_of(entry.dir)
        if state.state == "unreadable" and not over:  # it may be for a moment; and while it runs it has its place
            return RunState("running", life)
        if state.life != life:  # it was stopped, and goes on in another job
            return RunState("stopped", life, message="goes on elsewhere.")
        if not over or state.state not in lease.ACTIVE or not self._is_ours():
            return state
        told = lease.outline(entry.dir, life)
        began, code = any(r["event"] == "begin" for rank in told.values() for r in rank), process.returncode
        if not began and 0 <= code < 128:  # time does not cure it; a signal's end it may
            where = f"{entry.dir.submitit.name}/{self.job.id}-{life}*"
            why = f"run={entry.plan.run_id}: its step ended with {code} before any rank began. See {where}."
            lease.give_up(entry.dir, life, why)
            return runs.state_of(entry.dir)
        return replace(state, state="lost", code=RunError.code, message=VANISHED)


# --- the trials of a search


@dataclass
class TrialPool(Pool):
    """The trials of a search, each asked of the journal that all its jobs write."""

    hunt: Hunt | None = None
    again: list[Entry] = field(default_factory=list)  # whose ranks vanished here
    broken: HpcaiError | None = None  # why no more trials can be made

    def next(self) -> Entry | None:
        """One that is to go on, or a new one."""
        if self.rests() or self.broken or not self.has_time("train"):
            return None
        try:
            entry = self._upcoming()
        except HpcaiError as e:  # those that run here are not to end with it
            self.broken, entry = e, None
        if entry is None:
            self.looked = time.monotonic()
        return entry

    def _upcoming(self) -> Entry | None:
        entry = self.again.pop(0) if self.again else self.trials.next()
        while entry is not None and not self._is_free(entry.dir):
            entry = self.trials.next()
        return entry

    @property
    def trials(self) -> Trials:
        """Those of the hunt."""
        assert self.hunt is not None
        return self.hunt.trials or self.hunt.open()

    def _is_free(self, run: RunDir) -> bool:
        """Not another job's at this moment."""
        state = runs.state_of(run)
        return state.state not in lease.ACTIVE or lease.claimed_by(run, state.life).partition(" ")[0] == self.job.id

    def startable(self) -> int:
        """New ones, and those that this job has begun."""
        known = self.trials.search.trials()
        begun = [self.hunt_dir(t) for t in known if t.state == "open" and t.run_id]
        left = sum(t.state == "open" and not t.run_id for t in known)  # by a process that vanished before it noted a run
        return left + max(0, self.trials.search.options.trials - len(known)) + sum(self._mine(run) for run in begun)

    def put_back(self, entry: Entry) -> None:
        """Before all others."""
        self.again.insert(0, entry)

    def settle(self) -> None:
        """Tells what has ended elsewhere: by a run of equal values, or in a job that did not live to tell."""
        assert self.hunt is not None
        self.hunt.open().settle()

    def hunt_dir(self, trial: Trial) -> RunDir:
        """The run of a trial."""
        return RunDir(self.job.sweep.path.parent.parent / str(trial.run_id))

    def _mine(self, run: RunDir) -> bool:
        life = lease.last_life(run)
        return lease.claimed_by(run, life).partition(" ")[0] == self.job.id and not lease.is_cancelled(run, life)

    def is_over(self) -> bool:
        """All were handed out and told, but for those that somebody cancelled."""
        known = self.trials.search.trials()
        left = [self.hunt_dir(t) for t in known if t.state == "open"]
        return len(known) >= self.trials.search.options.trials and all(lease.is_cancelled(r, lease.last_life(r)) for r in left)

    def ended(self, entry: Entry, state: RunState) -> None:
        """Told, but for one whose ranks vanished, if it may come again."""
        began = entry.plan.run_dir in self.began
        super().ended(entry, state)
        if began and state.state == "lost":
            state, verdict = self._again(entry.member, state)
            if verdict == "go":
                self.again.append(entry)
                return
        self.trials.ended(entry, state)

    def prune(self, running: Sequence[Entry]) -> Sequence[Entry]:
        """Those that fall behind, and those that somebody has cancelled."""
        return [*self.trials.prune(running), *super().prune(running)]

    def members(self) -> list[Member]:
        """Those that were begun."""
        assert self.hunt is not None
        return self.hunt.members

    def outcomes(self) -> list[Outcome]:
        """As the search tells them."""
        assert self.hunt is not None
        self.hunt.open()
        return self.hunt.outcomes()


# --- the whole job


def main(argv: list[str]) -> int:
    """Runs members to the end of them, or of its time; returns the lowest code of those that failed here."""
    if len(argv) != 2 or not argv[1].isdigit():
        print("usage: python -m hpcai.pack SWEEP_DIR SECONDS", file=sys.stderr)
        return 2
    asked = watch.listen()
    try:
        job = read_job(Path(argv[0]).absolute(), float(argv[1]))
        rundir.guard(job.config.runs_access)
        frozen = Frozen(job.sweep.dir.code, rundir.read_json(job.sweep.dir.environment))
        if lease.read_state(job.sweep.dir).state not in lease.ACTIVE:
            job.say("all runs have ended.")
            return 0
        job.begin()
        pool = _pool(job)
        _drive(job, pool, frozen, asked)
        _finish(job, pool, asked)
        if isinstance(pool, TrialPool) and pool.broken:
            raise pool.broken
    except OSError as e:
        cure = "Free space or mend the disk; the same command goes on."
        print(f"sweep={Path(argv[0]).name}: {e.strerror or type(e).__name__}. {cure}", file=sys.stderr)
        return RunError.code
    except (HpcaiError, *runs.DAMAGED) as e:
        lines = (
            e.lines
            if isinstance(e, HpcaiError)
            else [f"sweep={Path(argv[0]).name}: {type(e).__name__}: its folder is damaged."]
        )
        print("\n".join(lines), file=sys.stderr)
        return code_of(e)
    return min(pool.failed, default=0)


def _pool(job: Job) -> Pool:
    if job.sweep.kind != "search":
        return Pool(job, list(job.sweep.members))
    return TrialPool(job, [], hunt=hunt.of_sweep(job.sweep))


def _drive(job: Job, pool: Pool, frozen: Frozen, asked: list[int]) -> None:
    steps = Steps(job, pool, frozen)

    def look(running: Sequence[Running]) -> None:
        job.check()
        if not asked and job.is_cancelled:
            asked.append(signal.SIGTERM)
        if asked:
            steps.end_stuck()

    gpus = job.config.resources.gpus_per_node * job.beside
    while not asked:
        slots = Slots(job.cores * job.beside, float("inf"), list(range(gpus)))
        Queue(pool, slots, steps, look, shared=steps.state).drive(asked)
        pool.looked = 0.0
        entry = pool.next()  # what another job's last word has made ready meanwhile
        if entry is None:
            return
        pool.put_back(entry)
        pool.looked = 0.0


def _finish(job: Job, pool: Pool, asked: Sequence[int]) -> None:
    """The sweep's end, if this was the last; or the next start of this job, if members are left that no other job will take."""
    job.check()
    pool.settle()
    others = pool.elsewhere()  # before it is asked what is ready: what ends meanwhile makes others ready
    ready, cancelled = pool.startable(), job.is_cancelled
    states = [runs.state_of(member.dir) for member in pool.members()] if cancelled else []
    if pool.is_over() or (cancelled and not any(s.state in lease.ACTIVE and s.sweep == job.sweep.path.name for s in states)):
        conclude(job, pool, cancelled=cancelled)
        return
    if others and not (ready or asked or cancelled):
        pool.let_go(others)
        conclude(job, pool, others=list(dict.fromkeys(others.values())))
        return
    if asked or cancelled or not ready or ready <= job.places():
        return
    job.say(f"{ready} runs are left, and no time for them.")
    if job.config.cluster.facts.requeue is False:
        job.say(f"this site queues no job again: hpcai resume {job.sweep.id} goes on.")
    elif not pool.took and int(job.start.partition(" ")[2]) >= requeue.STARTS:
        job.say(f"its starts begin nothing, so it does not come again: see above. hpcai resume {job.sweep.id} goes on.")
    elif why := scheduler.requeue(job.id, requeue.PATIENCE_S):
        job.say(f"could not be queued again ({why}). hpcai resume {job.sweep.id} goes on.")


def conclude(job: Job, pool: Pool, *, cancelled: bool = False, others: Sequence[str] = ()) -> None:
    """results.json and the sweep's end record; jobs that wait have nothing left to do. Two at once say the same."""
    outcomes = pool.outcomes()
    sweep = replace(job.sweep, members=pool.members())
    standings.write_results(sweep, outcomes)
    owner = lease.read_owner(sweep.dir, job.life)
    code, bad = standings.exit_code(outcomes), standings.fault_lines(outcomes)
    message = f"{len(bad)} of {len(outcomes)} did not end well. hpcai report {sweep.id} names them." if bad else ""
    if cancelled and code:
        code, message = 128 + signal.SIGTERM, "cancelled. The same command goes on."
    elif others:
        some = f"{', '.join(others[:3])}{f' and {len(others) - 3} more' if len(others) > 3 else ''}"
        code, message = OwnedError.code, f"another command has {some}. When that has ended, hpcai resume {sweep.id} goes on."
    try:
        if owner.get("junit"):
            standings.write_junit(Path(owner["junit"]), sweep.id, outcomes)
    finally:
        lease.append(sweep.dir, job.life, 0, "end", code=code, message=message)
    job.say("cancelled." if cancelled and code else message if others else f"all {len(outcomes)} runs have ended.")
    if job.jobs > 1:
        scheduler.cancel(job.arrays, waiting=True)


if __name__ == "__main__":
    steady()
    sys.exit(main(sys.argv[1:]))
