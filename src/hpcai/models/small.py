"""A small residual network of our own, the default on CPU: 0.17 M parameters at width 24 in two dimensions.

x (B, C, *size) -> conv 3 -> three stages of one residual block (w, 2w, 4w channels; strides 1, 2, 2)
  -> mean over *size -> dropout -> linear -> logits (B, K)
"""

from __future__ import annotations

from math import gcd
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hpcai.config.schema import Model


def build(cfg: Model, in_channels: int, classes: int) -> nn.Module:
    """The network that `cfg` describes; any image size will do."""
    return SmallResNet(cfg.spatial_dims, in_channels, classes, cfg.width, cfg.norm, cfg.dropout)


class SmallResNet(nn.Module):
    """See the module's picture. Weights start as torch draws them, but each block starts as its shortcut."""

    def __init__(
        self,
        dims: int,
        in_channels: int,
        classes: int,
        width: int,
        norm: Literal["batch", "group"],
        dropout: float,
    ) -> None:
        super().__init__()
        self.stem = conv(dims, in_channels, width)
        self.stem_norm = make_norm(norm, dims, width)
        self.stages = nn.Sequential(
            Block(dims, width, width, 1, norm),
            Block(dims, width, 2 * width, 2, norm),
            Block(dims, 2 * width, 4 * width, 2, norm),
        )
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(4 * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, K) of images (B, C, *size)."""
        # channels last: 1.2x the speed on CPU
        layout = torch.channels_last if x.ndim == 4 else torch.channels_last_3d
        x = self.stem(x).contiguous(memory_format=layout)
        x = self.stages(F.relu(self.stem_norm(x)))
        # a mean, not AdaptiveAvgPool: its gradient has no deterministic form on CUDA
        logits: Tensor = self.head(self.dropout(x.mean(dim=tuple(range(2, x.ndim)))))
        return logits


class Block(nn.Module):
    """Two convolutions beside a shortcut. Source: He et al., CVPR 2016 (basic block; 1x1 shortcut, option B)."""

    def __init__(self, dims: int, c_in: int, c_out: int, stride: int, norm: Literal["batch", "group"]) -> None:
        super().__init__()
        # The shortcut takes every stride-th pixel itself, then convolves with stride 1: the backward pass of a strided 1x1
        # convolution, channels last, of fewer than 8 channels writes past its buffers (torch 2.13 on CPU, oneDNN, AVX2).
        self.kept = (slice(None), slice(None), *[slice(None, None, stride)] * dims)
        self.conv1 = conv(dims, c_in, c_out, stride=stride)
        self.norm1 = make_norm(norm, dims, c_out)
        self.conv2 = conv(dims, c_out, c_out)
        self.norm2 = make_norm(norm, dims, c_out)
        # zero: the block begins as its shortcut. Source: Goyal et al., arXiv:1706.02677, section 5.1
        nn.init.zeros_(self.norm2.weight)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or c_in != c_out:
            self.shortcut = nn.Sequential(conv(dims, c_in, c_out, kernel=1), make_norm(norm, dims, c_out))

    def forward(self, x: Tensor) -> Tensor:
        """(B, c_in, *size) to (B, c_out, *size / stride)."""
        y = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        return F.relu(y + self.shortcut(x[self.kept]))


def conv(dims: int, c_in: int, c_out: int, *, kernel: int = 3, stride: int = 1) -> nn.Module:
    """A convolution that keeps the size (but for its stride), without bias: a norm follows."""
    kind = nn.Conv2d if dims == 2 else nn.Conv3d
    layer = kind(c_in, c_out, kernel, stride=stride, padding=kernel // 2, bias=False)
    nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    return layer


def make_norm(norm: Literal["batch", "group"], dims: int, channels: int) -> nn.BatchNorm2d | nn.BatchNorm3d | nn.GroupNorm:
    """BatchNorm, or GroupNorm with 8 groups or the most of 8, 4, 2, 1 that divide the channels."""
    if norm == "group":
        return nn.GroupNorm(gcd(8, channels), channels)
    return nn.BatchNorm2d(channels) if dims == 2 else nn.BatchNorm3d(channels)
