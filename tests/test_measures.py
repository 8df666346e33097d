"""Measures of weighted cases: each resample is the very table that it draws."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    balanced_accuracy_score,
    brier_score_loss,
    precision_score,
    recall_score,
    roc_auc_score,
)

from hpcai.metrics import intervals
from hpcai.metrics.intervals import effective, mean_of_two, on_logit, ratio_of_two, resampled, student, studentised, wilson
from hpcai.metrics.measures import MEASURES, areas, measures

score_of = st.sampled_from([0.0, 0.1, 0.5, 0.5000001, 0.9, 1.0]) | st.floats(0, 1)
tables = st.lists(st.tuples(st.booleans(), score_of, st.booleans(), st.integers(0, 3)), min_size=1, max_size=60)


def theirs(label: np.ndarray, score: np.ndarray, called: np.ndarray) -> list[float]:
    return [
        roc_auc_score(label, score), average_precision_score(label, score), accuracy_score(label, called),
        balanced_accuracy_score(label, called), recall_score(label, called), recall_score(label, called, pos_label=0),
        precision_score(label, called), precision_score(label, called, pos_label=0), brier_score_loss(label, score),
    ]  # fmt: skip


@settings(max_examples=200)
@given(tables)
def test_a_weight_counts_as_so_many_copies(rows: list[tuple[bool, float, bool, int]]) -> None:
    label, score, called, weight = (np.array(column) for column in zip(*rows))
    found = dict(zip(MEASURES, measures(label, score, called)(weight[None])[0]))
    assert np.array_equal(areas(label, score)(weight[None])[0], [found["auc"], found["average_precision"]], equal_nan=True)
    y, s, c = (np.repeat(column, weight) for column in (label, score, called))
    if len(y) and 0 < y.sum() < len(y) and 0 < c.sum() < len(c):
        assert np.allclose(list(found.values()), theirs(y, s, c), atol=1e-12)
    else:
        if not (len(y) and 0 < y.sum() < len(y)):
            assert np.isnan(found["auc"]) and np.isnan(found["average_precision"])
        assert np.isnan(found["ppv"]) == (not c.any()) and np.isnan(found["npv"]) == (len(c) == c.sum())


@pytest.mark.parametrize("repeats", [1, 3])
def test_resamples_are_those_of_a_loop_with_the_same_generator(repeats: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intervals, "RESAMPLES", 25)
    rng = np.random.default_rng(3)
    n = 90
    label, score = rng.random(n) < 0.4, rng.random(n).round(2)
    groups = np.array([f"{i // repeats:03d}" for i in range(n)])
    order = rng.permutation(n)
    drawn = resampled(measures(label[order], score[order], score[order] > 0.5), groups[order])
    loop = np.random.Generator(np.random.PCG64(intervals.SEED))
    for found in drawn:
        units = loop.integers(n // repeats, size=n // repeats)
        cases = np.concatenate([np.flatnonzero(groups == f"{u:03d}") for u in units])
        assert np.allclose(found, theirs(label[cases], score[cases], score[cases] > 0.5), atol=1e-12)


# --- intervals


@given(st.integers(1, 400))
def test_students_point_is_scipys(df: int) -> None:
    from scipy.stats import t

    assert student(df) == pytest.approx(t.ppf(0.975, df), rel=2e-3 if df < 4 else 5e-4)
    assert student(df) > student(df + 1) > intervals.Z


@given(st.floats(0.01, 0.99), st.integers(5, 500))
def test_an_interval_from_resamples_holds_its_value_and_stays_inside(value: float, units: int) -> None:
    drawn = np.clip(np.random.default_rng(units).normal(value, 0.05, 500), 0, 1)
    for interval in (on_logit(value, drawn, units), effective(value, drawn, units)):
        assert interval is not None and 0 <= interval[0] < value < interval[1] <= 1


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_nothing_is_made_of_resamples_that_do_not_differ(value: float) -> None:
    for function in (on_logit, effective):
        assert function(value, np.full(10, value), 10) is None
        assert function(0.5, np.full(10, 0.5), 10) is None and function(0.5, np.full(10, np.nan), 10) is None
    assert studentised(np.full(9, value), np.arange(9)) is None


def test_as_many_cases_as_independent_ones_have_is_wilsons_interval() -> None:
    right = np.arange(400) < 300
    drawn = resampled(lambda w: (w * right).sum(1) / w.sum(1), np.arange(400))
    assert np.allclose(effective(0.75, drawn, 400) or (), wilson(300, 400), atol=0.004)


@given(st.integers(1, 60), st.integers(0, 60), st.integers(1, 60), st.integers(0, 60))
def test_intervals_of_two_shares_hold_their_value(k1: int, more1: int, k2: int, more2: int) -> None:
    (p1, i1), (p2, i2) = ((k / (k + m), wilson(k, k + m)) for k, m in ((k1, more1), (k2, more2)))
    low, high = mean_of_two(p1, i1, p2, i2)
    assert low + 1e-12 >= 0 and low <= (p1 + p2) / 2 <= high <= 1 + 1e-12
    low, top = ratio_of_two(p1, i1, p2, i2)
    assert 0 <= low <= p1 / p2 * (1 + 1e-12) and top is not None and top >= p1 / p2 * (1 - 1e-12)


def test_the_ratio_of_two_shares_is_newcombes_formula() -> None:
    (p, (l1, u1)), (q, (l2, u2)) = (0.9, wilson(45, 50)), (0.2, wilson(10, 50))
    low = (p * q - np.sqrt((p * q) ** 2 - l1 * u2 * (2 * p - l1) * (2 * q - u2))) / (u2 * (2 * q - u2))
    high = (p * q + np.sqrt((p * q) ** 2 - u1 * l2 * (2 * p - u1) * (2 * q - l2))) / (l2 * (2 * q - l2))
    assert ratio_of_two(p, (l1, u1), q, (l2, u2)) == (pytest.approx(low), pytest.approx(high))


def test_the_mean_of_skewed_errors_has_a_longer_upper_arm() -> None:
    value = np.random.default_rng(1).exponential(size=60) ** 2
    low, high = studentised(value, np.arange(60)) or (0, 0)
    assert low < value.mean() < high and high - value.mean() > 1.2 * (value.mean() - low)


def test_patients_that_repeat_widen_the_interval_of_a_mean() -> None:
    value = np.repeat(np.random.default_rng(1).random(50), 4)
    alone, grouped = studentised(value, np.arange(200)), studentised(value, np.repeat(np.arange(50), 4))
    assert alone is not None and grouped is not None
    assert grouped[1] - grouped[0] > 1.8 * (alone[1] - alone[0])
