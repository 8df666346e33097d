"""The engine of cut-offs: three-valued logic, against a slow reference, by hand, and on a million rows."""

from __future__ import annotations

import math
import time
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcai.book import shelf
from hpcai.book.analytes import Dictionary
from hpcai.book.rules import Condition, Rule, Rules
from hpcai.config.schema import Screening
from hpcai.screening.rules import NEGATIVE, NO_RULE, OPEN, POSITIVE, by_disease, told, verdicts

BOOKS = shelf.books(Screening())
DICTIONARY = BOOKS.dictionary
NAMES = [a.name for a in DICTIONARY.analytes]
HEIDELBERG, CALIFORNIA = BOOKS.rules
NAN = math.nan


def row(**values: float) -> np.ndarray[Any, Any]:
    """One newborn: typical values but for these; `C14_1` is C14:1."""
    x = {a.name: a.typical for a in DICTIONARY.analytes} | {k.replace("_", ":"): v for k, v in values.items()}
    return np.array([x[name] for name in NAMES])


def rules_of(*conditions: Condition, disease: str = "PKU") -> Rules:
    return Rules(name="r", title="t", source="s", rules=[Rule(disease=disease, when=c, source="s") for c in conditions])


def says(rules: Rules, disease: str, **values: float) -> int:
    said_ND = by_disease(rules, BOOKS.panel, verdicts(rules, DICTIONARY, row(**values)[None]))
    return int(said_ND[0, BOOKS.panel.names.index(disease)])


# --- by hand


@pytest.mark.parametrize(
    ("disease", "values", "answer"),
    [
        ("PKU", {}, NEGATIVE),
        ("PKU", {"Phe": 160, "Tyr": 80}, POSITIVE),  # 160 > 150 and 160/80 = 2 > 1.7
        ("PKU", {"Phe": 160, "Tyr": 95}, NEGATIVE),  # 160/95 = 1.68
        ("PKU", {"Phe": 150, "Tyr": 10}, NEGATIVE),  # 150 is not greater than 150
        ("PKU", {"Phe": 160, "Tyr": NAN}, OPEN),
        ("PKU", {"Phe": 160, "Tyr": 0}, OPEN),  # a ratio with nothing below
        ("PKU", {"Phe": 140, "Tyr": NAN}, NEGATIVE),  # one no settles it
        ("PKU", {"Phe": NAN, "Tyr": NAN}, OPEN),
        ("TYR1", {"Tyr": 210, "SUAC": 3}, POSITIVE),
        ("TYR1", {"Tyr": 150, "SUAC": 3}, NEGATIVE),
        ("MSUD", {"Leu": 491, "Val": 391}, POSITIVE),  # Leu+Ile is the dictionary's Leu
        ("MSUD", {"Leu": 491, "Val": 390}, NEGATIVE),
        ("CIT", {"Cit": 70, "Orn": 100, "Arg": 10}, POSITIVE),  # 100/70 = 1.43 < 1.5
        ("CIT", {"Cit": 70, "Orn": 200, "Arg": 10}, NEGATIVE),  # 2.86; 70/10 = 7
        ("CIT", {"Cit": 70, "Orn": 200, "Arg": 4}, POSITIVE),  # 70/4 = 17.5 > 15
        ("CIT", {"Cit": 70, "Orn": NAN, "Arg": 4}, POSITIVE),  # one of the two is enough
        ("CIT", {"Cit": 70, "Orn": NAN, "Arg": 10}, OPEN),
        ("LCHAD", {"C18_1OH": 0.13, "C14OH": NAN}, POSITIVE),
        ("LCHAD", {"C14OH": NAN}, OPEN),
        ("MCAD", {"C8": 0.4, "C2": 22, "C10": 0.2, "C12": 0.15}, POSITIVE),  # .4/.2 = 2 > 1.6
        ("MCAD", {"C8": 0.33, "C2": 22, "C10": 0.3, "C12": 0.3}, NEGATIVE),  # .015, 1.1, 1.1
        ("VLCAD", {"C14_1": 0.44}, POSITIVE),
        ("GA1", {"C5DC": 5.0}, NO_RULE),
    ],
)
def test_heidelberg_says_what_a_person_reads(disease: str, values: dict[str, float], answer: int) -> None:
    assert says(HEIDELBERG, disease, **values) == answer


@pytest.mark.parametrize(
    ("disease", "values", "answer"),
    [
        ("CUD", {"C0": 2}, NO_RULE),
        ("CPT1", {"C0": 150, "C16": 0.6, "C18": 0.8}, POSITIVE),  # 150/(0.6 + 0.8) = 107 > 100
        ("CPT1", {"C0": 150, "C16": 0.6, "C18": 1.0}, NEGATIVE),  # 93.8
        ("CPT1", {"C0": 150, "C16": 0.6, "C18": NAN}, OPEN),
        ("CPT1", {"C0": 230, "C16": 0.6, "C18": NAN}, POSITIVE),
        ("MAD", {"C5": 1.3, "C8": 0.6}, POSITIVE),
        ("MAD", {"C5": 1.3}, NEGATIVE),
        ("BKT", {"C5_1": 0.5}, NEGATIVE),
        ("BKT", {"C5_1": 0.5, "C5OH": 1.3}, POSITIVE),
        ("PKU", {"Phe": 3000}, NO_RULE),
    ],
)
def test_california_says_what_a_person_reads(disease: str, values: dict[str, float], answer: int) -> None:
    assert says(CALIFORNIA, disease, **values) == answer


def test_the_lower_limits_stand_apart() -> None:
    low = shelf.rules("california_low")
    values = ({"C0": 11.9}, {"C0": 12.0}, {"C0": 30, "C2": 4}, {"C0": 30, "C2": NAN})
    assert [says(low, "CUD", **v) for v in values] == [POSITIVE, NEGATIVE, POSITIVE, OPEN]


def test_several_rules_of_a_disease_are_joined_by_any() -> None:
    high, low = Condition(of="Phe", above=150), Condition(of="Tyr", below=10)
    both = rules_of(high, low)
    for phe, tyr, answer in ((160, 90, POSITIVE), (50, 90, NEGATIVE), (50, NAN, OPEN), (160, NAN, POSITIVE)):
        assert says(both, "PKU", Phe=phe, Tyr=tyr) == answer


def test_above_and_below_together_are_a_range() -> None:
    between = rules_of(Condition(of="Phe", above=10, below=20))
    assert [says(between, "PKU", Phe=v) for v in (10, 15, 20, NAN)] == [NEGATIVE, POSITIVE, NEGATIVE, OPEN]


def test_what_is_told_shows_every_value_limit_and_answer() -> None:
    x_A = row(Cit=70.25, Orn=float("nan"), Arg=4)
    assert told(HEIDELBERG.rules[3], DICTIONARY, x_A) == [
        "all of 2: yes",
        "  Cit 70.25 umol/L, asked above 65 umol/L: yes",
        "  any of 2: yes",
        "    Orn/Cit missing, asked below 1.5",
        "    Cit/Arg 17.56, asked above 15: yes",
    ]
    assert told(HEIDELBERG.rules[5], DICTIONARY, row(Gly=float("nan"))) == ["Gly missing, asked above 2000 umol/L"]
    between = Rule(disease="x", when=Condition(of="Phe", above=10, below=20), source="s")
    assert told(between, DICTIONARY, row(Phe=25)) == ["Phe 25 umol/L, asked above 10 and below 20 umol/L: no"]


def test_no_row_gives_no_verdict() -> None:
    said_NR = verdicts(HEIDELBERG, DICTIONARY, np.empty((0, len(NAMES))))
    assert said_NR.shape == (0, 10) and by_disease(HEIDELBERG, BOOKS.panel, said_NR).shape == (0, 18)


# --- against a reference: Kleene's logic, a value at a time

MINI = Dictionary.model_validate(
    {
        "name": "mini", "title": "t", "ratios": [], "columns": [],
        "analytes": [
            {"name": n, "title": n, "low": 1e-9, "high": 1e9, "typical": 1.0, "source": "assumed, for a test"} for n in "abcd"
        ],
    }
)  # fmt: skip
VALUES = st.sampled_from([0.0, 0.5, 1.0, 1.5, 2.0, 4.0, NAN, math.inf, 1e-320, 1e308])
LIMITS = st.sampled_from([0.0, 0.5, 1.0, 1.5, 2.0, 3.0])
LEAVES = st.builds(
    lambda of, above, below, which: Condition(of=of, above=above if which != 1 else None, below=below if which != 0 else None),
    st.sampled_from(["a", "b", "a/b", "c/d", "a+b", "a+b/c", "d/b+c"]), LIMITS, LIMITS, st.integers(0, 2),
)  # fmt: skip
TREES = st.recursive(
    LEAVES,
    lambda inner: st.builds(
        lambda kind, parts: Condition.model_validate({kind: parts}),
        st.sampled_from(["all", "any"]),
        st.lists(inner, min_size=1, max_size=3),
    ),
    max_leaves=8,
)


def kleene(condition: Condition, x: dict[str, float]) -> bool | None:
    """True, False, or None where nobody can say."""
    if condition.of is not None:
        sums = [sum(x[n] for n in side.split("+")) for side in condition.of.split("/")]
        if len(sums) == 2 and not sums[1] > 0:
            return None
        value = sums[0] / sums[1] if len(sums) == 2 else sums[0]
        if not math.isfinite(value):
            return None
        return (condition.above is None or value > condition.above) and (condition.below is None or value < condition.below)
    said = [kleene(part, x) for part in condition.all or condition.any or []]
    settles = condition.any is not None  # one True settles any, one False settles all
    if settles in said:
        return settles
    return None if None in said else not settles


@given(tree=TREES, rows=st.lists(st.tuples(VALUES, VALUES, VALUES, VALUES), min_size=1, max_size=5))
def test_the_engine_is_kleenes_logic(tree: Condition, rows: list[tuple[float, ...]]) -> None:
    expected = [{True: POSITIVE, False: NEGATIVE, None: OPEN}[kleene(tree, dict(zip("abcd", r, strict=True)))] for r in rows]
    assert verdicts(rules_of(tree), MINI, np.array(rows))[:, 0].tolist() == expected
    for r, answer in zip(rows, expected, strict=True):  # what is told agrees with what is said
        first, *more = told(rules_of(tree).rules[0], MINI, np.array(r))
        if more:
            assert first.endswith({POSITIVE: ": yes", NEGATIVE: ": no", OPEN: ": cannot be said"}[answer])


@given(tree=TREES, values=st.tuples(VALUES, VALUES, VALUES, VALUES), found=st.tuples(VALUES, VALUES, VALUES, VALUES))
def test_what_is_said_with_values_missing_stays_when_they_are_found(
    tree: Condition, values: tuple[float, ...], found: tuple[float, ...]
) -> None:
    filled = [f if math.isnan(v) else v for v, f in zip(values, found, strict=True)]
    before, after = verdicts(rules_of(tree), MINI, np.array([values, filled]))[:, 0]
    assert before in (OPEN, after)


def test_rows_are_read_alike_alone_and_among_many() -> None:
    rng = np.random.default_rng(7)
    x_NA = rng.lognormal(0, 0.8, (40_000, len(NAMES))) * [a.typical for a in DICTIONARY.analytes]
    x_NA[rng.random(x_NA.shape) < 0.05] = np.nan
    whole_NR = verdicts(HEIDELBERG, DICTIONARY, x_NA)
    assert set(np.unique(whole_NR)) == {POSITIVE, NEGATIVE, OPEN}
    pick = rng.choice(len(x_NA), 200, replace=False)
    assert np.array_equal(np.concatenate([verdicts(HEIDELBERG, DICTIONARY, x_NA[i : i + 1]) for i in pick]), whole_NR[pick])
    assert np.array_equal(verdicts(HEIDELBERG, DICTIONARY, np.asfortranarray(x_NA)), whole_NR)


@pytest.mark.slow
def test_a_million_rows_take_a_few_seconds() -> None:
    x_NA = np.random.default_rng(1).lognormal(0, 0.5, (1_000_000, len(NAMES))) * [a.typical for a in DICTIONARY.analytes]
    start = time.perf_counter()
    for rules in BOOKS.rules:
        by_disease(rules, BOOKS.panel, verdicts(rules, DICTIONARY, x_NA))
    assert time.perf_counter() - start < 10  # some 0.5 s on a quiet core
