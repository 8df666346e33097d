"""The state of training: schedule, average, random streams, and that what is saved is all there is."""

from __future__ import annotations

import math
import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from training_kit import ALONE, fresh_state, same_bits, table, train

from hpcai.comm import seed_everything
from hpcai.config.schema import Trainer
from hpcai.training.state import Progress, lr_at, make_optimizer, pack_rng, unpack_rng

torch.set_num_threads(1)
CPU = torch.device("cpu")
HARD = {"ema_decay": 0.9, "clip_norm": 1.0, "accumulate": 2, "augment": ["affine", "noise"], "batch_size": 4, "epochs": 4}


# ---- learning rate


def test_the_rate_rises_to_its_peak_and_falls_as_a_cosine() -> None:
    cfg = Trainer(lr=1.0, warmup=0.2, lr_schedule="cosine")
    rates = [lr_at(step, 10, cfg) for step in range(10)]
    assert rates[:3] == pytest.approx([1 / 3, 2 / 3, 1.0])
    assert rates[2:] == pytest.approx([0.5 * (1 + math.cos(math.pi * k / 8)) for k in range(8)])


def test_a_constant_rate_stays_at_its_peak_after_the_warm_up() -> None:
    cfg = Trainer(lr=0.3, warmup=0.5, lr_schedule="constant")
    assert [lr_at(step, 4, cfg) for step in range(4)] == pytest.approx([0.1, 0.2, 0.3, 0.3])


@pytest.mark.parametrize("total", [1, 2, 7, 1000])
@pytest.mark.parametrize("warmup", [0.0, 0.1, 0.5, 0.999])
def test_every_rate_is_positive_and_at_most_the_peak(total: int, warmup: float) -> None:
    cfg = Trainer(lr=0.3, warmup=warmup)
    assert all(0 < lr_at(step, total, cfg) <= 0.3 for step in range(total))


def test_the_optimiser_steps_with_the_rate_of_its_step() -> None:
    cfg, seen = Trainer(batch_size=4, epochs=2, lr=0.01, warmup=0.3), []
    state = fresh_state(cfg, 20)
    train(state, table(20, dtype=torch.float32), lambda s, o: seen.append((state.optimizer.param_groups[0]["lr"], state.lr())))
    assert seen == [(lr_at(step, 10, cfg),) * 2 for step in range(10)]


@pytest.mark.parametrize(("name", "kind"), [("adamw", torch.optim.AdamW), ("sgd", torch.optim.SGD)])
def test_optimisers_are_torchs(name: Any, kind: type) -> None:
    mine, theirs = (torch.nn.Parameter(torch.tensor([1.0, -2.0])) for _ in range(2))
    more = {"momentum": 0.9, "nesterov": True} if name == "sgd" else {}
    ours, reference = make_optimizer([mine], Trainer(optimizer=name, lr=0.1)), kind([theirs], lr=0.1, weight_decay=0.01, **more)
    for g in ([1.0, 2.0], [-0.5, 0.1]):
        for p, optimizer in ((mine, ours), (theirs, reference)):
            p.grad = torch.tensor(g)
            optimizer.step()
    torch.testing.assert_close(mine, theirs)


# ---- average


def test_the_average_follows_the_formula() -> None:
    """avg <- d avg + (1 - d) w with d = min(decay, (1 + step) / (10 + step)): 2/11, 3/12, 4/13, ... up to 0.3."""
    cfg = Trainer(batch_size=4, epochs=1, ema_decay=0.3, lr=0.05)
    state = fresh_state(cfg, 20)
    wanted = [p.detach().clone() for p in state.params]

    def by_hand(step: Any, outcome: Any) -> None:
        d = min(0.3, (1 + step.number) / (10 + step.number))
        for i, p in enumerate(state.params):
            wanted[i] = d * wanted[i] + (1 - d) * p.detach()

    train(state, table(20, dtype=torch.float32), by_hand)
    assert state.progress.step == 5
    for average, w in zip((state.ema[k] for k, _ in state.model.named_parameters()), wanted, strict=True):
        torch.testing.assert_close(average, w)


def test_statistics_are_copied_not_averaged() -> None:
    state = fresh_state(Trainer(batch_size=4, epochs=1, ema_decay=0.9), 20, norm="batch")
    train(state, table(20, dtype=torch.float32))
    own = state.model.state_dict()
    for name in own:
        if name.endswith(("running_mean", "running_var", "num_batches_tracked")):
            assert same_bits(own[name], state.ema[name])
    assert not same_bits(own["head.weight"], state.ema["head.weight"])


@pytest.mark.parametrize("norm", ["group", "batch"])
def test_judging_uses_the_average_and_leaves_the_weights_as_they_were(norm: str) -> None:
    state = fresh_state(Trainer(batch_size=4, epochs=1, ema_decay=0.9), 20, norm=norm, dropout=0.5)
    train(state, table(20, dtype=torch.float32))
    before = {k: v.clone() for k, v in state.tensors().items()}
    with pytest.raises(KeyError), state.judged() as model:
        assert not model.training
        assert same_bits(model.state_dict()["head.weight"], before["ema/head.weight"])
        model(table(4, dtype=torch.float32).x)
        raise KeyError
    assert state.model.training
    assert [k for k, v in state.tensors().items() if not same_bits(v, before[k])] == []


# ---- resuming


@pytest.mark.parametrize("norm", ["group", "batch"])
@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_a_state_loaded_in_the_middle_ends_with_the_same_bits(norm: str, optimizer: Any) -> None:
    cfg, samples = Trainer(**HARD, optimizer=optimizer), table(20, dtype=torch.float32)
    state, held = fresh_state(cfg, 20, norm=norm, dropout=0.5), {}

    def hold(step: Any, outcome: Any) -> None:
        if step.number == 7:
            held.update(tensors={k: v.clone() for k, v in state.tensors().items()}, progress=state.to_json())

    train(state, samples, hold)
    seed_everything(99, 0)  # whatever ran since
    other = fresh_state(cfg, 20, norm=norm, dropout=0.5)
    seed_everything(98, 0)
    other.load(**held)
    train(other, samples)
    assert state.progress.step == other.progress.step == 20
    assert [k for k, v in state.tensors().items() if not same_bits(v, other.tensors()[k])] == []


def test_random_streams_come_back_all_of_them() -> None:
    seed_everything(5, 2)
    random.gauss(0, 1), np.random.standard_normal()  # both hold a second draw back
    packed = pack_rng(CPU)

    def draws() -> list[Any]:
        return [torch.rand(3).tolist(), np.random.standard_normal(3).tolist(), [random.gauss(0, 1) for _ in range(3)]]

    wanted = draws()
    seed_everything(6, 0)
    assert draws() != wanted
    unpack_rng(packed, CPU)
    assert draws() == wanted
    assert len(packed) == len(pack_rng(CPU)) and packed.dtype == torch.uint8


def test_each_rank_has_a_stream_of_its_own_and_the_same_first_weights() -> None:
    def first(rank: int) -> tuple[Tensor, float]:
        from hpcai.comm import Group

        group = Group(rank, 1, CPU)
        return fresh_state(Trainer(), 20, group).params[0].detach(), torch.rand(()).item()

    (w0, draw0), (w1, draw1) = first(0), first(1)
    assert same_bits(w0, w1) and draw0 != draw1


def test_progress_round_trips_through_json() -> None:
    state = fresh_state(Trainer(), 20)
    state.progress = Progress(step=3, best=0.25, best_step=2, losses=[0.1, 1e-300])
    assert Progress(**state.to_json()) == state.progress
    assert state.to_json()["losses"] is not state.progress.losses


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_one_weight_that_is_no_number_shows_in_the_largest(value: float) -> None:
    state = fresh_state(Trainer(), 20)
    assert math.isfinite(state.largest_weight())
    with torch.no_grad():
        state.params[2].view(-1)[-1] = value
    assert not math.isfinite(state.largest_weight())


def test_the_group_alone_needs_no_flat_buffer() -> None:
    assert fresh_state(Trainer(), 20, ALONE).flat is None
