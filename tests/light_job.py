"""Stands in for jobs/*.py where a test is about the launcher, not about learning: the same manners, no torch, milliseconds.

Counts to `trainer.max_steps`, keeps its count in a file, stops between two steps, leaves an answer. HPCAI_TEST says what else:
`step_s` seconds a step, `fail` what to raise, `rank` on which rank, `at` at which step, `seed` in which run alone; `curve`:
notes a validation AUC a step, which `trainer.lr` decides.
"""

from __future__ import annotations

import json
import os
import signal
import time
from typing import Any

from hpcai import rundir
from hpcai.config.schema import Config
from hpcai.context import RunContext
from hpcai.errors import DataError, RunError, Stopped

ANSWER = {"version": rundir.REPORT_VERSION, "answer": "counted", "warnings": [], "estimates": [], "threshold": None}


def main(cfg: Config, run: RunContext) -> None:
    """One number instead of a model."""
    asked: dict[str, Any] = json.loads(os.environ.get("HPCAI_TEST", "{}"))
    count = run.dir.path / f"count.rank{run.ranks.rank}.json"
    done = rundir.read_json(count) if count.exists() else 0
    print(f"counting from {done}", flush=True)
    for step in range(done + 1, (cfg.trainer.max_steps or 3) + 1):
        time.sleep(asked.get("step_s", 0.01))
        here = run.ranks.rank == asked.get("rank", 0) and cfg.seed == asked.get("seed", cfg.seed)
        if here and step == asked.get("at", 1):
            fail(asked.get("fail", ""))
        run.fence()
        rundir.write_json(count, step)
        run.note("progress", step=step)
        if asked.get("curve") and run.ranks.first:
            note_validation(cfg, run, step)
        if run.stop.signum is not None:
            raise Stopped(run.stop.signum, f"stopped after step {step}, checkpoint kept. The same command goes on.")
    if run.ranks.first:
        if cfg.job == "train":
            image = {"channels": 1, "size": [8, 8], "mean": [0.0], "std": [1.0]}
            rundir.write_json(run.dir.model, {"checkpoint": "x", "sha256": "0" * 64, "labels": cfg.data.labels, "input": image})
            rundir.write_json(run.dir.threshold, {"value": 0.5, "rule": "0.5", "split": "val", "n": 24})
        rundir.write_json(run.dir.report_json, ANSWER)
        rundir.write_bytes(run.dir.report_html, b"<p>counted")


def note_validation(cfg: Config, run: RunContext, step: int) -> None:
    """A curve that rises with the steps, the higher the nearer trainer.lr is to 0.01."""
    value = round(1 - abs(cfg.trainer.lr - 0.01) * 5 - 0.01 * cfg.seed - 0.1 / step, 6)
    facts = {"kind": "val", "step": step, "epoch": step, "loss": 1 - value, "auc": value, "low": None, "high": None, "n": 24}
    rundir.append_lines(run.dir.metrics, [{**facts, "best": True}])


def fail(how: str) -> None:
    """Every way to end badly."""
    match how:
        case "data":
            raise DataError("data: row 7 cannot be read. Mend it.")
        case "run":
            raise RunError("trainer.step=1: the loss is nan. Lower trainer.lr.")
        case "bug":
            raise ZeroDivisionError("secret-patient-4711")
        case "peer":  # what torch raises where a peer is lost
            raise RuntimeError("Connection closed by peer")
        case "disk":
            raise OSError(28, "No space left on device")
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "hang":
            time.sleep(600)
