"""Augmentation by name, on a whole batch, the same bits for a sample whatever its batch, rank or place in it.

    (seed, epoch, sample, augmentation, draw) -> hash -> uniform numbers -> affine | intensity | flip | noise

Two rules keep the bits. Randomness is counted, not drawn in turn: a number is a hash of its key. And only + - * / touch what
depends on a sample: sin, log and matrix products round differently with their place in a vector.
Shapes: B samples, C channels, *size = (H, W) or (D, H, W); S spatial dimensions. Pixels have mean 0 and sd 1 over the data.
"""

from __future__ import annotations

from collections.abc import Callable
from math import sqrt

import torch
from torch import Tensor
from torch.nn import functional as F

TAN_HALF = 0.0875  # tan(5 deg): rotation by up to 10 degrees about each axis
SHIFT = 0.07  # of the image's side
SCALE = (0.9, 1.1)
GAIN = (0.8, 1.2)
OFFSET = 0.5  # sd of the data: some 0.1 of the grey range of an X-ray (sd 0.17)
NOISE = 0.15  # sd of the data: some 0.03 of the grey range

GOLDEN = 0x9E3779B97F4A7C15
BYTES = 0x00FF00FF00FF00FF


def augment(x: Tensor, names: list[str], seed: int, epoch: int, index: Tensor) -> Tensor:
    """`x` (B, C, *size), float32 or float64, with each augmentation of `names` in turn; same shape, same type.

    `index` (B,) int64 is each sample's number in the data. `x` itself stays as it is.
    """
    assert index.shape == x.shape[:1] and x.dtype in (torch.float32, torch.float64)
    with torch.no_grad():
        for name in names:
            key = torch.tensor([_int64(seed)], device=x.device)
            for part in (epoch, index.to(x.device), list(AUGMENTATIONS).index(name)):
                key = mix(mix(key) + part)
            x = AUGMENTATIONS[name](x, key)
    return x


def _affine(x: Tensor, key: Tensor) -> Tensor:
    """Rotates, scales and shifts: one bilinear sampling, the border's pixels repeated outside."""
    size, dims = x.shape[2:], x.ndim - 2
    u = uniform(key, 7, x.dtype) * 2 - 1  # (B, 7) in [-1, 1)
    rotation = _rotation(u[:, :3] * TAN_HALF, dims)
    scale = (SCALE[0] + SCALE[1]) / 2 + u[:, 3] * ((SCALE[1] - SCALE[0]) / 2)
    at = [torch.arange(1 - n, n, 2, device=x.device).to(x.dtype).view(_along(i, dims)) for i, n in enumerate(size)]
    grid = []  # grid_sample wants x, y, z: the last axis first; coordinates from -1 to 1 over each side
    for i in reversed(range(dims)):
        shift = (u[:, 4 + i] * (2 * SHIFT)).view(-1, *[1] * dims)
        terms = [(rotation[i][j] / scale / size[i]).view(-1, *[1] * dims) * at[j] for j in range(dims)]
        grid.append(sum(terms, shift))
    return F.grid_sample(x, torch.stack(grid, dim=-1), padding_mode="border", align_corners=False)


def _rotation(v: Tensor, dims: int) -> list[list[Tensor]]:
    """Rotation matrices, [i][j] each (B,), for axis * tan(angle / 2) in `v` (B, 3); in two dimensions about z alone.

    Only + - * /, unlike sin and cos. Source: Rodrigues 1840 (Cayley's form): R = I + 2 (K + K K) / (1 + |v|^2).
    """
    a, b, c = v.unbind(1)
    if dims == 2:
        n = 1 + c * c
        return [[(1 - c * c) / n, -2 * c / n], [2 * c / n, (1 - c * c) / n]]
    n = 1 + a * a + b * b + c * c
    return [
        [(1 + a * a - b * b - c * c) / n, 2 * (a * b - c) / n, 2 * (a * c + b) / n],
        [2 * (a * b + c) / n, (1 - a * a + b * b - c * c) / n, 2 * (b * c - a) / n],
        [2 * (a * c - b) / n, 2 * (b * c + a) / n, (1 - a * a - b * b + c * c) / n],
    ]


def _along(axis: int, dims: int) -> list[int]:
    """The shape (1, ..., -1, ..., 1) of something that lies along `axis`, after the batch's."""
    return [1] + [-1 if i == axis else 1 for i in range(dims)]


def _intensity(x: Tensor, key: Tensor) -> Tensor:
    """Changes contrast (gain about the mean) and brightness (offset)."""
    u = uniform(key, 2, x.dtype).view(len(x), 2, *[1] * (x.ndim - 1))
    gain = u[:, 0] * (GAIN[1] - GAIN[0]) + GAIN[0]
    offset = (u[:, 1] * 2 - 1) * OFFSET
    return x * gain + offset


def _flip(x: Tensor, key: Tensor) -> Tensor:
    """Mirrors left and right (the last axis), for half of the samples."""
    heads = uniform(key, 1, x.dtype).view(-1, *[1] * (x.ndim - 1)) < 0.5
    return torch.where(heads, x.flip(-1), x)


def _noise(x: Tensor, key: Tensor) -> Tensor:
    """Adds white noise: the sum of a hash's eight bytes, normal but for a kurtosis of -0.15, and exact on any device."""
    h = hashes(key, x[0].numel())
    pairs = (h & BYTES) + ((h >> 8) & BYTES)  # four sums of two bytes, 16 bits each
    total = ((pairs * 0x0001000100010001) >> 48) & 0xFFFF  # their sum arrives in the highest 16 bits
    sd = sqrt(8 * (256**2 - 1) / 12)  # of the sum of eight bytes, whose mean is 8 * 127.5
    return x + (total.to(x.dtype) - 1020).view_as(x) * (NOISE / sd)


AUGMENTATIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    # the order is part of the key: add at the end
    "affine": _affine,
    "intensity": _intensity,
    "flip": _flip,
    "noise": _noise,
}


def uniform(key: Tensor, draws: int, dtype: torch.dtype) -> Tensor:
    """(B, draws) numbers in [0, 1), multiples of 2**-24, for `key` (B,) int64."""
    high = (hashes(key, draws) >> 40) & 0xFFFFFF
    return high.to(dtype) * 2.0**-24


def hashes(key: Tensor, draws: int) -> Tensor:
    """(B, draws) int64 hashes: the first `draws` of the generator that `key` (B,) seeds."""
    count = torch.arange(1, draws + 1, device=key.device, dtype=torch.int64) * _int64(GOLDEN)
    return mix(key[:, None] + count)


def mix(z: Tensor) -> Tensor:
    """SplitMix64's finaliser on int64, which wraps. Source: Steele, Lea, Flood, OOPSLA 2014 (Stafford's variant 13)."""
    z = (z ^ _shifted(z, 30)) * _int64(0xBF58476D1CE4E5B9)
    z = (z ^ _shifted(z, 27)) * _int64(0x94D049BB133111EB)
    return z ^ _shifted(z, 31)


def _shifted(z: Tensor, bits: int) -> Tensor:
    """A logical shift to the right: int64's own drags the sign along."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)


def _int64(value: int) -> int:
    """The 64 bits of `value` as a signed number, torch's only 64-bit kind that computes everywhere."""
    value &= (1 << 64) - 1
    return value - (1 << 64) if value >= 1 << 63 else value
