"""`hpcai logs|wait|resume|report NAME`: what one asks of runs that exist. Their state comes from their own records alone."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from hpcai import driver, index, plan, queued, rundir, runs, watch
from hpcai import run as launcher
from hpcai.arguments import Words, whole_number
from hpcai.errors import ConfigError, HpcaiError, PlanError, RunError, one_line
from hpcai.lease import RunState
from hpcai.rundir import RunDir
from hpcai.runs import DAMAGED, Member, Score
from hpcai.standings import Outcome
from hpcai.status import found, look, members_of, read_row
from hpcai.watch import Tail

POLL_S = 0.2
ENDED = {"completed", "stopped", "failed", "lost", "unreadable", "new"}


def shown(target: RunDir) -> str:
    """`run=x` or `sweep=x`: how a message begins."""
    return f"{'sweep' if runs.is_sweep(target.path) else 'run'}={one_line(target.path.name, 120)}"


def busy(target: RunDir, watch: queued.Watch | None = None) -> bool:
    """Whether somebody runs it: its ranks or their owner; of a sweep its driver, or a member that has outlived it.

    `watch`: of who asks again and again, so that the scheduler is not asked each time.
    """
    states = (watch or queued.Watch()).states([target, *members_of(target.path)])
    return any(state.state not in ENDED for state in states.values())


def exit_code(state: RunState) -> int:
    """What a shell sees of a run that has ended."""
    match state.state:
        case "completed":
            return 0
        case "new":
            return PlanError.code
        case "unreadable":
            return RunError.code
        case _:
            return state.code or HpcaiError.code


def ending(target: RunDir, state: RunState) -> str:
    """What became of it, on one line."""
    said = "not started" if state.state == "new" else state.state
    return one_line(f"{target.path.name}: {said}" + (f": {state.message}" if state.message else ""), 600)


def facts(targets: Sequence[RunDir]) -> list[dict[str, Any]]:
    """Every fact of the targets, for programs: as `hpcai status --json` tells them."""
    rows, sweeps = look(Path(), targets)
    named = {str(target.path) for target in targets}
    told = [row.to_json() for row in rows] + [row.to_json() for row in sweeps]
    return [fact for fact in told if fact["path"] in named]


# ---- logs

LOGS = """\
Prints what a rank said: logs/rank<N>.log of the run folder; where that holds nothing, what it printed."""


def logs(argv: list[str]) -> int:
    """`hpcai logs NAME [-f] [--rank N]`; returns the exit code.

    Raises: ConfigError for a sweep or a rank that is not there, PlanError if nothing was said yet.
    """
    words = Words("logs", "NAME", LOGS)
    words.add_argument("--follow", "-f", action="store_true", help="go on until the run ends; Ctrl-C ends this alone")
    words.add_argument("--rank", metavar="N", type=whole_number, default=0, help="whose words, from 0 (0)")
    options = words.read(argv, least=1, most=1)
    if options is None:
        return 0
    (run,) = found(options.names, options.runs_dir)
    refuse_sweep(run)
    _check_rank(run, options.rank)
    rank = options.rank
    say: Callable[[str], None] = _say_json(rank) if options.json else lambda line: print(line, flush=True)
    if options.follow:
        _follow(run, rank, say)
        return 0
    files = spoken(run, rank)
    if not files:
        raise PlanError(f"{shown(run)}: rank {rank} has said nothing yet. hpcai logs -f waits for its words.")
    for file in files:
        with file.open(encoding="utf-8", errors="replace", newline="\n") as f:
            for line in f:
                say(line.removesuffix("\n"))
    return 0


def _say_json(rank: int) -> Callable[[str], None]:
    return lambda line: print(json.dumps({"rank": rank, "line": line}), flush=True)


def spoken(run: RunDir, rank: int) -> list[Path]:
    """The files that hold a rank's words: its log; where that is empty, what it printed last (submitit's out and err)."""
    files = [run.log(rank)] if run.log(rank).is_file() and run.log(rank).stat().st_size else []
    for kind in () if files else ("out", "err"):
        printed = sorted(run.submitit.glob(f"*_{rank}_log.{kind}"), key=lambda f: f.stat().st_mtime_ns)
        files += [f for f in printed[-1:] if f.stat().st_size]
    return files


def _follow(run: RunDir, rank: int, say: Callable[[str], None]) -> None:
    tails: dict[Path, Tail] = {}
    going, seen = True, queued.Watch()
    while going:
        going = busy(run, seen)  # asked before the files are read: what an ended run said is all there
        for file in list(tails) or spoken(run, rank):
            for line in tails.setdefault(file, Tail(file)).read():
                say(line)
        if going:
            time.sleep(POLL_S)
    for file, tail in tails.items():
        with contextlib.suppress(FileNotFoundError), file.open("rb") as f:
            f.seek(tail.at)
            if torn := f.read().decode("utf-8", "replace"):
                say(torn)


def refuse_sweep(target: RunDir) -> None:
    """Raises: ConfigError for a sweep, with its members' names."""
    if runs.is_sweep(target.path):
        names = [one_line(member.path.name, 80) for member in members_of(target.path)]
        some = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
        raise ConfigError(f"{shown(target)}: is a sweep. Name one of its members: {some or 'none is known'}.")


def _check_rank(run: RunDir, rank: int) -> None:
    """Raises: ConfigError for a rank that the run does not have."""
    try:
        asked = rundir.read_json(run.plan)["resources"]
        ranks = int(asked["nodes"] * asked["tasks_per_node"])
    except DAMAGED:
        return
    if rank >= ranks:
        raise ConfigError(f"--rank={rank}: {shown(run)} has {ranks} rank{'s' * (ranks > 1)}, from 0. Name one below {ranks}.")


# ---- wait

WAIT = """\
Waits until each run or sweep has ended and prints a line for each. The exit code is the lowest that is not 0 of theirs."""


def wait(argv: list[str]) -> int:
    """`hpcai wait NAME ...`; returns the exit code.

    Raises: ConfigError for an unknown name.
    """
    options = Words("wait", "NAME ...", WAIT).read(argv, least=1)
    if options is None:
        return 0
    targets = found(options.names, options.runs_dir)
    codes = [exit_code(state) for _, state in ends(targets, options.json)]
    if options.json:
        print(json.dumps(facts(targets), indent=1))
    return min((code for code in codes if code), default=0)


def ends(targets: Sequence[RunDir], quiet: bool) -> Iterator[tuple[RunDir, RunState]]:
    """Each target with its state, as it ends; told on a line each, unless `quiet`."""
    left, seen = list(targets), queued.Watch()
    seen.states([run for target in left for run in (target, *members_of(target.path))])  # one question for all of them
    while left:
        for target in [t for t in left if not busy(t, seen)]:
            left.remove(target)
            state = seen.states([target])[target.path]
            if not quiet:
                print(ending(target, state) if target.path.exists() else f"{target.path.name}: removed", flush=True)
            yield target, state
        if left:
            time.sleep(POLL_S)


# ---- resume

RESUME = """\
Goes on with a run or a sweep that was stopped, failed or was lost, as its own folder says: the same as its command again, with
the same checks. One that has finished is shown."""


def resume(argv: list[str]) -> int:
    """`hpcai resume NAME [--no-wait]`; returns the exit code.

    Raises: HpcaiError as the command itself.
    """
    words = Words("resume", "NAME", RESUME)
    words.add_argument("--no-wait", action="store_true", help="start it and come back at once")
    options = words.read(argv, least=1, most=1)
    if options is None:
        return 0
    (target,) = found(options.names, options.runs_dir)
    with contextlib.redirect_stdout(sys.stderr) if options.json else contextlib.nullcontext():
        code = _resume_sweep(target, options) if runs.is_sweep(target.path) else _resume_run(target, options)
    if options.json:
        print(json.dumps(facts([target]), indent=1))
    return code


def _resume_run(run: RunDir, options: argparse.Namespace) -> int:
    """By its config, in its folder: both may have been moved since. The ranks' own checks find what no longer fits.

    Name and identity are those on record: the digest is taken from the words as they were typed (a relative path, `shipped:x`).
    """
    then = plan.read_plan(run)
    config = plan.read_config(run).model_copy(update={"runs_dir": str(run.path.parent)})
    today, config, files = plan.make_plan(config)
    if (then.job, config.name) != (today.job, then.run_id.rpartition("-")[0]):
        raise PlanError(f"{shown(run)}: its config.yaml is another run's. Put its own back, or start a new run by its command.")
    # One that shared a node has so many threads: with others it would go on with other bits.
    threads = then.threads if (then.slurm or {}).get("per_node") else today.threads
    kept = replace(today, run_id=then.run_id, run_dir=str(run.path), identity=then.identity, threads=threads)
    flags, _ = launcher.parse(["--no-wait"] if options.no_wait else [])
    return launcher.launch(flags, kept, config, files)


def _resume_sweep(target: RunDir, options: argparse.Namespace) -> int:
    """By the words that it was started with, where they were typed.

    Raises: PlanError if that folder is gone.
    """
    sweep = runs.read_sweep(target.path)
    words = ["-m", *sweep.words]
    if sweep.config_dir is not None:
        words += ["--config-dir", sweep.config_dir]
    if sweep.kind == "search":
        words += ["--search", ",".join(f"{k}={v}" for k, v in sweep.options.items())]
    try:
        with contextlib.chdir(sweep.cwd or "."):
            return launcher.main(words + ["--no-wait"] * options.no_wait)
    except FileNotFoundError as e:
        where = one_line(sweep.cwd, 200)
        raise PlanError(f"{shown(target)}: was started in {where}, which is gone. Type its command where you are.") from e


# ---- report

REPORT = """\
Prints the answer of a run that has finished, with its interval, and where its report lies; of a sweep how its members stand,
ranked by validation. --json prints report.json, or the sweep's results.json. --all makes one page over all runs below DIR (or
--runs-dir): a table that sorts and filters, curves side by side, sweeps by their keys, cost.

A report names no case and shows no image, unless data.shareable says that anybody may see them: it has the most wrong cases
by row number. --internal makes RUN/report.internal.html (or -o FILE) with their images and ids, read anew from the data, marked
on each page, readable by you alone. It is not for the mail; hpcai export makes what is."""


def report(argv: list[str]) -> int:
    """`hpcai report NAME [--internal]`, `hpcai report --all [DIR] -o FILE`; returns the exit code.

    Raises:
        PlanError: it has not finished, or its results.json is gone or damaged, or FILE is another's.
        DataError: its report.json is gone, damaged, or of another version.
    """
    words = Words("report", "NAME [--internal] | --all [DIR]", REPORT)
    words.add_argument("--all", action="store_true", help="one page over all runs of a folder")
    words.add_argument("--internal", action="store_true", help="with pictures and ids, for who may see the data")
    words.add_argument("--output", "-o", metavar="FILE", type=Path, help="write this file (index.html; report.internal.html)")
    words.add_argument("--force", action="store_true", help="replace FILE, whatever it is")
    options = words.read(argv, least=0 if "--all" in argv else 1, most=1)
    if options is None:
        return 0
    if options.all:
        return _report_all(options)
    if (options.output is not None or options.force) and not options.internal:
        raise ConfigError("hpcai report: -o and --force go with --all or --internal. Add one, or leave them out.")
    (target,) = found(options.names, options.runs_dir)
    sweep = runs.is_sweep(target.path)
    file = target.path / "results.json" if sweep else target.report_json
    _check_finished(target, file)
    if options.internal:
        return _report_internal(target, options)
    try:
        value = rundir.read_json(file) if sweep else runs.read_report(target)
        if options.json:
            print(json.dumps(value, indent=1, ensure_ascii=False))
        elif sweep:
            driver.show(_outcomes(value), file)
        else:
            watch.show_answer(target)
    except DAMAGED as e:
        raise PlanError(f"{shown(target)}: its {file.name} is gone or damaged. Restore it, or run it anew with --anew.") from e
    return 0


def _report_internal(target: RunDir, options: argparse.Namespace) -> int:
    """Writes the page that holds patient data. Heavy, so by its name."""
    if runs.is_sweep(target.path):
        raise ConfigError(f"{shown(target)}: is a sweep. Name one of its runs.")
    file = importlib.import_module("hpcai.report.internal").write_internal(target, options.output, force=options.force)
    if options.json:
        print(json.dumps({"file": str(file.absolute())}, indent=1))
    else:
        print(f"{one_line(str(file), 200)}: holds patient data, readable by you alone. Do not mail it.")
    return 0


def _report_all(options: argparse.Namespace) -> int:
    """Writes the page over many runs."""
    folder = Path(options.names[0]) if options.names else options.runs_dir
    if not folder.is_dir():
        raise ConfigError(f"--all={one_line(str(folder), 200)}: is no folder. Name the one that holds the runs.")
    file = options.output if options.output is not None else Path("index.html")
    count, sweeps = index.write_index(folder, file, force=options.force)
    if options.json:
        print(json.dumps({"file": str(file.absolute()), "runs": count, "sweeps": sweeps}, indent=1))
    else:
        print(f"{one_line(str(file), 200)}: {count} run{'s' * (count != 1)}, {sweeps} sweep{'s' * (sweeps != 1)}")
    return 0


def _check_finished(target: RunDir, file: Path) -> None:
    """Raises: PlanError if there is no answer yet. A sweep that has ended has one, even where a member failed."""
    seen = queued.Watch()
    state, going = seen.states([target])[target.path], busy(target, seen)
    ended = file.is_file() and not going if runs.is_sweep(target.path) else state.state == "completed"
    if not ended:
        row = None if runs.is_sweep(target.path) else read_row(target, state)
        far = f" ({row.progress})" if row and row.progress else ""
        verb = "wait" if going else "resume"
        name = one_line(target.path.name, 120)
        raise PlanError(f"{shown(target)}: has no report, it is {state.state}{far}. Type hpcai {verb} {name}.")


def _outcomes(results: dict[str, Any]) -> list[Outcome]:
    """What became of a sweep's members, as its results.json says."""
    names = [f.name for f in fields(Member) if f.name != "needs"]
    return [
        Outcome(
            Member(**{name: m[name] for name in names}),
            **{name: m[name] for name in ("state", "code", "message", "seconds")},
            score=Score(**m["score"]) if m["score"] else None,
        )
        for m in results["members"]
    ]
