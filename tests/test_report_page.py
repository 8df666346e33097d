"""The page of a report, block by block: what it draws of the numbers, and that every text of a user's stays text."""

from __future__ import annotations

import html
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from report_blocks import blocks, estimate, shift, shortcut
from report_runs import make_run
from report_schema import SCHEMA, check_report, faults
from test_report import HOSTILE, report_of, text_of
from test_report_together import gathered, together
from test_report_used import USED, ran

from hpcai import rundir
from hpcai.config.schema import Study
from hpcai.report import page as page_module
from hpcai.report import summary, write_report
from hpcai.report.checklists import checklists
from hpcai.report.figures import precision_recall
from hpcai.report.folder import read_folder
from hpcai.report.page import STUDY, render
from hpcai.report.tables import characteristics, numbers
from hpcai.report.words import chance, decimal, figure, named
from hpcai.rundir import RunDir
from hpcai.seal import seal_of

STATED = {name: f"What is stated of {name}." for name in Study.model_fields}
LONG, RTL, EMOJI = "W" * 400, "\u05e9\u05dc\u05d5\u05dd \u202e x", "\U0001fac1\U0001f469\u200d\u2695"


@pytest.fixture
def measure(monkeypatch: pytest.MonkeyPatch) -> Any:
    """measure(blocks): what is measured from now on."""

    def give(told: dict[str, Any]) -> None:
        monkeypatch.setattr(summary, "measured", lambda folder: told)

    return give


@pytest.fixture
def full(tmp_path: Path, measure: Any) -> RunDir:
    measure(blocks(0.1))
    run = make_run(tmp_path / "full", study=STATED, report={"prevalence": 0.1})
    write_report(run)
    return run


# --- report.json and its schema


@pytest.mark.parametrize("job", ["train", "evaluate", "predict"])
@pytest.mark.parametrize("labels", [("a", "b"), ("a", "b", "c")])
def test_the_report_of_each_job_is_as_its_schema_says(tmp_path: Path, job: str, labels: tuple[str, ...]) -> None:
    run = make_run(tmp_path, job=job, labels=labels, cases_a_patient=2)
    write_report(run)
    check_report(run)


def test_what_several_runs_leave_is_as_the_schema_says(tmp_path: Path) -> None:
    ensemble = make_run(tmp_path / "e", job="evaluate", from_run=["/a-1", "/b-2"])
    together(ensemble, ["a-1", "b-2"])
    bare = RunDir(tmp_path / "bare")
    rundir.write_bytes(bare.config, b"name: bare\n")
    for run in (ensemble, gathered(tmp_path / "g"), ran(tmp_path / "u", USED), bare):
        write_report(run)
        check_report(run)


def test_all_blocks_are_as_the_schema_says_and_it_is_strict(full: RunDir) -> None:
    report = check_report(full)
    assert set(SCHEMA["required"]) <= set(report) <= set(SCHEMA["properties"])
    for wrong in (
        report | {"version": 1},
        report | {"more": 1},
        report | {"estimates": [estimate("auc", "test", more=1)]},
        report | {"estimates": [estimate("auc", "test", value="0.9")]},
        report | {"shift": shift() | {"verdict": "fine"}},
        {k: v for k, v in report.items() if k != "warnings"},
    ):
        assert len(faults(wrong)) == 1


def test_the_schema_and_the_code_name_the_same_version() -> None:
    assert SCHEMA["properties"]["version"]["const"] == rundir.REPORT_VERSION


# --- what it draws


def shown(page: str) -> dict[str, str]:
    return {k: html.unescape(v) for k, v in re.findall(r'data-key="([^"]*)"[^>]*>([^<]*)<', page)}


def test_every_number_of_every_block_stands_on_the_page(full: RunDir) -> None:
    report, page = check_report(full), full.report_html.read_text("utf-8")
    cells = shown(page)
    for e in report["estimates"]:
        key = f"{e['split']}/{e['name']}"
        assert cells[f"{key}/value"] == figure(e["name"], e["value"])
        assert cells[f"{key}/interval"] == f"{figure(e['name'], e['low'])} to {figure(e['name'], e['high'])}"
        assert cells[f"{key}/n"] == f"{e['n']:,}"
        assert html.escape(e["method"]) in page
    for split, told in report["calibration"].items():
        assert [cells[f"{split}/bin/{k}/rate"] for k in range(10)] == [figure("", b["rate"]) for b in told["bins"]]
    assert cells["subgroup/0/1/auc"] == "0.958 [0.966 to 0.986]" and cells["subgroup/0/2/auc"] == "–"
    assert cells["shortcut/estimate"] == "0.741 [0.700 to 0.779]" and cells["shortcut/difference"] == "+0.237"
    assert cells["shift/prevalence/0/first"] == "74.2\N{NO-BREAK SPACE}%"
    assert (cells["flow/found"], cells["train/cases"], cells["test/cases"]) == ("5,856", "4,708", "624")


def test_the_page_follows_the_order_of_a_study(full: RunDir) -> None:
    page = full.report_html.read_text("utf-8")
    anchors = re.findall(r'<(?:section|header|aside) [^>]*?id="([a-z]+)"', page)
    assert anchors == [
        *("top", "warnings", "flow", "study", "characteristics", "discrimination", "operating", "calibration"),
        *("subgroups", "shortcut", "shift", "learning", "cost", "provenance", "packages", "checklists"),
    ]


def test_what_is_not_measured_has_no_section_and_is_not_said_to_be_answered(tmp_path: Path, measure: Any) -> None:
    measure(blocks() | {"calibration": {}, "subgroups": [], "shortcut": None, "shift": None})
    _, page = report_of(make_run(tmp_path))
    for anchor in ("subgroups", "shortcut", "shift", "mistakes", "study"):
        assert f'id="{anchor}"' not in page and f'href="#{anchor}"' not in page
    assert 'id="calibration"' in page and "bins</summary>" not in page  # its numbers stand there without a curve
    assert set(re.findall(r'href="#(\w+)"', page)) <= set(re.findall(r'id="(\w+)"', page))


def test_an_undefined_number_is_a_dash_whose_footnote_says_why(tmp_path: Path, measure: Any) -> None:
    told = [
        estimate("auc", "test"),
        estimate("lr_positive", "test", value=None, low=None, high=None, method="no call is wrong"),
    ]
    measure(blocks() | {"estimates": told})
    _, page = report_of(make_run(tmp_path, job="evaluate"))
    assert shown(page)["test/lr_positive/value"] == "–" and "no call is wrong" in page


def test_the_flow_tells_what_could_not_be_read(tmp_path: Path) -> None:
    report, page = report_of(make_run(tmp_path, job="predict"))
    assert report["flow"] == {
        "found": 1201, "excluded": [{"why": "could not be read", "n": 1}], "by": None, "scored": {"predict": 1200}
    }  # fmt: skip
    cells = shown(page)
    assert (cells["flow/found"], cells["flow/excluded/0"], cells["predict/cases"]) == ("1,201", "1", "1,200")
    assert "left out: could not be read" in text_of(page)


def test_patients_are_counted_where_they_are_known(tmp_path: Path) -> None:
    _, page = report_of(make_run(tmp_path, job="evaluate", cases_a_patient=3))
    assert shown(page)["test/patients"] == "208"


def test_the_question_is_the_authors_where_they_state_one(tmp_path: Path) -> None:
    report, page = report_of(make_run(tmp_path, study={"question": "Why?", "dates": "2012", "setting": ""}))
    assert report["question"] == "Why?" and report["study"] == {"question": "Why?", "dates": "2012"}
    assert '<p class="question" dir="auto">Why?</p>' in page and "Dates 2012" in text_of(page)


def test_each_key_of_study_has_a_heading_and_is_shown() -> None:
    assert {"question", *STUDY} == set(Study.model_fields)


def test_the_stated_prevalence_is_told(full: RunDir) -> None:
    text = text_of(full.report_html.read_text("utf-8"))
    assert "At the stated prevalence of 10.0 % they follow" in text and "PPV at the stated prevalence" in text


def test_what_was_left_out_before_stands_in_the_flow(tmp_path: Path) -> None:
    labels = ["normal", "pneumonia"]
    run = make_run(tmp_path / "run", data={"labels": labels, "excluded": {"no label": 7, "cannot be read": 2, "twice": 0}})
    report, page = report_of(run)
    kept = sum(split["cases"] for split in report["splits"].values())
    assert report["flow"]["excluded"] == [{"why": "no label", "n": 7}, {"why": "cannot be read", "n": 2}]
    assert report["flow"]["found"] == kept + 9 and "no label" in text_of(page)


def test_mistakes_are_told_by_row_number(full: RunDir) -> None:
    case = {"row": "row 1234", "score": 0.98, "threshold": 0.5}
    told = {"split": "test", "shown": "rows", "false_positive": [case], "false_negative": []}
    page = render(read_folder(full), check_report(full) | {"mistakes": told})
    assert "False positives Row of the data Score Threshold row 1234 0.980 0.500 False negatives None." in text_of(page)
    assert 'href="#mistakes"' in page and "hpcai report --internal" in page


def test_a_seal_and_a_mark_stand_on_each_page(full: RunDir) -> None:
    seal = "ab12" * 16
    page = render(read_folder(full), check_report(full), seal=seal, mark='Internal"; } body { display: none')
    printed = re.search(r"@page \{ @bottom-left.*", page)
    assert printed and f"seal\\20 {seal[:16]}" in printed[0] and "Internal\\22 \\3b \\20 \\7d " in printed[0]
    assert f'<code id="seal">{seal}</code>' in page and page.count("Internal&#34;; } body { display: none") == 2


def test_a_page_of_many_classes_counts_them_in_a_table(tmp_path: Path) -> None:
    labels = tuple("abcdefg")
    report, page = report_of(make_run(tmp_path, job="evaluate", labels=labels))
    told = characteristics(report)
    assert told and [row for row, _ in told["blocks"][0][1]] == list(labels)
    assert "7 classes" in text_of(page) and 'id="characteristics"' in page


def test_a_class_of_its_own_name_keeps_its_row_with_its_measure(tmp_path: Path) -> None:
    report, _ = report_of(make_run(tmp_path, labels=("a", "b", "c")))
    told = numbers(report, "operating")
    assert told and "Sensitivity: c" in [row["title"] for row in told["rows"]]


# --- checklists


def test_the_lists_have_all_their_items_once_and_point_at_what_exists() -> None:
    sections = dict.fromkeys(page_sections(), "x")
    tripod, claim = checklists({"study": {}}, sections)
    assert len(tripod["items"]) == 52 and len({re.sub(r"\D", "", i["id"]) for i in tripod["items"]}) == 27
    assert [i["id"] for i in claim["items"]] == [str(k) for k in range(1, 45)]
    assert len({i["id"] for i in tripod["items"]}) == 52
    import yaml

    from hpcai.report.checklists import FILE

    for told in yaml.safe_load(FILE.read_text("utf-8")):
        for item in told["items"]:
            assert set(item) <= {"id", "title", "here", "study", "says"}
            assert set(item.get("here", [])) <= set(sections) and set(item.get("study", [])) <= set(Study.model_fields)


def page_sections() -> list[str]:
    source = Path(page_module.__file__).read_text("utf-8")
    return re.findall(r'^        "(\w+)": \("', source, flags=re.MULTILINE)


def test_an_item_is_answered_here_by_the_authors_or_not_stated() -> None:
    tripod, _ = checklists({"study": {"dates": "2012"}}, {"flow": "Cases"})
    status = {i["id"]: (i["status"], i["here"], i["stated"], i["ask"]) for i in tripod["items"]}
    assert status["20a"] == ("here", [("flow", "Cases")], [], [])
    assert status["5b"] == ("authors", [], [("dates", "2012")], [])
    assert status["6a"] == ("not_stated", [], [], ["study.setting"])
    assert tripod["here"] + tripod["authors"] + tripod["not_stated"] == 52


def test_the_page_counts_what_the_lists_say(full: RunDir) -> None:
    page = full.report_html.read_text("utf-8")
    for told in checklists(check_report(full), {}):
        table = re.search(rf'data-list="{re.escape(told["name"])}">(.*?)</table>', page, flags=re.S)
        assert table and len(re.findall(r"<tr class=", table[1])) == len(told["items"])
    rows = {name: page.count(f'<tr class="{name}">') for name in ("here", "authors", "not_stated")}
    summed = re.findall(r"(\d+) answered here, (\d+) by the authors, (\d+) not stated", page)
    assert list(rows.values()) == [sum(int(told[k]) for told in summed) for k in range(3)]


# --- hostile texts


@pytest.mark.parametrize(
    "text",
    [HOSTILE, LONG, RTL, EMOJI, "{{ 7 * 7 }}{% raw %}", "</style><script>x"],
    ids=["markup", "long", "rtl", "emoji", "jinja", "end of style"],
)
def test_a_text_of_the_users_stays_text_wherever_it_stands(tmp_path: Path, measure: Any, text: str) -> None:
    told = blocks(columns=(text, text + "2"))
    told["subgroups"][0]["groups"][0]["name"] = text
    told["characteristics"]["columns"][1]["splits"]["val"]["levels"] = {text: 500}
    told["shift"] = shift() | {"sentence": text, "within": [{"class": text, "p": 0.5}]}
    told["shortcut"] = shortcut((text,)) | {"note": text}
    measure(told)
    run = make_run(tmp_path, labels=(text, text + "2"), name=text, study=dict.fromkeys(Study.model_fields, text))
    _, page = report_of(run)
    assert html.unescape(text_of(page)).count(" ".join(text.split())) > 30
    assert "<script" not in page and "alert('x')" not in page
    assert check_report(run)["study"]["dates"] == text


def test_the_bytes_do_not_change_from_one_rendering_to_the_next(full: RunDir) -> None:
    folder, report, sealed = read_folder(full), check_report(full), seal_of(full.manifest.read_bytes())
    again = render(folder, json.loads(json.dumps(report)), seal=sealed)
    assert render(folder, report, seal=sealed) == again == full.report_html.read_text("utf-8")


def test_the_page_with_all_blocks_is_one_light_file(full: RunDir) -> None:
    page = full.report_html.read_text("utf-8")
    assert len(page.encode()) < 400_000
    assert not re.search(r"<script|<link (?!rel=\"icon\" href=\"data:,\")|<img|<iframe|@import|url\((?!#)", page)
    assert not re.search(r"(src|href)=[\"'](?!#|data:)", page) and "http" not in page.split("</style>", 1)[1]


# --- words and curves


def test_precision_and_recall_by_hand() -> None:
    label, score = np.array([True, False, True, False]), np.array([0.9, 0.8, 0.8, 0.1])
    recall, precision = precision_recall(label, score)
    assert recall.tolist() == [0.5, 1.0, 1.0] and precision.tolist() == [1.0, 2 / 3, 0.5]


def test_precision_and_recall_are_those_of_scikit_learn() -> None:
    from sklearn.metrics import precision_recall_curve

    rng = np.random.default_rng(3)
    label, score = rng.random(300) < 0.3, np.round(rng.random(300), 2)
    recall, precision = precision_recall(label, score)
    theirs = precision_recall_curve(label, score)  # from the lowest score up, then a last point at recall 0
    assert np.allclose(precision, theirs[0][:-1][::-1]) and np.allclose(recall, theirs[1][:-1][::-1])


@pytest.mark.parametrize(
    ("x", "text"),
    [
        *((8.607, "8.61"), (-0.412, "−0.41"), (0.0, "0.00"), (-0.0, "0.00"), (None, "–"), (1234.6, "1,235")),
        *((0.00042, "0.0004"), (-0.00042, "−0.0004"), (1e-9, "0.00"), (-150.0, "−150")),
    ],
)
def test_a_number_on_any_scale_does_not_round_to_nothing(x: float | None, text: str) -> None:
    assert decimal(x) == text


def test_words_of_chance_and_measures() -> None:
    assert [chance(p) for p in (0.21, 0.0312, 0.0004, 0.00002, None)] == [
        *("p = 0.21", "p = 0.031", "p = 0.0004", "p < 0.0001", "–")
    ]  # fmt: skip
    assert figure("lr_positive", 8.607) == "8.61" and figure("auc", 0.9996) == "0.9996"
    names = ("balanced_accuracy", "ppv", "average_precision[1]", "lr_negative")
    assert [named({"name": n}, ["a", "b"]) for n in names] == [
        *("Balanced accuracy", "PPV", "Average precision: b", "Negative likelihood ratio")
    ]  # fmt: skip
