"""Which class is it?   Rows -> threshold, calls, confusion matrix, estimates with their intervals.

Of two classes the second is the positive one, and a case is called positive when its score >= threshold. Of
more classes the highest score wins. Shape letters: n cases, K classes, b resamples.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from hpcai.errors import ConfigError, DataError
from hpcai.metrics.binary import ONE_CLASS, auc_estimate, average_precision, binary_estimates, called_estimates
from hpcai.metrics.calibration import ece, mean_estimate
from hpcai.metrics.estimate import Estimate
from hpcai.metrics.intervals import effective, newcombe, on_logit, resampled, wilson
from hpcai.metrics.measures import areas
from hpcai.metrics.rows import Bools, Floats, Ints, Rows
from hpcai.metrics.sample import Sample, sample_of


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


def estimates(rows: Rows, split: str, threshold: Threshold | None, prevalence: float | None = None) -> list[Estimate]:
    """What `rows` say about the model: the AUC first, of more than two classes the macro AUC.

    `prevalence`: of the people that it is meant for; adds PPV and NPV there (two classes).
    """
    rows = rows.labelled().ordered()
    called = predicted(rows, threshold)
    if rows.classes == 2:
        return binary_estimates(sample_of(rows, called, split), prevalence)
    samples = [sample_of(rows, called, split, k) for k in range(rows.classes)]
    hot = np.eye(rows.classes)[rows.label]
    return [
        macro_auc(rows, split),
        *_overall(rows, samples, called == rows.label, split),
        mean_estimate("brier", samples[0], ((rows.scores - hot) ** 2).sum(1)),
        ece(rows.scores.max(1), called == rows.label, split),
        *(replace(e, name=f"{e.name}[{k}]") for k, sample in enumerate(samples) for e in _one_class(sample)),
    ]


def ranking(rows: Rows, split: str) -> Estimate:
    """The first of `estimates`, alone and for less: the AUC, of more than two classes the macro AUC."""
    rows = rows.labelled().ordered()
    if rows.classes > 2:
        return macro_auc(rows, split)
    return auc_estimate(sample_of(rows, predicted(rows, None), split))


def _one_class(sample: Sample) -> list[Estimate]:
    """Of a class against the rest."""
    by_name = {e.name: e for e in called_estimates(sample)}
    return [
        auc_estimate(sample),
        average_precision(sample),
        *(by_name[name] for name in ("sensitivity", "specificity", "ppv", "npv")),
    ]


def macro_auc(rows: Rows, split: str) -> Estimate:
    """The plain mean over classes of one-vs-rest AUC (scikit-learn's multi_class="ovr"), bootstrapped."""
    return _macro(rows, split, "macro_auc", 0)


def _macro(rows: Rows, split: str, name: str, which: int) -> Estimate:
    n = len(rows.case)
    present = _present(rows)
    if not present:
        return Estimate(name, split, None, None, None, n, ONE_CLASS)
    value = float(weighted_macro(np.ones((1, n), np.int64), rows, which)[0])
    sample = sample_of(rows, rows.label, split)
    drawn = resampled(lambda w: weighted_macro(w, rows, which), sample.units)
    interval = on_logit(value, drawn, sample.count(np.ones(n, bool)))
    method = f"bootstrap, logit; {sample.drawn_note()}"
    if interval is None:  # all classes apart: as wide as the rarest class alone
        rarest = min(sample.count(rows.label == k) for k in present)
        interval = newcombe(value, rarest, sample.count(np.ones(n, bool)) - rarest)
        method = "Newcombe, method 5; counts of the rarest class"
    some = "" if len(present) == rows.classes else f"; {len(present)} of {rows.classes} classes occur"
    return Estimate(name, split, value, *interval, n, f"one class against the rest; {method}{some}")


def _overall(rows: Rows, samples: list[Sample], right: Bools, split: str) -> list[Estimate]:
    """Macro average precision, accuracy and balanced accuracy of more than two classes."""
    n, first = len(rows.case), samples[0]
    everyone = np.ones(n, bool)
    present = [k for k in range(rows.classes) if (rows.label == k).any()]

    def shares(weight: NDArray[np.int64]) -> Floats:
        """(b, 2): accuracy, balanced accuracy."""
        each = [(weight * (right & (rows.label == k))).sum(1) / (weight * (rows.label == k)).sum(1) for k in present]
        return np.stack([(weight * right).sum(1) / weight.sum(1), np.nanmean(each, axis=0)], axis=1)

    with np.errstate(divide="ignore", invalid="ignore"):
        values, drawn = shares(np.ones((1, n), np.int64))[0], resampled(shares, first.units)
    found = [_macro(rows, split, "macro_average_precision", 1)]
    units = first.count(everyone)
    for k, name in enumerate(("accuracy", "balanced_accuracy")):
        interval, method = effective(float(values[k]), drawn[:, k], units), f"bootstrap, Wilson; {first.drawn_note()}"
        if name == "accuracy" and not first.repeats:
            interval, method = wilson(int(right.sum()), n), f"Wilson; {first.note}"
        if interval is None:
            interval, method = wilson(units * float(values[k]), units), "Wilson; one case a patient counted"
        found.append(Estimate(name, split, float(values[k]), *interval, n, method))
    return found


def _present(rows: Rows) -> list[int]:
    """The classes that some cases have and some have not."""
    return [k for k in range(rows.classes) if 0 < int((rows.label == k).sum()) < len(rows.case)]


def weighted_macro_auc(weight: Ints, rows: Rows) -> Floats:
    """The AUC that `estimates` tells first, of each resample: weights (b, n) -> (b,), NaN where it is not defined."""
    return weighted_macro(weight, rows, 0)


def weighted_macro(weight: Ints, rows: Rows, which: int) -> Floats:
    """AUC (`which` 0) or average precision (1) of each resample; of more than two classes the mean over those that occur."""
    if rows.classes == 2:
        return areas(rows.label == 1, rows.scores[:, 1])(weight)[:, which]
    each = np.stack([areas(rows.label == k, rows.scores[:, k])(weight)[:, which] for k in _present(rows)])
    seen = ~np.isnan(each)  # a rare class may be missing from a resample
    total = np.where(seen, each, 0).sum(0)
    return np.asarray(np.divide(total, seen.sum(0), out=np.full(len(total), np.nan), where=seen.any(0)))


def units(rows: Rows) -> tuple[NDArray[np.intp], str]:
    """What is drawn again, (n,), and its name: patients where one of them has several cases, else cases."""
    sample = sample_of(rows, rows.label, "")
    return sample.units, sample.unit


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
