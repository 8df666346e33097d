"""Many run folders, each file of its real format: for the page over many runs and its benchmark."""

from __future__ import annotations

import itertools
import math
import random
from pathlib import Path
from typing import Any

import yaml
from run_folders import live

from hpcai import rundir, runs
from hpcai.rundir import RunDir

BEGIN = 1_767_000_000.0
GRID = list(itertools.product((0.0003, 0.001, 0.003, 0.01), (8, 16, 24, 32), range(5)))  # lr, width, seed


def config(name: str, **more: Any) -> dict[str, Any]:
    """A resolved config: what tells runs apart, and what a page must not show."""
    return {
        "name": name, "job": "train", "from_run": None, "seed": more.get("seed", 0), "runs_dir": "/home/somebody/runs",
        "task": {"name": "classification", "select": "auc", "threshold": "sensitivity>=0.95"},
        "data": {"name": "PneumoniaMNIST", "reader": "npz", "path": "/home/somebody/patients/scans.npz",
                 "labels": ["normal", "pneumonia"], "channels": 1, "split": {"by": "published", "seed": 0}},
        "model": {"name": "resnet_small", "norm": "batch", "width": more.get("width", 24), "init_from": None},
        "trainer": {"epochs": 20, "max_steps": None, "lr": more.get("lr", 0.004), "augment": ["affine", "intensity"]},
        "resources": {"nodes": 1, "tasks_per_node": 1, "gpus_per_node": 0},
        "cluster": {"name": "local", "executor": "local", "account": "p200000"},
    }  # fmt: skip


def make(runs_dir: Path, name: str, state: str = "completed", *, auc: float = 0.95, **more: Any) -> RunDir:
    """One run; a completed one has its report. `more`: seed, width, lr; `version`: of its report; `epochs` validated."""
    run = RunDir(runs_dir / name)
    rng = random.Random(name)
    wanted = config(name.rpartition("-")[0], **more)
    rundir.write_bytes(run.config, yaml.safe_dump(wanted, sort_keys=False).encode())
    if state != "new":
        live(run, state)
        metrics(run, auc, more.get("epochs", 20), rng)
    if state == "completed":
        rundir.write_json(run.report_json, report(name, auc - 0.01, more.get("version", 1), 60 + 600 * rng.random(), rng))
        rundir.write_bytes(run.report_html, b"<!doctype html><title>report</title>")
    plan = {"run_id": name, "run_dir": str(run.path), "job": "train", "version": 1, "from_run": []}
    rundir.write_json(run.plan, {**plan, "resources": {"nodes": 1, "tasks_per_node": 1}})
    return run


def metrics(run: RunDir, auc: float, epochs: int, rng: random.Random) -> None:
    """Three training lines and one of validation an epoch."""
    lines: list[dict[str, Any]] = []
    best = 0.0
    for epoch in range(1, epochs + 1):
        for k in (1, 2, 3):
            step = 74 * (epoch - 1) + 24 * k
            loss = 0.25 + 0.45 * math.exp(-step / 200) + 0.02 * rng.random()
            lines.append({"kind": "train", "step": step, "epoch": epoch, "loss": loss, "lr": 0.004, "samples_s": 1900.0,
                          "left_s": 3.0, "time": BEGIN + step})  # fmt: skip
        value = auc - 0.3 * math.exp(-epoch / 3)
        lines.append({"kind": "val", "step": 74 * epoch, "epoch": epoch, "loss": 0.2 + 0.5 * math.exp(-epoch / 4), "auc": value,
                      "low": value - 0.02, "high": min(1.0, value + 0.02), "n": 524, "best": value > best,
                      "time": BEGIN + 74 * epoch})  # fmt: skip
        best = max(best, value)
    rundir.append_lines(run.metrics, lines)


def report(name: str, auc: float, version: int, wall_s: float, rng: random.Random) -> dict[str, Any]:
    """What report.json holds of a run; the first estimate is the answer."""
    estimates = [
        {"name": measure, "split": split, "value": auc, "low": auc - 0.015, "high": min(1.0, auc + 0.015), "n": n,
         "method": "bootstrap over cases, 2,000 resamples"}
        for split, n in (("test", 624), ("val", 524))
        for measure in ("auc", "average_precision", "sensitivity", "specificity", "accuracy", "brier")
    ]  # fmt: skip
    price = {"amount": 4.0, "unit": "node-h", "words": "at most 4.0 node-h"}
    slurm = {"cluster": "meluxina", "partition": "gpu", "nodes": 1, "price": price}
    return {
        "version": version, "run_id": name, "name": name.rpartition("-")[0], "job": "train",
        "question": "Can it?", "answer": "Yes.",
        "estimates": estimates, "labels": ["normal", "pneumonia"], "confusion": {"test": [[200, 34], [12, 378]]},
        "splits": {"test": {"cases": 624, "patients": None, "classes": {"normal": 234, "pneumonia": 390}}},
        "warnings": ["No patient ids: cases are taken as independent. If patients repeat, the intervals are too narrow."],
        "cost": {"begun": BEGIN, "wall_s": wall_s, "samples_s": 1900.0, "steps": 1480, "epochs": 20, "ranks": 1, "restarts": 0,
                 "slurm": slurm if rng.random() < 0.3 else None, "preflight": []},
        "provenance": {"packages": [{"name": f"package-{i}", "version": "1.0", "licence": "BSD"} for i in range(60)]},
    }  # fmt: skip


def sweep(runs_dir: Path, name: str, members: list[RunDir], labels: list[str]) -> None:
    """A sweep over these runs that has ended."""
    listed = [runs.Member(m.path.name, str(m.path), label, label.partition(" seed=")[0], "train")
              for m, label in zip(members, labels, strict=True)]  # fmt: skip
    made = runs.Sweep(name, name.partition("-")[0], runs_dir / runs.SWEEPS / name, ["seed=0,1"], None, "sweep", listed)
    runs.write_sweep(made)
    live(made.dir, "completed")


def make_many(runs_dir: Path, count: int) -> None:
    """`count` runs: grids of 80 by lr, width and seed, each a sweep; every 25th failed, every 40th was lost."""
    for number, first in enumerate(range(0, count, len(GRID))):
        members, labels = [], []
        for k, (lr, width, seed) in zip(range(first, min(first + len(GRID), count)), GRID):
            state = "failed" if k % 25 == 7 else "lost" if k % 40 == 3 else "completed"
            auc = 0.93 + 0.01 * math.log10(lr / 0.0003) + width / 2000 + 0.002 * seed
            members.append(make(runs_dir, f"grid{number}-{k:08x}", state, auc=auc, lr=lr, width=width, seed=seed))
            labels.append(f"trainer.lr={lr} model.width={width} seed={seed}")
        sweep(runs_dir, f"grid{number}-{number:08x}", members, labels)
