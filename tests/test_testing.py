"""The contracts bite: each broken model and task is caught, and told apart."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import plugin
import pytest
import torch
from torch import Tensor, nn

from hpcai.config.registry import ModelSpec
from hpcai.config.schema import Model
from hpcai.tasks.classification import Classification
from hpcai.testing import check_model, check_task

torch.set_num_threads(1)  # see test_models.py


class Net(nn.Module):
    """Keeps the contract, but for the fault it is built with."""

    def __init__(self, channels: int, classes: int, fault: str) -> None:
        super().__init__()
        self.fault = fault
        self.conv = nn.Conv2d(channels, 6, 3)
        self.norm = nn.BatchNorm2d(6) if fault == "batch norm" else nn.GroupNorm(2, 6)
        self.head = nn.Linear(6, classes)
        if fault == "idle weight":
            self.unused = nn.Linear(2, 2)
        if fault == "own generator":
            nn.init.normal_(self.head.weight, generator=torch.Generator().manual_seed(torch.seed() % 2**31))
        if fault == "shared weights":
            self.again = self.conv

    def forward(self, x: Tensor) -> Any:
        h = self.norm(self.conv(x)).relu()
        h = h.amax(dim=(2, 3)) if self.fault == "one class" else h.mean(dim=(2, 3))
        if self.fault == "batch mean":
            h = h - h.mean(0)
        if self.fault == "dropout in eval":
            h = nn.functional.dropout(h, 0.5, training=True)
        if self.fault == "nan":
            h = h / 0
        logits = self.head(h)
        return {"dict": {"logits": logits}, "one class": logits[:, :1]}.get(self.fault, logits)


def build_for(fault: str) -> Any:
    def build(cfg: Model, in_channels: int, classes: int) -> nn.Module:
        return Net(in_channels, classes, fault)

    return build


FAULTS = {
    "own generator": "differs between two builds under one seed",
    "dict": "gives dict, not a tensor",
    "one class": r"logits are \(4, 1\), not \(B, K\) = \(4, 2\)",
    "nan": "NaN or infinite",
    "idle weight": "no gradient reaches unused.weight, unused.bias",
    "shared weights": "safetensors cannot save",
    "dropout in eval": "gives other logits",
    "batch mean": "a sample alone gives other logits than in a batch, in eval mode",
    "batch norm": "a sample alone gives other logits than in a batch, in training with norm=group",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_check_model_catches(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[__name__], "build_it", build_for(fault), raising=False)
    with pytest.raises(AssertionError, match=FAULTS[fault]):
        check_model(ModelSpec(f"{__name__}:build_it", dims=(2,)))


def test_check_model_passes_a_sound_model_and_leaves_torch_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[__name__], "build_it", build_for(""), raising=False)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    check_model(ModelSpec(f"{__name__}:build_it", dims=(2,)), channels=3, classes=4, size=9)
    assert torch.equal(torch.get_rng_state(), before) and not torch.are_deterministic_algorithms_enabled()


def test_a_model_with_batch_norm_passes_when_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[__name__], "build_it", build_for("batch norm"), raising=False)
    check_model(ModelSpec(f"{__name__}:build_it", dims=(2,)), norm="batch")


# ---- tasks


@pytest.mark.parametrize("weights", [None, torch.tensor([0.4, 1.6, 1.0])])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_classification_keeps_the_contract(weights: Tensor | None, smoothing: float) -> None:
    weights = None if weights is None else weights.double()
    check_task(Classification(["a", "b", "c"], weights, smoothing), classes=3)


class Wrong(Classification):
    def __init__(self, fault: str) -> None:
        super().__init__(["a", "b"])
        self.wrong = fault

    def loss(self, logits_BK: Tensor, target_B: Tensor) -> tuple[Any, Any]:
        total, weight = super().loss(logits_BK, target_B)
        return {"mean": (total / weight, 1.0), "detached": (total.detach(), weight)}.get(self.wrong, (total, weight))

    def rows(self, *args: Any) -> list[dict[str, Any]]:
        rows = super().rows(*args)
        if self.wrong == "lost":
            return rows[1:]
        if self.wrong == "logits":
            return [row | {"scores": s} for row, s in zip(rows, args[3].tolist())]
        return [row | {"label": -1} for row in rows] if self.wrong == "unlabelled" else rows


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ("mean", "parts give"),
        ("detached", "carries no gradient"),
        ("lost", "not one a case"),
        ("logits", "no probabilities"),
        ("unlabelled", "other labels"),
    ],
)
def test_check_task_catches(fault: str, says: str) -> None:
    with pytest.raises(AssertionError, match=says):
        check_task(Wrong(fault))


# ---- plug-in


@pytest.mark.slow
@pytest.mark.parametrize("install", [plugin.install, plugin.install_by_hand])
def test_a_plug_in_is_installed_found_by_name_and_keeps_the_contract(tmp_path: Path, install: Any) -> None:
    install(tmp_path / "site")
    program = (
        "import sys\n"
        "from hpcai.config.registry import find_model\n"
        "spec = find_model('example_patches')\n"
        "assert 'torch' not in sys.modules, 'the light half imports torch'\n"
        "from hpcai.errors import ConfigError\n"
        "from hpcai.testing import check_model\n"
        "check_model('example_patches', channels=3, classes=5, options={'hidden': 8})\n"
        "try:\n"
        "    check_model('example_patches', options={'hiden': 8})\n"
        "except ConfigError as fault:\n"
        "    print(fault)\n"
    )
    path = os.pathsep.join([str(tmp_path / "site"), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program], env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("model.options.hiden=8: ")


def test_without_the_plug_in_its_name_is_unknown() -> None:
    from hpcai.errors import ConfigError

    with pytest.raises(ConfigError, match=r"model.name=example_patches: unknown"):
        check_model("example_patches")
