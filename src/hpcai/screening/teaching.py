"""Newborns whose diagnosis is known, as cases.   table -> one batch -> Newborns, which splits, rows and reports read

Shape letters: n newborns, A analytes.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from hpcai import rundir
from hpcai.book.diseases import Diseases
from hpcai.book.shelf import Books
from hpcai.config.schema import Data
from hpcai.context import RunContext
from hpcai.data.cases import SPLITS, Cases, Pixels, raise_faults
from hpcai.errors import DataError, near
from hpcai.screening.batch import Batch, Bools, Ints, RowFault
from hpcai.screening.table import open_table

log = logging.getLogger("hpcai")

UNAFFECTED = ("", "unaffected")  # words of the column `diagnosis`
FIRST = "unaffected"  # label of class 0


class Newborns(Cases):
    """Labelled newborns: class 0 is unaffected, class d + 1 the panel's disease d. Kin (column `family`) are one patient.

    Attributes:
        batch: their rows, in the order of `ids`.
    """

    def __init__(self, batch: Batch, panel: Diseases, group_cols: Sequence[str] = ()) -> None:
        """Raises: DataError for a table without diagnoses, an unknown group column, a split that is none."""
        if "diagnosis" not in batch.text:
            raise DataError(
                "data.path: the table has no column diagnosis. Add it: a disease of the panel, or empty if unaffected."
            )
        raise_faults([
            f"data.group_cols={name}: the table has no such text column. {near(name, sorted(batch.text))}"
            for name in group_cols if name not in batch.text
        ])  # fmt: skip
        places = {word: 0 for word in UNAFFECTED} | {name: d + 1 for d, name in enumerate(panel.names)}
        label = np.array([places.get(word, -1) for word in batch.text["diagnosis"].tolist()], np.int64)
        unusable = batch.unusable_N
        if out := int(unusable.sum()):
            log.warning("warning: %d rows cannot be used and are left out", out)
        if out := int((label[~unusable] < 0).sum()):
            log.warning("warning: %d newborns have a diagnosis that the panel lacks and are left out", out)
        self._take(batch, label, ~unusable & (label >= 0), group_cols)

    def _take(self, batch: Batch, label: Ints, where: Bools | Ints, group_cols: Iterable[str]) -> None:
        self.batch, self.labels = rows_of(batch, where), label[where]
        text = self.batch.text
        self.ids = self.batch.sample.tolist()
        if "family" in text:
            self.patients = [kin or own for kin, own in zip(text["family"].tolist(), self.ids, strict=True)]
        if "split" in text:
            self.published = text["split"].tolist()
        self.groups = {name: text[name].tolist() for name in group_cols}

    def some(self, places: Ints) -> Newborns:
        """Those at these places, in this order."""
        part = Newborns.__new__(Newborns)
        part._take(self.batch, self.labels, places, self.groups)
        return part

    def row(self, index: int) -> str:
        """How a message names newborn `index`."""
        return f"data: row {self.batch.row[index]}"

    def read(self, index: int) -> Pixels:
        """The concentrations of newborn `index`, (1, A) float32; NaN where missing."""
        return np.asarray(self.batch.x_NA[index][None], np.float32)

    def parted(self) -> None:
        """Raises: DataError or Faults where a newborn is in no part of a published split."""
        raise_faults([
            f"{self.row(i)}: column split is none of {', '.join(SPLITS)}. Correct it, or ask for data.split.by=random."
            for i, part in enumerate(self.published or []) if part not in SPLITS
        ])  # fmt: skip


def open_newborns(cfg: Data, run: RunContext, known: Books) -> Newborns:
    """The labelled newborns of data.path, the bytes that the plan saw.

    Raises: DataError.
    """
    table = open_table(Path(cfg.path), known.dictionary, rundir.read_digests(run.dir))
    return Newborns(joined(batch for _, batch in table.batches()), known.panel, cfg.group_cols)


def joined(batches: Iterable[Batch]) -> Batch:
    """Batches of one table as one.

    Raises: DataError if there is none.
    """
    parts = list(batches)
    if not parts:
        raise DataError("data.path: the table has no row. Name a table with newborns.")
    starts = np.cumsum([0, *(len(part) for part in parts)])
    return Batch(
        row=np.concatenate([p.row for p in parts]),
        sample=np.concatenate([p.sample for p in parts]),
        x_NA=np.concatenate([p.x_NA for p in parts]),
        number={name: np.concatenate([p.number[name] for p in parts]) for name in parts[0].number},
        text={name: np.concatenate([p.text[name] for p in parts]) for name in parts[0].text},
        faults=[
            RowFault(f.index + int(at), f.column, f.why) for p, at in zip(parts, starts[:-1], strict=True) for f in p.faults
        ],
    )


def rows_of(batch: Batch, where: Bools | Ints) -> Batch:
    """Some rows of a batch: a mask, or places in the order wanted."""
    places = np.flatnonzero(where) if where.dtype == bool else where
    new = {int(old): i for i, old in enumerate(places)}
    return Batch(
        row=batch.row[places],
        sample=batch.sample[places],
        x_NA=batch.x_NA[places],
        number={name: column[places] for name, column in batch.number.items()},
        text={name: column[places] for name, column in batch.text.items()},
        faults=[RowFault(new[f.index], f.column, f.why) for f in batch.faults if f.index in new],
    )
