"""job=train: what it leaves, when it ends, where it begins, and what it refuses."""

from __future__ import annotations

import math
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from report_schema import check_report
from safetensors.torch import save_file
from training_kit import (
    a_trained_run,
    again,
    curve,
    finish,
    last_step,
    launch,
    prepared,
    raw,
    run_here,
    run_in,
    small_disk,
    warnings_of,
    words,
    write_npz,
)

from hpcai import lease, rundir
from hpcai.config.check import load
from hpcai.errors import DataError, RunError, Stopped
from hpcai.metrics.classification import choose_threshold
from hpcai.metrics.rows import read_rows
from hpcai.metrics.table import read_cases
from hpcai.models.start import trained_weights
from hpcai.plan import make_plan
from hpcai.rundir import RunDir
from hpcai.submit import prepare
from hpcai.training.checkpoint import read_checkpoint

torch.set_num_threads(1)
FEW = {"train": 40, "val": 20, "test": 10}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_npz(tmp_path / "d.npz", FEW)


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, RunDir]:
    return a_trained_run(tmp_path_factory)


def kinds(run: RunDir, kind: str) -> list[dict[str, Any]]:
    return [line for line in curve(run) if line["kind"] == kind]


# ---- what it leaves


def test_a_finished_training_leaves_all_that_the_run_folder_promises(trained: tuple[Path, RunDir]) -> None:
    run = trained[1]
    for file in (run.model, run.threshold, run.split, run.report_json, run.report_html, run.metrics):
        assert file.is_file(), file
    check_report(run)
    assert {f.name for f in run.rows.iterdir()} == {"val.rank0.jsonl", "test.rank0.jsonl"}
    facts = rundir.read_json(run.model)
    assert facts["labels"] == ["no", "yes"] and facts["input"]["size"] == [12, 12] and facts["input"]["channels"] == 1
    assert (run.checkpoints / f"{facts['checkpoint']}.safetensors").is_file()
    assert {line["step"] for line in kinds(run, "train")} == set(range(1, 21))
    assert [(v["epoch"], v["step"], v["n"]) for v in kinds(run, "val")] == [(1, 10, 300), (2, 20, 300)]


def test_what_is_known_of_each_case_is_written_down(trained: tuple[Path, RunDir]) -> None:
    table, split = read_cases(trained[1]), rundir.read_json(trained[1].split)
    assert table is not None and table.size is not None and set(table.size) == {(12, 12)}
    for part in ("train", "val", "test"):
        here = table.where(np.array([s == part for s in table.split]))
        assert here.case == sorted(split[part]) and np.bincount(here.label).tolist() == list(split["classes"][part].values())


def test_the_model_is_the_checkpoint_with_the_best_validation(trained: tuple[Path, RunDir]) -> None:
    run = trained[1]
    best = max(kinds(run, "val"), key=lambda v: v["auc"])
    assert rundir.read_json(run.model)["step"] == best["step"]
    table = read_rows(run, "val")
    assert rundir.read_json(run.threshold)["value"] == choose_threshold(table, "sensitivity>=0.95", "val").value
    tensors, _ = read_checkpoint(run.checkpoints / f"step-{best['step']:08d}")
    weights = trained_weights(run.path)
    assert all(raw(weights[k.removeprefix("ema/")]) == raw(v) for k, v in tensors.items() if k.startswith("ema/"))


@pytest.mark.slow
def test_a_run_learns(tmp_path: Path) -> None:
    run = run_here(words(write_npz(tmp_path / "d.npz"), tmp_path / "runs", "trainer.epochs=8", "trainer.lr=0.01"))
    assert rundir.read_json(run.report_json)["answer"]
    test = read_rows(run, "test")
    yes, no = test.scores[test.label == 1, 1], test.scores[test.label == 0, 1]
    assert (yes[:, None] > no).mean() > 0.8


# ---- when it ends


def test_max_steps_ends_a_training_within_an_epoch_and_validates_there(data: Path, tmp_path: Path) -> None:
    run = run_here(words(data, tmp_path / "runs", "trainer.epochs=9", "trainer.max_steps=4"))
    assert last_step(run) == 4 and [v["step"] for v in kinds(run, "val")] == [3, 4]  # 3 end an epoch


def test_validation_comes_every_so_many_epochs_and_at_the_end(data: Path, tmp_path: Path) -> None:
    run = run_here(words(data, tmp_path / "runs", "trainer.epochs=5", "trainer.validate_every=2"))
    assert [v["epoch"] for v in kinds(run, "val")] == [2, 4, 5]


def test_early_stopping_ends_the_run_and_is_on_record(data: Path, tmp_path: Path) -> None:
    more = ("trainer.epochs=99", "trainer.patience=2", "trainer.lr=0.05", "task.select=loss")
    run = run_here(words(data, tmp_path / "runs", *more))
    seen = kinds(run, "val")
    assert len(seen) < 99 and [v["best"] for v in seen[-2:]] == [False, False] and seen[-3]["best"]
    _, facts = read_checkpoint(run.checkpoints / f"step-{seen[-1]['step']:08d}")
    assert facts["progress"]["finished"] and facts["progress"]["best_step"] == seen[-3]["step"]
    assert rundir.read_json(run.model)["step"] == seen[-3]["step"]
    assert seen[-3]["loss"] == min(v["loss"] for v in seen)


def test_a_signal_in_this_process_stops_between_two_steps(data: Path, tmp_path: Path) -> None:
    cfg, context = prepared(words(data, tmp_path / "runs"))
    context.stop.signum = signal.SIGUSR2
    with pytest.raises(Stopped, match="stopped after step 1, checkpoint kept") as caught:
        again(cfg, context)
    assert caught.value.code == 140 and last_step(context.dir) == 1
    context.stop.signum = None
    again(cfg, context)
    whole = run_here(words(data, tmp_path / "whole"))
    assert curve(whole) == curve(context.dir)


def test_a_finished_training_that_is_started_again_only_scores(data: Path, tmp_path: Path) -> None:
    cfg, context = prepared(words(data, tmp_path / "runs"))
    again(cfg, context)
    before = {f: f.stat().st_mtime_ns for f in context.dir.checkpoints.iterdir()}
    rows = context.dir.rows_file("test", 0).read_bytes()
    again(cfg, context)
    assert {f: f.stat().st_mtime_ns for f in context.dir.checkpoints.iterdir()} == before
    assert context.dir.rows_file("test", 0).read_bytes() == rows


# ---- options


@pytest.mark.parametrize("more", [
    ("trainer.precision=bf16",),
    ("trainer.optimizer=sgd", "trainer.lr_schedule=constant"),
    ("trainer.class_weights=balanced", "trainer.label_smoothing=0.1", "trainer.accumulate=3"),
    ("trainer.checkpoint_every_min=0.0001", "trainer.keep_last=1", "trainer.checkpoint_async=true"),
    ("trainer.deterministic=false", "task.threshold=youden"),
])  # fmt: skip
def test_every_option_of_the_loop_trains(data: Path, tmp_path: Path, more: tuple[str, ...]) -> None:
    run = run_here(words(data, tmp_path / "runs", "trainer.epochs=1", *more))
    assert run.report_html.is_file() and math.isfinite(kinds(run, "train")[-1]["loss"])


def test_when_and_how_checkpoints_are_written_changes_no_bit(data: Path, tmp_path: Path) -> None:
    plain = run_here(words(data, tmp_path / "a", "trainer.log_every=4"))
    often = ("trainer.checkpoint_every=1", "trainer.checkpoint_async=true", "trainer.checkpoint_every_min=0.0001")
    busy = run_here(words(data, tmp_path / "b", "trainer.log_every=4", *often))
    assert curve(plain) == curve(busy)
    assert plain.rows_file("test", 0).read_bytes() == busy.rows_file("test", 0).read_bytes()


@pytest.mark.slow
def test_a_compiled_model_trains_as_the_plain_one(data: Path, tmp_path: Path) -> None:
    if not any(shutil.which(c) for c in (os.environ.get("CXX", "c++"), "g++", "clang++")):
        pytest.skip("torch.compile on a CPU needs a C++ compiler")
    more = ("trainer.epochs=1", "trainer.max_steps=3", "trainer.batch_size=8")
    plain = run_here(words(data, tmp_path / "a", *more))
    finish(words(data, tmp_path / "b", *more, "trainer.compile=true"), 280)  # a process of its own: the compiler starts others
    losses = [[line["loss"] for line in kinds(run, "train")] for run in (plain, run_in(tmp_path / "b"))]
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)


# ---- where it begins


@pytest.mark.parametrize("kind", ["run", "safetensors", "pt"])
def test_a_training_begins_at_given_weights(trained: tuple[Path, RunDir], tmp_path: Path, kind: str) -> None:
    weights, start = trained_weights(trained[1].path), trained[1].path
    if kind == "safetensors":
        start = tmp_path / "w.safetensors"
        save_file({k: v.contiguous() for k, v in weights.items()}, start)
    elif kind == "pt":
        start = tmp_path / "w.pt"
        torch.save({"state_dict": weights}, start)
    more = ("model.norm=batch", "trainer.max_steps=1", "trainer.lr=1e-30", "trainer.weight_decay=0")
    run = run_here(words(trained[0], tmp_path / "runs", f"model.init_from={start}", *more))
    tensors, _ = read_checkpoint(run.checkpoints / "step-00000001")
    assert [
        k for k, v in weights.items() if "num_" not in k and "running" not in k and raw(tensors[f"model/{k}"]) != raw(v)
    ] == []


def test_a_resumed_run_does_not_begin_again_at_given_weights(trained: tuple[Path, RunDir], tmp_path: Path) -> None:
    more = ("model.norm=batch", f"model.init_from={trained[1].path}", "trainer.max_steps=6")
    cfg, context = prepared(words(trained[0], tmp_path / "a", *more))
    context.stop.signum = signal.SIGTERM
    with pytest.raises(Stopped):
        again(cfg, context)
    context.stop.signum = None
    again(cfg, context)
    assert curve(context.dir) == curve(run_here(words(trained[0], tmp_path / "b", *more)))


# ---- what it refuses


def test_a_huge_rate_ends_with_the_step_that_broke_and_a_finite_checkpoint(data: Path, tmp_path: Path) -> None:
    more = ("trainer.lr=100", "trainer.optimizer=sgd", "trainer.warmup=0", "trainer.epochs=60", "trainer.checkpoint_every=1")
    cfg, context = prepared(words(data, tmp_path / "runs", *more))
    for _ in range(2):  # the same again: it goes on from a sound checkpoint and breaks at the same step
        with pytest.raises(RunError, match=r"^trainer\.step=\d+: .*The last checkpoint is kept") as caught:
            again(cfg, context)
        for stem in {f.with_suffix("") for f in context.dir.checkpoints.glob("step-*.json")}:
            tensors, _ = read_checkpoint(stem)
            assert all(bool(torch.isfinite(v).all()) for k, v in tensors.items() if k.startswith("model/"))
        assert int(str(caught.value).split("=")[1].split(":")[0]) > last_step(context.dir)
    assert all(math.isfinite(line["loss"]) for line in curve(context.dir))


@pytest.mark.slow
def test_nan_on_two_ranks_ends_with_exit_5_and_the_step(data: Path, tmp_path: Path) -> None:
    more = ("trainer.lr=100", "trainer.optimizer=sgd", "trainer.warmup=0", "trainer.epochs=60", "trainer.checkpoint_every=1")
    ended = launch(words(data, tmp_path / "runs", *more, "resources.tasks_per_node=2"))
    assert ended.returncode == 5
    assert ended.stderr.startswith("trainer.step="), ended.stderr
    run = run_in(tmp_path / "runs")
    tensors, _ = read_checkpoint(run.checkpoints / f"step-{last_step(run):08d}")
    assert all(bool(torch.isfinite(v).all()) for k, v in tensors.items() if k.startswith("model/"))


@pytest.mark.slow
def test_a_full_disk_ends_with_exit_5_and_the_same_command_goes_on_when_there_is_room(data: Path, tmp_path: Path) -> None:
    args = words(data, tmp_path / "runs", "trainer.checkpoint_every=1", "trainer.epochs=3")
    plan, cfg, files = make_plan(load(args))
    run = RunDir(Path(plan.run_dir))
    prepare(run, plan, cfg, files)
    with small_disk(tmp_path / "disk") as disk:
        run.checkpoints.symlink_to(disk)
        (disk / "other").write_bytes(b"x" * (3 * 2**20 - 500_000))  # a checkpoint has some 250 KB
        ended = launch(args)
        assert ended.returncode == 5 and "No space left on device" in ended.stderr and "Traceback" not in ended.stderr
        stems = [f.with_suffix("") for f in disk.glob("step-*.json")]
        assert stems and all(read_checkpoint(stem) for stem in stems)
        (disk / "other").unlink()
        assert "resuming at step" in finish(args).stdout
        assert curve(run) == curve(run_here(words(data, tmp_path / "peace", "trainer.epochs=3")))


def test_pixels_that_are_no_numbers_are_refused_by_row(tmp_path: Path) -> None:
    with np.load(write_npz(tmp_path / "d.npz", FEW)) as arrays:
        bad = {k: v.astype(np.float32) if k.endswith("images") else v for k, v in arrays.items()}
    bad["train_images"][7, 3, 3] = np.nan
    np.savez(tmp_path / "bad.npz", **bad)
    with pytest.raises(DataError, match="row 7 of `train_images`"):
        run_here(words(tmp_path / "bad.npz", tmp_path / "runs"))


def test_data_that_changed_after_submission_is_refused(data: Path, tmp_path: Path) -> None:
    cfg, context = prepared(words(data, tmp_path / "runs"))
    write_npz(data, FEW, seed=1)
    with pytest.raises(DataError, match="changed since submission"):
        again(cfg, context)


def test_a_model_whose_best_checkpoint_is_damaged_is_told_with_a_cure(data: Path, tmp_path: Path) -> None:
    cfg, context = prepared(words(data, tmp_path / "runs", "trainer.epochs=3", "trainer.patience=2", "trainer.lr=1e-30"))
    again(cfg, context)
    best = context.dir.checkpoints / f"{rundir.read_json(context.dir.model)['checkpoint']}.safetensors"
    assert best.name != f"step-{last_step(context.dir):08d}.safetensors"
    os.truncate(best, 1000)
    with pytest.raises(DataError, match=r"^checkpoint=step-\d+: .*--anew"):
        again(cfg, context)


def test_a_damaged_checkpoint_costs_steps_not_bits(data: Path, tmp_path: Path) -> None:
    more = ("trainer.checkpoint_every=2", "trainer.epochs=3")
    cfg, context = prepared(words(data, tmp_path / "runs", *more))
    again(cfg, context)
    whole, rows = curve(context.dir), context.dir.rows_file("test", 0).read_bytes()
    os.truncate(context.dir.checkpoints / f"step-{last_step(context.dir):08d}.json", 50)
    again(cfg, context)
    assert curve(context.dir) == whole and context.dir.rows_file("test", 0).read_bytes() == rows
    assert len(warnings_of(context.dir)) == 1
    assert lease.last_life(context.dir) == 1
