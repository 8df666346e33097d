"""Several models on the same cases: the mean of their scores, its threshold, and what it gained over one model.

Pure functions of tables. Shape letters: M members, n cases, K classes, b resamples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hpcai.metrics.classification import Threshold, choose_threshold, units, weighted_macro_auc
from hpcai.metrics.intervals import RESAMPLES, percentile, resampled
from hpcai.metrics.rows import Floats, Ints, Rows


@dataclass(frozen=True)
class Gain:
    """The AUC of the mean less another's, on the same cases.

    Attributes:
        over: `mean`: of the members' AUCs; `best`: of the member that validation ranks first.
        name: `auc` or `macro_auc`.
        split: the cases it was measured on.
        value: in [-1, 1], positive where the mean is better.
        low: lower end of the 95 % interval, None where resamples do not differ.
        high: upper end.
        n: cases.
        method: how the interval was made.
    """

    over: str
    name: str
    split: str
    value: float
    low: float | None
    high: float | None
    n: int
    method: str


def mean_of(members: Sequence[Rows | None]) -> Rows | None:
    """The members' mean score of each case, in float64; None unless all score the same cases with the same labels."""
    tables = [rows for rows in members if rows is not None]
    if len(tables) < len(members) or not tables:
        return None
    first = tables[0]
    for rows in tables[1:]:
        same = rows.case == first.case and rows.classes == first.classes and np.array_equal(rows.label, first.label)
        if not same:
            return None
    return Rows(first.case, first.patient, first.label, np.stack([rows.scores for rows in tables]).mean(0))


def threshold_of_mean(validation: Sequence[Rows | None], rules: Sequence[str]) -> Threshold:
    """The mean's operating point, by the members' rule on the mean of their validation scores.

    Its value is None, and its rule says why, if they have no validation cases or no rule in common: none is made up.

    Raises:
        DataError: validation lacks a class that the rule needs.
    """
    common = mean_of(validation)
    if common is None:
        return Threshold(None, "no common validation cases: no threshold", "val", 0)
    if len(set(rules)) > 1:
        return Threshold(None, "the runs have different rules: no threshold", "val", len(common.case))
    return choose_threshold(common, rules[0], "val")


def gains(members: Sequence[Rows], split: str, best: int | None) -> list[Gain]:
    """What the mean of `members` gained over the mean of their AUCs, and over member number `best`; paired bootstrap.

    Each resample draws cases (patients, where they repeat) once for the mean and every member. Empty if there is no AUC.
    """
    together = mean_of(members)
    assert together is not None
    together, tables = together.labelled(), [rows.labelled() for rows in members]
    n = len(together.case)
    if len(np.unique(together.label)) < 2:
        return []

    def aucs(weight: Ints) -> Floats:
        return np.stack([weighted_macro_auc(weight, rows) for rows in (together, *tables)], axis=1)

    groups, unit = units(together)
    value_M, drawn_bM = aucs(np.ones((1, n), np.int64))[0], resampled(aucs, groups)
    name = "auc" if together.classes == 2 else "macro_auc"

    def gain(over: str, of: slice) -> Gain:
        low, high = percentile(drawn_bM[:, 0] - drawn_bM[:, of].mean(1)) or (None, None)
        method = f"paired bootstrap; {RESAMPLES} resamples of {unit}" + (", none differs" if low is None else "")
        return Gain(over, name, split, float(value_M[0] - value_M[of].mean()), low, high, n, method)

    found = [gain("mean", slice(1, None))]
    return found if best is None else [*found, gain("best", slice(best + 1, best + 2))]
