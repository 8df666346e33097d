"""Estimators of a table's features.   arrays -> scikit-learn fits -> JSON text, checked when loaded -> numpy scores

Nothing is pickled: an estimator is its numbers. Class 0 is the reference (controls, unaffected).
Shape letters: n cases, C channels (features), K classes, S stages of boosting, N nodes of a tree.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from hpcai.config.words import Group
from hpcai.errors import DataError, RunError

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

MAX_CLASSES, MAX_CHANNELS, MAX_STAGES, MAX_NODES = 1000, 1_000_000, 2000, 2**9
STEPS = 3000  # of saga over the cases, at most
SPARSE = 0.25  # share of numbers that are not 0, below which saga reads them as a sparse matrix
TOLERANCE = 1e-3  # largest relative change of a weight in a step; 1e-4 takes four times as long

Row = Annotated[list[float], Field(max_length=MAX_CHANNELS)]
Nodes = Annotated[list[int], Field(min_length=1, max_length=MAX_NODES)]


class Linear(Group):
    """Multinomial logistic regression: logits = intercept_K + x_nC weight_KC^T; of two classes the first row is 0."""

    kind: Literal["linear"] = "linear"
    channels: int = Field(ge=1, le=MAX_CHANNELS)
    intercept: Row = Field(min_length=2, max_length=MAX_CLASSES)
    weight: list[Row] = Field(min_length=2, max_length=MAX_CLASSES)

    @model_validator(mode="after")
    def _fits(self) -> Linear:
        if len(self.weight) != len(self.intercept) or any(len(row) != self.channels for row in self.weight):
            raise ValueError("weight is not (classes, channels)")
        return self

    @property
    def classes(self) -> int:
        """K."""
        return len(self.intercept)

    def logits(self, x_nC: Floats) -> Floats:
        """(n, K)."""
        return np.asarray(x_nC @ np.array(self.weight).T + np.array(self.intercept), np.float64)

    def used(self) -> Ints:
        """The channels that move a logit, ascending."""
        return np.flatnonzero(np.any(np.array(self.weight) != 0, axis=0)).astype(np.int64)


class Tree(Group):
    """A regression tree: row k is a node, children stand below their parent; -1 and -1 make a leaf.

    A case goes left where float32(x[channel]) <= threshold, as in scikit-learn.
    """

    channel: Nodes
    threshold: list[float]
    left: Nodes
    right: Nodes
    value: list[float]

    @model_validator(mode="after")
    def _sound(self) -> Tree:
        n = len(self.channel)
        if {len(self.threshold), len(self.left), len(self.right), len(self.value)} != {n}:
            raise ValueError("a tree's columns differ in length")
        for k, (left, right) in enumerate(zip(self.left, self.right, strict=True)):
            if (left, right) != (-1, -1) and not (k < left < n and k < right < n and left != right and self.channel[k] >= 0):
                raise ValueError(f"node {k} of a tree has no such children")
        parents = np.bincount([c for c in (*self.left, *self.right) if c >= 0], minlength=n)
        if (parents > 1).any():  # a shared child would make the time of scoring grow without end
            raise ValueError("a node of a tree has two parents")
        return self

    def values(self, x_Cn: NDArray[np.float32], k: int = 0) -> Any:
        """(n,) float64, or one number of a leaf: what node `k` says of each case."""
        if self.left[k] < 0:
            return self.value[k]
        low = x_Cn[self.channel[k]].astype(np.float64) <= self.threshold[k]
        return np.where(low, self.values(x_Cn, self.left[k]), self.values(x_Cn, self.right[k]))


def tree_of(fitted: Any) -> Tree:
    """A fitted tree of scikit-learn (`tree_`) as numbers."""
    return Tree(
        channel=fitted.feature.tolist(),
        threshold=fitted.threshold.tolist(),
        left=fitted.children_left.tolist(),
        right=fitted.children_right.tolist(),
        value=fitted.value[:, 0, 0].tolist(),
    )


class Trees(Group):
    """Gradient boosting: logits = initial_K + rate * sum of S trees a class; of two classes the second alone has trees."""

    kind: Literal["trees"] = "trees"
    channels: int = Field(ge=1, le=MAX_CHANNELS)
    initial: Row = Field(min_length=2, max_length=MAX_CLASSES)
    rate: float
    stages: list[list[Tree]] = Field(min_length=1, max_length=MAX_STAGES)

    @model_validator(mode="after")
    def _fits(self) -> Trees:
        wide = 1 if self.classes == 2 else self.classes
        if any(len(stage) != wide for stage in self.stages):
            raise ValueError("a stage has not one tree a class")
        for tree in (tree for stage in self.stages for tree in stage):
            if max(tree.channel) >= self.channels:
                raise ValueError("a channel of a tree is out of range")
        return self

    @property
    def classes(self) -> int:
        """K."""
        return len(self.initial)

    def logits(self, x_nC: Floats) -> Floats:
        """(n, K)."""
        x_Cn = np.ascontiguousarray(x_nC.T, np.float32)
        out = np.tile(np.array(self.initial), (len(x_nC), 1))
        first = self.classes - len(self.stages[0])
        for stage in self.stages:
            for k, tree in enumerate(stage, first):
                out[:, k] += self.rate * tree.values(x_Cn)
        return out

    def used(self) -> Ints:
        """The channels that move a logit, ascending."""
        found = {
            c for stage in self.stages for tree in stage for c, child in zip(tree.channel, tree.left, strict=True) if child >= 0
        }
        return np.array(sorted(found), np.int64)


Estimator = Annotated[Linear | Trees, Field(discriminator="kind")]


def softmax(logits_nK: Floats) -> Floats:
    """(n, K) probabilities."""
    e = np.exp(logits_nK - logits_nK.max(1, keepdims=True))
    return np.asarray(e / e.sum(1, keepdims=True), np.float64)


def balanced(label_n: Ints, classes: int) -> Floats:
    """(n,) weights that give each class the same sum, n in all. Source: King and Zeng 2001, as in scikit-learn."""
    count = np.bincount(label_n, minlength=classes)
    return np.asarray(len(label_n) / ((count > 0).sum() * np.maximum(count, 1))[label_n], np.float64)


def fit_logistic(
    x_nC: Floats,
    label_n: Ints,
    classes: int,
    *,
    penalty: float,
    l1_ratio: float,
    weight_n: Floats | None = None,
    seed: int = 0,
) -> Linear:
    """Elastic net: the mean loss plus penalty * (l1_ratio |w|_1 + (1 - l1_ratio)/2 |w|^2); the intercept is spared.

    scikit-learn's saga, or lbfgs where l1_ratio is 0. A class that does not occur gets a logit that no case reaches.
    """
    from scipy.sparse import csr_matrix
    from sklearn.linear_model import LogisticRegression

    _two_classes(label_n)
    top = 1.0 if weight_n is None else float(weight_n.max())  # of larger weights saga takes too long a step
    model = LogisticRegression(
        C=top / (penalty * len(label_n)),
        l1_ratio=l1_ratio,
        solver="saga" if l1_ratio else "lbfgs",
        max_iter=STEPS,
        tol=TOLERANCE,
        random_state=seed,
    )
    x = csr_matrix(x_nC) if l1_ratio and np.count_nonzero(x_nC) < SPARSE * x_nC.size else x_nC  # saga: 15 times faster
    _quietly(lambda: model.fit(x, label_n, sample_weight=None if weight_n is None else weight_n / top))
    present = model.classes_
    weight, intercept = np.zeros((classes, x_nC.shape[1])), np.full(classes, ABSENT)
    if len(present) == 2:  # scikit-learn keeps the second class's row alone
        intercept[present[0]] = 0.0
        present = present[1:]
    weight[present], intercept[present] = model.coef_, model.intercept_
    return Linear(channels=x_nC.shape[1], intercept=intercept.tolist(), weight=weight.tolist())


ABSENT = -1e3  # logit of a class that taught nothing: probability 0 in float64


def fit_boosting(
    x_nC: Floats,
    label_n: Ints,
    classes: int,
    *,
    trees: int,
    depth: int,
    learning_rate: float,
    weight_n: Floats | None = None,
    seed: int = 0,
) -> Trees:
    """scikit-learn's GradientBoostingClassifier of `trees` stages. A class that does not occur is never called."""
    from sklearn.ensemble import GradientBoostingClassifier

    _two_classes(label_n)
    model = GradientBoostingClassifier(
        n_estimators=trees, max_depth=depth, learning_rate=learning_rate, max_features="sqrt", random_state=seed
    )
    model.fit(x_nC, label_n, sample_weight=weight_n)
    present = model.classes_.tolist()
    share = np.asarray(model.init_.class_prior_)
    initial = np.full(classes, ABSENT)
    initial[present] = np.log(share) if len(present) > 2 else [0.0, np.log(share[1] / share[0])]
    never = Tree(channel=[-2], threshold=[-2.0], left=[-1], right=[-1], value=[0.0])
    stages = []
    for fitted in model.estimators_:
        of = dict(zip(present if len(present) > 2 else present[1:], (tree_of(t.tree_) for t in fitted), strict=True))
        stages.append([of.get(k, never) for k in range(1 if classes == 2 else 0, classes)])
    return Trees(channels=x_nC.shape[1], initial=initial.tolist(), rate=learning_rate, stages=stages)


def _two_classes(label_n: Ints) -> None:
    if len(np.unique(label_n)) < 2:
        raise DataError("data: the training cases are of one class only. Take other shares or folds, or more data.")


def _quietly(fit: Any) -> None:
    """scikit-learn's word on a solver that has not arrived becomes our fault: a model half way is none."""
    import warnings

    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings():
        warnings.simplefilter("error", ConvergenceWarning)
        try:
            fit()
        except ConvergenceWarning:
            raise RunError(
                f"estimator.penalty: the elastic net has not arrived in {STEPS} steps. Give a larger penalty, or "
                "features of one scale (features.scale)."
            ) from None
