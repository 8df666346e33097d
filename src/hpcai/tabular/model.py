"""One fitted model of a table: channels, estimators, calibration and conformal limits.   JSON text <-> TableModel -> Judged

Shape letters: n cases, F features, C channels, K classes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, ValidationError, model_validator

from hpcai.config.words import Group
from hpcai.errors import DataError
from hpcai.models.estimators import Estimator, softmax
from hpcai.tabular.features import Channels

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

LEAST = 1e-12  # of a probability whose logarithm is taken


class Calibration(Group):
    """Probabilities are softmax(slope * logits + prior * log(share)).

    Attributes:
        slope: positive; 1 where the estimator's logits were right.
        prior: 0 where the estimator knew the classes' shares already, about 1 where it was fitted to equal ones.
        share: of each class in the training cases.
    """

    slope: float = Field(gt=0)
    prior: float
    share: list[Annotated[float, Field(gt=0, le=1)]]

    def probabilities(self, logits_nK: Floats) -> Floats:
        """(n, K)."""
        return softmax(self.slope * logits_nK + self.prior * np.log(self.share))


class Conformal(Group):
    """A class is in a case's set where its probability is at least the class's limit.

    Attributes:
        miscoverage: share of cases whose class the set may miss, of the first class and of the others together.
        least: a limit a class; 0: always in the set, since too few cases taught the limit.
    """

    miscoverage: float = Field(gt=0, lt=1)
    least: list[Annotated[float, Field(ge=0, le=1)]]

    def sets(self, probability_nK: Floats) -> Bools:
        """(n, K)."""
        return np.asarray(probability_nK >= np.array(self.least), np.bool_)


class Member(Group):
    """One estimator of the mean.

    Attributes:
        quiet: of the channels that it reads, in units of scale.
        slope: its logits times this count; how sure held-out cases allow it to be.
    """

    quiet: float = Field(ge=0)
    slope: float = Field(gt=0)
    estimator: Estimator


@dataclass(frozen=True)
class Judged:
    """What a model says of n cases.

    Attributes:
        probability: (n, K) calibrated to the shares of the training cases.
        ranked: (n, K) the same at the shares that the estimator was fitted to: equal ones where classes were balanced.
        in_set: (n, K) the conformal set.
    """

    probability: Floats
    ranked: Floats
    in_set: Bools


class TableModel(Group):
    """All that job=predict needs."""

    version: Literal[1] = 1
    labels: list[str] = Field(min_length=2, max_length=1000)
    channels: Channels
    members: list[Member] = Field(min_length=1, max_length=400)
    calibration: Calibration
    conformal: Conformal

    @model_validator(mode="after")
    def _fits(self) -> TableModel:
        k = len(self.labels)
        if not k == len(self.calibration.share) == len(self.conformal.least):
            raise ValueError("its parts differ in their number of classes")
        if any(m.estimator.classes != k or m.estimator.channels != len(self.channels.channels) for m in self.members):
            raise ValueError("an estimator reads other channels or knows other classes")
        return self

    def views(self, names: list[str], x_nF: Floats) -> list[Floats]:
        """What each member reads of cases with these features, (n, C) each.

        Raises: DataError for features that the table lacks.
        """
        of = {quiet: self.channels.apply(names, x_nF, quiet) for quiet in dict.fromkeys(m.quiet for m in self.members)}
        return [of[m.quiet] for m in self.members]

    def logits(self, views: Sequence[Floats]) -> Floats:
        """(n, K) the mean of the members, before calibration."""
        each = [m.slope * m.estimator.logits(view) for m, view in zip(self.members, views, strict=True)]
        return np.asarray(np.mean(each, axis=0), np.float64)

    def used(self) -> Ints:
        """The channels that move a logit, ascending."""
        return np.unique(np.concatenate([m.estimator.used() for m in self.members]))

    def judge(self, names: list[str], x_nF: Floats) -> Judged:
        """Of cases with these features.

        Raises: DataError for features that the table lacks.
        """
        logits = self.logits(self.views(names, x_nF))
        probability = self.calibration.probabilities(logits)
        return Judged(probability, softmax(self.calibration.slope * logits), self.conformal.sets(probability))

    def to_text(self) -> str:
        """As it is written down."""
        return self.model_dump_json(indent=1) + "\n"


def read_model(text: bytes, sha256: str | None = None) -> TableModel:
    """A model from its JSON text.

    Raises: DataError if it is damaged, or another than `sha256` says.
    """
    if sha256 is not None and hashlib.sha256(text).hexdigest() != sha256:
        raise DataError("table_model.json: is another one than model.json says. Restore the file, or fit again.")
    try:
        return TableModel.model_validate_json(text)
    except ValidationError as e:
        why = e.errors(include_url=False, include_input=False)[0]["msg"]
        raise DataError(f"table_model.json: is damaged ({why}). Restore the file, or fit again.") from None


def calibrate(logits_nK: Floats, label_n: Ints, weighted: bool) -> Calibration:
    """The slope, and of an estimator that was fitted to equal shares the prior, of the least mean log loss.

    `logits_nK`: of cases that the estimator had not seen. Source: temperature scaling, Guo et al. 2017, arXiv:1706.04599; here
    with one more parameter for the shares.
    """
    from scipy.optimize import minimize

    k = logits_nK.shape[1]
    share = np.maximum(np.bincount(label_n, minlength=k), 0.5) / len(label_n)
    free = 2 if weighted else 1

    def loss(t: Floats) -> float:
        z = np.exp(t[0]) * logits_nK + (t[1] if free == 2 else 0.0) * np.log(share)
        p = softmax(z)[np.arange(len(label_n)), label_n]
        return float(-np.log(np.maximum(p, LEAST)).mean())

    bounds = [(-4.0, 4.0), (-1.0, 5.0)][:free]
    start = np.zeros(free)
    best = minimize(loss, start, method="L-BFGS-B", bounds=bounds)
    best = minimize(loss, best.x, method="Nelder-Mead", bounds=bounds)  # the loss has kinks where LEAST holds
    at = best.x if best.fun <= loss(start) else start
    return Calibration(slope=float(np.exp(at[0])), prior=float(at[1]) if free == 2 else 0.0, share=share.tolist())


def conform(probability_nK: Floats, label_n: Ints, miscoverage: float) -> Conformal:
    """Limits from cases that the estimator had not seen: of the first class by its own, of the others by them all together.

    A disease of four cases has no 90 % of its own. Source: Vovk et al. 2005, Algorithmic Learning in a Random World, section
    4.5 (by category); with out-of-fold scores in place of a set-aside part (Vovk 2015, doi 10.1007/s10472-013-9368-4), so the
    promise is about right, not exact: coverage is measured on the judged cases.
    """
    own = probability_nK[np.arange(len(label_n)), label_n]
    limits = [_least(own[among], miscoverage) for among in (label_n == 0, label_n > 0)]
    return Conformal(miscoverage=miscoverage, least=[limits[0]] + [limits[1]] * (probability_nK.shape[1] - 1))


def _least(own: Floats, miscoverage: float) -> float:
    """The k-th smallest of n probabilities, k = floor(miscoverage (n + 1)); 0 where that is none."""
    k = int(np.floor(miscoverage * (len(own) + 1) + 1e-9))
    return float(np.sort(own)[k - 1]) if k >= 1 else 0.0


# --- why


def explain(model: TableModel, views: Sequence[Floats], shown: int = 5) -> dict[str, Any]:
    """Which channels moved a case towards its likeliest class, and which would change that if they were normal.

    `views`: what each member reads of the case, (C,) each. `moved`: the largest changes of the log odds of `likeliest` to
    `second` when one channel is set to 0 (of a linear estimator exactly its weight times its value). `normal`: the fewest of
    these, from the largest on, that change the likeliest class when they are all 0, and `then` what it would be; [] and None
    where no such set is.
    """
    names, slope = model.channels.channels, model.calibration.slope
    offset = model.calibration.prior / slope * np.log(model.calibration.share)
    logits = model.logits([view[None] for view in views])[0] + offset
    order = np.argsort(-logits, kind="stable")
    first, second = int(order[0]), int(order[1])
    used = model.used()
    used = used[np.any([view[used] != 0 for view in views], axis=0)]
    each = model.logits([_zeroed(view, np.eye(len(view), dtype=bool)[used]) for view in views]) + offset
    gain = slope * (logits[first] - logits[second] - (each[:, first] - each[:, second]))
    largest = np.argsort(-np.abs(gain), kind="stable")
    moved = [
        {"channel": names[used[k]], "value": max((float(v[used[k]]) for v in views), key=abs), "log_odds": float(gain[k])}
        for k in largest[:shown]
        if gain[k]
    ]
    towards = used[[k for k in np.argsort(-gain, kind="stable") if gain[k] > 0]]
    normal, then = _changed(model, offset, views, first, towards)
    told = {"normal": [names[k] for k in normal], "then": None if then is None else model.labels[then]}
    return {"likeliest": model.labels[first], "second": model.labels[second], "moved": moved} | told


def _changed(
    model: TableModel, offset: Floats, views: Sequence[Floats], first: int, towards: Ints
) -> tuple[list[int], int | None]:
    """The fewest of `towards`, from the first on, that change the likeliest class when they are 0, and that class then."""
    if not len(towards):
        return [], None
    gone = np.zeros((len(towards), len(views[0])), bool)
    for i, channel in enumerate(towards):
        gone[i:, channel] = True
    classes = (model.logits([_zeroed(view, gone) for view in views]) + offset).argmax(1)
    changed = np.flatnonzero(classes != first)
    return (towards[: changed[0] + 1].tolist(), int(classes[changed[0]])) if changed.size else ([], None)


def _zeroed(x_C: Floats, gone_mC: Bools) -> Floats:
    """(m, C) copies of a case, each without some channels."""
    return np.where(gone_mC, 0.0, x_C)
