"""screening/estimators.py: what is fitted, written down and scored again, beside scikit-learn."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError
from sklearn.ensemble import GradientBoostingClassifier
from sklearn.linear_model import LogisticRegression

from hpcai.metrics.logistic import expit
from hpcai.screening.estimators import Boosting, Estimator, Logistic, fit_boosting, fit_logistic, written

READ: TypeAdapter[Any] = TypeAdapter(Estimator)
Table = tuple[NDArray[np.float64], NDArray[np.bool_]]


def table(seed: int, n: int = 400, width: int = 8, affected: int = 40, apart: float = 1.5) -> Table:
    """Correlated channels; the first two tell, not perfectly."""
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(n, width)) + 0.7 * rng.normal(size=(n, 1))
    y = np.arange(n) < affected
    z[y, :2] += apart
    return z, y


def gradient(z: NDArray[np.float64], y: NDArray[np.bool_], found: Logistic) -> tuple[float, NDArray[np.float64]]:
    """Of the loss, by intercept and coefficients."""
    residual = expit(found.logits(z)) - y
    return float(residual.sum()), z.T @ residual


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), penalty=st.sampled_from([0.003, 0.05, 0.5, 5.0]), l1=st.sampled_from([0.0, 0.3, 0.9, 1.0]),
       apart=st.sampled_from([0.0, 1.5, 8.0]))  # fmt: skip
def test_the_elastic_net_meets_the_conditions_of_its_minimum(seed: int, penalty: float, l1: float, apart: float) -> None:
    z, y = table(seed, apart=apart)
    found = fit_logistic(z, y, penalty=penalty, l1_ratio=l1)
    coef, strength = np.array(found.coef), penalty * 40
    slope, slopes = gradient(z, y, found)
    off = slopes + strength * (1 - l1) * coef
    scale = 1e-3 * max(1.0, strength)
    assert abs(slope) < scale
    assert np.abs(off[coef != 0] + strength * l1 * np.sign(coef[coef != 0])).max(initial=0) < scale
    assert (np.abs(off[coef == 0]) <= strength * l1 + scale).all()


def test_the_elastic_net_is_that_of_scikit_learn() -> None:
    z, y = table(0)
    theirs = LogisticRegression(solver="saga", l1_ratio=0.4, C=1 / (0.1 * 40), tol=1e-9, max_iter=100_000, random_state=0).fit(
        z, y
    )
    mine = fit_logistic(z, y, penalty=0.1, l1_ratio=0.4)
    assert np.allclose(mine.coef, theirs.coef_[0], atol=1e-4) and abs(mine.intercept - theirs.intercept_[0]) < 1e-4


def test_more_healthy_newborns_leave_the_penalty_as_strong_as_it_was() -> None:
    z, y = table(1, n=400)
    far = np.zeros((4000, z.shape[1]))
    far[:, :2] = -30.0  # as healthy as can be: they say nothing about the border
    few = fit_logistic(z, y, penalty=0.3, l1_ratio=0.5)
    many = fit_logistic(np.vstack([z, far]), np.concatenate([y, np.zeros(4000, bool)]), penalty=0.3, l1_ratio=0.5)
    assert np.allclose(few.coef, many.coef, atol=1e-3)


def test_where_a_fit_begins_does_not_change_where_it_ends() -> None:
    z, y = table(2)
    start = fit_logistic(z, y, penalty=3.0, l1_ratio=0.5)
    first, second = (fit_logistic(z, y, penalty=0.03, l1_ratio=0.5, start=s) for s in (None, start))
    assert np.allclose(first.coef, second.coef, atol=2e-3)


def test_separated_classes_and_a_dead_channel_give_finite_numbers() -> None:
    z, y = table(3, apart=60.0)
    z[:, 5] = 0.0
    found = fit_logistic(z, y, penalty=0.001, l1_ratio=0.5)
    assert np.isfinite([found.intercept, *found.coef]).all() and found.coef[5] == 0
    assert ((found.logits(z) > 0) == y).all()


def test_a_linear_detector_written_down_says_what_scikit_learns_says() -> None:
    z, y = table(4)
    theirs = LogisticRegression().fit(z, y)
    mine = Logistic(intercept=float(theirs.intercept_[0]), coef=theirs.coef_[0].tolist())
    again = READ.validate_json(mine.model_dump_json())
    assert again == mine
    assert np.abs(expit(again.logits(z)) - theirs.predict_proba(z)[:, 1]).max() < 1e-12


@pytest.mark.parametrize("depth", [1, 3, 6])
def test_boosted_trees_written_down_say_what_scikit_learns_say(depth: int) -> None:
    z, y = table(5)
    theirs = GradientBoostingClassifier(n_estimators=40, max_depth=depth, subsample=0.5, random_state=0).fit(z, y)
    again = READ.validate_json(written(theirs, z.shape[1]).model_dump_json())
    new = np.vstack([z, np.random.default_rng(6).normal(size=(500, z.shape[1])) * 5])
    assert np.abs(expit(again.logits(new)) - theirs.predict_proba(new)[:, 1]).max() < 1e-12


def test_a_value_on_a_trees_border_falls_where_it_fell_in_training() -> None:
    z, y = table(7)
    found = fit_boosting(z, y, trees=20, depth=3, rate=0.1, seed=0)
    limits = np.array([[t.threshold[0]] * z.shape[1] for t in found.trees])  # float64 limits: compared as float32 values are
    again = fit_boosting(z, y, trees=20, depth=3, rate=0.1, seed=0)
    assert found == again
    theirs = GradientBoostingClassifier(
        n_estimators=20, max_depth=3, learning_rate=0.1, subsample=0.5, min_samples_leaf=5, random_state=0
    ).fit(z, y)
    assert np.abs(expit(found.logits(limits)) - theirs.predict_proba(limits)[:, 1]).max() < 1e-12


TREE: dict[str, Any] = {"channel": [0, 1, 0, 0, 0], "threshold": [0.5, 0.1, 0, 0, 0], "left": [1, 2, -1, -1, -1],
                        "right": [4, 3, -1, -1, -1], "value": [0, 0, 1, 2, 3]}  # fmt: skip


def boosted(**changed: Any) -> str:
    import json

    tree = TREE | changed
    return json.dumps({"kind": "boosting", "intercept": 0.0, "rate": 0.1, "width": 2, "trees": [tree]}, allow_nan=True)


def test_a_sound_tree_is_read_and_scored_by_hand() -> None:
    found = READ.validate_json(boosted())
    assert isinstance(found, Boosting)
    # row 1: 0 <= .5, 0 <= .1 -> 1; row 2: 0 <= .5, 1 > .1 -> 2; row 3: 1 > .5 -> 3
    assert found.logits(np.array([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0]])).tolist() == pytest.approx([0.1, 0.2, 0.3])


@pytest.mark.parametrize(
    "changed",
    [
        {"left": [1, 0, -1, -1, -1]},  # a damaged tree: tests/test_estimators.py has them all
        {"channel": [7, 1, 0, 0, 0]},  # no such channel
        {"value": [0, 0, 1, 2, float("inf")]},
        {"channel": [], "threshold": [], "left": [], "right": [], "value": []},
    ],
)
def test_a_tree_that_would_loop_or_read_beside_the_row_is_refused(changed: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        READ.validate_json(boosted(**changed))


@pytest.mark.parametrize(
    "text",
    [
        "{}", "[]", '{"kind": "pickle"}', '{"kind": "logistic", "intercept": 0, "coef": []}',
        '{"kind": "logistic", "intercept": NaN, "coef": [1]}', '{"kind": "logistic", "intercept": "0", "coef": [1]}',
        '{"kind": "logistic", "intercept": 0, "coef": [1e999]}',
        '{"kind": "logistic", "intercept": 0, "coef": [1], "code": "x"}',
    ],
)  # fmt: skip
def test_what_is_no_estimator_is_refused(text: str) -> None:
    with pytest.raises(ValidationError):
        READ.validate_json(text)
