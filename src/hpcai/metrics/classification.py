"""Which class is it?   Rows -> AUC, accuracy, sensitivity, specificity, threshold, confusion matrix.

Of two classes the second is the positive one, and a case is called positive when its score >= threshold. Of
more classes the highest score wins. Intervals take cases as independent, unless patients are known and
repeat: then whole patients are drawn again (bootstrap). Shape letters: n cases, K classes, b resamples.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hpcai.errors import ConfigError, DataError
from hpcai.metrics.estimate import Estimate
from hpcai.metrics.intervals import (
    RESAMPLES,
    bootstrap,
    delong,
    midranks,
    newcombe,
    weighted_auc,
    wilson,
)
from hpcai.metrics.rows import Bools, Floats, Ints, Rows


@dataclass(frozen=True)
class Threshold:
    """An operating point, with where it comes from (threshold.json).

    Attributes:
        value: called positive from this score on; None: the highest score wins (more than two classes).
        rule: how it was chosen.
        split: the split it was chosen on.
        n: the cases it was chosen on.
    """

    value: float | None
    rule: str
    split: str
    n: int


def auc(label: Bools, score: Floats) -> float:
    """The chance that a positive case scores above a negative one, ties counting half; NaN with one class.

    Args:
        label: (n,) bool, True is positive.
        score: (n,) finite.
    """
    pos = int(label.sum())
    neg = len(label) - pos
    if not pos or not neg:
        return float("nan")
    return (float(midranks(score)[label].sum()) - pos * (pos + 1) / 2) / (pos * neg)


def auc_interval(label: Bools, score: Floats, split: str, patient: list[str] | None = None) -> Estimate:
    """The AUC of two classes with its interval: DeLong's, or over patients where they repeat."""
    n, pos = len(label), int(label.sum())
    value = auc(label, score)
    if np.isnan(value):
        return Estimate("auc", split, None, None, None, n, "not defined: one class only")
    groups = _repeated(patient)
    if groups is None:
        name, interval = "DeLong, logit", delong(label, score)
        fallback, note = (pos, n - pos), _independent(patient)
    else:
        name, interval = "bootstrap", bootstrap(lambda w: weighted_auc(w, label, score), groups)
        fallback, note = (len(set(groups[label])), len(set(groups[~label]))), _resampled("patients")
    if interval is None:
        name, interval = "Newcombe, method 5", newcombe(value, *fallback)
        note = note if groups is None else "one case a patient counted"
    return Estimate("auc", split, value, *interval, n, f"{name}; {note}")


def roc(label: Bools, score: Floats) -> tuple[Floats, Floats]:
    """False and true positive rate at each distinct score, from (0, 0) to (1, 1). Both classes must occur."""
    level, inverse = np.unique(score, return_inverse=True)
    pos = np.bincount(inverse[label], minlength=len(level))[::-1].cumsum()
    neg = np.bincount(inverse[~label], minlength=len(level))[::-1].cumsum()
    return np.concatenate([[0.0], neg / neg[-1]]), np.concatenate([[0.0], pos / pos[-1]])


def choose_threshold(rows: Rows, rule: str, split: str = "val") -> Threshold:
    """The operating point that `rule` picks on `rows`.

    `sensitivity>=x`: the highest threshold that still reaches x. `specificity>=x`: the lowest that does.
    `youden`: the largest sensitivity + specificity - 1, of equals the more sensitive (Source: Youden 1950,
    Cancer 3:32-35). A number: itself. More than two classes: none, the highest score wins.

    Raises:
        DataError: a class that the rule needs does not occur.
        ConfigError: the rule is unknown.
    """
    rows = rows.labelled()
    n = len(rows.case)
    if rows.classes > 2:
        return Threshold(None, "highest score", split, n)
    positive, score = rows.label == 1, rows.scores[:, 1]
    name, _, level = rule.partition(">=")
    if name not in ("sensitivity", "specificity", "youden"):
        return Threshold(_number(rule), rule, split, n)
    for k, needed_by in ((1, ("sensitivity", "youden")), (0, ("specificity", "youden"))):
        if name in needed_by and not (rows.label == k).any():
            raise DataError(f"task.threshold={rule}: {split} holds no case of class {k}. Add some or give a number.")
    if name == "sensitivity":
        value = _kth(np.sort(score[positive])[::-1], _number(level))
    elif name == "specificity":  # just above the k-th lowest negative, which is then called negative
        value = float(np.nextafter(_kth(np.sort(score[~positive]), _number(level)), np.inf))
    else:
        value = _youden(positive, score)
    return Threshold(value, rule, split, n)


def predicted(rows: Rows, threshold: Threshold | None) -> Ints:
    """(n,) the class that each case is called: as its row says, else by `threshold`, else by its highest score."""
    if rows.called is not None:
        return rows.called
    if threshold is None or threshold.value is None or rows.classes != 2:
        return np.asarray(rows.scores.argmax(1), np.int64)
    return (rows.scores[:, 1] >= threshold.value).astype(np.int64)


def confusion(rows: Rows, threshold: Threshold | None) -> Ints:
    """(K, K) counts of labelled cases, [true class, predicted class]."""
    rows = rows.labelled()
    flat = np.bincount(rows.label * rows.classes + predicted(rows, threshold), minlength=rows.classes**2)
    return flat.astype(np.int64).reshape(rows.classes, rows.classes)


def estimates(rows: Rows, split: str, threshold: Threshold | None) -> list[Estimate]:
    """What `rows` say about the model; two classes: AUC, accuracy, sensitivity, specificity.

    More classes: macro one-vs-rest AUC, accuracy, the sensitivity of each class.
    """
    rows = rows.labelled()
    right = predicted(rows, threshold) == rows.label

    def share(name: str, among: Bools) -> Estimate:
        return _share(name, split, right, among, rows.patient)

    everyone = np.ones(len(rows.case), bool)
    if rows.classes == 2:
        positive = rows.label == 1
        return [
            auc_interval(positive, rows.scores[:, 1], split, rows.patient),
            share("accuracy", everyone),
            share("sensitivity", positive),
            share("specificity", ~positive),
        ]
    each = [share(f"sensitivity[{k}]", rows.label == k) for k in range(rows.classes)]
    return [_macro_auc(rows, split), share("accuracy", everyone), *each]


def _share(name: str, split: str, right: Bools, among: Bools, patient: list[str] | None) -> Estimate:
    """The share of `right` cases among some, with Wilson's interval, or over patients where they repeat."""
    n, k = int(among.sum()), int((right & among).sum())
    if not n:
        return Estimate(name, split, None, None, None, 0, "not defined: no such case")
    here = None if patient is None else [p for p, a in zip(patient, among, strict=True) if a]
    groups = _repeated(here)
    if groups is None:
        return Estimate(name, split, k / n, *wilson(k, n), n, f"Wilson; {_independent(patient)}")
    correct = right[among]
    interval = bootstrap(lambda w: np.asarray((w * correct).sum(1) / w.sum(1), np.float64), groups)
    if interval is not None:
        return Estimate(name, split, k / n, *interval, n, f"bootstrap; {_resampled('patients')}")
    persons = len(set(groups))
    return Estimate(name, split, k / n, *wilson(persons * k / n, persons), n, "Wilson; one case a patient counted")


def _macro_auc(rows: Rows, split: str) -> Estimate:
    """The plain mean over classes of one-vs-rest AUC (scikit-learn's multi_class="ovr"), bootstrapped."""
    n = len(rows.case)
    present = [k for k in range(rows.classes) if 0 < int((rows.label == k).sum()) < n]
    if not present:
        return Estimate("macro_auc", split, None, None, None, n, "not defined: one class only")
    value = float(np.mean([auc(rows.label == k, rows.scores[:, k]) for k in present]))

    groups, unit = units(rows)
    interval = bootstrap(lambda w: weighted_macro_auc(w, rows), groups)
    name, note = "bootstrap", _resampled(unit) + (f", {_independent(rows.patient)}" if unit == "cases" else "")
    if interval is None:  # all classes apart: as wide as the rarest class alone
        rarest = min(int((rows.label == k).sum()) for k in present)
        name, note, interval = (
            "Newcombe, method 5",
            "counts of the rarest class",
            newcombe(value, rarest, n - rarest),
        )
    some = "" if len(present) == rows.classes else f"; {len(present)} of {rows.classes} classes occur"
    return Estimate("macro_auc", split, value, *interval, n, f"one class against the rest; {name}; {note}{some}")


def weighted_macro_auc(weight: Ints, rows: Rows) -> Floats:
    """The AUC that `estimates` tells first, of each resample: weights (b, n) -> (b,), NaN where it is not defined."""
    if rows.classes == 2:
        return weighted_auc(weight, rows.label == 1, rows.scores[:, 1])
    present = [k for k in range(rows.classes) if 0 < int((rows.label == k).sum()) < len(rows.case)]
    each = np.stack([weighted_auc(weight, rows.label == k, rows.scores[:, k]) for k in present])
    seen = ~np.isnan(each)  # a rare class may be missing from a resample
    total = np.where(seen, each, 0).sum(0)
    return np.asarray(np.divide(total, seen.sum(0), out=np.full(len(total), np.nan), where=seen.any(0)))


def units(rows: Rows) -> tuple[NDArray[np.str_], str]:
    """What is drawn again, (n,), and its name: patients where one of them has several cases, else cases."""
    groups = _repeated(rows.patient)
    return (np.array(rows.case), "cases") if groups is None else (groups, "patients")


def _repeated(patient: list[str] | None) -> NDArray[np.str_] | None:
    """The patients as an array if one of them has several cases, else None."""
    return np.array(patient) if patient and len(set(patient)) < len(patient) else None


def _independent(patient: list[str] | None) -> str:
    return "cases taken as independent" if patient is None else "one case a patient"


def _resampled(unit: str) -> str:
    return f"{RESAMPLES} resamples of {unit}"


def _kth(ordered: Floats, share: float) -> float:
    """The k-th of `ordered`, k the smallest count of at least 1 that makes up `share`.

    k/n is compared as it will be reported, so 55 of 100 does reach 0.55.
    """
    n = len(ordered)
    return float(ordered[max(1, int(np.argmax(np.arange(n + 1) / n >= share))) - 1])


def _youden(positive: Bools, score: Floats) -> float:
    level, inverse = np.unique(score, return_inverse=True)
    pos = np.bincount(inverse[positive], minlength=len(level))[::-1].cumsum()[::-1]  # called positive from level i on
    neg = np.bincount(inverse[~positive], minlength=len(level))[::-1].cumsum()[::-1]
    return float(level[np.argmax(pos * neg[0] - neg * pos[0])])  # whole numbers: ties are ties


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not 0 <= value <= 1:
        raise ConfigError(
            f"task.threshold={text}: neither a rule nor a number in 0..1. "
            "Give sensitivity>=x, specificity>=x, youden or a number."
        )
    return value
