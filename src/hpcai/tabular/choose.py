"""The grid, inside the training cases.   cases, training indices -> folds within -> the candidate of least loss -> TableModel

What is judged elsewhere never comes here. Shape letters: n training cases, K classes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpcai.config.schema import Config
from hpcai.context import Stop
from hpcai.data.splits import fold_numbers
from hpcai.data.table import TableCases
from hpcai.errors import DataError, RunError
from hpcai.models.estimators import Estimator, balanced, fit_boosting, fit_logistic, softmax
from hpcai.tabular.features import Channels, fit_channels
from hpcai.tabular.model import LEAST, Judged, Member, TableModel, calibrate, conform

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Candidate:
    """One point of the grid; None: not of this estimator."""

    quiet: float
    penalty: float | None = None
    l1_ratio: float | None = None
    trees: int | None = None


@dataclass(frozen=True)
class Chosen:
    """What the training cases chose.

    Attributes:
        model: fitted to all of them.
        told: the point of the grid of the least loss, or of how many points it is the mean.
        losses: of each candidate, in the grid's order: mean log loss of the held-out cases, classes weighted as in the fit;
            None where the solver did not arrive.
        judged: each training case, by an estimator that had not seen it.
    """

    model: TableModel
    told: dict[str, Any]
    losses: list[dict[str, Any]]
    judged: Judged


def candidates(cfg: Config) -> list[Candidate]:
    """The grid."""
    e = cfg.estimator
    if e.name == "boosting":
        return [Candidate(q, trees=t) for q, t in product(cfg.features.quiet, e.trees)]
    return [Candidate(q, p, r) for q, p, r in product(cfg.features.quiet, e.penalty, e.l1_ratio)]


def choose(cases: TableCases, indices: Ints, cfg: Config, stop: Stop) -> Chosen:
    """The candidate whose out-of-fold log loss, each class weighted as in the fit, is least, or the mean of all; fitted to all
    of `indices`.

    Raises: DataError where a fold leaves one class only; Stopped.
    """
    label, classes = cases.labels[indices], len(cfg.data.labels)
    fold = fold_numbers(cases, indices, cfg.estimator.folds, [cfg.data.split.seed, 2])
    weighted = cfg.estimator.class_weights == "balanced"
    weight = balanced(label, classes) if weighted else np.ones(len(label))
    tried: list[dict[str, Any]] = []
    found: list[tuple[float, float, Candidate, Floats]] = []  # loss, slope, point of the grid, logits (n, K)
    fault: RunError | None = None
    for candidate in candidates(cfg):
        stop.check("stopped inside a fold. The same command goes on with it.")
        point = {k: v for k, v in asdict(candidate).items() if v is not None}
        try:
            logits = _out_of_fold(cases, indices, fold, cfg, candidate)
        except RunError as e:  # the solver has not arrived: the grid goes on without it
            tried.append(point | {"loss": None})
            fault = e
            continue
        loss, slope = _loss(logits, label, weight)
        tried.append(point | {"loss": loss})
        found.append((loss, slope, candidate, logits))
    if not found:
        assert fault is not None
        raise fault
    best = min(found, key=lambda f: f[0])
    point = {k: v for k, v in asdict(best[2]).items() if v is not None}
    taken, told = (found, {"mean_of": len(found)}) if cfg.estimator.combine == "mean" else ([best], point)
    logits = np.mean([slope * z for _, slope, _, z in taken], axis=0)
    calibration = calibrate(logits, label, weighted)
    probability = calibration.probabilities(logits)
    limits = conform(probability, label, cfg.estimator.miscoverage)
    fits = [fit_one(cases, indices, cfg, candidate) for _, _, candidate, _ in taken]
    model = TableModel(
        labels=cfg.data.labels,
        channels=fits[0][0],
        members=[
            Member(quiet=f[2].quiet, slope=f[1], estimator=estimator) for f, (_, estimator) in zip(taken, fits, strict=True)
        ],
        calibration=calibration,
        conformal=limits,
    )
    held_out = Judged(probability, softmax(calibration.slope * logits), limits.sets(probability))
    return Chosen(model, told, tried, held_out)


def _out_of_fold(cases: TableCases, indices: Ints, fold: Ints, cfg: Config, candidate: Candidate) -> Floats:
    """(n, K) logits of each training case by an estimator that was fitted to the other folds."""
    logits = np.zeros((len(indices), len(cfg.data.labels)))
    for train, held in _parts(fold):
        channels, estimator = fit_one(cases, indices[train], cfg, candidate)
        logits[held] = estimator.logits(channels.apply(cases.names, cases.x_nF[indices[held]], candidate.quiet))
    return logits


def fit_one(cases: TableCases, train: Ints, cfg: Config, candidate: Candidate) -> tuple[Channels, Estimator]:
    """Channels and estimator, fitted to the cases `train` alone."""
    x, label, classes = cases.x_nF[train], cases.labels[train], len(cfg.data.labels)
    channels = fit_channels(cases.names, x, label, cfg.features)
    z = channels.apply(cases.names, x, candidate.quiet)
    weight = balanced(label, classes) if cfg.estimator.class_weights == "balanced" else None
    if candidate.trees is not None:
        e = cfg.estimator
        return channels, fit_boosting(
            z,
            label,
            classes,
            trees=candidate.trees,
            depth=e.depth,
            learning_rate=e.learning_rate,
            weight_n=weight,
            seed=cfg.seed,
        )
    assert candidate.penalty is not None and candidate.l1_ratio is not None
    return channels, fit_logistic(
        z, label, classes, penalty=candidate.penalty, l1_ratio=candidate.l1_ratio, weight_n=weight, seed=cfg.seed
    )


def _parts(fold: Ints) -> Iterator[tuple[Ints, Ints]]:
    """(training places, held-out places) of each fold that holds a case."""
    for number in np.unique(fold):
        train = np.flatnonzero(fold != number)
        if not len(train):
            raise DataError("estimator.folds: the training cases are one patient or near-duplicates of one. Bring more cases.")
        yield train, np.flatnonzero(fold == number)


def _loss(logits_nK: Floats, label: Ints, weight: Floats) -> tuple[float, float]:
    """The weighted mean log loss at the slope that suits the logits best, and that slope.

    So candidates are compared by how they rank and spread, not by how sure they are.
    """
    from scipy.optimize import minimize_scalar

    def loss(t: float) -> float:
        own = softmax(np.exp(t) * logits_nK)[np.arange(len(label)), label]
        return float((weight * -np.log(np.maximum(own, LEAST))).sum() / weight.sum())

    best = minimize_scalar(loss, bounds=(-4.0, 4.0), method="bounded")
    return float(best.fun), float(np.exp(best.x))
