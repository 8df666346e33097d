"""models/estimators.py: what scikit-learn fitted is scored alike by numpy, and only a whole estimator is loaded."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError
from sklearn.ensemble import GradientBoostingClassifier
from sklearn.linear_model import LogisticRegression

from hpcai.errors import DataError, RunError
from hpcai.models.estimators import (
    Estimator,
    Linear,
    Tree,
    Trees,
    balanced,
    fit_boosting,
    fit_logistic,
    softmax,
)

Floats = NDArray[np.float64]
READ: TypeAdapter[Any] = TypeAdapter(Estimator)


def cases(classes: int, n: int = 120, seed: int = 0) -> tuple[Floats, NDArray[np.int64]]:
    """Six channels, of which class k raises the k-th by 1.5."""
    rng = np.random.default_rng(seed)
    label = np.arange(n) % classes
    x = rng.normal(size=(n, 6))
    x[np.arange(n), label] += 1.5
    return x, label.astype(np.int64)


def through_text(estimator: Estimator) -> Any:
    again = READ.validate_json(estimator.model_dump_json())
    assert again == estimator
    return again


@pytest.mark.parametrize("classes", [2, 3, 5])
@pytest.mark.parametrize("l1_ratio", [0.0, 0.5, 1.0])
def test_a_linear_estimator_read_from_text_scores_as_scikit_learn(classes: int, l1_ratio: float) -> None:
    x, label = cases(classes)
    weight = balanced(label, classes)
    mine = through_text(fit_logistic(x, label, classes, penalty=0.05, l1_ratio=l1_ratio, weight_n=weight))
    theirs = LogisticRegression(C=weight.max() / (0.05 * len(x)), l1_ratio=l1_ratio, solver="saga" if l1_ratio else "lbfgs",
                                max_iter=3000, tol=1e-3, random_state=0)  # fmt: skip
    expected = theirs.fit(x, label, sample_weight=weight / weight.max()).predict_proba(x)
    assert np.abs(softmax(mine.logits(x)) - expected).max() < 1e-12


def test_many_zeros_are_fitted_as_a_sparse_matrix_to_the_same_estimator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hpcai.models.estimators.TOLERANCE", 1e-8)
    x, label = cases(3)
    x[np.abs(x) < 1.6] = 0.0
    assert np.count_nonzero(x) < 0.25 * x.size
    mine = fit_logistic(x, label, 3, penalty=0.05, l1_ratio=0.5)
    dense = LogisticRegression(C=1 / (0.05 * len(x)), l1_ratio=0.5, solver="saga", max_iter=10_000, tol=1e-8).fit(x, label)
    assert np.abs(softmax(mine.logits(x)) - dense.predict_proba(x)).max() < 1e-4


@pytest.mark.parametrize("classes", [2, 4])
def test_trees_read_from_text_score_as_scikit_learn(classes: int) -> None:
    x, label = cases(classes)
    weight = balanced(label, classes)
    mine = through_text(fit_boosting(x, label, classes, trees=20, depth=3, learning_rate=0.2, weight_n=weight, seed=3))
    theirs = GradientBoostingClassifier(n_estimators=20, max_depth=3, learning_rate=0.2, max_features="sqrt", random_state=3)
    other = np.random.default_rng(1).normal(size=(500, 6)) * 2
    expected = theirs.fit(x, label, sample_weight=weight).predict_proba(other)
    assert np.abs(softmax(mine.logits(other)) - expected).max() < 1e-12


@pytest.mark.parametrize("fit", ["logistic", "boosting"])
@pytest.mark.parametrize("classes", [3, 4])
def test_a_class_without_a_training_case_is_never_called(fit: str, classes: int) -> None:
    x, label = cases(classes)
    kept = label != 1
    if fit == "logistic":
        mine: Estimator = fit_logistic(x[kept], label[kept], classes, penalty=0.1, l1_ratio=0.5)
    else:
        mine = fit_boosting(x[kept], label[kept], classes, trees=5, depth=2, learning_rate=0.3)
    p = softmax(mine.logits(x))
    assert (p[:, 1] == 0).all() and np.allclose(p.sum(1), 1)
    assert (p.argmax(1) == label)[kept].mean() > 0.6


def test_one_class_alone_cannot_be_fitted() -> None:
    x, _ = cases(2)
    for fit in (
        lambda y: fit_logistic(x, y, 2, penalty=1, l1_ratio=0),
        lambda y: fit_boosting(x, y, 2, trees=1, depth=1, learning_rate=1),
    ):
        with pytest.raises(DataError, match="of one class only"):
            fit(np.zeros(len(x), np.int64))


def test_a_solver_that_does_not_arrive_is_a_fault_and_no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hpcai.models.estimators.STEPS", 2)
    x, label = cases(3)
    with pytest.raises(RunError, match=r"^estimator\.penalty: the elastic net has not arrived in 2 steps\."):
        fit_logistic(x, label, 3, penalty=1e-4, l1_ratio=0.5)


def test_balanced_weights_give_each_class_that_occurs_the_same_sum() -> None:
    # 3 of class 0, 1 of class 2, none of class 1: 4 / (2 * 3) each, and 4 / (2 * 1)
    assert balanced(np.array([0, 0, 2, 0]), 3).tolist() == pytest.approx([2 / 3, 2 / 3, 2, 2 / 3])


def test_channels_that_move_nothing_are_not_called_used() -> None:
    linear = Linear(channels=3, intercept=[0.0, 1.0], weight=[[0.0, 0.0, 0.0], [0.0, 0.0, 2.0]])
    assert linear.used().tolist() == [2]
    stump = Tree(channel=[1, -2, -2], threshold=[0.5, -2.0, -2.0], left=[1, -1, -1], right=[2, -1, -1], value=[0.0, -1.0, 1.0])
    trees = Trees(channels=3, initial=[0.0, 0.0], rate=0.5, stages=[[stump], [stump]])
    assert trees.used().tolist() == [1]
    # two stages of half a step: -1 at or below 0.5, +1 above
    assert trees.logits(np.array([[9.0, 0.5, 9.0], [9.0, 0.6, 9.0]])).tolist() == [[0.0, -1.0], [0.0, 1.0]]


def a_stump() -> dict[str, Any]:
    return {"channel": [0, -2, -2], "threshold": [0.0, -2.0, -2.0], "left": [1, -1, -1], "right": [2, -1, -1],
            "value": [0.0, 1.0, 2.0]}  # fmt: skip


@pytest.mark.parametrize(
    "change",
    [
        {"left": [0, -1, -1]},  # its own child: no end
        {"left": [2, -1, -1]},  # two parents: time would double with each level
        {"right": [3, -1, -1]},  # no such node
        {"left": [1, -1]},
        {"left": [1, -1, -1], "right": [-1, -1, -1]},  # half a leaf
        {"channel": [5, -2, -2]},  # no such channel
        {"channel": [-1, -2, -2]},
        {"value": [0.0, float("nan"), 1.0]},
        {"threshold": [float("inf"), 0.0, 0.0]},
        {"value": ["1", 1.0, 1.0]},
        {"more": []},
    ],
)
def test_a_tree_that_is_damaged_is_refused_when_loaded(change: dict[str, Any]) -> None:
    whole = {"kind": "trees", "channels": 2, "initial": [0.0, 0.0], "rate": 0.1, "stages": [[a_stump()]]}
    assert READ.validate_python(whole).classes == 2
    with pytest.raises(ValidationError):
        READ.validate_python(whole | {"stages": [[a_stump() | change]]})


@pytest.mark.parametrize(
    "value",
    [
        "", "[]", "{}", "null", '{"kind": "linear"}', '{"kind": "pickle", "data": "gASV"}', b"\xff\xfe",
        '{"kind":"linear","channels":2,"intercept":[0,0],"weight":[[0,0],[0]]}',
        '{"kind":"linear","channels":1,"intercept":[0,NaN],"weight":[[0],[0]]}',
        '{"kind":"linear","channels":1,"intercept":[0,1e999],"weight":[[0],[0]]}',
        '{"kind":"trees","channels":1,"initial":[0,0,0],"rate":1,"stages":[[]]}',
    ],
)  # fmt: skip
def test_text_that_is_no_estimator_is_refused(value: Any) -> None:
    with pytest.raises(ValidationError):
        READ.validate_json(value)
