"""Counting populations: exact, in any order, and what is read off the counts."""

from __future__ import annotations

import copy
import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from newborns import TYPICAL, batch, dictionary, drawn

from hpcai.book.analytes import Ratio
from hpcai.errors import DataError
from hpcai.screening.survey import BINS, LEAST_SCALE, MINIMUM, MOST_GROUPS, Survey, channels_of, groups

BIN = math.log(1 + 1 / 32)  # the widest bin, natural log
ROWS = st.lists(
    st.tuples(
        st.lists(st.one_of(st.floats(0, 1e9), st.sampled_from([math.nan, math.inf, 0.0, -1.0])), min_size=4, max_size=4),
        st.sampled_from(["A", "B", "Æ'\n"]),
        st.sampled_from(["2026-10", "2026-11", ""]),
    ),
    min_size=1,
    max_size=40,
)


def surveyed(*batches: Any, months: bool = True) -> Survey:
    survey = Survey(dictionary(), months)
    for part in batches:
        survey.add(part)
    return survey


def test_channels_are_the_analytes_then_their_ratios() -> None:
    x_NC = channels_of(dictionary(), np.array([[60.0, 30.0, 10.0, 0.5]]))
    assert x_NC.tolist() == [[60, 30, 10, 0.5, 2, 0.05]]  # Phe/Tyr = 60/30, C8/C0 = 0.5/10


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 0.0, -3.0])
def test_what_is_no_positive_number_is_missing_and_so_are_its_ratios(bad: float) -> None:
    x_NC = channels_of(dictionary(), np.array([[60.0, bad, 10.0, 0.5]]))
    assert np.isnan(x_NC).tolist() == [[False, True, False, False, True, False]]
    survey = surveyed(batch([[60.0, bad, 10.0, 0.5]]))
    assert survey.total()[:, BINS].tolist() == [0, 1, 0, 0, 1, 0]
    assert survey.total()[:, :BINS].sum(1).tolist() == [1, 0, 1, 1, 0, 1]


@given(ROWS, st.randoms(use_true_random=False), st.integers(1, 5))
@settings(max_examples=60, deadline=None)
def test_any_order_and_any_shards_give_the_same_bytes(rows: list[Any], chance: Any, shards: int) -> None:
    def one(part: list[Any]) -> Survey:
        x, laboratory, month = zip(*part, strict=True)
        return surveyed(batch(x, list(laboratory), "p", list(month)))

    whole = json.dumps(one(rows).to_json())
    mixed = rows.copy()
    chance.shuffle(mixed)
    parts = [one(mixed[i::shards]) for i in range(shards) if mixed[i::shards]]
    chance.shuffle(parts)
    merged = surveyed()
    for part in parts:
        merged.merge(Survey.from_json(dictionary(), json.loads(json.dumps(part.to_json()))))
    assert json.dumps(merged.to_json()) == whole
    assert merged.n() == len(rows)


@given(st.lists(st.floats(0.5, 5000), min_size=1, max_size=60), st.sampled_from([0.05, 0.1, 0.5, 0.9]))
@settings(max_examples=80, deadline=None)
def test_a_quantile_lies_in_the_bin_of_the_value_that_numpy_finds(values: list[float], q: float) -> None:
    survey = surveyed(batch([[v, 80, 20, 0.05] for v in values]))
    found = survey.quantile(survey.total(), q)[0]
    true = math.log(np.quantile(values, q, method="inverted_cdf"))
    assert abs(found - true) <= BIN + 1e-9


def test_a_bin_begins_exactly_at_its_edge() -> None:
    survey = surveyed()
    edges = (survey.first_C[:, None] + np.arange(BINS)) << 47  # the bits of each bin's first number
    x_BC = edges.T.copy().view(np.float64)
    assert (survey.bins(x_BC.copy()) == np.arange(BINS)[:, None]).all()
    below = survey.bins(np.nextafter(x_BC, 0))
    assert (below == np.maximum(np.arange(BINS)[:, None] - 1, 0)).all()


def test_median_and_spread_are_those_of_the_logs() -> None:
    x_NA = drawn(20_000, seed=1)
    reference = surveyed(batch(x_NA)).reference("A")
    assert reference and reference.n == 20_000 and reference.laboratory == "A" and reference.month == ""
    logs = np.log(channels_of(dictionary(), x_NA))
    assert reference.median_C == pytest.approx(np.median(logs, 0), abs=0.005)
    assert reference.scale_C == pytest.approx(logs.std(0), rel=0.03)  # the law is normal: any spread is the sd


def test_a_few_affected_move_neither_median_nor_spread() -> None:
    x_NA = drawn(20_000, seed=2)
    clean = surveyed(batch(x_NA)).reference("A")
    x_NA[:200, 0] *= 30  # 1 % with a Phe 30 times as high
    sick = surveyed(batch(x_NA)).reference("A")
    assert clean and sick
    assert sick.median_C == pytest.approx(clean.median_C, abs=0.01)
    assert sick.scale_C == pytest.approx(clean.scale_C, rel=0.03)


def test_too_few_newborns_make_no_reference() -> None:
    x_NA = drawn(MINIMUM, seed=3)
    assert surveyed(batch(x_NA[1:])).reference("A") is None
    assert surveyed(batch(x_NA)).reference("A") is not None
    assert surveyed(batch(x_NA)).reference("elsewhere") is None
    assert surveyed(batch(x_NA[1:])).references() == {}


def test_a_channel_with_too_few_values_has_no_median() -> None:
    x_NA = drawn(300, seed=4)
    x_NA[: 300 - MINIMUM + 1, 3] = np.nan  # C8 of one newborn less than the minimum
    reference = surveyed(batch(x_NA)).reference("A")
    assert reference
    assert np.isnan(reference.median_C).tolist() == [False, False, False, True, False, True]
    assert np.isnan(reference.scale_C).tolist() == [False, False, False, True, False, True]


def test_a_channel_that_never_varies_keeps_the_least_spread() -> None:
    reference = surveyed(batch([[50, 80, 20, 0.05]] * 200)).reference("A")
    assert reference and reference.scale_C.tolist() == [LEAST_SCALE] * 6
    assert reference.median_C[:4] == pytest.approx(np.log(list(TYPICAL.values())), abs=BIN)


def test_training_counts_only_the_rows_that_it_names() -> None:
    x_NA = drawn(200, seed=5)
    healthy = np.arange(200) % 3 > 0
    some, none = surveyed(), surveyed()
    some.add(batch(x_NA), healthy)
    none.add(batch(x_NA), np.zeros(200, bool))
    assert some.to_json() == surveyed(batch(x_NA[healthy])).to_json()
    assert none.n() == 0 and none.laboratories == []


def test_a_plate_whose_controls_failed_is_left_out() -> None:
    x_NA = drawn(6, seed=6)
    rows = batch(x_NA, list("AAABBB"), ["p1", "p1", "p2", "p1", "p2", "p2"])
    survey = Survey(dictionary(), without=[("A", "p1"), ("B", "p9")])
    survey.add(rows)
    assert survey.to_json() == surveyed(batch(x_NA[2:], list("ABBB"))).to_json()
    healthy = Survey(dictionary(), without=[("A", "p1")])
    healthy.add(rows, np.arange(6) < 4)
    assert (healthy.n("A"), healthy.n("B")) == (1, 1)


def test_laboratories_and_months_are_told_apart_or_together() -> None:
    x_NA = drawn(6, seed=6)
    parts = batch(x_NA, list("AABBBB"), "p", ["2026-10", "2026-11", "2026-10", "2026-10", "2026-10", "2026-11"])
    survey = surveyed(parts)
    assert survey.laboratories == ["A", "B"] and survey.months("B") == ["2026-10", "2026-11"]
    assert (survey.n(), survey.n("A"), survey.n("B", "2026-10"), survey.n(None, "2026-10")) == (6, 2, 3, 4)
    together = surveyed(parts, months=False)
    assert together.months("B") == [""] and together.n("B") == 4
    assert Survey.from_json(dictionary(), survey.to_json(), months=False).to_json() == together.to_json()
    merged = surveyed(months=False)
    merged.merge(survey)
    assert merged.to_json() == together.to_json()


def test_a_month_that_lies_elsewhere_has_a_reference_of_its_own() -> None:
    months = [batch(drawn(4000, seed=i, shift=0.3 * (i == 2)), "A", "p", f"2026-{i:02}") for i in range(1, 13)]
    reference = surveyed(*months).references()["A"]
    assert list(reference.months) == ["2026-02"]
    assert reference.at("2026-02").median_C[0] == pytest.approx(math.log(50) + 0.3, abs=0.05)
    assert reference.at("2026-03") is reference and reference.at("") is reference


def test_months_of_one_law_stand_on_their_laboratory() -> None:
    alone = 0
    for seed in range(20):
        months = [batch(drawn(300, seed=100 * seed + i), "A", "p", f"m{i}") for i in range(6)]
        alone += len(surveyed(*months).references()["A"].months)
    assert alone <= 6  # of 120; each laboratory-month at most 5 %


def test_its_size_does_not_grow_with_newborns() -> None:
    def size(survey: Survey) -> int:
        return sum(count_CB.nbytes for count_CB in survey.counts.values())

    few, many = surveyed(batch(drawn(100, seed=7))), surveyed(*[batch(drawn(5000, seed=i)) for i in range(8)])
    assert size(few) == size(many)


def test_a_table_of_a_thousand_laboratories_is_no_table_of_laboratories() -> None:
    survey = surveyed(batch(drawn(MOST_GROUPS, 7), [f"id{i}" for i in range(MOST_GROUPS)]))
    with pytest.raises(DataError, match="laboratory, month: 1001 laboratories' months or more, at most 1000") as told:
        survey.add(batch(drawn(1, 7), "id-one-more"))
    assert "id-one-more" not in str(told.value)
    with pytest.raises(DataError, match="at most 1000"):
        survey.merge(surveyed(batch(drawn(2, 7), ["x", "y"])))


def test_counts_of_another_dictionary_are_refused() -> None:
    value = surveyed(batch(drawn(9, seed=8))).to_json()
    other = dictionary(ratios=[Ratio(top="Tyr", bottom="Phe", source="a test")])
    with pytest.raises(DataError, match="counted by another dictionary"):
        Survey.from_json(other, value)


@pytest.mark.parametrize("damage", [
    lambda v: v.pop("groups"),
    lambda v: v["groups"][0].pop("missing"),
    lambda v: v["groups"][0]["missing"].pop(),
    lambda v: v["groups"][0]["bins"].pop(),
    lambda v: v["groups"][0]["bins"][0].append(5),
    lambda v: v["groups"][0]["bins"].__setitem__(0, [0, -1, 10]),
    lambda v: v["groups"][0]["bins"].__setitem__(0, [10**6, 9]),
    lambda v: v["groups"][0]["bins"].__setitem__(0, [-1, 9]),
    lambda v: v["groups"][0]["bins"].__setitem__(0, ["x"]),
    lambda v: v["groups"][0]["bins"].__setitem__(0, [0, 10**30]),
    lambda v: v["groups"][0]["bins"].__setitem__(0, []),
    lambda v: v["groups"][0]["bins"].__setitem__(0, None),
    lambda v: v.__setitem__("groups", 3),
])  # fmt: skip
def test_damaged_counts_are_refused(damage: Any) -> None:
    value = copy.deepcopy(surveyed(batch(drawn(9, seed=9))).to_json())
    damage(value)
    with pytest.raises(DataError, match="survey: damaged"):
        Survey.from_json(dictionary(), value)


def test_groups_are_the_distinct_rows_in_order() -> None:
    names, at = groups(np.array(["b", "a", "b", "a"]), np.array(["1", "2", "1", "1"]))
    assert names == [("a", "1"), ("a", "2"), ("b", "1")] and at.tolist() == [2, 1, 2, 0]
    assert groups(np.array([], "U1"))[0] == []
