"""Shifts of plates: exact sums, a shift that was planted is found, and none where there is none."""

from __future__ import annotations

import copy
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from newborns import TYPICAL, batch, dictionary, drawn

from hpcai.errors import DataError
from hpcai.screening import plates as module
from hpcai.screening.batch import Batch
from hpcai.screening.plates import CUT, UNIT, PlateShift
from hpcai.screening.survey import Reference, Survey

SCALE = 0.35
SCALES = np.array([SCALE] * 4 + [SCALE * np.sqrt(2 * (1 - 0.4))] * 2)  # of a ratio of two that go together with 0.4
MEDIAN = np.log([50, 80, 20, 0.05, 50 / 80, 0.05 / 20])


def plates_of(*batches: Batch, references: dict[str, Reference] | None = None) -> PlateShift:
    known = references or {"A": Reference("A", "", 1000, MEDIAN, SCALES)}
    plates = PlateShift(Survey(dictionary()), known)
    for part in batches:
        plates.add(part)
    return plates


def planted(shift_P: Any, size: int, seed: int = 1) -> Batch:
    """Plates p0, p1, ... of `size` newborns, each moved by so many sd in Phe alone."""
    x_NA = drawn(len(shift_P) * size, seed, scale=SCALE)
    x_NA[:, 0] *= np.exp(SCALE * np.repeat(shift_P, size))
    return batch(x_NA, "A", np.repeat([f"p{i}" for i in range(len(shift_P))], size))


def test_values_are_summed_in_thousandths_of_an_sd_within_the_cut() -> None:
    up = np.exp(0.7 * SCALE)  # 0.7 sd above the median; 100 times the median lies past the cut
    plates = plates_of(batch([[50 * up, 80, 20, 5], [50, np.nan, 20, 0.05]]))
    total, n = plates.sums["A", "p1"]
    bin_wide = 32  # thousandths: a bin is 2.2 to 3.1 % wide, half of it 0.045 sd, at most twice
    assert total[0] == pytest.approx(700, abs=3 * bin_wide) and total[3] == pytest.approx(CUT * UNIT, abs=2 * bin_wide)
    assert n.tolist() == [2, 1, 2, 2, 1, 2]


@given(st.integers(1, 60), st.integers(1, 5), st.integers(0, 999))
@settings(max_examples=40, deadline=None)
def test_any_order_and_any_shards_give_the_same_bytes(n: int, shards: int, seed: int) -> None:
    rng = np.random.Generator(np.random.PCG64(seed))
    x_NA, plate = drawn(n, seed), rng.choice(["p1", "p2", "Ü\n"], n)
    whole = json.dumps(plates_of(batch(x_NA, "A", plate)).to_json())
    order = rng.permutation(n)
    merged = plates_of()
    for part in np.array_split(order, shards):
        other = plates_of(batch(x_NA[part], "A", plate[part]))
        merged.merge(PlateShift.from_json(other.survey, other.references, json.loads(json.dumps(other.to_json()))))
    assert json.dumps(merged.to_json()) == whole


def test_a_planted_shift_is_found() -> None:
    true = np.random.Generator(np.random.PCG64(3)).normal(0, 0.4, 40)
    plates = plates_of(planted(true, 80))
    found = np.array([plates.shift("A", f"p{i}") for i in range(40)])
    centred = true - true.mean()
    assert np.corrcoef(found[:, 0], centred)[0, 1] > 0.93
    assert np.polyfit(centred, found[:, 0], 1)[0] == pytest.approx(0.93, abs=0.12)  # 0.16/(0.16 + 1/80) = 0.93
    assert np.abs(found[:, [1, 2, 3]]).max() < 0.25  # the other analytes were not moved


def test_where_plates_do_not_differ_none_is_moved_by_much() -> None:
    plates = plates_of(planted(np.zeros(60), 80))
    found = np.array([plates.shift("A", f"p{i}") for i in range(60)])
    assert np.abs(found).max() < 0.16  # chance alone moves a mean of 80 by 0.11 sd, the largest of 360 by 0.33
    assert found.std() < 0.04


def test_an_affected_newborn_moves_its_plate_no_more_than_one_at_the_edge() -> None:
    part = planted(np.zeros(10), 80)
    part.x_NA[0, 0] = 50 * np.exp(CUT * SCALE + 0.04)
    edge = plates_of(part).sums["A", "p0"][0][0]
    part.x_NA[0, 0] = 50_000
    assert plates_of(part).sums["A", "p0"][0][0] == edge


def test_shifts_are_those_of_dersimonian_and_laird() -> None:
    plates = plates_of()
    for name, total in (("p1", -500_00), ("p2", 0), ("p3", 500_00)):
        plates.sums["A", name] = np.array([[total] * 6, [100] * 6])
    # means -0.5, 0, 0.5 of 100 each: Q = 100 (0.25 + 0.25) = 50; spare = 300 - 30000/300 = 200; between = (50 - 2)/200 = 0.24
    # shrunk by 0.24 / (0.24 + 1/100) = 0.96
    assert plates.shift("A", "p3") == pytest.approx([0.48] * 6)
    assert plates.shift("A", "p1") == pytest.approx([-0.48] * 6)
    assert plates.shift("A", "p2") == pytest.approx([0.0] * 6)


def test_two_plates_do_not_tell_how_plates_differ() -> None:
    assert (plates_of(planted([0.0, 1.0], 80)).shift("A", "p1") == 0).all()
    assert (plates_of(planted([0.0, 1.0, 0.0], 80)).shift("A", "p1") != 0).any()


def test_a_plate_or_laboratory_that_is_unknown_is_not_moved() -> None:
    plates = plates_of(planted([0.0, 1.0, 0.0], 80), batch(drawn(9, 1), "B", "p1"))
    assert (plates.shift("A", "p9") == 0).all() and (plates.shift("B", "p1") == 0).all()
    assert {laboratory for laboratory, _ in plates.sums} == {"A"}


def test_a_plate_whose_controls_failed_moves_no_other() -> None:
    part = planted([0.0, 0.1, -0.1, 6.0], 80)
    plates = PlateShift(Survey(dictionary(), without=[("A", "p3")]), plates_of().references)
    plates.add(part)
    plates.add(planted([1.0], 80, seed=2))  # p0 again
    plates.add(batch(drawn(9, 3), "A", "p3"))  # nothing but the plate that failed
    assert plates.sums.keys() == {("A", "p0"), ("A", "p1"), ("A", "p2")} and (plates.shift("A", "p3") == 0).all()
    assert plates.sums["A", "p0"][1].tolist() == [160] * 6


def test_a_channel_without_values_is_not_moved() -> None:
    part = planted([-1.0, 0.0, 1.0, 0.5], 80)
    part.x_NA[:, 1] = np.nan  # no Tyr at all
    part.x_NA[:80, 2] = np.nan  # no C0 on p0
    shift = plates_of(part).shift("A", "p0")
    assert np.isfinite(shift).all() and shift[1] == shift[4] == shift[2] == shift[5] == 0
    assert shift[0] < -0.5


def test_plates_of_a_month_that_lies_elsewhere_are_measured_from_that_month() -> None:
    up = np.exp(0.6)
    x_NA = np.tile(list(TYPICAL.values()), (4, 1)) * np.array([[1], [1], [up], [up]])
    part = batch(x_NA, "A", ["p1", "p1", "p2", "p2"], ["m1", "m1", "m2", "m2"])
    month = Reference("A", "m2", 500, MEDIAN + 0.6 * (np.arange(6) < 4), SCALES)
    known = {"A": Reference("A", "", 1000, MEDIAN, SCALES, {"m2": month})}
    sums = plates_of(part, references=known).sums
    assert np.abs(sums["A", "p1"][0]).max() < 100 and np.abs(sums["A", "p2"][0]).max() < 100  # 2 x half a bin, not 2 x 1714


def test_adding_after_a_question_changes_the_answer() -> None:
    plates = plates_of(planted([0.0, 1.0, 0.0], 80))
    before = plates.shift("A", "p1").copy()
    plates.add(planted([3.0, 0.0, 0.0], 80, seed=2))
    assert (plates.shift("A", "p1") != before).any()


def test_a_column_of_ids_is_no_column_of_plates(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_PLATES", 5)
    plates = plates_of(planted(np.zeros(5), 2))
    with pytest.raises(DataError, match="plate: more than 5 plates"):
        plates.add(batch(drawn(1, 1), "A", "one-more"))


@pytest.mark.parametrize("damage", [
    lambda v: v[0].pop(),
    lambda v: v[0][2].pop(),
    lambda v: v[0][3].__setitem__(0, 0),  # a sum without values
    lambda v: v[0][2].__setitem__(0, 10**9),  # past the cut
    lambda v: v[0].__setitem__(2, "x"),
    lambda v: v[0][2].__setitem__(0, 10**30),
    lambda v: v.__setitem__(0, 5),
])  # fmt: skip
def test_damaged_sums_are_refused(damage: Any) -> None:
    plates = plates_of(planted([1.0, 1.0, 1.0], 80))
    value = copy.deepcopy(plates.to_json())
    damage(value)
    with pytest.raises(DataError, match="plates: damaged"):
        PlateShift.from_json(plates.survey, plates.references, value)
