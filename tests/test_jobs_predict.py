"""job=predict: one row a case, exactly once, whatever is unreadable or killed."""

from __future__ import annotations

import csv
import random
import re
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from report_schema import check_report
from training_kit import (
    a_trained_run,
    again,
    config,
    finish,
    kill_tree,
    launch,
    litter,
    prepared,
    run_here,
    run_in,
    start,
    wait_until,
    words,
    write_npz,
)

from hpcai import rundir
from hpcai.errors import ConfigError, DataError, Faults, RunError, Stopped
from hpcai.rundir import RunDir

SECRET = "mueller_anna"


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    return a_trained_run(tmp_path_factory)[1]


def write_images(folder: Path, n: int, side: int = 12, *, broken: tuple[int, ...] = ()) -> Path:
    """`n` images, PNG and JPEG by turns, in two folders; those of `broken` are no images."""
    rng = np.random.default_rng(1)
    for i in range(n):
        path = folder / ("a", "b")[i % 2] / f"{SECRET}_{i:04d}{('.png', '.jpg')[i // 2 % 2]}"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 255, (side, side), dtype=np.uint8)
        if i in broken:
            path.write_bytes(b"\x89PNG, but no more")
        else:
            Image.fromarray(pixels).save(path)
    return folder


def predict(trained: RunDir, path: Path, runs: Path, *more: str) -> list[str]:
    keep = (
        "name=p",
        f"from_run={trained.path}",
        f"data.path={path}",
        f"runs_dir={runs}",
        "data.identifiers=none",
        "resources.cpus_per_task=1",
    )
    return ["job=predict", *keep, *more]


def rows(run: RunDir) -> list[dict[str, Any]]:
    return [row for file in run.row_files("predict") for row in rundir.read_lines(file)]


def failed(run: RunDir) -> list[dict[str, Any]]:
    return [line for file in run.failed_files() for line in rundir.read_lines(file)]


def write_listing(folder: Path) -> Path:
    images = sorted(folder.rglob("*.*"))
    with (folder / "list.csv").open("w", newline="") as f:
        table = csv.writer(f)
        table.writerow(["case", "path", "patient"])
        table.writerows([f"case{i}", str(p.relative_to(folder)), f"patient{i // 2}"] for i, p in enumerate(images))
    return folder / "list.csv"


# ---- each reader


def test_a_folder_of_png_and_jpeg_gives_one_row_a_case(trained: RunDir, tmp_path: Path) -> None:
    folder = write_images(tmp_path / "images", 70)  # more than one block
    run = run_here(predict(trained, folder, tmp_path / "runs", "data.reader=images"))
    table = rows(run)
    assert sorted(r["case"] for r in table) == sorted(str(p.relative_to(folder)) for p in folder.rglob("*.*g"))
    assert all(r["label"] is None and len(r["scores"]) == 2 for r in table)
    assert [sum(r["scores"]) for r in table] == pytest.approx([1] * 70)
    assert failed(run) == []
    assert (
        check_report(run)["job"] == "predict"
        and run.report_html.is_file()
        and run.threshold.read_bytes() == trained.threshold.read_bytes()
    )


def test_a_listing_gives_its_case_and_patient_ids(trained: RunDir, tmp_path: Path) -> None:
    listing = write_listing(write_images(tmp_path / "images", 5))
    run = run_here(predict(trained, listing, tmp_path / "runs", "data.reader=csv", "data.patient_col=patient"))
    assert [(r["case"], r["patient"]) for r in rows(run)] == [(f"case{i}", f"patient{i // 2}") for i in range(5)]


def test_images_of_an_npz_score_as_they_did_in_training(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    data, trained = a_trained_run(tmp_path_factory)
    with np.load(data) as arrays:
        np.savez(tmp_path / "new.npz", images=arrays["test_images"])
    run = run_here(predict(trained, tmp_path / "new.npz", tmp_path / "runs"))
    then = [r["scores"] for r in rundir.read_lines(trained.rows_file("test", 0))]
    assert [r["case"] for r in rows(run)] == [str(i) for i in range(len(then))]
    assert np.array([r["scores"] for r in rows(run)]) == pytest.approx(np.array(then), abs=1e-6)


@pytest.mark.parametrize("side", [7, 40])
def test_images_of_another_size_are_resized_to_the_models(trained: RunDir, tmp_path: Path, side: int) -> None:
    folder = write_images(tmp_path / "images", 4, side)
    assert len(rows(run_here(predict(trained, folder, tmp_path / "runs", "data.reader=images")))) == 4
    write_npz(tmp_path / "d.npz", {"test": 6}, side)
    assert len(rows(run_here(predict(trained, tmp_path / "d.npz", tmp_path / "runs")))) == 6


@pytest.mark.parametrize("precision", ["float64", "bf16"])
def test_a_model_of_any_precision_predicts(tmp_path: Path, precision: str) -> None:
    data = write_npz(tmp_path / "d.npz", {"train": 20, "val": 20, "test": 20})
    more = ("trainer.epochs=1", f"trainer.precision={precision}")
    trained = run_here(words(data, tmp_path / "runs", *more))
    assert len(rows(run_here(predict(trained, data, tmp_path / "runs")))) == 60


# ---- what cannot be read


def test_an_unreadable_image_is_listed_and_stops_nothing(trained: RunDir, tmp_path: Path) -> None:
    folder = write_images(tmp_path / "images", 10, broken=(3, 8))
    run = run_here(predict(trained, folder, tmp_path / "runs", "data.reader=images"))
    lost = failed(run)
    assert len(rows(run)) == 8 and len(lost) == 2
    assert {r["case"] for r in rows(run)}.isdisjoint(line["case"] for line in lost)
    for line in lost:
        assert SECRET in line["case"] and SECRET not in line["reason"]  # the id stands where it belongs and nowhere else
        assert re.match(r"data: row \d+: is no readable PNG", line["reason"])
    for text in (run.log(0).read_text() if run.log(0).exists() else "", run.report_html.read_text()):
        assert SECRET not in text


def test_a_block_with_an_unreadable_image_in_it_scores_the_others_alike(trained: RunDir, tmp_path: Path) -> None:
    whole = run_here(predict(trained, write_images(tmp_path / "a", 10), tmp_path / "runs", "data.reader=images"))
    holed = run_here(predict(trained, write_images(tmp_path / "b", 10, broken=(3,)), tmp_path / "r2", "data.reader=images"))
    then = {r["case"]: r["scores"] for r in rows(whole)}
    for row in rows(holed):
        assert row["scores"] == pytest.approx(then[row["case"]], abs=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
def test_with_no_readable_image_the_run_fails_with_one_sentence(trained: RunDir, tmp_path: Path, ranks: int) -> None:
    folder = write_images(tmp_path / "images", 70, broken=tuple(range(70)))
    ended = launch(predict(trained, folder, tmp_path / "r", "data.reader=images", f"resources.tasks_per_node={ranks}"))
    assert ended.returncode == 4, ended.stderr
    (sentence, log) = ended.stderr.splitlines()
    assert "70" in sentence and "read" in sentence and SECRET not in ended.stderr + ended.stdout
    assert log.startswith("log: ")


# ---- the trained run


def test_a_model_that_is_damaged_is_refused(trained: RunDir, tmp_path: Path) -> None:
    copy = RunDir(Path(shutil.copytree(trained.path, tmp_path / "copy")))
    name = rundir.read_json(copy.model)["checkpoint"]
    file = copy.checkpoints / f"{name}.safetensors"
    data = bytearray(file.read_bytes())
    data[-100] ^= 4
    file.write_bytes(data)
    folder = write_images(tmp_path / "images", 2)
    with pytest.raises(DataError, match="its model is damaged"):
        run_here(predict(copy, folder, tmp_path / "runs", "data.reader=images"))


def test_a_model_that_was_exchanged_after_submission_is_refused(trained: RunDir, tmp_path: Path) -> None:
    copy = RunDir(Path(shutil.copytree(trained.path, tmp_path / "copy")))
    folder = write_images(tmp_path / "images", 2)
    cfg, context = prepared(predict(copy, folder, tmp_path / "runs", "data.reader=images"))
    rundir.write_json(copy.model, {**rundir.read_json(copy.model), "sha256": "0" * 64})
    with pytest.raises(RunError, match="another one than at submission"):
        again(cfg, context)


def test_images_that_changed_after_submission_are_listed_as_failed(trained: RunDir, tmp_path: Path) -> None:
    folder = write_images(tmp_path / "images", 4)
    cfg, context = prepared(predict(trained, folder, tmp_path / "runs", "data.reader=images"))
    changed = sorted(folder.rglob("*.*g"))[0]
    Image.fromarray(np.zeros((12, 12), np.uint8)).save(changed)
    again(cfg, context)
    (line,) = failed(context.dir)
    assert line["case"] == str(changed.relative_to(folder)) and "changed" in line["reason"]
    assert len(rows(context.dir)) == 3


def test_predict_without_a_trained_run_is_refused(tmp_path: Path) -> None:
    data = write_npz(tmp_path / "d.npz")
    with pytest.raises((ConfigError, Faults), match="from_run"):
        config(data, "job=predict")


# ---- stopped, killed


def test_a_prediction_asked_to_stop_keeps_what_it_has_and_goes_on(trained: RunDir, tmp_path: Path) -> None:
    folder = write_images(tmp_path / "images", 150)
    cfg, context = prepared(predict(trained, folder, tmp_path / "a", "data.reader=images"))
    for done in (64, 128):
        context.stop.signum = signal.SIGTERM
        with pytest.raises(Stopped, match=f"stopped after {done} cases, all of them kept"):
            again(cfg, context)
        assert len(rows(context.dir)) == done
    context.stop.signum = None
    again(cfg, context)
    peace = run_here(predict(trained, folder, tmp_path / "b", "data.reader=images"))
    assert context.dir.rows_file("predict", 0).read_bytes() == peace.rows_file("predict", 0).read_bytes()


@pytest.mark.slow
@pytest.mark.fault
@pytest.mark.parametrize("ranks", [1, 2])
def test_a_killed_prediction_goes_on_and_has_every_case_once(trained: RunDir, tmp_path: Path, ranks: int) -> None:
    folder = write_images(tmp_path / "images", 500, 64, broken=(5, 77, 301))
    more = ("data.reader=images", f"resources.tasks_per_node={ranks}")
    peace = run_here(predict(trained, folder, tmp_path / "a", "data.reader=images"))
    rng, runs = random.Random(ranks), tmp_path / "b"

    def written() -> int:
        return sum(f.read_bytes().count(b"\n") for f in runs.glob("p-*/rows/*"))

    hits = 0
    for at in sorted(rng.randrange(1, 400) for _ in range(3)):
        with start(predict(trained, folder, runs, *more)) as process:
            hits += wait_until(lambda at=at: written() >= at, process)
            kill_tree(process.pid, rng)
    assert hits
    finish(predict(trained, folder, runs, *more))
    run = run_in(runs, "p")
    table, lost = rows(run), failed(run)
    assert len(table) == 497 and len(lost) == 3
    assert len({r["case"] for r in table} | {r["case"] for r in lost}) == 500
    assert {r["case"]: r for r in table} == {r["case"]: r for r in rows(peace)}
    assert {r["case"]: r for r in lost} == {r["case"]: r for r in failed(peace)}
    assert litter(run.rows) == []
