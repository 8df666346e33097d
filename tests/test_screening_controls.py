"""Plate controls decide which plates are reported, by Westgard's rules as they are printed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpcai.book.analytes import Analyte, Column, Dictionary
from hpcai.book.controls import Controls, Material, Target
from hpcai.book.shelf import dictionary, read
from hpcai.errors import HpcaiError
from hpcai.screening.controls import (
    Broken,
    ControlTable,
    PlateVerdict,
    Runs,
    broken_by,
    judge_plates,
    levey_jennings,
    read_controls,
    verdict_of,
)

MEAN, SD = 100.0, 10.0
SMALL = Dictionary(
    name="small",
    title="two analytes",
    analytes=[Analyte(name=n, title=n, low=1, high=1000, typical=100, source="assumed, for tests") for n in ("Phe", "Tyr")],
    ratios=[],
    columns=[Column(name="sample", kind="text", required=True), Column(name="month", kind="text")],
)


def book(**words: Any) -> Controls:
    """Two materials of the same values; one rejected analyte fails a plate."""
    targets = {"Phe": Target(mean=MEAN, sd=SD), "Tyr": Target(mean=MEAN, sd=SD)}
    materials = [Material(name=name, source="assumed, for tests", targets=targets) for name in ("low", "high")]
    given: dict[str, Any] = {"fails_at": 1, "per_plate": 1, **words}
    return Controls(name="b", title="b", source="tests", materials=materials, fails_source="tests", **given)


def table(
    tmp_path: Path, plates: list[dict[str, list[float | str | None]]], laboratory: str = "L", **more: Any
) -> ControlTable:
    """A plate is {"low": [z of Phe, ...], "high": [...]}; Tyr is at its mean. None: no reading; a text stands as it is."""
    rows = [
        {
            "laboratory": laboratory,
            "plate": f"p{p}",
            "material": material,
            "Phe": z if isinstance(z, str) else None if z is None else str(MEAN + SD * z),
            "Tyr": str(MEAN),
            **{key: values[p] for key, values in more.items()},
        }
        for p, plate in enumerate(plates)
        for material, zs in plate.items()
        for z in zs
    ]
    path = tmp_path / "controls.csv"
    pl.DataFrame(rows).write_csv(path)
    return read_controls(path, SMALL)


def one(*zs: float) -> list[dict[str, list[float | str | None]]]:
    """Plates of one control of one material each."""
    return [{"low": [z]} for z in zs]


# --- single rules, by hand


@pytest.mark.parametrize(("rule", "zs", "broken"), [  # broken: the plates, counted from 0
    ("1_2s", [0, 2.1, -2.1, 2.0, -2.0], [1, 2]),  # beyond, not at the limit
    ("1_3s", [0, 2.9, 3.1, -3.1], [2, 3]),
    ("2_2s", [2.1, 0, 2.1, 2.2, 2.3, 0], [3, 4]),  # two in a row, and every one that goes on
    ("2_2s", [2.1, -2.1, 2.1], []),  # on both sides: no
    ("4_1s", [1.1, 1.1, 1.1, 0.9, 1.1, 1.1, 1.1, 1.1], [7]),
    ("4_1s", [-1.1, -1.2, -1.3, -1.4, -1.5], [3, 4]),
    ("10_x", [0.1] * 9 + [-0.1] + [0.1] * 10, [19]),
    ("10_x", [0.1] * 5 + [0.0] + [0.1] * 5, []),  # at the mean: on no side
    ("1_2.5s", [2.4, 2.6], [1]),
])  # fmt: skip
def test_a_rule_breaks_where_its_name_says(tmp_path: Path, rule: str, zs: list[float], broken: list[int]) -> None:
    verdicts = judge_plates(table(tmp_path, one(*zs)), book(rejecting=[rule], warning=[]))
    assert [p for p in range(len(zs)) if not verdicts["L", f"p{p}"].ok] == broken
    for p in broken:
        assert Broken("Phe", "low", rule) in verdicts["L", f"p{p}"].broken
    assert {b.analyte for v in verdicts.values() for b in v.broken} <= {"Phe"}


@pytest.mark.parametrize(("plate", "ok"), [
    ({"low": [2.1], "high": [-2.1]}, False), ({"low": [2.1], "high": [-1.9]}, True), ({"low": [2.1, -2.1]}, False),
    ({"low": [4.5], "high": [0.1]}, True),  # a range of more than 4 sd, but not beyond 2 on both sides
])  # fmt: skip
def test_r_4s_looks_within_one_plate(tmp_path: Path, plate: dict[str, list[float | str | None]], ok: bool) -> None:
    assert judge_plates(table(tmp_path, [plate]), book(rejecting=["R_4s"], warning=[]))["L", "p0"].ok == ok
    apart = [{"low": [2.1]}, {"low": [-2.1]}]
    assert all(v.ok for v in judge_plates(table(tmp_path, apart), book(rejecting=["R_4s"], warning=[])).values())


def test_two_materials_of_a_plate_break_2_2s_together_and_belong_to_no_material(tmp_path: Path) -> None:
    verdict = judge_plates(table(tmp_path, [{"low": [2.1], "high": [2.1]}]), book(warning=[]))["L", "p0"]
    assert verdict.broken == [Broken("Phe", "", "2_2s")]
    assert not verdict.ok


@settings(max_examples=60)
@given(
    st.lists(st.floats(-4, 4).map(lambda z: round(z, 2)), min_size=1, max_size=40),
    st.integers(1, 6),
    st.sampled_from([0, 1, 2, 2.5]),
)
def test_runs_agree_with_counting_one_by_one(zs: list[float], count: int, limit: float) -> None:
    runs = Runs([str(i) for i in range(len(zs))], np.arange(len(zs)), np.full(len(zs), "low"), np.array(zs)[:, None])
    rule = f"{count}_x" if limit == 0 else f"{count}_{limit:g}s"
    found = next(iter(broken_by(rule, runs)))[1][:, 0].tolist()
    expected, high, low = [], 0, 0
    for z in zs:
        high, low = (high + 1 if z > limit else 0), (low + 1 if -z > limit else 0)
        expected.append(max(high, low) >= count)
    assert found == expected


# --- a plate's verdict


def test_a_warning_is_noted_and_fails_nothing(tmp_path: Path) -> None:
    verdict = judge_plates(table(tmp_path, one(2.5)), book())["L", "p0"]
    assert verdict == PlateVerdict(True, [Broken("Phe", "low", "1_2s")], 1)


def test_a_plate_fails_by_enough_rejected_analytes_or_by_one_fatal_rule(tmp_path: Path) -> None:
    controls = table(tmp_path, one(3.5, 5.5))
    verdicts = judge_plates(controls, book(rejecting=["1_3s"], fatal=["1_5s"], fails_at=2))
    assert verdicts["L", "p0"].ok
    assert (verdicts["L", "p1"].ok, verdicts["L", "p1"].why) == (False, "controls of Phe broke 1_5s, 1_3s")
    verdict = judge_plates(controls, book(rejecting=["1_3s"], fails_at=1))["L", "p0"]
    assert (verdict.ok, verdict.why) == (False, "controls of Phe broke 1_3s")


def test_a_plate_with_too_few_controls_of_known_material_is_not_ok(tmp_path: Path) -> None:
    controls = table(tmp_path, [{"low": [0], "other": [0]}, {"low": [0], "high": [0]}])
    verdicts = judge_plates(controls, book(per_plate=2))
    assert verdicts["L", "p0"] == PlateVerdict(False, [], 1, "1 controls, 2 wanted")
    assert verdicts["L", "p1"].ok


def test_a_plate_without_controls_is_not_ok_and_laboratories_do_not_share_plates(tmp_path: Path) -> None:
    verdicts = judge_plates(table(tmp_path, one(0.0)), book())
    assert verdict_of(verdicts, "L", "p0").ok
    assert verdict_of(verdicts, "M", "p0") == PlateVerdict(False, [], 0, "no control on the plate")


@pytest.mark.parametrize("cell", ["-5", "inf", "NaN", "broken", "1e9"])
def test_a_reading_that_is_no_concentration_counts_as_far_off(tmp_path: Path, cell: str) -> None:
    assert not judge_plates(table(tmp_path, [{"low": [0.0]}, {"low": [cell]}]), book(rejecting=["1_3s"]))["L", "p1"].ok


def test_an_analyte_without_a_reading_on_one_plate_is_rejected_there_and_an_unmeasured_one_nowhere(tmp_path: Path) -> None:
    verdicts = judge_plates(table(tmp_path, [{"low": [0.0]}, {"low": [None]}, {"low": [0.0]}]), book())
    assert [verdicts["L", f"p{p}"].ok for p in range(3)] == [True, False, True]
    assert verdicts["L", "p1"].broken == [Broken("Phe", "", "no reading")]
    verdicts = judge_plates(table(tmp_path, [{"low": [None]}, {"low": [None]}]), book())
    assert all(verdict.ok for verdict in verdicts.values())


def test_plates_go_in_order_of_months_then_of_the_file(tmp_path: Path) -> None:
    months = ["2026-12", "2026-11", "2026-12"]  # in time: p1, p0, p2
    controls = table(tmp_path, one(2.1, 2.1, 2.1), month=months)
    verdicts = judge_plates(controls, book(rejecting=["2_2s"], warning=[]))
    assert list(verdicts) == [("L", "p1"), ("L", "p0"), ("L", "p2")]
    assert [v.ok for v in verdicts.values()] == [True, False, False]


@pytest.mark.parametrize("rule", ["1_3", "3s", "R4s", "0_2s", "x", "1_3s ", "__import__('os')", "100_2s"])
def test_what_is_no_rule_is_refused(rule: str) -> None:
    with pytest.raises(ValueError, match="no Westgard rule"):
        book(rejecting=[rule])


def test_a_table_without_plates_or_materials_is_refused(tmp_path: Path) -> None:
    pl.DataFrame({"laboratory": ["L"], "Phe": [100.0]}).write_csv(tmp_path / "c.csv")
    with pytest.raises(HpcaiError, match="column plate is missing") as caught:
        read_controls(tmp_path / "c.csv", SMALL)
    assert "column material is missing" in "\n".join(caught.value.lines)
    assert caught.value.code == 4
    assert all(line.startswith("screening.controls: ") for line in caught.value.lines)
    (tmp_path / "c.csv").write_text("")
    with pytest.raises(HpcaiError, match=r"^screening\.controls: the table is empty\. Give a header and a row a control\.$"):
        read_controls(tmp_path / "c.csv", SMALL)


# --- the plot's data


def test_a_plot_has_the_z_of_each_control_and_what_broke(tmp_path: Path) -> None:
    controls = table(tmp_path, [{"low": [0.5, None], "high": [3.5]}, {"low": [-1.0]}])
    series = levey_jennings(controls, book(rejecting=["1_3s"], warning=[]), ["Phe"])
    assert [(s["analyte"], s["material"], s["plates"], s["z"], s["broken"]) for s in series] == [
        ("Phe", "high", ["p0"], [3.5], [["1_3s"]]),
        ("Phe", "low", ["p0", "p0", "p1"], [0.5, None, -1.0], [["1_3s"], ["1_3s"], []]),
    ]
    assert json.loads(json.dumps(series, allow_nan=False)) == series


def test_a_plot_shows_what_broke_most_and_the_failed_plate_however_long_ago(tmp_path: Path) -> None:
    zs = [0.1, -0.1] * 300
    zs[350] = 9.0
    series = levey_jennings(table(tmp_path, one(*zs)), book(rejecting=["1_3s"], warning=[]))
    assert series[0]["analyte"] == "Phe"
    assert len(series[0]["z"]) == 200
    assert series[0]["plates"][-1] == "p350"
    assert not series[0]["ok"][-1]


# --- the shipped rules


def in_control(n: int, seed: int, failed: int | None = None) -> Runs:
    """Plates as the simulator makes them: a plate's shift 0.04, a well's 0.05; a third of a failed plate is off."""
    rng = np.random.default_rng(seed)
    ln = rng.normal(0, 0.04, (n, 1, 42)) + rng.normal(0, 0.05, (n, 4, 42))
    if failed is not None:
        ln[failed, :, ::3] += 0.6
    names = np.tile(np.array(["low", "low", "high", "high"]), n)
    return Runs([str(p) for p in range(n)], np.repeat(np.arange(n), 4), names, (ln / np.hypot(0.04, 0.05)).reshape(-1, 42))


def fails(runs: Runs, controls: Controls) -> np.ndarray[Any, Any]:
    """Plates that fail, by the rules alone."""
    rejected, fatal = (
        np.any([mask for rule in rules for _, mask in broken_by(rule, runs)], axis=0)
        for rules in (controls.rejecting, controls.fatal)
    )
    failed: np.ndarray[Any, Any] = (rejected.sum(axis=1) >= controls.fails_at) | fatal.any(axis=1)
    return failed


def test_the_shipped_rules_fail_few_good_plates_by_chance_and_every_plate_that_is_off() -> None:
    shipped = read("controls", "westgard", Controls)
    runs = in_control(3000, 1, failed=1234)
    failed = fails(runs, shipped)
    assert failed[1234]
    assert (failed.sum() - 1) / 3000 < 0.005  # as the file says


def test_the_shipped_materials_name_every_analyte_of_the_shipped_dictionary() -> None:
    shipped, analytes = read("controls", "westgard", Controls), [a.name for a in dictionary("nbs_msms").analytes]
    for material in shipped.materials:
        assert set(material.targets) == set(analytes)
        assert all(target.sd < target.mean / 10 for target in material.targets.values())
