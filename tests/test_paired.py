"""Differences on the same cases: against definitions, against the likelihood, and what a verdict may say."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar

from hpcai.metrics.binary import auc
from hpcai.metrics.classification import Threshold
from hpcai.metrics.paired import Difference, Judged, differences, names, tango, value_of, verdict
from hpcai.metrics.rows import Rows

HALF = Threshold(0.5, "0.5", "val", 1)


def judged(
    label: list[int], score: list[float], patient: list[str] | None = None, threshold: Threshold | None = HALF
) -> Judged:
    s = np.array(score)
    rows = Rows([f"c{i:04d}" for i in range(len(label))], patient, np.array(label, np.int64), np.stack([1 - s, s], 1))
    return Judged(rows, threshold)


def simulated(n: int, *shifts: float, each: int = 0, seed: int = 0) -> list[Judged]:
    """Models of growing skill whose scores on a case are alike."""
    rng = np.random.default_rng(seed)
    label = np.arange(n) % 2
    shared = rng.normal(size=n)
    patient = [f"p{i // each}" for i in range(n)] if each else None
    return [
        judged(
            label.tolist(), (1 / (1 + np.exp(-(shared + 0.3 * rng.normal(size=n) + shift * (label - 0.5))))).tolist(), patient
        )
        for shift in shifts
    ]


@pytest.mark.parametrize("each", [0, 2])
def test_a_run_differs_from_itself_nowhere(each: int) -> None:
    (one,) = simulated(40, 1.0, each=each)
    for d in differences([one], [one]):
        assert (d.value, d.low, d.high, d.method) == (0.0, 0.0, 0.0, "equal scores on every case")
        assert verdict(d, 1e-9) == "non-inferior"


def test_values_are_those_of_each_side(each: int = 3) -> None:
    a, b = simulated(60, 2.0, 0.5, each=each)
    told = {d.name: d for d in differences([a], [b])}
    assert list(told) == names(2)
    assert told["auc"].first == pytest.approx(auc(a.rows.label == 1, a.rows.scores[:, 1]), abs=1e-12)
    positive = b.rows.label == 1
    assert told["sensitivity"].second == pytest.approx((b.rows.scores[positive, 1] >= 0.5).mean())
    assert told["specificity"].n == 30
    for d in told.values():
        assert d.value == d.first - d.second and d.low <= d.value <= d.high
        assert "patients" in d.method


def test_pairing_makes_the_interval_narrower_than_of_two_sets_of_cases() -> None:
    a, b = simulated(400, 1.0, 0.9)
    (d, *_) = differences([a], [b])
    (other,) = simulated(400, 0.9, seed=1)
    (e, *_) = differences([a], [Judged(Rows(a.rows.case, None, a.rows.label, other.rows.scores), HALF)])
    assert d.high - d.low < 0.5 * (e.high - e.low)


def test_sides_change_places_with_the_sign() -> None:
    a, b = simulated(100, 1.5, 0.5, each=2)
    for d, e in zip(differences([a], [b]), differences([b], [a]), strict=True):
        assert (d.value, d.low, d.high) == pytest.approx((-e.value, -e.high, -e.low))


def test_each_side_is_called_by_its_own_threshold() -> None:
    (a,) = simulated(60, 1.0)
    b = Judged(a.rows, Threshold(0.9, "0.9", "val", 1))
    told = {d.name: d for d in differences([a], [b])}
    assert told["auc"].value == 0 and told["sensitivity"].value > 0 > told["specificity"].value


def test_two_faultless_models_on_few_cases_are_not_shown_equal() -> None:
    label = [0, 1] * 6
    a, b = judged(label, [0.1, 0.9] * 6), judged(label, [0.2, 0.8] * 6)
    for d in differences([a], [b]):
        assert d.value == 0 and d.low < -0.1 and d.high > 0.1 and verdict(d, 0.05) == "not shown"
    patients = [f"p{i // 4}" for i in range(12)]
    a, b = (Judged(Rows(j.rows.case, patients, j.rows.label, j.rows.scores), HALF) for j in (a, b))
    for d in differences([a], [b]):
        assert d.low < -0.3 and "no resample differs" in d.method


def test_one_class_alone_has_no_auc_and_no_verdict() -> None:
    a, b = judged([1, 1, 1], [0.1, 0.6, 0.7]), judged([1, 1, 1], [0.2, 0.3, 0.7])
    told = {d.name: d for d in differences([a], [b])}
    assert told["auc"].value is None and told["specificity"].value is None and told["sensitivity"].value is not None
    assert verdict(told["auc"], 0.5) == "not shown"


def test_more_classes_are_compared_by_macro_auc() -> None:
    rng = np.random.default_rng(0)
    label = np.arange(60) % 3
    sides = []
    for skill in (3.0, 0.0):
        scores = rng.dirichlet(np.ones(3), 60) + skill * np.eye(3)[label]
        rows = Rows([str(i) for i in range(60)], None, label, scores / scores.sum(1, keepdims=True))
        sides.append(Judged(rows, None))
    told = {d.name: d for d in differences(sides[:1], sides[1:])}
    assert list(told) == ["macro_auc", "accuracy", "sensitivity[0]", "sensitivity[1]", "sensitivity[2]"]
    assert told["macro_auc"].low > 0.2 and told["sensitivity[1]"].n == 20


def test_a_side_of_several_seeds_is_their_mean() -> None:
    a, b, c = simulated(80, 1.0, 2.0, 0.5)
    (d, *_) = differences([a, b], [c])
    mine, other, theirs = (value_of(j, "auc") for j in (a, b, c))
    assert d.first == pytest.approx((mine + other) / 2) and d.second == pytest.approx(theirs)


# --- Tango's interval


def score_statistic(b: int, c: int, n: int, delta: float) -> float:
    """The score test by the likelihood itself: maximised over the other parameter numerically."""

    def loss(q: float) -> float:
        cells = ((b, q + delta), (c, q), (n - b - c, 1 - 2 * q - delta))
        return -sum(k * math.log(p) for k, p in cells if k)

    low, high = max(0.0, -delta), (1 - delta) / 2
    eps = 1e-12
    q = minimize_scalar(loss, bounds=(low + eps, high - eps), method="bounded", options={"xatol": 1e-12}).x
    return (b - c - n * delta) / math.sqrt(n * (2 * q + delta * (1 - delta)))


@pytest.mark.parametrize(("b", "c", "n"), [(4, 9, 68), (1, 7, 20), (12, 3, 100), (5, 5, 40), (2, 1, 30)])
def test_at_tangos_ends_the_score_test_is_just_at_its_limit(b: int, c: int, n: int) -> None:
    low, high = tango(b, c, n)
    assert score_statistic(b, c, n, low) == pytest.approx(1.959964, abs=2e-4)
    assert score_statistic(b, c, n, high) == pytest.approx(-1.959964, abs=2e-4)


@given(st.integers(0, 30), st.integers(0, 30), st.integers(0, 60))
def test_tangos_interval_holds_the_difference_within_bounds(b: int, c: int, alike: int) -> None:
    n = max(1, b + c + alike)
    low, high = tango(b, c, n)
    assert -1 <= low <= (b - c) / n <= high <= 1 and high > low
    assert tango(c, b, n) == pytest.approx((-high, -low), abs=1e-9)


@given(st.integers(1, 10_000))
def test_agreement_on_n_cases_shows_no_more_than_n_cases_can(n: int) -> None:
    z2 = 1.959963984540054**2
    assert tango(0, 0, n) == pytest.approx((-z2 / (n + z2), z2 / (n + z2)), abs=5e-5)


# --- the verdict

ENDS = st.floats(-1, 1, allow_nan=False)
WORDS = ["inferior", "not shown", "non-inferior"]


@given(ENDS, ENDS, st.floats(1e-6, 1), st.floats(1e-6, 1))
def test_a_wider_margin_never_makes_a_verdict_worse(x: float, y: float, m: float, k: float) -> None:
    d = Difference("auc", 0.5, 0.5, (x + y) / 2, min(x, y), max(x, y), 10, "")
    assert WORDS.index(verdict(d, min(m, k))) <= WORDS.index(verdict(d, max(m, k)))


@pytest.mark.parametrize(("low", "high", "word"), [
    (-0.009, 0.02, "non-inferior"), (0.001, 0.02, "non-inferior"), (-0.01, 0.02, "not shown"), (-0.03, -0.01, "not shown"),
    (-0.05, 0.0, "not shown"), (-0.05, -0.011, "inferior"),
])  # fmt: skip
def test_the_verdict_goes_by_the_whole_interval(low: float, high: float, word: str) -> None:
    assert verdict(Difference("auc", 0.9, 0.9, 0.0, low, high, 10, ""), 0.01) == word
