"""On a CUDA device: the same launcher, the same loop, the same promises."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from training_kit import assert_same, launch, run_in, words, write_npz

from hpcai.rundir import read_json
from hpcai.training.state import pack_rng, unpack_rng

pytestmark = [pytest.mark.gpu, pytest.mark.slow]


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
        args = words(data, tmp_path / name, "resources.gpus_per_node=1", f"trainer.precision={precision}")
        assert launch(args).returncode == 0
    a, b = run_in(tmp_path / "a"), run_in(tmp_path / "b")
    assert read_json(a.model)["machine"]["device"] == torch.cuda.get_device_name(0)
    assert_same(a, b)
