"""What the page says of each run.   status rows + report.json, config.yaml, metrics.jsonl -> [Entry]; sweeps -> [Group]

Trusts no file: what is damaged, or of another version, is left out of its entry and told in its note. Never raises.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hpcai import status
from hpcai.errors import one_line
from hpcai.index import keys
from hpcai.rundir import RunDir
from hpcai.runs import DAMAGED, Sweep

REPORTS = (1, 2)  # versions of report.json whose estimates and cost are read
CONFIG_BYTES = 2 * 2**20
FILE_BYTES = 64 * 2**20  # of a report.json or metrics.jsonl; a longer one is none of ours
POINTS = 60  # of a curve at most
ALIAS = re.compile(rb"[-:,\[{?]\s*\*\w")  # of YAML, by which a few lines become millions: we write none
Json = dict[str, Any]
Curve = list[list[float]]  # [step, value] pairs


@dataclass(frozen=True)
class Score:
    """A number with its interval (None where unknown) and n."""

    name: str
    split: str
    value: float
    low: float | None
    high: float | None
    n: int | None


@dataclass
class Entry:
    """One run. `keys`: its config, flat; `curves`: `auc`, `val_loss`, `train_loss`; `node_h` and `price` of Slurm alone."""

    run: RunDir
    name: str
    experiment: str
    job: str
    state: str
    progress: str
    note: str
    told: float | None
    best: Score | None = None
    score: Score | None = None
    keys: dict[str, keys.Value] = field(default_factory=dict)
    curves: dict[str, Curve] = field(default_factory=dict)
    wall_s: float | None = None
    node_h: float | None = None
    price: str = ""
    warnings: int = 0
    has_page: bool = False
    sweeps: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Group:
    """A sweep: `places` of those of its members that are there, among the entries; `gone`: how many are not."""

    name: str
    kind: str
    state: str
    note: str
    places: list[int]
    gone: int


def read_all(runs_dir: Path) -> tuple[list[Entry], list[Group]]:
    """Every run and sweep below `runs_dir`, by name."""
    rows, sweeps = status.look(runs_dir)
    entries = [read_entry(row) for row in rows]
    place = {row.run.path.name: k for k, row in enumerate(rows)}
    groups = [_group(row, place) for row in sweeps]
    for group in groups:
        for k in group.places:
            entries[k].sweeps.append(group.name)
    return entries, groups


def read_entry(row: status.Row) -> Entry:
    """What the page says of one run."""
    told = row.told if isinstance(row.told, int | float) and math.isfinite(row.told) else None
    entry = Entry(
        run=row.run,
        name=row.name,
        experiment=row.name.rpartition("-")[0] or row.name,
        job=row.job,
        state=row.state.state,
        progress=row.progress,
        note=status.note(row.name, row.state),
        told=told,
        keys=keys.flat(_config(row.run)),
        curves=read_curves(row.run),
        has_page=row.run.report_html.is_file(),
    )
    if row.best:
        entry.best = _score({"split": "val", **vars(row.best)})
    if row.run.report_json.exists():
        _add_report(entry)
    return entry


def _add_report(entry: Entry) -> None:
    """Takes in the first estimate, the cost and the number of warnings; what cannot be read is told in the note."""
    try:
        report = json.loads(_bytes(entry.run.report_json, FILE_BYTES))
        version = report.get("version")
        if not (type(version) is int and version in REPORTS):
            entry.note = _and(entry.note, f"report of version {one_line(str(version), 20)}: not read.")
            return
        estimates = report["estimates"]
        entry.score = _score(estimates[0]) if estimates else None
        entry.warnings = len(report.get("warnings") or [])
        _add_cost(entry, report.get("cost") or {})
    except DAMAGED:
        entry.score, entry.note = None, _and(entry.note, "its report.json is damaged.")


def _add_cost(entry: Entry, cost: Json) -> None:
    """Wall time; on Slurm node-hours of it, a shared node parted, and the plan's price in its own words (at most)."""
    entry.wall_s = _number(cost.get("wall_s"))
    slurm = cost.get("slurm") or {}
    nodes, beside = _number(slurm.get("nodes")), _number(slurm.get("shared_by", 1))
    if entry.wall_s is not None and nodes and beside:
        entry.node_h = nodes * entry.wall_s / 3600 / beside
    words = (slurm.get("price") or {}).get("words")
    entry.price = one_line(words, 120) if isinstance(words, str) else ""


def _score(value: Json) -> Score | None:
    number, n = _number(value["value"]), value.get("n")
    if number is None:
        return None
    low, high = _number(value.get("low")), _number(value.get("high"))
    whole = n if type(n) is int else None
    return Score(one_line(str(value["name"]), 40), one_line(str(value["split"]), 20), number, low, high, whole)


def _number(value: object) -> float | None:
    try:
        if isinstance(value, bool) or not isinstance(value, int | float):
            return None
        return float(value) if math.isfinite(value) else None
    except OverflowError:
        return None


def _and(note: str, more: str) -> str:
    return f"{note} {more}".strip()


# ---- a run's files


def _bytes(path: Path, most: int) -> bytes:
    """A file's bytes. Raises: OSError, ValueError if it is longer than `most` (a pipe has no length, and is not waited for)."""
    if not path.is_file():
        raise FileNotFoundError
    with path.open("rb") as f:
        data = f.read(most + 1)
    if len(data) > most:
        raise ValueError
    return data


def _config(run: RunDir) -> Json:
    """What config.yaml holds; nothing if it is gone or damaged."""
    import yaml

    try:
        data = _bytes(run.config, CONFIG_BYTES)
        value = None if ALIAS.search(data) else yaml.load(data, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except (*DAMAGED, yaml.YAMLError):
        return {}
    return value if isinstance(value, dict) else {}


def read_curves(run: RunDir) -> dict[str, Curve]:
    """The validation AUC and loss and the training loss against the step, at most POINTS points each; those that there are."""
    try:
        lines = _bytes(run.metrics, FILE_BYTES).split(b"\n")[:-1]  # what stands behind the last newline is torn
    except DAMAGED:
        return {}
    val, train = [line for line in lines if b'"val"' in line], [line for line in lines if b'"train"' in line]
    wanted = {"auc": (val, "val", "auc"), "val_loss": (val, "val", "loss"), "train_loss": (train, "train", "loss")}
    found = {name: curve(thinned(some), kind, key) for name, (some, kind, key) in wanted.items()}
    return {name: points for name, points in found.items() if points}


def thinned(lines: Sequence[bytes]) -> Iterable[bytes]:
    """At most POINTS of them, evenly spaced, the first and the last among them."""
    if len(lines) <= POINTS:
        return lines
    return [lines[round(i * (len(lines) - 1) / (POINTS - 1))] for i in range(POINTS)]


def curve(lines: Iterable[bytes], kind: str, key: str) -> Curve:
    """[step, value] of the lines of a kind that have one; a damaged line is left out."""
    points = []
    for line in lines:
        try:
            fact = json.loads(line)
            step, value = _number(fact["step"]), _number(fact[key])
            if fact["kind"] == kind and step is not None and value is not None:
                points.append([step, float(f"{value:.5g}")])
        except DAMAGED:
            continue
    return sorted(points)


# ---- sweeps


def _group(row: status.SweepRow, place: dict[str, int]) -> Group:
    sweep: Sweep = row.sweep
    names = list(dict.fromkeys(m.run_id for m in sweep.members))
    places = [place[name] for name in names if name in place]
    name = one_line(sweep.path.name, 120)
    note = one_line(status.note(name, row.state), 300)
    return Group(name, sweep.kind, row.state.state, note, places, len(names) - len(places))
