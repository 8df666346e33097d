"""Numbers of a screened cohort: exact intervals, shares by hand, and what is not told where it would mislead."""

from __future__ import annotations

import math

import jsonschema
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from report_schema import SCHEMA
from scipy.stats import binomtest
from screening_cohort import BOOKS, cohort, panel, tallied
from test_tally import batch, decided

from hpcai.metrics.intervals import clopper_pearson
from hpcai.screening.numbers import enriched, screening
from hpcai.screening.tally import UNAFFECTED, UNKNOWN, Tally


@given(st.integers(1, 2_000_000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_the_exact_interval_is_scipys(pair: tuple[int, int]) -> None:
    k, n = pair
    low, high = binomtest(k, n).proportion_ci(0.95, "exact")
    assert clopper_pearson(k, n) == (pytest.approx(low, rel=1e-7, abs=1e-15), pytest.approx(high, rel=1e-7))


def test_none_of_n_is_the_rule_of_three() -> None:
    """0 of 100: the upper end is 1 - 0.025 ** (1 / 100) = 0.03622."""
    assert clopper_pearson(0, 100) == (0.0, pytest.approx(1 - 0.025**0.01))


def told(tally: Tally) -> dict[str, dict[str, float | None]]:
    """Values by way and name, over each way's own diseases."""
    block = screening(tally, kind="cohort", split="predict", books=BOOKS)
    return {
        way["way"]: {e["name"]: e["value"] for e in way["estimates"]} | {k: way[k] for k in ("found", "missed", "unassessed")}
        for way in block["total"]
        if way["scope"] == "own"
    }


def natural(n: int = 20_000) -> Tally:
    """n newborns of whom 4 have PKU: two are referred, one is clear, one not assessable; and of the others 10 are referred."""
    codes, truth = np.zeros((n, 3), int), np.full(n, UNAFFECTED)
    truth[:4], codes[:2, 0], codes[3, 0], codes[4:14, 1] = 0, 4, 1, 4
    tally = Tally(panel(), simulated=False)
    tally.add(batch(n), decided(codes.tolist()), truth, {"old": np.where(codes == 4, 1, 0)})
    return tally


def test_shares_are_those_by_hand() -> None:
    """Found 2 of 2 + 1; true 2 of 12 flagged; false 10 of 19,996; referred 12 of 20,000, as many ill as incidence explains."""
    found = told(natural())["decision"]
    assert (found["found"], found["missed"], found["unassessed"]) == (2, 1, 1)
    assert found["sensitivity"] == pytest.approx(2 / 3)
    assert found["ppv"] == pytest.approx(2 / 12)
    assert found["false_positive_rate"] == pytest.approx(10 / 19_996)
    assert found["flag_rate"] == found["recall_rate"] == pytest.approx(12 / 20_000)
    assert told(natural())["rules: old"]["missed"] == 2  # rules say clear where the decision says not assessable


def test_a_cohort_to_which_cases_were_added_tells_no_ppv_but_the_one_at_the_panels_incidence() -> None:
    """2 of 3 found and 10 of 996 false at 3 diseases of 1e-4: .0003 * 2/3 / (.0003 * 2/3 + .9997 * 10/996)."""
    tally = natural(1000)
    assert enriched(tally) and not enriched(natural())
    found = told(tally)["decision"]
    right, wrong = 3e-4 * 2 / 3, (1 - 3e-4) * 10 / 996
    assert found["ppv"] is None and found["ppv_at"] == pytest.approx(right / (right + wrong))


def test_where_nobody_is_known_nothing_is_claimed() -> None:
    tally = Tally(panel(), simulated=False)
    tally.add(batch(9), decided([[4, 0, 0]] * 9), np.full(9, UNKNOWN), {})
    found = told(tally)["decision"]
    assert found["sensitivity"] is found["ppv"] is found["false_positive_rate"] is None
    assert found["recall_rate"] == 1.0


def test_ways_that_judge_other_diseases_are_compared_over_those_that_all_judge() -> None:
    block = tallied()
    scopes = {(way["way"], way["scope"]): way["diseases"] for way in block["total"]}
    assert scopes["decision", "own"] == 3 and scopes["rules: heidelberg2003", "own"] == 2
    assert {n for (_, scope), n in scopes.items() if scope == "shared"} == {2}
    assert sum(scope == "shared" for _, scope in scopes) == 3


def test_places_add_up_to_the_total() -> None:
    block = tallied()
    for part in ("laboratories", "months"):
        assert sum(place["n"] for place in block[part]) == block["n"] == 400
        for key in ("found", "missed", "true", "false"):
            assert sum(place["ways"][0][key] for place in block[part]) == block["total"][0][key]
    funnel = block["funnel"]
    assert sum(row["n"] for row in funnel["lines"]) == funnel["assessed"] == 400 - sum(row["n"] for row in funnel["out"])


def test_screening_json_is_as_its_schema_says_and_names_no_newborn() -> None:
    block = tallied()
    fits = jsonschema.Draft202012Validator({"$ref": "#/$defs/screening", "$defs": SCHEMA["$defs"]})
    assert [e.message for e in fits.iter_errors(block)] == []
    assert list(fits.iter_errors(block | {"surprise": 1}))
    assert all(
        row.keys() == {"row", "day", "disease", "decision", "reason", "laboratory", "plate"} for row in block["review"]["rows"]
    )


def test_an_empty_cohort_has_a_block_too() -> None:
    block = screening(Tally(panel(), simulated=True), kind="cohort", split="predict", books={})
    assert block["n"] == 0 and block["total"] == [] and block["funnel"] is None


@settings(max_examples=25)  # each has some 100 intervals
@given(st.integers(0, 10_000))
def test_every_interval_holds_its_value(seed: int) -> None:
    tally = Tally(panel(), simulated=True)
    tally.add(*cohort(60, seed))
    block = screening(tally, kind="cohort", split="predict", books={})
    for way in [*block["total"], *(way for d in block["diseases"] for way in d["ways"])]:
        assert way["found"] + way["missed"] + way["unassessed"] == way["affected"]
        for e in way["estimates"]:
            if e["value"] is not None:
                assert 0 <= e["low"] <= e["value"] <= e["high"] <= 1 and math.isfinite(e["value"])


def test_newborns_of_whom_a_way_said_nothing_make_no_false_alarm_rarer() -> None:
    """1000 unaffected: 400 not assessable for all diseases, 100 for one, 10 flagged among the 600 others: 10 of 600."""
    codes = np.zeros((1000, 3), int)
    codes[:400], codes[400:500, 0], codes[500:510, 1] = 1, 1, 4
    called = np.where(codes == 1, -1, np.where(codes == 4, 1, 0))
    tally = Tally(panel(), simulated=False)
    tally.add(batch(1000), decided(codes.tolist()), np.full(1000, UNAFFECTED), {}, called)
    block = screening(tally, kind="cohort", split="predict", books=BOOKS)
    rates = {
        (w["way"], i): e["value"]
        for i, ways in enumerate([block["total"], block["laboratories"][0]["ways"], block["diseases"][1]["ways"]])
        for w in ways
        for e in w["estimates"]
        if e["name"] == "false_positive_rate"
    }
    assert len(rates) == 6 and set(rates.values()) == {10 / 600}
    assert told(tally)["model"]["flag_rate"] == 10 / 1000  # what the laboratory has to do is of all newborns


def test_an_empty_column_of_diagnoses_makes_no_flagged_newborn_a_false_alarm() -> None:
    """Nobody is affected, as far as the table tells: 0 of 12 true would be said of newborns whom nobody has looked at yet."""
    tally = Tally(panel(), simulated=False)
    tally.add(batch(20_000), decided([[4, 0, 0]] * 12 + [[0, 0, 0]] * 19_988), np.full(20_000, UNAFFECTED), {})
    found = told(tally)["decision"]
    assert found["ppv"] is None and found["recall_rate"] == 12 / 20_000
    assert "ppv_at" not in found
