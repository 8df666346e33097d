"""Two models on the same cases: rows of each -> difference of each measure with its interval -> a verdict against a margin.

A side is one run, or several that differ in their seed alone: its measure is then their mean. Cases are drawn again once for
both sides (whole patients where they repeat), so that what makes a case hard for both cancels. Shape letters: n cases, b
resamples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from hpcai.metrics.classification import Threshold, predicted, units, weighted_macro_auc
from hpcai.metrics.intervals import RESAMPLES, Interval, Z, edge, newcombe, percentile, resampled, wilson
from hpcai.metrics.rows import Bools, Floats, Ints, Rows

Measure = Callable[[Ints], Floats]  # weights (b, n) -> (b,)


@dataclass(frozen=True)
class Judged:
    """The rows of one run with the operating point that it calls cases by. Rows are in the order of case ids."""

    rows: Rows
    threshold: Threshold | None


@dataclass(frozen=True)
class Difference:
    """A side's measure less the other's, in [-1, 1].

    Attributes:
        name: of the measure.
        first: the first side's value; None where it is not defined.
        second: the other side's.
        value: first - second.
        low: lower end of the 95 % interval; also the end of a one-sided interval of 97.5 %.
        high: upper end.
        n: cases that count for it.
        method: how the interval was made.
    """

    name: str
    first: float | None
    second: float | None
    value: float | None
    low: float | None
    high: float | None
    n: int
    method: str


def names(classes: int) -> list[str]:
    """The measures that sides are compared in, the primary one first; of each, more is better."""
    if classes == 2:
        return ["auc", "sensitivity", "specificity", "accuracy"]
    return ["macro_auc", "accuracy", *(f"sensitivity[{k}]" for k in range(classes))]


def value_of(judged: Judged, name: str) -> float | None:
    """One run's measure; None where it is not defined."""
    value = float(_measure(judged, name)(np.ones((1, len(judged.rows.case)), np.int64))[0])
    return None if math.isnan(value) else value


def differences(first: Sequence[Judged], second: Sequence[Judged]) -> list[Difference]:
    """Every measure of the first side less the second's. All rows hold the same cases with the same labels, all labelled."""
    wanted = names(first[0].rows.classes)
    measures = [mean_measure(side, name) for name in wanted for side in (first, second)]
    groups, unit = units(first[0].rows)
    drawn = resampled(lambda w: np.stack([m(w) for m in measures], 1), groups)
    ones = np.ones((1, len(first[0].rows.case)), np.int64)
    points = [float(m(ones)[0]) for m in measures]
    return [
        _difference(name, first, second, (points[2 * i], points[2 * i + 1]), drawn[:, 2 * i] - drawn[:, 2 * i + 1], unit)
        for i, name in enumerate(wanted)
    ]


def mean_measure(side: Sequence[Judged], name: str) -> Measure:
    """The mean of a side's runs, of each resample."""
    each = [_measure(judged, name) for judged in side]
    return lambda weight: np.asarray(np.mean([m(weight) for m in each], 0), np.float64)


def _measure(judged: Judged, name: str) -> Measure:
    rows = judged.rows
    if name in ("auc", "macro_auc"):
        return lambda weight: weighted_macro_auc(weight, rows)
    right, among = predicted(rows, judged.threshold) == rows.label, counted(rows, name)

    def share(weight: Ints) -> Floats:
        total = weight[:, among].sum(1).astype(np.float64)
        total[total == 0] = np.nan
        return np.asarray(weight[:, among & right].sum(1) / total, np.float64)

    return share


def counted(rows: Rows, name: str) -> Bools:
    """(n,) the cases that a measure counts."""
    if name in ("auc", "macro_auc", "accuracy"):
        return np.ones(len(rows.case), bool)
    k = {"sensitivity": 1, "specificity": 0}.get(name)
    return np.asarray(rows.label == (int(name[:-1].split("[")[1]) if k is None else k))


def _difference(
    name: str, first: Sequence[Judged], second: Sequence[Judged], points: tuple[float, float], drawn: Floats, unit: str
) -> Difference:
    rows = first[0].rows
    n = int(counted(rows, name).sum())
    mine, other = (None if math.isnan(point) else point for point in points)
    if mine is None or other is None:
        return Difference(name, mine, other, None, None, None, n, "not defined: one class only")
    (low, high), method = _interval(name, first, second, points, drawn, unit)
    return Difference(name, mine, other, mine - other, low, high, n, method)


def _interval(
    name: str, first: Sequence[Judged], second: Sequence[Judged], points: tuple[float, float], drawn: Floats, unit: str
) -> tuple[Interval, str]:
    """Tango's where a proportion of one run a side is counted in independent cases, else the bootstrap's.

    Where no resample differs from another the bootstrap knows nothing, and the interval is as wide as of two sides that share
    no case. Sides with equal scores on each case, called alike, are one model: they differ nowhere.
    """
    rows = first[0].rows
    if _same(first, second):
        return (0.0, 0.0), "equal scores on every case"
    assumed = "" if rows.patient is not None else ", taken as independent"
    if name not in ("auc", "macro_auc") and len(first) == len(second) == 1 and unit == "cases":
        among = counted(rows, name)
        right, other = (predicted(j.rows, j.threshold)[among] == rows.label[among] for j in (first[0], second[0]))
        return tango(int((right & ~other).sum()), int((other & ~right).sum()), int(among.sum())), f"Tango; cases{assumed}"
    interval = percentile(drawn)
    if interval is not None:
        return interval, f"paired bootstrap; {RESAMPLES} resamples of {unit}{assumed if unit == 'cases' else ''}"
    return _apart(name, rows, points, unit), f"as of unpaired {unit}: no resample differs{assumed if unit == 'cases' else ''}"


def _same(first: Sequence[Judged], second: Sequence[Judged]) -> bool:
    if len(first) != len(second):
        return False
    return all(
        np.array_equal(a.rows.scores, b.rows.scores)
        and np.array_equal(predicted(a.rows, a.threshold), predicted(b.rows, b.threshold))
        for a, b in zip(first, second, strict=True)
    )


def _apart(name: str, rows: Rows, points: tuple[float, float], unit: str) -> Interval:
    """The interval of a difference from those of its two sides, without what pairing gains; one case a patient counted.

    Source: Newcombe 1998, doi 10.1002/(SICI)1097-0258(19980430)17:8<873::AID-SIM779>3.0.CO;2-I (method 10).
    """

    def size(among: Bools) -> int:
        if unit == "cases" or rows.patient is None:
            return int(among.sum())
        return len({patient for patient, counts in zip(rows.patient, among, strict=True) if counts})

    if name in ("auc", "macro_auc"):
        sizes = [size(rows.label == k) for k in range(rows.classes)]
        rarest = min(n for n in sizes if n)
        others = sizes[0] if rows.classes == 2 and rarest == sizes[1] else sum(sizes) - rarest
        sides = [newcombe(point, rarest, max(1, others)) for point in points]
    else:
        n = size(counted(rows, name))
        sides = [wilson(point * n, n) for point in points]
    (a, b), ((low_a, high_a), (low_b, high_b)) = points, sides
    return a - b - math.hypot(a - low_a, high_b - b), a - b + math.hypot(high_a - a, b - low_b)


def tango(only_first: int, only_second: int, n: int) -> Interval:
    """The score interval of the difference of two proportions of the same n > 0 cases.

    `only_first`: cases that the first side alone has right. With no such case on either side it is +- z^2 / (n + z^2): to agree
    on few cases shows little.

    Source: Tango 1998, doi 10.1002/(SICI)1097-0258(19980430)17:8<891::AID-SIM780>3.0.CO;2-B, sections 2 and 3.
    """
    b, c = only_first, only_second

    def inside(delta: float) -> bool:
        """Whether the score test does not reject a difference of `delta`: q is the restricted estimate of c / n."""
        twice = 2 * n
        middle = -b - c + (twice - b + c) * delta
        q = (math.sqrt(max(0.0, middle**2 + 4 * twice * c * delta * (1 - delta))) - middle) / (2 * twice)
        variance = n * (2 * q + delta * (1 - delta))
        return (b - c - n * delta) ** 2 <= Z * Z * max(0.0, variance)

    return edge(inside, (b - c) / n, -1.0), edge(inside, (b - c) / n, 1.0)


def verdict(difference: Difference, margin: float) -> str:
    """What the difference says about being worse by no more than `margin`: one of three words, by the whole 95 % interval.

    `non-inferior`: its lower end lies above -margin, which is a one-sided test at 2.5 %. `inferior`: all of it lies below.
    Source: ICH E9 1998, section 3.3.2; Piaggio et al. 2012, doi 10.1001/jama.2012.87802 (figure 1).
    """
    if difference.low is None or difference.high is None:
        return "not shown"
    if difference.low > -margin:
        return "non-inferior"
    return "inferior" if difference.high < -margin else "not shown"
