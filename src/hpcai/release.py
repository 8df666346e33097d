"""`hpcai release RUN --by NAME`: who released which decisions, and when.   sealed records -> a line of RUN/releases.jsonl

A decision is `proposed` until a person releases it. Each line holds the digest of all that stood in the file before it, and the
seal of what was released, so that a line that is taken out or rewritten shows. A newborn whose plate is not valid is never
released, a shadow run never, and nothing twice but with a reason. Standard library only.
"""

from __future__ import annotations

import contextlib
import fcntl
import getpass
import hashlib
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hpcai import rundir, runs, seal
from hpcai.arguments import Words
from hpcai.errors import ConfigError, DataError, Faults, HpcaiError, PlanError, RunError, near, one_line
from hpcai.rundir import RunDir
from hpcai.runs import DAMAGED

HELP = """\
Records that NAME releases the decisions of a finished screening run: a line of RUN/releases.jsonl, with the run's seal. Asks
first, after it has told what will be released. --only releases some decisions (refer,reflex) and leaves the others proposed.

Newborns on a plate whose controls failed are never released, nor is anything of a run in shadow mode. What was released before
is released again only with --again and the reason: an error that was found, a doctor who was not reached."""
DECISIONS = ("refer", "reflex", "repeat", "clear", "not_assessable")  # as records name them, the most urgent first
Json = dict[str, Any]


def main(argv: list[str]) -> int:
    """`hpcai release RUN --by NAME [--only refer,...] [--again REASON] [--yes]`; returns the exit code.

    Raises:
        ConfigError: a word is wrong, or nobody can be asked.
        PlanError: the run is none that can be released, or was released before.
        DataError: a record was changed after the seal.
    """
    words = Words("release", "RUN --by NAME", HELP)
    words.add_argument("--by", metavar="NAME", help="who takes responsibility; required")
    words.add_argument("--only", metavar="WORDS", help=f"decisions to release, of {','.join(DECISIONS)} (all)")
    words.add_argument("--again", metavar="REASON", help="release what was released before, and why")
    words.add_argument("--yes", "-y", action="store_true", help="do not ask")
    options = words.read(argv, least=1, most=1)
    if options is None:
        return 0
    only = _checked(options.by, options.only, options.again)
    run = runs.find(options.names[0], options.runs_dir)
    screening = check(run)
    counts, withheld = _counted(run, only)
    _announce(run, screening, counts, withheld, quiet=options.json)
    if not options.yes and not _agreed(options.by):
        print("nothing released")
        return 0
    entry = {
        "by": options.by,
        "decisions": only,
        "newborns": dict(counts),
        "withheld": withheld,
        "simulated": screening["simulated"],
        "again": options.again,
    }
    told = append(run, entry)
    print(json.dumps(told, indent=1, ensure_ascii=False) if options.json else _sentence(told))
    return 0


def read_records(run: RunDir) -> Iterator[Json]:
    """Every record of a run, block after block.

    Raises: RunError for a damaged file.
    """
    for file in sorted(run.records.glob("*.jsonl")):
        try:
            yield from rundir.read_lines(file)
        except ValueError:
            raise RunError(f"records/{file.name}: is damaged. hpcai verify names what was changed.") from None


def releases(run: RunDir) -> list[Json]:
    """What was released, first to last; a line that a kill tore is left out.

    Raises: RunError if the file is damaged, or a line was changed or taken out.
    """
    found, before = [], hashlib.sha256()
    try:
        lines = run.releases.read_bytes().splitlines(keepends=True)
    except FileNotFoundError:
        return []
    for line in lines:
        if not line.endswith(b"\n"):
            break
        with contextlib.suppress(*DAMAGED):
            entry = json.loads(line)
            if entry["before"] == before.hexdigest() and isinstance(entry["decisions"], list):
                found.append(entry)
                before.update(line)
                continue
        raise RunError(f"releases.jsonl: line {len(found) + 1} is damaged or was changed. Restore the file from a copy.")
    return found


def check(run: RunDir) -> Json:
    """screening.json of a run whose decisions may be released, with its records as they were sealed.

    Raises: PlanError, DataError.
    """
    name = f"run={one_line(run.path.name, 120)}"
    state = runs.state_of(run).state
    if state != "completed":
        raise PlanError(f"{name}: it is {state}, so its decisions are not all there. Wait for it, or hpcai resume it.")
    files = {f"records/{file.name}": file for file in run.records.glob("*.jsonl")}
    try:
        screening = rundir.read_json(run.screening)
        sealed = {key: value for key, value in rundir.read_json(run.manifest)["files"].items() if key.startswith("records/")}
        shadow = screening["mode"] == "shadow"
    except DAMAGED as e:
        raise PlanError(f"{name}: is no screened cohort. Name a run of job=predict with task screening.") from e
    if not files or not sealed:
        raise PlanError(f"{name}: holds no records. Name the run that screened, or merged, the cohort.")
    if shadow:
        raise PlanError(
            f"{name}: screening.mode=shadow: nothing of it may be released. Screen again with screening.mode=propose."
        )
    changed = [one_line(f"{file} {what}", 120) for what, file in seal.changes(run, sealed, files)]
    changed += [f"{file} added" for file in sorted(files) if file not in sealed]
    if changed:
        raise DataError(
            f"{name}: {changed[0]} since the seal ({len(changed)} files). Release nothing of it; hpcai verify tells."
        )
    return dict(screening)


def _checked(by: str | None, only: str | None, again: str | None) -> list[str]:
    """The decisions to release.

    Raises: ConfigError, Faults.
    """
    faults: list[HpcaiError] = []
    for option, text in (("by", by), ("again", again)):
        if text is not None and not (0 < len(text.strip()) <= 200 and text.isprintable()):
            faults.append(ConfigError(f"--{option}: must be 1 to 200 printable letters. Write it anew."))
    if by is None:
        faults.append(ConfigError("hpcai release: names nobody. Add --by NAME: who takes responsibility."))
    chosen = list(dict.fromkeys(only.split(","))) if only is not None else list(DECISIONS)
    unknown = [word for word in chosen if word not in DECISIONS]
    faults += [ConfigError(f"--only={one_line(word, 40)}: is no decision. {near(word[:40], DECISIONS)}") for word in unknown]
    if faults:
        raise faults[0] if len(faults) == 1 else Faults(faults)
    return [word for word in DECISIONS if word in chosen]


def _counted(run: RunDir, only: list[str]) -> tuple[Counter[str], int]:
    """Newborns to release, by decision, and how many of them are withheld as their plate is not valid.

    Raises: RunError for a record that is none.
    """
    counts, withheld = Counter[str](), 0
    for record in read_records(run):
        try:
            decision, plate = str(record["decision"]), on_bad_plate(record)
        except DAMAGED as e:
            raise RunError("records: one of them is damaged. hpcai verify names what was changed.") from e
        if decision in only:
            withheld += plate
            counts[decision] += not plate
    return Counter({word: counts[word] for word in DECISIONS if counts[word]}), withheld


def on_bad_plate(record: Json) -> bool:
    """Whether a newborn's plate failed its controls, or had too few."""
    return any(str(told["reason"]).startswith("plate ") for told in record["diseases"].values())


def _announce(run: RunDir, screening: Json, counts: Counter[str], withheld: int, *, quiet: bool) -> None:
    """Tells what will be released. Raises: PlanError if there is nothing."""
    if not counts:
        raise PlanError(f"run={one_line(run.path.name, 120)}: has no such newborn to release ({withheld:,} withheld by plate).")
    kind = "SIMULATED newborns" if screening["simulated"] else "newborns"
    parts = ", ".join(f"{n:,} {word.replace('_', ' ')}" for word, n in counts.items())
    if not quiet:
        print(f"{one_line(run.path.name, 120)}: {parts} ({kind}); withheld, as their plate is not valid: {withheld:,}")


def _agreed(by: str) -> bool:
    """Asks the person at the terminal; anything but y is no.

    Raises: ConfigError where there is no terminal.
    """
    if sys.stdin is None or not sys.stdin.isatty():
        raise ConfigError("hpcai release: releases without asking only with --yes. Add it.")
    try:
        return input(f"Release as {one_line(by, 200)}? [y/N] ").strip().lower() in ("y", "yes")
    except EOFError:
        print()
        return False


def append(run: RunDir, entry: Json) -> Json:
    """Appends a release, with time, seal and the digest of what stands before it; returns the line.

    Raises: PlanError if one of its decisions was released before and `again` has no reason.
    """
    path = run.releases
    with _locked(path):
        rundir.cut_torn_line(path)
        before = releases(run)
        twice = sorted({word for old in before for word in old["decisions"]} & set(entry["decisions"]), key=DECISIONS.index)
        if twice and entry["again"] is None:
            who = one_line(str(next(old["by"] for old in before if twice[0] in old["decisions"])), 120)
            raise PlanError(
                f"run={one_line(run.path.name, 120)}: {', '.join(twice)} was released by {who}. Release the rest by --only, or "
                "this again by --again REASON."
            )
        told = {
            "time": time.time(),
            **entry,
            "login": _login(),
            "seal": seal.seal_of(run.manifest.read_bytes()),
            "before": hashlib.sha256(path.read_bytes()).hexdigest(),
        }
        rundir.append_lines(path, [told], sync=True)
    return told


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)  # and with it the lock


def _login() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container's user without a name
        return str(os.getuid())


def _sentence(told: Json) -> str:
    n = sum(told["newborns"].values())
    return f"released by {one_line(told['by'], 200)}: {n:,} newborns ({', '.join(told['decisions'])}); seal {told['seal'][:16]}"
