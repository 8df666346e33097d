"""The estimates of one class against the rest, each with an interval that benchmarks/coverage.py has seen to hold.

Cases that count as independent: Wilson's interval of shares, DeLong's of the AUC. Patients that repeat: the bootstrap over
patients. Where no resample differs (all right, or all apart) one case a patient is counted.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from hpcai.metrics.calibration import brier, calibration, ece
from hpcai.metrics.estimate import Estimate
from hpcai.metrics.intervals import (
    Interval,
    Z,
    delong,
    effective,
    mean_of_two,
    midranks,
    newcombe,
    on_logit,
    ratio_of_two,
    wilson,
)
from hpcai.metrics.measures import areas
from hpcai.metrics.rows import Bools, Floats
from hpcai.metrics.sample import Sample

ONE_CLASS = "not defined: one class only"


def binary_estimates(sample: Sample, prevalence: float | None) -> list[Estimate]:
    """All that is told of two classes, the AUC first. `prevalence`: of the people it is meant for, for PPV and NPV there."""
    if sample.repeats:
        _ = sample.drawn  # all measures at once, areas among them
    return [
        auc_estimate(sample),
        average_precision(sample),
        *called_estimates(sample),
        *likelihood_ratios(sample),
        *([] if prevalence is None else predictive_at(sample, prevalence)),
        brier(sample),
        *calibration(sample),
        ece(sample.score, sample.label, sample.split),
    ]


def called_estimates(sample: Sample) -> list[Estimate]:
    """Accuracy, balanced accuracy, sensitivity, specificity, PPV and NPV of the calls."""
    right, everyone = sample.called == sample.label, np.ones(len(sample.label), bool)
    among = {"sensitivity": sample.label, "specificity": ~sample.label, "ppv": sample.called, "npv": ~sample.called}
    found = [share(name, sample, right, which) for name, which in among.items()]
    return [share("accuracy", sample, right, everyone), balanced_accuracy(sample), *found]


# ---- areas under curves


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


def auc_estimate(sample: Sample) -> Estimate:
    """The AUC: DeLong's interval, or over patients where they repeat."""
    value, n = auc(sample.label, sample.score), len(sample.label)
    if np.isnan(value):
        return Estimate("auc", sample.split, None, None, None, n, ONE_CLASS)
    if not sample.repeats:
        interval, method = delong(sample.label, sample.score), f"DeLong, logit; {sample.note}"
    else:
        interval, method = _resampled_area(sample, value, 0), f"bootstrap, logit; {sample.drawn_note()}"
    return _area("auc", sample, value, interval, method)


def average_precision(sample: Sample) -> Estimate:
    """The sum of precision over steps of recall, as scikit-learn has it; a score that says nothing reaches the prevalence."""
    n = len(sample.label)
    if sample.label.all() or not sample.label.any():
        return Estimate("average_precision", sample.split, None, None, None, n, ONE_CLASS)
    value = float(areas(sample.label, sample.score)(np.ones((1, n)))[0, 1])
    interval = _resampled_area(sample, value, 1)
    return _area("average_precision", sample, value, interval, f"bootstrap, logit; {sample.drawn_note()}")


def _resampled_area(sample: Sample, value: float, which: int) -> Interval | None:
    return on_logit(value, sample.drawn_areas[:, which], sample.count(np.ones(len(sample.label), bool)))


def _area(name: str, sample: Sample, value: float, interval: Interval | None, method: str) -> Estimate:
    n = len(sample.label)
    if interval is None:
        interval = newcombe(value, sample.count(sample.label), sample.count(~sample.label))
        method = f"Newcombe, method 5; {'one case a patient counted' if sample.repeats else sample.note}"
    return Estimate(name, sample.split, value, *interval, n, method)


# ---- shares of cases


def share(name: str, sample: Sample, right: Bools, among: Bools) -> Estimate:
    """The share of `right` cases among some: Wilson's interval, or over patients where they repeat."""
    n, k = int(among.sum()), int((right & among).sum())
    if not n:
        return Estimate(name, sample.split, None, None, None, 0, "not defined: no such case")
    persons = sample.count(among)
    if persons == n:
        return Estimate(name, sample.split, k / n, *wilson(k, n), n, f"Wilson; {independent_note(sample)}")
    interval = effective(k / n, sample.drawn[name], persons)
    if interval is not None:
        return Estimate(name, sample.split, k / n, *interval, n, f"bootstrap, Wilson; {sample.drawn_note()}")
    return Estimate(name, sample.split, k / n, *wilson(persons * k / n, persons), n, "Wilson; one case a patient counted")


def independent_note(sample: Sample) -> str:
    """As Sample.note; patients that repeat elsewhere do not among these cases."""
    return "one case a patient" if sample.repeats else sample.note


def balanced_accuracy(sample: Sample) -> Estimate:
    """The mean of sensitivity and specificity."""
    right, n = sample.called == sample.label, len(sample.label)
    parts = [
        share(name, sample, right, among) for name, among in (("sensitivity", sample.label), ("specificity", ~sample.label))
    ]
    (a, first), (b, second) = ((e.value, _interval(e)) for e in parts)
    if a is None or b is None or first is None or second is None:
        return Estimate("balanced_accuracy", sample.split, None, None, None, n, ONE_CLASS)
    if sample.repeats:
        interval = effective((a + b) / 2, sample.drawn["balanced_accuracy"], sample.count(np.ones(n, bool)))
        if interval is not None:
            method = f"bootstrap, Wilson; {sample.drawn_note()}"
            return Estimate("balanced_accuracy", sample.split, (a + b) / 2, *interval, n, method)
    method = f"from the intervals of sensitivity and specificity (MOVER); {sample.note}"
    return Estimate("balanced_accuracy", sample.split, (a + b) / 2, *mean_of_two(a, first, b, second), n, method)


# ---- what a call says of a patient


def likelihood_ratios(sample: Sample) -> list[Estimate]:
    """LR+ = sensitivity / (1 - specificity), LR- = (1 - sensitivity) / specificity."""
    right = sample.called == sample.label
    sensitivity = share("sensitivity", sample, right, sample.label)
    specificity = share("specificity", sample, right, ~sample.label)
    return [
        _ratio(
            "lr_positive", sample, sensitivity, _complement(specificity), lambda d: d["sensitivity"] / (1 - d["specificity"])
        ),
        _ratio(
            "lr_negative", sample, _complement(sensitivity), specificity, lambda d: (1 - d["sensitivity"]) / d["specificity"]
        ),
    ]


def predictive_at(sample: Sample, prevalence: float) -> list[Estimate]:
    """PPV and NPV among people of whom a share of `prevalence` is positive, by Bayes' rule.

    Each is a monotone function of one likelihood ratio, and so are the ends of its interval. Source: Mercaldo et al. 2007, doi
    10.1002/sim.2677 (intervals of other form there).
    """
    positive, negative = likelihood_ratios(sample)
    odds = prevalence / (1 - prevalence)

    def ppv(ratio: float) -> float:
        return odds * ratio / (odds * ratio + 1)

    def npv(ratio: float) -> float:
        return 1 / (1 + odds * ratio)

    note = f"at a prevalence of {prevalence:g}, from "
    found = []
    for name, ratio, of, rising in (("ppv_at", positive, ppv, True), ("npv_at", negative, npv, False)):
        if ratio.value is None or ratio.low is None:
            found.append(replace(ratio, name=name))
            continue
        far = of(ratio.high) if ratio.high is not None else float(rising)
        low, high = (of(ratio.low), far) if rising else (far, of(ratio.low))
        found.append(Estimate(name, sample.split, of(ratio.value), low, high, ratio.n, f"{note}{ratio.method}"))
    return found


def _ratio(name: str, sample: Sample, first: Estimate, second: Estimate, of: Callable[[dict[str, Floats]], Floats]) -> Estimate:
    """first / second, with its interval; of the logarithm's spread where patients repeat."""
    n, a, b = len(sample.label), _interval(first), _interval(second)
    if first.value is None or second.value is None or a is None or b is None:
        return Estimate(name, sample.split, None, None, None, n, ONE_CLASS)
    if second.value == 0:
        which = "no positive call of a negative case" if name == "lr_positive" else "no negative call of a negative case"
        return Estimate(name, sample.split, None, None, None, n, f"not defined: {which}")
    value = first.value / second.value
    if sample.repeats and value > 0:
        with np.errstate(divide="ignore", invalid="ignore"):
            drawn = of(sample.drawn)
        usable = drawn[np.isfinite(drawn) & (drawn > 0)]
        if len(usable) > len(drawn) * 0.95 and usable.min() < usable.max():
            half = Z * float(np.log(usable).std(ddof=1))  # by Student's t 97.2 % held at 34 patients: too wide
            method = f"bootstrap, logarithm; {sample.drawn_note()}"
            return Estimate(name, sample.split, value, value * math.exp(-half), value * math.exp(half), n, method)
    low, high = ratio_of_two(first.value, a, second.value, b)
    method = f"from the intervals of sensitivity and specificity (MOVER-R); {sample.note}"
    return Estimate(name, sample.split, value, low, high, n, method)


def _complement(e: Estimate) -> Estimate:
    """1 - e."""
    if e.value is None or e.low is None or e.high is None:
        return e
    return replace(e, value=1 - e.value, low=1 - e.high, high=1 - e.low)


def _interval(e: Estimate) -> Interval | None:
    return None if e.low is None or e.high is None else (e.low, e.high)
