"""The verdict on a population: seldom wrong on the same one, right on another, and by what matters."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from newborns import batch, dictionary, drawn, shipped
from scipy.stats import binom

from hpcai.errors import DataError
from hpcai.screening.batch import Floats
from hpcai.screening.fitness import FACTOR, POINTS, TAIL, Fitness, Shape, _variance, binomial, fitness
from hpcai.screening.survey import MINIMUM, TENTHS, Survey


def survey(*laboratories: tuple[str, Floats], month: Any = None) -> Survey:
    found = Survey(dictionary())
    for name, x_NA in laboratories:
        found.add(batch(x_NA, name, "p", month))
    return found


@pytest.fixture(scope="module")
def training() -> Survey:
    return survey(("A", drawn(8000, 1)), ("B", drawn(8000, 2, shift=0.2, scale=0.3)))


def verdict(training: Survey, x_NA: Floats, laboratory: str = "new") -> Fitness:
    (found,) = fitness(training, survey((laboratory, x_NA)))
    return found


@pytest.mark.parametrize(("n", "draws"), [(130, 400), (1000, 400), (10_000, 60)])
def test_the_same_population_is_seldom_told_that_it_differs(training: Survey, n: int, draws: int) -> None:
    unseen = [verdict(training, drawn(n, 10_000 + i, shift=-0.1, scale=0.4)).verdict for i in range(draws)]
    same = [verdict(training, drawn(n, 50_000 + i), "A").verdict for i in range(draws)]
    asked = 0.05 * draws + 2 * math.sqrt(0.05 * 0.95 * draws)  # what 5 % give, at most, in 39 of 40 tests
    assert unseen.count("not_valid") <= asked and same.count("not_valid") <= asked
    assert same.count("corrected") <= asked


def test_a_laboratory_whose_medians_and_spreads_differ_is_corrected(training: Survey) -> None:
    found = verdict(training, drawn(8000, 3, shift=0.3, scale=0.5))
    assert found.verdict == "corrected" and found.rejected == []
    assert found.sentence.startswith("Corrected: medians or spreads moved")
    assert found.tests[0].question == "before" and found.tests[0].differs


@pytest.mark.parametrize("df", [3, 4])
def test_a_laboratory_with_heavier_tails_is_not_corrected(training: Survey, df: float) -> None:
    found = verdict(training, drawn(4000, 4, df=df))
    assert found.verdict == "not_valid" and "Phe" in found.rejected
    assert "recalibrate" in found.sentence and "Phe" in found.sentence
    assert {t.question for t in found.tests if t.differs} >= {"low tail", "high tail"}


def test_a_skew_that_no_median_sets_right_is_not_corrected(training: Survey) -> None:
    x_NA = drawn(8000, 5)
    logs = np.log(x_NA[:, 0] / 50)
    x_NA[:, 0] = 50 * np.exp(logs + 1.2 * np.maximum(logs, 0))  # the upper half is stretched
    found = verdict(training, x_NA)
    assert found.verdict == "not_valid" and "Phe" in found.rejected and "Tyr" not in found.rejected


def test_among_many_newborns_a_trifle_is_no_reason(training: Survey) -> None:
    found = verdict(training, drawn(100_000, 6, shift=0.02), "A")  # 0.06 sd: p is far below 0.001
    assert found.verdict == "fits" and min(t.p for t in found.tests) < 0.001
    assert found.sentence.startswith("Fits: 6 channels lie as they lay in training (most: ")


def test_a_known_laboratory_is_compared_with_itself(training: Survey) -> None:
    as_b = drawn(4000, 7, shift=0.2, scale=0.3)
    assert verdict(training, as_b, "B").verdict == "fits"
    assert verdict(training, as_b, "A").verdict == "corrected"


def test_each_month_has_its_verdict(training: Survey) -> None:
    cohort = months_of_a(("2026-10", drawn(3000, 8)), ("2026-11", drawn(3000, 9, shift=0.4)), ("2026-12", drawn(9, 10)))
    found = {f.month: f for f in fitness(training, cohort)}
    assert list(found) == ["", "2026-10", "2026-11", "2026-12"]
    assert found["2026-10"].verdict == "fits" and found["2026-11"].verdict == "corrected"
    assert found["2026-12"].verdict == "not_valid" and found["2026-12"].n == 9
    assert found["2026-12"].sentence == f"Not valid here: 9 of the {MINIMUM} newborns without whom a comparison sees nothing."
    assert found[""].n == 6009


def months_of_a(*parts: tuple[str, Floats]) -> Survey:
    cohort = survey()
    for month, x_NA in parts:
        cohort.merge(survey(("A", x_NA), month=month))
    return cohort


def test_a_month_that_fails_does_not_fail_its_laboratory(training: Survey) -> None:
    cohort = months_of_a(("1", drawn(2000, 30)), ("2", drawn(3000, 31, df=3)), ("3", drawn(500, 32)))
    found = {f.month: f.verdict for f in fitness(training, cohort)}
    assert found == {"": "fits", "1": "fits", "2": "not_valid", "3": "fits"}


def test_a_laboratory_fails_where_its_months_tell_together_what_none_tells_alone(training: Survey) -> None:
    wide = [drawn(200, 40 + i, df=6) for i in range(12)]
    alone = [verdict(training, x_NA, "A").verdict for x_NA in wide]
    assert alone.count("not_valid") <= 2  # 200 newborns see too little
    together = fitness(training, months_of_a(*((f"{i:02}", x_NA) for i, x_NA in enumerate(wide))))
    assert {f.verdict for f in together} == {"not_valid"}


def test_two_failing_months_of_most_newborns_fail_the_laboratory(training: Survey) -> None:
    bad = [(month, drawn(2000, 50 + i, df=3)) for i, month in enumerate("12")]
    found = {f.month: f for f in fitness(training, months_of_a(*bad, ("3", drawn(1000, 52))))}
    assert {f.verdict for f in found.values()} == {"not_valid"}
    assert "4000 of 5000 newborns are of months that differ in shape (1, 2)" in found[""].sentence
    assert "so it is for the laboratory" in found["3"].sentence and found["3"].rejected == found[""].rejected != []


def test_months_that_lie_elsewhere_are_no_other_shape(training: Survey) -> None:
    cohort = months_of_a(("1", drawn(3000, 60)), ("2", drawn(3000, 61, shift=0.8)))  # counted as one: two humps
    assert [f.verdict for f in fitness(training, cohort)] == ["corrected", "fits", "corrected"]


@pytest.mark.parametrize(("n", "shift", "expected"), [(60, 0.0, "fits"), (60, 0.8, "not_valid"), (19, 0.0, "not_valid")])
def test_a_small_month_counts_as_its_laboratory_if_it_lies_there(training: Survey, n: int, shift: float, expected: str) -> None:
    cohort = months_of_a(("1", drawn(3000, 70)), ("2", drawn(n, 71, shift=shift)))
    found = {f.month: f for f in fitness(training, cohort)}
    assert found["2"].verdict == expected and str(n) in found["2"].sentence
    assert found[""].verdict == found["1"].verdict == "fits"


def test_the_affected_of_a_natural_cohort_are_no_shift(training: Survey) -> None:
    x_NA = drawn(50_000, 11)
    x_NA[:25, 0] *= 25  # 1 in 2,000, all in one channel
    assert verdict(training, x_NA, "A").verdict == "fits"


def test_values_rounded_to_two_decimals_are_no_other_shape(training: Survey) -> None:
    x_NA = drawn(8000, 12, shift=0.1)
    x_NA[:, 3] = np.maximum(np.round(x_NA[:, 3], 2), 0.005)  # C8 of .01, .02, ... .15
    assert verdict(training, x_NA, "A").verdict == "corrected"


def test_a_channel_that_no_disease_needs_does_not_count(training: Survey) -> None:
    x_NA = drawn(4000, 13)
    x_NA[:, 2] = drawn(4000, 14, df=2)[:, 2]
    cohort = survey(("A", x_NA))
    assert fitness(training, cohort)[0].verdict == "not_valid"
    (found,) = fitness(training, cohort, ["Phe", "Tyr", "Phe/Tyr"])
    assert found.verdict == "fits" and {t.channel for t in found.tests} <= {"Phe", "Tyr", "Phe/Tyr"}


def test_a_channel_that_is_not_measured_here_is_not_compared(training: Survey) -> None:
    x_NA = drawn(2000, 15)
    x_NA[:, 3] = np.nan
    found = verdict(training, x_NA, "A")
    assert found.verdict == "fits" and found.sentence.startswith("Fits: 4 channels")
    x_NA[:] = np.nan
    nothing = verdict(training, x_NA, "A")
    assert nothing.verdict == "not_valid" and "no channel" in nothing.sentence


def test_a_training_table_without_a_laboratory_is_refused() -> None:
    with pytest.raises(DataError, match="training: no laboratory has 120 unaffected newborns"):
        fitness(survey(("A", drawn(MINIMUM - 1, 16))), survey(("A", drawn(500, 17))))


def test_a_cohort_without_rows_has_no_verdict(training: Survey) -> None:
    assert fitness(training, survey()) == []


def test_a_plot_shows_what_the_correction_does(training: Survey) -> None:
    found = verdict(training, drawn(8000, 18, shift=0.5), "A")
    plot = found.plot[0]
    assert len(found.plot) == 4 and set(plot) == {"channel", "z", "training", "before", "after"}
    centre = {line: float(np.dot(plot["z"], plot[line])) for line in ("training", "before", "after")}
    assert centre["before"] > 1.2  # 0.5 / 0.35 = 1.43 sd
    assert abs(centre["after"]) < 0.1 > abs(centre["training"])
    assert all(0.97 < sum(plot[line]) <= 1.0001 for line in ("training", "after"))


def test_a_verdict_is_plain_data(training: Survey) -> None:
    value = verdict(training, drawn(2000, 19)).to_json()
    assert json.loads(json.dumps(value, allow_nan=False)) == value
    assert {"laboratory", "month", "n", "verdict", "sentence", "tests", "rejected", "plot"} == set(value)
    assert all(isinstance(test["differs"], bool) for test in value["tests"])


# --- simulated laboratories, with the panel's own dictionary


@pytest.fixture(scope="module")
def teaching() -> tuple[Survey, Survey]:
    whole, rows = shipped("teaching.parquet")
    seen = rows.text["split"] != "test"
    surveys = Survey(whole, months=False), Survey(whole)
    surveys[0].add(rows, seen & (rows.text["diagnosis"] == ""))
    surveys[1].add(rows, ~seen)
    return surveys


def test_simulated_laboratories_of_other_tails_are_not_valid(teaching: tuple[Survey, Survey]) -> None:
    found = {f.laboratory: f for f in fitness(*teaching) if not f.month}
    assert {name: f.verdict for name, f in found.items()} == {"simulated E": "not_valid", "simulated F": "not_valid"}


def test_a_simulated_cohort_is_judged_by_laboratory_and_month(teaching: tuple[Survey, Survey]) -> None:
    whole, rows = shipped("cohort.parquet")
    failed = [(f"simulated {name}", f"{name}-{plate:07d}") for name in "BG" for plate in (3, 17)]  # its README has them
    cohort = Survey(whole, without=failed)
    cohort.add(rows)
    found = {(f.laboratory[-1], f.month): f.verdict for f in fitness(teaching[0], cohort)}
    assert found["G", "2027-02"] == "not_valid"  # two populations
    assert found["B", "2027-02"] == "corrected"  # every median is shifted
    assert found["B", "2027-01"] in ("fits", "corrected") and found["G", "2027-01"] == "corrected"
    assert found["Z", ""] == "not_valid"  # one newborn
    assert list(cohort.references()["simulated B"].months) == ["2027-01", "2027-02"]


# --- the statistics


@pytest.mark.parametrize(
    ("k", "n", "share"), [(0, 0, 0.3), (0, 9, 0.5), (9, 9, 0.5), (3, 20, 0.1), (700, 5000, 0.12), (60, 99, 0.9)]
)
def test_binomial_tails_are_those_of_scipy(k: int, n: int, share: float) -> None:
    expected = min(1.0, 2 * min(binom.cdf(k, n, share), binom.sf(k - 1, n, share)))
    assert binomial(k, n, share) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("at", [-TAIL, TAIL])
@pytest.mark.parametrize("df", [None, 5])
def test_the_variance_of_a_share_knows_that_the_scale_is_estimated(at: float, df: float | None) -> None:
    n, draws = 2000, 1500
    rng = np.random.Generator(np.random.PCG64(20))
    x = rng.standard_normal((draws, n)) if df is None else rng.standard_t(df, (draws, n))
    low, middle, high = np.quantile(x, [0.1, 0.5, 0.9], axis=1)
    z = (x - middle[:, None]) / ((high - low) / TENTHS)[:, None]
    share = ((z < at) if at < 0 else (z > at)).mean(1)
    below_Z = np.searchsorted(np.sort(z.ravel()), POINTS) / z.size
    assert n * share.var() == pytest.approx(_variance(below_Z, at), rel=0.15)


def test_a_shape_is_that_of_its_own_scale() -> None:
    cohort = survey(("A", drawn(20_000, 21, shift=1.0, scale=0.6)))
    shape = Shape.of(cohort, "A", [""])
    at = {z: float(np.interp(z, POINTS, shape.below_CZ[0])) for z in (-1.2816, 0.0, 1.2816)}
    assert list(at.values()) == pytest.approx([0.1, 0.5, 0.9], abs=0.003)
    assert FACTOR > 1 and POINTS[-1] > TAIL
