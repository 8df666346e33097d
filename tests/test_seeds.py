"""Runs that differ in their seed alone: spread over seeds and interval over cases, both."""

from __future__ import annotations

from statistics import fmean, stdev

import numpy as np
import pytest
from test_paired import HALF, judged, simulated

from hpcai.metrics.classification import weighted_macro_auc
from hpcai.metrics.intervals import percentile, resampled
from hpcai.metrics.paired import Judged, value_of
from hpcai.metrics.rows import Rows
from hpcai.metrics.seeds import spreads


def test_mean_and_sd_are_over_seeds_and_the_interval_over_cases() -> None:
    side = simulated(80, 1.0, 1.4, 0.8)
    (told, *_) = spreads(side)
    values = [value_of(j, "auc") for j in side]
    assert told.values == tuple(values) and told.seeds == 3
    assert (told.mean, told.sd) == pytest.approx((fmean(values), stdev(values)))
    drawn = resampled(lambda w: np.mean([weighted_macro_auc(w, j.rows) for j in side], 0), np.array(side[0].rows.case))
    assert (told.low, told.high) == pytest.approx(percentile(drawn))


def test_seeds_that_agree_have_no_spread_but_an_interval_all_the_same() -> None:
    (one,) = simulated(40, 1.0)
    (told, *_) = spreads([one, one])
    assert told.sd == 0 and told.low < told.mean < told.high


def test_one_run_has_no_sd() -> None:
    (told, *_) = spreads(simulated(40, 1.0))
    assert told.sd is None and told.seeds == 1


def test_patients_are_drawn_whole() -> None:
    (one,) = simulated(60, 1.0)
    people = [f"p{i // 6}" for i in range(60)]
    (by_case, *_), (by_patient, *_) = (
        spreads([one]), spreads([Judged(Rows(one.rows.case, people, one.rows.label, one.rows.scores), HALF)])
    )  # fmt: skip
    assert "of cases" in by_case.method and "of patients" in by_patient.method
    assert (by_case.low, by_case.high) != (by_patient.low, by_patient.high)


def test_what_is_not_defined_is_told_as_such() -> None:
    (told, *_) = spreads([judged([1, 1], [0.2, 0.8])] * 2)
    assert (told.mean, told.sd, told.low) == (None, None, None) and told.values == (None, None)


def test_where_nothing_varies_there_is_no_interval() -> None:
    (told, *_) = spreads([judged([0, 1] * 5, [0.1, 0.9] * 5)])
    assert told.mean == 1 and told.low is None and told.method == "no interval: no resample differs"
