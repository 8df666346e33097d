"""screening/learn.py: what is set on newborns that the estimator had not seen, by hand and beside scipy and scikit-learn."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import beta
from sklearn.linear_model import LogisticRegression

from hpcai.book.diseases import Disease, Diseases
from hpcai.config.schema import Estimator
from hpcai.errors import DataError
from hpcai.metrics.logistic import expit
from hpcai.screening.learn import FEWEST, Fold, Part, calibrated, conformal, grid, learn, threshold

Array = NDArray[np.float64]


def panel(*names: str) -> Diseases:
    told = dict.fromkeys(("second_tier_source", "time_source", "incidence_source"), "test")
    each = [
        Disease(name=n, title=n, markers=["a"], needs=["a"], second_tier=None, time_critical=False, incidence=1e-4, **told)
        for n in names
    ]
    return Diseases(name="p", title="p", diseases=each, day_source="test")


def drawn(seed: int, counts: list[int], width: int = 5) -> Part:
    """Unaffected newborns, then `counts` of each disease, whose own channel is 3 higher."""
    rng = np.random.default_rng(seed)
    label = np.repeat(np.arange(len(counts)), counts)
    z = rng.normal(size=(len(label), width))
    for k in range(1, len(counts)):
        z[label == k, k - 1] += 3
    return Part(z, label, np.ones((len(label), len(counts) - 1), bool))


def folds_of(part: Part, n: int = 4) -> list[Fold]:
    """Every n-th newborn held out."""
    found = []
    for k in range(n):
        held = np.arange(len(part.label_N)) % n == k
        rest = Part(part.z_NC[~held], part.label_N[~held], part.valid_ND[~held])
        found.append(Fold(rest, part.z_NC[held], np.flatnonzero(held)))
    return found


def learnt(part: Part, val: Part, rule: str = "sensitivity>=0.9", **cfg: Any) -> Any:
    names = [f"D{k}" for k in range(1, part.valid_ND.shape[1] + 1)]
    return learn(panel(*names), Estimator(**cfg), rule, part, folds_of(part), val, seed=0)


# ---- threshold


def test_the_threshold_is_the_highest_that_reaches_the_wanted_sensitivity() -> None:
    logit = np.concatenate([np.arange(1.0, 11.0), np.zeros(5)])  # ten affected: 1 to 10
    found = threshold(logit, np.arange(15) < 10, "sensitivity>=0.9")
    assert (found.value, found.sensitivity, found.n) == (2.0, 0.9, 10)  # 2 to 10 are nine of ten


@pytest.mark.parametrize(("k", "n"), [(9, 10), (10, 10), (38, 40)])
def test_its_sensitivity_has_clopper_and_pearsons_interval(k: int, n: int) -> None:
    logit = np.concatenate([np.full(n - k, -1.0), np.ones(k), [-5.0]])
    found = threshold(logit, np.arange(n + 1) < n, f"sensitivity>={k / n}")
    high = 1.0 if k == n else beta.ppf(0.975, k + 1, n - k)
    assert found.low == pytest.approx(beta.ppf(0.025, k, n - k + 1), abs=1e-7) and found.high == pytest.approx(high, abs=1e-7)


def test_a_threshold_given_as_a_number_is_a_probability() -> None:
    found = threshold(np.array([-2.0, 0.5, 3.0]), np.array([False, True, True]), "0.5")
    assert found.value == 0.0 and found.sensitivity == 1.0


# ---- calibration


def test_calibration_finds_the_intercept_and_slope_that_made_the_labels() -> None:
    rng = np.random.default_rng(0)
    raw = rng.normal(size=20_000) * 3
    label = rng.random(20_000) < expit(0.7 * raw - 1.2)
    found = calibrated(raw, label, 0.01)
    theirs = LogisticRegression(C=np.inf, tol=1e-10).fit(raw[:, None], label)
    assert found.slope == pytest.approx(theirs.coef_[0, 0], abs=1e-3)
    assert found.intercept == pytest.approx(theirs.intercept_[0], abs=1e-3)


def test_the_shift_goes_from_the_tables_prior_to_the_incidence() -> None:
    label = np.arange(200) < 50  # prior 1 : 3; incidence 1 : 999, so the odds fall by 333
    found = calibrated(np.where(label, 1.0, -1.0) * np.linspace(-0.5, 1, 200), label, 0.001)
    assert np.exp(found.shift) == pytest.approx(1 / 333)
    assert (found.n_affected, found.n_unaffected) == (50, 150)


def test_separated_classes_keep_a_finite_slope() -> None:
    label = np.arange(100) < 20
    found = calibrated(np.where(label, 8.0, -8.0), label, 1e-5)
    assert 0.05 <= found.slope < 3 and np.isfinite(found.intercept)


# ---- conformal


def test_conformal_limits_by_hand() -> None:
    # nine affected 1..9, nineteen unaffected -1..-19, miscoverage .1: k = floor(.1 x 10) = 1 and floor(.1 x 20) = 2
    logit = np.concatenate([np.arange(1.0, 10.0), -np.arange(1.0, 20.0)])
    found = conformal(logit, np.arange(28) < 9, 0.1)
    assert (found.affected, found.unaffected) == (1.0, -2.0)
    assert found.decides


def test_too_few_newborns_leave_a_class_in_every_set_and_nothing_is_told() -> None:
    logit = np.concatenate([np.arange(8.0), -np.arange(1.0, 20.0)])  # floor(.1 x 9) = 0
    found = conformal(logit, np.arange(27) < 8, 0.1)
    assert found.affected is None and not found.decides


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 10_000), miscoverage=st.sampled_from([0.05, 0.1, 0.25]))
def test_the_set_holds_the_truth_as_often_as_was_wanted_in_each_class(seed: int, miscoverage: float) -> None:
    rng = np.random.default_rng(seed)
    kept = np.zeros(2)
    for _ in range(400):
        affected = rng.normal(size=39) ** 3 + 1
        unaffected = rng.normal(size=99) ** 3
        found = conformal(np.concatenate([affected, unaffected]), np.arange(138) < 39, miscoverage)
        low, high = found.bounds
        kept += [np.mean(rng.normal(size=50) ** 3 + 1 >= low), np.mean(rng.normal(size=50) ** 3 <= high)]
    # exact on average (39 + 1 and 99 + 1 times .05, .1, .25 are whole numbers); 4 sd of what 400 calibrations spread
    assert np.abs(kept / 400 - (1 - miscoverage)).max() < 4 * np.sqrt(miscoverage * (1 - miscoverage) / 40 / 400)


# ---- learning


@pytest.mark.parametrize("cfg", [{}, {"name": "boosting", "trees": [10, 30]}])
def test_each_disease_has_a_detector_that_finds_it_among_new_newborns(cfg: dict[str, Any]) -> None:
    found = learnt(drawn(0, [600, 40, 40]), drawn(1, [150, 10, 10]), **cfg)
    new = drawn(2, [2000, 200, 200])
    for k, detector in enumerate(found, 1):
        logit = detector.calibrated(detector.estimator.logits(new.z_NC))
        assert (logit[new.label_N == k] >= detector.threshold.value).mean() > 0.75  # .9 wanted, 50 cases set it
        assert (logit[new.label_N == 0] >= detector.threshold.value).mean() < 0.2
        assert detector.chosen in grid(Estimator(**cfg))


def test_probabilities_are_those_of_the_incidence() -> None:
    (detector,) = learnt(drawn(0, [4000, 200]), drawn(1, [1000, 50]))
    new = drawn(2, [200_000, 20_000])
    p = expit(detector.calibrated(detector.estimator.logits(new.z_NC)))
    weight = np.where(new.label_N == 1, 1e-4 / 20_000, (1 - 1e-4) / 200_000)  # back to one affected in 10,000
    assert (weight * p).sum() == pytest.approx(1e-4, rel=0.3)


def test_a_disease_with_too_few_cases_has_no_detector_and_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "hpcai"):
        found = learnt(drawn(0, [300, FEWEST - 1, 40]), drawn(1, [80, 10, 10]))
    assert [d.disease for d in found] == ["D2"]
    assert "D1 (9)" in caplog.text


def test_newborns_whom_no_fold_could_judge_set_no_threshold_and_still_teach() -> None:
    part, val = drawn(1, [400, 60]), drawn(2, [200, 20])
    folds = folds_of(part)
    gone = [Fold(f.taught, f.z_held_NC[:-5], f.held[:-5]) for f in folds]  # the last of each are affected
    (whole,), (less,) = (
        learn(panel("D1"), Estimator(penalty=[0.1]), "sensitivity>=0.9", part, f, val, 0) for f in (folds, gone)
    )
    assert (whole.threshold.n, less.threshold.n) == (80, 60) and whole.estimator == less.estimator
    with pytest.raises(DataError, match=r"^data\.path: D1: no laboratory has unaffected newborns enough"):
        learn(panel("D1"), Estimator(), "youden", part, [Fold(f.taught, f.z_held_NC[:0], f.held[:0]) for f in folds], val, 0)


def test_a_table_without_cases_is_refused() -> None:
    with pytest.raises(DataError, match="no disease has 10 affected newborns"):
        learnt(drawn(0, [300, 3]), drawn(1, [80, 1]))


def test_newborns_whose_specimen_is_not_valid_neither_teach_nor_set_anything() -> None:
    part, val = drawn(0, [600, 40]), drawn(1, [150, 10])
    hidden = Part(
        np.vstack([part.z_NC, np.zeros((30, 5))]), np.append(part.label_N, [1] * 30), np.vstack([part.valid_ND, [[False]] * 30])
    )
    plain = folds_of(part)
    widened = [Fold(Part(np.vstack([f.taught.z_NC, np.zeros((30, 5))]), np.append(f.taught.label_N, [1] * 30),
                         np.vstack([f.taught.valid_ND, [[False]] * 30])), f.z_held_NC, f.held) for f in plain]  # fmt: skip
    cfg = Estimator()
    first = learn(panel("D1"), cfg, "sensitivity>=0.9", part, plain, val, 0)
    second = learn(panel("D1"), cfg, "sensitivity>=0.9", hidden, widened, val, 0)
    assert first == second


def test_newborns_with_another_disease_say_nothing_about_this_one() -> None:
    part, val = drawn(0, [600, 40, 40]), drawn(1, [150, 10, 10])
    moved = Part(part.z_NC.copy(), part.label_N, part.valid_ND)
    moved.z_NC[part.label_N == 2] += 5
    assert learnt(part, val)[0] == learnt(moved, val)[0]
