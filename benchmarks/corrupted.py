"""How well does a trained run hold on *validation* images that are corrupted? For choosing recipes without the test split.

    python benchmarks/corrupted.py RUN [RUN ...]

One line a run of the shipped experiment: AUC on clean validation images, under each corruption, and the mean of the corrupted
ones. The same seeded corruptions for each run. One seed and 524 images tell large differences only.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from hpcai.data.open import open_cases
from hpcai.metrics.classification import auc
from hpcai.models import build
from hpcai.models.start import trained_weights
from hpcai.plan import read_config
from hpcai.rundir import RunDir, read_json

SEED = 1


def between(x: Tensor, low: float, high: float, random: torch.Generator) -> Tensor:
    """(B, 1, 1, 1), one number an image."""
    return torch.rand(len(x), 1, 1, 1, generator=random) * (high - low) + low


def moved(x: Tensor, random: torch.Generator) -> Tensor:
    """Rotated by up to 20 degrees, scaled by up to 20 %, shifted by up to 7.5 %; the border is repeated."""
    angle = between(x, -math.radians(20), math.radians(20), random).view(-1)
    scale = between(x, 0.8, 1.2, random).view(-1)
    shift = torch.rand(len(x), 2, generator=random) * 0.3 - 0.15
    rows = [[angle.cos() * scale, -angle.sin() * scale, shift[:, 0]], [angle.sin() * scale, angle.cos() * scale, shift[:, 1]]]
    grid = F.affine_grid(torch.stack([torch.stack(row, 1) for row in rows], 1), list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, padding_mode="border", align_corners=False)


CORRUPTIONS: dict[str, Callable[[Tensor, torch.Generator], Tensor]] = {
    "clean": lambda x, random: x,
    "contrast": lambda x, random: (x - 128) * between(x, 0.5, 1.5, random) + 128,
    "brightness": lambda x, random: x + between(x, -60, 60, random),
    "gamma": lambda x, random: 255 * (x / 255) ** torch.exp(between(x, -0.8, 0.8, random)),
    "noise": lambda x, random: x + torch.randn(x.shape, generator=random) * 15,
    "blur": lambda x, random: F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), 3, 1),
    "geometry": moved,
}


@torch.no_grad()
def scores(folder: Path) -> list[float]:
    """AUC under each corruption, in their order."""
    run = RunDir(folder)
    config, facts = read_config(run), read_json(run.model)
    cases = open_cases(config.data)
    chosen = np.array([i for i, split in enumerate(cases.published or []) if split == "val"])
    x = torch.from_numpy(cases.read_many(chosen)).float()
    model = build(config.model, facts["input"]["channels"], len(facts["labels"]))
    model.load_state_dict(trained_weights(run.path))
    model.eval()
    found = []
    for corrupt in CORRUPTIONS.values():
        worse = corrupt(x, torch.Generator().manual_seed(SEED)).clamp(0, 255)
        logits = model((worse - facts["input"]["mean"][0]) / facts["input"]["std"][0])
        found.append(auc(cases.labels[chosen] == 1, (logits[:, 1] - logits[:, 0]).numpy()))
    return found


def main() -> None:
    """Prints the table of the runs that the command line names."""
    if not sys.argv[1:]:
        print("corrupted.py: names no run. Give folders of trained runs.")
        return
    torch.set_num_threads(1)
    print("".join(f"{name:>11}" for name in (*CORRUPTIONS, "mean")) + "  run")
    for name in sys.argv[1:]:
        found = scores(Path(name))
        print("".join(f"{value:>11.4f}" for value in (*found, float(np.mean(found[1:])))) + f"  {Path(name).name}")


if __name__ == "__main__":
    main()
