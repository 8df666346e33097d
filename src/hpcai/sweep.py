"""One command, many runs: `-m`, a pipeline, what depends on a run.   words -> entries -> queue -> ranking

Each member is a run of its own, found by its identity: the same command again starts what is missing or failed, no more.
The sweep's folder holds members.json, results.json, the frozen code, and lives/ as a run has them: one driver at a time.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from hpcai import lease, provenance, runs, standings, submit
from hpcai.config.check import examine, with_faults_of_plan
from hpcai.config.compose import Memory
from hpcai.config.grid import Point, expand
from hpcai.config.jobs import teaches
from hpcai.config.schema import Config
from hpcai.driver import Driver, Options, Work, report
from hpcai.errors import ConfigError, Faults, HpcaiError, PlanError, one_line
from hpcai.plan import make_plan
from hpcai.queue import Entry, Source
from hpcai.rundir import RunDir
from hpcai.runs import Sweep
from hpcai.standings import Outcome
from hpcai.submit import Frozen

GONE_ON = ("stopped", "failed", "lost")  # a run that began and can go on


# --- words -> entries


def plan_members(words: list[str], options: Options) -> list[Entry]:
    """Every member composed, checked and planned, those that gather folds last.

    Raises: Faults with everything that is wrong with any of them.
    """
    faults: list[HpcaiError] = []
    entries: list[Entry] = []
    memory = Memory()
    for point in expand(words, options.config_dir, memory):
        config, found = examine(point.words, options.config_dir, memory)
        if config is not None:
            try:
                entries += _chain(config, point, anew=options.anew)
            except HpcaiError as e:
                found = with_faults_of_plan(found, e.members)
        faults += found
    if not faults:
        faults += [*_apart(entries), *_twins(entries)]
    if faults:
        raise Faults(list({str(fault): fault for fault in faults}.values()))
    gathers = list(_gathers(entries, anew=options.anew))
    pooled = {need for gather in gathers for need in gather.member.needs}
    return [_as_fold(e) if e.plan.run_dir in pooled else e for e in entries] + gathers


def _chain(config: Config, point: Point, *, anew: bool) -> Iterator[Entry]:
    """One member, or those of its pipeline: each job after the first reads the run that the first one leaves."""
    jobs: list[str] = [*config.pipeline] or [config.job]
    needs = tuple(str(run.path) for run in _depends(config))
    first: Entry | None = None
    for job in jobs:
        update: dict[str, Any] = {"job": job, "pipeline": []} | ({"from_run": first.plan.run_dir} if first else {})
        label = f"{job} {point.label}".strip() if len(jobs) > 1 else point.label
        group = f"{job} {point.group}".strip() if len(jobs) > 1 else point.group
        each = config.model_copy(update=update)
        shards: list[Entry] = []
        if job == "predict" and each.predict.parted:
            shards = _shards(each, label, needs, anew=anew)
            yield from shards
            needs = tuple(shard.plan.run_dir for shard in shards)
            each = each.model_copy(update={"predict": each.predict.model_copy(update={"merge": list(needs)})})
        entry = Entry.planned(each, label, group, needs, anew=anew, files=shards[0].files if shards else None)
        yield entry
        first, needs = first or entry, (entry.plan.run_dir,)


def _shards(config: Config, label: str, needs: tuple[str, ...], *, anew: bool) -> list[Entry]:
    """The runs that share one prediction; their data are looked at once."""
    entries: list[Entry] = []
    for number in range(1, config.predict.shards + 1):
        shard = config.model_copy(update={"predict": config.predict.model_copy(update={"shard": number})})
        name = f"{label} {standings.SHARD}{number}/{config.predict.shards}".strip()
        entries.append(Entry.planned(shard, name, name, needs, anew=anew, files=entries[0].files if entries else None))
    return entries


def _depends(config: Config) -> list[RunDir]:
    """The runs that must be completed first.

    Raises: ConfigError for an unknown name.
    """
    names = [config.depends_on] if isinstance(config.depends_on, str) else config.depends_on or []
    return [runs.find(name, Path(config.runs_dir), what="depends_on") for name in names]


def _on_slurm(entries: Sequence[Entry]) -> bool:
    return any(e.plan.executor == "slurm" for e in entries)


def _apart(entries: Sequence[Entry]) -> Iterator[HpcaiError]:
    """Members of a Slurm machine that cannot be sent together."""
    if _on_slurm(entries):
        from hpcai import arrays

        yield from arrays.faults(entries)


def _twins(entries: Sequence[Entry]) -> Iterator[HpcaiError]:
    seen: dict[str, Entry] = {}
    for entry in entries:
        twin = seen.setdefault(entry.plan.run_dir, entry)
        if twin is not entry:
            yield ConfigError(
                f"{entry.member.label or entry.member.job}: is the same run as {twin.member.label or 'another member'} "
                f"({entry.plan.run_id}): they differ in nothing that changes the result. Leave one out."
            )


def _gathers(entries: Sequence[Entry], *, anew: bool) -> Iterator[Entry]:
    """One job=gather for each whole set of folds: members that are alike but for data.split.fold."""
    sets: dict[str, list[Entry]] = {}
    for entry in entries:
        split = entry.config.data.split
        if teaches(entry.plan.job) and split.by == "kfold":
            alike = entry.config.model_dump()
            del alike["data"]["split"]["fold"]
            sets.setdefault(json.dumps(alike, sort_keys=True), []).append(entry)
    for folds in sets.values():
        first = folds[0]
        if sorted(e.config.data.split.fold for e in folds) == list(range(first.config.data.split.folds)):
            names = [e.plan.run_dir for e in folds]
            config = first.config.model_copy(update={"job": "gather", "from_run": names, "depends_on": None})
            label, group = (f"gather {_without_fold(text)}".strip() for text in (first.member.label, first.member.group))
            yield Entry.planned(config, label, group, tuple(names), anew=anew)


def _unpooled(entries: Sequence[Entry]) -> Iterator[str]:
    """Some folds, but not all: no job=gather comes of them."""
    pooled = {need for e in entries if e.plan.job == "gather" for need in e.member.needs}
    splits = [e.config.data.split for e in entries if teaches(e.plan.job) and e.plan.run_dir not in pooled]
    loose = [split for split in splits if split.by == "kfold"]
    if folds := sorted({split.fold for split in loose}) if len(loose) > 1 else []:
        yield (
            f"data.split.fold: {len(folds)} of data.split.folds={loose[0].folds}: what they leave out is not pooled. "
            f"'data.split.fold=range(0,{loose[0].folds})' has all of them."
        )


def _as_fold(entry: Entry) -> Entry:
    """Folds of one cross-validation are no rivals: they stand in one group, as seeds do."""
    return replace(entry, member=replace(entry.member, group=_without_fold(entry.member.group)))


def _without_fold(label: str) -> str:
    return " ".join(word for word in label.split(" ") if not word.startswith("data.split.fold="))


# --- the members as the queue's source


@dataclass
class Members(Work, Source):
    """Members in their order; one that needs runs waits for them, and is cancelled where one of them will not come."""

    sweep: Sweep
    left: list[Entry]
    ends: dict[str, lease.RunState] = field(default_factory=dict)  # by run_dir
    cancelled: dict[str, str] = field(default_factory=dict)  # run_id -> why
    elsewhere: bool = False  # whether the last look found a member that waits for a run of another command

    def next(self) -> Entry | None:
        """The first that is ready; those that can no longer be are cancelled on the way.

        One look is enough: who needs a member stands behind it.
        """
        self.elsewhere = False
        ours = {e.plan.run_dir for e in self.left}
        for entry in list(self.left):
            verdict = self._blocked(entry, ours)
            if verdict == "wait":
                continue
            self.left.remove(entry)
            ours.remove(entry.plan.run_dir)
            if verdict:
                self.cancelled[entry.plan.run_id] = verdict
            elif state := _completed(entry):
                self.ended(entry, state)
            else:
                try:
                    return self._planned_anew(entry) if entry.member.needs else entry
                except HpcaiError as e:
                    self.ended(entry, lease.RunState("failed", 0, e.code, e.lines[0]))
        return None

    def _blocked(self, entry: Entry, ours: set[str]) -> str:
        """Empty if it can start, `wait`, or why it never will. `ours`: members that have not started yet."""
        for need in entry.member.needs:
            name = Path(need).name
            if name in self.cancelled:
                return f"cancelled: needs {name}, which was cancelled."
            if need in ours:
                return "wait"
            state = self.ends.get(need) or runs.state_of(RunDir(Path(need)))
            if state.state in lease.ACTIVE:
                self.elsewhere = True
                return "wait"
            if state.state != "completed":
                word = {"new": "never began", "lost": "was lost", "stopped": "was stopped"}.get(state.state, state.state)
                return f"cancelled: needs {name}, which {word}."
        return ""

    def _planned_anew(self, entry: Entry) -> Entry:
        """With what the runs that it needed have left: labels, image size, the model's digest."""
        then = entry.plan
        plan, config, files = make_plan(entry.config, member=True)
        # The identity is that of the words as they were typed (`shipped:x`, a relative path); --anew's folder is not there yet.
        kept = replace(plan, run_id=then.run_id, run_dir=then.run_dir, identity=then.identity)
        return replace(entry, config=config, plan=kept, files=files)

    def ended(self, entry: Entry, state: lease.RunState) -> None:
        """Noted, for those that need it."""
        self.ends[entry.plan.run_dir] = state

    def prune(self, running: Sequence[Entry]) -> Sequence[Entry]:
        """None."""
        return ()

    def waiting(self) -> bool:
        """For a run of another command."""
        return self.elsewhere

    def open(self) -> Members:
        """Itself: all are known."""
        return self

    def outcomes(self) -> list[Outcome]:
        """What became of each; one that could not even start has no records of its own."""
        told = standings.outcomes(self.sweep.members, self.cancelled)
        for at, outcome in enumerate(told):
            state = self.ends.get(outcome.member.run_dir)
            if state and state.state in ("failed", "unreadable") and outcome.state != state.state:
                told[at] = replace(outcome, state="failed", code=state.code or 5, message=state.message)
        return told


def _completed(entry: Entry) -> lease.RunState | None:
    state = runs.state_of(entry.dir)
    return state if state.state == "completed" else None


# --- one command


def run_grid(words: list[str], options: Options) -> int:
    """`-m`: every member, at once as many as fit; the exit code is the lowest of those that failed.

    Raises: Faults before anything starts; OwnedError if another driver has the sweep.
    """
    entries = plan_members(words, options)
    for entry in entries:
        submit.check_identity(entry.dir, entry.plan)
    now = Frozen(provenance.PACKAGE, {"code_sha256": provenance.code_digest(), "versions": provenance.versions()})
    states = {e.plan.run_id: runs.state_of(e.dir).state for e in entries}
    parts = {p for e in entries if states[e.plan.run_id] != "completed" for p in e.config.predict.merge}  # must still fit
    changed = [
        fault
        for e in entries
        if (states[e.plan.run_id] in GONE_ON or e.plan.run_dir in parts) and e.dir.plan.is_file()
        for fault in submit.differences(e.dir, e.plan, e.files, now)
    ]
    if changed:
        raise Faults(changed)
    sweep = sweep_of(words, entries, options)
    done = sum(state == "completed" for state in states.values())
    print(_describe(sweep, entries, done), flush=True)
    for warning in dict.fromkeys([*(w for e in entries for w in e.plan.warnings), *_unpooled(entries)]):
        print(f"warning: {warning}", file=sys.stderr)
    if options.dry_run:
        for e in entries:
            print(one_line(f"  {e.plan.run_id}  {states[e.plan.run_id]:<9}  {e.member.label or e.member.job}", 200))
    options = replace(options, access=entries[0].config.runs_access)
    if _on_slurm(entries):
        from hpcai import arrays

        return arrays.send(sweep, entries, options)
    if options.dry_run:
        return 0
    if done == len(entries) and (sweep.path / "results.json").is_file():
        return report(sweep, standings.outcomes(sweep.members), options)
    return Driver(Members(sweep, list(entries)), options).run([e.plan.job for e in entries])


def sweep_of(words: list[str], entries: Sequence[Entry], options: Options) -> Sweep:
    """What members.json will say.

    Raises: PlanError if a sweep of other members lies in its place.
    """
    members = [e.member for e in entries]
    names = {e.config.name for e in entries}
    name = names.pop() if len(names) == 1 else "sweep"
    chained = any(e.member.needs and e.plan.job != "gather" for e in entries)
    folder = runs.sweep_folder(Path(entries[0].plan.run_dir).parent, name, [m.run_dir for m in members])
    where = str(options.config_dir.absolute()) if options.config_dir else None
    sweep = Sweep(folder.name, name, folder, words, where, "pipeline" if chained else "sweep", members, cwd=str(Path.cwd()))
    if runs.is_sweep(folder):
        with suppress(PlanError):  # a damaged one is written anew: its members tell themselves what they are
            if {m.run_id for m in runs.read_sweep(folder).members} != {m.run_id for m in members}:
                raise Faults([PlanError(f"sweep={folder.name}: its folder holds other members. Move it away, or --anew.")])
    return sweep


def _describe(sweep: Sweep, entries: Sequence[Entry], done: int) -> str:
    jobs = {job: sum(m.job == job for m in sweep.members) for job in dict.fromkeys(m.job for m in sweep.members)}
    said = ", ".join(f"{n} {job}" for job, n in jobs.items())
    many = f"{len(entries)} runs ({said})" if len(entries) > 1 else f"1 run ({next(iter(jobs))})"
    finished = f", {done} finished" if done else ""
    parts = [f"plan  {sweep.id}", f"{many}{finished}", f"folder: {sweep.path}"]
    return one_line("  ".join(parts), 1000)
