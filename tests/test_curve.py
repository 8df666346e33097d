"""metrics.jsonl: every step once, and no poisoned model on disk."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from training_kit import fresh_state, table, taken, train

from hpcai import lease, rundir
from hpcai.config.schema import Trainer
from hpcai.errors import OwnedError, RunError
from hpcai.rundir import RunDir
from hpcai.training.curve import Curve, cut_to_step
from hpcai.training.state import TrainState

torch.set_num_threads(1)


def curve(folder: Path, state: TrainState, log_every: int = 3, *, write: bool = True) -> Curve:
    return Curve(taken(folder), state, log_every, 4, write=write)


def lines(run: RunDir) -> list[dict[str, Any]]:
    return list(rundir.read_lines(run.metrics))


def test_a_line_holds_the_mean_loss_since_the_last_line(tmp_path: Path) -> None:
    state = fresh_state(Trainer(batch_size=4, epochs=2, lr=0.01), 20)
    mine, losses, rates = curve(tmp_path, state), [], []

    def note(step: Any, outcome: Any) -> None:
        losses.append(outcome.loss.item())
        rates.append(state.lr())
        mine.step(outcome.loss, step.epoch, state.lr())
        if step.number == 5:
            mine.read()  # as before a checkpoint: it changes no line

    train(state, table(20, dtype=torch.float32), note)
    written = lines(mine.run.dir)
    assert [(w["kind"], w["step"], w["epoch"]) for w in written] == [("train", 3, 1), ("train", 6, 2), ("train", 9, 2)]
    for at, line in zip((3, 6, 9), written, strict=True):
        assert line["loss"] == pytest.approx(sum(losses[at - 3 : at]) / 3, rel=1e-12)
        assert line["lr"] == rates[at - 1]
        assert line["samples_s"] > 0 and line["left_s"] >= 0 and line["time"] > 1.7e9


def test_losses_reach_the_cpu_once_an_interval(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state, calls = fresh_state(Trainer(batch_size=4, epochs=4), 20), Counter()
    mine = curve(tmp_path, state, log_every=10)
    for name in ("item", "tolist", "__bool__", "__float__", "__int__", "numpy", "cpu"):
        method = getattr(Tensor, name)

        def counted(self: Tensor, *args: Any, method: Any = method, name: str = name) -> Any:
            calls[name] += 1
            return method(self, *args)

        monkeypatch.setattr(Tensor, name, counted)
    train(state, table(20, dtype=torch.float32), lambda s, o: mine.step(o.loss, s.epoch, state.lr()))
    assert state.progress.step == 20 and sum(calls.values()) == 2, calls


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("bad", [1, 2, 4])
def test_a_loss_that_is_no_number_names_the_first_such_step(tmp_path: Path, value: float, bad: int) -> None:
    state = fresh_state(Trainer(), 20)
    mine = curve(tmp_path, state, log_every=4)
    with pytest.raises(RunError, match=rf"^trainer\.step={bad + 4}: the loss is -?(nan|inf)\."):
        for step in range(1, 9):
            state.progress.step = step
            mine.step(torch.tensor(value if step >= bad + 4 else 1.0), 0, 0.1)
    assert [line["step"] for line in lines(mine.run.dir)] == [4]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_weight_that_is_no_number_is_found_before_it_is_saved(tmp_path: Path, value: float) -> None:
    """The loss of a step comes before its update: it may be the last good one, of a model that is lost."""
    state = fresh_state(Trainer(), 20)
    mine = curve(tmp_path, state)
    state.progress.step = 1
    mine.step(torch.tensor(0.5), 0, 0.1)
    with torch.no_grad():
        state.params[0].view(-1)[0] = value
    with pytest.raises(RunError, match=r"^trainer\.step=1: after it a weight is (nan|inf)\. The last checkpoint is kept\."):
        mine.read()


def test_a_rank_that_does_not_write_finds_bad_losses_too(tmp_path: Path) -> None:
    state = fresh_state(Trainer(), 20)
    mine = curve(tmp_path, state, log_every=1, write=False)
    state.progress.step = 1
    mine.step(torch.tensor(1.0), 0, 0.1)
    with pytest.raises(RunError, match=r"^trainer\.step=2"):
        state.progress.step = 2
        mine.step(torch.tensor(math.nan), 0, 0.1)
    assert not mine.run.dir.metrics.exists()


def test_a_life_that_lost_the_run_adds_no_line(tmp_path: Path) -> None:
    """A rank that was cut off wakes while its successor makes the same steps, long before its own next checkpoint."""
    state = fresh_state(Trainer(), 20)
    mine = curve(tmp_path, state, log_every=1)
    state.progress.step = 1
    mine.step(torch.tensor(0.5), 0, 0.1)
    lease.take(mine.run.dir, 1, over=mine.run.life)
    state.progress.step = 2
    with pytest.raises(OwnedError):
        mine.step(torch.tensor(0.5), 0, 0.1)
    with pytest.raises(OwnedError):
        mine.validation(epoch=1, auc=0.5)
    assert [line["step"] for line in lines(mine.run.dir)] == [1]


def test_a_resumed_curve_has_every_step_once(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    rundir.append_lines(run.metrics, [{"kind": "train", "step": s, "loss": 1e-300 * s} for s in (2, 4, 6)])
    rundir.append_lines(run.metrics, [{"kind": "val", "step": 6, "auc": None}, {"kind": "train", "step": 8}])
    with run.metrics.open("ab") as f:
        f.write(b'{"kind": "train", "step": 10, "lo')
    cut_to_step(run, 6)
    assert [(v["kind"], v["step"]) for v in lines(run)] == [("train", 2), ("train", 4), ("train", 6), ("val", 6)]
    assert [v["loss"] for v in lines(run)[:3]] == [2e-300, 4e-300, 6e-300]
    assert run.metrics.read_bytes().endswith(b"\n")
    cut_to_step(run, 0)
    assert run.metrics.read_bytes() == b""


def test_there_is_nothing_to_cut_from_no_curve(tmp_path: Path) -> None:
    cut_to_step(RunDir(tmp_path), 5)
    assert list(tmp_path.iterdir()) == []
