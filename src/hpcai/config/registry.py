"""From a model's name to what is known of it before torch: options, extra, dimensions, and where its code lies.

Light: a plug-in's entry point (group `hpcai.models`) names a light object `module:SPEC`; the heavy module behind `build` is
imported on the compute node, by hpcai.models.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass

from pydantic import BaseModel

from hpcai.config.schema import Group
from hpcai.errors import ConfigError, near, one_line

GROUP = "hpcai.models"


@dataclass(frozen=True)
class ModelSpec:
    """What a model's name stands for.

    Attributes:
        build: `module:function`; called as build(cfg: schema.Model, in_channels, classes) on the compute node.
        options: pydantic model that checks `model.options`; Group itself allows none.
        extra: the extra of hpcai that it needs, and so its import; None: nothing more.
        dims: the values of `model.spatial_dims` that it takes.
    """

    build: str
    options: type[BaseModel] = Group
    extra: str | None = None
    dims: tuple[int, ...] = (2, 3)


MODELS: dict[str, ModelSpec] = {
    "resnet_small": ModelSpec("hpcai.models.small:build"),
    "resnet18": ModelSpec("hpcai.models.monai_nets:build_resnet18", extra="imaging"),
    "resnet50": ModelSpec("hpcai.models.monai_nets:build_resnet50", extra="imaging"),
    "densenet121": ModelSpec("hpcai.models.monai_nets:build_densenet121", extra="imaging"),
}

EXTRAS: dict[str, str] = {
    "imaging": "monai",
    "mpi": "mpi4py",
}  # extra -> the module that shows it is installed


def entry_names() -> list[str]:
    """Names of plug-in models, without importing them."""
    from importlib.metadata import entry_points

    return sorted({entry.name for entry in entry_points(group=GROUP)})


def models() -> dict[str, ModelSpec]:
    """Every model by name: ours and the plug-ins'.

    Raises:
        ConfigError: a plug-in cannot be imported, is no ModelSpec, or takes a name that is taken.
    """
    return MODELS | {name: _plugin(name) for name in entry_names()}


def find_model(name: str) -> ModelSpec:
    """The spec of `name`; other plug-ins are not imported.

    Raises:
        ConfigError: unknown (with the nearest name), or its plug-in is broken.
    """
    if name in MODELS:  # and never looks for plug-ins: entry_points() costs 30 ms
        return MODELS[name]
    known = entry_names()
    if name not in known:
        raise ConfigError(f"model.name={one_line(name, 80)}: unknown. {near(name, [*MODELS, *known])}")
    return _plugin(name)


@functools.cache
def _plugin(name: str) -> ModelSpec:
    from importlib.metadata import entry_points

    found = {entry.value: entry for entry in entry_points(group=GROUP, name=name)}  # one package may show twice on sys.path
    if name in MODELS or len(found) > 1:
        raise ConfigError(f"model.name={name}: two packages offer it ({', '.join(sorted(found))}). Uninstall one.")
    (entry,) = found.values()
    try:
        spec = entry.load()
    except Exception as e:
        raise ConfigError(
            f"model.name={name}: its plug-in {entry.value} cannot be imported ({type(e).__name__}: {e}). Mend or uninstall it."
        ) from e
    if not isinstance(spec, ModelSpec) or not re.fullmatch(r"[\w.]+:\w+", spec.build):
        raise ConfigError(
            f"model.name={name}: its plug-in {entry.value} is no ModelSpec with build='module:function'. Mend it."
        )
    return spec
