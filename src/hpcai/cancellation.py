"""`hpcai cancel NAME ...`: SIGTERM to the process that holds a run, from any shell of its host; its checkpoint is awaited.

A process is known by pid and start (lease.is_here), so a pid that was used again gets no signal. A sweep's driver stops its
members itself; members that have outlived their driver, and ranks that have outlived their controller, are asked one by one.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hpcai import lease, queued, rundir, runs, scheduler, submit
from hpcai.arguments import Words
from hpcai.errors import Faults, HpcaiError, OwnedError, PlanError, one_line
from hpcai.lease import RunState
from hpcai.rundir import RunDir
from hpcai.runs import DAMAGED
from hpcai.status import found, members_of
from hpcai.verbs import ENDED, ending, exit_code, facts, shown
from hpcai.watch import POLL_S

ASLEEP = ("SUSPENDED", "STOPPED")  # such a job hears no signal: it is taken away
BEGIN_S = 120.0  # a rank that has not begun by then will not: its launch is ended without a checkpoint, for there is none
HELP = """\
Stops runs and sweeps between two steps, with a checkpoint; hpcai resume goes on from it. Waits until they have ended."""


def main(argv: list[str]) -> int:
    """`hpcai cancel NAME ... [--no-wait]`; returns the exit code.

    Raises: ConfigError for an unknown name; PlanError for a run of another host, OwnedError for one of another user, when the
    others have been stopped.
    """
    words = Words("cancel", "NAME ...", HELP)
    words.add_argument("--no-wait", action="store_true", help="come back when they were asked")
    options = words.read(argv, least=1)
    if options is None:
        return 0
    targets = found(options.names, options.runs_dir)
    seen = queued.Watch()
    idle = [target for target in targets if not holders(target, seen)]
    faults = {target.path: fault for target in idle if (fault := _unknown_process(target))}
    faults |= stop(targets, wait=not options.no_wait)
    codes = []
    states = queued.states(targets)
    for target in targets:
        state = states[target.path]
        codes.append(0 if target in idle or options.no_wait else _code(state))
        if not options.json and target.path not in faults:
            print(_told(target, state, idle=target in idle, asked=options.no_wait))
    if options.json:
        print(json.dumps(facts(targets), indent=1))
    if faults:
        raise Faults(list(faults.values()))
    return min((code for code in codes if code), default=0)


def _told(target: RunDir, state: RunState, *, idle: bool, asked: bool) -> str:
    name = one_line(target.path.name, 120)
    if idle:
        return f"{name}: nothing to cancel, it is {'not started' if state.state == 'new' else state.state}"
    if asked and state.state not in ENDED:
        return f"{name}: asked to stop"
    if state.state == "lost" and state.step is None:
        who = "its driver is" if state.slurm_job is None else "its jobs are"
        done = f"{who} gone, its members have ended" if runs.is_sweep(target.path) else "stopped before its first step"
        return f"{name}: {done}"
    return ending(target, state)


def _code(state: RunState) -> int:
    """0 if it stopped, or was through before it was asked; else how it ended instead."""
    return 0 if state.state in ("stopped", "completed") or (state.state == "lost" and state.step is None) else exit_code(state)


def stop(targets: Sequence[RunDir], *, wait: bool) -> dict[Path, HpcaiError]:
    """Asks all of them, again and again as a rank may not have been ready, until they have ended (or once, without `wait`).

    Returns why some are out of reach, by folder.
    """
    faults: dict[Path, HpcaiError] = {}
    sent: dict[Path, float] = {}
    seen, silent = queued.Watch(submit.AGAIN_S), False  # a person waits
    while todo := [run for target in targets for run in holders(target, seen) if run.path not in faults]:
        for run in _stop_jobs(todo, seen.answer, sent):
            if fault := _out_of_reach(run):
                faults[run.path] = fault
            elif time.monotonic() - sent.get(run.path, -submit.AGAIN_S) >= submit.AGAIN_S and ask(run):
                sent[run.path] = time.monotonic()
        if seen.answer.why and not seen.answer.queue and not silent:
            silent = True
            print(
                f"note: Slurm does not answer ({one_line(seen.answer.why, 200)}). Asked again until it does.", file=sys.stderr
            )
        if not wait and all(run.path in sent or run.path in faults for run in todo):
            break
        time.sleep(POLL_S)
    return faults


def holders(target: RunDir, seen: queued.Watch) -> list[RunDir]:
    """Who is to be asked: a run or a sweep's driver itself; members that run without their driver; nobody."""
    members = members_of(target.path)
    states = seen.states([target, *members])
    if states[target.path].state not in ENDED:
        return [target]
    return [member for member in members if states[member.path].state not in ENDED]


def ask(run: RunDir) -> bool:
    """One SIGTERM to the owner, once every rank can answer it; to the ranks that are left where the owner is gone.

    Says whether one was sent.
    """
    life = lease.last_life(run)
    try:
        owner = rundir.read_json(lease.life_dir(run, life) / "owner.json")
        if submit.ask_to_stop(run, life, owner["ranks"]):
            return True
        late = time.time() - owner["time"] > BEGIN_S
        return any([_signal(who) for who in ([owner] if late else []) or _orphans(run, life, owner)])
    except DAMAGED:
        return False


def _stop_jobs(todo: Sequence[RunDir], answer: scheduler.Answer, sent: dict[Path, float]) -> list[RunDir]:
    """Asks Slurm's jobs, all at once; returns the runs that are none.

    Running ones get SIGTERM, which the ranks answer with a checkpoint: not scancel, which gives them KillWait seconds at most.
    What waits is taken out of the queue, the later jobs of a chain too.
    """
    waiting: list[str] = []
    running: list[str] = []
    others: list[RunDir] = []
    asked: list[tuple[RunDir, int, bool]] = []
    for run in todo:
        state = runs.state_of(run)
        if state.slurm_job is None:
            others.append(run)
            continue
        if time.monotonic() - sent.get(run.path, -scheduler.POLL_S) < scheduler.POLL_S:
            continue
        known = queued.jobs_of(state, answer, run.path)
        if state.sweep or runs.is_sweep(run.path):
            if _stop_shared(run, state, known):
                sent[run.path] = time.monotonic()
            continue
        here = [job.id for job in known if job.state == "RUNNING"]
        queue = [job.id for job in known if job.waits or job.state in ASLEEP]
        if queue or here:
            asked.append((run, state.life, not here))
            with contextlib.suppress(OSError):
                lease.note_cancelled(run, state.life)
        waiting += queue
        running += here
    why = scheduler.cancel(waiting) or scheduler.cancel(running, signal="TERM")
    for run, life, waited in [] if why else asked:  # else asked again: nothing has ended yet
        sent[run.path] = time.monotonic()
        if waited:
            lease.give_up(run, life, f"cancelled while it waited. hpcai resume {run.path.name} sends it again.", 143)
    return others


def _stop_shared(run: RunDir, state: RunState, known: Sequence[scheduler.Job]) -> bool:
    """A sweep of Slurm, or a member of one: its jobs see the mark and stop what they run. Says whether they will."""
    with contextlib.suppress(OSError):
        lease.note_cancelled(run, state.life)
    if state.sweep:
        if not state.claimed:
            _withdraw(run, state.life)
        elif state.state == "lost" and any(job.id == state.slurm_job and job.waits for job in known):
            lease.give_up(run, state.life, f"cancelled while it waited. hpcai resume {run.path.name} sends it again.", 143)
        return True
    if scheduler.cancel(queued.ids_of(state), waiting=True):
        return False
    for member in members_of(run.path):
        if not (theirs := runs.state_of(member)).claimed:
            _withdraw(member, theirs.life)
    if not any(job.active and not job.waits for job in known):
        lease.give_up(run, state.life, f"cancelled while it waited. hpcai resume {run.path.name} sends it again.", 143)
    return True


def _withdraw(run: RunDir, life: int) -> None:
    """A member that no job has taken: now none can."""
    if lease.claim(run, life, "cancelled"):
        lease.give_up(run, life, f"cancelled while it waited. hpcai resume {run.path.name} sends it again.", 143)


def _orphans(run: RunDir, life: int, owner: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The ranks that live on without their owner."""
    if not lease.is_here(owner):
        for told in lease.outline(run, life).values():
            if not any(record["event"] == "end" for record in told):
                yield from (record for record in told if record["event"] == "begin")


def _signal(who: Mapping[str, Any]) -> bool:
    if lease.is_here(who):
        with contextlib.suppress(ProcessLookupError):
            os.kill(who["pid"], signal.SIGTERM)
            return True
    return False


def _processes(run: RunDir) -> list[Mapping[str, Any]]:
    """Owner and begun ranks of the newest life, dead or alive; none where the records are damaged."""
    life = lease.last_life(run)
    try:
        owner = rundir.read_json(lease.life_dir(run, life) / "owner.json")
        begun = [r for told in lease.outline(run, life).values() for r in told if r["event"] == "begin"]
        return [who for who in (owner, *begun) if who["host"] and who["pid"]]
    except DAMAGED:
        return []


def _out_of_reach(run: RunDir) -> HpcaiError | None:
    """Why it cannot be stopped from here, if so: it runs on another host, or as another user."""
    if lease.read_owner(run, lease.last_life(run)).get("kind") == "slurm":
        return None  # scancel reaches it from anywhere
    there = _processes(run)
    name = one_line(run.path.name, 120)
    try:
        for who in there:
            if lease.is_here(who):
                os.kill(who["pid"], 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        return OwnedError(f"{shown(run)}: process {who['pid']} is another user's. Ask them to type hpcai cancel {name}.")
    here = lease.me()["host"]
    if there and all(who["host"] != here for who in there):
        return PlanError(f"{shown(run)}: runs on {one_line(str(there[0]['host']), 80)}. Type hpcai cancel {name} there.")
    return None


def _unknown_process(target: RunDir) -> HpcaiError | None:
    """A run whose records are damaged may run: that is no success."""
    if runs.state_of(target).state != "unreadable":
        return None
    return PlanError(f"{shown(target)}: its records in lives/ are damaged, so its process is not known. Stop it by hand.")
