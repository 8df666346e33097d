"""One row a case, as a model wrote it: RUN/rows/<split>.rank<r>.jsonl -> Rows, checked.

Shape letters: n cases, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpcai.errors import DataError, HpcaiError, RunError
from hpcai.rundir import RunDir, read_lines

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Rows:
    """The scores of n cases.

    Attributes:
        case: n ids, each once.
        patient: n ids, or None where no patients are known.
        label: (n,) int64, the number of the true class; -1 where it is not known.
        scores: (n, K) float64, finite; each row sums to 1.
        fold: (n,) int64, the fold that held the case out; None without cross-validation.
        called: (n,) int64, the class that the case was called by the threshold of its fold; None without.

    Raises:
        DataError: there is no row.
        RunError: a score is NaN or infinite, a label is no class, or the columns differ in length.
    """

    case: list[str]
    patient: list[str] | None
    label: Ints
    scores: Floats
    fold: Ints | None = None
    called: Ints | None = None

    def __post_init__(self) -> None:
        n = len(self.case)
        if not n:
            raise DataError("rows=0: there is no case to score. Check the data and its split.")
        if self.scores.ndim != 2 or not n == len(self.scores) == len(self.label) == len(self.patient or self.case):
            raise RunError(f"rows={n}: the columns of the table differ in length. Score the cases again.")
        bad = np.flatnonzero(~np.isfinite(self.scores).all(1))
        if bad.size:
            raise RunError(
                f"scores: {bad.size} of {n} rows hold NaN or infinity, the first is row {bad[0]}. "
                "Check the model's weights and the images."
            )
        if self.label.min() < -1 or self.label.max() >= self.classes:
            raise RunError(f"label: a row lies outside the {self.classes} classes. Check data.labels.")

    @property
    def classes(self) -> int:
        """K."""
        return int(self.scores.shape[1])

    def labelled(self) -> Rows:
        """The rows whose true class is known.

        Raises:
            DataError: none is.
        """
        keep = self.label >= 0
        return self if keep.all() else self.where(keep)

    def ordered(self) -> Rows:
        """In the order of case ids, so that no sum depends on the order of the files."""
        order = sorted(range(len(self.case)), key=self.case.__getitem__)
        return self if order == list(range(len(order))) else self.take(np.array(order))

    def where(self, keep: Bools) -> Rows:
        """The rows where `keep` (n,) is true.

        Raises:
            DataError: there is none.
        """
        return self.take(np.flatnonzero(keep))

    def take(self, i: NDArray[np.intp]) -> Rows:
        """The rows at these places, in this order."""
        patient = None if self.patient is None else [self.patient[k] for k in i]
        fold, called = (None if column is None else column[i] for column in (self.fold, self.called))
        return Rows([self.case[k] for k in i], patient, self.label[i], self.scores[i], fold, called)


def read_rows(run: RunDir, split: str) -> Rows:
    """The rows of `split`: all ranks' files merged by case (first wins), in the order of case ids.

    The order makes every number independent of how many ranks wrote the rows.

    Raises:
        DataError: there is no row.
        RunError: a file is damaged or holds a NaN score.
    """
    by_case: dict[str, dict[str, Any]] = {}
    for path in run.row_files(split):
        for row in rows_in(path):
            by_case.setdefault(row["case"], row)
    rows = [by_case[case] for case in sorted(by_case)]
    if len({len(row["scores"]) for row in rows}) > 1:
        raise RunError(f"rows/{split}: rows differ in their number of scores. Score the cases again.")
    return Rows(
        case=[row["case"] for row in rows],
        patient=patients_of(rows),
        label=np.array([-1 if row["label"] is None else row["label"] for row in rows], np.int64),
        scores=np.array([row["scores"] for row in rows], np.float64),
        fold=_column(rows, "fold"),
        called=_column(rows, "called"),
    )


def rows_then(source: RunDir, split: str) -> Rows | None:
    """The rows that another run wrote of `split`; None if it has none.

    Raises:
        RunError: they are damaged; names the run.
    """
    if not source.row_files(split):
        return None
    try:
        return read_rows(source, split)
    except HpcaiError as e:
        raise RunError(f"run={source.path.name}: {e}") from e


def _column(rows: Sequence[dict[str, Any]], name: str) -> Ints | None:
    """A column of whole numbers that every row has; None if one lacks it."""
    return np.array([row[name] for row in rows], np.int64) if rows and all(name in row for row in rows) else None


def rows_in(path: Path) -> list[dict[str, Any]]:
    """The rows that one rank wrote, as they are.

    Raises:
        RunError: one is damaged; named by file and row number, never by case.
    """
    rows: list[dict[str, Any]] = []
    try:
        for row in read_lines(path):
            case, label, scores = row["case"], row["label"], row["scores"]
            patient = row.get("patient")
            fits = isinstance(case, str) and (patient is None or isinstance(patient, str))
            fits = fits and (label is None or type(label) is int)
            fits = fits and all(type(row.get(name, 0)) is int for name in ("fold", "called"))
            if not (fits and scores and all(type(s) in (int, float) for s in scores)):
                raise TypeError
            rows.append(row)
    except (ValueError, KeyError, TypeError, AttributeError):
        raise RunError(f"rows/{path.name}: row {len(rows)} is damaged. Delete the file and score the cases again.") from None
    return rows


def patients_of(rows: Sequence[dict[str, Any]]) -> list[str] | None:
    """Each row's patient; a case without one, among others with one, stands for itself."""
    found = [row.get("patient") for row in rows]
    if not any(p is not None for p in found):
        return None
    return [f"\0{row['case']}" if p is None else p for row, p in zip(rows, found, strict=True)]
