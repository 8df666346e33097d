"""Where a model's weights begin: at random, or at `model.init_from`."""

from __future__ import annotations

import logging
from pathlib import Path

from torch import Tensor, nn

from hpcai import rundir
from hpcai.config.schema import Model
from hpcai.errors import DataError
from hpcai.inputs import digest_file
from hpcai.models.weights import init_from, load_weights
from hpcai.rundir import RunDir

log = logging.getLogger("hpcai")


def start_from(model: nn.Module, cfg: Model) -> nn.Module:
    """`model`, with the weights of `cfg.init_from` where they fit; what did not fit is told.

    Raises: DataError if the file is damaged, holds code, or nothing fits.
    """
    if cfg.init_from is not None:
        for note in init_from(model, trained_weights(Path(cfg.init_from))):
            log.info("model.init_from: %s", note)
    return model


def trained_weights(path: Path) -> dict[str, Tensor]:
    """The weights of a weights file, or of a run's model: the averaged ones where a run kept an average.

    Raises: DataError if the file is damaged or holds code.
    """
    if path.is_dir():
        run = RunDir(path)
        facts = rundir.read_json(run.model)
        path = (run.checkpoints / facts["checkpoint"]).with_suffix(".safetensors")
        if digest_file(path).sha256 != facts["sha256"]:
            raise DataError(f"run={run.path.name}: its model is damaged. Restore the file, or train again.")
    tensors = load_weights(path)
    for part in ("ema/", "model/"):
        if chosen := {k.removeprefix(part): v for k, v in tensors.items() if k.startswith(part)}:
            return chosen
    return tensors
