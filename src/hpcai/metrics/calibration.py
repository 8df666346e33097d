"""Does a score of 0.8 mean 8 in 10?   Scores of two classes -> intercept, slope, Brier, ECE, bins and a smooth curve.

Shape letters: n cases.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpcai.metrics.estimate import Estimate
from hpcai.metrics.intervals import student, studentised, wilson
from hpcai.metrics.logistic import expit, fit, logit
from hpcai.metrics.rows import Bools, Floats
from hpcai.metrics.sample import Sample

BINS = 10
LEAST = 10  # cases of a bin
POINTS = 50  # of the smooth curve
ECE_NOTE = "no interval: a resample's bins are noisier than the data's, so a bootstrap of it is far off"


def brier(sample: Sample) -> Estimate:
    """The mean squared error of the probability. Source: Brier 1950, Monthly Weather Review 78:1-3."""
    return mean_estimate("brier", sample, (sample.score - sample.label) ** 2)


def mean_estimate(name: str, sample: Sample, value: Floats) -> Estimate:
    """The mean of `value` (n,), each in [0, k], with a studentised bootstrap: such errors are too skewed for Student's t."""
    interval = studentised(value, sample.units)
    mean, n = float(value.mean()), len(value)
    if interval is None:
        return Estimate(name, sample.split, mean, None, None, n, "no interval: all errors are the same")
    low, high = max(0.0, interval[0]), interval[1]
    return Estimate(name, sample.split, mean, low, high, n, f"studentised bootstrap; {sample.drawn_note()}")


def calibration(sample: Sample) -> list[Estimate]:
    """Intercept (0: right on average) and slope (1: neither too sure nor too unsure) of the score's logit.

    Intercept: of a model with the logit as a fixed part (calibration in the large); slope: of a model on the logit.
    Source: Van Calster et al. 2019, doi 10.1186/s12916-019-1466-7; Cox 1958, doi 10.1093/biomet/45.3-4.562.
    """
    names = ("calibration_intercept", "calibration_slope")
    n = len(sample.label)
    if sample.label.all() or not sample.label.any():
        return [Estimate(name, sample.split, None, None, None, n, "not defined: one class only") for name in names]
    x, ones, groups = logit(sample.score), np.ones((n, 1)), sample.units
    fits = [
        (fit(ones, sample.label, groups, offset=x), 0),
        (fit(np.column_stack([ones, x]), sample.label, groups), 1),
    ]
    half = student(len(np.unique(groups)) - 1)
    found = []
    for name, (model, k) in zip(names, fits, strict=True):
        if not model.converged:
            why = "not defined: scores of the classes are apart, or all alike"
            found.append(Estimate(name, sample.split, None, None, None, n, why))
            continue
        value, width = float(model.beta[k]), half * model.error(k)
        method = f"logistic regression, Wald with the sandwich over {sample.unit}; {sample.note}"
        found.append(Estimate(name, sample.split, value, value - width, value + width, n, method))
    return found


def ece(score: Floats, right: Bools, split: str) -> Estimate:
    """The mean gap between score and rate over bins of equal size, weighted by their cases.

    Source: Naeini et al. 2015, AAAI 29 (bins of equal width there; of equal size here, as in `bins`).
    """
    gaps = [len(i) * abs(float(score[i].mean()) - float(right[i].mean())) for i in _parts(score)]
    return Estimate("ece", split, sum(gaps) / len(score), None, None, len(score), f"{len(gaps)} bins of equal size; {ECE_NOTE}")


def bins(label: Bools, score: Floats) -> list[dict[str, Any]]:
    """Ten bins of equal size (fewer where cases are few): mean score, and the rate of positives with Wilson's interval."""
    found = []
    for i in _parts(score):
        n, k = len(i), int(label[i].sum())
        low, high = wilson(k, n)
        found.append({
            "low": float(score[i].min()), "high": float(score[i].max()), "mean": float(score[i].mean()),
            "rate": k / n, "rate_low": low, "rate_high": high, "n": n,
        })  # fmt: skip
    return found


def curve(label: Bools, score: Floats, groups: NDArray[np.intp]) -> dict[str, list[float]] | None:
    """The rate of positives as a smooth function of the score, with a pointwise 95 % band; None where it cannot be fitted.

    A logistic model on a restricted cubic spline of the logit, with four knots where there are 100 cases and three distinct
    quarters, else on the logit alone. Source: Harrell 2015, Regression Modeling Strategies, section 2.4.
    """
    x = logit(score)
    knots = np.unique(np.quantile(x, [0.05, 0.35, 0.65, 0.95])) if len(x) >= 100 else np.array([])
    at = np.linspace(float(score.min()), float(score.max()), POINTS)
    model = fit(_spline(x, knots), label, groups)
    if not model.converged:
        model, knots = fit(_spline(x, np.array([])), label, groups), np.array([])
    if not model.converged:
        return None
    basis = _spline(logit(at), knots)
    middle, half = (
        basis @ model.beta,
        student(len(np.unique(groups)) - 1) * np.sqrt(np.einsum("ij,jk,ik->i", basis, model.covariance, basis)),
    )
    lines = {"score": at, "rate": expit(middle), "low": expit(middle - half), "high": expit(middle + half)}
    return {name: [round(float(v), 6) for v in values] for name, values in lines.items()}


def _spline(x: Floats, knots: Floats) -> Floats:
    """(n, p): one, x and the restricted cubic spline's other columns, linear beyond the outer knots."""
    columns = [np.ones_like(x), x]
    if len(knots) >= 3:
        first, before, last = knots[0], knots[-2], knots[-1]

        def cube(k: float) -> Floats:
            return np.maximum(x - k, 0) ** 3

        for k in knots[:-2]:
            part = cube(k) - cube(before) * (last - k) / (last - before) + cube(last) * (before - k) / (last - before)
            columns.append(part / (last - first) ** 2)
    return np.stack(columns, axis=1)


def _parts(score: Floats) -> list[NDArray[np.intp]]:
    """The cases in the order of their scores, cut into BINS of equal size, each of LEAST cases at least; ties stay together."""
    order = np.argsort(score, kind="stable")
    count = max(1, min(BINS, len(score) // LEAST))
    edges = [len(score) * k // count for k in range(1, count)]
    ordered = score[order]
    cuts = sorted({int(np.searchsorted(ordered, ordered[e], "left")) for e in edges} - {0})
    parts = np.split(order, cuts)
    merged: list[NDArray[np.intp]] = []
    for part in parts:
        if merged and (len(merged[-1]) < LEAST or len(part) < LEAST):
            merged[-1] = np.concatenate([merged[-1], part])
        else:
            merged.append(part)
    return merged
