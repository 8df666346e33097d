"""The state of a specimen: what each rule does to which disease, and that the worst effect counts."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcai.book import shelf
from hpcai.book.specimen import SpecimenRules
from hpcai.config.schema import Screening
from hpcai.screening.batch import Batch
from hpcai.screening.specimen import EFFECTS, NOT_ASSESSABLE, REPEAT, VALID, Reason, effects, reasons

BOOKS = shelf.books(Screening())
PANEL, RULES = BOOKS.panel, BOOKS.specimen
NAN = math.nan
WELL = {
    "age_h": 50.0, "gestation_weeks": 39.0, "weight_g": 3400.0, "transfused": 0.0, "parenteral_nutrition": 0.0,
    "carnitine": 0.0, "antibiotic": 0.0, "sample_number": 1.0, "punch_quality": 1.0,
}  # fmt: skip


def batch(*rows: dict[str, float]) -> Batch:
    """Newborns that are well but for these columns; a column that no row names is there too."""
    full = [WELL | row for row in rows]
    number = {name: np.array([row[name] for row in full]) for name in WELL}
    return Batch(np.arange(2, 2 + len(rows)), np.array([f"s{i}" for i in range(len(rows))]), np.empty((len(rows), 0)), number)


def codes(**changed: float) -> dict[str, int]:
    """Disease -> code of one specimen, those that are not VALID."""
    found = effects(RULES, PANEL, batch(changed)).code_ND[0]
    return {name: int(code) for name, code in zip(PANEL.names, found, strict=True) if code != VALID}


def test_a_usual_specimen_is_valid_for_all() -> None:
    found = effects(RULES, PANEL, batch({}))
    assert not found.holds_NS.any() and codes() == {}
    assert found.code_ND.shape == (1, 18) and found.code_ND.dtype == np.int8


@pytest.mark.parametrize(
    ("changed", "code"),
    [
        ({"age_h": 23.9}, REPEAT), ({"age_h": 24.0}, VALID), ({"age_h": NAN}, VALID), ({"gestation_weeks": 33.0}, REPEAT),
        ({"weight_g": 1799.0}, REPEAT), ({"weight_g": 1800.0}, VALID), ({"transfused": 1.0}, REPEAT),
        ({"transfused": NAN}, VALID), ({"punch_quality": 0.0}, NOT_ASSESSABLE),
    ],
)  # fmt: skip
def test_what_touches_every_disease(changed: dict[str, float], code: int) -> None:
    assert codes(**changed) == (dict.fromkeys(PANEL.names, code) if code != VALID else {})


def test_what_touches_some_diseases() -> None:
    assert codes(carnitine=1.0) == {"CUD": NOT_ASSESSABLE}
    assert codes(parenteral_nutrition=1.0) == dict.fromkeys(["HCY", "MSUD", "PKU", "ARG", "ASA", "CIT"], REPEAT)
    assert codes(age_h=200.0) == dict.fromkeys(["CACT/CPT2", "MAD", "VLCAD"], REPEAT)
    assert codes(antibiotic=1.0) == {}  # only noted


def test_the_worst_effect_counts_and_every_reason_is_told_the_worst_first() -> None:
    assert codes(carnitine=1.0, age_h=10.0) == dict.fromkeys(PANEL.names, REPEAT) | {"CUD": NOT_ASSESSABLE}
    found = effects(RULES, PANEL, batch({}, {"carnitine": 1.0, "age_h": 10.0}))
    told = reasons(RULES, PANEL, found, 1)
    assert [r.effect for r in told] == ["not_assessable", "repeat", "valid"]
    assert told[0] == Reason(
        "not_assessable",
        "carnitine given before sampling can hide an uptake defect",
        "7 days after carnitine has ended",
        ("CUD",),
    )
    assert told[1].diseases == tuple(PANEL.names) and told[1].repeat_when == "at 24 to 48 h of age"
    assert reasons(RULES, PANEL, found, 0) == []


def test_a_column_that_the_table_does_not_have_is_unknown_in_every_row() -> None:
    bare = Batch(np.arange(2, 5), np.array(["a", "b", "c"]), np.empty((3, 0)))
    found = effects(RULES, PANEL, bare)
    unknown = [rule.unknown for rule in RULES.rules]
    assert sum(unknown) == 1
    assert found.holds_NS.tolist() == [unknown] * 3 and not found.code_ND.any()


def test_no_row_has_no_effect() -> None:
    found = effects(RULES, PANEL, batch())
    assert found.code_ND.shape == (0, 18) and found.holds_NS.shape == (0, len(RULES.rules))


@given(
    rows=st.lists(
        st.fixed_dictionaries({n: st.sampled_from([NAN, 0.0, 1.0, 24.0, 1800.0, 1e6]) for n in WELL}), min_size=1, max_size=4
    ),
    order=st.permutations(range(len(RULES.rules))),
)
def test_the_order_of_rules_does_not_matter_and_each_row_stands_alone(rows: list[dict[str, float]], order: list[int]) -> None:
    found = effects(RULES, PANEL, batch(*rows))
    turned = SpecimenRules(name="t", title="t", rules=[RULES.rules[i] for i in order])
    assert np.array_equal(effects(turned, PANEL, batch(*rows)).code_ND, found.code_ND)
    for i, row in enumerate(rows):
        assert np.array_equal(effects(RULES, PANEL, batch(row)).code_ND[0], found.code_ND[i])
        told = reasons(RULES, PANEL, found, i)  # the codes are those of the reasons
        for name, code in zip(PANEL.names, found.code_ND[i], strict=True):
            assert code == max((EFFECTS.index(r.effect) for r in told if name in r.diseases), default=VALID)
