"""`hpcai status`: what became of every run and sweep, a line each.   runs_dir -> [Row] -> table or JSON

Reads the ends of files alone and trusts none: a damaged folder is a row that says so. Light: 500 runs in under a second.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from hpcai import queued, rundir, runs
from hpcai.arguments import Words
from hpcai.errors import ConfigError, Faults, HpcaiError, one_line
from hpcai.lease import RunState
from hpcai.rundir import RunDir
from hpcai.runs import DAMAGED, Score, Sweep

HELP = """\
Shows every run and sweep below DIR, or those that are named (a sweep with its members): its state, read from its own records,
how far it is, its best score on validation, and how long ago it last said a word. A name may be cut short, or be a folder.

states: pending, running, completed, stopped (by a signal, with a checkpoint), failed, lost (its process vanished without a
word), new (prepared, never started), unreadable (its records are damaged)."""
GOES_ON = " The same command goes on."
COUNTED = ("completed", "running", "stopped", "failed", "waiting")  # what a sweep's row counts
AS = {"pending": "running", "new": "waiting", "lost": "failed", "unreadable": "failed"}  # under which word; else its own
NOTES = 5  # notes told in full below a table that was cut


@dataclass(frozen=True)
class Row:
    """What is known of a run. `step` and `epoch` are the last ones on record; `steps`, `epochs`: what its config asks for.

    `shard`: `3/8`, of a prediction that several runs share.
    """

    run: RunDir
    job: str
    state: RunState
    step: int | None = None
    steps: int | None = None
    epoch: int | None = None
    epochs: int | None = None
    best: Score | None = None
    told: float | None = None
    shard: str = ""

    @property
    def name(self) -> str:
        """On one line, whatever the folder is called."""
        return one_line(self.run.path.name, 120)

    @property
    def progress(self) -> str:
        """`step 30/100`, `epoch 3/10`, `624 cases`, `shard 3/8, 78 cases`."""
        if self.job != "train":
            cases = f"{self.step} cases" if self.step is not None else ""
            return ", ".join(word for word in (f"shard {self.shard}" if self.shard else "", cases) if word)
        if self.epoch is not None and self.steps is None:
            return f"epoch {self.epoch}" + (f"/{self.epochs}" if self.epochs else "")
        if self.step is None:
            return ""
        return f"step {self.step}" + (f"/{self.steps}" if self.steps else "")

    def to_json(self) -> dict[str, Any]:
        """Every fact, for programs."""
        facts = {"kind": "run", "name": self.run.path.name, "path": str(self.run.path), "job": self.job, **asdict(self.state)}
        facts |= {"note": note(self.name, self.state), "step": self.step, "steps": self.steps, "epoch": self.epoch}
        facts |= {"epochs": self.epochs, "best": asdict(self.best) if self.best else None, "told": self.told}
        return facts


@dataclass(frozen=True)
class SweepRow:
    """What is known of a sweep: its driver's state and how many members are how far."""

    sweep: Sweep
    state: RunState
    members: dict[str, int]

    def to_json(self) -> dict[str, Any]:
        """Every fact, for programs."""
        name = self.sweep.path.name
        facts = {"kind": "sweep", "name": name, "path": str(self.sweep.path), "job": self.sweep.kind, **asdict(self.state)}
        return facts | {"note": note(one_line(name, 120), self.state), "members": self.members}


def note(name: str, state: RunState) -> str:
    """What a person should know or do about a state."""
    match state.state:
        case "new":
            return f"not started. hpcai resume {name} starts it."
        case "pending" | "running":
            return one_line(": ".join(word for word in (state.owner, state.message) if word), 300)
        case "unreadable":
            return f"{one_line(state.message, 200)} Restore the file, or hpcai rm {name}."
        case "lost" | "stopped" if f"hpcai resume {name} " not in state.message:
            return f"{one_line(state.message, 400).removesuffix(GOES_ON)} hpcai resume {name} goes on."
        case _:
            return one_line(state.message, 400)


def read_row(run: RunDir, state: RunState | None = None) -> Row | None:
    """What is known of a run; None if its folder was removed meanwhile. `state`: where the scheduler was asked already."""
    state = state or queued.state_of(run)
    try:
        job = rundir.read_json(run.plan)["job"]
        if not (isinstance(job, str) and job.isidentifier()):
            raise TypeError
    except DAMAGED:
        if not runs.is_run(run.path):
            return None
        message = f"run={one_line(run.path.name, 120)}: its plan.json is damaged."
        return Row(run, "?", state if state.state == "unreadable" else RunState("unreadable", state.life, message=message))
    newest = _newest_metrics(run)
    steps, epochs = _asked(run) if job == "train" else (None, None)
    told = max((t for t in (state.told, newest.get("time")) if isinstance(t, int | float)), default=None)
    best, shard = runs.best_validation(run), _shard(run) if job == "predict" else ""
    row = Row(run, job, state, state.step, steps, epochs=epochs, best=best, told=told, shard=shard)
    if isinstance(newest.get("step"), int) and isinstance(newest.get("epoch"), int):
        row = replace(row, step=newest["step"], epoch=newest["epoch"])
    return row


def _newest_metrics(run: RunDir) -> dict[str, Any]:
    """The last line of metrics.jsonl; nothing if there is none, or it is damaged."""
    try:
        value = json.loads(next(runs.lines_from_end(run.metrics), b"{}"))
        return value if isinstance(value, dict) else {}
    except DAMAGED:
        return {}


def _asked(run: RunDir) -> tuple[int | None, int | None]:
    """trainer.max_steps and trainer.epochs."""
    found = _numbers(run, "trainer")
    return found.get("max_steps"), found.get("epochs")


def _shard(run: RunDir) -> str:
    """`3/8`, or nothing."""
    found = _numbers(run, "predict")
    return f"{found['shard']}/{found['shards']}" if found.get("shards", 1) > 1 and "shard" in found else ""


def _numbers(run: RunDir, group: str) -> dict[str, int]:
    """The whole numbers of a group of its config, off the text that submit wrote: a YAML parser takes longer than the rest."""
    try:
        text = run.config.read_text("utf-8")
    except (OSError, ValueError):
        return {}
    found = re.search(rf"^{group}:\n((?:  .*\n)*)", text, re.MULTILINE)
    return {name: int(n) for name, n in re.findall(r"^  (\w+): (\d{1,9})$", found[1] if found else "", re.MULTILINE)}


def read_sweep_row(folder: Path, known: dict[str, RunState]) -> SweepRow:
    """What is known of a sweep. `known`: states of runs that were read already, by folder."""
    state = known.get(str(folder)) or runs.state_of(RunDir(folder))
    try:
        sweep = runs.read_sweep(folder)
    except (HpcaiError, *DAMAGED) as e:
        text = str(e) if isinstance(e, HpcaiError) else f"sweep={folder.name}: its members.json cannot be read."
        return SweepRow(Sweep(folder.name, "", folder, [], None, "sweep", []), RunState("unreadable", message=text), {})
    states = (known.get(m.run_dir) or runs.state_of(m.dir) for m in sweep.members)
    counts = Counter("waiting" if not s.claimed and s.state == "pending" else AS.get(s.state, s.state) for s in states)
    total = max(len(sweep.members), sweep.options.get("trials") or 0)  # of a search some are not known yet
    return SweepRow(sweep, state, {word: counts[word] for word in COUNTED} | {"total": total})


def main(argv: list[str]) -> int:
    """`hpcai status [NAME ...]`; returns the exit code.

    Raises: ConfigError for an unknown option or name.
    """
    options = Words("status", "[NAME ...]", HELP).read(argv)
    if options is None:
        return 0
    targets = found(options.names, options.runs_dir) if options.names else None
    rows, sweeps = look(options.runs_dir, targets)
    if options.json:
        print(json.dumps([row.to_json() for row in rows] + [row.to_json() for row in sweeps], indent=1))
    elif rows or sweeps:
        show(rows, sweeps)
    else:
        print(f"no runs in {one_line(str(options.runs_dir), 120)}. --runs-dir DIR names another folder.")
    return 0


def found(names: Iterable[str], runs_dir: Path) -> list[RunDir]:
    """The runs and sweeps that names mean, each once, in order.

    Raises: ConfigError for an unknown name, Faults for several.
    """
    targets: dict[Path, RunDir] = {}
    faults: list[HpcaiError] = []
    for name in names:
        try:
            target = runs.find(name, runs_dir)
            targets.setdefault(target.path, target)
        except ConfigError as e:
            faults.append(e)
    if faults:
        raise faults[0] if len(faults) == 1 else Faults(faults)
    return list(targets.values())


def look(runs_dir: Path, targets: Sequence[RunDir] | None = None) -> tuple[list[Row], list[SweepRow]]:
    """The rows of all runs and sweeps, or of the named ones; a named sweep brings its members."""
    if targets is None:
        folders, sweeps = runs.run_folders(runs_dir.absolute()), list(runs.sweep_folders(runs_dir.absolute()))
    else:
        sweeps = [t.path for t in targets if runs.is_sweep(t.path)]
        members = [m for folder in sweeps for m in members_of(folder)]
        chosen = {run.path: run for run in (*(t for t in targets if t.path not in sweeps), *members)}
        folders = [run for run in chosen.values() if runs.is_run(run.path)]
    states = queued.states([*folders, *map(RunDir, sweeps)])
    rows = [row for run in folders if (row := read_row(run, states[run.path]))]
    known = {str(path): state for path, state in states.items()}
    return rows, [read_sweep_row(folder, known) for folder in sweeps]


def members_of(folder: Path) -> list[RunDir]:
    """The folders of a sweep's members; none if its members.json is damaged."""
    try:
        return [member.dir for member in runs.read_sweep(folder).members]
    except (HpcaiError, *DAMAGED):
        return []


def show(rows: Sequence[Row], sweeps: Sequence[SweepRow], now: float | None = None) -> None:
    """The tables, cut to the terminal's width; notes of lost runs that were cut follow in full."""
    now = time.time() if now is None else now
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    cut: list[str] = []
    labels = {
        m.run_dir: m.label for s in sweeps for m in s.sweep.members if m.label != m.job
    }  # what a member that has ended well is of its sweep
    table: list[tuple[str, ...]] = [("RUN", "JOB", "STATE", "PROGRESS", "BEST", "AGE", "NOTE")]
    for row in rows:
        best = f"{row.best.name} {row.best.value:.4f}" if row.best else ""
        told = age(now - row.told) if row.told else ""
        said = note(row.name, row.state) or one_line(labels.get(str(row.run.path), ""), 80)
        table.append((row.name, row.job, row.state.state, row.progress, best, told, said))
    if rows:
        cut += print_table(table, width)
    table = [("SWEEP", "STATE", "MEMBERS", "AGE", "NOTE")]
    for s in sweeps:
        name, told = one_line(s.sweep.path.name, 120), age(now - s.state.told) if s.state.told else ""
        counts = ", ".join(f"{s.members[w]} {w}" for w in COUNTED if s.members.get(w)) or "none"
        members = f"{counts} of {s.members.get('total', '?')}"
        table.append((name, s.state.state, members, told, note(name, s.state)))
    if sweeps:
        cut += print_table(table, width, gap=bool(rows))
    for line in cut[:NOTES]:
        print(line)
    if len(cut) > NOTES:
        print(f"and {len(cut) - NOTES} more. hpcai status --json tells all.")


def print_table(table: Sequence[tuple[str, ...]], width: int | None, *, gap: bool = False) -> list[str]:
    """Prints aligned columns, cut to `width`; returns the notes of lost and unreadable lines that were cut."""
    widths = [max(len(line[i]) for line in table) for i in range(len(table[0]) - 1)]
    cut = []
    if gap:
        print()
    for line in table:
        text = "  ".join([*(word.ljust(w) for word, w in zip(line, widths)), line[-1]]).rstrip()
        if width is not None and len(text) > width:
            text = text[:width]
            if {"lost", "unreadable"} & set(line[1:3]):
                cut.append(f"{line[0]}: {line[-1]}")
        print(text)
    return cut


def age(seconds: float) -> str:
    """`40 s`, `2 min`, `3 h`, `5 d`."""
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(0.0, seconds):.0f} s"
