"""What a laboratory's population looks like.   batches -> integer counts by laboratory, month and channel -> median, scale

A channel's values are counted in bins that are evenly spaced in log, nearly: a bin is the exponent and the first five binary
digits of the number itself, so that no logarithm rounds and any order, sharding or machine gives equal counts, byte by byte.

Shape letters: n newborns, A analytes, C channels (analytes, then ratios), B bins, G groups (a laboratory in a month).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from hpcai.book.analytes import Dictionary
from hpcai.errors import DataError
from hpcai.metrics.shift import SIGNIFICANT, kolmogorov
from hpcai.screening.batch import Batch, Bools, Floats, Ints, Texts

MINIMUM = 120  # newborns of a reference. Source: CLSI EP28-A3c, to establish an interval without a law.
LEAST_SCALE = 0.05  # sd of logs; assumed: no assay of dried blood repeats itself better than 5 %, so none looks narrower
DISTANCE = 0.05  # between two distribution functions; assumed: 1 newborn in 20 in another place moves no threshold by much
DIGITS = 5  # binary digits of a bin: 32 bins an octave, each 2.2 to 3.1 % wide
BINS = 16 << DIGITS  # eight octaves (256-fold) to each side of the typical value; what lies beyond counts in the last bin
MOST_GROUPS = 1000  # laboratories' months: 0.3 MB each; more are ids or days in a wrong column
_SHIFT = 52 - DIGITS  # of a double's bits
TENTHS = 2.5631031310892007  # sd of a normal law between its first and last decile


@dataclass(frozen=True)
class Reference:
    """Middle and spread of a laboratory's newborns.

    Attributes:
        laboratory: its name.
        month: "" for the laboratory as a whole.
        n: newborns that were counted.
        median_C: (C,) natural log of the median; NaN for a channel with fewer than `MINIMUM` values.
        scale_C: (C,) robust sd of the natural logs: between the deciles, as if normal; at least `LEAST_SCALE`, NaN as above.
        months: of the months that lie elsewhere than the laboratory as a whole.
    """

    laboratory: str
    month: str
    n: int
    median_C: Floats
    scale_C: Floats
    months: Mapping[str, Reference] = field(default_factory=dict)

    def at(self, month: str) -> Reference:
        """The month's own where it lies elsewhere, else the laboratory's."""
        return self.months.get(month, self)


def channels_of(dictionary: Dictionary, x_NA: Floats) -> Floats:
    """(n, C): the analytes and their ratios; NaN where a value is missing or no positive number, or a ratio's bottom is."""
    n, analytes = x_NA.shape
    x_NC = np.empty((n, len(dictionary.channels)))
    with np.errstate(invalid="ignore"):
        x_NC[:, :analytes] = np.where((x_NA > 0) & (x_NA < np.inf), x_NA, np.nan)
    place = {a.name: i for i, a in enumerate(dictionary.analytes)}
    with np.errstate(over="ignore"):
        for c, ratio in enumerate(dictionary.ratios, analytes):
            np.divide(x_NC[:, place[ratio.top]], x_NC[:, place[ratio.bottom]], out=x_NC[:, c])
    x_NC[x_NC == np.inf] = np.nan  # a ratio past all numbers
    return x_NC


def months_of(batch: Batch) -> Texts:
    """(n,) the month of each row; "" where the table has none."""
    return batch.text.get("month", np.zeros(len(batch), "U1"))


class Survey:
    """Counts of a table's values. Adding and merging commute: a cohort in shards is surveyed as in one piece.

    Attributes:
        counts: (laboratory, month) -> (C, B + 1) int64; the last column counts what is missing.
    """

    def __init__(self, dictionary: Dictionary, months: bool = True, without: Collection[tuple[str, str]] = ()) -> None:
        """Nothing is counted yet.

        Args:
            dictionary: of the table.
            months: False counts all months of a laboratory as one: what a model keeps of its training rows.
            without: (laboratory, plate) that are left out: plates whose controls failed say nothing of the newborns.
        """
        self.dictionary, self.by_month, self.without = dictionary, months, frozenset(without)
        self.counts: dict[tuple[str, str], Ints] = {}
        typical = {a.name: a.typical for a in dictionary.analytes}
        middle = [*typical.values(), *(typical[r.top] / typical[r.bottom] for r in dictionary.ratios)]
        self.first_C: Ints = (np.array(middle).view(np.int64) >> _SHIFT) - BINS // 2
        edges = ((self.first_C[:, None] + np.arange(BINS + 1)) << _SHIFT).view(np.float64)
        self.edge_CB: Floats = np.log(edges)  # (C, B + 1) natural log of the bins' ends

    def bins(self, x_NC: Floats) -> Ints:
        """(n, C): the bin of each value; B for what is missing."""
        bin_NC = x_NC.view(np.int64) >> _SHIFT
        bin_NC -= self.first_C
        np.clip(bin_NC, 0, BINS - 1, out=bin_NC)
        bin_NC[np.isnan(x_NC)] = BINS
        return bin_NC

    def add(self, batch: Batch, where: Bools | None = None) -> None:
        """Count the rows of a batch; with `where` (n,) only those (training: the unaffected).

        Raises:
            DataError: there are more than `MOST_GROUPS` months of laboratories.
        """
        x_NA, laboratory = batch.x_NA, batch.text["laboratory"]
        if self.without:
            where = self.counts_row(batch) if where is None else where & self.counts_row(batch)
        month = months_of(batch) if self.by_month else np.zeros(len(batch), "U1")
        if where is not None:
            x_NA, laboratory, month = x_NA[where], laboratory[where], month[where]
        if not len(x_NA):
            return
        names, at_N = groups(laboratory, month)
        self._check_groups(len(self.counts.keys() | set(names)))
        bin_NC = self.bins(channels_of(self.dictionary, x_NA))
        channels, width = bin_NC.shape[1], BINS + 1
        bin_NC += (at_N[:, None] * channels + np.arange(channels)) * width
        counted = np.bincount(bin_NC.ravel(), minlength=len(names) * channels * width).reshape(-1, channels, width)
        for (name, when), count_CB in zip(names, counted, strict=True):
            self._more((name, when), count_CB)

    def _check_groups(self, n: int) -> None:
        if n > MOST_GROUPS:
            raise DataError(
                f"laboratory, month: {n} laboratories' months or more, at most {MOST_GROUPS} can be counted. "
                "Check that these columns hold laboratories and months (2026-11), no ids and no days."
            )

    def counts_row(self, batch: Batch) -> Bools:
        """(n,) whether a row's plate is not left out."""
        plates, at_N = groups(batch.text["laboratory"], batch.text["plate"])
        return np.array([plate not in self.without for plate in plates], bool)[at_N]

    def _more(self, group: tuple[str, str], count_CB: Ints) -> None:
        if group in self.counts:
            self.counts[group] += count_CB
        else:
            self.counts[group] = count_CB.copy()

    def merge(self, other: Survey) -> None:
        """Take in the counts of another survey by the same dictionary."""
        assert other.dictionary.channels == self.dictionary.channels and np.array_equal(other.first_C, self.first_C)
        self._check_groups(len(self.counts.keys() | other.counts.keys()))
        for (laboratory, month), count_CB in other.counts.items():
            self._more((laboratory, month if self.by_month else ""), count_CB)

    @property
    def laboratories(self) -> list[str]:
        """All that were met, sorted."""
        return sorted({laboratory for laboratory, _ in self.counts})

    def months(self, laboratory: str) -> list[str]:
        """The months of one, sorted; "" where the table has none."""
        return sorted(month for name, month in self.counts if name == laboratory)

    def n(self, laboratory: str | None = None, month: str | None = None) -> int:
        """Newborns that were counted (None: all)."""
        return int(self.total(laboratory, month)[0].sum())

    def total(self, laboratory: str | None = None, month: str | None = None) -> Ints:
        """(C, B + 1) the counts of a laboratory and a month (None: all)."""
        asked = [c for (name, when), c in self.counts.items() if laboratory in (None, name) and month in (None, when)]
        return np.asarray(np.sum([np.zeros((len(self.first_C), BINS + 1), np.int64), *asked], axis=0))

    def quantile(self, count_CB: Ints, q: float) -> Floats:
        """(C,) natural log of a quantile, straight within its bin; NaN for a channel without a value."""
        end_CB = np.cumsum(count_CB[:, :BINS], axis=1)
        want_C = q * end_CB[:, -1]
        at_C = np.minimum((end_CB < want_C[:, None]).sum(1), BINS - 1)
        c = np.arange(len(at_C))
        here_C = count_CB[c, at_C]
        with np.errstate(invalid="ignore", divide="ignore"):
            share_C = (want_C - (end_CB[c, at_C] - here_C)) / here_C
        low_C, high_C = self.edge_CB[c, at_C], self.edge_CB[c, at_C + 1]
        return np.asarray(low_C + share_C * (high_C - low_C))

    def middle(self, count_CB: Ints) -> tuple[Floats, Floats]:
        """(C,) median and (C,) robust sd of the natural logs; NaN for a channel with fewer than `MINIMUM` values."""
        median_C, low_C, high_C = (self.quantile(count_CB, q) for q in (0.5, 0.1, 0.9))
        scale_C = np.maximum((high_C - low_C) / TENTHS, LEAST_SCALE)
        few_C = count_CB[:, :BINS].sum(1) < MINIMUM
        median_C[few_C] = scale_C[few_C] = np.nan
        return median_C, scale_C

    def reference(self, laboratory: str, month: str | None = None) -> Reference | None:
        """Of a laboratory with its months that lie elsewhere, or of one month; None where fewer than `MINIMUM` were counted."""
        count_CB = self.total(laboratory, month)
        n = int(count_CB[0].sum())
        if n < MINIMUM:
            return None
        months = {} if month is not None else self._elsewhere(laboratory, count_CB)
        return Reference(laboratory, month or "", n, *self.middle(count_CB), months)

    def references(self) -> dict[str, Reference]:
        """Every laboratory that has one."""
        found = {name: self.reference(name) for name in self.laboratories}
        return {name: reference for name, reference in found.items() if reference}

    def _elsewhere(self, laboratory: str, whole_CB: Ints) -> dict[str, Reference]:
        """Months with a reference in which some channel lies elsewhere than in the laboratory as a whole."""
        months = self.months(laboratory)
        found = {month: self.reference(laboratory, month) for month in months if len(months) > 1}
        return {m: r for m, r in found.items() if r and lies_elsewhere(self.counts[laboratory, m], whole_CB)}

    def to_json(self) -> dict[str, Any]:
        """Plain numbers, in one order whatever the order of adding: a channel as [its first bin, counts from there, ...]."""
        groups = []
        for (laboratory, month), count_CB in sorted(self.counts.items()):
            bins = [_packed(count_B) for count_B in count_CB[:, :BINS]]
            missing = count_CB[:, BINS].tolist()
            groups.append({"laboratory": laboratory, "month": month, "missing": missing, "bins": bins})
        return {"channels": self.dictionary.channels, "first": self.first_C.tolist(), "groups": groups}

    @classmethod
    def from_json(
        cls, dictionary: Dictionary, value: dict[str, Any], months: bool = True, without: Collection[tuple[str, str]] = ()
    ) -> Survey:
        """What `to_json` wrote.

        Raises:
            DataError: it is of another dictionary, or no survey.
        """
        survey = cls(dictionary, months, without)
        try:
            if value["channels"] != dictionary.channels or value["first"] != survey.first_C.tolist():
                raise DataError("survey: it was counted by another dictionary of analytes. Count the table again.")
            for group in value["groups"]:
                count_CB = np.zeros((len(survey.first_C), BINS + 1), np.int64)
                count_CB[:, BINS] = group["missing"]
                for count_B, packed in zip(count_CB, group["bins"], strict=True):
                    count_B[packed[0] : packed[0] + len(packed) - 1] = packed[1:]
                if count_CB.min() < 0 or len(set(count_CB.sum(1).tolist())) != 1:
                    raise ValueError
                survey._more((str(group["laboratory"]), str(group["month"]) if months else ""), count_CB)
        except (KeyError, TypeError, ValueError, IndexError, OverflowError):
            raise DataError("survey: damaged: counts of a laboratory do not fit together. Count the table again.") from None
        return survey


def lies_elsewhere(first_CB: Ints, second_CB: Ints, least: int = MINIMUM) -> bool:
    """Whether some channel is distributed otherwise: by Kolmogorov and Smirnov's test, and by enough to matter.

    Only channels with `least` values in both are compared.
    """
    n_C, m_C = (count_CB[:, :BINS].sum(1) for count_CB in (first_CB, second_CB))
    ends = (np.cumsum(c[:, :BINS], axis=1) / np.maximum(c[:, :BINS].sum(1, keepdims=True), 1) for c in (first_CB, second_CB))
    distance_C = np.where(np.minimum(n_C, m_C) >= least, np.abs(np.subtract(*ends)).max(1), 0)
    p = [kolmogorov(float(distance_C[c]), int(n_C[c]), int(m_C[c])) for c in np.flatnonzero(distance_C > DISTANCE)]
    return min(p, default=1.0) * len(n_C) < SIGNIFICANT


def _packed(count_B: Ints) -> list[int]:
    """The counts without the zeros at both ends, after the number of the first bin."""
    there = np.flatnonzero(count_B)
    return [int(there[0]), *count_B[there[0] : there[-1] + 1].tolist()] if len(there) else [0]


def groups(*keys: Any) -> tuple[list[tuple[str, ...]], Ints]:
    """The distinct rows of text columns (n,), sorted, and (n,) which of them each row is.

    Only the first of rows that repeat one another is sorted: a table comes plate by plate.
    """
    new_N = np.ones(len(keys[0]), np.bool_)
    if len(new_N):
        new_N[1:] = np.any([key[1:] != key[:-1] for key in keys], axis=0)
    values, codes = zip(*(np.unique(key[new_N], return_inverse=True) for key in keys), strict=True)
    code_N = np.ravel_multi_index(codes, [len(v) for v in values])
    found, at_N = np.unique(code_N, return_inverse=True)
    parts = np.unravel_index(found, [len(v) for v in values])
    names = [tuple(str(v[i]) for v, i in zip(values, row, strict=True)) for row in zip(*parts, strict=True)]
    return names, at_N.astype(np.int64)[np.cumsum(new_N) - 1]
