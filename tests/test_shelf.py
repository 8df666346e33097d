"""The shelf: names and paths find their files, wrong files are told key by key, contradictions between files are refused."""

from __future__ import annotations

import copy
import functools
import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hpcai.book import shelf
from hpcai.book.analytes import Dictionary
from hpcai.book.diseases import Diseases
from hpcai.book.policy import Policy
from hpcai.book.rules import Rules, quantity
from hpcai.book.specimen import SpecimenRules
from hpcai.config.schema import Screening
from hpcai.errors import ConfigError, Faults, HpcaiError

SHIPPED = {
    "analytes": ("nbs_msms", Dictionary), "diseases": ("nbs", Diseases), "rules": ("heidelberg2003", Rules),
    "specimen": ("specimen", SpecimenRules), "policy": ("default", Policy),
}  # fmt: skip


def plain(kind: str) -> dict[str, Any]:
    """What a shipped file says, to be changed."""
    return copy.deepcopy(_read(kind))


@functools.cache
def _read(kind: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(shelf.file_of(kind, SHIPPED[kind][0]).read_text("utf-8"))
    return found


def own(tmp_path: Path, kind: str, values: dict[str, Any]) -> str:
    """A laboratory's own file of that kind."""
    file = tmp_path / f"my_{kind}.yaml"
    file.write_text(yaml.safe_dump(values, allow_unicode=True), "utf-8")
    return str(file)


def config(tmp_path: Path, **changed: dict[str, Any]) -> Screening:
    """A config whose file of a kind says something else."""
    names: dict[str, Any] = {kind: own(tmp_path, kind, values) for kind, values in changed.items()}
    if "rules" in names:
        names["rules"] = [names["rules"], "california"]
    return Screening(**names)


def lines(error: pytest.ExceptionInfo[HpcaiError]) -> list[str]:
    """The faults, and that they exit 2."""
    assert error.value.code == 2
    return error.value.lines


def test_names_and_paths_find_their_files(tmp_path: Path) -> None:
    assert shelf.file_of("specimen", "specimen").parent == shelf.file_of("rules", "california").parent
    path = own(tmp_path, "diseases", plain("diseases"))
    assert shelf.panel(path) == shelf.panel("nbs")
    assert shelf.file_of("rules", "mine.yaml") == Path("mine.yaml")


@pytest.mark.parametrize(
    ("kind", "name", "words"),
    [
        ("rules", "heidelberg", "rules=heidelberg: no such file is shipped. Did you mean heidelberg2003?"),
        ("rules", "specimen", "rules=specimen: no such file is shipped. Known: california, california_low, heidelberg2003."),
        ("policy", "../policy/default", "policy=../policy/default: a file of facts is called NAME.yaml."),
        ("diseases", "", "diseases=: no such file is shipped."),
        ("diseases", "a\nb", "diseases=a?b: no such file is shipped."),
    ],
)
def test_a_wrong_name_tells_the_near_one(kind: str, name: str, words: str) -> None:
    with pytest.raises(ConfigError) as error:
        shelf.file_of(kind, name)
    assert lines(error)[0].startswith(words)


def test_a_digest_is_of_what_is_said_not_of_how_it_is_laid_out(tmp_path: Path) -> None:
    values = plain("rules")
    values["rules"][1]["when"]["all"][0]["above"] = 200.0  # 200 in the file
    assert shelf.digest(shelf.rules(own(tmp_path, "rules", values))) == shelf.digest(shelf.rules("heidelberg2003"))
    values["rules"][1]["when"]["all"][0]["above"] = 201
    assert shelf.digest(shelf.rules(own(tmp_path, "rules", values))) != shelf.digest(shelf.rules("heidelberg2003"))
    named = shelf.books(Screening()).digests()
    assert [*named] == ["analytes", "diseases", "rules.heidelberg2003", "rules.california", "specimen", "policy"]
    assert len(set(named.values())) == 6 and all(len(d) == 64 for d in named.values())


def test_every_fault_of_every_file_is_told_at_once(tmp_path: Path) -> None:
    analytes, diseases, specimen = plain("analytes"), plain("diseases"), plain("specimen")
    analytes["analytes"][0]["low"] = -1
    analytes["analytes"][1]["hight"] = 3
    del diseases["diseases"][2]["needs"]
    diseases["diseases"][3]["incidence"] = True
    specimen["rules"][0]["is_"] = True
    with pytest.raises(HpcaiError) as error:
        shelf.books(config(tmp_path, analytes=analytes, diseases=diseases, specimen=specimen))
    assert lines(error) == [
        "my_analytes.yaml: analytes.0.low: must be greater than 0. Give a larger value.",
        "my_analytes.yaml: analytes.1.hight: unknown. Did you mean high?",
        "my_diseases.yaml: diseases.2.needs: required. Write it.",
        "my_diseases.yaml: diseases.3.incidence: must be a number. Correct it.",
        "my_specimen.yaml: rules.0.is_: unknown. Did you mean is?",
    ]


def test_a_rule_that_is_neither_comparison_nor_group_is_refused(tmp_path: Path) -> None:
    values = plain("rules")
    values["rules"][0]["when"]["all"][1] = {"of": "Phe/Tyr", "all": [{"of": "Phe", "above": 1}]}
    values["rules"][1]["when"] = {"any": [{"of": "Tyr", "abov": 1}]}
    with pytest.raises(Faults) as error:
        shelf.rules(own(tmp_path, "rules", values))
    assert lines(error) == [
        "my_rules.yaml: rules.0.when.all.1: give one of: of, all, any",
        "my_rules.yaml: rules.1.when.any.0.abov: unknown. Did you mean above?",
    ]


def test_a_dictionary_whose_columns_cannot_be_told_apart_is_refused(tmp_path: Path) -> None:
    values = plain("analytes")
    by_name = {a["name"]: a for a in values["analytes"]}
    by_name["C3"]["synonyms"] = ["C 4"]  # spaces do not count: C4's name
    by_name["C5"]["synonyms"] = ["AGE_H"]
    by_name["Phe"]["typical"] = 9000
    by_name["Pro"]["name"] = "Pro/line"
    values["analytes"].append({**by_name["Tyr"], "synonyms": []})
    values["ratios"] += [{"top": "Phe", "bottom": "Tyr", "source": "s"}, {"top": "C3", "bottom": "C33", "source": "s"}]
    values["ratios"] += [{"top": "C2", "bottom": "C2", "source": "s"}]
    values["columns"][0]["low"] = 3
    values["columns"][2]["name"] = "tray"
    values["columns"][9] |= {"kind": "yes_no", "low": None, "high": None, "typical": None}
    with pytest.raises(Faults) as error:
        shelf.dictionary(own(tmp_path, "analytes", values))
    assert lines(error) == [
        "my_analytes.yaml: C4: C4 is a name of C3 too. Keep it once.",
        "my_analytes.yaml: age_h: age_h is a name of C5 too. Keep it once.",
        "my_analytes.yaml: Tyr: 2 columns of this name. Keep one.",
        "my_analytes.yaml: Phe: low, detection <= typical <= high does not hold. Correct it.",
        "my_analytes.yaml: Pro/line: a name holds no / and no +, which rules read as a ratio and a sum. Make it a synonym.",
        "my_analytes.yaml: ratios: C3/C33: C33 is no analyte. Did you mean C3?",
        "my_analytes.yaml: ratios: C2/C2: is always 1. Delete it.",
        "my_analytes.yaml: ratios: Phe/Tyr: 2 ratios of this name. Keep one.",
        "my_analytes.yaml: columns: plate: required. Add it, as in nbs_msms.",
        "my_analytes.yaml: sample: kind=text: low, high and typical are a number's. Leave them out.",
        "my_analytes.yaml: age_h: kind=yes_no: must be number. Correct it, or call the column otherwise.",
    ]


def test_books_that_contradict_each_other_are_refused_with_the_near_name(tmp_path: Path) -> None:
    diseases, rules, specimen, policy = plain("diseases"), plain("rules"), plain("specimen"), plain("policy")
    diseases["diseases"][2]["markers"] = ["Phe/Tyrr"]
    diseases["diseases"][2]["needs"] = ["phe"]
    diseases["diseases"].append(diseases["diseases"][1])
    rules["rules"][0]["when"] = {"of": "Phe/Tyr/Leu", "above": 1}
    rules["rules"][1]["when"] = {"of": "C16+C18:11", "above": 5, "below": 5}
    rules["rules"][3]["disease"] = "cit"
    rules["name"] = "california"
    specimen["rules"][0] = {**specimen["rules"][0], "column": "punch_qality", "diseases": ["MCADD"]}
    policy["model_may_soften"] = ["NKH"]
    with pytest.raises(Faults) as error:
        shelf.books(config(tmp_path, diseases=diseases, rules=rules, specimen=specimen, policy=policy))
    known = ", ".join(sorted(d["name"] for d in diseases["diseases"]))
    assert lines(error) == [
        "my_diseases.yaml: MSUD: 2 diseases of this name. Keep one.",
        "my_diseases.yaml: PKU: markers: Phe/Tyrr: not in the dictionary. Did you mean Phe/Tyr?",
        "my_diseases.yaml: PKU: needs: phe: not in the dictionary. Did you mean Phe?",
        "my_rules.yaml: PKU: of=Phe/Tyr/Leu: more than one ratio. Write top/bottom.",
        "my_rules.yaml: TYR1: of=C16+C18:11: C18:11 is no analyte. Did you mean C18:1?",
        "my_rules.yaml: TYR1: C16+C18:11: no value is above 5 and below 5.",
        "my_rules.yaml: cit: the panel spells it CIT. Spell it so.",
        "screening.rules: california: 2 sets of this name. Keep one.",
        "my_specimen.yaml: rules.0: diseases: MCADD: not in the panel. Did you mean MCAD?",
        "my_specimen.yaml: rules.0: column=punch_qality: not in the dictionary. Did you mean punch_quality?",
        "my_policy.yaml: rule_sets: heidelberg2003: not among screening.rules. Known: california, california.",
        f"my_policy.yaml: model_may_soften: NKH: not in the panel. Known: {known}.",
    ]


def test_a_specimen_rule_asks_what_its_column_can_answer(tmp_path: Path) -> None:
    base = {"effect": "repeat", "reason": "r", "source": "assumed, for a test"}
    rules = [
        {**base, "column": "laboratory", "is": True},
        {**base, "column": "transfused", "above": 1},
        {**base, "column": "age_h", "is": True},
        {**base, "column": "age_h"},
        {**base, "column": "age_h", "below": 24, "unknown": True},
    ]
    with pytest.raises(Faults) as error:
        shelf.books(config(tmp_path, specimen={**plain("specimen"), "rules": rules}))
    assert [line.removeprefix("my_specimen.yaml: ") for line in lines(error)] == [
        "rules.0: column=laboratory: is text. Name a number or a yes_no column.",
        "rules.1: column=transfused: is yes_no, and above and below are for numbers. Write is: true or is: false.",
        "rules.2: column=age_h: is a number, and is: is for yes_no columns. Write above or below.",
        "rules.3: column=age_h: give one of: above or below, is, unknown.",
        "rules.4: column=age_h: give one of: above or below, is, unknown.",
    ]


def test_a_rule_for_a_disease_outside_the_panel_is_kept() -> None:
    made = shelf.books(Screening())
    assert "NKH" in [r.disease for r in made.rules[0].rules] and "NKH" not in made.panel.names


def test_a_quantity_is_an_analyte_a_ratio_a_sum_or_a_ratio_of_sums() -> None:
    book = shelf.dictionary("nbs_msms")
    place = {a.name: i for i, a in enumerate(book.analytes)}
    assert quantity("Leu+Ile", book) == ([place["Leu"]], [])  # a synonym, not a sum
    assert quantity(" xle ", book) == ([place["Leu"]], [])
    assert quantity("Leu/Ile", book) == ([place["Leu"]], [])  # a synonym too
    assert quantity("Met/Leu+Ile", book) == ([place["Met"]], [place["Leu"]])
    assert quantity("C16+C18:1/C2", book) == ([place["C16"], place["C18:1"]], [place["C2"]])
    assert quantity("C0/C16+C18", book) == ([place["C0"]], [place["C16"], place["C18"]])


@pytest.mark.parametrize(
    "text",
    [
        "name: &a [*a]",
        "name: !!python/object/apply:os.system [ls]",
        "_target_: os.system",
        "name: ${oc.env:HOME}",
        "- 1",
        "{",
        "a: 1\na: 2",
    ],
)
def test_a_file_that_could_do_something_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.yaml").write_text(text, "utf-8")
    with pytest.raises(HpcaiError) as error:
        shelf.rules(str(tmp_path / "x.yaml"))
    assert lines(error)[0].startswith("x.yaml: ")


def test_a_file_that_is_none_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo.yaml")
    (tmp_path / "round.yaml").symlink_to("round.yaml")
    (tmp_path / "folder.yaml").mkdir()
    for name in ("fifo.yaml", "round.yaml", "folder.yaml", "none.yaml", "a\0b.yaml"):
        with pytest.raises(HpcaiError) as error:
            shelf.rules(f"{tmp_path}/{name}")
        assert lines(error)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(data=st.data())
def test_any_change_of_a_file_gives_a_book_or_faults(tmp_path: Path, data: st.DataObject) -> None:
    """A value anywhere becomes another, or a key goes: books come of it, or lines that exit 2; never another exception."""
    kind = data.draw(st.sampled_from(sorted(SHIPPED)))
    values = plain(kind)
    place: Any = values
    while isinstance(place, (dict, list)) and place:
        key = data.draw(st.sampled_from(sorted(place) if isinstance(place, dict) else list(range(len(place)))))
        if not isinstance(place[key], (dict, list)) or not place[key] or data.draw(st.integers(0, 4)) == 0:
            scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
            place[key] = data.draw(
                scalars | st.lists(scalars, max_size=3) | st.dictionaries(st.text(max_size=5), scalars, max_size=3)
            )
            break
        place = place[key]
    try:
        made = shelf.books(config(tmp_path, **{kind: values}))
    except HpcaiError as e:
        assert e.code == 2 and all(line.isprintable() and len(line) <= 700 for line in e.lines)
    else:
        assert len(made.digests()) == 6


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150)
@given(content=st.binary(max_size=200))
def test_any_bytes_are_a_book_or_a_fault(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.yaml").write_bytes(content)
    with pytest.raises(HpcaiError) as error:
        shelf.policy(str(tmp_path / "x.yaml"))
    assert lines(error)
