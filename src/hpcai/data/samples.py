"""Cases -> tensors that a loop can index.   pixels -> one table in memory, scaled once if it fits, else batch by batch

Shapes: N samples, C channels, *size = (H, W) or (D, H, W), B samples of a batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hpcai.data.cases import Cases

SCALED_BYTES = 2**30  # a table up to this size is scaled once; a larger one stays as stored and is scaled a batch at a time


@dataclass(frozen=True)
class Scaling:
    """Brings each channel to mean 0 and sd 1 over the training cases; part of the model."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def fit(cls, x_NC: NDArray[Any]) -> Scaling:
        """From the training pixels (N, C, *size)."""
        axes = (0, *range(2, x_NC.ndim))
        mean, std = x_NC.mean(axes, dtype=np.float64), x_NC.std(axes, dtype=np.float64)
        return cls(tuple(mean.tolist()), tuple(np.where(std > 0, std, 1.0).tolist()))

    def apply(self, x_BC: Tensor, dtype: torch.dtype) -> Tensor:
        """(B, C, *size) of any type -> scaled, `dtype`; the same bits for a sample alone or in a batch."""
        shape = (1, -1, *[1] * (x_BC.ndim - 2))
        mean = torch.tensor(self.mean, dtype=dtype, device=x_BC.device).view(shape)
        std = torch.tensor(self.std, dtype=dtype, device=x_BC.device).view(shape)
        return (x_BC.to(dtype) - mean) / std


class Samples:
    """A table of samples on one device. `index` are the cases' numbers: they key the augmentation."""

    def __init__(self, x: Tensor, y: Tensor, index: Tensor, scaling: Scaling, dtype: torch.dtype, device: torch.device) -> None:
        itemsize = torch.empty((), dtype=dtype).element_size()
        self.scaled = x.numel() * itemsize <= SCALED_BYTES
        self.x = (scaling.apply(x, dtype) if self.scaled else x).to(device)
        self.y, self.index = y.to(device), index.to(device)
        self.scaling, self.dtype, self.device = scaling, dtype, device

    def __len__(self) -> int:
        return len(self.y)

    @property
    def channels(self) -> int:
        """C."""
        return int(self.x.shape[1])

    def batch(self, at: Tensor) -> tuple[Tensor, Tensor]:
        """Samples number `at` (B,): x (B, C, *size) scaled, y (B,)."""
        if at.device != self.device:
            at = at.to(self.device)
        x = self.x[at]
        return (x if self.scaled else self.scaling.apply(x, self.dtype)), self.y[at]


def load_samples(
    cases: Cases,
    indices: NDArray[np.int64],
    dtype: torch.dtype,
    device: torch.device,
    scaling: Scaling | None = None,
) -> Samples:
    """The samples of `indices`; with no `scaling`, one is fitted to them.

    Raises: DataError for a case that cannot be read.
    """
    x = cases.read_many(indices)
    y, index = torch.from_numpy(cases.labels[indices]), torch.from_numpy(np.asarray(indices, dtype=np.int64))
    return Samples(torch.from_numpy(x), y, index, scaling or Scaling.fit(x), dtype, device)
