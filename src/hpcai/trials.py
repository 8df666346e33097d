"""A search as the queue's source: each trial is a run.   search.ask -> words -> make -> run -> validation curve -> search.tell

A trial is told once: completed with its best validation, failed, or pruned. One that was stopped or lost stays open and goes on
when the search is started again, as the same run. Trials of equal values are one run, which answers all of them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hpcai import lease, runs
from hpcai.errors import HpcaiError, one_line
from hpcai.queue import Entry, Source
from hpcai.runs import Member
from hpcai.search import Search, Told, Trial

REFUSED = 5  # trials in a row that cannot be planned: then it is the space or the machine, not their values


class Trials(Source):
    """The members of one search, made as they are asked for.

    Attributes:
        search: what was asked and told.
        faults: one line a trial that could not be planned or started, or left no score.
    """

    def __init__(
        self,
        search: Search,
        make: Callable[[list[str], str], Entry],
        on_new: Callable[[list[Member]], None],
        known: Sequence[Member] = (),
    ) -> None:
        """Members are made by `make(words, label)`, and told to `on_new` before they start; `known` are those from before."""
        self.search, self._make, self._on_new = search, make, on_new
        self._members = {m.run_id: m for m in known}
        self._left = [trial for trial, run_id in search.open_trials() if run_id]
        self._numbers: dict[str, list[int]] = {}  # by run_id: the trials that it answers
        self._read: dict[str, int] = {}  # by run_id: bytes of its curve that were reported
        self._pruned: set[str] = set()  # by run_id: those that need not go on
        self._asked: set[str] = set()  # those of them that the queue was told to stop
        self._refused = 0
        self.faults: list[str] = []

    @property
    def members(self) -> list[Member]:
        """All that were handed out, earlier ones first."""
        return list(self._members.values())

    def next(self) -> Entry | None:
        """The next to start, or to wait for where it runs already: those that a killed driver left open, then new ones.

        Raises: HpcaiError if 5 trials in a row cannot be planned, or one that could be before.
        """
        while True:
            trial = self._left.pop(0) if self._left else self.search.ask()
            if trial is None:
                return None
            entry = self._planned(trial)
            if entry and self._is_to_run(trial, entry):
                return entry

    def settle(self) -> None:
        """Tells the open trials whose run has ended meanwhile, elsewhere."""
        for trial in self._left:
            if entry := self._planned(trial):
                self._is_to_run(trial, entry)

    def _planned(self, trial: Trial) -> Entry | None:
        try:
            entry = self._make(trial.words, self.search.space.label(trial.values))
        except HpcaiError as e:
            if trial.run_id:  # it was planned once: its values do go together
                raise
            self.search.tell(trial.number, None, "failed")
            self.faults += [f"trial {trial.number}: {line}" for line in e.lines]
            self._refused += 1
            if self._refused == REFUSED:
                raise
            return None
        self._refused = 0
        return entry

    def _is_to_run(self, trial: Trial, entry: Entry) -> bool:
        """Notes its run; whether that has not ended yet, and answers no other trial."""
        member = entry.member
        self.search.note(trial.number, member.run_id)
        if self._members.get(member.run_id) != member:
            self._members[member.run_id] = member
            self._on_new(self.members)
        if member.run_id in self._numbers:
            self._numbers[member.run_id].append(trial.number)
            return False
        for twin in self.search.trials():
            if twin.run_id == member.run_id and twin.state != "open":
                self.search.tell(trial.number, twin.value, twin.state)
                return False
        self._numbers[member.run_id] = [trial.number]
        state = runs.state_of(member.dir)
        ended_unseen = trial.run_id and (state.state == "failed" or trial.stop) and state.state not in lease.ACTIVE
        if trial.stop:
            self._pruned.add(member.run_id)
        if state.state == "completed" or ended_unseen:
            self.ended(entry, state)
            return False
        return True

    def ended(self, entry: Entry, state: lease.RunState) -> None:
        """Tells the trials that it answers; one that was stopped or lost, or could not even start, stays open."""
        run_id = entry.member.run_id
        told, value = self._verdict(entry, state)
        if told is not None:
            for number in self._numbers.pop(run_id, []):
                self.search.tell(number, value, told)

    def _verdict(self, entry: Entry, state: lease.RunState) -> tuple[Told | None, float | None]:
        member = entry.member
        if state.state == "completed":
            self._reported(member)  # what came since the last look: later trials are judged by whole curves
            score = runs.best_validation(member.dir)
            if score is None or (score.name == "loss") == self.search.maximize:
                wanted = "AUC" if self.search.maximize else "loss"
                self.faults.append(
                    f"run={one_line(member.run_id, 120)}: completed without a validation {wanted}. Its trial failed."
                )
                return "failed", None
            return "complete", score.value
        if state.state == "failed":
            if runs.state_of(member.dir).state == "failed":
                return "failed", None
            self.faults.append(state.message)  # it did not start: a full disk, say; its values are not at fault
        elif member.run_id in self._pruned:
            return "pruned", None
        return None, None

    def prune(self, running: Sequence[Entry]) -> list[Entry]:
        """Reports what validation has said since the last look; those that the pruner would stop, each once."""
        found = []
        for entry in running:
            run_id = entry.member.run_id
            if run_id not in self._pruned and self._reported(entry.member):
                self._pruned.add(run_id)
            if run_id in self._pruned - self._asked:
                self._asked.add(run_id)
                found.append(entry)
        return found

    def waiting(self) -> bool:
        """No trial waits for a run elsewhere."""
        return False

    def _reported(self, member: Member) -> bool:
        """Hands new points of a run's curve to its trial; whether the pruner would stop it."""
        numbers, stop = self._numbers.get(member.run_id), False
        if not numbers:
            return False
        name = "auc" if self.search.maximize else "loss"
        for fact in self._new_points(member.run_id, member.dir.metrics):
            epoch, value = fact.get("epoch"), fact.get(name)
            if isinstance(epoch, int) and epoch >= 0 and isinstance(value, (int, float)):
                stop |= self.search.report(numbers[0], epoch, float(value))
        return stop

    def _new_points(self, run_id: str, curve: Path) -> list[dict[str, Any]]:
        """The validation lines that were appended since the last look; of a file that was cut meanwhile, all."""
        start = self._read.get(run_id, 0)
        try:
            if curve.stat().st_size == start:
                return []
            with curve.open("rb") as f:
                f.seek(max(start - 1, 0))
                if start and f.read(1) != b"\n":  # shorter, or other lines: cut to a checkpoint and perhaps written on
                    start = f.seek(0)
                data = f.read()
        except OSError:  # no curve yet
            return []
        whole = data[: data.rfind(b"\n") + 1]
        self._read[run_id] = start + len(whole)
        return [fact for line in whole.split(b"\n") if b'"val"' in line and (fact := _fact(line))]


def _fact(line: bytes) -> dict[str, Any] | None:
    """A validation line's values; None for any other."""
    try:
        fact = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return fact if isinstance(fact, dict) and fact.get("kind") == "val" else None
