"""Nine measures of two classes in every resample at once: weights (b, n) -> (b, 9).

The cases are sorted once; a resample is then two cumulative sums and three looks into them, in float64, where whole numbers
are exact. Shape letters: n cases, p positive, q negative, b resamples.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpcai.metrics.rows import Bools, Floats

MEASURES = (
    "auc", "average_precision", "accuracy", "balanced_accuracy", "sensitivity", "specificity", "ppv", "npv", "brier",
)  # fmt: skip
Statistic = Callable[[NDArray[Any]], Floats]


def measures(label: Bools, score: Floats, called: Bools) -> Statistic:
    """The function from weights (b, n), how often each case counts, to MEASURES (b, 9); NaN where one is not defined.

    `label`: (n,) True is positive; `score`: (n,) the probability of it; `called`: (n,) True is called positive.
    Average precision is the sum of precision over steps of recall, as scikit-learn has it (no interpolation).
    """
    ranks = _ranks(label, score)
    error = (score - label) ** 2
    columns = np.stack([label, label & called, called, error], axis=1, dtype=np.float64)

    def of(weight: NDArray[Any]) -> Floats:
        weight = np.ascontiguousarray(weight, np.float64)
        total = weight.sum(1)
        positive, true, yes, squares = (weight @ columns).T
        negative, no = total - positive, total - yes
        auc, ap = _areas(weight, *ranks, positive, negative)
        true_negative = negative - (yes - true)
        with np.errstate(divide="ignore", invalid="ignore"):
            sensitivity, specificity = true / positive, true_negative / negative
            return np.stack([
                auc, ap, (true + true_negative) / total, (sensitivity + specificity) / 2, sensitivity, specificity,
                true / yes, true_negative / no, squares / total,
            ], axis=1)  # fmt: skip

    return of


def areas(label: Bools, score: Floats) -> Statistic:
    """As `measures`, of the AUC and the average precision alone: (b, 2)."""
    ranks = _ranks(label, score)
    columns = label.astype(np.float64)

    def of(weight: NDArray[Any]) -> Floats:
        weight = np.ascontiguousarray(weight, np.float64)
        positive = weight @ columns
        return np.stack(_areas(weight, *ranks, positive, weight.sum(1) - positive), axis=1)

    return of


Ranks = tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.intp], NDArray[np.intp], NDArray[np.intp]]


def _ranks(label: Bools, score: Floats) -> Ranks:
    """Both classes by score; how many negatives lie below and up to each positive, and positives below it."""
    positives, negatives = np.flatnonzero(label), np.flatnonzero(~label)
    positives = positives[np.argsort(score[positives], kind="stable")]
    negatives = negatives[np.argsort(score[negatives], kind="stable")]
    at, others = score[positives], score[negatives]
    below, upto = (np.searchsorted(others, at, side) for side in ("left", "right"))
    return positives, negatives, below, upto, np.searchsorted(at, at, "left")


def _areas(
    weight: Floats,
    positives: NDArray[np.intp],
    negatives: NDArray[np.intp],
    below: NDArray[np.intp],
    upto: NDArray[np.intp],
    own: NDArray[np.intp],
    positive: Floats,
    negative: Floats,
) -> tuple[Floats, Floats]:
    """AUC and average precision (b,) of weights (b, n)."""
    w_bp = weight[:, positives]
    before_bq = _before(weight[:, negatives])
    under_bp = before_bq[:, below]
    true_bp = positive[:, None] - _before(w_bp)[:, own]  # called positive at this score: positives, then all
    all_bp = true_bp + negative[:, None] - under_bp
    with np.errstate(divide="ignore", invalid="ignore"):
        auc = np.einsum("bp,bp->b", w_bp, under_bp + before_bq[:, upto]) / (2 * positive * negative)
        precision_bp = np.divide(true_bp, all_bp, out=np.zeros_like(true_bp), where=all_bp > 0)
        ap = np.einsum("bp,bp->b", w_bp, precision_bp) / positive
    ap[negative == 0] = np.nan  # one class only: the same rule as for the AUC
    return auc, ap


def _before(weight: Floats) -> Floats:
    """(b, k) -> (b, k + 1): the sum of all weights before each place."""
    sums = np.zeros((len(weight), weight.shape[1] + 1))
    np.cumsum(weight, axis=1, out=sums[:, 1:])
    return sums
