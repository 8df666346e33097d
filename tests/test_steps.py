"""The order of samples, one optimiser step, and that its parting over ranks and micro-batches changes nothing."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from training_kit import ALONE, fresh_state, on_ranks, same_bits, table, train

from hpcai.comm import Group
from hpcai.config.schema import Trainer
from hpcai.data.augment import augment
from hpcai.tasks.classification import Classification
from hpcai.training.state import Progress
from hpcai.training.steps import Step, epoch_order, optimise, steps, steps_per_epoch, total_steps

torch.set_num_threads(1)


def everything(progress: Progress, n: int, cfg: Trainer, rank: int = 0, ranks: int = 1) -> list[Step]:
    return list(steps(progress, n, cfg, seed=7, rank=rank, ranks=ranks))


def samples_of(step: Step) -> list[int]:
    return [int(i) for micro in step.micro for i in micro]


SHAPES = {
    "n": st.integers(1, 50), "batch": st.integers(1, 20), "epochs": st.integers(1, 3),
    "ranks": st.integers(1, 5), "accumulate": st.integers(1, 4),
}  # fmt: skip


# ---- which samples


@given(**SHAPES)
@settings(max_examples=60, deadline=None)
def test_each_sample_comes_once_an_epoch_over_all_ranks(n: int, batch: int, epochs: int, ranks: int, accumulate: int) -> None:
    cfg = Trainer(batch_size=batch, epochs=epochs, accumulate=accumulate)
    shares = [everything(Progress(), n, cfg, r, ranks) for r in range(ranks)]
    for epoch in range(epochs):
        seen = Counter(i for share in shares for step in share if step.epoch == epoch for i in samples_of(step))
        assert seen == Counter(range(n))
    whole = everything(Progress(), n, cfg)
    for number, step in enumerate(whole):
        together = sorted(i for share in shares for i in samples_of(share[number]))
        assert together == sorted(samples_of(step)) and 1 <= len(together) <= batch
        assert all(len(share[number].micro) <= accumulate for share in shares)
    assert len(whole) == total_steps(n, cfg) == epochs * steps_per_epoch(n, batch)


@given(**SHAPES, cut=st.integers(1, 100))
@settings(max_examples=60, deadline=None)
def test_a_loop_left_after_any_step_goes_on_with_the_next_one(
    n: int, batch: int, epochs: int, ranks: int, accumulate: int, cut: int
) -> None:
    cfg = Trainer(batch_size=batch, epochs=epochs, accumulate=accumulate)
    whole = everything(Progress(), n, cfg, ranks - 1, ranks)
    progress, first = Progress(), []
    for step in steps(progress, n, cfg, seed=7, rank=ranks - 1, ranks=ranks):
        first.append(step)
        if step.number == cut:
            break
    rest = everything(Progress(**vars(progress)), n, cfg, ranks - 1, ranks)
    assert [plain(s) for s in first + rest] == [plain(s) for s in whole]


def plain(step: Step) -> Any:
    return step.number, step.epoch, [m.tolist() for m in step.micro], step.ends_epoch, step.last


def test_steps_know_where_an_epoch_and_the_run_end() -> None:
    each = everything(Progress(), 10, Trainer(batch_size=4, epochs=2))
    assert [(s.number, s.epoch, s.ends_epoch, s.last) for s in each] == [
        (1, 0, False, False), (2, 0, False, False), (3, 0, True, False),
        (4, 1, False, False), (5, 1, False, False), (6, 1, True, True),
    ]  # fmt: skip


def test_max_steps_ends_the_run_within_an_epoch() -> None:
    cfg = Trainer(batch_size=4, epochs=9, max_steps=5)
    each = everything(Progress(), 10, cfg)
    assert len(each) == 5 and each[-1].last and each[-1].ends_epoch  # so that it is validated
    assert total_steps(10, cfg) == 5 and total_steps(10, Trainer(batch_size=4, epochs=1, max_steps=99)) == 3


def test_a_finished_progress_has_no_step_left() -> None:
    assert everything(Progress(finished=True), 10, Trainer()) == []


def test_a_body_that_finishes_sees_no_further_step() -> None:
    progress = Progress()
    for step in steps(progress, 100, Trainer(batch_size=4), seed=0, rank=0, ranks=1):
        progress.finished = step.number == 3
    assert progress.step == 3


@given(st.integers(1, 300), st.integers(0, 2**31 - 1), st.integers(0, 1000))
def test_the_order_is_a_permutation_of_seed_and_epoch(n: int, seed: int, epoch: int) -> None:
    order = epoch_order(n, seed, epoch)
    assert sorted(order) == list(range(n))
    assert np.array_equal(order, epoch_order(n, seed, epoch))


def test_the_order_changes_with_seed_and_epoch() -> None:
    orders = {tuple(epoch_order(50, seed, epoch)) for seed in range(10) for epoch in range(10)}
    assert len(orders) == 100
    assert epoch_order(8, 3, 5).tolist() == [
        6,
        4,
        2,
        0,
        7,
        5,
        1,
        3,
    ]  # on record: a change would end every resumed run elsewhere


# ---- one step


def gradients(group: Group, n: int, batch: int, weights: Tensor | None, smoothing: float, **more: Any) -> tuple[Any, ...]:
    """(gradients as the optimiser sees them, loss) of the only step that takes all `n` samples."""
    cfg = Trainer(batch_size=batch, epochs=1, precision="float64", **more)
    state, seen = fresh_state(cfg, n, group), []
    for p in state.params:  # a block starts as its shortcut: without this most gradients are zero
        p.data += 0.01 * torch.arange(p.numel(), dtype=p.dtype).view_as(p).cos()
    state.optimizer.step = lambda: seen.append([p.grad.clone() for p in state.params])  # type: ignore[assignment, method-assign]
    task = Classification(["no", "yes"], weights, smoothing)
    out = [
        optimise(state, task, table(n), step, 0, stop=False, save=False)
        for step in steps(state.progress, n, cfg, 0, group.rank, group.size)
    ]
    return seen, [o.loss for o in out]


@pytest.mark.parametrize("ranks", [1, 2, 4])
@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("n", [16, 10, 9])  # batches of 8: full, a last one of 2, a last one of 1 (fewer than ranks)
@pytest.mark.parametrize(("weights", "smoothing"), [(None, 0.0), ((0.3, 2.5), 0.1)])
def test_the_gradient_of_a_step_is_that_of_the_whole_batch(
    ranks: int, accumulate: int, n: int, weights: Any, smoothing: float
) -> None:
    weights_K = None if weights is None else torch.tensor(weights, dtype=torch.float64)
    each = on_ranks(ranks, lambda g: gradients(g, n, 8, weights_K, smoothing, accumulate=accumulate))
    state = fresh_state(Trainer(precision="float64"), n)
    for p in state.params:
        p.data += 0.01 * torch.arange(p.numel(), dtype=p.dtype).view_as(p).cos()
    order, samples = torch.from_numpy(epoch_order(n, 0, 0)), table(n)
    for number, batch in enumerate(order.split(8)):
        x, y = samples.batch(batch)
        loss = F.cross_entropy(state.model(x), y, weight=weights_K, label_smoothing=smoothing)
        wanted = torch.autograd.grad(loss, state.params)
        for seen, losses in each:
            assert losses[number].item() == pytest.approx(loss.item(), rel=1e-12)
            for a, b in zip(seen[number], wanted, strict=True):
                torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("ranks", [1, 2])
def test_clipping_is_torchs_on_the_whole_batch(ranks: int) -> None:
    free = on_ranks(ranks, lambda g: gradients(g, 8, 8, None, 0.0))[0][0][0]
    clipped = on_ranks(ranks, lambda g: gradients(g, 8, 8, None, 0.0, clip_norm=0.01))[0][0][0]
    theirs = [torch.nn.Parameter(torch.zeros_like(g)) for g in free]
    for p, g in zip(theirs, free, strict=True):
        p.grad = g.clone()
    norm = torch.nn.utils.clip_grad_norm_(theirs, 0.01)
    assert norm > 0.02
    for a, p in zip(clipped, theirs, strict=True):
        torch.testing.assert_close(a, p.grad, rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("norm", ["group", "batch"])
def test_ranks_hold_the_same_weights_and_statistics_after_every_step(norm: str) -> None:
    def rank(group: Group) -> list[dict[str, Tensor]]:
        state, seen = fresh_state(Trainer(batch_size=8, epochs=1, ema_decay=0.9), 17, group, norm, dropout=0.3), []
        samples = table(17, dtype=torch.float32)
        train(state, samples, lambda step, outcome: seen.append({k: v.clone() for k, v in state.tensors().items()}))
        return seen

    one, two, three = on_ranks(3, rank)
    assert len(one) == 3
    own = ("rng", "num_batches_tracked")  # a rank counts the batches it had a part of; rank 0, in all of them, is the one saved
    for a, b, c in zip(one, two, three, strict=True):
        assert [k for k in a if not k.endswith(own) and not (same_bits(a[k], b[k]) and same_bits(a[k], c[k]))] == []
    assert norm == "group" or any(k.endswith("running_var") and bool((one[-1][k] != 1).all()) for k in one[-1])


def test_one_ranks_wish_is_every_ranks_wish() -> None:
    cfg = Trainer(batch_size=8, epochs=1)

    def rank(group: Group) -> list[tuple[bool, bool]]:
        state, samples, out = fresh_state(cfg, 24, group), table(24, dtype=torch.float32), []
        for step in steps(state.progress, 24, cfg, 0, group.rank, group.size):
            wish = {"stop": group.rank == 1 and step.number == 2, "save": group.first and step.number == 3}
            outcome = optimise(state, Classification(["no", "yes"]), samples, step, 0, **wish)
            out.append((outcome.stop, outcome.save))
        return out

    for seen in on_ranks(3, rank):
        assert seen == [(False, False), (True, False), (False, True)]


def test_augmentation_is_keyed_by_the_cases_number_not_by_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[int, Tensor] = {}

    def noting(x: Tensor, names: list[str], seed: int, epoch: int, index: Tensor) -> Tensor:
        out = augment(x, names, seed, epoch, index)
        for i, image in zip(index.tolist(), out, strict=True):
            assert same_bits(seen.setdefault(i, image.clone()), image)
        return out

    monkeypatch.setattr("hpcai.training.steps.augment", noting)
    for batch, accumulate in ((4, 1), (12, 1), (12, 5)):
        cfg = Trainer(batch_size=batch, epochs=1, accumulate=accumulate, augment=["affine", "noise"])
        train(fresh_state(cfg, 12), table(12, dtype=torch.float32))
    assert len(seen) == 12


def test_bf16_steps_keep_float32_weights_and_learn() -> None:
    cfg = Trainer(batch_size=8, epochs=10, precision="bf16", lr=1e-2)
    state, losses = fresh_state(cfg, 24), []
    train(state, table(24, dtype=torch.float32), lambda step, outcome: losses.append(outcome.loss.item()))
    assert all(p.dtype == torch.float32 for p in state.params)
    assert np.mean(losses[-3:]) < np.mean(losses[:3])


@pytest.mark.parametrize("weights", [None, torch.tensor([0.5, 2.0])])
def test_a_step_on_one_rank_never_waits_for_the_device(monkeypatch: pytest.MonkeyPatch, weights: Tensor | None) -> None:
    cfg = Trainer(batch_size=4, epochs=4, ema_decay=0.9, clip_norm=1, augment=["affine", "intensity", "flip", "noise"])
    state, samples, task = fresh_state(cfg, 20), table(20, dtype=torch.float32), Classification(["no", "yes"], weights)
    calls: Counter[str] = Counter()
    for name in ("item", "tolist", "__bool__", "__float__", "__int__", "numpy", "cpu"):
        method = getattr(Tensor, name)

        def counted(self: Tensor, *args: Any, method: Any = method, name: str = name) -> Any:
            calls[name] += 1
            return method(self, *args)

        monkeypatch.setattr(Tensor, name, counted)
    for step in steps(state.progress, 20, cfg, 0, 0, 1):
        optimise(state, task, samples, step, 0, stop=False, save=False)
    assert state.progress.step == 20
    assert sum(calls.values()) == 0, calls


def test_a_group_of_one_is_the_identity() -> None:
    x = torch.arange(3.0)
    assert ALONE.sum_(x) is x and ALONE.from_first(1.5) == 1.5 and ALONE.stack(x).shape == (1, 3) and ALONE.first
