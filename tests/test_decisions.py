"""decisions.py: one decision a baby and disease, whatever rules, model, specimen, plate and laboratory say."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcai.book.analytes import Analyte, Column, Dictionary, Ratio
from hpcai.book.diseases import Disease, Diseases
from hpcai.book.policy import Policy
from hpcai.screening.batch import Batch, RowFault
from hpcai.screening.decisions import (
    CODES,
    NAMES,
    PLATE_FAILED,
    PLATE_GOOD,
    PLATE_UNKNOWN,
    REASONS,
    Decisions,
    decide,
    lacking,
    line,
    together,
    with_tier,
)
from hpcai.screening.model import Scores

WHERE = "assumed, for a test"


def analyte(name: str) -> Analyte:
    return Analyte(name=name, title=name, low=0.001, high=10_000.0, typical=1.0, source=WHERE)


def disease(name: str, needs: list[str], second_tier: str | None) -> Disease:
    return Disease(
        name=name, title=name, markers=needs, needs=needs, second_tier=second_tier, second_tier_source=WHERE,
        time_critical=False, time_source=WHERE, incidence=1e-4, incidence_source=WHERE,
    )  # fmt: skip


DICTIONARY = Dictionary(
    name="d", title="d", analytes=[analyte("Phe"), analyte("C8")], ratios=[Ratio(top="C8", bottom="Phe", source=WHERE)],
    columns=[Column(name="laboratory", kind="text")],
)  # fmt: skip
PANEL = Diseases(
    name="p", title="p", day_source=WHERE,
    diseases=[disease("TIER", ["C8"], "organic acids"), disease("BARE", ["C8"], None)],
)  # fmt: skip


def policy(**words: Any) -> Policy:
    return Policy(name="p", title="p", source=WHERE, rule_sets=["r"], **words)


def batch(rows: int, missing: list[int] | None = None, broken: list[int] | None = None) -> Batch:
    x_NA = np.ones((rows, 2))
    x_NA[missing or [], 1] = np.nan
    faults = [RowFault(i, "", "two rows for one sample") for i in broken or []]
    return Batch(np.arange(rows) + 2, np.array([f"s{i}" for i in range(rows)]), x_NA, faults=faults)


def two(values: Any, kind: Any = np.int8) -> Any:
    """The same word for both diseases."""
    return np.repeat(np.array(values, kind)[:, None], 2, axis=1)


def scores(*words: Sequence[bool]) -> Scores:
    """`words`: called, uncertain, open."""
    return Scores(np.zeros((len(words[0]), 2)), *(two(word, bool) for word in words))


def effects(codes: list[int]) -> Any:
    return SimpleNamespace(code_ND=two(codes))


def books(**words: Any) -> Any:
    return SimpleNamespace(policy=policy(**words), panel=PANEL, dictionary=DICTIONARY)


# ---- the truth table: every combination of what can be said, under every policy, against a plain scalar reading

STATES = list(
    itertools.product(
        (1, 0, -1, -2), ((True, False, False), (True, True, False), (False, True, False), (False, False, False),
                         (False, False, True)), (0, 1, 2), (False, True), (True, False),
        (PLATE_GOOD, PLATE_FAILED, PLATE_UNKNOWN), (False, True),
    )
)  # fmt: skip
POLICIES = [
    {"rule_positive": a, "model_positive": b, "model_may_soften": c, "abstention": d, "shifted": e}
    for a, b, c, d, e in itertools.product(
        ("refer", "reflex", "repeat"), ("reflex", "repeat"), ([], ["TIER", "BARE"]), ("reflex", "repeat", "clear"),
        ("rules", "not_assessable"),
    )
]  # fmt: skip


def expected(state: Any, words: Any, tier: bool, model: bool) -> tuple[str, bool]:
    """One baby and disease, read off the table of decisions.py one source after the other."""
    rule, (called, uncertain, unsaid), specimen, missing, fits, plate, broken = state
    if broken or plate != PLATE_GOOD:
        return "not_assessable", False
    asked = model and fits and not missing
    heard = asked and not unsaid
    tiered = {w: w if tier or w != "reflex" else "repeat" for w in NAMES}
    words_said = ["clear"]
    if missing or rule == -1 or specimen == 2 or (rule == -2 and not heard) or (asked and unsaid):
        words_said.append("not_assessable")
    if model and not fits and words["shifted"] == "not_assessable":
        words_said.append("not_assessable")
    if specimen == 1:
        words_said.append("repeat")
    if heard and called:
        words_said.append(tiered[words["model_positive"]])
    elif heard and uncertain:
        words_said.append(tiered[words["abstention"]])
    soft = False
    if rule == 1:
        word = tiered[words["rule_positive"]]
        below = heard and not called and not uncertain
        soft = word == "refer" and below and specimen == 0 and bool(words["model_may_soften"])
        words_said.append(tiered["reflex"] if soft else word)
    return max(words_said, key=NAMES.index), soft


@pytest.mark.parametrize("model", [True, False])
@pytest.mark.parametrize("words", POLICIES)
def test_every_combination_gives_the_decision_that_the_table_states(words: dict[str, Any], model: bool) -> None:
    columns = list(zip(*STATES, strict=True))
    rule, told, specimen, missing, fits, plate, broken = columns
    made = decide(
        books(**words),
        batch(len(STATES), np.flatnonzero(missing).tolist(), np.flatnonzero(broken).tolist()),
        two(rule),
        effects(list(specimen)),
        scores(*zip(*told, strict=True)) if model else None,
        np.array(plate, np.int8),
        np.array(fits),
    )
    for d, tier in enumerate((True, False)):
        wanted = [expected(state, words, tier, model) for state in STATES]
        assert [NAMES[c] for c in made.code_ND[:, d]] == [w for w, _ in wanted]
        assert made.softened_ND[:, d].tolist() == [soft for _, soft in wanted]


@pytest.mark.parametrize("words", POLICIES[::7])
def test_each_decision_has_a_reason_of_its_own_kind(words: dict[str, Any]) -> None:
    rule, told, specimen, missing, fits, plate, broken = zip(*STATES, strict=True)
    made = decide(
        books(**words),
        batch(len(STATES), np.flatnonzero(missing).tolist(), np.flatnonzero(broken).tolist()),
        two(rule), effects(list(specimen)), scores(*zip(*told, strict=True)),
        np.array(plate, np.int8), np.array(fits),
    )  # fmt: skip
    clear, unassessed = made.code_ND == CODES["clear"], made.code_ND == CODES["not_assessable"]
    assert {REASONS[r] for r in np.unique(made.reason_ND[clear])} == {"nothing found"}
    assert not {REASONS[r] for r in np.unique(made.reason_ND[unassessed])} & {*REASONS[:7]}
    assert "model cannot be said: analyte missing" in {REASONS[r] for r in np.unique(made.reason_ND[unassessed])}
    assert {REASONS[r] for r in np.unique(made.reason_ND[~clear & ~unassessed])} <= {*REASONS[1:7]}
    assert {REASONS[r] for r in np.unique(made.reason_ND[made.softened_ND])} <= {"rule positive, softened by the model"}


# ---- what must never happen, said as properties

rules_st, specimen_st = st.sampled_from([1, 0, -1, -2]), st.sampled_from([0, 1, 2])


def one(rule: int, called: bool, unsure: bool, specimen: int, missing: bool, words: dict[str, Any]) -> Decisions:
    return decide(
        books(**words), batch(1, [0] if missing else []), two([rule]), effects([specimen]), scores([called], [unsure], [False])
    )  # fmt: skip


@given(st.sampled_from(POLICIES), rules_st, st.booleans(), st.booleans(), specimen_st, st.booleans())
def test_a_model_that_calls_never_makes_a_decision_less_urgent(
    words: dict[str, Any], rule: int, called: bool, unsure: bool, specimen: int, missing: bool
) -> None:
    with_it = one(rule, True, unsure, specimen, missing, words).code_ND
    assert (with_it >= one(rule, called, unsure, specimen, missing, words).code_ND).all()


@given(st.sampled_from(POLICIES), rules_st, st.booleans(), st.booleans(), specimen_st, st.booleans())
def test_a_positive_rule_never_makes_a_decision_less_urgent(
    words: dict[str, Any], rule: int, called: bool, unsure: bool, specimen: int, missing: bool
) -> None:
    positive = one(1, called, unsure, specimen, missing, words).code_ND
    assert (positive >= one(0, called, unsure, specimen, missing, words).code_ND).all()
    assert (positive >= one(-1, called, unsure, specimen, missing, words).code_ND).all()
    assert (positive >= CODES["repeat"]).all()


@given(st.sampled_from(POLICIES), rules_st, st.booleans(), st.booleans(), st.booleans())
def test_a_worse_specimen_and_a_missing_analyte_never_give_clear(
    words: dict[str, Any], rule: int, called: bool, unsure: bool, missing: bool
) -> None:
    for specimen in (1, 2):
        assert (one(rule, called, unsure, specimen, missing, words).code_ND > CODES["clear"]).all()
    assert (one(rule, called, unsure, 0, True, words).code_ND > CODES["clear"]).all()


@given(st.sampled_from([p for p in POLICIES if not p["model_may_soften"]]), st.booleans(), st.booleans(), specimen_st)
def test_without_the_policys_word_no_model_softens_a_refer(
    words: dict[str, Any], called: bool, unsure: bool, specimen: int
) -> None:
    made = one(1, called, unsure, specimen, False, words)
    assert not made.softened_ND.any()
    assert NAMES[made.code_ND[0, 0]] in (words["rule_positive"], max(words["rule_positive"], "reflex", key=NAMES.index))


def test_a_refer_is_softened_only_for_the_disease_that_the_policy_names() -> None:
    made = one(1, False, False, 0, False, {"model_may_soften": ["TIER"]})
    assert [NAMES[c] for c in made.code_ND[0]] == ["reflex", "refer"]
    assert made.softened_ND.tolist() == [[True, False]]


def test_a_disease_without_a_detector_is_judged_by_its_rules_alone() -> None:
    half = Scores(np.array([[np.nan, 0.0]]), two([True], bool), two([False], bool), two([False], bool))
    made = decide(books(), batch(1), two([0]), effects([0]), half)
    assert [NAMES[c] for c in made.code_ND[0]] == ["clear", "repeat"] and made.heard_ND.tolist() == [[False, True]]
    unjudged = decide(books(), batch(1), two([-2]), effects([0]), half)
    assert REASONS[unjudged.reason_ND[0, 0]] == "neither a rule nor the model judges it"


# ---- parts


def test_reflex_without_a_second_tier_test_is_a_new_sample() -> None:
    tiers_D = np.array([True, False])
    assert [NAMES[c] for c in with_tier("reflex", tiers_D)] == ["reflex", "repeat"]
    assert [NAMES[c] for c in with_tier("refer", tiers_D)] == ["refer", "refer"]


@pytest.mark.parametrize(("sets", "said"), [
    ([1, -1], 1), ([0, 1], 1), ([0, -1], -1), ([-2, -1], -1), ([0, -2], 0), ([-2, -2], -2), ([-2, 1], 1), ([0, 0], 0),
])  # fmt: skip
def test_rule_sets_together_are_read_in_three_valued_logic(sets: list[int], said: int) -> None:
    assert together([np.array([[s]], np.int8) for s in sets]).tolist() == [[said]]


def test_only_the_analytes_that_a_disease_needs_make_it_lacking() -> None:
    panel = PANEL.model_copy(update={"diseases": [disease("A", ["Phe"], None), disease("B", ["Phe", "C8"], None)]})
    assert lacking(DICTIONARY, panel, batch(2, [1])).tolist() == [[False, False], [False, True]]


def test_a_cell_that_is_at_fault_leaves_the_row_to_be_judged() -> None:
    rows = Batch(np.array([2]), np.array(["s"]), np.ones((1, 2)), faults=[RowFault(0, "Phe", "negative")])
    made = decide(books(), rows, two([0]), effects([0]), scores([False], [False], [False]))
    assert made.worst_N.tolist() == [CODES["clear"]]


@pytest.mark.parametrize(("codes", "reasons", "said"), [
    ([0, 0, 0], [0, 0, 0], "clear for 3 of 3"),
    ([4, 0, 1], [1, 0, 8], "refer: A; clear for 1 of 3; not assessable: C (needed analyte missing)"),
    ([1, 1, 1], [12, 12, 12], "clear for 0 of 3; not assessable: all (plate failed its controls)"),
    ([3, 2, 3], [3, 6, 3], "reflex: A, C; repeat: B; clear for 0 of 3"),
    ([1, 0, 1], [7, 0, 8], "clear for 1 of 3; not assessable: A (specimen), C (needed analyte missing)"),
])  # fmt: skip
def test_a_babys_line_names_what_is_urgent_first_and_never_hides_what_was_not_assessed(
    codes: list[int], reasons: list[int], said: str
) -> None:
    assert line(["A", "B", "C"], np.array(codes, np.int8), np.array(reasons, np.int8)) == said
