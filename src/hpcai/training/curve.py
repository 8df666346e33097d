"""metrics.jsonl: one stream of JSON lines, cut back on resume so that no step stands in it twice.

The loop hands over losses as device tensors; they are read at a log interval or before a checkpoint, in one go.
"""

from __future__ import annotations

import json
import math
import time
from typing import Any

import torch
from torch import Tensor

from hpcai import rundir
from hpcai.context import RunContext
from hpcai.errors import RunError
from hpcai.rundir import RunDir
from hpcai.training.state import TrainState


class Curve:
    """Writes metrics.jsonl on rank 0; on every rank it finds a loss that is not finite.

    Raises: OwnedError where it would write, if another life runs the run now.
    """

    def __init__(self, run: RunContext, state: TrainState, log_every: int, samples_per_step: int, *, write: bool) -> None:
        self.run, self.state, self.log_every, self.write = run, state, log_every, write
        self.samples_per_step = samples_per_step
        self.unread: list[Tensor] = []
        self.since, self.since_step = time.monotonic(), state.progress.step
        if write:
            cut_to_step(run.dir, state.progress.step)

    def step(self, loss: Tensor, epoch: int, lr: float) -> None:
        """Notes one step's loss; every `log_every` steps a line."""
        self.unread.append(loss)
        progress = self.state.progress
        if progress.step % self.log_every == 0:
            self.read()
            speed = self.steps_s() * self.samples_per_step
            left = (self.state.total_steps - progress.step) / self.steps_s()
            facts = {"epoch": epoch + 1, "loss": sum(progress.losses) / len(progress.losses), "lr": lr}
            self._line("train", **facts, samples_s=round(speed, 1), left_s=round(left, 1))
            progress.losses.clear()
            self.since, self.since_step = time.monotonic(), progress.step

    def steps_s(self) -> float:
        """Steps a second since the last line."""
        return max(1, self.state.progress.step - self.since_step) / max(1e-9, time.monotonic() - self.since)

    def read(self) -> None:
        """Brings the losses to the CPU, in float64; called before a checkpoint too, so that none holds a poisoned model.

        Raises: RunError that names the first step whose loss is not finite, or the last one if its weights are not.
        """
        if not self.unread:
            return
        *new, weight = torch.stack([*self.unread, self.state.largest_weight()]).double().tolist()
        self.unread.clear()
        step = self.state.progress.step
        for i, loss in enumerate(new):
            check_finite(step - len(new) + 1 + i, "the loss", loss)
        check_finite(step, "after it a weight", weight)
        self.state.progress.losses += new

    def validation(self, **facts: Any) -> None:
        """One line of validation."""
        self._line("val", **facts)

    def _line(self, kind: str, **facts: Any) -> None:
        if self.write:
            self.run.fence()  # a rank that was cut off works on until it looks: its successor writes the same steps
            rundir.append_lines(
                self.run.dir.metrics, [{"kind": kind, "step": self.state.progress.step, **facts, "time": time.time()}]
            )


def check_finite(step: int, what: str, value: float) -> None:
    """Raises: RunError that names the step if `value` is NaN or infinite."""
    if not math.isfinite(value):
        raise RunError(
            f"trainer.step={step}: {what} is {value}. The last checkpoint is kept. "
            "Lower trainer.lr, set trainer.clip_norm=1, or look for bad values in the data."
        )


def cut_to_step(run: RunDir, step: int) -> None:
    """Drops the lines of steps after `step`, and a torn last line."""
    if run.metrics.exists():
        kept = [line for line in rundir.read_lines(run.metrics) if line["step"] <= step]
        rundir.write_bytes(run.metrics, "".join(json.dumps(v) + "\n" for v in kept).encode())
