"""The contracts as functions: what a model, a reader's cases and a task must keep, for plug-ins and for our own tests.

    from hpcai.testing import check_model
    def test_my_model_keeps_the_contract():
        check_model("my_model", size=64)

Each raises AssertionError with a sentence that says what is not kept, and returns nothing.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, Protocol

import numpy as np
import torch
from safetensors.torch import load, save
from torch import Tensor, nn

from hpcai.config.registry import ModelSpec, find_model
from hpcai.config.schema import Model
from hpcai.data.cases import SPLITS, Cases
from hpcai.models import build_spec


class AnyTask(Protocol):
    """What check_task needs of a task."""

    def loss(self, logits: Tensor, target: Tensor, /) -> tuple[Any, Any]:
        """(sum, weight) of logits (B, K) and targets (B,): the loss is the sum of sums over the sum of weights."""

    def rows(
        self, cases: list[str], patients: list[str] | None, labels: Sequence[int], logits: Tensor, /
    ) -> list[dict[str, Any]]:
        """One row a case, ready for JSON."""


def check_model(
    model: str | ModelSpec,
    *,
    spatial_dims: Literal[2, 3] = 2,
    channels: int = 1,
    classes: int = 2,
    size: int = 28,
    norm: Literal["batch", "group"] = "group",
    options: dict[str, Any] | None = None,
) -> None:
    """A model by name or spec: seeded, finite, trained whole, saved by safetensors, and no sample touches another.

    `size` is the side of the images in pixels. With norm=group samples must not meet in training either: that, not the name
    of a layer, is what makes a run the same on any number of ranks.
    """
    spec, name = (find_model(model), model) if isinstance(model, str) else (model, "under-test")
    cfg = Model(name=name, spatial_dims=spatial_dims, norm=norm, options=options or {})

    def make(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return build_spec(spec, cfg, channels, classes)

    with _reproducible():
        net = make(0)
        _check_seeded(net, make(0))
        x = torch.randn(4, channels, *[size] * spatial_dims)
        _check_forward(net, x, classes)
        _check_saved(net, make(1), x)
        _check_apart(net.eval(), x, "in eval mode")
        if norm == "group":
            _check_apart(net.train(), x, "in training with norm=group")


@contextmanager
def _reproducible() -> Iterator[None]:
    """Deterministic algorithms only, and the caller's random state untouched."""
    before, warn = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    with torch.random.fork_rng():
        torch.use_deterministic_algorithms(True)
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(before, warn_only=warn)


def _check_seeded(net: nn.Module, again: nn.Module) -> None:
    for (name, a), b in zip(net.state_dict().items(), again.state_dict().values(), strict=True):
        _demand(
            torch.equal(a, b),
            f"{name} differs between two builds under one seed: draw from torch's global generator",
        )


def _check_forward(net: nn.Module, x: Tensor, classes: int) -> None:
    logits = net(x)
    _demand(isinstance(logits, Tensor), f"the model gives {type(logits).__name__}, not a tensor of logits")
    _demand(
        logits.shape == (len(x), classes),
        f"logits are {tuple(logits.shape)}, not (B, K) = {(len(x), classes)}",
    )
    _demand(bool(torch.isfinite(logits).all()), "logits are NaN or infinite for normal input")
    logits.square().sum().backward()
    idle = [name for name, p in net.named_parameters() if p.requires_grad and p.grad is None]
    _demand(
        not idle,
        f"no gradient reaches {', '.join(idle)}: use or remove it (DistributedDataParallel waits for it)",
    )
    bad = [name for name, p in net.named_parameters() if p.grad is not None and not torch.isfinite(p.grad).all()]
    _demand(not bad, f"the gradient of {', '.join(bad)} is NaN or infinite")


def _check_saved(net: nn.Module, other: nn.Module, x: Tensor) -> None:
    try:
        data = save(net.state_dict())
    except (ValueError, RuntimeError) as fault:
        raise AssertionError(f"safetensors cannot save the state_dict: {fault}") from fault
    other.load_state_dict(load(data))
    net.eval(), other.eval()
    with torch.no_grad():
        _demand(torch.equal(net(x), other(x)), "a model loaded from its saved state_dict gives other logits")


def _check_apart(net: nn.Module, x: Tensor, when: str) -> None:
    """Each sample alone gives what it gives in the batch, and its logits' gradient lies in its own pixels."""
    x = x.clone().requires_grad_()
    together = net(x)
    alone = torch.cat([net(x[i : i + 1]) for i in range(len(x))])
    _demand(
        torch.allclose(together, alone, rtol=1e-4, atol=1e-5),
        f"a sample alone gives other logits than in a batch, {when}",
    )
    (grad,) = torch.autograd.grad(together[0].sum(), x)
    _demand(not grad[1:].any(), f"a sample's logits depend on another sample's pixels, {when}")


def check_data(cases: Cases, *, most: int = 32) -> None:
    """Cases from any reader: ids unique, tables of one length, pixels alike, finite, and the same when read again.

    Reads `most` cases, evenly over the table.
    """
    n = len(cases)
    _demand(n > 0, "there is no case")
    _demand(
        all(isinstance(i, str) for i in cases.ids) and len(set(cases.ids)) == n,
        "ids are no strings, or not unique",
    )
    _demand(cases.labels.shape == (n,) and cases.labels.dtype == np.int64, "labels are not int64 (n,)")
    _demand(bool((cases.labels >= -1).all()), "a label lies below -1")
    _demand(cases.patients is None or len(cases.patients) == n, "patients are not one a case")
    published = cases.published
    _demand(
        published is None or (len(published) == n and set(published) <= set(SPLITS)),
        "published is not a split a case",
    )
    chosen = np.unique(np.linspace(0, n - 1, min(n, most)).astype(np.int64))
    each = [cases.read(int(i)) for i in chosen]
    _demand(all(x.dtype in (np.uint8, np.float32) for x in each), "pixels are neither uint8 nor float32")
    _demand(len({(x.shape, x.dtype) for x in each}) == 1, "cases differ in shape or type")
    _demand(each[0].ndim in (3, 4), f"pixels are {each[0].shape}, not (C, H, W) or (C, D, H, W)")
    _demand(all(bool(np.isfinite(x).all()) for x in each), "pixels are NaN or infinite")
    _demand(np.array_equal(np.stack(each), cases.read_many(chosen)), "read_many gives other pixels than read")


def check_task(task: AnyTask, *, classes: int = 2, samples: int = 12) -> None:
    """A task: its loss adds up over parts of a batch (so accumulation and ranks are exact), and its rows are whole.

    The parts are of several sizes, one of them a single sample.
    """
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(samples, classes, generator=generator, dtype=torch.float64, requires_grad=True)
    target = torch.arange(samples) % classes
    whole = [_number(v) for v in task.loss(logits, target)]
    _demand(
        bool(np.isfinite(whole).all()) and whole[1] > 0,
        f"loss gives (sum, weight) = {whole}: finite, and weight above 0",
    )
    parts = [slice(0, 1), slice(1, samples // 2), slice(samples // 2, samples)]
    summed = np.sum([[_number(v) for v in task.loss(logits[p], target[p])] for p in parts], axis=0)
    _demand(
        bool(np.allclose(summed, whole, rtol=1e-6, atol=0)),
        f"parts give (sum, weight) = {summed.tolist()}, the whole {whole}",
    )
    total = task.loss(logits, target)[0]
    _demand(isinstance(total, Tensor) and total.requires_grad, "the loss's sum carries no gradient")
    _check_rows(task.rows, logits.detach(), target.tolist())


def _check_rows(rows_of: Callable[..., list[dict[str, Any]]], logits: Tensor, labels: list[int]) -> None:
    cases = [f"case/{i}" for i in range(len(logits))]
    for patients, label in ((None, labels), ([f"p{i // 2}" for i in range(len(cases))], [-1] * len(cases))):
        rows = json.loads(json.dumps(rows_of(cases, patients, label, logits), allow_nan=False))
        _demand([r.get("case") for r in rows] == cases, "rows are not one a case, in the cases' order")
        _demand(
            [r.get("patient") for r in rows] == (patients if patients else [None for _ in cases]), "rows name other patients"
        )
        _demand(
            [r.get("label") for r in rows] == [None if v < 0 else v for v in label],
            "rows hold other labels (none: null)",
        )
        scores = np.array([r.get("scores") for r in rows])
        _demand(scores.shape == tuple(logits.shape), f"scores are {scores.shape}, not {tuple(logits.shape)}")
        _demand(
            bool(np.allclose(scores.sum(axis=1), 1) and (scores >= 0).all()),
            "scores are no probabilities that sum to 1",
        )


def _number(value: Any) -> float:
    return float(value.detach()) if isinstance(value, Tensor) else float(value)


def _demand(kept: bool, sentence: str) -> None:
    if not kept:
        raise AssertionError(sentence)
