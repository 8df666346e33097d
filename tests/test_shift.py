"""Two splits compared: what is told apart, what is not, and when a correction for prevalence would be wrong."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import ks_2samp

from hpcai.metrics.rows import Rows
from hpcai.metrics.shift import _distance, kolmogorov, shift


def rows(share: float, n: int = 600, move: float = 0.0, seed: int = 0, repeats: int = 1, classes: int = 2) -> Rows:
    """A split with `share` of the positive class; `move` moves the scores of every class."""
    rng = np.random.default_rng(seed)
    label = np.repeat((rng.permutation(n // repeats) < share * n / repeats).astype(np.int64), repeats)
    if classes > 2:
        label = rng.integers(0, classes, n)
        scores = rng.dirichlet(np.ones(classes), n) + 0.5 * np.eye(classes)[label]
        scores /= scores.sum(1, keepdims=True)
    else:
        noise = np.repeat(rng.normal(size=n // repeats), repeats)
        s = 1 / (1 + np.exp(-noise - 2 * label + 1 - move))
        scores = np.stack([1 - s, s], 1)
    ids = [f"{seed}-{i:05d}" for i in range(n)]
    return Rows(ids, [f"{seed}-p{i // repeats}" for i in range(n)] if repeats > 1 else None, label, scores)


def test_splits_of_one_kind_are_the_same() -> None:
    found = shift(rows(0.6, seed=1), rows(0.6, seed=2))
    assert found.verdict == "same" and not found.prevalence_differs


def test_another_prevalence_alone_is_label_shift_that_is_not_rejected() -> None:
    found = shift(rows(0.742, seed=1), rows(0.5, seed=2))
    assert found.prevalence_differs and found.score_differs
    assert found.verdict == "differs, label shift not rejected" and found.label_shift_p > 0.05


def test_scores_that_move_within_a_class_reject_label_shift() -> None:
    found = shift(rows(0.742, seed=1), rows(0.5, move=0.6, seed=2))
    assert found.verdict == "differs, label shift rejected" and found.label_shift_p < 0.001


def test_scores_that_move_are_seen_at_equal_prevalence() -> None:
    found = shift(rows(0.5, seed=1), rows(0.5, move=0.6, seed=2))
    assert not found.prevalence_differs and found.verdict == "differs, label shift rejected"


def test_patients_that_repeat_are_no_independent_witnesses() -> None:
    """Twelve copies of each of fifty patients: what cases alone would call a difference is none."""
    alarms = [0, 0]
    for seed in range(20):
        a, b = rows(0.5, seed=2 * seed, repeats=12), rows(0.5, seed=2 * seed + 1, repeats=12)
        alarms[0] += shift(a, b).verdict != "same"
        blind = [Rows(r.case, None, r.label, r.scores) for r in (a, b)]
        alarms[1] += shift(*blind).verdict != "same"
    assert alarms[0] <= 4 and alarms[1] >= 10
    told = shift(a, b)
    assert "patients" in told.prevalence[0].method and "permutations" in told.score[0].method


def test_more_classes_are_each_asked_and_paid_for() -> None:
    found = shift(rows(0, seed=1, classes=4), rows(0, seed=2, classes=4))
    assert len(found.prevalence) == len(found.score) == len(found.within) == 4 and found.verdict == "same"


def test_a_class_that_one_split_lacks_is_not_compared_within() -> None:
    one = rows(0.5, seed=1)
    found = shift(one.where(one.label == 1), rows(0.5, seed=2))
    assert [t.k for t in found.within] == [1] and found.prevalence_differs


def test_a_test_of_two_tables_is_the_same_whenever_it_is_made() -> None:
    a, b = rows(0.5, seed=1, repeats=3), rows(0.5, seed=2, repeats=3)
    assert shift(a, b) == shift(a, b)


values = st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0]) | st.floats(0, 1), min_size=1, max_size=40)


@given(values, values)
def test_the_distance_is_the_largest_between_the_shares_below(a: list[float], b: list[float]) -> None:
    mine = np.arange(len(a) + len(b)) < len(a)
    largest = max(abs(np.mean(np.array(a) <= x) - np.mean(np.array(b) <= x)) for x in a + b)
    assert _distance(np.array(a + b), mine[None])[0] == pytest.approx(largest, abs=1e-12)


@pytest.mark.parametrize(("n", "m"), [(80, 120), (500, 500), (30, 2000)])
def test_the_chance_is_near_the_exact_one(n: int, m: int) -> None:
    rng = np.random.default_rng(n)
    for move in (0.0, 0.1, 0.3):
        exact = ks_2samp(rng.normal(size=n), rng.normal(size=m) + move, method="exact")
        assert kolmogorov(exact.statistic, n, m) == pytest.approx(exact.pvalue, abs=0.03)
    assert kolmogorov(0.0, n, m) == 1.0 and kolmogorov(1.0, n, m) < 1e-9
