"""`-m --search`: many trials of one command, each a run.   words -> space -> trials -> queue -> best

Driven by the process that typed it, or on Slurm by jobs that ask one journal for their next trial (pack.py).
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from hpcai import arrays, inputs, runs, search, standings
from hpcai.config import space
from hpcai.config.check import examine
from hpcai.config.compose import Memory
from hpcai.config.schema import Config
from hpcai.driver import Driver, Options, Work
from hpcai.errors import ConfigError, Faults, PlanError, RunError, one_line
from hpcai.queue import Entry
from hpcai.runs import Member, Sweep
from hpcai.standings import Outcome
from hpcai.submit import Frozen
from hpcai.trials import Trials


def run_search(words: list[str], spec: str, options: Options) -> int:
    """`-m --search trials=N`: as many trials at once as fit, each asked for when there is room for it.

    Raises: Faults before anything starts; OwnedError if another driver has the search.
    """
    settings = search.parse_options(spec)
    if options.anew:
        raise ConfigError("--anew: a search goes on with its own runs. Another name=NAME, or seed after --search, is another.")
    if why := search.missing():
        raise ConfigError(why)
    fixed, dimensions = space.split(words, options.config_dir)
    make = maker(fixed, options.config_dir)
    example = dimensions.words(dimensions.example())
    config, faults = examine([*fixed, *example], options.config_dir)
    if config is not None:
        faults += [ConfigError(line) for line in _unsearchable(config, dimensions)]
    if faults:
        raise Faults(faults)
    first = make(example, "")  # what is wrong with the machine or the data is said before anything begins
    settled = {"words": sorted(fixed), "space": dimensions.to_json(), **asdict(settings), "trials": None}
    folder = runs.sweep_folder(Path(first.plan.run_dir).parent, first.config.name, settled)
    known: list[Member] = []
    with suppress(PlanError):  # a damaged list is made anew from the journal
        known = runs.read_sweep(folder).members if runs.is_sweep(folder) else []
    where = str(options.config_dir.absolute()) if options.config_dir else None
    sweep = Sweep(folder.name, first.config.name, folder, words, where, "search", known, asdict(settings), str(Path.cwd()))
    print(
        one_line(f"plan  {sweep.id}  search: {settings.trials} trials, {len(known)} begun  folder: {folder}", 1000), flush=True
    )
    if options.dry_run:
        print(f"  such as: {one_line(' '.join(example), 200)}")
    work = Hunt(sweep, dimensions, settings, make)
    options = replace(options, total=settings.trials, access=first.config.runs_access)
    if first.plan.executor == "slurm":
        return _send(work, first, options)
    if options.dry_run:
        return 0
    code = Driver(work, options).run([first.plan.job])
    return code if work.trials is None else _said(work, code)  # None: another process drives


def _said(work: Hunt, code: int) -> int:
    """Shows what was found, and what could not be tried; returns the exit code."""
    assert work.trials is not None
    for line in work.trials.faults:
        print(line, file=sys.stderr)
    if best := work.trials.search.best():
        print(one_line(f"best: {' '.join(best.words)}  (one seed; try it with -m seed=0,1,2)", 500))
    return code or (RunError.code if work.trials.faults else 0)


def maker(fixed: Sequence[str], config_dir: Path | None) -> Callable[[list[str], str], Entry]:
    """What makes a member of a trial's words and its label."""
    memory = Memory()

    def make(more: list[str], label: str) -> Entry:
        config, faults = examine([*fixed, *more], config_dir, memory)
        if faults or config is None:
            raise Faults(faults)
        return Entry.planned(config, label, label)

    return make


CONFIGS = "configs"  # the user's own, as they were when the search was sent


def _send(work: Hunt, first: Entry, options: Options) -> int:
    """To Slurm, whose jobs compose their trials: with the configs and the data as they are now."""
    sweep = work.sweep
    begun = sweep.path.is_dir() and (sweep.path / search.JOURNAL).is_file()
    left = work.settings.trials
    if begun:
        known = work.open().search.trials()
        left += sum(trial.state == "open" for trial in known) - len(known)

    def prepare(frozen: Frozen) -> None:
        work.open()
        shipped = frozen.code / "hpcai" / inputs.SHIPPED.name
        if not shipped.exists():
            shipped.symlink_to(inputs.SHIPPED.resolve())
        if options.config_dir is not None:
            shutil.rmtree(sweep.path / CONFIGS, ignore_errors=True)
            shutil.copytree(options.config_dir, sweep.path / CONFIGS, ignore=_no_config)

    code = arrays.send_search(sweep, first, left, prepare, options)
    return _said(work, code) if left <= 0 else code


def _no_config(folder: str, names: list[str]) -> list[str]:
    return [name for name in names if not (name.endswith((".yaml", ".yml")) or Path(folder, name).is_dir())]


def of_sweep(sweep: Sweep) -> Hunt:
    """The search of a sweep's folder, for one of the jobs that share it; relative words mean what they meant where typed."""
    with suppress(OSError):
        os.chdir(sweep.cwd)
    configs = sweep.path / CONFIGS
    where = configs if configs.is_dir() else None
    fixed, dimensions = space.split(sweep.words, where)
    return Hunt(sweep, dimensions, search.Options(**sweep.options), maker(fixed, where), alone=False)


@dataclass
class Hunt(Work):
    """A search as the driver sees it; its journal is opened when the sweep is ours. Not `alone`: other jobs have it too."""

    sweep: Sweep
    dimensions: space.Space
    settings: search.Options
    make: Callable[[list[str], str], Entry]
    trials: Trials | None = None
    alone: bool = True

    def open(self) -> Trials:
        """The trials that are left, and new ones."""
        found = search.Search.open(self.sweep.path, self.dimensions, self.settings, maximize=True)
        self._note(self._begun(found))
        noted = self._note if self.alone else lambda new: self._note(self._begun(found))
        self.trials = Trials(found, self.make, noted, self.members)
        return self.trials

    @property
    def members(self) -> list[Member]:
        """Those that are known."""
        return self.sweep.members

    def _begun(self, found: search.Search) -> list[Member]:
        runs_dir, label = self.sweep.path.parent.parent, self.dimensions.label
        begun = {t.run_id: label(t.values) for t in reversed(found.trials()) if t.run_id}
        return [Member(name, str(runs_dir / name), said, said, "train") for name, said in reversed(begun.items())]

    def _note(self, members: list[Member]) -> None:
        self.sweep = replace(self.sweep, members=members)
        runs.write_sweep(self.sweep)

    def outcomes(self) -> list[Outcome]:
        """What became of each; one that was stopped because it fell behind is no fault."""
        assert self.trials is not None
        pruned = {t.run_id for t in self.trials.search.trials() if t.state == "pruned"}
        return [
            replace(o, state="pruned", code=0) if o.member.run_id in pruned and o.state == "stopped" else o
            for o in standings.outcomes(self.sweep.members)
        ]


def _unsearchable(config: Config, dimensions: space.Space) -> Iterator[str]:
    """What a search cannot vary: it compares trainings on one validation set."""
    for key in dimensions.dimensions:
        if key.lstrip("+").startswith("data.split."):
            yield f"{key}: a search judges every trial by the same validation cases. Leave it out."
    if config.job != "train":
        yield f"job={config.job}: a search compares trainings by their validation. Leave it out."
    if config.pipeline:
        yield "pipeline: a search trains alone. Leave it out, and run it with the best values."
    if config.task.select != "auc":
        yield f"task.select={config.task.select}: a search compares validation AUC. Leave it out."
    if config.depends_on:
        yield "depends_on: a search waits for nothing. Leave it out."
