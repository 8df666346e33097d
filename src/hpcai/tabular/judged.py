"""What the judged cases say.   scores, sets, labels, groups -> numbers with their intervals

Class 0 is the reference (controls); a case of another class is called a patient here. Shape letters: n cases, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpcai.metrics.estimate import Estimate
from hpcai.metrics.intervals import effective, percentile, resampled, wilson

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
TOP = 3


@dataclass(frozen=True)
class Outcome:
    """The judged cases.

    Attributes:
        label: (n,).
        probability: (n, K), calibrated.
        ranked: (n, K), at the shares that the estimator was fitted to.
        in_set: (n, K).
        flagged: (n,) told from the controls by the threshold that the training cases set.
        group: (n,) of near-duplicates or patients: what is drawn again for intervals.
        split: name of the cases.
    """

    label: Ints
    probability: Floats
    ranked: Floats
    in_set: Bools
    flagged: Bools
    group: Ints
    split: str


def numbers(o: Outcome, sensitivity: float) -> list[Estimate]:
    """Top 1 and top 3 of the patients, specificity at a sensitivity, coverage and size of the sets."""
    patient, own = o.label > 0, np.arange(len(o.label))
    order = np.argsort(-o.ranked, axis=1, kind="stable")
    by_share = o.probability.argmax(1)
    covered = o.in_set[own, o.label]
    alone = o.in_set.sum(1) == 1
    found = [
        _share("top1", order[:, 0] == o.label, patient, o),
        _share(f"top{TOP}", (order[:, :TOP] == o.label[:, None]).any(1), patient, o),
        _share("top1_at_shares", by_share == o.label, patient, o),
        _specificity(o, sensitivity),
        _share("sensitivity_as_set", o.flagged, patient, o),
        _share("specificity_as_set", ~o.flagged, ~patient, o),
        _share("coverage_patients", covered, patient, o),
        _share("coverage_controls", covered, ~patient, o),
        _share("answered", alone, np.ones(len(alone), bool), o),
        _share("right_where_answered", covered, alone, o),
    ]
    return found


def by_class(o: Outcome, labels: Sequence[str]) -> list[dict[str, Any]]:
    """Of each class: cases, top 1, top 3, how often the set holds it, how large its sets are."""
    order = np.argsort(-o.ranked, axis=1, kind="stable")
    rows = []
    for k, name in enumerate(labels):
        mine = o.label == k
        if not mine.any():
            continue
        rows.append({
            "label": name,
            "n": int(mine.sum()),
            "top1": asdict(_share("top1", order[:, 0] == k, mine, o)),
            "top3": asdict(_share(f"top{TOP}", (order[:, :TOP] == k).any(1), mine, o)),
            "coverage": asdict(_share("coverage", o.in_set[:, k], mine, o)),
            "set_size": float(o.in_set[mine].sum(1).mean()),
        })  # fmt: skip
    return rows


def _share(name: str, right: Bools, among: Bools, o: Outcome) -> Estimate:
    """The share of `right` among some cases."""
    n = int(among.sum())
    if not n:
        return Estimate(name, o.split, None, None, None, 0, "not defined: no such case")
    right, group = right[among], o.group[among]
    value, units = float(right.mean()), len(np.unique(group))
    if units == n:
        return Estimate(name, o.split, value, *wilson(int(right.sum()), n), n, "Wilson; each case its own group")
    drawn = resampled(lambda w: (w * right).sum(1) / w.sum(1), group)
    interval = effective(value, drawn, units) or wilson(value * units, units)
    return Estimate(name, o.split, value, *interval, n, f"bootstrap of {units} groups, Wilson")


def _specificity(o: Outcome, level: float) -> Estimate:
    """The largest share of controls below a score that `level` of the patients reach; the score is 1 - P(class 0)."""
    name, patient = "specificity_at_sensitivity", o.label > 0
    n = int((~patient).sum())
    if not n or not patient.any():
        return Estimate(name, o.split, None, None, None, n, "not defined: one class only")
    statistic = at_sensitivity(1 - o.ranked[:, 0], patient, level)
    value = float(statistic(np.ones((1, len(patient)), np.int64))[0])
    interval = percentile(resampled(statistic, o.group))
    method = f"at a sensitivity of {level:g} or more on these cases; bootstrap of {len(np.unique(o.group))} groups, percentiles"
    if interval is None:
        interval, method = wilson(value * n, n), f"at a sensitivity of {level:g} or more on these cases; Wilson"
    return Estimate(name, o.split, value, *interval, n, method)


def at_sensitivity(score: Floats, positive: Bools, level: float) -> Callable[[NDArray[Any]], Floats]:
    """Weights (b, n) -> (b,) the specificity at the highest score that `level` of the weighted positives reach."""
    descending = np.argsort(-score, kind="stable")
    pos, ordered = positive[descending], score[descending]
    last = np.flatnonzero(np.append(ordered[1:] < ordered[:-1], True))  # of equal scores: called alike

    def statistic(weight: NDArray[Any]) -> Floats:
        w = weight[:, descending]
        found = (w * pos).cumsum(1)[:, last]
        false = (w * ~pos).cumsum(1)[:, last]
        with np.errstate(invalid="ignore", divide="ignore"):
            at = (found >= np.ceil(level * found[:, -1:] - 1e-9)).argmax(1)
            share = 1 - false[np.arange(len(w)), at] / false[:, -1]
        return np.where(found[:, -1] > 0, share, math.nan)

    return statistic
