"""The members of a sweep as the source of the queue of each of its jobs.   records of all -> which may start here -> Entry

Every job of a sweep reads the same records. What one job has taken, it ends: its members wait for its next start where its time
was over. Those that it stopped may go on in another job.
"""

from __future__ import annotations

import contextlib
import math
import os
import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from hpcai import lease, queued, requeue, rundir, runs, scheduler, script, standings
from hpcai.config.schema import Config
from hpcai.context import current_job, this_start
from hpcai.errors import HpcaiError, OwnedError, PlanError, RunError, one_line
from hpcai.lease import RunState
from hpcai.plan import make_plan, read_config, read_plan
from hpcai.queue import Entry, Source
from hpcai.rundir import RunDir
from hpcai.runs import Member, Sweep
from hpcai.standings import Outcome

SENDING_S = 30.0  # a job may begin before its submitter has written its number down
LOOK_S = 2.0  # the members' records are read again so often, where none of ours has ended
Verdict = Literal["go", "wait", "over"]


@dataclass(frozen=True)
class Job:
    """This start of this job. `told_at`: when its members are told that their time ends, in seconds of the epoch.

    Attributes:
        sweep: whose members it shares.
        life: the sweep's; `arrays`: the jobs that have it, of `jobs` tasks together.
        id: as squeue names it; `start`: which start of it.
        beside: members side by side, of so many cores each.
        config: of one of them: all have the same resources.
    """

    sweep: Sweep
    life: int
    arrays: tuple[str, ...]
    id: str
    start: str
    beside: int
    cores: int
    jobs: int
    config: Config
    told_at: float

    @property
    def is_cancelled(self) -> bool:
        """Somebody has cancelled the whole sweep."""
        return lease.is_cancelled(self.sweep.dir, self.life)

    @property
    def is_past(self) -> bool:
        """A later start of this job, or a later life of the sweep, is at work: this one was cut off, its knowledge old."""
        if lease.last_life(self.sweep.dir) != self.life:
            return True
        try:
            newest = (self.begun / self.id).read_text("utf-8")
        except FileNotFoundError:
            return False
        return int(newest or 0) > int(self.start.partition(" ")[2])

    def begin(self) -> None:
        """Notes that this start is at work.

        Raises: OwnedError if a later one is.
        """
        self.begun.mkdir(exist_ok=True)
        self.check()
        rundir.write_bytes(self.begun / self.id, self.start.partition(" ")[2].encode())

    def check(self) -> None:
        """Raises: OwnedError if a later start is at work."""
        if lease.last_life(self.sweep.dir) != self.life:
            raise OwnedError(f"sweep={self.sweep.id}: others have the sweep now. Nothing was started.")
        if self.is_past:
            raise OwnedError(f"sweep={self.sweep.id}: a later start of job {self.id} is at work. Nothing was started.")

    def is_held(self) -> bool | None:
        """Whether Slurm still has this start on its nodes; None: it does not answer."""
        answer = scheduler.look([self.id], history=False)
        known = answer.jobs.get(self.id)
        here = one_line(os.environ.get("SLURM_JOB_NODELIST", ""), 200)
        return (known is not None and known.state == "RUNNING" and known.nodes == here) if answer.queue else None

    @property
    def left_s(self) -> float:
        """Seconds that a member would have before it is told to end."""
        return self.told_at - time.time()

    def has(self, array: str) -> bool:
        """Whether that is one of the jobs that have the sweep: its submitter may have sent it when we had begun."""
        return array in self.arrays or array in lease.read_owner(self.sweep.dir, self.life).get("chain", ())

    def places(self) -> int:
        """How many members the jobs that have not begun can hold; those that Slurm no longer has, or never got, hold none."""
        begun = {f.name for f in self.begun.iterdir() if not f.name.startswith(".")}
        left = self.jobs - len(begun)
        if left <= 0:
            return 0
        arrays = lease.read_owner(self.sweep.dir, self.life).get("chain") or self.arrays
        late = [id for array in arrays for task in range(self.jobs) if (id := f"{array}_{task}") not in begun]
        answer = scheduler.look(late, history=False)
        there = sum(id in answer.jobs and answer.jobs[id].active for id in late)
        return (min(left, there) if answer.queue else left) * self.beside

    @property
    def begun(self) -> Path:
        """One file for each job of the sweep that has begun."""
        return lease.life_dir(self.sweep.dir, self.life) / "jobs"

    def say(self, words: str) -> None:
        """A line of the batch log."""
        print(one_line(f"hpcai: {words}", 400), flush=True)


def read_job(folder: Path, elapsed_s: float) -> Job:
    """The job that this process belongs to: one of those that have the sweep, or where they are gone one that was sent by hand.

    Raises: PlanError outside of Slurm; OwnedError if other jobs have the sweep.
    """
    sweep, id = runs.read_sweep(folder), current_job(os.environ)
    if id is None:
        raise PlanError(f"sweep={sweep.id}: this is no job of Slurm. Type hpcai resume {sweep.id} on a login node.")
    life = lease.last_life(sweep.dir)
    owner, array = lease.read_owner(sweep.dir, life), id.partition("_")[0]
    arrays = tuple(owner.get("chain") or [owner.get("job") or array])
    before = time.monotonic()
    while array not in arrays and len(arrays) < owner.get("arrays", 0) and time.monotonic() - before < SENDING_S:
        time.sleep(0.5)
        owner = lease.read_owner(sweep.dir, life)
        arrays = tuple(owner.get("chain") or arrays)
    if array not in arrays:
        answer = scheduler.look(arrays, history=False)
        over = life if all(scheduler.gone(answer, other) for other in arrays) else 0
        kept = {name: owner[name] for name in ("per_node", "threads", "junit")}
        life = lease.take(sweep.dir, 1, over=over, kind="slurm", job=array, restart=0, jobs=1, **kept)
        arrays = (array,)
    lease.give_to_job(sweep.dir, life, array)  # the submitter was killed before it could
    owner, config = lease.read_owner(sweep.dir, life), read_config(sweep.dir)
    asked = config.resources
    told_at = time.time() - elapsed_s + asked.timeout_min * 60 - script.lead_s(asked.timeout_min)
    start, beside, jobs = this_start(os.environ), int(owner["per_node"]), int(owner["jobs"])
    cores = asked.nodes * asked.tasks_per_node * int(owner["threads"])
    return Job(sweep, life, arrays, id, start, beside, cores, jobs, config, told_at)


# --- the members as the queue's source


@dataclass
class Pool(Source):
    """The members that no job has ended yet, in their order."""

    job: Job
    left: list[Member]
    over: dict[str, RunState] = field(default_factory=dict)  # by run_dir: they have ended, and do not come again
    took: dict[str, float] = field(default_factory=dict)  # by verb: the longest that a member has taken here
    began: dict[str, float] = field(default_factory=dict)
    failed: list[int] = field(default_factory=list)  # codes of those that failed here
    looked: float = 0.0
    gone: set[tuple[str, int]] = field(default_factory=set)  # lives whose step ended here, whatever their records say
    beaten: dict[str, float] = field(default_factory=dict)  # by run_dir: when another job was faster
    asked: set[str] = field(default_factory=set)  # jobs of others that Slurm was asked about, and what it said when
    answer: scheduler.Answer = field(default_factory=lambda: scheduler.Answer({}, queue=False, accounting=False))
    answered: float = -math.inf
    told: bool = False  # Slurm says that this start ends, which it does once, up to a minute early

    def next(self) -> Entry | None:
        """The first that may start; those that never will are cancelled on the way."""
        if self.rests():
            return None
        for member in self.ready():
            try:
                entry = _entry(member)
            except (HpcaiError, *runs.DAMAGED) as e:
                self._refuse(member, e.lines[0] if isinstance(e, HpcaiError) else "its folder is damaged.", code_of(e))
                continue
            if self.has_time(entry.plan.job):
                return entry
        self.looked = time.monotonic()
        return None

    def rests(self) -> bool:
        """Nothing is to be started, or was there to be a moment ago."""
        return self.told or self.job.is_past or time.monotonic() - self.looked < LOOK_S or self.job.is_cancelled

    def has_time(self, verb: str) -> bool:
        """As much as the longest of its kind took here; where none has ended yet, a tenth of the whole."""
        return self.job.left_s > self.took.get(verb, self.job.config.resources.timeout_min * 6)

    def startable(self) -> int:
        """How many could start now, whatever time is left."""
        return len(list(self.ready()))

    def is_over(self) -> bool:
        """All have ended, and none comes again."""
        return not self.left

    def members(self) -> list[Member]:
        """Of the whole sweep."""
        return self.job.sweep.members

    def outcomes(self) -> list[Outcome]:
        """What became of each."""
        return standings.outcomes(self.members())

    def ready(self) -> Iterator[Member]:
        """Those that could start now, whatever time is left."""
        for member in list(self.left):
            try:
                state, verdict = self.verdict(member)
            except OSError:  # a file system's moment: the next look tells
                continue
            except runs.DAMAGED:
                self._refuse(member, "its folder is damaged.", RunError.code)
                continue
            if verdict == "over":
                self.left.remove(member)
                self.over[member.run_dir] = state
            elif verdict == "go" and not self._is_busy(member):
                if not (why := self._blocked(member)):
                    yield member
                elif why != "wait":
                    self._refuse(member, why, PlanError.code)

    def verdict(self, member: Member) -> tuple[RunState, Verdict]:
        """Its state, and whether it may start here, runs or waits elsewhere, or comes no more."""
        run, state = member.dir, steady_state(member.dir)
        if state.state in ("completed", "failed", "unreadable"):
            return state, "over"
        if lease.is_cancelled(run, state.life):
            return state, "wait" if state.state in lease.ACTIVE else "over"
        who, ours = lease.claimed_by(run, state.life), state.sweep == self.job.sweep.path.name
        if state.state == "new" or (ours and not (state.claimed or who)):
            return state, "go" if state.state in ("new", "pending") else "wait"
        if not ours:  # of another sweep, or alone: its own jobs end it, while they are there
            if not self._is_gone(state):
                return state, "wait"
            return self._again(member, _vanished(state))
        holder = who.partition(" ")[0]
        mine = holder == self.job.id or bool(holder and not self.job.has(holder.partition("_")[0]))
        mine |= state.state == "lost" and not mine and self._is_gone(state)
        over = state.state not in lease.ACTIVE or (member.run_dir, state.life) in self.gone
        if mine and (who != self.job.start or over):  # of an earlier start, or of jobs that are gone
            state = _vanished(state)
        if state.state == "stopped" or (state.state == "lost" and mine):
            return self._again(member, state)
        return state, "wait"  # it runs, or its own job comes again

    def _is_anothers(self, state: RunState) -> bool:
        """The life was taken by another command: a sweep that has this member too, or the run alone."""
        return state.state != "new" and state.sweep != self.job.sweep.path.name

    def elsewhere(self) -> dict[str, str]:
        """By run_dir, what another command has, or what needs such a run, if that is all that is left; else nothing.

        With the run that is waited for: no job of this sweep will be there when that one has ended.
        """
        theirs: dict[str, str] = {}
        for member in self.left:
            state = runs.state_of(member.dir)
            if state.state in ("completed", "failed", "unreadable"):
                continue
            if self._is_anothers(state):
                theirs[member.run_dir] = member.run_id
            elif need := next((n for n in member.needs if n in theirs or self._is_outside(n)), None):
                theirs[member.run_dir] = theirs.get(need, Path(need).name)
            else:
                return {}
        return theirs

    def let_go(self, theirs: dict[str, str]) -> None:
        """Those that wait for runs of another command will not start."""
        for member in list(self.left):
            if (name := theirs.get(member.run_dir, member.run_id)) != member.run_id:
                self._refuse(member, f"{lease.CANCELLED}needs {name}, which another command has.", PlanError.code)

    def _is_outside(self, need: str) -> bool:
        """A run of another command, which has not ended."""
        return all(need != m.run_dir for m in self.members()) and runs.state_of(RunDir(Path(need))).state in lease.ACTIVE

    def _again(self, member: Member, state: RunState) -> tuple[RunState, Verdict]:
        """What stopped, or vanished from this job: by the rules of runs that have a job of their own."""
        if state.state == "stopped" and state.code == 128 + signal.SIGTERM:  # preempted, or its job was ended: as if by time
            state = replace(state, code=128 + signal.SIGUSR2)
        log = queued.last_words(member.dir.path, f"{self.job.id}-{state.life}")
        lost = scheduler.cause(None, log) if state.state == "lost" else None
        verdict = requeue.judge(state, requeue.steps_by_life(member.dir), lost)
        if verdict == "again":
            return state, "go"
        if verdict:
            with contextlib.suppress(OSError):  # a full disk: it stays lost, and the others go on
                lease.give_up(member.dir, state.life, f"run={member.run_id}: {verdict}")
        return runs.state_of(member.dir), "over"

    def _is_busy(self, member: Member) -> bool:
        """It runs here, and its end is still to be noted; or another job took it a moment ago, which not all hosts see yet."""
        beaten = time.monotonic() - self.beaten.get(member.run_dir, -math.inf) < LOOK_S
        return beaten or member.run_dir in self.began

    def _is_gone(self, state: RunState) -> bool:
        """Whether the jobs that may end it are over, by Slurm's word; of a run without Slurm its records say so."""
        if state.slurm_job is None:
            return state.state not in lease.ACTIVE
        ids = {state.slurm_job} if state.sweep and state.claimed else set(queued.ids_of(state))
        if not ids <= self.asked or time.monotonic() - self.answered > scheduler.POLL_S:
            self.asked |= ids
            self.answer, self.answered = scheduler.look(self.asked, history=False), time.monotonic()
        return bool(ids) and all(scheduler.gone(self.answer, id) for id in ids)

    def _blocked(self, member: Member) -> str:
        """Empty if it can start, `wait`, or why it never will."""
        waits = {m.run_dir for m in self.left}
        for need in member.needs:
            state = self.over.get(need) or runs.state_of(RunDir(Path(need)))
            if state.state == "completed":
                continue
            if need in waits or state.state in lease.ACTIVE:
                return "wait"
            word = {"new": "never began", "lost": "was lost", "stopped": "was stopped"}.get(state.state, state.state)
            return f"{lease.CANCELLED}needs {Path(need).name}, which {word}."
        return ""

    def _refuse(self, member: Member, why: str, code: int) -> None:
        """It will not start: said in its own records."""
        run, life = member.dir, lease.last_life(member.dir)
        with contextlib.suppress(OSError):
            mine = life and (lease.claim(run, life, self.job.start) or lease.claimed_by(run, life) == self.job.start)
            if mine or runs.state_of(run).state in ("stopped", "lost"):  # an earlier start's: it could have gone on
                lease.give_up(run, life, why, code)
        self.left.remove(member)
        self.over[member.run_dir] = RunState("failed", life, code, why)
        self.failed.append(code)
        self.job.say(f"{name_of(member)} does not start: {why}")

    def ended(self, entry: Entry, state: RunState) -> None:
        """Noted; what could not even start gets an end."""
        member, key = entry.member, entry.plan.run_dir
        self.looked = 0.0
        self.told |= state.code == 128 + signal.SIGUSR2
        if state.state == "lost":
            self.gone.add((key, state.life))
        if key in self.began:
            self.took[entry.plan.job] = max(self.took.get(entry.plan.job, 0.0), time.monotonic() - self.began.pop(key))
            self.job.say(f"{name_of(member)} {state.state}{f': {state.message}' if state.message else ''}")
            self.failed += [state.code or 1] if state.state in ("failed", "lost") else []
        elif member in self.left:
            self._refuse(member, state.message, state.code or RunError.code)

    def prune(self, running: Sequence[Entry]) -> Sequence[Entry]:
        """Those that somebody has cancelled."""
        return [entry for entry in running if lease.is_cancelled(entry.dir, lease.last_life(entry.dir))]

    def put_back(self, entry: Entry) -> None:
        """It was asked for, and not started: it is the next."""

    def settle(self) -> None:
        """Before it is asked what is left, when nothing runs here."""

    def waiting(self) -> bool:
        """A node is not held for a run of another job: that one takes what waits for it."""
        return False


VANISHED = "a rank vanished without a word."


def _vanished(state: RunState) -> RunState:
    """A member whose job is gone: it was stopped, or has vanished."""
    return state if state.state == "stopped" else replace(state, state="lost", code=5, message=VANISHED)


def steady_state(run: RunDir) -> RunState:
    """What the records say. On a file system of several hosts one that is just replaced may seem damaged for a moment."""
    state = runs.state_of(run)
    for _ in range(2):
        if state.state != "unreadable":
            break
        time.sleep(LOOK_S / 2)
        state = runs.state_of(run)
    return state


def name_of(member: Member) -> str:
    """As the batch log names it."""
    return one_line(f"{member.run_id} ({member.label})" if member.label else member.run_id, 200)


def _entry(member: Member) -> Entry:
    """A member, as it was prepared; one that needed runs with what they have left: labels, image size, the model's digest."""
    then, config = read_plan(member.dir), read_config(member.dir)
    if not member.needs:
        return Entry(member, config, then, [])
    plan, config, files = make_plan(config, member=True)
    kept = replace(plan, run_id=then.run_id, run_dir=str(member.dir.path), identity=then.identity)
    return Entry(member, config, kept, files)


def code_of(e: BaseException) -> int:
    """Of what stopped it."""
    return e.code if isinstance(e, HpcaiError) else RunError.code
