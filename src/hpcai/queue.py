"""Many runs, one machine: what fits is started, what has ended makes room.   source -> slots -> start -> records -> source

Slots are cores, memory and GPUs. Whether a member runs is read from its folder alone, so that members which another driver
started, or which outlived one, are waited for like its own. Knows nothing of sweeps: a source says what is next.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from hpcai import forkserver, lease, submit
from hpcai.cluster import Machine
from hpcai.config.schema import Config
from hpcai.errors import Faults, HpcaiError, OwnedError
from hpcai.inputs import Input
from hpcai.plan import JobPlan, make_plan
from hpcai.rundir import RunDir
from hpcai.runs import Member, state_of
from hpcai.submit import Frozen

POLL_S = 0.05  # between looks while something starts or ends
CALM_S = 0.5  # between looks while nothing does: each reads the members' records


@dataclass(frozen=True)
class Entry:
    """One member, ready to start."""

    member: Member
    config: Config
    plan: JobPlan
    files: list[Input]

    @classmethod
    def planned(
        cls,
        config: Config,
        label: str,
        group: str,
        needs: tuple[str, ...] = (),
        *,
        anew: bool = False,
        files: list[Input] | None = None,
    ) -> Entry:
        """A member of a sweep, from its config. `files`: the fingerprint of its data, where that was just taken.

        Raises: Faults with everything that is wrong with it.
        """
        plan, config, files = make_plan(config, anew=anew, pending=bool(needs), member=True, files=files)
        return cls(Member(plan.run_id, plan.run_dir, label, group, plan.job, needs), config, plan, files)

    @property
    def dir(self) -> RunDir:
        """Its run folder."""
        return RunDir(Path(self.plan.run_dir))


class Source(Protocol):
    """What the queue asks: what is next, and whom to stop; and what it tells: who has ended, and how."""

    def next(self) -> Entry | None:
        """A member that can start now; None if there is none at the moment, or no more."""

    def ended(self, entry: Entry, state: lease.RunState) -> None:
        """It has completed, failed, stopped or was lost for good."""

    def prune(self, running: Sequence[Entry]) -> Sequence[Entry]:
        """Members that need not go on."""

    def waiting(self) -> bool:
        """Whether a member may become ready later without another of this queue ending (it waits for a run elsewhere)."""


class Starts(Protocol):
    """What starts members: `Starter`."""

    def start(self, entry: Entry, share: Share) -> int:
        """The member's new life. Raises: HpcaiError, OSError."""

    def reap(self) -> None:
        """Waits for children that have ended."""


# --- slots


@dataclass(frozen=True)
class Share:
    """What one member holds of the machine; `gpus` by number."""

    cores: int
    mem_gb: float
    gpus: tuple[int, ...]


@dataclass
class Slots:
    """What is free of the machine."""

    cores: int
    mem_gb: float
    gpus: list[int]
    shares: dict[str, Share] = field(default_factory=dict)

    @classmethod
    def of(cls, machine: Machine) -> Slots:
        """A whole machine."""
        return cls(machine.cores, machine.mem_gb, list(range(len(machine.gpus))))

    def take(self, name: str, plan: JobPlan, *, force: bool = False) -> Share | None:
        """Room for `plan`, or None; who asks for more than the machine has gets all of it, alone. `force`: runs already."""
        asked = plan.resources
        cores, memory, gpus = plan.ranks * plan.threads, asked["mem_gb"] or 0.0, asked["gpus_per_node"]
        fits = cores <= self.cores and memory <= self.mem_gb and gpus <= len(self.gpus)
        if not (fits or force or not self.shares):
            return None
        share = Share(cores, memory, tuple(self.gpus[:gpus]))
        self.cores, self.mem_gb, self.gpus = self.cores - cores, self.mem_gb - memory, self.gpus[gpus:]
        self.shares[name] = share
        return share

    def give(self, name: str) -> None:
        """What `name` held is free again."""
        share = self.shares.pop(name)
        self.cores, self.mem_gb = self.cores + share.cores, self.mem_gb + share.mem_gb
        self.gpus = sorted([*self.gpus, *share.gpus])


# --- starting one


class Starter:
    """Takes a member's next life and starts its ranks: by the fork server where that is the same, else by submit.start."""

    def __init__(self, frozen: Frozen, jobs: Sequence[str], *, fork: bool = True) -> None:
        self.frozen, self.jobs = frozen, sorted(set(jobs))
        self._client: forkserver.Client | None = None
        self._fork = fork
        self._jobs: list[Any] = []  # submitit's; their controllers are our children, to be waited for

    def start(self, entry: Entry, share: Share) -> int:
        """Its new life.

        Raises: OwnedError if somebody else was faster; Faults if it cannot go on as it began; OSError for a full disk.
        """
        run, plan = entry.dir, entry.plan
        submit.check_identity(run, plan)
        if run.plan.is_file() and (faults := list(submit.differences(run, plan, entry.files, self.frozen))):
            raise Faults(faults)
        life = lease.take(run, plan.ranks)
        submit.prepare(run, plan, entry.config, entry.files, self.frozen)
        if not share.gpus and self._forked(run, plan, life):
            return life
        self._jobs.append(submit.start(run, plan, life, share.gpus))
        return life

    def _forked(self, run: RunDir, plan: JobPlan, life: int) -> bool:
        client = self._server(plan.threads)
        if client is None:
            return False
        limit, delay = submit.time_limit(plan)
        path = submit.pythonpath(run.code)
        pid = client.start(forkserver.Request(str(run.path), life, plan.ranks, limit, delay, path))
        if pid is None:
            self.close()
            self._fork = False  # it could not import the jobs, or was killed: each member shows its own error
            return False
        lease.hand_over(run, life, pid)
        return True

    def _server(self, threads: int) -> forkserver.Client | None:
        """The one for so many threads a rank: the first that is asked for. Others start the ordinary way."""
        if self._client is None and self._fork:
            with submit.apart(self.frozen.code.parent / "forkserver.log"):
                path = submit.pythonpath(self.frozen.code)
                self._client = forkserver.open_client(self.frozen.code, path, threads, self.jobs)
        return self._client if self._client and self._client.threads == threads else None

    def reap(self) -> None:
        """Waits for controllers that have ended, so that they count as gone."""
        self._jobs = [job for job in self._jobs if job._process.poll() is None]

    def close(self) -> None:
        """Ends the fork server; members that run go on."""
        if self._client:
            self._client.close()
            self._client = None


# --- the queue


@dataclass
class Running:
    """A member on the machine. `asked`: when it was last asked to stop."""

    entry: Entry
    life: int
    asked: float | None = None


class Queue:
    """Starts what fits, reads records, tells the source; ends when nothing runs and nothing is left."""

    def __init__(
        self,
        source: Source,
        slots: Slots,
        starter: Starts,
        look: Callable[[Sequence[Running]], None],
        *,
        shared: Callable[[Entry], lease.RunState] | None = None,
    ) -> None:
        """`shared`: other queues have the same source, each on a machine of its own: what one of them took is no business of
        the others, and a lost member is the source's to give out again. It tells a member's state."""
        self.source, self.slots, self.starter, self.look = source, slots, starter, look
        self.alone, self._state = shared is None, shared or (lambda entry: state_of(entry.dir))
        self.running: dict[str, Running] = {}
        self._next: Entry | None = None
        self._steps: dict[str, int] = {}  # of lost members: how far they had come

    def drive(self, asked: list[int]) -> None:
        """To the end. What `watch.listen` notes in `asked` stops every member with a checkpoint, and starts no more."""
        while True:
            moved = self._end_those_that_have(stopping=bool(asked))
            if not asked:
                moved |= self._start_what_fits()
                for entry in self.source.prune([r.entry for r in self.running.values()]):
                    self._ask(self.running[entry.plan.run_dir])
            for member in self.running.values():
                if asked or member.asked is not None:
                    self._ask(member)
            self.look(list(self.running.values()))
            if not self.running and (asked or (self._next is None and not moved and not self.source.waiting())):
                return
            time.sleep(POLL_S if moved or asked else self._pause())

    def _pause(self) -> float:
        """Short while a member is young: most that end soon end then."""
        young = any(time.time() - _begun(r.entry.dir, r.life) < 20 * CALM_S for r in self.running.values())
        return POLL_S if young else CALM_S

    def _ask(self, member: Running) -> None:
        if member.asked is None or time.monotonic() - member.asked > submit.AGAIN_S:
            sent = submit.ask_to_stop(member.entry.dir, member.life, member.entry.plan.ranks)
            member.asked = time.monotonic() if sent else 0.0  # not ready for it yet: again at the next look

    def _end_those_that_have(self, *, stopping: bool) -> bool:
        self.starter.reap()
        ended = False
        for key, member in list(self.running.items()):
            state = self._state(member.entry)
            if state.state in lease.ACTIVE:
                continue
            ended = True
            del self.running[key]
            self.slots.give(key)
            again = self.alone and state.state == "lost" and member.asked is None and not stopping
            if not (again and self._got_further(key, state.step) and self._start(member.entry)):
                self.source.ended(member.entry, state)
        return ended

    def _got_further(self, key: str, step: int | None) -> bool:
        """A lost member is started again only while each life adds steps: one that dies at the same step would die for ever."""
        before, self._steps[key] = self._steps.get(key, 0), step or 0
        return (step or 0) > before

    def _start_what_fits(self) -> bool:
        moved = False
        while self._next is not None or (upcoming := self.source.next()) is not None:
            entry = self._next or upcoming
            assert entry is not None
            self._next = None
            if not self._start(entry):
                self._next = entry  # first come, first served: no small one overtakes it
                break
            moved = True
        return moved

    def _start(self, entry: Entry) -> bool:
        """Starts it, or waits for it if it runs already; False if there is no room. What cannot start has ended, as failed."""
        key, state = entry.plan.run_dir, state_of(entry.dir)
        if state.state == "unreadable":
            self.source.ended(entry, state)
            return True
        runs = self.alone and state.state in lease.ACTIVE
        share = self.slots.take(key, entry.plan, force=runs)
        if share is None:
            return False
        try:
            life = state.life if runs else self.starter.start(entry, share)
        except OwnedError:  # another driver was faster: it runs there
            if not self.alone:
                self.slots.give(key)
                return True
            life = lease.last_life(entry.dir)
        except (HpcaiError, OSError) as e:
            self.slots.give(key)
            self.source.ended(entry, lease.RunState("failed", state.life, *_told(entry, e)))
            return True
        self.running[key] = Running(entry, life)
        return True


def _told(entry: Entry, e: HpcaiError | OSError) -> tuple[int, str]:
    if isinstance(e, HpcaiError):
        return e.code, e.lines[0]
    return (
        5,
        f"run={entry.plan.run_id}: {e.strerror or type(e).__name__}. Free space or mend the disk; the same command goes on.",
    )


def _begun(run: RunDir, life: int) -> float:
    try:
        return lease.life_dir(run, life).stat().st_ctime
    except OSError:
        return 0.0
