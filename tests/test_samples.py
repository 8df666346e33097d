"""Samples: scaled by the training's statistics, the same bits alone or in a batch, in one table or batch by batch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from training_kit import ALONE, config, same_bits, taken, write_npz

from hpcai import rundir
from hpcai.data.open import open_cases
from hpcai.data.samples import Samples, Scaling, load_samples
from hpcai.data.split_file import sentence, split_once
from hpcai.errors import DataError

torch.set_num_threads(1)
CPU = torch.device("cpu")


def pixels(n: int = 9, channels: int = 2) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (n, channels, 5, 4)).astype(np.uint8)


def samples(x: np.ndarray, dtype: torch.dtype = torch.float32) -> Samples:
    return Samples(
        torch.from_numpy(x), torch.zeros(len(x), dtype=torch.int64), torch.arange(len(x)), Scaling.fit(x), dtype, CPU
    )


def test_scaling_gives_each_channel_mean_0_and_sd_1() -> None:
    x = pixels()
    scaled = Scaling.fit(x).apply(torch.from_numpy(x), torch.float64)
    assert scaled.mean((0, 2, 3)).tolist() == pytest.approx([0, 0], abs=1e-12)
    assert scaled.std((0, 2, 3), correction=0).tolist() == pytest.approx([1, 1])


def test_a_channel_without_contrast_becomes_zero_not_nan() -> None:
    x = pixels()
    x[:, 1] = 7
    assert (Scaling.fit(x).apply(torch.from_numpy(x), torch.float32)[:, 1] == 0).all()


def test_a_volume_is_scaled_by_channel_too() -> None:
    x = np.random.default_rng(0).normal(5, 3, (4, 2, 3, 4, 5)).astype(np.float32)
    assert Scaling.fit(x).mean == pytest.approx(tuple(x.mean((0, 2, 3, 4))), rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_sample_has_the_same_bits_alone_in_a_batch_and_in_a_large_table(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    x = pixels(40)
    whole = samples(x, dtype)
    monkeypatch.setattr("hpcai.data.samples.SCALED_BYTES", 100)
    by_batch = samples(x, dtype)
    assert whole.scaled and not by_batch.scaled and by_batch.x.dtype == torch.uint8
    at = torch.tensor([31, 0, 7])
    for i, image in zip(at, whole.batch(at)[0], strict=True):
        assert image.dtype == dtype
        assert same_bits(image, by_batch.batch(i[None])[0][0])
        assert same_bits(image, by_batch.batch(at)[0][at == i][0])


def test_labels_and_numbers_follow_their_pixels(tmp_path: Path) -> None:
    cases = open_cases(config(write_npz(tmp_path / "d.npz")).data)
    indices = np.array([5, 160, 2])
    loaded = load_samples(cases, indices, torch.float32, CPU)
    assert loaded.index.tolist() == [5, 160, 2] and loaded.y.tolist() == cases.labels[indices].tolist()
    assert (len(loaded), loaded.channels) == (3, 1)
    x, y = loaded.batch(torch.tensor([2, 0]))
    raw = torch.from_numpy(cases.read_many(np.array([2, 5])))
    assert same_bits(x, loaded.scaling.apply(raw, torch.float32)) and y.tolist() == cases.labels[[2, 5]].tolist()


def test_validation_is_scaled_as_training_was(tmp_path: Path) -> None:
    cases = open_cases(config(write_npz(tmp_path / "d.npz")).data)
    train = load_samples(cases, np.arange(10), torch.float32, CPU)
    val = load_samples(cases, np.arange(10, 20), torch.float32, CPU, train.scaling)
    assert val.scaling is train.scaling


# ---- the split, once


def test_the_split_is_made_once_and_read_ever_after(tmp_path: Path) -> None:
    cfg = config(write_npz(tmp_path / "d.npz"), "data.split.by=random").data
    cases, context = open_cases(cfg), taken(tmp_path / "run")
    first = split_once(context, cases, cfg.split)
    assert rundir.read_json(context.dir.split)["counts"] == {k: len(v) for k, v in first.parts().items()}
    other = config(tmp_path / "d.npz", "data.split.by=random", "data.split.seed=9").data
    again = split_once(context, cases, other.split)
    for name, indices in first.parts().items():
        assert again.parts()[name].tolist() == indices.tolist()


def test_a_split_whose_cases_are_gone_is_refused(tmp_path: Path) -> None:
    cfg = config(write_npz(tmp_path / "d.npz")).data
    cases, context = open_cases(cfg), taken(tmp_path / "run")
    split_once(context, cases, cfg.split)
    cases.ids = [f"other/{i}" for i in range(len(cases))]
    with pytest.raises(DataError):
        split_once(context, cases, cfg.split)


def test_the_sentence_counts_cases_and_patients(tmp_path: Path) -> None:
    cfg = config(write_npz(tmp_path / "d.npz")).data
    cases = open_cases(cfg)
    splits = split_once(taken(tmp_path / "run"), cases, cfg.split)
    assert sentence(splits, cases) == "490 cases, no patient ids: train 150, val 300, test 40"
    cases.patients = [str(i // 2) for i in range(490)]
    assert "490 cases, 245 patients: " in sentence(splits, cases)


def test_a_group_of_one_is_on_the_cpu() -> None:
    assert ALONE.device == CPU
