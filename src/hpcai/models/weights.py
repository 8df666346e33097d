"""Weights from a file, and into a model.   .safetensors | .pt -> {name: tensor} -> model

The only place that calls torch.load, and only with weights_only=True: a pickle that holds code is refused, not run.
"""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from torch import Tensor, nn

from hpcai.errors import DataError, one_line

WRAPPED = ("state_dict", "model_state_dict", "model")  # where others put the weights in a checkpoint
PREFIXES = ("module.", "model.")  # what DistributedDataParallel and Lightning put before each name


def load_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors or, as weights only, a .pt or .pth, on CPU; neither kind notices a flipped bit of a weight.

    Raises: DataError for what is missing, no plain file, damaged, or would run code when read.
    """
    shown = f"model.init_from={one_line(str(path), 120)}"
    data = _read(path, shown)
    if path.suffix == ".safetensors":
        try:
            loaded: dict[str, Tensor] = load_safetensors(data)
            return loaded
        except SafetensorError as fault:
            raise DataError(f"{shown}: is no whole safetensors file ({one_line(str(fault), 80)}). Get it again.") from None
    if path.suffix not in (".pt", ".pth"):
        raise DataError(f"{shown}: is of no known kind. Give a .safetensors, or a .pt or .pth of tensors.")
    try:
        value = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)  # noqa: TID251
    except Exception as fault:  # damaged files raise anything from EOFError to UnpicklingError
        raise DataError(f"{shown}: is damaged, or holds more than tensors ({type(fault).__name__}); nothing of it was run. "
                        "Save model.state_dict() alone, better as .safetensors.") from None  # fmt: skip
    return _tensors(value, shown)


def _read(path: Path, shown: str) -> bytes:
    """See data.cases.open_plain, which stands beside this module and may not be imported."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as fault:
        raise DataError(f"{shown}: cannot be read ({fault.strerror}). Check path and rights.") from None
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise DataError(f"{shown}: is no plain file. Name the file of the weights.")
    with os.fdopen(fd, "rb") as f:
        return f.read()


def _tensors(value: Any, shown: str) -> dict[str, Tensor]:
    """The {name: tensor} in a loaded checkpoint, which may lie one key down."""
    for key in WRAPPED:
        if isinstance(value, Mapping) and isinstance(value.get(key), Mapping):
            value = value[key]
    if (
        not isinstance(value, Mapping)
        or not value
        or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in value.items())
    ):
        raise DataError(f"{shown}: holds no {{name: tensor}}. Save model.state_dict().")
    return dict(value)


def init_from(model: nn.Module, tensors: Mapping[str, Tensor]) -> list[str]:
    """Copies `tensors` into `model` by name; notes say, in words, what fitted and what keeps its first weights.

    The last layer may have another shape (other classes): it is left as it is. Names that the file lacks are left too.

    Raises: DataError if nothing fits, another layer has another shape, or a weight is no number; `model` is then unchanged.
    """
    own = model.state_dict()
    tensors = _without_prefix(tensors, own)
    last = list(own)[-1].rpartition(".")[0] + "."
    named = {name: t for name, t in tensors.items() if name in own}
    other = [name for name, t in named.items() if t.shape != own[name].shape]
    wrong = [name for name in other if not name.startswith(last)]
    left = {name for name in named if other and name.startswith(last)}  # a head of half its weights would be none
    fitting = {name: t for name, t in named.items() if name not in left}
    if wrong:
        shapes = f"{list(tensors[wrong[0]].shape)} in the file, {list(own[wrong[0]].shape)} in the model"
        raise DataError(
            f"model.init_from: {wrong[0]} is {shapes}, as {len(wrong) - 1} more. Use the same model, channels and width."
        )
    if not fitting:
        raise DataError("model.init_from: not one name in the file is the model's. Use weights of the same model.")
    if any(t.is_floating_point() and not bool(torch.isfinite(t).all()) for t in fitting.values()):
        raise DataError("model.init_from: holds NaN or infinite weights. Use another checkpoint.")
    with torch.no_grad():
        for name, tensor in fitting.items():
            own[name].copy_(tensor)
    notes = [f"{len(fitting)} of the model's {len(own)} tensors come from the file"]
    notes += [f"the last layer ({last[:-1]}) has another shape in the file: it starts anew"] if left else []
    notes += _told("are not in the file and start anew", [n for n in own if n not in tensors])
    return notes + _told("of the file have no place in the model", [n for n in tensors if n not in own])


def _without_prefix(tensors: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`tensors` without the prefix that a wrapper put before every name."""
    for prefix in PREFIXES:
        if all(name.startswith(prefix) for name in tensors) and not any(name in own for name in tensors):
            tensors = {name.removeprefix(prefix): t for name, t in tensors.items()}
    return dict(tensors)


def _told(what: str, names: list[str]) -> list[str]:
    return [f"{len(names)} tensors {what}: {', '.join(names[:3])}{' ...' if len(names) > 3 else ''}"] if names else []
