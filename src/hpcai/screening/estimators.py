"""A disease against the unaffected: fitted by scikit-learn's solvers, kept as JSON, scored by numpy.   z (n, C) -> logits (n,)

Nothing is pickled: an estimator is numbers, and they are checked when they are read. Shape letters: n newborns, C channels.
"""

from __future__ import annotations

import warnings
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field, model_validator

from hpcai.config.words import Group
from hpcai.metrics.logistic import expit
from hpcai.models.estimators import Tree, tree_of
from hpcai.screening.batch import Bools, Floats

NEWTON = 100  # steps; a separated disease with a weak penalty takes about 20
SETTLED = 1e-8  # change of the penalised loss, as a share of it, below which the fit has arrived
SURE = 1e-3  # of the largest weight in the curvature: newborns with less are left out of it
RIDGE = 1e-9  # keeps the Cholesky factor of collinear channels alive, as a share of the mean curvature


class Logistic(Group):
    """A linear detector: logit = intercept + z . coef."""

    kind: Literal["logistic"] = "logistic"
    intercept: float
    coef: Annotated[list[float], Field(min_length=1, max_length=1000)]

    @property
    def width(self) -> int:
        """Channels that it reads."""
        return len(self.coef)

    def logits(self, z_NC: Floats) -> Floats:
        """(n,)."""
        return np.asarray(z_NC @ np.array(self.coef, z_NC.dtype) + self.intercept)

    @property
    def steepness(self) -> Floats:
        """(C,) how far the logit moves with one unit of a channel, at most."""
        return np.abs(self.coef)


class Boosting(Group):
    """Gradient-boosted trees: logit = intercept + rate x the sum of the trees' values."""

    kind: Literal["boosting"] = "boosting"
    intercept: float
    rate: Annotated[float, Field(gt=0, le=1)]
    width: Annotated[int, Field(ge=1, le=1000)]
    trees: Annotated[list[Tree], Field(min_length=1, max_length=2000)]

    @model_validator(mode="after")
    def _within(self) -> Boosting:
        if any(max(tree.channel) >= self.width for tree in self.trees):
            raise ValueError("a tree reads a channel that is not there")
        return self

    def logits(self, z_NC: Floats) -> Floats:
        """(n,)."""
        z_CN = np.ascontiguousarray(z_NC.T, np.float32)
        total = np.full(len(z_NC), self.intercept)
        for tree in self.trees:
            total += self.rate * tree.values(z_CN)
        return total

    @property
    def steepness(self) -> Floats:
        """(C,) infinite for a channel that a tree reads: it jumps."""
        read = [c for tree in self.trees for c, left in zip(tree.channel, tree.left, strict=True) if left >= 0]
        return np.where(np.isin(np.arange(self.width), read), np.inf, 0.0)


Estimator = Annotated[Logistic | Boosting, Field(discriminator="kind")]


def fit_logistic(
    z_NC: Floats, affected_N: Bools, *, penalty: float, l1_ratio: float, start: Logistic | None = None
) -> Logistic:
    """The elastic net: least sum of losses + penalty x affected cases x (l1_ratio |w|_1 + (1 - l1_ratio) |w|^2 / 2).

    Newton's method on the loss; each step's penalised quadratic is solved by scikit-learn's coordinate descent on its
    Cholesky factor (C x C, whatever n is), which takes a hundredth of the time of `saga` on separated classes. The penalty
    counts affected cases, so that adding healthy newborns does not weaken it. The curvature leaves out newborns of whom the fit
    is sure, which changes the way and not the end. `start`: from where, the fit of a stronger penalty.

    Source: Friedman, Hastie & Tibshirani 2010, doi 10.18637/jss.v033.i01 (glmnet); Lee, Sun & Saunders 2014,
    doi 10.1137/130921428 (proximal Newton).
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import ElasticNet

    y, share = affected_N.astype(np.float64), affected_N.mean()
    strength = penalty * affected_N.sum()
    width = z_NC.shape[1]

    def loss(b: float, w: Floats) -> float:
        eta = b + z_NC @ w
        size = l1_ratio * np.abs(w).sum() + (1 - l1_ratio) * (w @ w) / 2
        return float((np.logaddexp(0, eta) - y * eta).sum() + strength * size)

    solver = ElasticNet(alpha=strength / width, l1_ratio=l1_ratio, fit_intercept=False, tol=1e-8, max_iter=2000)
    b, w = (start.intercept, np.array(start.coef)) if start else (float(np.log(share / (1 - share))), np.zeros(width))
    now = loss(b, w)
    for _ in range(NEWTON):
        mu = expit(b + z_NC @ w)
        weight = np.maximum(mu * (1 - mu), 1e-10)
        unsure = weight > SURE * weight.max()
        weight, near = weight[unsure], z_NC[unsure]
        centre = weight @ near / weight.sum()  # the intercept, which is not penalised, is solved for and put in
        near = near - centre
        gradient, slope = z_NC.T @ (mu - y), float((mu - y).sum())
        curvature = (near * weight[:, None]).T @ near
        curvature.flat[:: width + 1] += RIDGE * np.trace(curvature) / width
        factor = np.linalg.cholesky(curvature).T
        target = factor @ w - np.linalg.solve(factor.T, gradient - slope * centre)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # the next Newton step goes on from there
            solver.fit(factor, target)
        step = solver.coef_ - w
        move = -slope / weight.sum() - centre @ step
        scale = 1.0
        while (new := loss(b + scale * move, w + scale * step)) > now and scale > 1e-6:
            scale /= 2
        if new >= now:
            break
        b, w, gained, now = b + scale * move, w + scale * step, now - new, new
        if gained < SETTLED * now:
            break
    return Logistic(intercept=b, coef=w.tolist())


def fit_boosting(z_NC: Floats, affected_N: Bools, *, trees: int, depth: int, rate: float, seed: int) -> Boosting:
    """scikit-learn's GradientBoostingClassifier, half of the rows for each tree, written down."""
    from sklearn.ensemble import GradientBoostingClassifier

    fitted = GradientBoostingClassifier(
        n_estimators=trees, max_depth=depth, learning_rate=rate, subsample=0.5, min_samples_leaf=5, random_state=seed
    ).fit(z_NC, affected_N)
    return written(fitted, z_NC.shape[1])


def written(fitted: Any, width: int) -> Boosting:
    """A fitted GradientBoostingClassifier of two classes as numbers; its logits stay the same to rounding."""
    prior, trees = fitted.init_.class_prior_[1], [tree_of(one.tree_) for one in fitted.estimators_[:, 0]]
    return Boosting(intercept=float(np.log(prior / (1 - prior))), rate=fitted.learning_rate, width=width, trees=trees)
