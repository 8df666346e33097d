"""Groups of cases: how columns are read, what is told of each group, and that nobody stands out in a small one."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcai.metrics.classification import Threshold, estimates
from hpcai.metrics.groups import UNKNOWN, Column, columns, grouped, shown, sizes
from hpcai.metrics.rows import Rows
from hpcai.metrics.subgroups import characteristics, subgroups
from hpcai.metrics.table import CaseTable

HALF = Threshold(0.5, "0.5", "val", 1)


def table(n: int = 300, patients: int | None = None, **groups: list[str | None]) -> CaseTable:
    """The last third is the test."""
    split = ["train"] * (n - n // 3) + ["test"] * (n // 3)
    patient = None if patients is None else [f"p{i % patients}" for i in range(n)]
    return CaseTable([f"{i:04d}" for i in range(n)], split, (np.arange(n) % 2).astype(np.int64), patient, groups)


def judged(t: CaseTable) -> Rows:
    test = t.where(np.array([s == "test" for s in t.split]))
    s = np.clip(0.5 + 0.3 * (test.label - 0.5) + 0.25 * np.random.default_rng(0).normal(size=len(test.case)), 0.01, 0.99)
    return Rows(test.case, test.patient, test.label, np.stack([1 - s, s], 1))


# --- columns


@pytest.mark.parametrize(("values", "kind"), [
    ([str(i) for i in range(40)], "number"), ([f"{i / 7:.3f}" for i in range(40)], "number"),
    ([f"1e{i % 9}" for i in range(40)], "number"), (["0", "1"] * 20, "text"), ([f"1,{i:03d}" for i in range(40)], "text"),
    ([f"{i},5" for i in range(40)], "text"), ([str(i) for i in range(39)] + ["nan"], "text"),
    ([str(i) for i in range(39)] + [None], "number"), ([None] * 40, "text"), ([f"1e{300 + i}" for i in range(40)], "text"),
    ([f"{i} y" for i in range(40)], "text"), (["１", *[str(i) for i in range(39)]], "text"),
])  # fmt: skip
def test_a_column_is_a_quantity_only_if_every_value_reads_as_a_number(values: list[str | None], kind: str) -> None:
    (column,) = columns(table(40, x=values))
    assert column.kind == kind


def test_image_sizes_are_a_column_where_they_differ() -> None:
    t = table(4)
    assert columns(t) == []
    sizes_ = [(4, 6), (4, 6), None, (8, 8)]
    (column,) = columns(CaseTable(t.case, t.split, t.label, size=sizes_))
    assert column.name == "image size" and column.text == ["4 x 6", "4 x 6", None, "8 x 8"]


def test_a_quantity_is_cut_at_the_quartiles_of_the_training_cases() -> None:
    number = np.array([*range(1, 101), 500.0, np.nan])
    column = Column("age", [], number)
    names, order = grouped(column, np.arange(102) < 100)
    assert order == ["up to 25.75", "25.75 to 50.5", "50.5 to 75.25", "above 75.25", UNKNOWN]
    assert [names.count(name) for name in order] == [25, 25, 25, 26, 1] and names[-1] == UNKNOWN


@given(st.dictionaries(st.text(max_size=3), st.integers(1, 40), max_size=8))
def test_no_group_below_ten_is_shown_nor_can_one_be_worked_out(size: dict[str, int]) -> None:
    told = shown(size)
    assert all(size[name] >= 10 for name in told)
    assert len(size) - len(told) != 1 or len(size) == 1


def test_a_group_is_as_large_as_its_patients() -> None:
    assert sizes(["a"] * 30 + ["b"] * 3, ["x"] * 30 + ["y", "z", "y"]) == {"a": 1, "b": 2}
    assert sizes(["a"] * 30 + ["b"] * 3, None) == {"a": 30, "b": 3}


# --- what is told


def test_each_group_has_the_estimates_of_its_cases_alone() -> None:
    t = table(site=["A" if i % 3 else "B" for i in range(300)])
    rows = judged(t)
    (found,) = subgroups(rows, t, "test", HALF)
    assert (found["column"], found["hidden"], [g["name"] for g in found["groups"]]) == ("site", 0, ["A", "B"])
    b = rows.where(np.array([int(case) % 3 == 0 for case in rows.case]))
    alone = {e.name: vars(e) for e in estimates(b, "test", HALF)}
    group = found["groups"][1]
    assert group["n"] == len(b.case) and group["positives"] == int((b.label == 1).sum())
    assert group["estimates"] == [alone[name] for name in ("auc", "sensitivity", "specificity")]


def test_small_groups_and_their_names_are_left_out() -> None:
    site: list[str | None] = ["A", "B", None] * 100
    site[-4:] = ["secret one", "secret two", "secret three", "secret one"]
    t = table(site=site)
    told = subgroups(judged(t), t, "test", HALF)
    assert told[0]["hidden"] == 3 and [g["name"] for g in told[0]["groups"]] == ["A", "B", UNKNOWN]
    assert "secret" not in json.dumps(told)


def test_twenty_cases_of_four_patients_are_a_small_group() -> None:
    t = table(patients=4, site=["A"] * 300)
    assert subgroups(judged(t), t, "test", HALF)[0]["groups"] == []


# --- characteristics


def test_each_split_is_described_with_what_is_missing() -> None:
    age = [str(40 + i % 30) for i in range(299)] + [None]
    t = table(age=age, sex=["f", "m"] * 150)
    found = {c["name"]: c for c in characteristics(t, ["no", "yes"])}
    shuffled = t.take(np.random.default_rng(0).permutation(300).tolist())
    assert list(characteristics(shuffled, ["no", "yes"])[0]["splits"]) == ["train", "test"]  # as cases flow
    assert found["label"]["splits"]["test"] == {"n": 100, "missing": 0, "levels": {"no": 50, "yes": 50}, "hidden": 0}
    assert found["sex"]["splits"]["train"]["levels"] == {"f": 100, "m": 100}
    test = found["age"]["splits"]["test"]
    known = np.array([40 + i % 30 for i in range(200, 299)])
    assert (test["n"], test["missing"]) == (100, 1)
    assert test["mean"] == pytest.approx(known.mean()) and test["median"] == np.median(known)


def test_levels_and_quantities_of_few_people_are_not_told() -> None:
    site: list[str | None] = ["A"] * 290 + ["secret"] * 5 + ["other secret"] * 5
    t = table(site=site, age=[None] * 295 + [str(81 + i) for i in range(5)])
    told = characteristics(t, ["no", "yes"])
    assert "secret" not in json.dumps(told) and "81" not in json.dumps(told)
    site_told = next(c for c in told if c["name"] == "site")["splits"]["test"]
    assert site_told["hidden"] == 2 and list(site_told["levels"]) == ["A"]
