"""No good run hangs at its end: two ranks train a few steps, part, leave; again and again.

    python benchmarks/endings.py [N]

Prints how many of N (200) endings came within 20 s. Exit code 0 if all did. Why it is watched: docs/decisions.md, ranks that
hung in gloo's thread after good runs. Each ending is two fresh processes, forked before torch has started a thread.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import time
from pathlib import Path

import torch
import torch._dynamo  # an optimiser imports it when it is made: seconds that each fork would pay

from hpcai import lease
from hpcai.comm import process_group
from hpcai.config.schema import Model, Trainer
from hpcai.context import Ranks, RunContext
from hpcai.data.samples import Samples, Scaling
from hpcai.models import build
from hpcai.rundir import RunDir
from hpcai.tasks.classification import Classification
from hpcai.training.state import TrainState
from hpcai.training.steps import optimise, steps
from hpcai.worker import leave

RANKS, PATIENCE_S, SAMPLES = 2, 20.0, 32
CFG = Trainer(batch_size=8, epochs=1)


def main(argv: list[str]) -> int:
    """Runs the endings one after another."""
    n = int(argv[0]) if argv else 200
    before = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        came = sum(one_ending(RunDir(Path(folder) / str(i))) for i in range(n))
    print(f"{came} of {n} endings within {PATIENCE_S:g} s, {(time.monotonic() - before) / n:.2f} s each")
    return 0 if came == n else 5


def one_ending(run: RunDir) -> bool:
    """Whether every rank of one run left well and in time."""
    life = lease.take(run, RANKS)
    sys.stdout.flush()
    alive = {os.fork() or rank(run, life, number): number for number in range(RANKS)}
    before, well = time.monotonic(), True
    while alive and time.monotonic() - before < PATIENCE_S:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid in alive:
            del alive[pid]
            well &= status == 0
        time.sleep(0.002)
    for pid in alive:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    return well and not alive


def rank(run: RunDir, life: int, number: int) -> int:
    """One rank, from its process group to its last word; never returns."""
    try:
        os.environ["OMP_NUM_THREADS"] = "1"
        context = RunContext(run, Ranks(number, number, RANKS), life)
        with process_group(context, gpus=0, seed=0, deterministic=True) as group:
            state = TrainState(lambda: build(Model(width=8, norm="batch"), 1, 2), CFG, 4, 0, group)
            x, y = torch.randint(0, 255, (SAMPLES, 1, 12, 12), dtype=torch.uint8), torch.arange(SAMPLES) % 2
            samples = Samples(x, y, torch.arange(SAMPLES), Scaling((127.0,), (70.0,)), torch.float32, group.device)
            for step in steps(state.progress, SAMPLES, CFG, 0, group.rank, group.size):
                optimise(state, Classification(["no", "yes"]), samples, step, 0, stop=False, save=False)
            group.barrier()
        context.note("end", code=0)
    except BaseException as e:
        print(f"rank {number}: {type(e).__name__}: {e}", file=sys.stderr)
        leave(1)
    leave(0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
