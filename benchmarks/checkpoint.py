"""What does a checkpoint cost? 200 MB of tensors with their digest, against a raw write and fsync of the same bytes.

In turn, median of rounds. `blocked`: how long the loop waits with trainer.checkpoint_async=true.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch

from hpcai.comm import Group
from hpcai.config.schema import Trainer
from hpcai.context import RunContext
from hpcai.rundir import RunDir
from hpcai.training.checkpoint import Checkpoints, write_checkpoint

ROUNDS = 9
MB = 200


def main() -> None:
    """Prints the table; the folder to write in may be given as the first argument."""
    tensors = {f"model/{i}": torch.randn(MB * 2**20 // 80) for i in range(20)}
    payload = b"".join(bytes(t.numpy().data) for t in tensors.values())
    times: dict[str, list[float]] = {"raw write + fsync": [], "checkpoint": [], "blocked": []}
    with tempfile.TemporaryDirectory(dir=sys.argv[1] if len(sys.argv) > 1 else None) as folder:
        beside = _async_checkpoints(Path(folder))
        for round_number in range(ROUNDS + 1):
            seen = {
                "raw write + fsync": _timed(lambda: _raw(Path(folder) / "raw", payload)),
                "checkpoint": _timed(lambda: write_checkpoint(Path(folder) / "ours", tensors, {})),
                "blocked": _timed(lambda: beside._copied(tensors)),
            }
            if round_number:
                for name, seconds in seen.items():
                    times[name].append(seconds)
    floor = times["raw write + fsync"]
    print(f"{MB} MB{'':<14}{'median s':>10}{'ratio':>8}   ({ROUNDS} rounds; asked: checkpoint 1.3, blocked 0.3)")
    for name, seconds in times.items():
        ratio = statistics.median(a / b for a, b in zip(seconds, floor, strict=True))
        print(f"{name:<20}{statistics.median(seconds):>10.3f}{ratio:>8.2f}")


def _async_checkpoints(folder: Path) -> Checkpoints:
    run, group = RunContext(RunDir(folder)), Group(0, 1, torch.device("cpu"))
    return Checkpoints(run, Trainer(checkpoint_async=True), group, {})


def _raw(path: Path, payload: bytes) -> None:
    with path.open("wb", buffering=0) as f:
        view = memoryview(payload)
        while view:
            view = view[f.write(view) :]
        os.fsync(f.fileno())


def _timed(action: object) -> float:
    assert callable(action)
    before = time.perf_counter()
    action()
    return time.perf_counter() - before


if __name__ == "__main__":
    main()
