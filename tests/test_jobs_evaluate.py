"""job=evaluate: a trained run on labelled data; on its own data, the very split that it was judged by."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from report_schema import check_report
from training_kit import a_trained_run, finish, run_here, run_in, words, write_npz

from hpcai import rundir
from hpcai.errors import ConfigError, DataError, Faults, PlanError
from hpcai.metrics.table import read_cases
from hpcai.rundir import RunDir


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, RunDir]:
    return a_trained_run(tmp_path_factory)


def evaluate(run: RunDir, path: Path, runs: Path, *more: str) -> list[str]:
    keep = (
        "name=e",
        f"from_run={run.path}",
        f"data.path={path}",
        f"runs_dir={runs}",
        "data.identifiers=none",
        "resources.cpus_per_task=1",
    )
    return ["job=evaluate", *keep, *more]


def rows(run: RunDir, split: str) -> list[dict[str, Any]]:
    return [row for file in run.row_files(split) for row in rundir.read_lines(file)]


@pytest.mark.parametrize("split", ["val", "test"])
def test_on_the_trainings_data_the_rows_are_the_trainings(trained: tuple[Path, RunDir], tmp_path: Path, split: str) -> None:
    data, source = trained
    run = run_here(evaluate(source, data, tmp_path, f"data.eval_split={split}"))
    assert run.rows_file(split, 0).read_bytes() == source.rows_file(split, 0).read_bytes()
    assert run.threshold.read_bytes() == source.threshold.read_bytes()
    assert run.report_html.is_file()
    assert rundir.read_json(run.split)["counts"] == {split: len(rows(run, split))}
    table = read_cases(run)
    assert table is not None and set(table.split) == {split} and table.case == sorted(r["case"] for r in rows(run, split))


@pytest.mark.slow
def test_on_two_ranks_the_rows_are_the_same(trained: tuple[Path, RunDir], tmp_path: Path) -> None:
    data, source = trained
    finish(evaluate(source, data, tmp_path, "data.eval_split=val", "resources.tasks_per_node=2"))
    run = run_in(tmp_path, "e")
    assert run.rows_file("val", 0).read_bytes() == source.rows_file("val", 0).read_bytes()


def test_a_random_split_is_the_one_that_the_training_made(tmp_path: Path) -> None:
    with np.load(write_npz(tmp_path / "d.npz", {"train": 60})) as a:
        np.savez(tmp_path / "one.npz", images=a["train_images"], labels=a["train_labels"])
    more = ("data.split.by=random", "data.split.seed=5", "trainer.epochs=1")
    source = run_here(words(tmp_path / "one.npz", tmp_path / "runs", *more))
    run = run_here(evaluate(source, tmp_path / "one.npz", tmp_path / "e"))  # says nothing of the split
    assert run.rows_file("test", 0).read_bytes() == source.rows_file("test", 0).read_bytes()
    learnt = set(rundir.read_json(source.split)["train"])
    assert learnt.isdisjoint(r["case"] for r in rows(run, "test"))


def test_all_of_the_trainings_data_can_be_scored(trained: tuple[Path, RunDir], tmp_path: Path) -> None:
    data, source = trained
    run = run_here(evaluate(source, data, tmp_path, "data.eval_split=all"))
    assert len(rows(run, "all")) == 490
    assert sum(rundir.read_json(run.split)["classes"]["all"].values()) == 490


def test_other_data_is_scored_by_its_own_split_and_resized(trained: tuple[Path, RunDir], tmp_path: Path) -> None:
    other = write_npz(tmp_path / "other.npz", {"train": 8, "val": 8, "test": 9}, side=15, seed=4)
    run = run_here(evaluate(trained[1], other, tmp_path / "e"))
    with np.load(other) as arrays:
        assert [r["label"] for r in rows(run, "test")] == arrays["test_labels"][:, 0].tolist()
    assert "9" in check_report(run)["answer"]


def test_labels_that_differ_from_the_trainings_are_refused(trained: tuple[Path, RunDir], tmp_path: Path) -> None:
    data, source = trained
    with pytest.raises((ConfigError, Faults)) as caught:
        run_here(evaluate(source, data, tmp_path, "data.labels=[yes,no]"))
    assert caught.value.code == 2 and "data.labels=yes,no" in str(caught.value)
    assert not tmp_path.exists() or list(tmp_path.iterdir()) == []


def test_data_with_classes_that_the_model_does_not_know_are_refused(trained: tuple[Path, RunDir], tmp_path: Path) -> None:
    with np.load(write_npz(tmp_path / "d.npz")) as a:
        np.savez(tmp_path / "three.npz", images=a["test_images"], labels=np.arange(40) % 3)
    with pytest.raises((DataError, Faults), match=r"outside 0\.\.1"):
        run_here(evaluate(trained[1], tmp_path / "three.npz", tmp_path / "e", "data.eval_split=all"))


def test_a_run_that_did_not_finish_is_refused(trained: tuple[Path, RunDir], tmp_path: Path) -> None:
    data, source = trained
    half = tmp_path / "half"
    half.mkdir()
    for file in (source.plan, source.config):
        (half / file.name).write_bytes(file.read_bytes())
    with pytest.raises((PlanError, Faults), match="has not finished its training"):
        run_here(evaluate(RunDir(half), data, tmp_path / "e"))


@pytest.mark.parametrize("precision", ["float64", "bf16"])
def test_a_model_of_any_precision_scores_as_in_training(tmp_path: Path, precision: str) -> None:
    data = write_npz(tmp_path / "d.npz", {"train": 20, "val": 20, "test": 20})
    source = run_here(words(data, tmp_path / "runs", "trainer.epochs=1", f"trainer.precision={precision}"))
    run = run_here(evaluate(source, data, tmp_path / "e"))
    assert run.rows_file("test", 0).read_bytes() == source.rows_file("test", 0).read_bytes()
