"""Augmentation: the same bits for a sample wherever it stands, and no more change than promised."""

from __future__ import annotations

from collections.abc import Iterator
from math import atan2, degrees

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hpcai.data import augment as module
from hpcai.data.augment import AUGMENTATIONS, augment, hashes, uniform

ALL = list(AUGMENTATIONS)
SHAPES = [(24, 1, 28, 28), (7, 3, 31, 45), (5, 2, 7, 12, 13)]


@pytest.fixture(autouse=True)
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    threads = torch.get_num_threads()
    yield
    torch.use_deterministic_algorithms(False)
    torch.set_num_threads(threads)


def images(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_sample_gets_the_same_bits_alone_in_any_batch_order_and_thread_count(
    shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    x, index = images(shape, dtype), torch.arange(shape[0]) * 1_000_003
    whole = augment(x, ALL, 3, 5, index)
    assert whole.shape == x.shape and whole.dtype == dtype and torch.isfinite(whole).all()
    for i in range(len(x)):
        assert torch.equal(augment(x[i : i + 1], ALL, 3, 5, index[i : i + 1])[0], whole[i])
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(2))
    for threads in (1, 2):
        torch.set_num_threads(threads)
        assert torch.equal(augment(x[order], ALL, 3, 5, index[order]), whole[order])


@settings(deadline=None, max_examples=30)
@given(
    st.integers(0, 2**31 - 1), st.integers(0, 10**6), st.lists(st.integers(0, 2**40), min_size=1, max_size=9), st.integers(1, 9)
)
def test_bits_do_not_depend_on_how_a_batch_is_cut(seed: int, epoch: int, numbers: list[int], cut: int) -> None:
    x, index = images((len(numbers), 1, 9, 10)), torch.tensor(numbers)
    parts = [augment(x[i : i + cut], ALL, seed, epoch, index[i : i + cut]) for i in range(0, len(x), cut)]
    assert torch.equal(torch.cat(parts), augment(x, ALL, seed, epoch, index))


@pytest.mark.parametrize("name", ["affine", "intensity", "noise"])
def test_seed_epoch_and_sample_each_change_the_result(name: str) -> None:
    x = images((1, 1, 12, 12))
    results = [
        augment(x, [name], seed, epoch, torch.tensor([sample]))
        for seed, epoch, sample in ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 0), (2**31 - 1, 0, 0))
    ]
    assert len({r.numpy().tobytes() for r in results}) == len(results)


def test_one_augmentation_does_not_change_what_another_draws() -> None:
    x, index = images((8, 1, 12, 12)), torch.arange(8)
    flipped = augment(x, ["flip"], 0, 0, index)
    assert torch.equal(augment(x, ["flip", "noise"], 0, 0, index), augment(flipped, ["noise"], 0, 0, index))


def test_the_input_is_left_as_it_is_and_no_name_changes_nothing() -> None:
    x = images((4, 1, 12, 12)).requires_grad_()
    before = x.detach().clone()
    y = augment(x, ALL, 0, 0, torch.arange(4))
    assert torch.equal(x, before) and not y.requires_grad
    assert torch.equal(augment(x, [], 0, 0, torch.arange(4)), before)


@pytest.mark.parametrize("size", [(41, 41), (60, 41), (31, 31, 31), (41, 31, 21)])
def test_affine_is_rotation_scale_and_shift_within_its_limits_and_never_shears(size: tuple[int, ...]) -> None:
    dims = len(size)
    axes = torch.meshgrid(*[torch.arange(n, dtype=torch.float64) - (n - 1) / 2 for n in size], indexing="ij")
    x = torch.stack(axes).expand(300, dims, *size)  # channel i holds the coordinate i: the result says where it was sampled
    y = augment(x.contiguous(), ["affine"], 0, 0, torch.arange(300))
    middle = (slice(None), slice(None), *[n // 2 for n in size])
    matrix = torch.empty(300, dims, dims, dtype=torch.float64)
    for j in range(dims):
        step = list(middle)
        step[2 + j] = size[j] // 2 + 1
        matrix[:, :, j] = y[tuple(step)] - y[middle]
    scale = matrix.det().abs() ** (1 / dims)
    assert torch.allclose(matrix @ matrix.mT, scale[:, None, None] ** 2 * torch.eye(dims, dtype=torch.float64), atol=1e-9)
    assert 1 / 1.1 - 1e-9 < scale.min() < 0.92 and 1.08 < scale.max() < 1 / 0.9 + 1e-9
    if dims == 2:
        angle = [degrees(atan2(float(m[1, 0]), float(m[0, 0]))) for m in matrix]
        assert -10.01 < min(angle) < -9.5 and 9.5 < max(angle) < 10.01
    if all(n % 2 for n in size):
        shift = y[middle].abs() / torch.tensor(size)
        assert 0.068 < shift.max() <= 0.0701


def test_affine_repeats_the_border_outside() -> None:
    x = torch.full((50, 1, 20, 20), 3.0)
    assert torch.allclose(augment(x, ["affine"], 0, 0, torch.arange(50)), x)


def test_intensity_is_gain_and_offset_within_their_limits() -> None:
    x = torch.tensor([0.0, 1.0]).view(1, 1, 1, 2).repeat(2000, 1, 1, 1)
    y = augment(x, ["intensity"], 0, 0, torch.arange(2000))
    offset, gain = y[..., 0], y[..., 1] - y[..., 0]
    assert -0.5 <= offset.min() < -0.49 and 0.49 < offset.max() <= 0.5 and abs(offset.mean()) < 0.02
    assert 0.8 - 1e-6 <= gain.min() < 0.81 and 1.19 < gain.max() <= 1.2 + 1e-6


@pytest.mark.parametrize("shape", [(2000, 1, 2, 3), (2000, 1, 2, 2, 3)])
def test_flip_mirrors_left_and_right_of_half_the_samples(shape: tuple[int, ...]) -> None:
    x = images(shape)
    y = augment(x, ["flip"], 0, 0, torch.arange(2000))
    same, mirrored = ((y == z).flatten(1).all(1) for z in (x, x.flip(-1)))
    assert torch.all(same ^ mirrored) and 0.45 < mirrored.float().mean() < 0.55


def test_noise_is_white_normal_and_of_the_stated_strength() -> None:
    x = torch.zeros(300, 1, 32, 32)
    z = (augment(x, ["noise"], 0, 0, torch.arange(300)) / module.NOISE).double()
    assert abs(z.mean()) < 0.01 and abs(z.std() - 1) < 0.01
    assert abs(z.pow(3).mean()) < 0.02 and abs(z.pow(4).mean() - 2.85) < 0.05  # kurtosis -0.15
    assert abs((z[..., 1:] * z[..., :-1]).mean()) < 0.01 and abs((z[1:] * z[:-1]).mean()) < 0.01


def test_hashes_are_splitmix64() -> None:
    # Source: Rosetta Code, "Pseudo-random numbers/Splitmix64", seed 1234567
    known = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431, 16408922859458223821]
    assert [h % 2**64 for h in hashes(torch.tensor([1234567]), 5)[0].tolist()] == known


def test_uniform_numbers_fill_the_unit_interval_evenly() -> None:
    u = uniform(torch.arange(5000), 20, torch.float32)
    counts = torch.histc(u, 50, 0, 1)
    assert u.min() >= 0 and u.max() < 1
    assert ((counts - 2000) ** 2 / 2000).sum() < 90  # chi-square of 49 degrees: 85 is p = 0.001
    assert torch.corrcoef(u.T).fill_diagonal_(0).abs().max() < 0.06
