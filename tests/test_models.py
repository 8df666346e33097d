"""Models by name, and weights from files that may be anything."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from hpcai.config.schema import Model
from hpcai.errors import ConfigError, DataError, Faults
from hpcai.inputs import SHIPPED
from hpcai.models import build
from hpcai.models.small import Block
from hpcai.models.weights import init_from, load_weights
from hpcai.testing import check_model

torch.set_num_threads(1)  # threads that wait for each other on a busy machine cost forty times the time

# ---- by name


@pytest.mark.parametrize("norm", ["batch", "group"])
@pytest.mark.parametrize(("dims", "channels", "size"), [(2, 1, 28), (2, 3, 33), (3, 1, 12), (3, 2, 9)])
def test_the_small_net_keeps_the_contract(norm: Any, dims: Any, channels: int, size: int) -> None:
    check_model("resnet_small", spatial_dims=dims, channels=channels, classes=3, size=size, norm=norm)


@pytest.mark.imaging
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "dims", "size", "norm"),
    [
        ("resnet18", 2, 28, "batch"),
        ("resnet18", 2, 28, "group"),
        ("resnet18", 3, 12, "group"),
        ("resnet50", 2, 16, "batch"),
        ("resnet50", 2, 16, "group"),
        ("resnet50", 3, 8, "group"),
        ("densenet121", 2, 32, "batch"),
        ("densenet121", 2, 32, "group"),
        ("densenet121", 3, 32, "group"),
    ],
)
def test_monai_nets_keep_the_contract(name: str, dims: Any, size: int, norm: Any) -> None:
    check_model(name, spatial_dims=dims, channels=2, classes=3, size=size, norm=norm)


@pytest.mark.imaging
@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "resnet50", "densenet121"])
def test_dropout_stands_before_the_last_layer_and_changes_no_key(name: str) -> None:
    torch.manual_seed(0)
    plain, dropped = (build(Model(name=name, dropout=p), 1, 2) for p in (0.0, 0.9999))
    assert list(plain.state_dict()) == list(dropped.state_dict())
    dropped.train()
    last = [m for m in dropped.modules() if isinstance(m, nn.Linear)][-1]
    with torch.no_grad():
        logits = dropped(torch.randn(4, 1, 32, 32))
    assert ((logits - last.bias).abs() < 1e-6).all(dim=1).any()  # nothing but the bias is left of most samples


def test_the_small_net_is_small_and_takes_any_image_size() -> None:
    net = build(Model(), 1, 2).eval()
    assert 160_000 < sum(p.numel() for p in net.parameters()) < 300_000
    with torch.no_grad():
        for size in ((28, 28), (224, 160), (5, 7)):
            assert net(torch.randn(1, 1, *size)).shape == (1, 2)


@pytest.mark.parametrize("width", [8, 12, 24, 37])
def test_any_width_finds_groups_that_divide_it(width: int) -> None:
    assert build(Model(width=width, norm="group"), 1, 2)(torch.randn(2, 1, 8, 8)).shape == (2, 2)


@pytest.mark.parametrize("width", [4, 6])
def test_a_narrow_net_trains_without_corrupting_memory(width: int) -> None:
    """oneDNN's strided 1x1 convolution, channels last, writes past its buffers: tried in a process that may die of it."""
    program = (
        "import torch\n"
        "from hpcai.models.small import SmallResNet\n"
        "torch.set_num_threads(1)\n"
        f"net = SmallResNet(2, 1, 2, {width}, 'batch', 0.0)\n"
        "for step in range(40):\n"
        "    for samples in (64, 36, 7):\n"
        "        net(torch.randn(samples, 1, 28, 28)).square().mean().backward()\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_a_block_starts_as_its_shortcut() -> None:
    x = torch.randn(2, 8, 6, 6).relu()
    assert torch.equal(Block(2, 8, 8, 1, "group")(x), x)


def test_dropout_of_the_small_net_acts_in_training_only() -> None:
    net, x = build(Model(dropout=0.5), 1, 2), torch.randn(3, 1, 12, 12)
    assert not torch.equal(net(x), net(x))
    net.eval()
    assert torch.equal(net(x), net(x))


def test_the_small_net_learns_real_images_by_heart() -> None:
    with np.load(SHIPPED / "pneumoniamnist" / "pneumoniamnist.npz") as z:
        x = torch.from_numpy(z["train_images"][:24, None]).float() / 128 - 1
        y = torch.from_numpy(z["train_labels"][:24, 0]).long()
    torch.manual_seed(0)
    net = build(Model(width=8), 1, 2)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2)
    for _ in range(30):
        loss = nn.functional.cross_entropy(net(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert len(set(y.tolist())) == 2 and float(loss.detach()) < 0.1


def test_an_unknown_model_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(ConfigError, match=r"model.name=resnet_smal: unknown. Did you mean resnet_small\?"):
        build(Model(name="resnet_smal"), 1, 2)


def test_an_option_that_the_model_has_not_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"model\.options\.depth=3: "):
        build(Model(options={"depth": 3}), 1, 2)
    with pytest.raises(Faults) as caught:
        build(Model(options={"depth": 3, "a": 1}), 1, 2)
    assert caught.value.code == 2 and len(caught.value.lines) == 2


def test_a_missing_extra_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "hpcai.models.monai_nets", raising=False)
    for name in [n for n in sys.modules if n == "monai" or n.startswith("monai.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "monai", None)
    with pytest.raises(ConfigError, match=r"model.name=resnet18: needs monai.* pip install 'hpcai\[imaging\]'"):
        build(Model(name="resnet18"), 1, 2)


# ---- weights


def small(seed: int = 0, classes: int = 2, **more: Any) -> nn.Module:
    torch.manual_seed(seed)
    return build(Model(**{"width": 8} | more), 1, classes)


def same(a: nn.Module, b: nn.Module, *, but: str = " ") -> bool:
    theirs = b.state_dict()
    return all(torch.equal(t, theirs[n]) for n, t in a.state_dict().items() if not n.startswith(but))


@pytest.mark.parametrize("kind", ["safetensors", "pt", "pth", "wrapped", "ddp", "lightning"])
def test_weights_come_from_safetensors_or_pt_also_wrapped(tmp_path: Path, kind: str) -> None:
    donor, net = small(1), small(2)
    state = donor.state_dict()
    path = tmp_path / f"w.{kind if kind in ('safetensors', 'pth') else 'pt'}"
    if kind == "safetensors":
        save_file(state, path)
    elif kind == "wrapped":
        torch.save({"state_dict": state, "epoch": 3}, path)
    elif kind in ("ddp", "lightning"):
        torch.save({("module." if kind == "ddp" else "model.") + k: v for k, v in state.items()}, path)
    else:
        torch.save(state, path)
    assert not same(donor, net)
    notes = init_from(net, load_weights(path))
    assert same(donor, net) and notes == [f"{len(state)} of the model's {len(state)} tensors come from the file"]


class Bomb:
    def __reduce__(self) -> Any:
        return os.mkdir, ("exploded",)


def test_a_pickle_that_holds_code_is_refused_and_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"weight": torch.zeros(2), "bomb": Bomb()}, "bomb.pt")
    with pytest.raises(DataError, match=r"holds more than tensors .*nothing of it was run"):
        load_weights(tmp_path / "bomb.pt")
    assert not Path("exploded").exists()
    torch.load("bomb.pt", weights_only=False)  # noqa: TID251 (the bomb is a real one)
    assert Path("exploded").exists()


@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
def test_truncated_or_foreign_weights_are_refused(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"w.{suffix}"
    save_file(small().state_dict(), path) if suffix == "safetensors" else torch.save(small().state_dict(), path)
    whole = path.read_bytes()
    for damaged in (whole[: len(whole) // 2], whole[:-30], whole[30:], b"", b"\xff" * 64):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=r"model.init_from="):
            load_weights(path)


def test_what_holds_no_weights_is_refused_without_blocking(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.pt")
    (tmp_path / "folder.pt").mkdir()
    (tmp_path / "w.bin").write_bytes(b"x")
    torch.save([torch.zeros(2)], tmp_path / "list.pt")
    torch.save({"a": 1}, tmp_path / "numbers.pt")
    torch.save({}, tmp_path / "empty.pt")
    told = {"no plain file": ("pipe.pt", "folder.pt"), "no known kind": ("w.bin",), "No such file": ("absent.pt",)}
    told["holds no"] = ("list.pt", "numbers.pt", "empty.pt")
    for says, name in [(says, name) for says, names in told.items() for name in names]:
        with pytest.raises(DataError, match=says):
            load_weights(tmp_path / name)


def test_a_last_layer_for_other_classes_starts_anew_and_is_told() -> None:
    donor, net, before = small(1, classes=5), small(2), small(2)
    notes = init_from(net, donor.state_dict())
    assert same(donor, net, but="head.") and torch.equal(net.head.weight, before.head.weight)
    assert torch.equal(net.head.bias, before.head.bias)
    assert any("last layer (head) has another shape" in note for note in notes)


def test_names_that_do_not_meet_are_told() -> None:
    net, tensors = small(2), small(1).state_dict()
    tensors["extra.weight"] = torch.zeros(1)
    del tensors["stem.weight"], tensors["stem_norm.bias"]
    notes = init_from(net, tensors)
    assert "2 tensors are not in the file and start anew: stem.weight, stem_norm.bias" in notes
    assert "1 tensors of the file have no place in the model: extra.weight" in notes


def nan(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return tensors | {"stem.weight": torch.full_like(tensors["stem.weight"], torch.nan)}


@pytest.mark.parametrize(
    ("tensors", "says"),
    [
        (small(1, width=12).state_dict(), r"stem.weight is \[12, 1, 3, 3\] in the file, \[8, 1, 3, 3\] in the model"),
        ({"other": torch.zeros(2)}, "not one name in the file"),
        ({}, "not one name in the file"),
        (nan(small(1).state_dict()), "NaN or infinite"),
        (small(1, classes=9).state_dict() | {"stem.weight": torch.zeros(3)}, "stem.weight is"),
    ],
)
def test_weights_that_do_not_fit_are_refused_and_change_nothing(tensors: dict[str, Tensor], says: str) -> None:
    net = small(2)
    with pytest.raises(DataError, match=says):
        init_from(net, tensors)
    assert same(net, small(2))
