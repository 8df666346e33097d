"""A trained run, as evaluate and predict use it: the model with the weights it is judged by, labels, scaling, threshold."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from hpcai import rundir
from hpcai.config.schema import Config
from hpcai.context import RunContext
from hpcai.data.cases import Cases
from hpcai.data.samples import Scaling
from hpcai.data.splits import from_json
from hpcai.errors import RunError
from hpcai.models import build
from hpcai.models.start import trained_weights
from hpcai.rundir import RunDir
from hpcai.training.state import DTYPES


@dataclass(frozen=True)
class Trained:
    """`model` is in eval mode, on the device; `size` is what it takes after (C, ...)."""

    dir: RunDir
    model: nn.Module
    labels: list[str]
    scaling: Scaling
    size: tuple[int, ...]
    threshold: dict[str, Any]

    def same_data(self, run: RunDir) -> bool:
        """`run` reads the very bytes that the training read."""
        return sorted(rundir.read_digests(run).values()) == sorted(rundir.read_digests(self.dir).values())

    def same_split(self, cases: Cases, name: str) -> NDArray[np.int64]:
        """The cases that the training held in `name`: what it learnt from must not judge it under another split."""
        if name == "all":
            return np.arange(len(cases))
        return from_json(rundir.read_json(self.dir.split), cases).parts()[name]


def load_trained(cfg: Config, run: RunContext, device: torch.device) -> Trained:
    """The run that `cfg.from_run` names; its checkpoint must have the digest that it had at submission.

    Raises: RunError if it is another, DataError if it is damaged.
    """
    assert cfg.from_run is not None
    source = RunDir(Path(cfg.from_run))
    facts = rundir.read_json(source.model)
    if facts["sha256"] != rundir.read_json(run.dir.plan)["from_run"]["sha256"]:
        raise RunError(f"from_run={source.path.name}: its model is another one than at submission. --anew takes the new one.")
    torch.manual_seed(cfg.seed)
    model = build(cfg.model, facts["input"]["channels"], len(facts["labels"])).to(DTYPES[cfg.trainer.precision])
    model.load_state_dict(trained_weights(source.path))
    scaling = Scaling(tuple(facts["input"]["mean"]), tuple(facts["input"]["std"]))
    size, threshold = tuple(facts["input"]["size"]), rundir.read_json(source.threshold)
    return Trained(source, model.to(device).eval(), facts["labels"], scaling, size, threshold)
