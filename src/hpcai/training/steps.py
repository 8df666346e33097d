"""Which samples, and one optimiser step.   (seed, epoch) -> order -> global batch -> this rank's micro-batches -> step

Exact on any rank count: a task's loss is (sum, weight); sums, weights and gradients are added over micro-batches and ranks and
divided once. Shapes: B samples of this rank's micro-batch, K classes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from hpcai.config.schema import Trainer
from hpcai.data.augment import augment
from hpcai.data.samples import Samples
from hpcai.tasks import Trainable
from hpcai.training.state import Progress, TrainState

AGREE_EVERY = {"cpu": 1, "cuda": 10}  # steps between looks at the agreed flags: on a GPU a look waits for it


class Step(NamedTuple):
    """One optimiser step: this rank's sample numbers, in micro-batches, and whether the epoch ends with it."""

    number: int
    epoch: int
    micro: list[Tensor]
    ends_epoch: bool
    last: bool


class Outcome(NamedTuple):
    """The step's mean loss over all ranks (0-d, on the device) and what the ranks agreed on."""

    loss: Tensor
    stop: bool
    save: bool


def steps_per_epoch(n: int, batch_size: int) -> int:
    """The last short batch counts."""
    return -(-n // batch_size)


def total_steps(n: int, cfg: Trainer) -> int:
    """Optimiser steps of a whole run without early stopping."""
    steps = steps_per_epoch(n, cfg.batch_size) * cfg.epochs
    return steps if cfg.max_steps is None else min(steps, cfg.max_steps)


def steps(progress: Progress, n: int, cfg: Trainer, seed: int, rank: int, ranks: int) -> Iterator[Step]:
    """Every step that is left. Owns `progress`: it counts a step before the body sees it, so that what the body saves is the
    state after that step. The body never breaks: it sets `progress.finished`."""
    per_epoch, total = steps_per_epoch(n, cfg.batch_size), total_steps(n, cfg)
    while not progress.finished and progress.step < total:
        epoch = progress.epoch
        order = torch.from_numpy(epoch_order(n, seed, epoch))
        for at in range(progress.epoch_step, per_epoch):
            progress.step += 1
            ends = at + 1 == per_epoch
            progress.epoch, progress.epoch_step = (epoch + 1, 0) if ends else (epoch, at + 1)
            batch = order[at * cfg.batch_size : (at + 1) * cfg.batch_size]
            mine = batch if ranks == 1 else batch[rank::ranks]
            micro = [mine] if cfg.accumulate == 1 else list(mine.tensor_split(cfg.accumulate))
            micro = [m for m in micro if len(m)]
            yield Step(progress.step, epoch, micro, ends or progress.step == total, progress.step == total)
            if progress.finished or progress.step == total:
                return


def epoch_order(n: int, seed: int, epoch: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """The order of `n` samples in an epoch, the same on every rank. Source: Salmon et al. 2011 (Philox, keyed)."""
    return np.random.Generator(np.random.Philox(key=[seed, epoch])).permutation(n)


def optimise(state: TrainState, task: Trainable, samples: Samples, step: Step, seed: int, *, stop: bool, save: bool) -> Outcome:
    """One optimiser step over all ranks; collective. `stop`, `save`: what this rank wishes; any rank's wish is all ranks'."""
    cfg, group = state.cfg, state.group
    dtype = state.params[0].dtype
    loss: Tensor | float = 0.0
    weight: Tensor | float = 0.0
    whole = state.flat is None and len(step.micro) == 1  # the weight is known before the gradient: divided at its source
    for at in step.micro:
        x, y = samples.batch(at)
        if cfg.augment:
            x = augment(x, list(cfg.augment), seed, step.epoch, samples.index[at])
        with autocast(cfg, group.device):
            logits = state.forward(x)
        part, part_weight = task.loss(logits.to(dtype), y)
        part.backward(state.inverse(part_weight) if whole else None)  # type: ignore[no-untyped-call]
        loss, weight = (part.detach(), part_weight) if whole else (loss + part.detach(), weight + part_weight)
    if state.flat is not None:
        sums = state.exchange(loss, weight, stop, save)
        loss, weight = sums[0], sums[1]
        if step.number % AGREE_EVERY[group.device.type] == 0:
            stop, save = (bool(flag) for flag in sums[2:].tolist())
        else:
            stop = save = False
    assert isinstance(loss, Tensor)
    if not whole:
        torch._foreach_div_([p.grad for p in state.params if p.grad is not None], weight)
    _update(state)
    return Outcome(loss / weight, stop, save)


def _update(state: TrainState) -> None:
    """Clips the gradients, steps, clears them."""
    if state.cfg.clip_norm is not None:
        torch.nn.utils.clip_grad_norm_(state.params, state.cfg.clip_norm)
    rate = state.lr()
    for settings in state.optimizer.param_groups:
        settings["lr"] = rate
    state.optimizer.step()
    if state.flat is None:
        for p in state.params:
            p.grad = None  # optimizer.zero_grad does the same and costs a small model 3 % of its step
    else:
        state.flat.zero_()
    if state.ema:
        state.update_ema()


def autocast(cfg: Trainer, device: torch.device) -> AbstractContextManager[object]:
    """bf16 where it is asked for."""
    return torch.autocast(device.type, torch.bfloat16) if cfg.precision == "bf16" else nullcontext()
