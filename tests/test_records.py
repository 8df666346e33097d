"""records.py: one record a newborn, canonical, with no raw text and no number that JSON does not know."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_decisions import DICTIONARY, PANEL, policy

from hpcai.screening.batch import Batch, RowFault
from hpcai.screening.decisions import Decisions
from hpcai.screening.model import Scores
from hpcai.screening.records import Judged, Recorder, significant

PLAIN = "simulated A"


def books() -> Any:
    rule = SimpleNamespace(reason="transfused before sampling")
    return SimpleNamespace(policy=policy(), panel=PANEL, dictionary=DICTIONARY, specimen=SimpleNamespace(rules=[rule]))


def judged(sample: str = "s1", laboratory: str = PLAIN, scores: bool = True, **text: str) -> Judged:
    """Two newborns: the first referred for TIER and clear of BARE, the second nowhere assessable."""
    columns = {"laboratory": laboratory, "plate": "p", "month": "2026-11", **text}
    batch = Batch(
        np.array([2, 3]), np.array([sample, "s2"]), np.array([[50.0, 0.2], [np.nan, np.nan]]),
        text={name: np.array([value, value]) for name, value in columns.items()},
        faults=[RowFault(0, "Phe", "negative"), RowFault(1, "", "two rows for one sample")],
    )  # fmt: skip
    code, reason = np.array([[4, 0], [1, 1]], np.int8), np.array([[4, 0], [14, 14]], np.int8)
    heard = np.array([[scores, scores], [False, False]])
    made = Decisions(code, reason, np.zeros((2, 2), bool), heard)
    rules = {"r": np.array([[1, -2], [-1, -2]], np.int8), "q": np.array([[0, 0], [0, 0]], np.int8)}
    said = Scores(np.array([[2.0, -9.0], [0.0, 0.0]]), np.array([[True, False], [False, False]]), *np.zeros((2, 2, 2), bool))
    multiples = np.array([[1.23456, 0.000123456, np.inf], [np.nan, np.nan, np.nan]])
    notes = {("simulated A", "2026-11"): "laboratory corrected to the model's"}
    return Judged(batch, made, rules, said if scores else None, multiples, np.array([[True], [False]]), notes)


def recorder(**words: Any) -> Recorder:
    return Recorder(books(), {"model": "ab", "policy": "cd"}, True, **words)


def test_a_real_newborns_record_says_that_simulated_ones_taught_the_model() -> None:
    told = "simulated newborns alone taught the model"
    assert all(told in record["flags"] for record in recorder(untried=True).records(judged()))
    assert not any(told in record["flags"] for record in recorder().records(judged()))


def test_a_record_says_all_of_one_newborn() -> None:
    first, second = recorder().records(judged())
    assert first == {
        "sample": "s1", "row": 2, "laboratory": "simulated A", "plate": "p", "month": "2026-11",
        "line": "refer: TIER; clear for 1 of 2", "decision": "refer", "by_day": 7, "status": "proposed",
        "diseases": {
            "TIER": {"decision": "refer", "reason": "rule and model positive", "rules": {"r": True, "q": False},
                     "probability": 0.8808, "called": True, "uncertain": False, "softened": False},  # expit(2) = 0.88080
            "BARE": {"decision": "clear", "reason": "nothing found", "rules": {"q": False},
                     "probability": 0.0001234, "called": False, "uncertain": False, "softened": False},  # expit(-9)
        },
        "multiples": {"Phe": 1.235, "C8": 0.0001235, "C8/Phe": None},
        "flags": ["Phe: negative", "transfused before sampling", "laboratory corrected to the model's"],
        "digests": {"model": "ab", "policy": "cd"}, "simulated": True,
    }  # fmt: skip
    assert second["by_day"] is None and second["line"] == "clear for 0 of 2; not assessable: all (row cannot be used)"
    assert second["diseases"]["TIER"]["rules"] == {"r": None, "q": False}  # cannot be said; no rule of r for BARE
    assert second["diseases"]["TIER"]["probability"] is None


def test_without_a_model_a_record_has_no_probability() -> None:
    first, _ = recorder().records(judged(scores=False))
    assert {(d["probability"], d["called"], d["uncertain"]) for d in first["diseases"].values()} == {(None, None, None)}


def test_lines_are_canonical_and_one_a_newborn() -> None:
    data = recorder().lines(judged())
    lines = data.decode().splitlines()
    records = recorder().records(judged())
    assert lines == [json.dumps(record, ensure_ascii=False, separators=(",", ":")) for record in records]
    assert data == recorder().lines(judged())
    assert lines[0].startswith('{"sample":"s1","row":2,')  # by which hpcai explain finds it


def test_the_laboratorys_own_decision_stands_beside_in_shadow_alone() -> None:
    assert "own" not in recorder().records(judged(decision="refer"))[0]
    shown = recorder(shadow=True).records(judged(decision="=refer"))[0]
    assert (shown["own"], shown["status"]) == ("'=refer", "shadow")
    assert recorder(shadow=True).records(judged())[0]["own"] == ""


@pytest.mark.parametrize("cell", ["=1+1", "+1", "-1", "@x", "=HYPERLINK(1)"])
def test_a_formula_is_never_written_out_raw(cell: str) -> None:
    first = recorder().records(judged(sample=cell, plate=cell))[0]
    assert first["sample"] == first["plate"] == f"'{cell}"


@given(st.text(max_size=20), st.text(max_size=20))
def test_any_text_gives_one_line_of_json_that_reads_back(sample: str, plate: str) -> None:
    data = recorder().lines(judged(sample=sample, plate=plate))
    assert data.count(b"\n") == 2
    first = json.loads(data.split(b"\n")[0])
    assert first["sample"].isprintable() and first["plate"].isprintable()


@pytest.mark.parametrize(("x", "rounded"), [
    (1234.56, 1235.0), (0.000123456, 0.0001235), (99999.0, 100000.0), (1.0, 1.0), (-2.34567, -2.346), (0.0, 0.0),
    (1e-300, 1e-300), (1.23456e300, 1.235e300),
])  # fmt: skip
def test_numbers_keep_four_significant_digits(x: float, rounded: float) -> None:
    assert significant(np.array([x])).tolist() == [rounded]


@given(st.floats(1e-12, 1e12))
def test_rounding_is_what_a_decimal_of_four_digits_reads_as(x: float) -> None:
    found = float(significant(np.array([x]))[0])
    assert found == float(f"{found:.4g}") and abs(found - x) <= 0.5000001e-3 * abs(x)


def test_what_is_no_number_stays_none() -> None:
    assert np.isnan(significant(np.array([np.nan]))).all()
    assert recorder().records(judged())[1]["multiples"] == {"Phe": None, "C8": None, "C8/Phe": None}
