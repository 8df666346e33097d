"""Calibration: what scores that are probabilities, too extreme or shifted look like, and where nothing can be said."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcai.metrics.calibration import LEAST, bins, brier, calibration, curve, ece
from hpcai.metrics.logistic import expit, logit
from hpcai.metrics.sample import Sample


def sample(slope: float = 1.0, shift: float = 0.0, n: int = 4000, repeats: int = 1) -> Sample:
    """Scores whose logit is `slope` times the true one, plus `shift`."""
    rng = np.random.default_rng(0)
    eta = np.repeat(rng.normal(size=n // repeats) * 1.5, repeats)
    label = np.repeat(rng.random(n // repeats), repeats) < expit(eta)
    score = expit(slope * eta + shift)
    ids = [f"{i:05d}" for i in range(n)]
    return Sample(label, score, score >= 0.5, "test", ids, [f"{i // repeats:05d}" for i in range(n)])


def two(s: Sample) -> dict[str, tuple[float, float, float]]:
    return {e.name: (e.low or 0, e.value or 0, e.high or 0) for e in calibration(s)}


def test_probabilities_have_intercept_0_and_slope_1() -> None:
    found = two(sample())
    assert found["calibration_intercept"][0] < 0 < found["calibration_intercept"][2]
    assert found["calibration_slope"][0] < 1 < found["calibration_slope"][2]


def test_scores_that_are_too_extreme_have_a_slope_below_1_and_shifted_ones_an_intercept() -> None:
    low, value, high = two(sample(slope=2))["calibration_slope"]
    assert low < 0.5 < high and value == pytest.approx(0.5, abs=0.06)
    low, value, high = two(sample(shift=1))["calibration_intercept"]
    assert low < -1 < high and value == pytest.approx(-1, abs=0.1)


def test_patients_that_repeat_widen_the_intervals() -> None:
    s = sample(n=1200, repeats=4)
    alone = Sample(s.label, s.score, s.called, s.split, s.case)
    for name, (low, _, high) in two(s).items():
        assert high - low > 1.7 * (two(alone)[name][2] - two(alone)[name][0])
    assert "patients" in calibration(s)[0].method and "independent" in calibration(alone)[0].method


@pytest.mark.parametrize("label", [[True] * 6, [False] * 6])
def test_one_class_has_no_calibration_and_says_why(label: list[bool]) -> None:
    s = Sample(np.array(label), np.linspace(0.1, 0.9, 6), np.ones(6, bool), "test", list("abcdef"))
    assert all(e.value is None and "one class" in e.method for e in calibration(s))
    assert brier(s).value is not None


def test_classes_that_are_apart_have_no_slope() -> None:
    label = np.arange(40) >= 20
    s = Sample(label, np.where(label, 0.9, 0.1), label, "test", [f"{i:02d}" for i in range(40)])
    assert calibration(s)[1].value is None and "apart" in calibration(s)[1].method


def test_brier_is_the_mean_squared_error_within_its_interval() -> None:
    s = sample(n=300)
    e = brier(s)
    assert e.value == pytest.approx(((s.score - s.label) ** 2).mean()) and e.low is not None and e.high is not None
    assert 0 <= e.low < e.value < e.high


def test_ece_by_hand_and_without_an_interval_that_it_could_not_keep() -> None:
    score = np.repeat([0.2, 0.7], 20)
    label = np.concatenate([np.arange(20) < 8, np.arange(20) < 10])
    e = ece(score, label, "test")
    assert e.value == pytest.approx((20 * 0.2 + 20 * 0.2) / 40) and e.low is None and "no interval" in e.method


scores = st.lists(st.tuples(st.booleans(), st.sampled_from([0.0, 0.3, 0.5, 1.0]) | st.floats(0, 1)), min_size=1, max_size=150)


@given(scores)
def test_bins_hold_every_case_once_in_order_and_ten_at_least(rows: list[tuple[bool, float]]) -> None:
    label, score = np.array([r[0] for r in rows]), np.array([r[1] for r in rows])
    found = bins(label, score)
    assert sum(b["n"] for b in found) == len(rows) and len(found) <= 10
    assert all(b["n"] >= LEAST for b in found) or len(found) == 1
    assert all(a["high"] < b["low"] for a, b in pairwise(found))
    assert sum(b["rate"] * b["n"] for b in found) == pytest.approx(label.sum())
    assert all(b["rate_low"] <= b["rate"] + 1e-12 and b["rate"] <= b["rate_high"] + 1e-12 for b in found)


def test_the_smooth_curve_of_probabilities_is_the_diagonal_within_its_band() -> None:
    s = sample()
    found = curve(s.label, s.score, s.units)
    assert found is not None and len(found["score"]) == 50
    x, rate, low, high = (np.array(found[k]) for k in ("score", "rate", "low", "high"))
    assert (low <= rate).all() and (rate <= high).all() and ((low <= x) & (x <= high)).mean() > 0.9


def test_a_bent_calibration_is_seen() -> None:
    rng = np.random.default_rng(0)
    score = rng.uniform(0.02, 0.98, 4000)
    label = rng.random(4000) < score**3
    found = curve(label, score, np.arange(4000))
    assert found is not None
    at = np.array(found["score"])
    assert np.abs(np.array(found["rate"]) - at**3).max() < 0.06 and np.isfinite(logit(at)).all()


def test_no_curve_where_nothing_can_be_fitted() -> None:
    assert curve(np.arange(20) >= 10, np.linspace(0, 1, 20), np.arange(20)) is None
    assert curve(np.arange(20) >= 10, np.full(20, 0.5), np.arange(20)) is None
