"""Rows of a laboratory's table, checked, as arrays: what every part of screening reads."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
Texts = NDArray[Any]  # numpy's fixed-width text, dtype U


@dataclass(frozen=True)
class RowFault:
    """One cell or row that cannot be used.

    Attributes:
        index: of the row in its batch, from 0.
        column: canonical name; "" for the whole row (`sample` twice).
        why: `negative`, `no number`, `infinite`, `implausible`, `two rows for one sample`, ... without any value.
    """

    index: int
    column: str
    why: str


@dataclass(frozen=True)
class Batch:
    """n rows, in the order of the file.

    Attributes:
        row: (n,) number of each row as a person counts it (a CSV's header is row 1; Parquet's first row is 2 too).
        sample: (n,) text, the laboratory's id of the specimen.
        x_NA: (n, A) umol/L in the dictionary's order; NaN where missing or unusable; below detection: half of the limit.
        number: numeric and yes_no columns of the dictionary by name, (n,) float64, NaN where unknown; yes_no: 1 or 0.
        text: text columns by name, (n,), "" where unknown; `laboratory` and `plate` are always there.
        faults: of single rows, by index; what they touch is NaN already.
    """

    row: Ints
    sample: Texts
    x_NA: Floats
    number: dict[str, Floats] = field(default_factory=dict)
    text: dict[str, Texts] = field(default_factory=dict)
    faults: list[RowFault] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.row)

    @property
    def unusable_N(self) -> Bools:
        """(n,) whether the whole row cannot be used."""
        found = np.zeros(len(self), bool)
        found[[fault.index for fault in self.faults if not fault.column]] = True
        return found
