"""What screening a cohort came to, in counts.   batches, decisions, truth -> Tally -> screening.json, which the report shows

Every count is an integer by laboratory and month, so any order of batches and any sharding gives the same bytes. A rule set,
the model and the decision are each a *way* of judging: the same words, the same numbers, side by side. Flagged is whom a way
suspects of a disease; a new sample that only the specimen's state asks for flags nobody. Shape letters: n newborns, D diseases,
W ways, K words.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpcai.book.diseases import Diseases
from hpcai.screening.batch import Batch, Ints
from hpcai.screening.cells import safe_text
from hpcai.screening.decisions import NAMES, NOT_ASSESSABLE, REASONS, REPEAT, SPECIMEN_REPEAT, Decisions

Json = dict[str, Any]
Codes = NDArray[np.integer[Any]]
Words = NDArray[np.int8]  # indices into WORDS
Cell = tuple[str, str]  # laboratory, month
Review = tuple[int, int, int, int, int, str, str]  # day, -code, row, disease, reason, laboratory, plate: sorts by urgency

UNAFFECTED, UNKNOWN = -1, -2  # of truth_N, beside an index into the panel
WORDS = ("no_rule", "clear", "not_assessable", "new_sample", "repeat", "reflex", "refer")  # K, the most urgent last
CLEARED = WORDS.index("clear")
FLAGGED = WORDS.index("repeat")  # it and all later words
TRUTHS = ("unaffected", "affected", "other")  # other: not known, or affected by another disease
DECISION, MODEL = "decision", "model"
REVIEWED = 500  # of the review list: what a page can show; the records have everybody
_WORD = np.array([1, 2, 4, 5, 6], np.int8)  # of a decision's code
_VERDICT = np.array([1, 6, 0, 2], np.int8)  # of a verdict 0, 1, -2, -1, which numpy counts from the end


@dataclass
class Tally:
    """Counts of one cohort; empty to begin with.

    Attributes:
        panel: whose diseases the columns are.
        simulated: whether no newborn of it is real.
        ways: names of the ways of judging, as the first batch has them.
        covered: (D,) by way: whether it has a word on the disease.
        cells: (W, D + 2, K, 3) newborns by laboratory and month; after the diseases: a newborn's most urgent word over the
            diseases that the way covers, and over those that every way covers.
        silent: (W, 2, 3) of these newborns by laboratory and month those of whom the way said nothing at all, neither clear nor
            flagged, over the diseases that it covers, and over those that every way covers.
        out: newborns of whom nothing could be said, by reason.
        lines: the others, by their most urgent word; `partly`: clear as far as could be said.
        faults: cells and rows that could not be used, by column and reason.
        own: newborns by the laboratory's own decision, where the table has it, and ours.
        review: the REVIEWED most urgent (newborn, disease) that are flagged; `flagged`: how many there are.
    """

    panel: Diseases
    simulated: bool
    ways: list[str] = field(default_factory=list)
    covered: dict[str, list[bool]] = field(default_factory=dict)
    cells: dict[Cell, NDArray[np.int64]] = field(default_factory=dict)
    silent: dict[Cell, NDArray[np.int64]] = field(default_factory=dict)
    out: Counter[str] = field(default_factory=Counter)
    lines: Counter[str] = field(default_factory=Counter)
    faults: Counter[tuple[str, str]] = field(default_factory=Counter)
    own: Counter[tuple[str, str]] = field(default_factory=Counter)
    review: list[Review] = field(default_factory=list)
    flagged: int = 0

    def add(
        self,
        batch: Batch,
        decisions: Decisions | None,
        truth_N: Ints,
        rules: Mapping[str, Codes],
        called_ND: Codes | None = None,
    ) -> None:
        """Counts a batch.

        Args:
            decisions: None: only rule sets and model are compared.
            truth_N: (n,) index into the panel, UNAFFECTED, or UNKNOWN (also: a diagnosis that the panel lacks).
            rules: verdicts (n, D) by rule set: 1, 0, -1 cannot be said, -2 no rule.
            called_ND: the model's word: 1, 0, or -1 where it was not heard; bool will do. None: there is no model.
        """
        words = {} if decisions is None else {DECISION: _decided(decisions)}
        words |= {} if called_ND is None else {MODEL: _VERDICT[called_ND.astype(np.int8)]}
        words |= {f"rules: {name}": _VERDICT[verdict_ND] for name, verdict_ND in rules.items()}
        if not len(batch):
            return
        if not self.ways:
            self.ways = list(words)
            self.covered = {way: [bool(column.any()) for column in word_ND.T] for way, word_ND in words.items()}
        self._count(batch, words, truth_N)
        self.faults.update((fault.column, fault.why) for fault in batch.faults)
        if decisions is not None:
            self._lines(batch, words[DECISION], decisions)
            self._reviews(batch, words[DECISION], decisions)

    def _count(self, batch: Batch, words: Mapping[str, Words], truth_N: Ints) -> None:
        cells, at_N = _cells(batch)
        rows, size = len(self.panel.names) + 2, len(WORDS) * len(TRUTHS)
        start_NR = (at_N[:, None] * rows + np.arange(rows)) * size
        start_NR[:, :-2] += _truths(truth_N, rows - 2)
        shared_D = self.shared
        start_NR[:, -1] += _any_of(truth_N, shared_D)
        found = np.empty((len(cells), len(self.ways), rows, len(WORDS), len(TRUTHS)), np.int64)
        silent = np.empty((len(cells), len(self.ways), 2, len(TRUTHS)), np.int64)
        for w, way in enumerate(self.ways):
            own_D, word_ND = np.array(self.covered[way]), words[way]
            key_NR = start_NR.copy()
            key_NR[:, :-2] += word_ND * np.int64(len(TRUTHS))
            key_NR[:, -2] += _most(word_ND, own_D) * len(TRUTHS) + _any_of(truth_N, own_D)
            key_NR[:, -1] += _most(word_ND, shared_D) * len(TRUTHS)
            counts = np.bincount(key_NR.ravel(), minlength=len(cells) * rows * size)
            found[:, w] = counts.reshape(len(cells), rows, len(WORDS), len(TRUTHS))
            for place, scope_D in enumerate((own_D, shared_D)):
                key_N = (at_N * len(TRUTHS) + _any_of(truth_N, scope_D))[_says_nothing(word_ND, scope_D)]
                silent[:, w, place] = np.bincount(key_N, minlength=len(cells) * len(TRUTHS)).reshape(len(cells), len(TRUTHS))
        for cell, counts, quiet in zip(cells, found, silent, strict=True):
            self._more(cell, counts, quiet)

    def _more(self, cell: Cell, counts: NDArray[np.int64], silent: NDArray[np.int64]) -> None:
        self.cells[cell] = self.cells.get(cell, 0) + counts
        self.silent[cell] = self.silent.get(cell, 0) + silent

    def _lines(self, batch: Batch, word_ND: Words, decisions: Decisions) -> None:
        worst_N = word_ND.max(axis=1)
        silent_N = (decisions.code_ND == NOT_ASSESSABLE).all(axis=1)
        self.out.update(REASONS[reason] for reason in decisions.reason_ND[silent_N, 0].tolist())
        names = ["partly" if word == "not_assessable" else word for word in WORDS]
        self.lines.update(names[word] for word in worst_N[~silent_N].tolist())
        if "decision" in batch.text:
            theirs = [
                word if word in NAMES else ("not told" if not word else "another word")
                for word in batch.text["decision"].tolist()
            ]
            self.own.update(zip(theirs, [WORDS[word] for word in worst_N.tolist()], strict=True))

    def _reviews(self, batch: Batch, word_ND: Words, decisions: Decisions) -> None:
        day_D = np.array([self.panel.critical_day if d.time_critical else self.panel.other_day for d in self.panel.diseases])
        empty = np.full(len(batch), "")
        places = [batch.text.get(name, empty) for name in ("laboratory", "plate")]
        i_F, d_F = np.nonzero(word_ND >= FLAGGED)
        code_F, row_F = decisions.code_ND[i_F, d_F], batch.row[i_F]
        first_F = np.lexsort((d_F, row_F, -code_F, day_D[d_F]))[:REVIEWED]
        found: list[Review] = []
        for i, d in zip(i_F[first_F].tolist(), d_F[first_F].tolist(), strict=True):
            code, reason = int(decisions.code_ND[i, d]), int(decisions.reason_ND[i, d])
            if len(self.review) == REVIEWED and (int(day_D[d]), -code, int(batch.row[i])) > self.review[-1][:3]:
                break
            laboratory, plate = (safe_text(str(place[i])) for place in places)
            found.append((int(day_D[d]), -code, int(batch.row[i]), d, reason, laboratory, plate))
        self.flagged += len(i_F)
        self.review = heapq.nsmallest(REVIEWED, [*self.review, *found])

    @property
    def shared(self) -> NDArray[np.bool_]:
        """(D,) whether every way has a word on the disease."""
        return np.all([self.covered[way] for way in self.ways], axis=0) if self.ways else np.zeros(len(self.panel.names), bool)

    @property
    def n(self) -> int:
        """Newborns."""
        return sum(int(counts[0, 0].sum()) for counts in self.cells.values())

    def over(self, *, laboratory: str | None = None, month: str | None = None) -> NDArray[np.int64]:
        """(W, D + 2, K, 3) the counts of all cells, or of one laboratory or month."""
        total = np.zeros((len(self.ways), len(self.panel.names) + 2, len(WORDS), len(TRUTHS)), np.int64)
        for (here, when), counts in self.cells.items():
            if laboratory in (None, here) and month in (None, when):
                total += counts
        return total

    def silent_over(self, *, laboratory: str | None = None, month: str | None = None) -> NDArray[np.int64]:
        """(W, 2, 3) of whom nothing was said, in all cells, or those of one laboratory or month."""
        there = [s for (here, when), s in self.silent.items() if laboratory in (None, here) and month in (None, when)]
        return np.asarray(np.sum([np.zeros((len(self.ways), 2, len(TRUTHS)), np.int64), *there], axis=0))

    def merge(self, other: Tally) -> None:
        """Adds the counts of another shard of the same cohort."""
        assert self.panel.names == other.panel.names and self.simulated == other.simulated
        if not other.ways:
            return
        assert not self.ways or (self.ways, self.covered) == (other.ways, other.covered)
        self.ways, self.covered = list(other.ways), dict(other.covered)
        for cell, counts in other.cells.items():
            self._more(cell, counts, other.silent[cell])
        self.out.update(other.out)
        self.lines.update(other.lines)
        self.faults.update(other.faults)
        self.own.update(other.own)
        self.review = heapq.nsmallest(REVIEWED, [*self.review, *other.review])
        self.flagged += other.flagged

    def to_json(self) -> Json:
        """The same counts give the same value, whatever the order in which they came."""
        return {
            "panel": self.panel.names,
            "simulated": self.simulated,
            "ways": self.ways,
            "covered": self.covered,
            "cells": [[*cell, self.cells[cell].tolist(), self.silent[cell].tolist()] for cell in sorted(self.cells)],
            "out": dict(sorted(self.out.items())),
            "lines": dict(sorted(self.lines.items())),
            "faults": [[*key, n] for key, n in sorted(self.faults.items())],
            "own": [[*key, n] for key, n in sorted(self.own.items())],
            "review": [list(entry) for entry in self.review],
            "flagged": self.flagged,
        }

    @classmethod
    def from_json(cls, value: Json, panel: Diseases) -> Tally:
        """The tally that `to_json` gave; of another panel it is refused by an assertion, as both files are ours."""
        assert value["panel"] == panel.names
        return cls(
            panel,
            value["simulated"],
            list(value["ways"]),
            dict(value["covered"]),
            {(laboratory, month): np.array(counts, np.int64) for laboratory, month, counts, _ in value["cells"]},
            {(laboratory, month): np.array(silent, np.int64) for laboratory, month, _, silent in value["cells"]},
            Counter(value["out"]),
            Counter(value["lines"]),
            Counter({(column, why): n for column, why, n in value["faults"]}),
            Counter({(theirs, mine): n for theirs, mine, n in value["own"]}),
            [tuple(entry) for entry in value["review"]],
            value["flagged"],
        )


def _decided(decisions: Decisions) -> Words:
    """(n, D) the word of each decision; `new_sample` where the specimen alone asks for it."""
    word_ND = _WORD[decisions.code_ND]
    asked_ND = (decisions.code_ND == REPEAT) & (decisions.reason_ND == SPECIMEN_REPEAT)
    return np.where(asked_ND, np.int8(WORDS.index("new_sample")), word_ND)


def _cells(batch: Batch) -> tuple[list[Cell], Ints]:
    """The laboratories and months of a batch, and (n,) which of them each row is of."""
    empty = np.full(len(batch), "")
    pairs = list(zip(*(batch.text.get(name, empty).tolist() for name in ("laboratory", "month")), strict=True))
    at = {cell: i for i, cell in enumerate(dict.fromkeys(pairs))}
    return [(safe_text(laboratory), safe_text(month)) for laboratory, month in at], np.array(
        [at[pair] for pair in pairs], np.int64
    )


def _most(word_ND: Words, scope_D: NDArray[np.bool_]) -> Ints:
    """(n,) the most urgent word over some diseases."""
    return word_ND[:, scope_D].max(axis=1).astype(np.int64) if scope_D.any() else np.zeros(len(word_ND), np.int64)


def _says_nothing(word_ND: Words, scope_D: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """(n,) whether no disease of the scope is clear or flagged."""
    said_ND = (word_ND == CLEARED) | (word_ND >= FLAGGED)
    return np.asarray(~said_ND[:, scope_D].any(axis=1))


def _truths(truth_N: Ints, diseases: int) -> NDArray[np.int64]:
    """(n, D) index into TRUTHS: of a disease."""
    affected_ND = truth_N[:, None] == np.arange(diseases)
    return np.where(affected_ND, 1, np.where(truth_N[:, None] == UNAFFECTED, 0, 2))


def _any_of(truth_N: Ints, scope_D: NDArray[np.bool_]) -> NDArray[np.int64]:
    """(n,) index into TRUTHS: of any disease of the scope."""
    affected_N = (truth_N >= 0) & scope_D[np.maximum(truth_N, 0)]
    return np.where(affected_N, 1, np.where(truth_N == UNAFFECTED, 0, 2))
