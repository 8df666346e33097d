"""Are two splits of one kind?   Rows of both -> tests of prevalence, of scores, of scores within a class -> a verdict.

Where only the prevalence differs (label shift), a score can be corrected for it; where scores differ within a class too, a
correction makes it worse. Nothing is corrected here. Source: Lipton et al. 2018, arXiv 1802.03916.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from hpcai.metrics.intervals import SEED, two_proportions
from hpcai.metrics.rows import Bools, Floats, Rows

SIGNIFICANT = 0.05  # chance of a false alarm of each question, over all classes together (Bonferroni)
PERMUTATIONS = 2000


@dataclass(frozen=True)
class Tested:
    """One test of `first` against `second` (shares, or None for scores) in class k."""

    k: int
    p: float
    statistic: float
    method: str
    first: tuple[int, int] | None = None  # cases of the class, of all
    second: tuple[int, int] | None = None


@dataclass(frozen=True)
class Shift:
    """What the tests say; p of each question is corrected for the number of classes."""

    prevalence: list[Tested]
    score: list[Tested]
    within: list[Tested]

    @property
    def prevalence_differs(self) -> bool:
        """Some class is rarer in one split."""
        return _least(self.prevalence) < SIGNIFICANT

    @property
    def score_differs(self) -> bool:
        """Scores as a whole."""
        return _least(self.score) < SIGNIFICANT

    @property
    def label_shift_p(self) -> float:
        """Of scores within each class being the same: what label shift takes for granted."""
        return _least(self.within)

    @property
    def label_shift_rejected(self) -> bool:
        """Scores differ within a class: a correction for prevalence alone would be wrong."""
        return self.label_shift_p < SIGNIFICANT

    @property
    def verdict(self) -> str:
        """As report.json has it."""
        if self.label_shift_rejected:
            return "differs, label shift rejected"
        return "differs, label shift not rejected" if self.prevalence_differs or self.score_differs else "same"


def shift(first: Rows, second: Rows) -> Shift:
    """Two tables of labelled rows of one model, compared. Two classes: the positive one stands for both."""
    classes = [1] if first.classes == 2 else list(range(first.classes))
    prevalence = [_prevalence(first, second, k) for k in classes]
    score = [_scores(first, second, k, "all cases") for k in classes]
    within = []
    for c in range(first.classes):
        a, b = first.label == c, second.label == c
        if a.any() and b.any():
            tests = [_scores(first.where(a), second.where(b), k, f"class {c}") for k in classes]
            least = min(tests, key=lambda t: t.p)
            within.append(Tested(c, min(1.0, least.p * len(tests)), least.statistic, least.method))
    return Shift(prevalence, score, within)


def _least(tests: list[Tested]) -> float:
    return min((min(1.0, t.p * len(tests)) for t in tests), default=1.0)


def _prevalence(first: Rows, second: Rows, k: int) -> Tested:
    """The two-proportion z test; with the spread between patients where they repeat."""
    counts = [(int((rows.label == k).sum()), len(rows.case)) for rows in (first, second)]
    (k1, n1), (k2, n2) = counts
    difference = k1 / n1 - k2 / n2
    if not (_repeats(first) or _repeats(second)):
        return Tested(k, two_proportions(k1, n1, k2, n2), difference, "two-proportion z test", *counts)
    error = math.sqrt(sum(_variance(rows, k) for rows in (first, second)))
    p = math.erfc(abs(difference) / error / math.sqrt(2)) if error else float(difference == 0)
    return Tested(k, p, difference, "z test of two proportions, over patients", *counts)


def _variance(rows: Rows, k: int) -> float:
    """Of the share of class k, with patients as the units that are drawn."""
    unit = np.unique(np.array(rows.patient or rows.case), return_inverse=True)[1]
    residual = np.bincount(unit, (rows.label == k) - (rows.label == k).mean())
    return float((residual**2).sum()) / len(rows.case) ** 2 * len(residual) / max(1, len(residual) - 1)


def _scores(first: Rows, second: Rows, k: int, among: str) -> Tested:
    """Two samples of scores: Kolmogorov and Smirnov's test; by permutation of patients where they repeat."""
    score = np.concatenate([first.scores[:, k], second.scores[:, k]])
    mine = np.arange(len(score)) < len(first.case)
    if not (_repeats(first) or _repeats(second)):
        d = float(_distance(score, mine[None])[0])
        return Tested(k, kolmogorov(d, len(first.case), len(second.case)), d, f"Kolmogorov-Smirnov, {among}")
    units = [np.unique(np.array(rows.patient or rows.case), return_inverse=True)[1] for rows in (first, second)]
    unit = np.concatenate([units[0], units[1] + units[0].max() + 1])
    total, here = int(unit.max()) + 1, int(units[0].max()) + 1
    d = float(_distance(score, mine[None])[0])
    rng = np.random.Generator(np.random.PCG64(SEED))
    step, more = max(1, 400_000 // len(score)), 0
    for start in range(0, PERMUTATIONS, step):
        b = min(step, PERMUTATIONS - start)
        chosen = rng.permuted(np.tile(np.arange(total) < here, (b, 1)), axis=1)
        more += int((_distance(score, chosen[:, unit]) >= d - 1e-12).sum())
    method = f"Kolmogorov-Smirnov, {PERMUTATIONS} permutations of patients, {among}"
    return Tested(k, (more + 1) / (PERMUTATIONS + 1), d, method)


def _distance(score: Floats, mine: Bools) -> Floats:
    """(b,) the largest distance between the distributions of two parts of `score` (n,), as `mine` (b, n) parts them."""
    order = np.argsort(score, kind="stable")
    ends = np.flatnonzero(np.append(np.diff(score[order]) > 0, True))  # where a value ends: ties stay together
    first = mine[:, order].astype(np.float64)
    n1 = first.sum(1, keepdims=True)
    n2 = len(score) - n1
    with np.errstate(divide="ignore", invalid="ignore"):
        gap = np.cumsum(first / n1 - (1 - first) / n2, axis=1)[:, ends]
    return np.asarray(np.abs(np.nan_to_num(gap)).max(1))


def kolmogorov(d: float, n: int, m: int) -> float:
    """The chance of a distance of at least `d` between two samples of one distribution, n and m large; conservative with ties.

    Source: Kolmogorov's series; small samples: Stephens 1970, J. R. Statist. Soc. B 32:115-122.
    """
    root = math.sqrt(n * m / (n + m))
    x = (root + 0.12 + 0.11 / root) * d
    if x < 0.2:
        return 1.0
    terms = (math.exp(-2.0 * j * j * x * x) * (1 if j % 2 else -1) for j in range(1, 101))
    return min(1.0, max(0.0, 2 * math.fsum(terms)))


def _repeats(rows: Rows) -> bool:
    return rows.patient is not None and len(set(rows.patient)) < len(rows.patient)
