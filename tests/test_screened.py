"""Newborn screening on the page: its answer, what it warns of, and that no text of a table does harm there."""

from __future__ import annotations

import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from report_runs import make_run
from report_schema import check_report
from screening_cohort import cohort, panel, tallied
from test_numbers import natural
from test_report import HOSTILE
from test_tally import batch, decided

from hpcai import export, rundir
from hpcai.report import screened, write_report
from hpcai.rundir import RunDir
from hpcai.screening.numbers import screening
from hpcai.screening.tally import UNKNOWN, Tally

Json = dict[str, Any]


def made(folder: Path, block: Json, job: str = "predict") -> RunDir:
    """A run that left `block`, with its report."""
    run = make_run(folder, job=job)
    for file in run.rows.glob("predict.*"):
        file.unlink()
    rundir.write_json(run.screening, block)
    write_report(run)
    return run


def html(run: RunDir) -> str:
    return run.report_html.read_text("utf-8")


def real(tally: Tally, **more: Any) -> Json:
    return screening(tally, kind="cohort", split="predict", books={}, **more)


def test_the_answer_tells_found_missed_and_false_with_intervals() -> None:
    """natural(): 2 of 3 found, 1 not assessable, 10 false among 19,996."""
    told = screened.answer(real(natural()))
    assert told.startswith("Of 20,000 newborns 12 are referred, 0 get a second-tier test, 0 a new sample. ")
    assert "2 of 3 affected found (0.667, 95 % interval 0.094 to 0.992), 1 missed, 1 more could not be assessed." in told
    assert told.endswith("False alarms: 50 per 100,000 unaffected who were judged (24 to 92).")


def test_simulated_newborns_are_called_so_and_prove_the_method_alone(tmp_path: Path) -> None:
    run = made(tmp_path / "r", tallied())
    report = check_report(run)
    assert "simulated newborns" in report["answer"] and "proves the method, not the medicine" in report["answer"]
    page = html(run)
    assert "Affected newborns found (simulated)" in page and page.count("imulated") >= 5
    assert "simulated" not in screened.answer(real(natural())).lower()


def test_the_page_of_real_newborns_says_that_simulated_ones_taught_the_model() -> None:
    told = [any("imulated" in c for c in screened.cautions(real(natural(), taught_by_simulated=t))) for t in (True, False)]
    assert told == [True, False]
    itself = tallied() | {"taught_by_simulated": True}
    assert not any("taught the model" in c for c in screened.cautions(itself))


def test_where_nobody_knows_who_is_affected_the_page_claims_nothing(tmp_path: Path) -> None:
    tally = Tally(panel(), simulated=False)
    tally.add(batch(9), decided([[4, 0, 0]] * 9), np.full(9, UNKNOWN), {})
    block = real(tally)
    assert screened.top(block) is None and "is not known: hpcai outcomes" in screened.answer(block)
    assert 'class="sentence"' in html(made(tmp_path / "r", block))


def test_each_part_that_was_measured_has_its_section_and_each_that_was_not_has_none(tmp_path: Path) -> None:
    names = ("funnel", "found", "places", "review", "plates", "distributions")
    full, bare = html(made(tmp_path / "full", tallied())), html(made(tmp_path / "bare", real(natural())))
    assert [name for name in names if f'<section id="{name}"' in full] == list(names)
    assert [name for name in names if f'<section id="{name}"' in bare] == ["funnel", "found", "places", "review"]
    none = html(made(tmp_path / "none", real(Tally(panel(), simulated=True))))
    assert not any(f'<section id="{name}"' in none for name in names) and "No newborn was judged" in none


def test_swedens_share_is_named_as_not_comparable(tmp_path: Path) -> None:
    page = html(made(tmp_path / "r", tallied()))
    assert "Not to be compared with the 47 %" in page and "10.3390/ijns6020042" in page


def test_a_trained_models_page_shows_its_newborns_first_and_its_classes_after(tmp_path: Path) -> None:
    run = made(tmp_path / "r", tallied(kind="fit", split="test"), job="train")
    assert check_report(run)["question"].startswith("Does a model trained on PneumoniaMNIST find affected newborns")
    assert rundir.read_json(run.report_json)["shift"] is None  # asked by laboratory and month: fitness
    page = html(run)
    assert page.index('id="found"') < page.index('id="discrimination"')


def test_the_page_warns_of_what_takes_its_numbers_away() -> None:
    block = tallied(mode="shadow")
    for told in block["conformal"]:
        told["coverage"] |= {"high": 0.9}
    said = "\n".join(screened.cautions(block))
    for words in (
        "Shadow mode", "cases were added",
        "not valid in 1 laboratory and 2 months of laboratories", "1 plate failed the controls",
        "less often than promised for PKU, MCAD, HCY",
    ):  # fmt: skip
        assert words in said
    assert list(screened.cautions(real(natural()))) == []


def test_a_caution_counts_nothing_that_there_is_none_of() -> None:
    block = tallied()
    block["fitness"] = [fit | {"verdict": "not_valid" if fit["month"] else "fits"} for fit in block["fitness"]]
    said = "\n".join(screened.cautions(block))
    assert "The model is not valid in " in said and " months of laboratories" in said and "0 laboratories" not in said


def test_no_text_of_a_table_does_harm(tmp_path: Path) -> None:
    whole, made_, truth, rules, called = cohort(80)
    for name in ("laboratory", "month", "plate", "decision"):
        whole.text[name] = np.full(80, HOSTILE)
    tally = Tally(panel(), simulated=True)
    tally.add(whole, made_, truth, {HOSTILE: rules["heidelberg2003"]}, called)
    block = real(tally, fitness=tallied()["fitness"], plates=tallied()["plates"], distributions=tallied()["distributions"])
    for part in ("fitness", "distributions"):
        block[part] = [told | {key: HOSTILE for key in ("laboratory", "channel") if key in told} for told in block[part]]
    page = html(made(tmp_path / "r", block))
    assert "<script>" not in page and "&lt;script&gt;" in page


def test_no_sample_id_is_on_the_page(tmp_path: Path) -> None:
    page = html(made(tmp_path / "r", tallied()))
    assert not re.search(r">s\d+<|\bs1\d\d\b", page)


def test_what_leaves_the_house_names_no_row_of_the_review_list(tmp_path: Path) -> None:
    run = made(tmp_path / "runs" / "cohort-1", tallied())
    assert export.main([str(run.path), "-o", str(tmp_path / "s.zip")]) == 0
    with zipfile.ZipFile(tmp_path / "s.zip") as z:
        texts = {name.rpartition("/")[2]: z.read(name).decode() for name in z.namelist()}
    assert '"rows": []' in texts["report.json"] and '<section id="review"' not in texts["report.html"]
    assert '<section id="review"' in html(run) and rundir.read_json(run.report_json)["screening"]["review"]["rows"]


@pytest.mark.parametrize(("rate", "text"), [
    (None, "–"), (0.0, "0"), (2.34e-6, "0.23"), (1.04e-5, "1.0"), (9.9e-5, "9.9"), (1.2e-4, "12"), (0.5, "50,000"),
])  # fmt: skip
def test_rates_are_told_per_100000(rate: float | None, text: str) -> None:
    assert screened.per_100k(rate) == text
