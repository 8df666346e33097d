"""Whether a table as a whole is what its header says.   sampled rows of each piece -> medians a laboratory -> faults

A laboratory in another unit, or with two columns swapped, is told by its medians: they lie where another unit's or another
analyte's would. Two columns of like concentrations (C14OH, C16OH) cannot be told apart by this, nor by anything here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from math import exp, log

import numpy as np

from hpcai.book.analytes import Dictionary
from hpcai.screening.batch import Floats, Ints, RowFault, Texts
from hpcai.screening.cells import DECIMAL_COMMA, NO_NUMBER

SAMPLED = 4096  # rows of a piece whose medians are taken
MIN_ROWS = 10  # of a laboratory: fewer say nothing of its unit
OFF = log(20)  # of one analyte: no two laboratories' medians differ by so much, every usual mistake of unit does by more
ALL_OFF = log(3)  # of the median analyte, where at least MIN_ANALYTES are judged: mg/L is 3 to 13 times lower
MIN_ANALYTES = 5
SWAP_OWN, SWAP_CROSS = log(3), log(1.7)  # a swapped pair is this far from its own typical values, this near to each other's
NEAR_DETECTION = 3.0  # times the limit: below it, a low median says nothing
MONTH = re.compile(r"\d{4}-\d{2}", re.ASCII)
UNITS = {  # of a column, by the end of its name: what its median is divided by, if it is in another unit
    "_h": {"days": 1 / 24, "minutes": 60.0},
    "_weeks": {"days": 7.0, "months": 12 / 52.18},
    "_g": {"kg": 1 / 1000, "pounds": 1 / 453.6, "ounces": 1 / 28.35},
}


@dataclass
class Population:
    """What the sampled rows say of the table; a fault is kept once a column, with the rows of its first sight."""

    dictionary: Dictionary
    _seen: dict[tuple[str, str], str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Lists what has a typical value: analytes, then numeric columns."""
        given = [(c.name, c.typical) for c in self.dictionary.columns if c.kind == "number"]
        known = [(name, log(typical)) for name, typical in given if typical]
        self.names = [a.name for a in self.dictionary.analytes] + [name for name, _ in known]
        self._typical = np.array([log(a.typical) for a in self.dictionary.analytes] + [value for _, value in known])
        self._detection = np.array([a.detection for a in self.dictionary.analytes] + [0.0] * len(known))

    def look(self, rows: str, x_NM: Floats, laboratory_N: Texts, unread: Sequence[RowFault]) -> None:
        """Takes in some rows (`rows 2 to 4097`): x as written, in the order of `names`, and the cells that are no numbers."""
        self._unread(rows, x_NM, unread)
        if len(laboratory_N) >= 2 * MIN_ROWS and 2 * len(np.unique(laboratory_N)) > len(laboratory_N):
            self._note("laboratory", "({rows}): most of the rows name another one. Does it hold ids?", rows)
        for part, where in _laboratories(laboratory_N, rows):
            self._medians(where, x_NM[part])

    def look_at_months(self, rows: str, month_N: Texts) -> None:
        """Takes in the months of some rows: pages and records name them, so they must be some."""
        strange = sum(int(n) for word, n in zip(*np.unique(month_N, return_counts=True)) if word and not MONTH.fullmatch(word))
        if 2 * strange > len(month_N):
            self._note("month", "({rows}): most of the cells are no months. Write them as 2026-11.", rows)

    def faults(self) -> list[str]:
        """One message a kind of fault and place."""
        together: dict[str, list[str]] = {}
        for (column, kind), where in self._seen.items():
            together.setdefault(kind.format(rows=where), []).append(column)
        return [f"data: {_columns(columns)} {kind}" for kind, columns in together.items()]

    def _note(self, column: str, kind: str, rows: str) -> None:
        self._seen.setdefault((column, kind), rows)

    def _unread(self, rows: str, x_NM: Floats, unread: Sequence[RowFault]) -> None:
        for j, name in enumerate(self.names):
            count = {why: sum(f.column == name and f.why == why for f in unread) for why in (DECIMAL_COMMA, NO_NUMBER)}
            full = sum(count.values()) + int(np.isfinite(x_NM[:, j]).sum())
            if count[DECIMAL_COMMA] * 2 > full:
                self._note(name, "({rows}): decimal commas. Write numbers with a point.", rows)
            elif count[NO_NUMBER] * 2 > full >= MIN_ROWS:
                self._note(name, "({rows}): most of the cells are no numbers. Correct the column.", rows)

    def _medians(self, rows: str, x_NM: Floats) -> None:
        """Compares the logarithms of medians (of positive values) with the typical ones."""
        with np.errstate(invalid="ignore", divide="ignore"):
            logs = np.where((x_NM > 0) & np.isfinite(x_NM), np.log(x_NM), np.nan)
        enough = np.flatnonzero(np.isfinite(logs).sum(axis=0) >= MIN_ROWS)
        medians = {int(j): float(np.nanmedian(logs[:, j])) for j in enough}
        off = {j: m - self._typical[j] for j, m in medians.items()}
        swapped = {j for pair in self._swapped(medians, off) for j in pair}
        for a, b in self._swapped(medians, off):
            self._note(
                f"{self.names[a]} and {self.names[b]}",
                "({rows}): each holds what is usual for the other. Are they swapped?",
                rows,
            )
        analytes = len(self.dictionary.analytes)
        judged = {j: d for j, d in off.items() if j < analytes and (d > 0 or self._far_from_detection(j))}
        if len(judged) >= MIN_ANALYTES and abs(shift := float(np.median(list(judged.values())))) > ALL_OFF:
            self._note(
                "of all analytes", f"({{rows}}): {_times(shift)}: another unit?{_unit(shift)} Convert them to umol/L.", rows
            )
        else:
            for j, d in judged.items():
                if j not in swapped and abs(d) > OFF:
                    self._note(self.names[j], f"({{rows}}): {_times(d)}: another unit?{_unit(d)} Convert it to umol/L.", rows)
        for j, d in off.items():
            if j >= analytes and j not in swapped and (unit := _other_unit(self.names[j], d)):
                self._note(self.names[j], f"({{rows}}): {_times(d)}: is it in {unit}? Convert it to what its name says.", rows)

    def _far_from_detection(self, j: int) -> bool:
        return bool(exp(self._typical[j]) >= NEAR_DETECTION * self._detection[j])

    def _swapped(self, medians: dict[int, float], off: dict[int, float]) -> Iterator[tuple[int, int]]:
        strange = [j for j, d in off.items() if abs(d) > SWAP_OWN]
        for a, b in combinations(strange, 2):
            if abs(medians[a] - self._typical[b]) < SWAP_CROSS and abs(medians[b] - self._typical[a]) < SWAP_CROSS:
                yield a, b


def _laboratories(laboratory_N: Texts, rows: str) -> Iterator[tuple[Ints, str]]:
    """Places of each laboratory's rows, small ones together, and how a message calls them: never by name."""
    names, which, counts = np.unique(laboratory_N, return_inverse=True, return_counts=True)
    where = rows if len(names) == 1 else f"one laboratory's, among {rows}"
    for k in np.flatnonzero(counts >= MIN_ROWS):
        yield np.flatnonzero(which == k), where
    small = np.flatnonzero((counts < MIN_ROWS)[which])
    if len(small) >= MIN_ROWS:
        yield small, rows


def _columns(names: list[str]) -> str:
    if len(names) == 1:
        return f"column{'s' * (' ' in names[0])} {names[0]}"
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return f"columns {', '.join(names[:5])}{more}"


def _times(shift: float) -> str:
    factor = float(f"{exp(abs(shift)):.1g}")
    return f"the median is about {factor:.0f} times {'higher' if shift > 0 else 'lower'} than usual"


def _unit(shift: float) -> str:
    """The unit that an analyte may be in, of molar masses from 75 (Gly) to 428 g/mol (C18): mg/dL is MM / 10^4 of umol/L."""
    for unit, least, most in (
        ("nmol/L", 500.0, 2000.0),
        ("mg/L", 0.075 / 1.2, 0.43 * 1.2),
        ("mg/dL", 0.0075 / 2, 0.043 * 1.4),
        ("mmol/L", 0.0005, 0.002),
    ):
        if log(least) <= shift <= log(most):
            return f" {unit}?"
    return ""


def _other_unit(name: str, shift: float) -> str:
    """The unit whose factor is nearer to `shift` than no factor is; "" if none is."""
    factors = next((units for end, units in UNITS.items() if name.endswith(end)), {})
    near = min(factors, key=lambda unit: abs(shift - log(factors[unit])), default="")
    return near if near and abs(shift - log(factors[near])) < abs(shift) and abs(shift) > log(2) else ""
