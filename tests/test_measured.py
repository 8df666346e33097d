"""The blocks of report.json that are measured: from a run folder's rows and cases alone."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from report_runs import make_run

from hpcai.metrics.classification import Threshold, estimates
from hpcai.metrics.rows import read_rows
from hpcai.report.cautions import cautions
from hpcai.report.folder import read_folder
from hpcai.report.measured import measured
from hpcai.rundir import RunDir, append_lines, read_json


def with_cases(run: RunDir, **groups: str) -> RunDir:
    """cases.jsonl of the run's rows and 300 training cases. A group's text: `leak` follows the label, `noise` does not."""
    rng = np.random.default_rng(0)
    value = {"leak": lambda label: "AB"[label], "noise": lambda _: "AB"[rng.integers(2)]}
    known = [(f"train/{i}", "train", i % 2) for i in range(300)]
    for split in ("val", "test"):
        for file in run.row_files(split):
            rows = [json.loads(line) for line in file.read_text().splitlines()]
            rows = [row | {"case": f"{split}/{row['case']}"} for row in rows]
            file.write_text("".join(json.dumps(row) + "\n" for row in rows))
            known += [(row["case"], split, row["label"]) for row in rows]
    append_lines(run.cases, [
        {"case": case, "split": split, "label": label, "patient": None, "size": [28, 28],
         "groups": {name: value[how](label) for name, how in groups.items()}}
        for case, split, label in known
    ])  # fmt: skip
    return run


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return with_cases(make_run(tmp_path / "run"), site="noise", scanner="leak")


def test_estimates_are_those_of_the_rows_the_test_first(run: RunDir) -> None:
    found = measured(read_folder(run))["estimates"]
    threshold = Threshold(**read_json(run.threshold))
    expected = [vars(e) for split in ("test", "val") for e in estimates(read_rows(run, split), split, threshold)]
    assert found == expected and found[0]["name"] == "auc" and found[0]["split"] == "test"


def test_a_stated_prevalence_adds_what_a_call_means_there(run: RunDir) -> None:
    run.config.write_text(run.config.read_text() + "\nreport: {prevalence: 0.05}\n")
    found = {e["name"]: e for e in measured(read_folder(run))["estimates"] if e["split"] == "test"}
    sensitivity, specificity = found["sensitivity"]["value"], found["specificity"]["value"]
    ppv = 0.05 * sensitivity / (0.05 * sensitivity + 0.95 * (1 - specificity))
    npv = 0.95 * specificity / (0.95 * specificity + 0.05 * (1 - sensitivity))
    assert found["ppv_at"]["value"] == pytest.approx(ppv) and found["npv_at"]["value"] == pytest.approx(npv)
    assert found["ppv_at"]["low"] < ppv < found["ppv_at"]["high"] < found["ppv"]["value"]
    assert "at a prevalence of 0.05" in found["npv_at"]["method"]


def test_bins_and_curve_of_both_splits(run: RunDir) -> None:
    found = measured(read_folder(run))["calibration"]
    assert set(found) == {"test", "val"} and sum(b["n"] for b in found["test"]["bins"]) == 624
    assert len(found["test"]["curve"]["score"]) == 50


def test_subgroups_and_the_model_on_columns_alone(run: RunDir) -> None:
    found = measured(read_folder(run))
    assert [s["column"] for s in found["subgroups"]] == ["site", "scanner"]
    assert sum(g["n"] for g in found["subgroups"][0]["groups"]) == 624
    assert found["shortcut"]["columns"] == ["site", "scanner"] and found["shortcut"]["n_train"] == 300
    assert found["shortcut"]["estimate"]["value"] == 1.0
    warned = [text for text in cautions(read_folder(run), found) if "Without any image" in text]
    assert len(warned) == 1 and "site, scanner alone reach an AUC of 1" in warned[0]


def test_validation_that_is_not_like_the_test_is_told_once_with_its_verdict(run: RunDir) -> None:
    folder = read_folder(run)
    found = measured(folder)
    assert found["shift"]["prevalence"][0]["first"] == 389 / 524 and found["shift"]["verdict"].startswith("differs")
    told = [text for text in cautions(folder, found) if "not like the test" in text]
    assert told == [found["shift"]["sentence"]] and "389 of 524 cases" in told[0]


def test_a_run_without_cases_or_labels_leaves_its_blocks_empty(tmp_path: Path) -> None:
    found = measured(read_folder(make_run(tmp_path / "p", job="predict")))
    assert found == {
        "estimates": [], "calibration": {}, "subgroups": [], "shortcut": None, "shift": None,
        "characteristics": {"columns": []},
    }  # fmt: skip
    trained = measured(read_folder(make_run(tmp_path / "t")))
    assert trained["subgroups"] == [] and trained["shortcut"] is None and trained["shift"] is not None


def test_more_classes_are_measured_too(tmp_path: Path) -> None:
    found = measured(read_folder(make_run(tmp_path / "m", labels=("a", "b", "c"))))
    names = [e["name"] for e in found["estimates"] if e["split"] == "test"]
    assert names[:6] == ["macro_auc", "macro_average_precision", "accuracy", "balanced_accuracy", "brier", "ece"]
    assert {f"{m}[2]" for m in ("auc", "average_precision", "sensitivity", "specificity", "ppv", "npv")} <= set(names)
    assert found["calibration"] == {} and found["shift"] is not None


def test_all_of_it_is_json_without_an_id(run: RunDir) -> None:
    text = json.dumps(measured(read_folder(run)), allow_nan=False)
    assert "secret" not in text
