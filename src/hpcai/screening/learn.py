"""Detectors from features: grid by inner folds, calibration, threshold, conformal.   z (n, C), labels -> one Detector a disease

Each detector learns its disease against the unaffected; newborns with another disease neither teach nor judge it, nor do those
whose specimen is not valid for it (donor blood hides a disease; a drip of amino acids mimics one). Whatever is
set after the fit (grid, calibration, threshold, conformal) is set on newborns that the estimator had not seen: out of the inner
folds of the training part, and validation. Pure: arrays in, numbers out. Shape letters: n newborns, C channels, G grid points.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

from hpcai.book.diseases import Disease, Diseases
from hpcai.config import schema
from hpcai.errors import DataError
from hpcai.metrics import logistic
from hpcai.metrics.classification import choose_threshold
from hpcai.metrics.intervals import clopper_pearson
from hpcai.metrics.rows import Rows
from hpcai.screening.batch import Bools, Floats, Ints
from hpcai.screening.estimators import Boosting, Logistic, fit_boosting, fit_logistic
from hpcai.screening.model import Calibration, Conformal, Detector, Threshold

log = logging.getLogger("hpcai")

FEWEST = 10  # affected newborns in training below which a disease has no detector; assumed: two for each of five folds
SHRINK = 1.0  # ridge on the calibration's slope less 1: one case's worth, so that separated classes keep a finite slope

Point = dict[str, float]


@dataclass(frozen=True)
class Part:
    """Features z_NC, label_N (0 unaffected, d + 1 the panel's disease d), and for which diseases the specimen is valid."""

    z_NC: Floats
    label_N: Ints
    valid_ND: Bools

    def of(self, k: int) -> Bools:
        """(n,) who teaches and judges disease k, from 1."""
        return np.isin(self.label_N, (0, k)) & self.valid_ND[:, k - 1]

    def counts(self) -> Ints:
        """(D,) affected newborns who do."""
        return np.array([(self.of(k) & (self.label_N == k)).sum() for k in range(1, self.valid_ND.shape[1] + 1)])


@dataclass(frozen=True)
class Fold:
    """Features of one inner fold, whose references and adjustment `taught` alone has set.

    `held`: places in training of those held out, but for those of a laboratory that `taught` does not know.
    """

    taught: Part
    z_held_NC: Floats
    held: Ints


def learn(
    panel: Diseases, cfg: schema.Estimator, rule: str, train: Part, folds: Iterable[Fold], val: Part, seed: int
) -> list[Detector]:
    """One detector a disease; none, with a warning, for a disease that fewer than FEWEST affected newborns teach.

    Args:
        rule: task.threshold.
        train: every training newborn, by features fitted on all of them.
        folds: the same newborns, each held out once at most; taken one at a time, so that memory holds one.
        seed: of boosting's draws.

    Raises:
        DataError: no disease has so many.
    """
    counts, points = train.counts(), grid(cfg)
    few = [f"{d.name} ({n})" for d, n in zip(panel.diseases, counts, strict=True) if n < FEWEST]
    if len(few) == len(panel.diseases):
        raise DataError(f"data.path: no disease has {FEWEST} affected newborns in training. Add some: see column diagnosis.")
    if few:
        log.warning("warning: too few newborns for a detector (less than %d): %s", FEWEST, ", ".join(few))
    taught = {k: d for k, d in enumerate(panel.diseases, 1) if counts[k - 1] >= FEWEST}
    oof_NG = {k: np.full((len(train.label_N), len(points)), np.nan) for k in taught}
    for fold in folds:
        if not len(fold.held):
            continue
        for k, unseen_NG in oof_NG.items():
            unseen_NG[fold.held] = _unseen(cfg, points, fold, k, seed)
    return [_detector(d, k, cfg, rule, points, train, oof_NG[k], val, seed) for k, d in taught.items()]


def _unseen(cfg: schema.Estimator, points: Sequence[Point], fold: Fold, k: int, seed: int) -> Floats:
    """(held, G) logits of the newborns that a fold holds out, by estimators of disease k that the others teach."""
    mine, last, found = fold.taught.of(k), None, []
    for point in points:
        last = fitted(cfg, point, fold.taught.z_NC[mine], fold.taught.label_N[mine] == k, seed, last)
        found.append(last.logits(fold.z_held_NC))
    return np.stack(found, 1)


def _detector(
    disease: Disease,
    k: int,
    cfg: schema.Estimator,
    rule: str,
    points: Sequence[Point],
    train: Part,
    oof_NG: Floats,
    val: Part,
    seed: int,
) -> Detector:
    mine, theirs = train.of(k), val.of(k)
    unseen = mine & np.isfinite(oof_NG[:, 0])
    affected = train.label_N[unseen] == k
    if not affected.any():
        raise DataError(
            f"data.path: {disease.name}: no laboratory has unaffected newborns enough to teach in every inner fold."
        )
    best = int(np.argmin([_loss(oof_NG[unseen, g], affected) for g in range(len(points))]))
    estimator = fitted(cfg, points[best], train.z_NC[mine], train.label_N[mine] == k, seed)

    raw = np.concatenate([oof_NG[unseen, best], estimator.logits(val.z_NC[theirs])])
    label = np.concatenate([affected, val.label_N[theirs] == k])
    calibration = calibrated(raw, label, disease.incidence)
    logit = calibration.intercept + calibration.shift + calibration.slope * raw
    detector = Detector(
        disease=disease.name,
        estimator=estimator,
        chosen=points[best],
        calibration=calibration,
        threshold=threshold(logit, label, rule),
        conformal=conformal(logit, label, cfg.miscoverage),
    )
    log.info("%-10s %s  sensitivity %.3f of %d at logit %.2f", disease.name,
             " ".join(f"{name}={value:g}" for name, value in points[best].items()),
             detector.threshold.sensitivity, detector.threshold.n, detector.threshold.value)  # fmt: skip
    return detector


def grid(cfg: schema.Estimator) -> list[Point]:
    """The points of the grid, the most cautious first: of equal losses the first is taken."""
    if cfg.name == "boosting":
        return [{"trees": float(n)} for n in sorted(cfg.trees)]
    return [{"penalty": p, "l1_ratio": l1} for p, l1 in product(sorted(cfg.penalty, reverse=True), cfg.l1_ratio)]


def fitted(
    cfg: schema.Estimator, point: Point, z_NC: Floats, affected_N: Bools, seed: int, last: Logistic | Boosting | None = None
) -> Logistic | Boosting:
    """The estimator of one point of the grid; `last`: of the point before on the same newborns, which only saves time."""
    if cfg.name == "boosting":
        return fit_boosting(z_NC, affected_N, trees=int(point["trees"]), depth=cfg.depth, rate=cfg.learning_rate, seed=seed)
    start = last if isinstance(last, Logistic) else None
    return fit_logistic(z_NC, affected_N, penalty=point["penalty"], l1_ratio=point["l1_ratio"], start=start)


def _loss(logit: Floats, affected: Bools) -> float:
    return float((np.logaddexp(0, logit) - affected * logit).mean())


def calibrated(raw: Floats, affected: Bools, incidence: float) -> Calibration:
    """Intercept and slope on logits of newborns not seen, and the way from their prior to `incidence`.

    Source: Platt 1999 (scaling); Saerens, Latinne & Decaestecker 2002, doi 10.1162/089976602753284446 (prior).
    """
    found = logistic.fit(np.column_stack([np.ones(len(raw)), raw]), affected, offset=raw, ridge=SHRINK)
    n = int(affected.sum())
    prior = np.log(n / (len(affected) - n))
    return Calibration(
        intercept=float(found.beta[0]),
        slope=max(0.05, 1 + float(found.beta[1])),
        shift=float(np.log(incidence / (1 - incidence)) - prior),
        n_affected=n,
        n_unaffected=len(affected) - n,
    )


def threshold(logit: Floats, affected: Bools, rule: str) -> Threshold:
    """The operating point of task.threshold, and the sensitivity that it has on the newborns that set it."""
    if "=" in rule or rule == "youden":
        cases = [str(i) for i in range(len(logit))]
        chosen = choose_threshold(Rows(cases, None, affected.astype(np.int64), np.column_stack([-logit, logit])), rule).value
        assert chosen is not None
    else:
        chosen = float(logistic.logit(np.array(float(rule))))
    found, n = int((logit[affected] >= chosen).sum()), int(affected.sum())
    low, high = clopper_pearson(found, n)
    return Threshold(value=chosen, rule=rule, sensitivity=found / n, low=low, high=high, n=n)


def conformal(logit: Floats, affected: Bools, miscoverage: float) -> Conformal:
    """Class-conditional split conformal: a class leaves the set if p = (as strange or stranger + 1) / (n + 1) <= miscoverage.

    Exact for newborns like those that set the limits, were all of them judged by one estimator; those out of the folds were
    not, and a laboratory never seen is not like theirs: the coverage that a report tells is measured on the judged part.
    Source: Vovk 2012, arXiv:1209.2673 (conditional on the class).
    """

    def bound(score: Floats) -> float | None:
        k = int(np.floor(miscoverage * (len(score) + 1) + 1e-9))
        return float(np.sort(score)[k - 1]) if k else None

    low, high = bound(logit[affected]), bound(-logit[~affected])
    return Conformal(
        miscoverage=miscoverage,
        affected=low,
        unaffected=None if high is None else -high,
        n_affected=int(affected.sum()),
        n_unaffected=int((~affected).sum()),
    )
