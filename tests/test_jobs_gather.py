"""job=gather: the folds of a cross-validation as one report; what is no whole cross-validation is refused by name."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
import pytest
from report_runs import auc_interval
from report_schema import check_report
from training_kit import again, finish, prepared, run_here, run_in, words, write_npz

from hpcai import rundir
from hpcai.context import Ranks, RunContext
from hpcai.errors import DataError, HpcaiError, PlanError, RunError
from hpcai.metrics.classification import Threshold, estimates
from hpcai.metrics.rows import read_rows
from hpcai.metrics.table import read_cases
from hpcai.rundir import RunDir
from hpcai.watch import answer

SIZES = {"train": 50, "val": 20, "test": 20}
FOLDS = ("trainer.epochs=1", "data.split.by=kfold", "data.split.folds=3")
SECRET = "mueller_anna"
Cross = tuple[Path, list[RunDir]]


@pytest.fixture(scope="module")
def cross(tmp_path_factory: pytest.TempPathFactory) -> Cross:
    """(data, the three folds of one cross-validation, by fold); leave them as they are."""
    folder = tmp_path_factory.mktemp("cross")
    data = write_npz(folder / "d.npz", SIZES)
    return data, [run_here(words(data, folder / "runs", *FOLDS, f"data.split.fold={fold}")) for fold in range(3)]


@pytest.fixture
def copies(cross: Cross, tmp_path: Path) -> list[RunDir]:
    """The folds, free to be damaged."""
    return [RunDir(Path(shutil.copytree(run.path, tmp_path / "copies" / run.path.name))) for run in cross[1]]


def asked(runs: list[RunDir], data: Path, to: Path, *more: str) -> list[str]:
    named = f"from_run=[{','.join(repr(str(run.path)) for run in runs)}]"
    return [
        "job=gather",
        "name=cv",
        named,
        f"data.path={data}",
        f"runs_dir={to}",
        "data.identifiers=none",
        "resources.cpus_per_task=1",
        *more,
    ]


def lines(run: RunDir, split: str) -> list[dict[str, Any]]:
    return [row for file in run.row_files(split) for row in rundir.read_lines(file)]


def rewrite(run: RunDir, change: Any) -> None:
    """Another text for each row of a fold's test; None leaves the row out."""
    rows = [new for row in lines(run, "test") if (new := change(row)) is not None]
    run.rows_file("test", 0).unlink()
    rundir.append_lines(run.rows_file("test", 0), rows)


def resplit(run: RunDir, **parts: list[str]) -> None:
    rundir.write_json(run.split, rundir.read_json(run.split) | parts)


# --- what it leaves


def test_every_case_is_judged_once_by_the_fold_that_had_not_seen_it(cross: Cross, tmp_path: Path) -> None:
    data, folds = cross
    run = run_here(asked(folds[::-1], data, tmp_path))
    rows = lines(run, "oof")
    assert len(rows) == 90 == len({row["case"] for row in rows})
    for fold, source in enumerate(folds):
        then = {row["case"]: row for row in lines(source, "test")}
        here = {row["case"]: row for row in rows if row["fold"] == fold}
        assert here.keys() == then.keys()
        threshold = rundir.read_json(source.threshold)["value"]
        for case, row in here.items():
            assert row == then[case] | {"fold": fold, "called": int(row["scores"][1] >= threshold)}


def test_the_split_says_which_run_held_which_cases_and_the_threshold_is_the_folds(cross: Cross, tmp_path: Path) -> None:
    data, folds = cross
    run = run_here(asked(folds, data, tmp_path))
    split = rundir.read_json(run.split)
    assert (split["by"], split["folds"], split["seed"]) == ("kfold", 3, 0)
    table = read_cases(run)
    assert table is not None and set(table.split) == {"oof"} and table.case == sorted(r["case"] for r in lines(run, "oof"))
    assert split["counts"] == {"oof": 90} and sum(split["classes"]["oof"].values()) == 90
    for fold, source in enumerate(folds):
        assert split["test"][str(fold)] == rundir.read_json(source.split)["test"]
        threshold = rundir.read_json(source.threshold)["value"]
        assert split["runs"][fold] == {"fold": fold, "run_id": source.path.name, "threshold": threshold}
    told = rundir.read_json(run.threshold)
    assert (told["value"], told["rule"]) == (None, "each fold's own: sensitivity>=0.95")


def test_the_report_pools_the_cases_and_tells_the_folds_with_their_spread(cross: Cross, tmp_path: Path) -> None:
    data, folds = cross
    run = run_here(asked(folds, data, tmp_path))
    report, page = check_report(run), run.report_html.read_text("utf-8")
    pooled = {e["name"]: e for e in report["estimates"]}
    rows = lines(run, "oof")
    label, score = np.array([r["label"] == 1 for r in rows]), np.array([r["scores"][1] for r in rows])
    whole = auc_interval(label, score, "oof")
    assert (pooled["auc"]["value"], pooled["auc"]["n"]) == (pytest.approx(whole.value), 90)
    assert (pooled["auc"]["low"], pooled["auc"]["high"]) == pytest.approx((whole.low, whole.high))
    right = [row["called"] == row["label"] for row in rows]
    assert pooled["accuracy"]["value"] == pytest.approx(sum(right) / 90)
    hits = [row["called"] for row in rows if row["label"] == 1]
    assert pooled["sensitivity"]["value"] == pytest.approx(fmean(hits))
    assert sum(map(sum, report["confusion"]["oof"])) == 90 and report["confusion"]["oof"][1][1] == sum(hits)
    for fold, source in zip(report["folds"], folds, strict=True):
        own = estimates(read_rows(source, "test"), "oof", Threshold(**rundir.read_json(source.threshold)))
        assert fold["estimates"] == [vars(e) for e in own] and fold["n"] == own[0].n
        assert source.path.name in page
    values = [fold["estimates"][0]["value"] for fold in report["folds"]]
    assert report["spread"][0] == {
        "name": "auc", "mean": pytest.approx(fmean(values)), "sd": pytest.approx(stdev(values)), "folds": 3}  # fmt: skip
    assert "cross-validated in 3 folds" in report["question"] and "90 out-of-fold cases" in report["answer"]
    assert "The folds" in page and "the threshold of its own fold" in page
    assert not any("threshold" in text for text in report["warnings"])
    assert answer(report).startswith("oof AUC") and "sensitivity" in answer(report) and "rule" not in answer(report)


def test_any_order_of_words_is_the_same_run_and_the_same_bytes(cross: Cross, tmp_path: Path) -> None:
    data, folds = cross
    one, other = (run_here(asked(runs, data, tmp_path / d)) for d, runs in (("a", folds), ("b", folds[::-1])))
    assert one.path.name == other.path.name
    for file in (one.rows_file("oof", 0), one.split):
        assert file.read_bytes() == (other.path / file.relative_to(one.path)).read_bytes()


def test_a_class_that_a_fold_lacks_is_a_dash_there_and_no_nan(copies: list[RunDir], cross: Cross, tmp_path: Path) -> None:
    rewrite(copies[1], lambda row: row | {"label": 0})
    run = run_here(asked(copies, cross[0], tmp_path / "cv"))
    report = rundir.read_json(run.report_json)
    assert [fold["estimates"][0]["value"] is None for fold in report["folds"]] == [False, True, False]
    assert report["spread"][0]["folds"] == 2 and next(s for s in report["spread"] if s["name"] == "sensitivity")["folds"] == 2
    page = run.report_html.read_text("utf-8")
    assert 'data-key="fold/1/auc">–<' in page and not re.search(r"\bnan\b", page, re.I)


def test_patients_that_stay_whole_are_counted_and_drawn(copies: list[RunDir], cross: Cross, tmp_path: Path) -> None:
    for fold, run in enumerate(copies):
        rewrite(run, lambda row, fold=fold: row | {"patient": f"{SECRET}{fold}-{sum(map(ord, row['case'])) % 5}"})
    run = run_here(asked(copies, cross[0], tmp_path / "cv"))
    report = rundir.read_json(run.report_json)
    assert report["splits"]["oof"]["patients"] == len({row["patient"] for row in lines(run, "oof")})
    assert "patients" in report["estimates"][0]["method"]
    assert SECRET not in run.report_html.read_text("utf-8") + run.report_json.read_text("utf-8")


def test_images_that_a_fold_judged_and_had_seen_are_told(copies: list[RunDir], cross: Cross, tmp_path: Path) -> None:
    for n, run in enumerate(copies):
        resplit(run, duplicates={"train/val": 9, "train/test": n, "val/test": 0})  # type: ignore[arg-type]
    report = rundir.read_json(run_here(asked(copies, cross[0], tmp_path / "cv")).report_json)
    assert report["duplicates"] == {"train/test": 3, "val/test": 0}
    assert any(text.startswith("3 images stand in both training and test") for text in report["warnings"])


def test_ranks_beside_the_first_have_nothing_to_do(cross: Cross, tmp_path: Path) -> None:
    cfg, context = prepared(asked(cross[1], cross[0], tmp_path))
    again(cfg, RunContext(context.dir, Ranks(rank=1, world_size=2)))
    assert not context.dir.rows.exists() and not context.dir.report_json.exists()


# --- what is no cross-validation


def refused(runs: list[RunDir], data: Path, to: Path, *more: str) -> HpcaiError:
    with pytest.raises(HpcaiError) as caught:
        run_here(asked(runs, data, to, *more))
    assert SECRET not in str(caught.value) and len(caught.value.lines) == 1
    assert not list(to.rglob("report.json"))
    return caught.value


def test_a_missing_fold_is_named_with_the_words_that_train_it(cross: Cross, tmp_path: Path) -> None:
    data, (zero, _, two) = cross
    fault = refused([zero, two], data, tmp_path)
    assert isinstance(fault, PlanError)
    assert "of 3 folds 1 is missing. Train with data.split.fold=1, and name its run too." in str(fault)


def test_one_fold_twice_names_both_runs(cross: Cross, tmp_path: Path) -> None:
    data, folds = cross
    twin = RunDir(Path(shutil.copytree(folds[0].path, tmp_path / "twin")))
    fault = refused([*folds, twin], data, tmp_path / "cv")
    assert isinstance(fault, PlanError) and "are both fold 0" in str(fault)
    assert "twin" in str(fault) and folds[0].path.name in str(fault)


def test_a_run_that_is_no_fold_is_named(cross: Cross, tmp_path: Path) -> None:
    data, folds = cross
    other = run_here(words(data, tmp_path / "runs", "trainer.max_steps=1"))
    fault = refused([*folds, other], data, tmp_path / "cv")
    assert isinstance(fault, PlanError) and str(fault).startswith(f"from_run={other.path.name}: has data.split.by=published")


@pytest.mark.parametrize(
    "word", ["seed=1", "data.split.seed=1", "trainer.lr=0.1", "data.split.val_fraction=0.2", "model.width=4"]
)
def test_folds_of_different_configs_are_named_with_the_keys(cross: Cross, tmp_path: Path, word: str) -> None:
    data, folds = cross
    other = run_here(words(data, tmp_path / "runs", *FOLDS, "data.split.fold=2", "trainer.max_steps=1", word))
    fault = refused([*folds[:2], other], data, tmp_path / "cv")
    assert isinstance(fault, PlanError) and other.path.name in str(fault)
    assert word.partition("=")[0] in str(fault) and "trainer.max_steps" in str(fault)


def test_folds_of_other_data_or_a_gather_of_other_data_are_refused(copies: list[RunDir], cross: Cross, tmp_path: Path) -> None:
    other = write_npz(tmp_path / "other.npz", SIZES, seed=5)
    fault = refused(copies, other, tmp_path / "a")
    assert isinstance(fault, DataError) and str(fault).startswith("data: are not those that")
    said = rundir.read_json(copies[2].data)
    rundir.write_json(copies[2].data, said | {"files": [said["files"][0] | {"sha256": "0" * 64}]})
    fault = refused(copies, cross[0], tmp_path / "b")
    assert isinstance(fault, DataError) and "were trained on different data" in str(fault)
    assert copies[2].path.name in str(fault)


def test_a_case_judged_twice_or_by_none_names_the_runs(copies: list[RunDir], cross: Cross, tmp_path: Path) -> None:
    case = lines(copies[0], "test")[0]
    parts = rundir.read_json(copies[1].split)
    rundir.append_lines(copies[1].rows_file("test", 0), [case])
    resplit(copies[1], test=[*parts["test"], case["case"]], train=[c for c in parts["train"] if c != case["case"]])
    fault = refused(copies, cross[0], tmp_path / "a")
    assert isinstance(fault, DataError) and "both judge 1 of the cases" in str(fault)
    assert copies[0].path.name in str(fault) and copies[1].path.name in str(fault)
    resplit(copies[1], **{k: parts[k] for k in ("train", "val", "test")})
    rewrite(copies[1], lambda row: None if row["case"] == case["case"] else row)
    gone = lines(copies[1], "test")[0]["case"]
    rewrite(copies[1], lambda row: None if row["case"] == gone else row)
    fault = refused(copies, cross[0], tmp_path / "b")
    assert isinstance(fault, DataError) and "rows/test and split.json hold other cases" in str(fault)
    resplit(copies[1], test=[c for c in parts["test"] if c != gone])
    fault = refused(copies, cross[0], tmp_path / "c")
    assert isinstance(fault, DataError) and "judged by no fold" in str(fault)


def test_a_patient_on_both_sides_of_a_fold_is_refused(copies: list[RunDir], cross: Cross, tmp_path: Path) -> None:
    for run in copies:
        rewrite(run, lambda row: row | {"patient": f"{SECRET}{sum(map(ord, row['case'])) % 30}"})
    fault = refused(copies, cross[0], tmp_path / "cv")
    assert isinstance(fault, DataError) and "learnt from" in str(fault) and "patients that it judges" in str(fault)


@pytest.mark.parametrize("file", ["split.json", "threshold.json", "rows/test.rank0.jsonl"])
@pytest.mark.parametrize("text", ["{", "[]\n", '{"case": "mueller_anna"}\n'])
def test_a_damaged_file_of_a_fold_is_named_with_its_run(
    copies: list[RunDir], cross: Cross, tmp_path: Path, file: str, text: str
) -> None:
    (copies[1].path / file).write_text(text)
    fault = refused(copies, cross[0], tmp_path / "cv")
    assert copies[1].path.name in str(fault)
    assert isinstance(fault, RunError | DataError)


def test_a_fold_trained_anew_after_submission_is_refused(copies: list[RunDir], cross: Cross, tmp_path: Path) -> None:
    cfg, context = prepared(asked(copies, cross[0], tmp_path / "cv"))
    rundir.write_json(copies[1].model, rundir.read_json(copies[1].model) | {"sha256": "0" * 64})
    with pytest.raises(RunError, match="another one than at submission"):
        again(cfg, context)


# --- folds as an ensemble


def test_folds_have_no_case_that_could_judge_their_mean(cross: Cross, tmp_path: Path) -> None:
    data, folds = cross
    words = [word.replace("job=gather", "job=evaluate") for word in asked(folds, data, tmp_path)]
    with pytest.raises(DataError, match=r"none can judge their mean\. Folds of a cross-validation: job=gather"):
        run_here(words)


@pytest.mark.slow
def test_a_cross_validation_from_the_command_line(cross: Cross, tmp_path: Path) -> None:
    data, folds = cross
    here = run_here(asked(folds, data, tmp_path / "a"))
    done = finish(asked(folds, data, tmp_path / "b", "resources.tasks_per_node=2"))
    run = run_in(tmp_path / "b", "cv")
    assert run.rows_file("oof", 0).read_bytes() == here.rows_file("oof", 0).read_bytes()
    assert "oof AUC" in done.stdout and "n=90" in done.stdout
