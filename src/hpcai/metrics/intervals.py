"""95 % intervals and the test of two proportions: pure functions of counts and arrays.

Each is chosen to stay in [0, 1] and to keep a sensible width where the estimate is 0 or 1.
Shape letters: n cases, b resamples, P patients.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from hpcai.metrics.rows import Bools, Floats, Ints

Z = 1.959963984540054  # the normal distribution's 97.5 % point: two-sided 95 %
RESAMPLES = 1000
SEED = 0  # of the bootstrap: the same rows give the same interval
BLOCK = 4_000_000  # weights held at a time (resamples x cases): 32 MB

Interval = tuple[float, float]


def wilson(k: float, n: float) -> Interval:
    """The score interval of the proportion k/n, n > 0.

    Source: Wilson 1927, doi 10.1080/01621459.1927.10502953.
    """
    p, z2 = k / n, Z * Z
    middle = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = Z * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n)) / (1 + z2 / n)
    return (0.0 if k == 0 else max(0.0, middle - half), 1.0 if k == n else min(1.0, middle + half))


def midranks(score: Floats) -> Floats:
    """Ranks from 1, ties share their mean rank: (n,) -> (n,)."""
    _, inverse, counts = np.unique(score, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return np.asarray((last - (counts - 1) / 2)[inverse], np.float64)


def placements(label: Bools, score: Floats) -> tuple[Floats, Floats]:
    """For each positive the share of negatives below it, for each negative the share of positives above it.

    Ties count one half. The mean of either is the AUC. Source: Sun & Xu 2014, doi 10.1109/LSP.2014.2337313.
    """
    pos, neg = score[label], score[~label]
    rank = midranks(score)
    return (rank[label] - midranks(pos)) / len(neg), 1 - (rank[~label] - midranks(neg)) / len(pos)


def delong(label: Bools, score: Floats) -> Interval | None:
    """The interval of the AUC by DeLong's variance on the logit scale; None where that is 0 or unknown.

    Both classes must occur. On the logit scale the interval stays within (0, 1).
    Source: DeLong et al. 1988, doi 10.2307/2531595; logit: Pepe 2003, The Statistical Evaluation of Medical
    Tests, section 5.2.
    """
    above, below = placements(label, score)
    if min(len(above), len(below)) < 2:
        return None
    variance = float(above.var(ddof=1) / len(above) + below.var(ddof=1) / len(below))
    auc = float(above.mean())
    if variance <= 1e-18 or not 0 < auc < 1:  # below rounding: no spread at all
        return None
    middle, half = math.log(auc / (1 - auc)), Z * math.sqrt(variance) / (auc * (1 - auc))
    return _expit(middle - half), _expit(middle + half)


def newcombe(auc: float, positives: int, negatives: int) -> Interval:
    """The interval of an AUC from its value and the two counts alone: wide enough where all scores are apart.

    The score interval with Hanley and McNeil's variance at mean group size.
    Source: Newcombe 2006, doi 10.1002/sim.2324 (method 5); Hanley & McNeil 1982, Radiology 143:29-36.
    """
    size = (positives + negatives) / 2

    def inside(t: float) -> bool:
        spread = 1 + (size - 1) * ((1 - t) / (2 - t) + t / (1 + t))
        return (t - auc) ** 2 <= Z * Z * t * (1 - t) * spread / (positives * negatives)

    return _edge(inside, auc, 0.0), _edge(inside, auc, 1.0)


def bootstrap(statistic: Callable[[Ints], Floats], groups: NDArray[np.str_]) -> Interval | None:
    """The percentile interval of `statistic` when whole groups (patients, or cases) are drawn again.

    Args:
        statistic: weights (b, n), how often each case was drawn -> (b,) values, NaN where undefined.
        groups: (n,) the group of each case.

    Returns: the interval; None if no resample differs from another (there is nothing to learn from).
    """
    return percentile(resampled(statistic, groups))


def resampled(statistic: Callable[[Ints], Floats], groups: NDArray[np.str_]) -> Floats:
    """`statistic` of each resample, (RESAMPLES,) or (RESAMPLES, ...): the same draws for the same groups, so that values pair.

    Source: Efron & Tibshirani 1993, An Introduction to the Bootstrap, chapter 13; whole patients: Field and
    Welsh 2007, doi 10.1111/j.1467-9868.2007.00593.x.
    """
    _, group = np.unique(groups, return_inverse=True)  # sorted: the order of the rows does not matter
    size = int(group.max()) + 1
    rng = np.random.Generator(np.random.PCG64(SEED))
    values: list[Floats] = []
    step = max(1, BLOCK // max(size, len(group)))
    for start in range(0, RESAMPLES, step):
        b = min(step, RESAMPLES - start)
        drawn = rng.integers(size, size=(b, size)) + np.arange(b)[:, None] * size
        weight = np.bincount(drawn.ravel(), minlength=b * size).reshape(b, size)
        values.append(statistic(weight[:, group]))
    return np.concatenate(values)


def percentile(value: Floats) -> Interval | None:
    """The middle 95 % of resampled values (b,), NaN left out; None if no value differs from another."""
    value = value[~np.isnan(value)]
    if not value.size or value.min() == value.max():
        return None
    low, high = np.quantile(value, [0.025, 0.975])
    return float(low), float(high)


def weighted_auc(weight: Ints, label: Bools, score: Floats) -> Floats:
    """The AUC of each resample: weights (b, n) -> (b,), NaN where a class was not drawn."""
    order = np.argsort(score, kind="stable")
    starts = np.flatnonzero(np.diff(score[order], prepend=-np.inf))  # where a new score begins: ties stay together
    weight = weight[:, order]
    pos = np.add.reduceat(weight * label[order], starts, axis=1)
    neg = np.add.reduceat(weight, starts, axis=1) - pos
    below = np.cumsum(neg, axis=1) - neg / 2
    pairs = (pos.sum(1) * neg.sum(1)).astype(np.float64)
    pairs[pairs == 0] = np.nan
    return np.asarray((pos * below).sum(1) / pairs, np.float64)


def two_proportions(k1: int, n1: int, k2: int, n2: int) -> float:
    """The two-sided p of k1/n1 and k2/n2 being one proportion: the pooled z test. Counts n are positive."""
    pooled = (k1 + k2) / (n1 + n2)
    variance = pooled * (1 - pooled) * (1 / n1 + 1 / n2)
    return math.erfc(abs(k1 / n1 - k2 / n2) / math.sqrt(2 * variance)) if variance else 1.0


def _expit(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


def _edge(inside: Callable[[float], bool], start: float, end: float) -> float:
    """The last point that is `inside` on the way from `start` to `end`, by halving."""
    if inside(end):
        return end
    for _ in range(60):
        middle = (start + end) / 2
        start, end = (middle, end) if inside(middle) else (start, middle)
    return start
