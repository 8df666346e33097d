"""The light half: what the login node must know of the model. Never imports torch."""

from hpcai.config.registry import ModelSpec
from hpcai.config.schema import Group, key


class Options(Group):
    """The model's own keys: model.options.patch=4 and so on."""

    patch: int = key(4, "side of a patch", unit="pixel", ge=1, le=64)
    hidden: int = key(32, "features of a patch", ge=1, le=4096)


SPEC = ModelSpec(build="hpcai_example.net:build", options=Options, dims=(2,))
