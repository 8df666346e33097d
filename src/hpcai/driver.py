"""Holds a sweep from its begin record to its end record.   lease -> members.json -> queue -> results.json -> exit code

The driver is the process that typed the command, or with --no-wait one of its own. Whether it lives stands in the sweep's
lives/; killed, it leaves its members running, and the next one waits for them.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from hpcai import cluster, lease, rundir, runs, standings, submit, watch
from hpcai.board import Board, Row
from hpcai.config.jobs import teaches
from hpcai.errors import DataError, HpcaiError, one_line
from hpcai.queue import Entry, Queue, Running, Slots, Source, Starter
from hpcai.rundir import RunDir
from hpcai.runs import Sweep
from hpcai.standings import Outcome
from hpcai.submit import Frozen

ANSWERS = 5  # of evaluate, predict and gather that are shown in full at the end
LOOK_S = 1.0  # the board reads scores so often


@dataclass(frozen=True)
class Options:
    """What stands beside the words."""

    config_dir: Path | None = None
    dry_run: bool = False
    explain: bool = False  # with a reason below each line of the script
    no_wait: bool = False
    anew: bool = False
    junit: Path | None = None
    access: str = "user"  # who may read what it writes (runs_access)
    total: int | None = None  # members that there will be, where not all are known yet


class Work(Protocol):
    """What a driver is to do. `sweep` may win members while it is done."""

    sweep: Sweep

    def open(self) -> Source:
        """Its members; called once nobody else drives it."""

    def outcomes(self) -> list[Outcome]:
        """What became of them, at the end."""


class Driver:
    """Holds a sweep's life from its begin to its end record, wherever that is: here, or in a process of its own."""

    def __init__(self, work: Work, options: Options) -> None:
        self.work, self.options = work, options
        self.run_dir = work.sweep.dir
        self.life = 0

    def run(self, jobs: Sequence[str]) -> int:
        """To the end; `jobs`: what the members do, for the fork server to import.

        Raises: OwnedError if another driver has it.
        """
        rundir.guard(self.options.access)
        asked = watch.listen()
        run = self.run_dir
        if self.options.junit:  # a place that cannot be written is said now, not at the end
            standings.write_junit(self.options.junit, run.path.name, standings.outcomes(self.work.sweep.members))
        self.life = lease.take(run, 1)
        runs.write_sweep(self.work.sweep)
        if self.options.no_wait and self._detach():
            return 0
        lease.append(run, self.life, 0, "begin", **lease.me())
        code, message = 1, "its driver failed."
        try:
            self._drive(self.work.open(), submit.freeze(run), jobs, asked)
            outcomes = self.work.outcomes()
            standings.write_results(self.work.sweep, outcomes)
            code, message = report(self.work.sweep, outcomes, self.options), ""
            if asked:
                code, message = 128 + asked[0], f"stopped by {signal.Signals(asked[0]).name}. The same command goes on."
                print(message, file=sys.stderr)
        except OSError as e:
            code, message = 5, f"sweep={run.path.name}: {e.strerror}. Free space or mend the disk; the same command goes on."
            print(message, file=sys.stderr)
        except HpcaiError as e:
            code, message = e.code, e.lines[0]
            raise
        finally:
            with suppress(OSError):
                lease.append(run, self.life, 0, "end", code=code, message=message)
        return code

    def _detach(self) -> bool:
        """True here; in the process that drives from now on, False."""
        run = self.run_dir
        if pid := os.fork():
            lease.hand_over(run, self.life, pid)
            print(f"started: {watch.shown(run.path)}  see: hpcai status {run.path.name}")
            return True
        os.setsid()
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        log = os.open(run.path / "driver.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o640)
        for fd, to in ((0, os.open(os.devnull, os.O_RDONLY)), (1, log), (2, log)):
            os.dup2(to, fd)
        return False

    def _drive(self, source: Source, frozen: Frozen, jobs: Sequence[str], asked: list[int]) -> None:
        board = Board(sys.stdout, self.options.total or len(self.work.sweep.members))
        starter = Starter(frozen, jobs)
        shown = Shown(source, board, self.run_dir, self.life)
        try:
            Queue(shown, Slots.of(cluster.read_machine()), starter, shown.look).drive(asked)
        finally:
            starter.close()
            board.close()


class Shown(Source):
    """A source whose members are shown as they come and go; says to other hosts that the driver is alive."""

    def __init__(self, source: Source, board: Board, run: RunDir, life: int) -> None:
        self.source, self.board, self.run, self.life = source, board, run, life
        self.rows: dict[str, Row] = {}
        self._pruned: set[str] = set()
        self._beat = self._looked = 0.0

    def next(self) -> Entry | None:
        """As the source says."""
        return self.source.next()

    def ended(self, entry: Entry, state: lease.RunState) -> None:
        """Shown, and told to the source."""
        self.source.ended(entry, state)
        name = entry.plan.run_id
        behind = name in self._pruned and state.state == "stopped"
        said = "" if behind or state.state == "completed" else state.message
        self.rows[name] = _row(entry, "pruned" if behind else state.state, said)

    def prune(self, running: Sequence[Entry]) -> Sequence[Entry]:
        """As the source says."""
        found = self.source.prune(running)
        self._pruned |= {entry.plan.run_id for entry in found}
        return found

    def waiting(self) -> bool:
        """As the source says."""
        return self.source.waiting()

    def look(self, running: Sequence[Running]) -> None:
        """Shows who runs, and how far."""
        now = time.monotonic()
        if now - self._beat > lease.BEAT_S:
            lease.beat(self.run, self.life)
            self._beat = now
        fresh = now - self._looked > LOOK_S
        if fresh or any(r.entry.plan.run_id not in self.rows for r in running):
            for r in running:
                step = runs.state_of(r.entry.dir).step
                self.rows[r.entry.plan.run_id] = _row(r.entry, "running", f"step {step:,}" if step else "")
            self._looked = now
        self.board.update(list(self.rows.values()))


def _row(entry: Entry, state: str, progress: str) -> Row:
    score = runs.best_validation(entry.dir)
    return Row(entry.member.label or entry.plan.run_id, state, progress, f"val {standings.score_words(score)}" if score else "")


def report(sweep: Sweep, outcomes: Sequence[Outcome], options: Options) -> int:
    """Shows how the sweep stands, in the words of `options`; returns its exit code.

    Raises: PlanError if the file of --junit cannot be written.
    """
    show(outcomes, sweep.path / "results.json")
    if options.junit:
        standings.write_junit(options.junit, sweep.id, outcomes)
    return standings.exit_code(outcomes)


def show(outcomes: Sequence[Outcome], results: Path) -> None:
    """The ranking, what went wrong, and the answers of those that are no training."""
    for line in standings.table(outcomes):
        print(line)
    for line in standings.fault_lines(outcomes):
        print(line, file=sys.stderr)
    answers = [o for o in outcomes if o.state == "completed" and not teaches(o.member.job) and not o.is_shard]
    for outcome in answers[:ANSWERS]:  # of trainings the ranking says enough
        print(f"{one_line(outcome.name, 200)}:")
        try:
            watch.show_answer(outcome.member.dir)
        except DataError as e:
            print(e)
    print(f"results: {watch.shown(results)}")
