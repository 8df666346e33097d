"""A sweep on Slurm, from the login node: members -> lives -> folders -> arrays of jobs, which share the members (pack.py).

A job of an array belongs to no member. Each takes those that nobody has, as many at once as a node has room for, so whole nodes
are full, a limit of submitted jobs delays and loses nothing, and members that end early make room for others.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hpcai import lease, limits, queued, rundir, runs, scheduler, script, standings, submit
from hpcai.config.schema import Config
from hpcai.driver import Options, report
from hpcai.errors import Faults, HpcaiError, OwnedError, PlanError, one_line
from hpcai.lease import RunState
from hpcai.plan import JobPlan
from hpcai.queue import Entry
from hpcai.rundir import RunDir
from hpcai.runs import Sweep
from hpcai.submit import Frozen

ALIKE = ("resources", "cluster", "sweep", "runs_access")  # what the members of one sweep have in common, as they share jobs


def faults(entries: Sequence[Entry]) -> Iterator[HpcaiError]:
    """Why these members cannot share jobs."""
    first = entries[0].config
    for entry in entries[1:]:
        for name in ALIKE:
            if getattr(entry.config, name) != getattr(first, name):
                yield PlanError(
                    f"{name}: differs between members ({one_line(entry.member.label, 80)}), which share Slurm's jobs. "
                    "Send those that differ by a command of their own."
                )
                return


@dataclass(frozen=True)
class Jobs:
    """The jobs of a sweep: `arrays` are their sizes, `left_out` how many more there would be without a limit of the site."""

    per_node: int
    arrays: tuple[int, ...]
    at_once: int | None
    left_out: int

    @property
    def count(self) -> int:
        """All of them."""
        return sum(self.arrays)

    def specs(self) -> list[str]:
        """What sbatch is told of each array, with its share of those that may run at once: a throttle is an array's own."""
        left, shares = self.at_once, []
        for i, size in enumerate(self.arrays):
            share = None if left is None else max(1, min(size, left // (len(self.arrays) - i)))
            left = None if left is None or share is None else left - share
            shares.append("" if share is None or share >= size else f"%{share}")
        return [f"--array=0-{size - 1}{share}" for size, share in zip(self.arrays, shares)]


def jobs_for(config: Config, members: int, beside: int, queued_now: int) -> Jobs:
    """How many jobs, in which arrays. `beside`: members side by side in one."""
    most, waves = config.sweep.array_parallelism, submit.chain(config)
    pieces = limits.array_pieces(config, math.ceil(members / beside), queued_now, waves)
    return Jobs(beside, pieces.sizes[:most] if most else pieces.sizes, most, pieces.rest)


def send(sweep: Sweep, entries: Sequence[Entry], options: Options) -> int:
    """Sends what is missing or failed, and returns at once; where all has ended shows how it stands.

    Raises: OwnedError if the sweep is in the queue or runs; PlanError if a run that it needs has failed, or Slurm refuses it.
    """
    seen = queued.Watch()
    states = seen.states([sweep.dir, *(e.dir for e in entries)])
    own = _free(sweep, states[sweep.path], options)
    todo = [e for e in entries if states[e.dir.path].state not in ("completed", *lease.ACTIVE)]
    if not todo:
        if not options.dry_run:
            _settle(sweep, own, all(states[e.dir.path].state == "completed" for e in entries))
        return report(sweep, standings.outcomes(sweep.members), options)
    after = list(dict.fromkeys(_after(entries, seen)))

    def prepare(frozen: Frozen) -> Iterator[tuple[RunDir, int]]:
        """The members' folders, with a life each that waits for a job."""
        for entry in todo:
            run, plan = entry.dir, shared_by(entry.plan, min(len(todo), beside_of(entry.plan)))
            where = os.path.relpath(sweep.path, run.path.parent)
            over = states[run.path].life
            yield run, lease.take(run, plan.ranks, over=over, kind="slurm", job=None, restart=0, sweep=where)
            submit.prepare(run, plan, entry.config, entry.files, frozen)

    return _send(sweep, own.life, todo[0], len(todo), prepare, after, options)


def send_search(sweep: Sweep, first: Entry, left: int, prepare: Callable[[Frozen], None], options: Options) -> int:
    """The same for a search, of which so many trials are left: its jobs make their members themselves. `first`: such as."""
    own = _free(sweep, queued.state_of(sweep.dir), options)
    if left <= 0:
        return report(sweep, standings.outcomes(sweep.members), options)

    def none(frozen: Frozen) -> Iterator[tuple[RunDir, int]]:
        prepare(frozen)
        yield from ()

    return _send(sweep, own.life, first, left, none, [], options)


def _settle(sweep: Sweep, own: RunState, over: bool) -> None:
    """Nothing is to be sent: other commands have, or had, what was left. `over`: all is done, whatever its last job found."""
    if not (sweep.path / "results.json").is_file() or (over and own.state != "completed"):
        runs.write_sweep(sweep)
        standings.write_results(sweep, standings.outcomes(sweep.members))
    if over and own.state not in ("new", "completed"):
        life = lease.take(sweep.dir, 1, over=own.life)
        lease.append(sweep.dir, life, 0, "end", code=0, message="")


def _free(sweep: Sweep, state: RunState, options: Options) -> RunState:
    """Raises: OwnedError if jobs have it."""
    if state.state in lease.ACTIVE and not options.dry_run:
        raise OwnedError(f"sweep={sweep.id}: {state.owner} has it ({state.state}). hpcai status {sweep.id} says more.")
    return state


def _send(
    sweep: Sweep,
    over: int,
    first: Entry,
    members: int,
    prepare: Callable[[Frozen], Iterator[tuple[RunDir, int]]],
    after: Sequence[str],
    options: Options,
) -> int:
    """Jobs for so many members, of which `first` is one; `over`: the sweep's life that has ended."""
    config = first.config
    beside = min(members, beside_of(first.plan))
    jobs = jobs_for(config, members, beside, 0 if options.dry_run else scheduler.submitted())
    job = script.job_of(first.plan, beside, sweep.id, str(sweep.path))
    shared = script.Shared(max(members, len(sweep.members)), jobs.count, tuple(jobs.specs()))
    print(_describe(members, jobs), flush=True)
    for warning in _doubts(sweep, first, members, jobs):
        print(f"warning: {warning}", file=sys.stderr)
    if options.dry_run:
        print((script.explain if options.explain else script.text)(job, config, shared), end="")
        return 0
    if why := scheduler.unavailable():
        raise PlanError(f"cluster={job.cluster}: {why}")
    if not jobs.count:
        raise PlanError(f"cluster={job.cluster}: no more jobs of yours may be submitted now. Wait until some have ended.")
    rundir.guard(options.access)
    if options.junit:  # a place that cannot be written is said now, not by the last job
        standings.write_junit(options.junit, sweep.id, standings.outcomes(sweep.members))
    waves = submit.chain(config)
    junit = str(options.junit.absolute()) if options.junit else None
    facts: dict[str, Any] = {"per_node": beside, "threads": first.plan.threads, "jobs": jobs.count * waves, "junit": junit}
    facts["arrays"] = len(jobs.arrays) * waves
    life = lease.take(sweep.dir, 1, over=over, kind="slurm", job=None, restart=0, **facts)
    taken: list[tuple[RunDir, int]] = []
    try:
        runs.write_sweep(sweep)
        taken.extend(prepare(submit.freeze(sweep.dir)))
        submit.write_config(sweep.dir, config)
        rundir.write_bytes(sweep.dir.script, script.text(job, config, shared).encode())
        sent = submit.send(sweep.dir, job, life, [jobs.specs()] * waves, after)
    except (HpcaiError, OSError) as e:
        _take_back(sweep, life, taken, e)
        raise
    print(f"submitted: job {', '.join(sent)}{_price(job.slurm, jobs)}  see: hpcai status {sweep.id}")
    return 0


def beside_of(plan: JobPlan) -> int:
    """How many such members a job holds side by side."""
    return int((plan.slurm or {})["per_node"])


def shared_by(plan: JobPlan, members: int) -> JobPlan:
    """The plan of a member that shares its job with so many, itself among them."""
    return replace(plan, slurm={**(plan.slurm or {}), "per_node": members})


def _take_back(sweep: Sweep, life: int, taken: Sequence[tuple[RunDir, int]], e: HpcaiError | OSError) -> None:
    """Nothing was sent: no life waits for a job that never comes."""
    code, why = (e.code, e.lines[0]) if isinstance(e, HpcaiError) else (5, f"was not sent ({e.strerror}).")
    for run, mine in [(sweep.dir, life), *taken]:
        try:
            lease.give_up(run, mine, why, code)
        except OSError:  # a full disk: the submitter's process is gone, so it counts as lost
            return


def _after(entries: Sequence[Entry], seen: queued.Watch) -> Iterator[str]:
    """sbatch's dependencies: the jobs of runs outside the sweep that members need.

    Raises: Faults where such a run can no longer be completed, or is not Slurm's.
    """
    ours = {e.plan.run_dir for e in entries}
    outside = {need: "depends_on" for e in entries for need in e.member.needs if need not in ours}
    found: list[HpcaiError] = []
    for run, key in ((RunDir(Path(path)), key) for path, key in outside.items()):
        state = seen.states([run])[run.path]
        name = f"{key}={one_line(run.path.name, 120)}"
        if state.state == "completed":
            continue
        if state.state not in lease.ACTIVE:
            found.append(
                PlanError(f"{name}: is {state.state}. hpcai resume {run.path.name} goes on with it; then send this again.")
            )
        elif not state.slurm_job:
            found.append(PlanError(f"{name}: runs without Slurm, which cannot wait for it. Send this when it has ended."))
        elif state.sweep or len(state.chain) > 1:  # how such a job ends says nothing of it: the pack looks
            yield f"afterany:{':'.join(_jobs_of(run, state))}"
        else:
            yield f"afterok:{state.slurm_job}"
    if found:
        raise Faults(found)


def _jobs_of(run: RunDir, state: RunState) -> tuple[str, ...]:
    """The jobs that a run may come back by: of a sweep's member all of the sweep's."""
    sweep = RunDir(run.path.parent / runs.SWEEPS / state.sweep) if state.sweep else run
    owner = lease.read_owner(sweep, lease.last_life(sweep)) if state.sweep else {}
    return tuple(owner.get("chain") or [owner["job"]]) if owner.get("job") else queued.ids_of(state)


def _describe(members: int, jobs: Jobs) -> str:
    """What is sent, on a line."""
    many = f"{members} run{'s' * (members != 1)} in {jobs.count} job{'s' * (jobs.count != 1)}"
    beside = f", up to {jobs.per_node} side by side{' in each' * (jobs.count > 1)}" if jobs.per_node > 1 else ""
    late = (
        f"; the limit of submitted jobs holds back {jobs.left_out} more: the others do their runs too" if jobs.left_out else ""
    )
    return f"jobs  {many}{beside}{late}"


def _doubts(sweep: Sweep, first: Entry, members: int, jobs: Jobs) -> Iterator[str]:
    """What so few members leave idle, which the plan of one does not know; and a search that cannot learn."""
    given = limits.allocation(first.config, jobs.per_node)
    if given is not None and jobs.per_node < beside_of(first.plan):
        yield from limits.idle(first.config, given, jobs.per_node)
    if sweep.kind == "search" and 1 < members <= jobs.per_node * min(jobs.count, jobs.at_once or jobs.count):
        few = f"sweep.per_node={max(1, members // 4)} sweep.array_parallelism=1"
        yield f"--search: all {members} trials begin at once, so that none learns from another. {few} has the later ones learn."


def _price(slurm: dict[str, Any] | None, jobs: Jobs) -> str:
    price = (slurm or {}).get("price")
    return f", at most {limits.rounded_up(price['amount'] * jobs.count)} {price['unit']}" if price else ""
