"""Run and sweep folders made by hand: real files as launchers and ranks write them, for tests of what reads them."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from hpcai import lease, rundir, runs
from hpcai.rundir import RunDir
from hpcai.runs import Member, Sweep

CONFIG = "name: {name}\ndata:\n  labels:\n  - 'no'\n  - 'yes'\ntrainer:\n  epochs: 10\n  max_steps: {steps}\nseed: 0\n"
GONE: dict[str, Any] = {"pid": 2**22 + 1, "started": "another boot 1"}  # a process that cannot be: pids end at 2**22


def make_run(folder: Path, state: str = "completed", *, job: str = "train", steps: str = "null", **end: Any) -> RunDir:
    """A prepared run of one rank in that state; `end`: facts of its end record."""
    run = RunDir(folder)
    plan = {"run_id": folder.name, "run_dir": str(folder), "job": job, "version": 1, "from_run": []}
    rundir.write_bytes(run.config, CONFIG.format(name=folder.name, steps=steps).encode())
    if state != "new":
        live(run, state, **end)
    rundir.write_json(run.plan, {**plan, "resources": {"nodes": 1, "tasks_per_node": 1}})
    return run


def live(run: RunDir, state: str, *, life: int = 1, ranks: int = 1, **end: Any) -> None:
    """One more life: `pending` and `running` are owned by this process, the others by one that is gone."""
    who = lease.me() | ({} if state in ("pending", "running") else GONE)
    rundir.write_json(lease.life_dir(run, life) / "owner.json", {**who, "ranks": ranks, "time": time.time()})
    if state == "pending":
        return
    for rank in range(ranks):
        lease.append(run, life, rank, "begin", **who)
    match state:
        case "completed":
            facts: dict[str, Any] = {"code": 0}
        case "stopped":
            facts = {"code": 143, "message": "stopped after step 7, checkpoint kept. The same command goes on."}
        case "failed":
            facts = {"code": 4, "message": "data: row 7 cannot be read. Mend it."}
        case _:
            return
    for rank in range(ranks):
        lease.append(run, life, rank, "end", **{**facts, **end})


def validated(run: RunDir, *scores: float | None, best: int = 0) -> None:
    """metrics.jsonl with a training and a validation line an epoch; `best`: the number of the best score."""
    lines: list[dict[str, Any]] = []
    for i, score in enumerate(scores):
        stamp = {"step": 4 * (i + 1), "time": time.time()}
        lines.append({"kind": "train", "epoch": i + 1, "loss": 0.5, "lr": 1e-3, "samples_s": 9.0, "left_s": 1.0, **stamp})
        facts = {"loss": 0.25, "auc": score, "low": 0.5, "high": 1.0, "n": 24, "best": i <= best}
        lines.append({"kind": "val", "epoch": i + 1, **facts, **stamp})
    rundir.append_lines(run.metrics, lines)


def make_sweep(
    runs_dir: Path, members: list[RunDir], state: str = "completed", name: str = "grid-11111111", **facts: Any
) -> Sweep:
    """A sweep's folder whose driver is in that state."""
    listed = [Member(m.path.name, str(m.path), f"seed={i}", "", "train") for i, m in enumerate(members)]
    given: dict[str, Any] = {"words": ["seed=0,1"], "config_dir": None, "kind": "sweep", "members": listed} | facts
    sweep = Sweep(id=name, name=name.partition("-")[0], path=runs_dir / runs.SWEEPS / name, **given)
    runs.write_sweep(sweep)
    if state != "new":
        live(sweep.dir, state)
    return sweep
