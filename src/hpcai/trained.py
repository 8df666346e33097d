"""Trained runs, as evaluate and predict use them: the models they are judged by, which cases may judge, the threshold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import reduce
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from hpcai import rundir
from hpcai.config.schema import Data
from hpcai.data.cases import Cases
from hpcai.data.samples import Scaling
from hpcai.data.splits import eval_indices, from_json
from hpcai.errors import DataError
from hpcai.metrics.classification import ranking
from hpcai.metrics.rows import Rows, rows_then
from hpcai.metrics.together import gains, mean_of, threshold_of_mean
from hpcai.models import build
from hpcai.models.start import trained_weights
from hpcai.plan import read_config, read_model
from hpcai.rundir import RunDir
from hpcai.training.state import DTYPES


@dataclass(frozen=True)
class Trained:
    """`model` is in eval mode, on the device, and takes `dtype`; `size` is what it takes after (C, ...)."""

    dir: RunDir
    model: nn.Module
    labels: list[str]
    scaling: Scaling
    size: tuple[int, ...]
    dtype: torch.dtype


def load_trained(source: RunDir, seed: int, device: torch.device) -> Trained:
    """The model of one run (see plan.sources).

    Raises: DataError if it is damaged.
    """
    cfg, facts = read_config(source), read_model(source)
    dtype = DTYPES[cfg.trainer.precision]
    torch.manual_seed(seed)
    model = build(cfg.model, facts["input"]["channels"], len(facts["labels"])).to(dtype)
    model.load_state_dict(trained_weights(source.path))
    scaling = Scaling(tuple(facts["input"]["mean"]), tuple(facts["input"]["std"]))
    return Trained(source, model.to(device).eval(), facts["labels"], scaling, tuple(facts["input"]["size"]), dtype)


# ---- which cases may judge


def judging_cases(sources: Sequence[RunDir], run: RunDir, cases: Cases, cfg: Data) -> NDArray[np.int64]:
    """The cases that job=evaluate scores: the runs' own split on the data they were trained on, else as `cfg` says.

    What any of the runs learnt from must not judge their mean: where their splits differ, the cases left are those in the test
    of all.

    Raises: DataError if there is none.
    """
    own = [source for source in sources if same_data(source, run)]
    name = cfg.eval_split
    if name == "all" or not own:
        return eval_indices(cases, cfg)
    parts = [from_json(rundir.read_json(source.split), cases).parts()[name] for source in own]
    if all(np.array_equal(part, parts[0]) for part in parts):
        return parts[0]
    names = f"{own[0].path.name},{own[-1].path.name}" if len(own) == 2 else f"{len(own)} runs"
    if name != "test":
        raise DataError(f"data.eval_split={name}: {names} split these data differently. Ask for test, or other data.")
    left = reduce(np.intersect1d, parts)
    if not left.size:
        raise DataError(
            f"from_run={names}: each case taught or chose one of them, so none can judge their mean. "
            "Folds of a cross-validation: job=gather. Else name other data."
        )
    return left


def same_data(source: RunDir, run: RunDir) -> bool:
    """Whether `run` reads the very bytes that the training read."""
    return sorted(rundir.read_digests(run).values()) == sorted(rundir.read_digests(source).values())


# ---- several together


def threshold_of(sources: Sequence[RunDir]) -> dict[str, Any]:
    """What threshold.json says of these runs: one run's own; of several, by their rule on their common validation cases."""
    if len(sources) == 1:
        own: dict[str, Any] = rundir.read_json(sources[0].threshold)
        return own
    rules = [read_config(source).task.threshold for source in sources]
    return asdict(threshold_of_mean([rows_then(source, "val") for source in sources], rules))


def together(sources: Sequence[RunDir], split: str, tables: Sequence[Rows | None]) -> dict[str, Any]:
    """What together.json says: each run's own AUC on the cases of `tables` and on validation, and what their mean gained.

    `tables`: the runs' rows of `split`; without common cases nothing was gained that could be told.
    """
    validation = [rows_then(source, "val") for source in sources]
    chosen = [None if rows is None else ranking(rows, "val") for rows in validation]
    own = [None if rows is None else ranking(rows, split) for rows in tables]
    ranked = [-1.0 if e is None or e.value is None else e.value for e in chosen]
    best = int(np.argmax(ranked)) if min(ranked) >= 0 else None
    common = [rows for rows in tables if rows is not None] if mean_of(tables) else []
    return {
        "members": [
            {"run_id": source.path.name, "validation": v and asdict(v), "estimate": e and asdict(e), "best": k == best}
            for k, (source, v, e) in enumerate(zip(sources, chosen, own, strict=True))
        ],
        "gain": [asdict(gain) for gain in (gains(common, split, best) if common else [])],
    }
