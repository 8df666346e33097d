"""Columns that describe cases -> groups: quantities cut at quartiles, texts as they are; none shown that could name one."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from hpcai.metrics.rows import Bools, Floats
from hpcai.metrics.table import CaseTable

LEAST = 10  # patients (cases, where none are known) of a group that is shown
FEW = 6  # different numbers: a code (0, 1, 2), not a quantity
UNKNOWN = "not known"
SIZE = "image size"
NUMBER = re.compile(r"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?")


@dataclass(frozen=True)
class Column:
    """A column of n cases: `text` n values, None where missing; `number` (n,), NaN where missing, of a quantity."""

    name: str
    text: list[str | None]
    number: Floats | None

    @property
    def kind(self) -> str:
        """`number` or `text`."""
        return "text" if self.number is None else "number"


def columns(table: CaseTable) -> list[Column]:
    """Those of data.group_cols, then the image size where it differs. A column is a quantity if every value reads as a number.

    "1,000" reads as none: nobody knows which comma that is.
    """
    found = [Column(name, values, _numbers(values)) for name, values in table.groups.items()]
    if table.size is not None and len({size for size in table.size if size is not None}) > 1:
        text = [None if size is None else " x ".join(map(str, size)) for size in table.size]
        area = np.array([np.nan if size is None else float(np.prod(size)) for size in table.size])
        found.append(Column(SIZE, text, area if len(set(text)) > FEW else None))
    return found


def _numbers(values: Sequence[str | None]) -> Floats | None:
    known = [value for value in values if value is not None]
    if not known or len(set(known)) <= FEW or not all(NUMBER.fullmatch(value) for value in known):
        return None
    numbers = np.array([np.nan if value is None else float(value) for value in values])
    return numbers if not np.isinf(numbers).any() else None


def grouped(column: Column, by: Bools) -> tuple[list[str], list[str]]:
    """The group of each case, n names, and the groups in their order. Quantities are cut at the quartiles of the cases `by`."""
    if column.number is None:
        names = [UNKNOWN if value is None else value for value in column.text]
        return names, sorted(set(names), key=lambda name: (name == UNKNOWN, name))
    known = column.number[by & ~np.isnan(column.number)]
    if not known.size:
        known = column.number[~np.isnan(column.number)]
    cuts = np.unique(np.quantile(known, [0.25, 0.5, 0.75]))
    labels = [f"up to {cuts[0]:g}", *(f"{a:g} to {b:g}" for a, b in pairwise(cuts)), f"above {cuts[-1]:g}"]
    place = np.searchsorted(cuts, column.number, "left")
    return [UNKNOWN if np.isnan(x) else labels[p] for x, p in zip(column.number, place)], [*labels, UNKNOWN]


def shown(sizes: Mapping[str, int]) -> list[str]:
    """The groups that may be told: LEAST or more. Were one alone left out, the total would tell its size: the next goes too."""
    told = [name for name, n in sizes.items() if n >= LEAST]
    if told and len(told) == len(sizes) - 1:
        told.remove(min(told, key=lambda name: sizes[name]))
    return told


def sizes(names: Sequence[str], patient: Sequence[str] | None) -> dict[str, int]:
    """The size of each group: its patients, where they are known, else its cases."""
    people: dict[str, set[str]] = {}
    for i, name in enumerate(names):
        people.setdefault(name, set()).add(str(i) if patient is None else patient[i])
    return {name: len(each) for name, each in people.items()}
