"""Rows of a split: validation, evaluate and predict share this path.   samples -> logits on every rank -> rows -> file

Blocks of BLOCK consecutive samples are computed whole, each by one rank, so that the bits do not depend on the rank count.
Shapes: N samples, K classes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hpcai import rundir
from hpcai.comm import Group
from hpcai.context import RunContext
from hpcai.data.cases import Cases
from hpcai.data.samples import Samples
from hpcai.errors import DataError
from hpcai.metrics.rows import Rows, patients_of
from hpcai.tasks import Task
from hpcai.trained import Trained

BLOCK = 256


@torch.no_grad()
def logits_of(model: Callable[[Tensor], Tensor] | nn.Module, samples: Samples, classes: int, group: Group) -> Tensor:
    """(N, K) on every rank, float as the samples; collective. The model is in eval mode."""
    out = torch.zeros(len(samples), classes, dtype=samples.dtype, device=group.device)
    for at in range(group.rank * BLOCK, len(samples), group.size * BLOCK):
        block = torch.arange(at, min(at + BLOCK, len(samples)))
        out[at : at + BLOCK] = model(samples.batch(block)[0]).to(out.dtype)
    return group.sum_(out)  # each entry is one rank's number and zeros: exact


def rows_of(task: Task, cases: Cases, indices: NDArray[np.int64], logits_NK: Tensor) -> list[dict[str, Any]]:
    """One row a case of `indices`."""
    patients = [cases.patients[i] for i in indices] if cases.patients else None
    return task.rows([cases.ids[i] for i in indices], patients, cases.labels[indices].tolist(), logits_NK.cpu())


def averaged(members: Sequence[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """One row a case: `scores` the mean of the members' probabilities in float64, `members` each one's own.

    The rows of one member stay as they are.
    """
    if len(members) == 1:
        return members[0]
    scores = [[row["scores"] for row in rows] for rows in members]
    mean = np.array(scores, np.float64).mean(0).tolist()
    return [row | {"scores": mean[i], "members": [own[i] for own in scores]} for i, row in enumerate(members[0])]


def as_table(rows: Sequence[dict[str, Any]]) -> Rows:
    """Rows as the arrays that metrics read."""
    return Rows(
        case=[r["case"] for r in rows],
        patient=patients_of(rows),
        label=np.array([-1 if r["label"] is None else r["label"] for r in rows], dtype=np.int64),
        scores=np.array([r["scores"] for r in rows], dtype=np.float64),
    )


def write_rows(run: RunContext, split: str, rows: Sequence[dict[str, Any]]) -> None:
    """The whole split by rank 0: all of it or nothing."""
    if run.ranks.first:
        run.fence()
        text = "".join(json.dumps(r, ensure_ascii=False, allow_nan=False) + "\n" for r in rows)
        rundir.write_bytes(run.dir.rows_file(split, 0), text.encode(errors="backslashreplace"))


@torch.no_grad()
def logits_of_cases(
    members: Sequence[Trained], cases: Cases, indices: NDArray[np.int64], failed: dict[int, str]
) -> tuple[list[int], list[Tensor]]:
    """The cases among `indices` that could be read, and their logits (n, K) by each member, which take one size.

    The others go into `failed` with a reason.
    """
    pixels: dict[int, NDArray[Any]] = {}
    wanted = (len(members[0].scaling.mean), *members[0].size)
    for i in indices.tolist():
        try:
            x = cases.read(i)
            if x.shape != wanted:
                raise DataError(f"data.image_size: row {i} has shape {x.shape}, the model takes {wanted}.")
            pixels[i] = x
        except DataError as e:
            failed[i] = str(e)
    if not pixels:
        return [], [torch.zeros(0, len(m.labels), dtype=m.dtype) for m in members]
    device = next(members[0].model.parameters()).device
    x_NC = torch.from_numpy(np.stack(list(pixels.values()))).to(device)
    return list(pixels), [m.model(m.scaling.apply(x_NC, m.dtype)) for m in members]
