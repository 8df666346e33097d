"""The shipped facts: that they are the published ones, that each number has its source, and that they fit together."""

from __future__ import annotations

import csv
import math
import os
import re
from pathlib import Path
from statistics import NormalDist

import pytest

from hpcai.book import shelf
from hpcai.book.rules import Condition, Rules
from hpcai.config.schema import Screening

SHARED = Path(os.environ.get("HPCAI_DATA", str(Path(__file__).parents[2] / "shared" / "data"))) / "nbs_reference"
BOOKS = shelf.books(Screening(rules=["heidelberg2003", "california", "california_low"]))


def published(name: str) -> list[dict[str, str]]:
    """The rows of a file of published numbers."""
    file = SHARED / name
    if not file.is_file():
        pytest.skip(f"no {name}: the published numbers lie in nbs_reference of HPCAI_DATA or ../shared/data")
    with file.open(encoding="utf-8", newline="") as f:
        return list(csv.DictReader(f))


def said(rules: Rules, disease: str) -> set[tuple[str, str, float]]:
    """The comparisons of a disease's rules: quantity, > or <, limit."""
    found = [leaf for rule in rules.rules if rule.disease == disease for leaf in shelf.leaves(rule.when)]
    return {(f.of or "", "<" if f.above is None else ">", f.below if f.above is None else f.above) for f in found}


def test_the_panel_is_the_swedish_table_with_its_true_positives_per_million() -> None:
    rows = published("sweden_1M_recalls_PMC7423009.csv")
    assert BOOKS.panel.names == [row["disease"] for row in rows]
    for disease, row in zip(BOOKS.panel.diseases, rows, strict=True):
        assert disease.incidence == pytest.approx(int(row["true_positive"]) / 1e6, rel=1e-12), disease.name
        assert "assumed complete" in disease.incidence_source


def test_heidelberg_says_each_published_cut_off_and_no_other() -> None:
    names = {"Tyrosinemia I": "TYR1", "Citrullinemia": "CIT", "ASLD": "ASA", "Homocystinuria": "HCY", "LCHAD/MTP": "LCHAD"}
    rows = published("cutoffs_schulze2003_heidelberg.csv")
    for row in rows:
        text = f"{row['cutoff_umol_L']}; {row['cutoff_ratio']}"
        numbers = {(of, sign, float(limit)) for of, sign, limit in re.findall(r"([A-Z][\w:+/]*)([<>])([\d.]+)", text)}
        disease = names.get(row["disorder"], row["disorder"])
        ours = said(BOOKS.rules[0], disease)
        # the table asks for a positive succinylacetone without a number: ours has another source, which the rule cites
        assert ours - numbers == ({("SUAC", ">", 2.0)} if disease == "TYR1" else set()), disease
        assert numbers <= ours, disease
    assert {names.get(row["disorder"], row["disorder"]) for row in rows} == {r.disease for r in BOOKS.rules[0].rules}


def test_california_says_each_sourced_limit_and_none_of_those_without_a_source() -> None:
    rows = [row for row in published("limits.csv") if row["source"].startswith("UCSF")]
    limits = {(row["analyte"], ">", float(row["high"])) for row in rows}
    limits |= {(row["analyte"], "<", float(row["low"])) for row in rows if float(row["low"]) > 0}
    ours = {leaf for rules in BOOKS.rules[1:] for rule in rules.rules for leaf in said(rules, rule.disease)}
    assert ours - limits == {("C0/C16+C18", ">", 100.0)}  # the same page; the table of limits has no ratios
    # a high acetylcarnitine points to no disease
    assert limits - ours == {("C2", ">", 85.0)}


def test_typical_values_that_have_a_source_are_the_published_medians() -> None:
    typical = {a.name: a for a in BOOKS.dictionary.analytes}
    for row in published("lognormal_from_clir_zscores.csv"):
        a = typical[row["analyte"]]
        assert a.typical == pytest.approx(float(row["median_umol_L"]), rel=0.01), a.name
        assert "doi 10.1007/8904_2017_45" in a.source


def test_every_number_names_its_source_or_is_called_assumed() -> None:
    texts = [a.source for a in BOOKS.dictionary.analytes] + [r.source for r in BOOKS.dictionary.ratios]
    texts += [c.source for c in BOOKS.dictionary.columns if c.low is not None or c.typical is not None]
    texts += [r.source for r in BOOKS.specimen.rules] + [r.source for rules in BOOKS.rules for r in rules.rules]
    texts += [t for d in BOOKS.panel.diseases for t in (d.time_source, d.second_tier_source, d.incidence_source)]
    texts += [BOOKS.panel.day_source, BOOKS.policy.source, *(rules.source for rules in BOOKS.rules)]
    vague = [
        t
        for t in texts
        if not re.search(r"assumed|doi 10\.\d{4}|LOINC \d|PMC\d|\(\d{4}\)|et al\. \d{4}|Department|Mayo|Maryland|Arizona", t)
    ]
    assert vague == []


def luhn(digits: str) -> int:
    """The check digit that LOINC appends: from the right, every other digit is doubled."""
    doubled = [int(c) * (2 if i % 2 == 0 else 1) for i, c in enumerate(reversed(digits))]
    return -sum(n // 10 + n % 10 for n in doubled) % 10


def test_loinc_codes_carry_their_check_digit_and_stand_once() -> None:
    assert luhn("12345") == 5  # 1 + 4 + 6 + 2 + 2 = 15
    codes = [a.loinc for a in BOOKS.dictionary.analytes if a.loinc]
    assert len(codes) == len(set(codes)) == len(BOOKS.dictionary.analytes)
    for code in [*codes, *re.findall(r"LOINC (\d+-\d)", " ".join(r.source for r in BOOKS.dictionary.ratios))]:
        number, check = code.split("-")
        assert luhn(number) == int(check), code


def test_required_is_what_a_disease_needs_but_for_succinylacetone() -> None:
    needed = {name for d in BOOKS.panel.diseases for name in d.needs}
    assert {a.name for a in BOOKS.dictionary.analytes if a.required} == needed - {"SUAC"}


def test_a_value_at_any_cut_off_is_plausible() -> None:
    ranges = {a.name: (a.detection, a.high) for a in BOOKS.dictionary.analytes} | {"Leu+Ile": (1.0, 5000.0)}
    for rules in BOOKS.rules:
        for rule in rules.rules:
            for of, _, limit in said(rules, rule.disease):
                low, high = ranges.get(of, (0.0, float("inf")))
                assert low < limit < high, of


def test_diseases_without_a_rule_that_counts_are_named_in_the_policy() -> None:
    counted = {rule.disease for rules in BOOKS.rules if rules.name in BOOKS.policy.rule_sets for rule in rules.rules}
    silent = set(BOOKS.panel.names) - counted
    assert silent == {"ARG", "CACT/CPT2", "CUD"}
    head = shelf.file_of("policy", "default").read_text("utf-8").partition("name:")[0]
    assert all(name in head for name in silent)
    assert len({rule.disease for rule in BOOKS.rules[0].rules} & set(BOOKS.panel.names)) == 9 and "for nine" in head
    assert len(counted & set(BOOKS.panel.names)) == 15 and "for six more" in head


def test_the_lower_limit_of_carnitine_lies_within_the_healthy() -> None:
    """What the file says of itself: (ln 22.802 - ln 12) / 0.344 = 1.87, and 3 % of a normal law lie beyond."""
    assert (math.log(22.802) - math.log(12)) / 0.344 == pytest.approx(1.87, abs=0.005)
    assert NormalDist().cdf(-1.87) == pytest.approx(0.03, abs=0.001)
    assert "california_low" not in BOOKS.policy.rule_sets


def test_the_three_naming_schemes_find_their_columns() -> None:
    from hpcai.book.analytes import squeezed

    known = {squeezed(word) for a in BOOKS.dictionary.analytes for word in [a.name, *a.synonyms]}
    preterm = [row["analyte"] for row in published("preterm_mean_sd_california.csv")]
    assert [name for name in preterm if squeezed(name) not in known] == ["C121", "C182"]  # not in the dictionary at all


def test_a_condition_is_one_of_of_all_any() -> None:
    leaf = {"of": "Phe", "above": 1.0}
    for wrong in ({}, {"of": "Phe"}, {"above": 1.0}, {"all": [leaf], "any": [leaf]}, {**leaf, "all": [leaf]}, {"all": []}):
        with pytest.raises(ValueError):
            Condition.model_validate(wrong)
