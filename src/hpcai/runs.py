"""Runs and sweeps that exist: found by name, read without trust in their records.   runs_dir -> RunDir, Sweep -> state"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from hpcai import lease, rundir
from hpcai.errors import ConfigError, DataError, PlanError, near, one_line
from hpcai.lease import RunState
from hpcai.rundir import RunDir

SWEEPS = "sweeps"  # the folder below runs_dir that holds sweeps
BLOCK = 64 * 1024  # bytes of one look back into a long file
DAMAGED = (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError)  # what reading garbage raises


@dataclass(frozen=True)
class Member:
    """One run of a sweep. `label`: what varies; `group`: the same without the seed; `needs`: folders of runs that go first."""

    run_id: str
    run_dir: str
    label: str
    group: str
    job: str
    needs: tuple[str, ...] = ()

    @property
    def dir(self) -> RunDir:
        """Its folder."""
        return RunDir(Path(self.run_dir))


@dataclass(frozen=True)
class Sweep:
    """What members.json says: the words that were typed and the runs they mean."""

    id: str
    name: str
    path: Path
    words: list[str]
    config_dir: str | None
    kind: Literal["sweep", "search", "pipeline"]
    members: list[Member]
    options: dict[str, Any] = field(default_factory=dict)
    cwd: str = ""  # where the words were typed: a path in them may be relative

    @property
    def dir(self) -> RunDir:
        """Its folder, whose lives/ say who drives it."""
        return RunDir(self.path)


def read_sweep(folder: Path) -> Sweep:
    """What a sweep's members.json says.

    Raises: PlanError if it is damaged or of another version.
    """
    try:
        value = rundir.read_json(folder / "members.json")
        if value.pop("version") != rundir.VERSION:
            raise PlanError(f"sweep={folder.name}: another hpcai wrote its members.json. Use that one, or --anew.")
        listed = value.pop("members")
        if not all(isinstance(part, list) for part in (listed, *(m["needs"] for m in listed))):
            raise TypeError
        members = [Member(**{**m, "needs": tuple(m["needs"])}) for m in listed]
        sweep = Sweep(path=folder, members=members, **value)
        if not _is_typed(sweep):
            raise TypeError
        return sweep
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as e:
        raise PlanError(f"sweep={folder.name}: its members.json is damaged. Start the same command again.") from e


def _is_typed(sweep: Sweep) -> bool:
    """Whether each value is of its field's type: the file is a user's to edit, and all that follows trusts it."""
    texts = [sweep.id, sweep.name, sweep.cwd, sweep.kind, *sweep.words]
    for m in sweep.members:
        texts += [m.run_id, m.run_dir, m.label, m.group, m.job, *m.needs]
    fits = all(isinstance(text, str) and "\0" not in text for text in texts) and isinstance(sweep.words, list)
    fits = fits and isinstance(sweep.config_dir, str | None) and sweep.kind in ("sweep", "search", "pipeline")
    return fits and isinstance(sweep.options, dict) and isinstance(sweep.options.get("trials", 0), int | None)


def write_sweep(sweep: Sweep) -> None:
    """Writes members.json, whole or not at all."""
    value = asdict(sweep)
    del value["path"]
    rundir.write_json(sweep.path / "members.json", {"version": rundir.VERSION, **value})


def sweep_folder(runs_dir: Path, name: str, identity: object) -> Path:
    """Where a sweep of this identity lies."""
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
    return runs_dir / SWEEPS / f"{name}-{digest[:8]}"


def sweep_folders(runs_dir: Path) -> Iterator[Path]:
    """Every folder of a sweep below `runs_dir`, by name."""
    return (f.parent for f in sorted((runs_dir / SWEEPS).glob("*/members.json")))


def run_folders(runs_dir: Path) -> list[RunDir]:
    """Every prepared run below `runs_dir`, by name. plan.json is written last: a folder without it is no run yet."""
    try:
        with os.scandir(runs_dir) as entries:
            names = sorted(e.name for e in entries if not e.name.startswith("."))
    except (FileNotFoundError, NotADirectoryError):
        return []
    return [RunDir(runs_dir / name) for name in names if is_run(runs_dir / name)]


def is_run(folder: Path) -> bool:
    """Whether it is the folder of a run that was prepared."""
    return is_file(folder / "plan.json")


def is_sweep(folder: Path) -> bool:
    """Whether it is the folder of a sweep."""
    return is_file(folder / "members.json")


def is_file(path: Path) -> bool:
    """Whether it is a file; a path that no file system can hold is none."""
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name too long, or with a null: pathlib's own raises
        return False


def state_of(run: RunDir) -> RunState:
    """The state of a run or of a sweep's driver; damaged records are a state too, `unreadable`, with a message."""
    try:
        state = lease.read_state(run)
        if not all(isinstance(n, int | None) for n in (state.step, state.code)):
            raise TypeError
        return state
    except DAMAGED:
        return RunState("unreadable", message=f"run={one_line(run.path.name, 120)}: its records in lives/ are damaged.")


def read_report(run: RunDir) -> dict[str, Any]:
    """report.json of a run, of the version that this hpcai writes. Its keys: report/schema.json, docs/run-folder.md.

    Raises:
        DataError: it is gone, damaged, or of another version.
    """
    name = f"run={one_line(run.path.name, 120)}"
    try:
        value = rundir.read_json(run.report_json)
        version = value["version"]
        if version == rundir.REPORT_VERSION and not _is_report(value):
            raise TypeError
    except DAMAGED as e:
        raise DataError(f"{name}: its report.json is gone or damaged. Restore it, or run it anew with --anew.") from e
    if version != rundir.REPORT_VERSION:
        told = version if isinstance(version, int) else "another"
        raise DataError(
            f"{name}: its report.json is of version {told}, this hpcai reads {rundir.REPORT_VERSION}. "
            "Read it with the hpcai that wrote it, or run it anew with --anew."
        )
    report: dict[str, Any] = value
    return report


def _is_report(value: dict[str, Any]) -> bool:
    """Whether what most readers need is there; report/schema.json has all of it."""
    estimates, threshold = value["estimates"], value["threshold"] or {"value": None, "rule": "", "split": ""}
    numbers = [threshold["value"], *(e[k] for e in estimates for k in ("value", "low", "high"))]
    texts = [value["answer"], threshold["rule"], threshold["split"], *value["warnings"]]
    texts += [e[k] for e in estimates for k in ("name", "split")]
    fits = all(isinstance(value[k], list) for k in ("estimates", "warnings")) and all(isinstance(t, str) for t in texts)
    return fits and all(x is None or type(x) in (int, float) for x in numbers) and all(type(e["n"]) is int for e in estimates)


@dataclass(frozen=True)
class Score:
    """A validation score with its interval, its n, and the epoch (from 1) that it judged."""

    name: str
    value: float
    low: float | None
    high: float | None
    n: int | None
    epoch: int | None


def best_validation(run: RunDir) -> Score | None:
    """The score of the best checkpoint so far: the newest validation marked best; None without one. Never raises."""
    try:
        for line in lines_from_end(run.metrics):
            if b'"best"' in line and (score := _score(line)):
                return score
    except OSError:
        pass
    return None


def _score(line: bytes) -> Score | None:
    try:
        fact = json.loads(line)
        if fact["kind"] != "val" or fact["best"] is not True:
            return None
        name = "auc" if fact.get("auc") is not None else "loss"  # of one class alone there is no AUC
        value = float(fact[name])
        low, high, n = (fact.get(k) if name == "auc" else None for k in ("low", "high", "n"))
        return Score(name, value, low, high, n, fact.get("epoch")) if math.isfinite(value) else None
    except DAMAGED:
        return None


def lines_from_end(path: Path) -> Iterator[bytes]:
    """The whole lines of a file, last one first, read block by block; a last line that a kill has torn is left out.

    Raises: OSError if it cannot be read; an absent file has no lines.
    """
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return
    with file as f:
        at, rest, whole = f.seek(0, os.SEEK_END), b"", False
        while at:
            size = min(BLOCK, at)
            at -= size
            f.seek(at)
            first, *lines = (f.read(size) + rest).split(b"\n")
            for line in reversed(lines):
                if whole:
                    yield line
                whole = True  # what stands behind the last newline is torn, or nothing
            rest = first
            if len(rest) > 16 * BLOCK:  # no line of ours: what stands here is something else
                return
        if whole and rest:
            yield rest


def find(name: str, runs_dir: Path, *, what: str = "run") -> RunDir:
    """The run or sweep that `name` means: a folder, a whole id below `runs_dir`, or an unambiguous beginning of one.

    Raises: ConfigError for a name that means none (with the nearest) or several (with up to five).
    """
    shown = f"{what}={one_line(name, 120)}"
    if not name or "\0" in name:
        raise ConfigError(f"{shown}: names nothing. Give the name of a run or a sweep.")
    folders = {folder.name: folder for folder in sweep_folders(runs_dir)}
    folders |= {run.path.name: run.path for run in run_folders(runs_dir)}
    if name in folders:
        return RunDir(folders[name].absolute())
    if "/" in name or _is_folder(Path(name)):
        folder = Path(os.path.normpath(Path(name).absolute()))
        if is_run(folder) or is_sweep(folder):
            return RunDir(folder)
        if "/" in name:
            raise ConfigError(f"{shown}: is no folder of a run or a sweep. Give its name, or the path of its folder.")
    begun = sorted(known for known in folders if known.startswith(name))
    if len(begun) > 1:
        more = f" and {len(begun) - 5} more" if len(begun) > 5 else ""
        raise ConfigError(f"{shown}: {', '.join(begun[:5])}{more} begin so. Write more of it.")
    if not begun:
        where = one_line(str(runs_dir), 80)
        raise ConfigError(f"{shown}: no such run or sweep in {where}. {_nearest(name, list(folders))}")
    return RunDir(folders[begun[0]].absolute())


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False


def _nearest(name: str, known: list[str]) -> str:
    """The nearest name; where none is near, all of a few: there may be hundreds."""
    text = near(name[:200], known)
    return text if text.startswith("Did") or len(known) <= 5 else "hpcai status lists them."
