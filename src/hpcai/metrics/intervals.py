"""95 % intervals and the test of two proportions: pure functions of counts and arrays.

Each is chosen to stay in [0, 1] and to keep a sensible width where the estimate is 0 or 1.
Shape letters: n cases, b resamples, P patients.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpcai.metrics.rows import Bools, Floats, Ints

Z = 1.959963984540054  # the normal distribution's 97.5 % point: two-sided 95 %
RESAMPLES = 2000
SEED = 0  # of the bootstrap: the same rows give the same interval
BLOCK = 80_000  # weights at a time (resamples x cases): what a core's cache holds

Interval = tuple[float, float]


def wilson(k: float, n: float) -> Interval:
    """The score interval of the proportion k/n, n > 0.

    Source: Wilson 1927, doi 10.1080/01621459.1927.10502953.
    """
    p, z2 = k / n, Z * Z
    middle = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = Z * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n)) / (1 + z2 / n)
    return (0.0 if k == 0 else max(0.0, middle - half), 1.0 if k == n else min(1.0, middle + half))


def clopper_pearson(k: int, n: int) -> Interval:
    """The exact interval of the proportion k/n, n > 0: never too narrow, however rare what is counted.

    Source: Clopper & Pearson 1934, doi 10.1093/biomet/26.4.404; the binomial's tail as an incomplete beta
    function: DLMF 8.17.5.
    """
    low = 0.0 if k == 0 else edge(lambda p: beta_share(p, k, n - k + 1) >= 0.025, k / n, 0.0)
    high = 1.0 if k == n else edge(lambda p: beta_share(p, k + 1, n - k) <= 0.975, k / n, 1.0)
    return low, high


def beta_share(x: float, a: float, b: float) -> float:
    """The regularised incomplete beta function I_x(a, b) of a, b > 0 and x in [0, 1], to 1e-8 for a and b up to millions.

    Source: the continued fraction DLMF 8.17.22 by Lentz's method (3.10(iii)); 8.17.4 where that converges faster.
    """
    if x <= 0 or x >= 1:
        return float(x >= 1)
    if x > (a + 1) / (a + b + 2):
        return 1 - beta_share(1 - x, b, a)
    front = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x) - math.log(a)
    value, upper, lower = 1.0, 1.0, 0.0
    for step in range(1, 20_000):  # some sqrt(max(a, b)) steps are enough
        m = step // 2
        first, second = (m, b - m) if step % 2 == 0 else (-(a + m), a + b + m)
        term = first * second * x / ((a + step - 1) * (a + step))
        lower = 1 / (1 + term * lower)
        upper = 1 + term / upper
        value *= upper * lower
        if abs(upper * lower - 1) < 1e-15:
            break
    return math.exp(front) / value


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

    return edge(inside, auc, 0.0), edge(inside, auc, 1.0)


def resampled(statistic: Callable[[NDArray[Any]], Floats], groups: NDArray[Any]) -> Floats:
    """`statistic` of each resample, (RESAMPLES,) or (RESAMPLES, ...), when whole groups (patients, or cases) are drawn again.

    The same draws for the same groups, so that values pair. `statistic`: weights (b, n), how often each case was drawn, to
    (b, ...) values, NaN where undefined; `groups`: (n,) the group of each case.

    Source: Efron & Tibshirani 1993, An Introduction to the Bootstrap, chapter 13; whole patients: Field and
    Welsh 2007, doi 10.1111/j.1467-9868.2007.00593.x.
    """
    _, group = np.unique(groups, return_inverse=True)  # sorted: the order of the rows does not matter
    size = int(group.max()) + 1
    alone = len(group) == size
    values: list[Floats] = []
    for drawn in _draws(size, max(1, BLOCK // max(size, len(group)))):
        b = len(drawn)
        if alone:  # counted where its case stands: no look through `group` for each weight
            place = np.empty(size, np.int64)
            place[group] = np.arange(size)
            drawn = place[drawn]
        weight = np.bincount((drawn + np.arange(b)[:, None] * size).ravel(), minlength=b * size).reshape(b, size)
        values.append(statistic(weight if alone else weight[:, group]))
    return np.concatenate(values)


def _draws(size: int, step: int) -> Iterator[Ints]:
    """RESAMPLES times `size` of `size` groups, in blocks of at most `step` resamples; the same whatever the block."""
    rng = np.random.Generator(np.random.PCG64(SEED))
    for start in range(0, RESAMPLES, step):
        yield rng.integers(size, size=(min(step, RESAMPLES - start), size))


def percentile(value: Floats) -> Interval | None:
    """The middle 95 % of resampled values (b,), NaN left out; None if no value differs from another."""
    value = value[~np.isnan(value)]
    if not value.size or value.min() == value.max():
        return None
    low, high = np.quantile(value, [0.025, 0.975])
    return float(low), float(high)


def on_logit(value: float, drawn: Floats, units: int) -> Interval | None:
    """The interval of an area under a curve from its resamples (b,): normal on the logit scale, with Student's t.

    Percentiles are too narrow for few cases (benchmarks/coverage.py). None where resamples do not differ, or value is 0 or 1.
    """
    error = _spread(drawn)
    if not error or not 0 < value < 1:
        return None
    middle, half = math.log(value / (1 - value)), student(units - 1) * error / (value * (1 - value))
    return _expit(middle - half), _expit(middle + half)


def effective(value: float, drawn: Floats, units: int) -> Interval | None:
    """The interval of a share from its resamples (b,): Wilson's, of as many cases as have that spread, by Student's t.

    None where resamples do not differ, or value is 0 or 1. Source: Korn & Graubard 1998, Survey Methodology 24:193-201 (the
    effective sample size with few clusters; there with another interval).
    """
    error = _spread(drawn)
    if not error or not 0 < value < 1:
        return None
    n = value * (1 - value) / error**2 * (Z / student(units - 1)) ** 2
    return wilson(value * n, n)


def studentised(value: Floats, groups: NDArray[Any]) -> Interval | None:
    """The interval of the mean of `value` (n,), by the bootstrap of its t statistic; None where all values are the same.

    Source: Efron & Tibshirani 1993, An Introduction to the Bootstrap, section 12.5.
    """
    _, group = np.unique(groups, return_inverse=True)
    total, count = np.bincount(group, value), np.bincount(group).astype(np.float64)
    size, mean = len(total), float(value.mean())
    few = size / max(1, size - 1)
    error = math.sqrt(float(((total - mean * count) ** 2).sum()) * few) / len(value)
    if error < 1e-15:
        return None
    found = []
    for drawn in _draws(size, max(1, BLOCK // size)):
        sums, counts = total[drawn], count[drawn]
        means = sums.sum(1) / counts.sum(1)
        errors = np.sqrt(((sums - means[:, None] * counts) ** 2).sum(1) * few) / counts.sum(1)
        found.append(np.divide(means - mean, errors, out=np.full(len(means), np.nan), where=errors > 1e-15))
    low, high = np.nanquantile(np.concatenate(found), [0.025, 0.975])
    return mean - float(high) * error, mean - float(low) * error


def mean_of_two(first: float, a: Interval, second: float, b: Interval) -> Interval:
    """The interval of the mean of two independent estimates, from their own intervals (MOVER).

    Source: Zou & Donner 2008, doi 10.1002/sim.3095.
    """
    low = math.hypot(first - a[0], second - b[0]) / 2
    high = math.hypot(a[1] - first, b[1] - second) / 2
    return (first + second) / 2 - low, (first + second) / 2 + high


def ratio_of_two(first: float, a: Interval, second: float, b: Interval) -> tuple[float, float | None]:
    """The interval of first / second, independent, second > 0; no upper end where b begins at 0.

    Source: Newcombe 2016, doi 10.1177/0962280213502144 (MOVER-R), written so that nothing cancels.
    """
    product, x, y = first * second, a[0] * (2 * first - a[0]), b[1] * (2 * second - b[1])
    root = math.sqrt(max(0.0, product**2 - x * y))
    low = x / (product + root) if product + root else 0.0
    x, y = a[1] * (2 * first - a[1]), b[0] * (2 * second - b[0])
    return low, (product + math.sqrt(max(0.0, product**2 - x * y))) / y if y > 0 else None


def student(df: int) -> float:
    """The 97.5 % point of Student's t with `df` degrees of freedom, to 4 digits; infinite for none.

    Source: exact for 1 and 2; above, Cornish-Fisher's expansion, Abramowitz & Stegun 1964, 26.7.5.
    """
    if df < 1:
        return math.inf
    if df < 3:
        return (12.706204736432095, 4.302652729911275)[df - 1]
    z, n = Z, float(df)
    return (
        z
        + (z**3 + z) / (4 * n)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * n**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * n**3)
        + (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / (92160 * n**4)
    )


def _spread(drawn: Floats) -> float:
    """The standard deviation of resampled values, NaN left out; 0 where they do not differ."""
    drawn = drawn[~np.isnan(drawn)]
    return float(drawn.std(ddof=1)) if len(drawn) > 1 and drawn.min() < drawn.max() else 0.0


def two_proportions(k1: int, n1: int, k2: int, n2: int) -> float:
    """The two-sided p of k1/n1 and k2/n2 being one proportion: the pooled z test. Counts n are positive."""
    pooled = (k1 + k2) / (n1 + n2)
    variance = pooled * (1 - pooled) * (1 / n1 + 1 / n2)
    return math.erfc(abs(k1 / n1 - k2 / n2) / math.sqrt(2 * variance)) if variance else 1.0


def _expit(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


def edge(inside: Callable[[float], bool], start: float, end: float) -> float:
    """The last point that is `inside` on the way from `start` to `end`, by halving."""
    if inside(end):
        return end
    for _ in range(60):
        middle = (start + end) / 2
        start, end = (middle, end) if inside(middle) else (start, middle)
    return start
