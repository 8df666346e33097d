"""A run folder -> report.json and report.html: what a reader is told, and what never gets in."""

from __future__ import annotations

import html
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from report_runs import event, make_run

from hpcai import rundir
from hpcai.errors import RunError
from hpcai.metrics.classification import Threshold, estimates
from hpcai.metrics.rows import read_rows
from hpcai.report import write_report
from hpcai.report.words import duration, figure, named, number, percent, signed, size
from hpcai.rundir import RunDir

HOSTILE = "<script>alert('x')</script>\"&' ünï $\\frac{"


def report_of(run: RunDir) -> tuple[dict[str, Any], str]:
    write_report(run)
    return json.loads(run.report_json.read_bytes()), run.report_html.read_text(encoding="utf-8")


def text_of(page: str) -> str:
    """What a reader sees: no tags, no style, entities resolved, blanks joined."""
    body = re.sub(r"<style>.*?</style>", "", page, flags=re.S)
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", body)).split())


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    run = make_run(tmp_path_factory.mktemp("runs") / "pneumonia-8d2f41c09b")
    write_report(run)
    return run


@pytest.fixture(scope="module")
def report(trained: RunDir) -> dict[str, Any]:
    return rundir.read_json(trained.report_json)


@pytest.fixture(scope="module")
def page(trained: RunDir) -> str:
    return trained.report_html.read_text(encoding="utf-8")


# --- what it says


def test_estimates_are_those_of_the_rows(trained: RunDir, report: dict[str, Any]) -> None:
    threshold = Threshold(**rundir.read_json(trained.threshold))
    for split in ("val", "test"):
        expected = [vars(e) for e in estimates(read_rows(trained, split), split, threshold)]
        assert [e for e in report["estimates"] if e["split"] == split] == expected


def test_answer_is_the_test_auc_with_its_interval_and_n(report: dict[str, Any]) -> None:
    e = report["estimates"][0]
    assert (e["name"], e["split"], e["n"]) == ("auc", "test", 624)
    low, high = number(e["low"]), number(e["high"])
    assert report["answer"] == f"AUC {number(e['value'])} (95 % interval {low} to {high}) on 624 test cases."


def test_report_json_has_the_keys_that_others_read(report: dict[str, Any]) -> None:
    assert report["version"] == 2 and report["run_id"] == "pneumonia-8d2f41c09b" and report["job"] == "train"
    assert set(report) == {
        *("version", "run_id", "name", "job", "question", "answer", "study", "estimates", "calibration", "subgroups"),
        *("shortcut", "shift", "characteristics", "prevalence", "threshold", "labels", "confusion", "splits", "flow"),
        *("duplicates", "failed", "warnings", "cost", "provenance", "ledger"),
    }
    assert sum(map(sum, report["confusion"]["test"])) == 624
    assert report["splits"]["train"] == {
        "cases": 4708,
        "patients": None,
        "classes": {"normal": 1214, "pneumonia": 3494},
    }


def test_cost_counts_the_time_of_every_life_and_not_the_wait_between(report: dict[str, Any]) -> None:
    first, second = 3.5 * 74 * 0.21, 740 * 0.21 + 64 - 110
    assert report["cost"]["wall_s"] == pytest.approx(first + second, abs=0.01)
    assert (report["cost"]["steps"], report["cost"]["epochs"], report["cost"]["restarts"]) == (740, 10, 1)


def test_the_end_record_changes_nothing_so_that_a_report_can_be_made_again(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    seal = re.compile("[0-9a-f]{32} ?[0-9a-f]{32}")  # it covers the records too
    before, page = report_of(run)
    rundir.append_lines(run.lives / "0002" / "rank0.jsonl", [event("end", 9999, code=0)])
    after, again = report_of(run)
    assert after == before and seal.sub("", again) == seal.sub("", page)


def test_the_page_tells_in_this_order(page: str) -> None:
    text = text_of(page)
    parts = ["Not a medical device", "Can resnet_small", "95 % interval", "Before you trust", "Cases 5,856"]
    parts += ["Discrimination", "ROC curve", "Precision and recall", "Operating point", "true ↓ called", "How it learnt"]
    parts += ["What it used", "Where it comes from", "whole configuration", "Packages and licences", "Reporting checklists"]
    places = [text.index(part) for part in parts]
    assert places == sorted(places)


def test_every_number_of_the_table_is_that_of_report_json(report: dict[str, Any], page: str) -> None:
    for e in report["estimates"]:
        cell = {k: v for k, v in re.findall(rf'data-key="{e["split"]}/{e["name"]}/(\w+)">([^<]*)<', page)}
        assert cell == {
            "value": figure(e["name"], e["value"]),
            "interval": "–" if e["low"] is None else f"{figure(e['name'], e['low'])} to {figure(e['name'], e['high'])}",
            "n": str(e["n"]),
        }


def test_provenance_names_files_digests_code_and_packages(page: str) -> None:
    text = text_of(page)
    for fact in (
        "data.path (.npz)",
        "d0bfa333" * 8,
        "c0de" * 16,
        "4f1c" * 10,
        "CC BY 4.0",
        "AMD EPYC 7763",
    ):
        assert fact in text
    assert "torch 1.8.0 BSD-3-Clause" in text and "nameless 2 not stated" in text
    assert "label_smoothing: 0.1" in text


# --- warnings


def warned(report: dict[str, Any], part: str) -> bool:
    return any(part in text for text in report["warnings"])


def test_duplicates_are_told_once_where_there_are_any(report: dict[str, Any]) -> None:
    assert warned(report, "8 images stand in both training and validation")
    assert not warned(report, "in both training and test")


def test_a_different_prevalence_is_told_with_its_numbers(report: dict[str, Any]) -> None:
    assert warned(report, f"pneumonia is 389 of 524 cases ({percent(389 / 524)}) there and 390 of 624")
    assert warned(report, "z test, p < 0.0001")


def test_missing_patient_ids_and_notes_of_the_lives_are_told(report: dict[str, Any]) -> None:
    assert warned(report, "No patient ids") and warned(report, "its digest does not fit")


def test_patients_make_the_bootstrap_and_silence_the_warning(tmp_path: Path) -> None:
    found, page = report_of(make_run(tmp_path, cases_a_patient=3))
    assert not warned(found, "No patient ids")
    assert all("patients" in e["method"] for e in found["estimates"] if e["name"] != "ece")
    assert "resamples of patients" in page


def test_batch_norm_on_ranks_is_told_once(tmp_path: Path) -> None:
    assert not warned(report_of(make_run(tmp_path / "one"))[0], "model.norm=batch")
    group = {"name": "resnet_small", "norm": "group"}
    assert not warned(report_of(make_run(tmp_path / "group", ranks=2, model=group))[0], "model.norm=batch")
    run = make_run(tmp_path / "two", ranks=2)
    found, _ = report_of(run)
    assert warned(found, "model.norm=batch on 2 ranks") and warned(found, "more ranks than")
    plan = rundir.read_json(run.plan)
    rundir.write_json(run.plan, plan | {"warnings": ["model.norm=batch: told by the plan."]})
    assert sum("model.norm=batch" in text for text in report_of(run)[0]["warnings"]) == 1


def test_numbers_do_not_depend_on_how_many_ranks_wrote_the_rows(tmp_path: Path, report: dict[str, Any]) -> None:
    assert report_of(make_run(tmp_path, ranks=3))[0]["estimates"] == report["estimates"]


# --- the other jobs, and what is missing


def test_evaluate_shows_the_split_it_scored(tmp_path: Path) -> None:
    found, page = report_of(make_run(tmp_path, job="evaluate"))
    assert {e["split"] for e in found["estimates"]} == {"test"} and found["splits"]["test"]["cases"] == 624
    assert found["splits"]["test"]["classes"] == {"normal": 234, "pneumonia": 390}
    assert "How well does pneumonia-1f3a9c tell pneumonia from normal" in page and "How it learnt" not in page


def test_classes_counted_by_number_are_shown_by_name(tmp_path: Path) -> None:
    run = make_run(tmp_path, job="evaluate")
    rundir.write_json(run.split, {"counts": {"test": 624}, "classes": {"test": {"0": 234, "1": 390}}, "patients": None})
    assert report_of(run)[0]["splits"]["test"]["classes"] == {"normal": 234, "pneumonia": 390}


def test_predict_shows_counts_scores_and_what_failed(tmp_path: Path) -> None:
    found, page = report_of(make_run(tmp_path, job="predict"))
    assert found["answer"] == "1,200 cases scored, 1 could not be read."  # the same case twice is one
    assert found["estimates"] == [] and found["confusion"] == {} and found["failed"] == 1
    assert warned(found, "1 case has no score") and not warned(found, "No patient ids")
    text = text_of(page)
    assert "Classes given" in text and "threshold 0.610" in text and "Confusion matrix" not in text


def test_more_classes_have_macro_auc_and_a_row_a_class(tmp_path: Path) -> None:
    labels = ("adipose", "debris", "mucus", "stroma")
    found, page = report_of(make_run(tmp_path, labels=labels))
    assert found["answer"].startswith("Macro AUC 0.896 (95 % interval 0.")
    text = text_of(page)
    assert "Sensitivity: stroma" in text and "The class with the highest score is called" in text
    assert "Each class against the rest, test split; 4 of 4 classes." in text
    assert len(re.findall(r'data-key="test/confusion/', page)) == 16


def test_one_class_only_is_told_instead_of_a_number(tmp_path: Path) -> None:
    run = make_run(tmp_path, job="evaluate")
    lines = [r | {"label": 1} for r in rundir.read_lines(run.rows_file("test", 0))]
    run.rows_file("test", 0).unlink()
    rundir.append_lines(run.rows_file("test", 0), lines)
    found, page = report_of(run)
    assert found["estimates"][0]["value"] is None and "one class only" in found["answer"]
    assert warned(found, "lacks a class") and found["answer"] in html.unescape(page)


def test_a_run_without_scores_or_other_files_still_has_a_page(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "bare")
    rundir.write_bytes(run.config, b"name: bare\njob: train\n")
    found, page = report_of(run)
    assert found["run_id"] == "bare" and "did not come so far" in found["answer"]
    assert "Not a medical device" in page


def test_all_images_unreadable_is_a_page_too(tmp_path: Path) -> None:
    run = make_run(tmp_path, job="predict")
    run.rows_file("predict", 0).unlink()
    assert report_of(run)[0]["answer"] == "0 cases scored, 1 could not be read."


@pytest.mark.parametrize("name", ["plan.json", "config.yaml", "metrics.jsonl", "split.json", "lives/0001/rank0.jsonl"])
def test_a_damaged_file_is_a_run_error_that_names_it(tmp_path: Path, name: str) -> None:
    run = make_run(tmp_path)
    (tmp_path / name).write_text("{]\n")
    with pytest.raises(RunError, match=name.split("/")[0]):
        write_report(run)


# --- one file, the same bytes, nothing hostile, nobody's id


def test_same_files_give_the_same_bytes_in_another_process(tmp_path: Path, trained: RunDir, page: str) -> None:
    found = trained.report_json.read_bytes()
    trained.report_html.unlink()
    code = "import sys; from pathlib import Path; from hpcai.report import write_report; from hpcai.rundir import RunDir; "
    (tmp_path / "matplotlibrc").write_text("lines.linewidth: 9\nsvg.fonttype: path\nfont.size: 30\n")
    environ = {
        **os.environ,
        "PYTHONHASHSEED": "7",
        "TZ": "Asia/Tokyo",
        "MATPLOTLIBRC": str(tmp_path / "matplotlibrc"),
    }
    subprocess.run(
        [sys.executable, "-c", code + "write_report(RunDir(Path(sys.argv[1])))", str(trained.path)],
        check=True,
        env=environ,
    )
    assert trained.report_json.read_bytes() == found
    assert trained.report_html.read_text(encoding="utf-8") == page


def test_the_page_is_one_light_file_without_script_or_request(page: str) -> None:
    assert len(page.encode()) < 400_000
    assert not re.search(r"<script|<link (?!rel=\"icon\" href=\"data:,\")|<img|<iframe|@import|url\((?!#)", page)
    assert not re.search(r"(src|href)=[\"'](?!#|data:)", page)
    assert "http://" not in page and "https://" not in page
    assert "default-src 'none'" in page


def test_a_long_run_stays_light(tmp_path: Path) -> None:
    _, page = report_of(make_run(tmp_path, epochs=400))
    assert len(page.encode()) < 400_000


def test_hostile_text_is_escaped_everywhere(tmp_path: Path) -> None:
    config = {
        "name": HOSTILE,
        "from_run": HOSTILE,
        "data": {"name": HOSTILE, "labels": [HOSTILE, HOSTILE + "2"]},
    }
    for job in ("train", "evaluate", "predict"):
        run = make_run(tmp_path / job, job=job, labels=(HOSTILE, HOSTILE + "2"), **config)
        hostile = {
            run.plan: {"warnings": [HOSTILE], "run_id": HOSTILE},
            run.data: {
                "source": HOSTILE,
                "licence": HOSTILE,
                "files": [{"path": HOSTILE, "bytes": 1, "sha256": "0"}],
            },
            run.environment: {
                "python": HOSTILE,
                "packages": [{"name": HOSTILE, "version": HOSTILE, "licence": HOSTILE}],
            },
        }
        for path, change in hostile.items():
            rundir.write_json(path, rundir.read_json(path) | change)
        found, page = report_of(run)
        assert found["name"] == HOSTILE
        assert "<script" not in page and "alert('x')" not in page and page.count("&lt;script&gt;") > 8
        assert yaml.safe_dump(HOSTILE)[:10] not in page  # nor raw in the folded config


def test_no_case_patient_or_image_name_is_in_the_report(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / job, job=job, cases_a_patient=2) for job in ("train", "evaluate", "predict")]
    images = make_run(
        tmp_path / "images",
        job="predict",
        data={"reader": "images", "path": "/data/ward", "labels": ["a", "b"]},
    )
    listing = make_run(
        tmp_path / "csv",
        job="evaluate",
        data={"reader": "csv", "path": "/data/list.csv", "labels": ["a", "b"]},
    )
    files = [{"path": f"/data/ward/secret-{i}.png", "bytes": 1000, "sha256": f"{i:064x}"} for i in range(30)]
    rundir.write_json(images.data, {"files": files})
    rundir.write_json(listing.data, {"files": [{"path": "/data/list.csv", "bytes": 9, "sha256": "ab" * 32}, *files]})
    for run in [*runs, images, listing]:
        found, page = report_of(run)
        for text in (json.dumps(found), page):
            assert "secret" not in text and "patient-4711" not in text and "/data/" not in text
    assert "30 images 30.0 kB" in text_of(page) and "data.path (.csv) 9 bytes" in text_of(page)


def test_a_report_in_a_folder_with_a_hostile_name(tmp_path: Path) -> None:
    report_of(make_run(tmp_path / 'it\'s "quoted"\nand ünï'))


# --- words


@pytest.mark.parametrize(
    ("x", "text"),
    [
        *((0.0, "0.000"), (1.0, "1.000"), (0.98211, "0.982"), (None, "–")),
        *((0.9996, "0.9996"), (0.00004, "0.00004"), (0.99999999, "> 0.999999"), (1e-9, "< 0.000001")),
    ],
)
def test_a_number_never_rounds_to_certainty(x: float | None, text: str) -> None:
    assert number(x) == text


def test_words_of_time_size_and_names() -> None:
    assert [duration(s) for s in (7.25, 59.99, 100, 4200)] == [
        "7.2 s",
        "1 min 0 s",
        "1 min 40 s",
        "1 h 10 min",
    ]
    assert [size(n) for n in (0, 999, 4170669, 10**13)] == ["0 bytes", "999 bytes", "4.2 MB", "10.0 TB"]
    assert named({"name": "sensitivity[1]"}, ["a", "b"]) == "Sensitivity: b"


@pytest.mark.parametrize(
    ("x", "text"),
    [
        (0.0124, "+0.012"),
        (-0.0124, "−0.012"),
        (0.0, "0.000"),
        (-0.0, "0.000"),
        (0.00004, "+0.00004"),
        (1e-9, "0.000"),
        (None, "–"),
    ],
)
def test_a_difference_has_its_sign_and_rounds_to_nothing_only_where_it_is(x: float | None, text: str) -> None:
    assert signed(x) == text
