"""What tests of jobs that only count do to a real Slurm: their manner, verbs as a user types them, who is in the queue."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
from conftest import Done, Launcher, until

from hpcai import lease
from hpcai.rundir import RunDir, read_lines

LONG = "trainer.max_steps=100000"
TERM = 128 + 15


def manner(bench: Launcher, **how: Any) -> None:
    """How the job behaves from now on: see light_job.py."""
    bench.runs.mkdir(exist_ok=True)
    (bench.runs / "manner.json").write_text(json.dumps({"step_s": 0.02, **how}))


def send(bench: Launcher, *words: str) -> RunDir:
    """A run, submitted; its folder."""
    done = bench("cluster=testbed", "resources.timeout_min=5", *words)
    assert done.rc == 0 and "submitted: job " in done.out, done
    return bench.run_dir()


def once(run: RunDir, steps: int = 3) -> None:
    """One writer at a time did every step, and it is through."""
    done = list(read_lines(run.path / "audit"))
    lives = [line["life"] for line in done]
    assert lives == sorted(lives) and {line["step"] for line in done} == set(range(1, steps + 1)), done
    assert lease.read_state(run).state == "completed"


def verb(bench: Launcher, *words: str, timeout: float = 120.0) -> Done:
    """`hpcai VERB ...`."""
    return bench(*words, module="hpcai.cli", bare=True, timeout=timeout)


def state(bench: Launcher, run: RunDir) -> str:
    """As `hpcai status` shows it."""
    return str(json.loads(verb(bench, "status", str(run.path), "--json").out)[0]["state"])


def job_of(run: RunDir) -> str:
    return str(lease.read_owner(run, lease.last_life(run))["job"])


def step(run: RunDir) -> int:
    return lease.read_state(run).step or 0


def queue(slurm: Any) -> list[str]:
    """Every job that waits or runs."""
    done = slurm("squeue", "--noheader", "--format=%i %T %r")
    assert done.returncode == 0, done.stderr
    return str(done.stdout).split("\n")[:-1]


def empty(slurm: Any, timeout: float = 90.0) -> None:
    """Returns when no job waits or runs."""
    until(lambda: not queue(slurm), timeout=timeout)


def python(folder: Path, text: str) -> str:
    """A word for a Python on the compute nodes that does `text` first; $2... are its words."""
    file = folder / "python"
    file.write_text(f'#!/bin/bash\n{text}\nexec {sys.executable} "$@"\n')
    file.chmod(0o755)
    return f"cluster.python='{file}'"


def sruns(run: RunDir) -> list[psutil.Process]:
    """The processes of its step's srun."""
    lines = [(p, p.info["cmdline"] or [""]) for p in psutil.process_iter(["cmdline"])]
    return [p for p, line in lines if line[0].endswith("srun") and str(run.path) in line]


def hold(folder: Path, rank: int = 0) -> str:
    """For `python`: this rank waits, as in a slow import, for a file `go`; that it came is told by `came`."""
    return (
        f'if [[ " $* " == *" hpcai.worker "* && $SLURM_PROCID == {rank} ]]; then touch "{folder}/came"; '
        f'while [ ! -e "{folder}/go" ]; do sleep 0.05; done; fi'
    )


def through(slurm: Any, run: RunDir, *words: str) -> subprocess.CompletedProcess[str]:
    """A client's order about its job."""
    done: subprocess.CompletedProcess[str] = slurm(*words, job_of(run))
    assert done.returncode == 0, done
    return done
