"""From a model's name to its network.   cfg.model -> registry (light) -> build function -> nn.Module

A network takes (B, C, *size) float to logits (B, K).
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from pydantic import ValidationError
from torch import nn

from hpcai.config.registry import ModelSpec, find_model
from hpcai.config.schema import Model
from hpcai.errors import ConfigError, Faults, HpcaiError, one_line


def build(cfg: Model, in_channels: int, classes: int) -> nn.Module:
    """The network that `cfg` names, taking (B, in_channels, *size) float to logits (B, classes).

    Weights are drawn from torch's global generator: seed it first.

    Raises: ConfigError for an unknown name, a missing extra, an option or a number of dimensions that the model has not.
    """
    return build_spec(find_model(cfg.name), cfg, in_channels, classes)


def build_spec(spec: ModelSpec, cfg: Model, in_channels: int, classes: int) -> nn.Module:
    """See `build`; the model is given by `spec`, whatever `cfg.name` says."""
    if cfg.spatial_dims not in spec.dims:
        raise ConfigError(f"model.spatial_dims={cfg.spatial_dims}: {cfg.name} takes {' or '.join(map(str, spec.dims))}.")
    options = check_options(spec, cfg.options)
    module_name, _, function = spec.build.partition(":")
    try:
        module = import_module(module_name)
    except ModuleNotFoundError as fault:
        if spec.extra is None:
            raise
        raise ConfigError(f"model.name={cfg.name}: needs {fault.name}. pip install 'hpcai[{spec.extra}]'.") from fault
    model = getattr(module, function)(cfg.model_copy(update={"options": options}), in_channels, classes)
    assert isinstance(model, nn.Module), f"{spec.build} gave a {type(model).__name__}"
    return model


def check_options(spec: ModelSpec, options: dict[str, Any]) -> dict[str, Any]:
    """`options` with the defaults of the model's own keys filled in.

    Raises: ConfigError, or Faults with all of them.
    """
    try:
        return spec.options.model_validate(options).model_dump()
    except ValidationError as error:
        faults: list[HpcaiError] = [
            ConfigError(f"model.options.{'.'.join(map(str, e['loc']))}={one_line(str(e['input']), 80)}: {e['msg']}.")
            for e in error.errors()
        ]
        raise (faults[0] if len(faults) == 1 else Faults(faults)) from None
