"""All that a resumed run needs to end with the same bits: model, optimiser, EMA, progress, random streams of every rank.

The learning rate is a function of the step and needs no state. Tensors are named model/*, ema/*, optimizer/<i>/*, rng.
"""

from __future__ import annotations

import math
import random
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hpcai.comm import Group, seed_everything
from hpcai.config.schema import Trainer
from hpcai.errors import RunError

DTYPES = {"float32": torch.float32, "bf16": torch.float32, "float64": torch.float64}  # bf16: autocast over float32 weights
STATISTICS = ("running_mean", "running_var")  # BatchNorm's


@dataclass
class Progress:
    """How far a run is: after `step` optimiser steps, `epoch_step` of them in the unfinished epoch number `epoch`."""

    step: int = 0
    epoch: int = 0
    epoch_step: int = 0
    best: float | None = None  # validation score of the best checkpoint; higher is better
    best_step: int = 0
    bad: int = 0  # validations since the best
    finished: bool = False
    losses: list[float] = field(default_factory=list)  # of the steps since the last line of metrics.jsonl


class TrainState:
    """What is trained, whole. `forward` is the model, compiled if asked."""

    def __init__(self, build: Callable[[], nn.Module], cfg: Trainer, total_steps: int, seed: int, group: Group) -> None:
        seed_everything(seed, 0)  # the same weights on each rank ...
        self.model = build().to(device=group.device, dtype=DTYPES[cfg.precision])
        seed_everything(seed, group.rank)  # ... and its own dropout
        self.forward: Callable[[Tensor], Tensor] = torch.compile(self.model) if cfg.compile else self.model
        self.cfg, self.total_steps, self.group = cfg, total_steps, group
        self.params = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = make_optimizer(self.params, cfg)
        self.ema = {k: v.clone() for k, v in self.model.state_dict().items()} if cfg.ema_decay else {}
        self.progress = Progress()
        self._inverse = (0.0, torch.zeros(()))
        self.statistics = [b for name, b in self.model.named_buffers() if name.endswith(STATISTICS)]
        self.flat = self._flat_buffer() if group.size > 1 else None

    def _flat_buffer(self) -> Tensor:
        """One buffer behind all gradients, then room for BatchNorm's statistics and four numbers: see `exchange`."""
        sizes = [t.numel() for t in (*self.params, *self.statistics)]
        flat = torch.zeros(sum(sizes) + 4, dtype=self.params[0].dtype, device=self.group.device)
        views = torch.split(flat[:-4], sizes)
        for p, view in zip(self.params, views, strict=False):
            p.grad = view.view_as(p)
        self.shared = list(views[len(self.params) :])
        return flat

    def exchange(self, *numbers: Tensor | float) -> Tensor:
        """One all-reduce: gradients are summed in place, BatchNorm's statistics become the ranks' mean; collective.

        Returns the sums of four `numbers` (4,). Without the mean each rank would judge by statistics of its own, and a resumed
        run by those of rank 0, which alone are saved.
        """
        assert self.flat is not None and len(numbers) == 4
        for i, number in enumerate(numbers):
            self.flat[i - 4] = number
        if self.statistics:
            torch._foreach_copy_(self.shared, self.statistics)
        self.group.sum_(self.flat)
        if self.statistics:
            torch._foreach_div_(self.shared, self.group.size)
            torch._foreach_copy_(self.statistics, self.shared)
        return self.flat[-4:].clone()

    def inverse(self, weight: Tensor | float) -> Tensor:
        """1 / weight (0-d, on the device). Most steps weigh the same, so the last one is kept."""
        if isinstance(weight, Tensor):
            return 1 / weight
        if self._inverse[0] != weight:
            self._inverse = weight, torch.tensor(1 / weight, dtype=self.params[0].dtype, device=self.group.device)
        return self._inverse[1]

    @torch.no_grad()
    def largest_weight(self) -> Tensor:
        """The largest absolute value of all weights (0-d, on the device): NaN or infinite as soon as one is."""
        return torch.stack(torch._foreach_norm([*self.params], math.inf)).max()

    def lr(self) -> float:
        """The rate of the step that progress counts as being done."""
        return lr_at(self.progress.step - 1, self.total_steps, self.cfg)

    @torch.no_grad()
    def update_ema(self) -> None:
        """Decay grows from 2/11 to `ema_decay`, so that the start is soon forgotten.

        Source: TensorFlow, tf.train.ExponentialMovingAverage (num_updates).
        """
        step = self.progress.step
        decay = min(self.cfg.ema_decay, (1 + step) / (10 + step))
        for name, value in self.model.state_dict().items():
            if value.is_floating_point() and not name.endswith(STATISTICS):
                self.ema[name].lerp_(value, 1 - decay)
            else:
                self.ema[name].copy_(value)

    @contextmanager
    def judged(self) -> Iterator[nn.Module]:
        """The model as it is evaluated: in eval mode, with the averaged weights if there are any."""
        held = {k: v.clone() for k, v in self.model.state_dict().items()} if self.ema else {}
        if self.ema:
            self.model.load_state_dict(self.ema)
        self.model.eval()
        try:
            yield self.model
        finally:
            if held:
                self.model.load_state_dict(held)
            self.model.train()

    def tensors(self) -> dict[str, Tensor]:
        """Everything but progress, by name; collective: each rank's random streams are gathered."""
        out = {f"model/{k}": v for k, v in self.model.state_dict().items()}
        out |= {f"ema/{k}": v for k, v in self.ema.items()}
        for i, state in self.optimizer.state_dict()["state"].items():
            out |= {f"optimizer/{i}/{k}": v for k, v in state.items() if isinstance(v, Tensor)}
        out["rng"] = self.group.stack(pack_rng(self.group.device)).cpu()
        return {k: v.detach() for k, v in out.items()}

    def load(self, tensors: dict[str, Tensor], progress: dict[str, Any]) -> None:
        """The inverse of `tensors` and `asdict(progress)`.

        Raises: RunError if the checkpoint is of another model, optimiser or rank count.
        """
        try:
            self.model.load_state_dict(_part(tensors, "model/"))
            if self.ema:
                self.ema = {k: v.to(self.group.device).clone() for k, v in _part(tensors, "ema/").items()}
            self._load_optimizer(_part(tensors, "optimizer/"))
            unpack_rng(tensors["rng"][self.group.rank], self.group.device)
            self.progress = Progress(**progress)
        except (RuntimeError, KeyError, IndexError, TypeError) as e:
            raise RunError("checkpoint: does not fit this model and rank count. --anew starts another folder.") from e

    def _load_optimizer(self, tensors: dict[str, Tensor]) -> None:
        state: dict[int, dict[str, Tensor]] = {}
        for name, value in tensors.items():
            index, key = name.split("/", 1)
            state.setdefault(int(index), {})[key] = value
        self.optimizer.load_state_dict({"state": state, "param_groups": self.optimizer.state_dict()["param_groups"]})

    def to_json(self) -> dict[str, Any]:
        """Progress, for the checkpoint's JSON."""
        return asdict(self.progress)


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def make_optimizer(params: list[nn.Parameter], cfg: Trainer) -> torch.optim.Optimizer:
    """By name; fused kernels, which a small model's step needs."""
    if cfg.optimizer == "sgd":
        return torch.optim.SGD(params, cfg.lr, momentum=0.9, nesterov=True, weight_decay=cfg.weight_decay, fused=True)
    return torch.optim.AdamW(params, cfg.lr, weight_decay=cfg.weight_decay, fused=True)


def lr_at(step: int, total: int, cfg: Trainer) -> float:
    """The rate of optimiser step `step` (from 0) of `total`: linear warm-up, then cosine to 0 or constant.

    Source: Loshchilov and Hutter 2017 (SGDR), one cycle; warm-up as in Goyal et al. 2017.
    """
    rising = round(cfg.warmup * total)
    if step < rising:
        return cfg.lr * (step + 1) / (rising + 1)
    if cfg.lr_schedule == "constant":
        return cfg.lr
    return cfg.lr * 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, total - rising)))


def pack_rng(device: torch.device) -> Tensor:
    """The random streams of this process (torch, CUDA, numpy, Python) as uint8 (n,); n depends on the device kind alone."""
    state: tuple[Any, ...] = np.random.get_state()  # type: ignore[assignment]
    version, words, gauss = random.getstate()
    parts = [
        torch.get_rng_state().numpy().tobytes(),
        torch.cuda.get_rng_state(device).numpy().tobytes() if device.type == "cuda" else b"",
        np.asarray(state[1], dtype="<u4").tobytes() + struct.pack("<qqd", state[2], state[3], state[4]),
        np.asarray(words, dtype="<u4").tobytes() + struct.pack("<q?d", version, gauss is not None, gauss or 0.0),
    ]
    return torch.frombuffer(bytearray(b"".join(parts)), dtype=torch.uint8).to(device)


def unpack_rng(packed: Tensor, device: torch.device) -> None:
    """Sets the streams that `pack_rng` read."""
    data = packed.cpu().numpy().tobytes()

    def take(size: int) -> bytes:
        nonlocal data
        part, data = data[:size], data[size:]
        return part

    torch.set_rng_state(torch.frombuffer(bytearray(take(len(torch.get_rng_state()))), dtype=torch.uint8))
    if device.type == "cuda":
        size = len(torch.cuda.get_rng_state(device))
        torch.cuda.set_rng_state(torch.frombuffer(bytearray(take(size)), dtype=torch.uint8), device)
    keys = np.frombuffer(take(624 * 4), dtype="<u4")
    pos, has_gauss, cached = struct.unpack("<qqd", take(24))
    np.random.set_state(("MT19937", keys, pos, has_gauss, cached))
    words = np.frombuffer(take(625 * 4), dtype="<u4")
    version, has, gauss = struct.unpack("<q?d", take(17))
    random.setstate((version, tuple(int(w) for w in words), gauss if has else None))
