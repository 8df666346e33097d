"""The report of several runs: an ensemble's gain, the folds of a cross-validation, and what never gets in."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from report_runs import make_run
from test_report import HOSTILE, report_of, text_of

from hpcai import rundir
from hpcai.errors import RunError
from hpcai.report import write_report
from hpcai.rundir import RunDir


def estimate(value: float | None, name: str = "auc", split: str = "test") -> dict[str, Any]:
    ends = {"low": None, "high": None} if value is None else {"low": value - 0.01, "high": value + 0.01}
    return {"name": name, "split": split, "value": value, **ends, "n": 624, "method": "DeLong, logit"}


def together(run: RunDir, members: list[str], low: float | None = -0.004) -> None:
    """together.json as a job leaves it; the first member has no validation."""
    told = [
        {"run_id": name, "validation": estimate(0.9) if k else None, "estimate": estimate(0.95), "best": k == 1}
        for k, name in enumerate(members)
    ]
    gain = {"name": "auc", "split": "test", "low": low, "high": low and 0.02, "n": 624, "method": "paired bootstrap"}
    rundir.write_json(
        run.together, {"members": told, "gain": [gain | {"over": over, "value": 0.012} for over in ("mean", "best")]}
    )


@pytest.mark.parametrize("job", ["evaluate", "predict"])
def test_an_ensemble_names_its_runs_and_what_their_mean_gained(tmp_path: Path, job: str) -> None:
    run = make_run(tmp_path, job=job, from_run=["/runs/a-1", "/runs/b-2"])
    together(run, ["a-1", "b-2"])
    found, page = report_of(run)
    assert found["together"] == rundir.read_json(run.together)
    assert "the mean of 2 runs" in found["question"] and found["answer"].endswith(
        "Against one run the mean gained +0.012 in AUC (95 % interval −0.004 to +0.020), on 624 test cases."
    )
    text = text_of(page)
    assert "What the mean of 2 runs gained" in text and "+0.012 −0.004 to +0.020" in text
    assert "b-2 first on validation" in text and "Model from a-1, b-2" in text


def test_an_ensemble_without_common_cases_or_interval_says_so(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a", job="evaluate", from_run=["/runs/a-1", "/runs/b-2"])
    together(run, ["a-1", "b-2"], low=None)
    found, page = report_of(run)
    assert found["answer"].endswith("gained +0.012 in AUC, on 624 test cases.") and "+0.012 – 624" in text_of(page)
    rundir.write_json(run.together, rundir.read_json(run.together) | {"gain": []})
    found, page = report_of(run)
    assert found["answer"].endswith("cases.") and "gained" not in found["answer"]
    assert "what their mean gained is not known" in text_of(page)


def test_a_hundred_members_stay_light(tmp_path: Path) -> None:
    run = make_run(tmp_path, job="evaluate", from_run=[f"/runs/m-{k}" for k in range(100)])
    together(run, [f"m-{k}" for k in range(100)])
    _, page = report_of(run)
    assert len(page.encode()) < 400_000 and "m-99" in page


def gathered(
    path: Path, name: str = "cv", lack: int | None = None, labels: tuple[str, ...] = ("normal", "pneumonia")
) -> RunDir:
    """A cross-validation of three folds, as job=gather leaves it; fold `lack` holds one class alone."""
    run = make_run(path, job="evaluate", labels=labels, name=name)
    config = yaml.safe_load(run.config.read_text("utf-8")) | {"job": "gather", "from_run": ["/a", "/b", "/c"]}
    rundir.write_bytes(run.config, yaml.safe_dump(config).encode())
    rows = list(rundir.read_lines(run.rows_file("test", 0)))
    run.rows_file("test", 0).unlink()
    rows = [row | {"fold": k % 3, "called": row["label"]} for k, row in enumerate(rows)]
    rundir.append_lines(run.rows_file("oof", 0), [row | {"label": 0} if row["fold"] == lack else row for row in rows])
    runs = [{"fold": k, "run_id": f"{name}-{k}", "threshold": 0.25 + k / 10} for k in range(3)]
    rundir.write_json(run.split, {"by": "kfold", "counts": {"oof": 624}, "classes": {}, "duplicates": {}, "runs": runs})
    rundir.write_json(run.threshold, {"value": None, "rule": "each fold's own: youden", "split": "val", "n": 0})
    return run


def test_a_cross_validation_is_called_as_its_rows_say_and_tells_each_fold(tmp_path: Path) -> None:
    found, page = report_of(gathered(tmp_path))
    value = {e["name"]: e["value"] for e in found["estimates"]}
    assert value["accuracy"] == value["sensitivity"] == value["specificity"] == 1.0 and 0.9 < value["auc"] < 1
    assert [(f["fold"], f["run_id"], f["n"], f["threshold"]) for f in found["folds"]] == [
        (0, "cv-0", 208, 0.25), (1, "cv-1", 208, 0.35), (2, "cv-2", 208, 0.45)]  # fmt: skip
    assert [s["name"] for s in found["spread"]] == [e["name"] for e in found["estimates"]]
    assert {"name": "accuracy", "mean": 1.0, "sd": 0.0, "folds": 3} in found["spread"]
    assert "cross-validated in 3 folds of PneumoniaMNIST" in found["question"]
    text = text_of(page)
    assert "The folds" in text and "Mean of folds" in text and "Each case is called by the threshold of its own fold." in text
    assert "highest score is called" not in text and "No threshold" not in text


def test_a_fold_of_one_class_has_a_dash_and_does_not_count_in_the_spread(tmp_path: Path) -> None:
    found, page = report_of(gathered(tmp_path, lack=1))
    assert found["folds"][1]["estimates"][0]["value"] is None and found["spread"][0]["folds"] == 2
    assert re.search(r'data-key="fold/1/auc">–</td>', page)


def test_folds_of_more_classes_have_no_threshold(tmp_path: Path) -> None:
    found, page = report_of(gathered(tmp_path, labels=("a", "b", "c")))
    assert (
        found["spread"][0]["name"] == "macro_auc"
        and "Threshold" not in text_of(page).split("The folds")[1].split("The data")[0]
    )


def test_hostile_names_of_members_and_folds_are_escaped(tmp_path: Path) -> None:
    run = make_run(tmp_path / "e", job="evaluate", from_run=[HOSTILE, HOSTILE + "2"])
    together(run, [HOSTILE, HOSTILE + "2"])
    for each in (run, gathered(tmp_path / "g", name=HOSTILE)):
        page = report_of(each)[1]
        assert "<script" not in page and "alert('x')" not in page and page.count("&lt;script&gt;") > 1


def test_a_damaged_together_is_a_run_error_that_names_it(tmp_path: Path) -> None:
    run = make_run(tmp_path, job="evaluate")
    run.together.write_text("[1")
    with pytest.raises(RunError, match=r"^together\.json: is damaged"):
        write_report(run)
