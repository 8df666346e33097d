"""The one logistic solver: against scikit-learn, by its own equations, and where there is no answer."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression

from hpcai.metrics.logistic import expit, fit, logit


def data(n: int = 400, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    x = np.column_stack([np.ones(n), rng.normal(size=n), rng.normal(size=n) * 3])
    return x, rng.random(n) < expit(x @ np.array([-0.4, 1.0, -0.3]))


def test_coefficients_are_scikit_learns_with_and_without_a_penalty() -> None:
    x, y = data()
    for ridge, c in ((0.0, np.inf), (2.0, 0.5)):
        theirs = LogisticRegression(C=c, tol=1e-12, max_iter=5000).fit(x[:, 1:], y)
        model = fit(x, y, ridge=ridge)
        assert model.converged
        assert np.allclose(model.beta, [theirs.intercept_[0], *theirs.coef_[0]], atol=1e-5)


def test_at_the_answer_the_gradient_is_zero_also_with_a_fixed_part() -> None:
    x, y = data()
    offset = np.random.default_rng(1).normal(size=len(y))
    model = fit(x, y, offset=offset)
    assert np.abs(x.T @ (y - expit(offset + x @ model.beta))).max() < 1e-4


def test_the_sandwich_of_independent_cases_is_near_the_models_own_and_wider_for_copies() -> None:
    x, y = data(4000)
    model = fit(x, y)
    mu = expit(x @ model.beta)
    own = np.linalg.inv((x * (mu * (1 - mu))[:, None]).T @ x)
    assert np.allclose(np.diag(model.covariance), np.diag(own), rtol=0.15)
    copies = fit(np.repeat(x, 3, axis=0), np.repeat(y, 3), np.repeat(np.arange(4000), 3))
    assert np.allclose(copies.covariance, model.covariance, rtol=1e-6)
    assert model.error(1) == pytest.approx(np.sqrt(model.covariance[1, 1]))


def test_classes_that_are_apart_have_no_answer() -> None:
    x = np.column_stack([np.ones(40), np.linspace(-1, 1, 40)])
    assert not fit(x, x[:, 1] > 0).converged


def test_columns_that_depend_on_each_other_have_no_answer_without_a_penalty() -> None:
    x, y = data(100)
    twice = np.column_stack([x, x[:, 1]])
    assert not fit(twice, y).converged and fit(twice, y, ridge=1.0).converged


@settings(max_examples=30)
@given(st.integers(0, 10_000))
def test_it_arrives_from_far_off(seed: int) -> None:
    """Hard columns: a slope of 20 on a logit that is off by 5."""
    rng = np.random.default_rng(seed)
    z = rng.normal(size=300)
    x = np.column_stack([np.ones(300), 20 * z + 5])
    y = rng.random(300) < expit(0.7 * z + 0.1)
    model = fit(x, y)
    assert model.converged and np.abs(x.T @ (y - expit(x @ model.beta))).max() < 1e-2


def test_logit_and_its_inverse_fit_and_never_overflow() -> None:
    p = np.array([0.0, 1e-300, 0.2, 0.5, 1.0])
    assert np.isfinite(logit(p)).all() and np.allclose(expit(logit(p)), p, atol=1e-11)
    assert expit(np.array([-1e9, 1e9])).tolist() == [0.0, 1.0]
