"""`hpcai rm NAME ...`: a run's or a sweep's folder, gone at once to others and then deleted.

    take its lease -> rename it to .NAME.removed-... -> delete that

Whoever starts the run at this moment finds it owned, or gone. What a kill leaves half deleted is hidden; `rm NAME` ends it.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from hpcai import lease, rundir, runs
from hpcai.arguments import Words
from hpcai.errors import ConfigError, Faults, HpcaiError, OwnedError, PlanError, one_line
from hpcai.rundir import RunDir
from hpcai.runs import DAMAGED
from hpcai.status import members_of
from hpcai.verbs import busy, shown

HELP = """\
Deletes the folders of runs and sweeps, with their checkpoints and reports. Asks first. Of a sweep the folder alone: its members
are runs of their own."""


def main(argv: list[str]) -> int:
    """`hpcai rm NAME ... [--yes] [--members]`; returns the exit code.

    Raises: ConfigError for an unknown name, or without --yes where nobody can be asked; OwnedError for a run that runs.
    """
    words = Words("rm", "NAME ...", HELP)
    words.add_argument("--yes", "-y", action="store_true", help="do not ask")
    words.add_argument("--members", action="store_true", help="of a sweep delete the members too")
    options = words.read(argv, least=1)
    if options is None:
        return 0
    targets, remains = _named(options.names, options.runs_dir, members=options.members)
    if faults := [fault for target in targets if (fault := refusal(target))]:
        raise faults[0] if len(faults) == 1 else Faults(faults)
    for line in _dependents(targets):
        print(f"note: {line}", file=sys.stderr)
    if targets and not options.yes and not _agreed(targets):
        print("nothing removed")
        return 0
    faults = list(_remove_all(targets, remains, quiet=options.json))
    if options.json:
        gone = [{"name": t.path.name, "path": str(t.path), "removed": not t.path.exists()} for t in targets]
        print(json.dumps(gone, indent=1))
    if faults:
        raise faults[0] if len(faults) == 1 else Faults(faults)
    return 0


def _named(names: Sequence[str], runs_dir: Path, *, members: bool) -> tuple[list[RunDir], list[Path]]:
    """What is to go, a sweep's members before it, and what earlier removals left of names that mean nothing else.

    Raises: ConfigError, Faults.
    """
    targets: dict[Path, RunDir] = {}
    remains: list[Path] = []
    faults: list[HpcaiError] = []
    for name in names:
        try:
            target = runs.find(name, runs_dir)
        except ConfigError as e:
            left = leftovers(runs_dir.absolute(), name)
            remains += left
            faults += [] if left else [e]
            continue
        mine = [m for m in members_of(target.path) if m.path.is_dir()] if members else []
        targets |= {run.path: run for run in (*mine, target)}
    if faults:
        raise faults[0] if len(faults) == 1 else Faults(faults)
    return list(targets.values()), remains


def refusal(target: RunDir) -> HpcaiError | None:
    """Why it must not go, if so."""
    name = one_line(target.path.name, 120)
    if target.path.is_symlink():
        return ConfigError(f"{shown(target)}: is a link. Remove the link by rm, or name the folder that it leads to.")
    if not os.access(_home(target), os.W_OK | os.X_OK):
        return PlanError(f"{shown(target)}: its parent folder may not be written. Ask for the right.")
    if busy(target):
        owner = runs.state_of(target).owner or "a member"
        return OwnedError(f"{shown(target)}: {one_line(owner, 120)} runs. Stop it first: hpcai cancel {name}.")
    if runs.state_of(target).state == "unreadable" and _beats(target):
        return OwnedError(f"{shown(target)}: its records are damaged, but its process was there just now. Stop it first.")
    return None


def _beats(run: RunDir) -> bool:
    """Whether rank 0 of any life has said `still here` of late."""
    for beat in run.lives.glob("*/beat"):
        with contextlib.suppress(OSError):
            if time.time() - beat.stat().st_mtime < lease.SILENT_S:
                return True
    return False


def _dependents(targets: Sequence[RunDir]) -> Iterator[str]:
    """Unfinished runs that read a run which is to go."""
    going = {str(target.path): one_line(target.path.name, 120) for target in targets}
    by_name = {target.path.name: target for target in targets}
    needs: dict[tuple[str, str], None] = {}  # (who needs, what), each once
    for home in {_home(target) for target in targets}:
        for run in runs.run_folders(home):
            for source in _sources(run):
                if source in by_name and by_name[source].path.parent == run.path.parent:
                    needs[str(run.path), str(by_name[source].path)] = None
        for folder in runs.sweep_folders(home):
            with contextlib.suppress(HpcaiError, *DAMAGED):
                pairs = [(m.run_dir, need) for m in runs.read_sweep(folder).members for need in m.needs]
                needs |= {(who, need): None for who, need in pairs if need in going}
    for who, need in needs:
        if who not in going and runs.state_of(RunDir(Path(who))).state != "completed":
            yield f"{one_line(Path(who).name, 120)} is not finished and needs {going[need]}."


def _sources(run: RunDir) -> list[str]:
    """The run_ids that a run reads, off its plan.json; none if that is damaged."""
    try:
        given = rundir.read_json(run.plan)["from_run"] or []
        return [str(source["run_id"]) for source in (given if isinstance(given, list) else [given])]
    except DAMAGED:
        return []


def _agreed(targets: Sequence[RunDir]) -> bool:
    """Asks the person at the terminal; anything but y is no.

    Raises: ConfigError where there is no terminal.
    """
    if sys.stdin is None or not sys.stdin.isatty():
        raise ConfigError("hpcai rm: deletes without asking only with --yes. Add it.")
    for target in targets:
        print(f"{shown(target)}: {runs.state_of(target).state}")
    try:
        return input(f"Delete {'it' if len(targets) == 1 else f'these {len(targets)}'}? [y/N] ").strip().lower() in ("y", "yes")
    except EOFError:
        print()
        return False


def _remove_all(targets: Sequence[RunDir], remains: Sequence[Path], *, quiet: bool) -> Iterator[HpcaiError]:
    """Removes one after the other; yields what failed, and goes on."""
    for target in targets:
        try:
            remove(target)
        except HpcaiError as e:
            yield e
        except OSError as e:
            yield PlanError(f"{shown(target)}: cannot be removed ({e.strerror}). Mend the folder's rights, then rm it again.")
        else:
            if not quiet:
                print(f"removed {one_line(target.path.name, 120)}", flush=True)
    for folder in remains:
        try:
            delete(folder)
        except HpcaiError as e:
            yield e
        else:
            if not quiet:
                print(f"removed the rest of {one_line(_removed_name(folder), 120)}", flush=True)


def remove(target: RunDir) -> None:
    """Takes the folder from everybody's sight, then deletes it; links in it are removed, not followed.

    Raises: OwnedError if somebody has started it meanwhile, PlanError if a part cannot be deleted, OSError.
    """
    life = _hold(target)
    home, name = _home(target), target.path.name
    try:
        target.path.rename(home / f".{name}.removed-{os.getpid()}-{time.monotonic_ns()}")
    except OSError:
        if life is not None:  # ours, and nothing stands in it: the run is what it was
            shutil.rmtree(lease.life_dir(target, life), ignore_errors=True)
        raise
    for folder in leftovers(home, name):
        delete(folder)


def _hold(target: RunDir) -> int | None:
    """Takes the lease; None where records are damaged or the disk is full: then nobody else can take it either."""
    try:
        return lease.take(target, 1)
    except OSError as e:
        if e.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
    except DAMAGED:
        pass
    return None


def _home(target: RunDir) -> Path:
    """runs_dir: a removed sweep leaves the folder of sweeps too."""
    parent = target.path.parent
    return parent.parent if parent.name == runs.SWEEPS and runs.is_sweep(target.path) else parent


def leftovers(home: Path, name: str) -> list[Path]:
    """What removals of `name` have left below `home`."""
    try:
        return [f for f in home.iterdir() if f.name.startswith(f".{name}.removed-")]
    except OSError:
        return []


def _removed_name(folder: Path) -> str:
    return folder.name[1:].rpartition(".removed-")[0]


def delete(folder: Path) -> None:
    """Deletes a folder that was taken aside.

    Raises: PlanError if a part of it stays.
    """
    shutil.rmtree(folder, ignore_errors=True)
    if folder.exists():
        name, rest = one_line(_removed_name(folder), 120), one_line(str(folder), 200)
        raise PlanError(f"run={name}: a part of it cannot be deleted: {rest}. Mend its rights, then hpcai rm {name} again.")
