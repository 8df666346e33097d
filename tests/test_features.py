"""Features: multiples by hand, the adjustment against a reference, no row that sees another."""

from __future__ import annotations

import copy
import json
import math
from typing import Any

import numpy as np
import pytest
from newborns import batch, dictionary, drawn, shipped
from scipy.optimize import minimize

from hpcai.errors import DataError
from hpcai.screening import features as module
from hpcai.screening.batch import Batch, Floats
from hpcai.screening.features import CLIP, HUBER, KNOTS, RIDGE, Adjustment, Spline, features, log_channels
from hpcai.screening.plates import PlateShift
from hpcai.screening.survey import MINIMUM, Reference, Survey, channels_of
from hpcai.screening.teaching import rows_of

MEDIAN = np.log([50, 80, 20, 0.05, 50 / 80, 0.05 / 20])
SCALE = np.array([0.35, 0.35, 0.5, 0.4, 0.3, 0.6])
REFERENCES = {"A": Reference("A", "", 1000, MEDIAN, SCALE)}


def weeks(n: int, seed: int = 0) -> dict[str, Floats]:
    """Covariates of n newborns, one in ten of unknown gestation."""
    rng = np.random.Generator(np.random.PCG64(seed))
    gestation = 41 - rng.gamma(1.2, 1.5, n).clip(0, 17)
    weight = 3400 + 180 * (gestation - 39.5) + rng.normal(0, 350, n)
    gestation[rng.random(n) < 0.1] = np.nan
    return {"gestation_weeks": gestation, "weight_g": weight.clip(500), "age_h": rng.uniform(24, 96, n)}


# --- multiples and z


def test_a_value_twice_the_median_is_a_multiple_of_two() -> None:
    found = features(dictionary(), batch([[100, 80, 20, 0.05]]), REFERENCES)
    assert found.multiple_NC[0] == pytest.approx([2, 1, 1, 1, 2, 1])
    two = math.log(2)
    assert found.z_NC[0] == pytest.approx([two / 0.35, 0, 0, 0, two / 0.3, 0], abs=1e-12)
    assert not found.missing_NC.any() and found.known_N.tolist() == [True]


@pytest.mark.parametrize("bad", [math.nan, math.inf, 0.0, -3.0])
def test_what_is_missing_stands_in_the_middle_and_says_so(bad: float) -> None:
    found = features(dictionary(), batch([[100, bad, 20, 0.05]]), REFERENCES)
    assert found.missing_NC[0].tolist() == [False, True, False, False, True, False]
    assert found.z_NC[0, [1, 4]].tolist() == [0, 0] and np.isnan(found.multiple_NC[0, [1, 4]]).all()


def test_a_laboratory_without_a_reference_is_unknown() -> None:
    found = features(dictionary(), batch([[100, 80, 20, 0.05]] * 2, ["A", "new"]), REFERENCES)
    assert found.known_N.tolist() == [True, False]
    assert found.missing_NC[1].all() and (found.z_NC[1] == 0).all()
    nobody = features(dictionary(), batch([[100, 80, 20, 0.05]]), {})
    assert nobody.known_N.tolist() == [False] and nobody.missing_NC.all()


def test_a_channel_without_a_median_is_missing() -> None:
    median = MEDIAN.copy()
    median[3] = np.nan
    found = features(dictionary(), batch([[100, 80, 20, 0.05]]), {"A": Reference("A", "", 500, median, SCALE)})
    assert found.missing_NC[0].tolist() == [False, False, False, True, False, False] and found.known_N.all()


def test_a_far_value_says_far_and_no_more() -> None:
    found = features(dictionary(), batch([[50e6, 80e-9, 20, 0.05]]), REFERENCES)
    assert found.z_NC[0, :2].tolist() == [CLIP, -CLIP]
    assert found.multiple_NC[0, 0] == pytest.approx(1e6)  # the multiple itself is told in full


def test_each_laboratory_and_month_is_measured_by_its_own_median() -> None:
    moved = Reference("A", "m2", 500, MEDIAN + math.log(2), SCALE)
    known = {
        "A": Reference("A", "", 900, MEDIAN, SCALE, {"m2": moved}),
        "B": Reference("B", "", 900, MEDIAN - math.log(2), SCALE),
    }
    rows = batch([[50, 80, 20, 0.05]] * 3, ["A", "A", "B"], "p", ["m1", "m2", "m2"])
    assert features(dictionary(), rows, known).multiple_NC[:, 0] == pytest.approx([1, 0.5, 2])


def test_a_table_without_rows_has_features_without_rows() -> None:
    found = features(dictionary(), batch(np.empty((0, 4))), REFERENCES)
    assert found.z_NC.shape == found.missing_NC.shape == (0, 6) and found.known_N.shape == (0,)


def test_logs_are_those_of_the_channels() -> None:
    x_NA = drawn(500, 1)
    x_NA[::7, 1] = np.nan
    assert log_channels(dictionary(), x_NA) == pytest.approx(np.log(channels_of(dictionary(), x_NA)), abs=1e-12, nan_ok=True)


def test_a_shift_of_a_plate_is_taken_off() -> None:
    plates = PlateShift(Survey(dictionary()), REFERENCES)
    for name, total in (("p1", -50_000), ("p2", 0), ("p3", 50_000)):
        plates.sums["A", name] = np.array([[total] * 6, [100] * 6])  # by test_plates: a shift of -0.48, 0, 0.48 sd
    rows = batch([[50, 80, 20, 0.05]] * 4, "A", ["p1", "p2", "p3", "p9"])
    found = features(dictionary(), rows, REFERENCES, plates=plates)
    assert found.z_NC == pytest.approx(np.array([[0.48], [0], [-0.48], [0]]) * np.ones(6), abs=1e-9)


# --- splines and the adjustment


def test_a_spline_is_straight_past_its_knots_and_smooth_within() -> None:
    spline = Spline("age_h", (24.0, 48.0, 72.0, 120.0), 0.0, 400.0, [0.0] * 3, [1.0] * 3)
    x = np.linspace(0, 400, 4001)
    second_NK = np.diff(spline.raw(x), 2, axis=0)
    outside = (x[1:-1] < 23.9) | (x[1:-1] > 120.1)
    assert np.abs(second_NK[outside]).max() < 1e-9
    assert np.abs(second_NK[~outside][:, 1:]).max() > 1e-8
    assert np.abs(np.diff(second_NK, axis=0)).max() < 1e-7  # no jump of the curvature at a knot


def test_a_spline_is_level_past_what_training_has_seen() -> None:
    spline = Spline.fit("age_h", np.linspace(20, 90, 1000))
    assert spline
    assert (spline.of(np.array([1e6])) == spline.of(np.array([spline.high]))).all()
    assert (spline.of(np.array([0.0])) == spline.of(np.array([spline.low]))).all()
    assert (spline.of(np.array([np.nan])) == 0).all()
    assert spline.of(np.linspace(20, 90, 1000)).mean(0) == pytest.approx(np.zeros(5), abs=1e-9)


@pytest.mark.parametrize("values", [np.full(500, np.nan), np.full(500, 39.0), np.arange(30.0, 40)])
def test_a_covariate_that_says_nothing_has_no_spline(values: Floats) -> None:
    assert Spline.fit("gestation_weeks", values) is None


def truth(number: dict[str, Floats]) -> Floats:
    """(n,) what a planted law does to a log multiple: preterm high, old low; the average newborn for what is unknown."""
    gestation = np.nan_to_num(39.2 - number["gestation_weeks"])
    return 0.08 * np.maximum(gestation, 0) - 0.004 * (number["age_h"] - 60)


def test_a_planted_effect_is_found_and_taken_off() -> None:
    number = weeks(20_000)
    rng = np.random.Generator(np.random.PCG64(1))
    y_NC = rng.normal(0, 0.35, (20_000, 6))
    y_NC[:, 0] += truth(number)
    adjustment = Adjustment.fit(y_NC, number)
    left_NC = y_NC.copy()
    adjustment.subtract(left_NC, number)
    taken_NC = y_NC - left_NC
    known = np.isfinite(number["gestation_weeks"])
    assert np.abs(taken_NC[known, 0] - truth(number)[known]).mean() < 0.03
    early = known & (number["gestation_weeks"] < 32)
    assert np.abs(left_NC[early, 0].mean()) < 0.06 < y_NC[early, 0].mean()
    assert np.abs(taken_NC[:, 1:]).mean() < 0.01  # nothing is taken off where there is nothing


def test_affected_rows_that_slipped_in_hardly_move_it() -> None:
    number = weeks(10_000)
    y_NC = np.random.Generator(np.random.PCG64(2)).normal(0, 0.35, (10_000, 6)) + truth(number)[:, None]
    clean = Adjustment.fit(y_NC, number)
    y_NC[::100, 0] += 4.0  # 1 % at 55 times the median
    sick = Adjustment.fit(y_NC, number)
    one, two = np.zeros((10_000, 6)), np.zeros((10_000, 6))
    clean.subtract(one, number)
    sick.subtract(two, number)
    assert np.abs(one - two)[:, 0].max() < 0.05  # least squares moves by 0.04 everywhere, and by more where newborns are few
    assert np.abs(one - two)[:, 0].mean() < 0.01


def test_it_is_hubers_regression(monkeypatch: pytest.MonkeyPatch) -> None:
    number = weeks(1500)
    rng = np.random.Generator(np.random.PCG64(3))
    y_NC = rng.standard_t(3, (1500, 6)) * 0.3 + truth(number)[:, None]
    y_NC[rng.random((1500, 6)) < 0.2] = np.nan
    monkeypatch.setattr(module, "_spread", lambda residual_NC: np.full(6, 0.3))  # the edge is given: a convex problem
    found = Adjustment.fit(y_NC, number)
    design = np.concatenate([np.ones((1500, 1)), *(s.of(number[s.name]) for s in found.splines)], 1)
    edge, there = HUBER * 0.3, ~np.isnan(y_NC[:, 2])

    def loss(weight: Floats) -> tuple[float, Floats]:
        residual = np.abs(y_NC[there, 2] - design[there] @ weight)
        cost = np.where(residual <= edge, residual**2 / 2, edge * residual - edge**2 / 2).sum()
        slope = -design[there].T @ np.clip(y_NC[there, 2] - design[there] @ weight, -edge, edge)
        ridge = RIDGE * 1500 * np.array([0.0, *weight[1:]])
        return float(cost + ridge @ weight / 2), slope + ridge

    best = minimize(loss, np.zeros(design.shape[1]), jac=True, method="BFGS", options={"gtol": 1e-7, "maxiter": 2000})
    mine = np.array([found.intercept_C[2], *found.slope_KC[:, 2]])
    assert design @ mine == pytest.approx(design @ best.x, abs=0.003)
    assert loss(mine)[0] <= best.fun * (1 + 1e-5)


def test_an_unknown_covariate_counts_as_the_average() -> None:
    number = weeks(5000)
    y_NC = np.random.Generator(np.random.PCG64(4)).normal(0, 0.2, (5000, 6)) + truth(number)[:, None]
    adjustment = Adjustment.fit(y_NC, number)
    unknown, absent = np.zeros((2, 6)), np.zeros((2, 6))
    adjustment.subtract(unknown, {name: np.full(2, np.nan) for name in number})
    adjustment.subtract(absent, {})
    assert (unknown == absent).all() and (unknown == -adjustment.intercept_C).all()


def test_a_table_without_covariates_is_adjusted_by_nothing() -> None:
    y_NC = np.random.Generator(np.random.PCG64(5)).normal(0, 0.2, (500, 6))
    adjustment = Adjustment.fit(y_NC, {})
    assert adjustment.splines == [] and adjustment.slope_KC.shape == (0, 6)
    assert Adjustment.from_json(adjustment.to_json()).slope_KC.shape == (0, 6)


def test_a_channel_that_was_never_measured_is_not_adjusted() -> None:
    y_NC = np.random.Generator(np.random.PCG64(6)).normal(0, 0.2, (500, 6))
    y_NC[:, 3] = np.nan
    adjustment = Adjustment.fit(y_NC, weeks(500))
    assert adjustment.intercept_C[3] == 0 and (adjustment.slope_KC[:, 3] == 0).all()


def fitted() -> tuple[Adjustment, Batch]:
    number = weeks(3000)
    rows = batch(drawn(3000, 7) * np.exp(truth(number))[:, None], "A", "p", None, number)
    return Adjustment.fit(features(dictionary(), rows, REFERENCES).log_multiple_NC, number), rows


def test_no_row_sees_another() -> None:
    adjustment, rows = fitted()
    whole = features(dictionary(), rows, REFERENCES, adjustment).z_NC
    for start, end in ((0, 1), (5, 12), (100, 1123), (2999, 3000)):
        number = {name: value[start:end] for name, value in rows.number.items()}
        part = batch(rows.x_NA[start:end], "A", "p", None, number)
        assert (features(dictionary(), part, REFERENCES, adjustment).z_NC == whole[start:end]).all()  # every bit


def test_what_is_fitted_comes_back_from_its_text_bit_by_bit() -> None:
    adjustment, rows = fitted()
    again = Adjustment.from_json(json.loads(json.dumps(adjustment.to_json(), allow_nan=False)))
    assert (
        features(dictionary(), rows, REFERENCES, again).z_NC == features(dictionary(), rows, REFERENCES, adjustment).z_NC
    ).all()
    assert again.n == 3000 and [s.name for s in again.splines] == list(KNOTS)


@pytest.mark.parametrize("damage", [
    lambda v: v.pop("slope"),
    lambda v: v["slope"].pop(),
    lambda v: v["slope"][0].pop(),
    lambda v: v["slope"][0].__setitem__(0, math.nan),
    lambda v: v["slope"][0].__setitem__(0, "x"),
    lambda v: v["intercept"].__setitem__(0, math.inf),
    lambda v: v["intercept"].clear(),
    lambda v: v["splines"].pop(),
    lambda v: v["splines"][0].__setitem__("name", "weight_kg"),
    lambda v: v["splines"][0]["knots"].reverse(),
    lambda v: v["splines"][0]["knots"].pop(),
    lambda v: v["splines"][0]["sd"].__setitem__(0, 0),
    lambda v: v["splines"][0]["sd"].clear(),
    lambda v: v["splines"][0]["mean"].__setitem__(0, math.nan),
    lambda v: v["splines"][0].__setitem__("high", -1e9),
    lambda v: v["splines"].__setitem__(0, None),
    lambda v: v.__setitem__("n", None),
])  # fmt: skip
def test_a_damaged_adjustment_is_refused(damage: Any) -> None:
    value = copy.deepcopy(fitted()[0].to_json())
    damage(value)
    with pytest.raises(DataError, match="adjustment: damaged"):
        Adjustment.from_json(value)


def test_preterm_newborns_of_laboratories_never_seen_lie_near_the_others() -> None:
    whole, rows = shipped("teaching.parquet")
    healthy, seen = rows.text["diagnosis"] == "", rows.text["split"] != "test"
    train, test = rows_of(rows, healthy & seen), rows_of(rows, healthy & ~seen)
    surveys = Survey(whole), Survey(whole)
    for survey, part in zip(surveys, (train, test), strict=True):
        survey.add(part)
    adjustment = Adjustment.fit(features(whole, train, surveys[0].references()).log_multiple_NC, train.number)
    early = test.number["gestation_weeks"] < 37
    assert early.sum() > 200

    def off(adjusted: Adjustment | None) -> float:
        found = features(whole, test, surveys[1].references(), adjusted)
        z_NC = np.where(found.missing_NC, np.nan, found.z_NC)[early]
        return float(np.sqrt((np.nanmean(z_NC, 0) ** 2).mean()))

    assert off(None) > 0.3  # sd by which a channel of a preterm newborn lies off, root of the mean square
    assert off(adjustment) < 0.5 * off(None)


def test_fitting_needs_no_more_rows_than_change_something(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_ROWS", 5 * MINIMUM)
    number = weeks(4000)
    y_NC = np.random.Generator(np.random.PCG64(8)).normal(0, 0.35, (4000, 6))
    assert Adjustment.fit(y_NC, number).n == 5 * MINIMUM
