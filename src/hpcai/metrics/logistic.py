"""Logistic regression by Newton's method: the one solver behind calibration, the shortcut model and tests of a shift.

Shape letters: n cases, p columns, G groups (patients).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hpcai.metrics.rows import Bools, Floats

STEPS = 50
ENOUGH = 1e-10  # change of the mean log likelihood


@dataclass(frozen=True)
class Fit:
    """A fitted model.

    Attributes:
        beta: (p,) coefficients.
        covariance: (p, p) of them: the sandwich over groups.
        converged: False where the classes are apart (coefficients grow without end) or columns depend on each other.
    """

    beta: Floats
    covariance: Floats
    converged: bool

    def error(self, k: int) -> float:
        """The standard error of coefficient k."""
        return float(np.sqrt(max(self.covariance[k, k], 0.0)))


def fit(
    x: Floats, label: Bools, groups: NDArray[np.intp] | None = None, offset: Floats | None = None, ridge: float = 0.0
) -> Fit:
    """The model logit P(label) = offset + x beta, of the largest likelihood less ridge/2 |beta|^2 (its first column is spared).

    The covariance holds where cases of a group depend on each other; (G/(G-1)) corrects for few of them. A step that lowers the
    likelihood is halved, so that it arrives from far off too.

    Args:
        x: (n, p), the first column ones where an intercept is wanted.
        label: (n,).
        groups: (n,) numbers from 0; None: each case is its own.
        offset: (n,), fixed part.
        ridge: penalty.

    Source: sandwich: Liang & Zeger 1986, doi 10.1093/biomet/73.1.13.
    """
    n, p = x.shape
    base = np.zeros(n) if offset is None else offset
    penalty = np.full(p, ridge)
    penalty[:1] = 0.0
    beta, y = np.zeros(p), label.astype(np.float64)
    value, converged = _value(base + x @ beta, y, beta, penalty), False
    for _ in range(STEPS):
        mu = expit(base + x @ beta)
        gradient = x.T @ (y - mu) - penalty * beta
        information = (x * (mu * (1 - mu))[:, None]).T @ x + np.diag(penalty)
        step = _solve(information, gradient)
        if step is None:
            break
        while (new := _value(base + x @ (beta + step), y, beta + step, penalty)) < value - ENOUGH * n and np.abs(
            step
        ).max() > 1e-12:
            step = step / 2
        beta, gained, value = beta + step, new - value, new
        if abs(gained) < ENOUGH * n:
            converged = value < -100 * ENOUGH * n  # else the classes are apart: the likelihood goes to 1
            break
    mu = expit(base + x @ beta)
    bread = _solve((x * (mu * (1 - mu))[:, None]).T @ x + np.diag(penalty), np.eye(p))
    if bread is None:
        return Fit(beta, np.full((p, p), np.nan), False)
    score = x * (y - mu)[:, None]
    if groups is not None:
        score = np.stack([np.bincount(groups, score[:, k]) for k in range(p)], axis=1)
    few = len(score) / max(1, len(score) - 1)
    return Fit(beta, bread @ (score.T @ score) @ bread * few, converged)


def expit(x: Floats) -> Floats:
    """1 / (1 + exp(-x)) without overflow."""
    e = np.exp(-np.abs(x))
    return np.asarray(np.where(x >= 0, 1, e) / (1 + e), np.float64)


def logit(p: Floats) -> Floats:
    """log(p / (1 - p)); 0 and 1 are taken for the nearest number that has one."""
    p = np.clip(p, 1e-12, 1 - 1e-12)
    return np.asarray(np.log(p / (1 - p)), np.float64)


def _value(eta: Floats, y: Floats, beta: Floats, penalty: Floats) -> float:
    """The penalised log likelihood."""
    return float((y * eta - np.logaddexp(0, eta)).sum() - (penalty * beta * beta).sum() / 2)


def _solve(a: Floats, b: Floats) -> Floats | None:
    """a^-1 b; None where a is singular to working precision."""
    if not np.isfinite(a).all() or np.linalg.cond(a) > 1e12:
        return None
    return np.asarray(np.linalg.solve(a, b), np.float64)
