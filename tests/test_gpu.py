"""On a CUDA device: the same launcher, the same loop, the same promises."""

from __future__ import annotations

import random
import signal
from pathlib import Path

import pytest
import torch
from training_kit import HARD, ask_to_stop, assert_same, finish, interrupt, launch, run_in, words, write_npz

from hpcai.rundir import read_json
from hpcai.training.state import pack_rng, unpack_rng

pytestmark = [pytest.mark.gpu, pytest.mark.slow]
GPU = "resources.gpus_per_node=1"


def test_random_streams_of_a_gpu_are_packed_and_set_again() -> None:
    device = torch.device("cuda", 0)
    packed = pack_rng(device)
    first = torch.rand(4, device=device)
    unpack_rng(packed, device)
    assert torch.equal(torch.rand(4, device=device), first)


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_run_on_a_gpu_is_bit_identical_when_started_anew(tmp_path: Path, precision: str) -> None:
    data = write_npz(tmp_path / "data.npz")
    for name in ("a", "b"):
        finish(words(data, tmp_path / name, GPU, f"trainer.precision={precision}"))
    a, b = run_in(tmp_path / "a"), run_in(tmp_path / "b")
    assert read_json(a.model)["machine"]["device"] == torch.cuda.get_device_name(0)
    assert_same(a, b)


def test_a_run_on_a_gpu_that_was_killed_and_stopped_ends_with_the_same_bits(tmp_path: Path) -> None:
    data = write_npz(tmp_path / "data.npz")
    finish(words(data, tmp_path / "a", *HARD, "trainer.epochs=4", GPU))
    again = words(data, tmp_path / "b", *HARD, "trainer.epochs=4", GPU)
    assert interrupt(again, tmp_path / "b", 9, random.Random(1))
    assert ask_to_stop(again, tmp_path / "b", 21, signal.SIGTERM) == 128 + signal.SIGTERM
    finish(again)
    assert_same(run_in(tmp_path / "a"), run_in(tmp_path / "b"))


def test_members_of_a_sweep_take_turns_on_the_gpus(tmp_path: Path) -> None:
    data = write_npz(tmp_path / "data.npz")
    finish(["-m", *words(data, tmp_path / "runs", GPU, "seed=0,1")])
    runs = sorted((tmp_path / "runs").glob("t-*"))
    assert [read_json(run / "model.json")["machine"]["device"] for run in runs] == [torch.cuda.get_device_name(0)] * 2


def test_more_gpus_than_there_are_is_refused_before_anything_starts(tmp_path: Path) -> None:
    data = write_npz(tmp_path / "data.npz")
    refused = launch(words(data, tmp_path / "runs", "resources.gpus_per_node=64"))
    assert refused.returncode == 3 and "this machine has" in refused.stderr
    assert not (tmp_path / "runs").exists()
