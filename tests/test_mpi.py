"""Ranks that an MPI launcher starts find each other, without MPI in our code."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from training_kit import words, write_npz

from hpcai import lease
from hpcai.config.check import load
from hpcai.plan import make_plan
from hpcai.rundir import RunDir
from hpcai.submit import prepare

pytestmark = [pytest.mark.mpi, pytest.mark.slow]


@pytest.mark.parametrize("again", [False, True])
def test_ranks_started_by_mpiexec_train_together(tmp_path: Path, again: bool) -> None:
    args = words(write_npz(tmp_path / "data.npz"), tmp_path / "runs", "resources.tasks_per_node=2")
    plan, config, files = make_plan(load(args))
    run = RunDir(Path(plan.run_dir))
    prepare(run, plan, config, files)
    start = ["mpiexec", "--allow-run-as-root", "--oversubscribe", "-n", "2", sys.executable, "-m", "hpcai.worker", run.path]
    done = subprocess.run(start, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert lease.read_state(run).state == "completed"
    begun = {rank: told[0]["launcher"] for rank, told in lease.records(run, 1).items()}
    assert begun == {0: "mpiexec", 1: "mpiexec"}
    if again:
        assert subprocess.run(start, capture_output=True, timeout=60, check=False).returncode == 0
        assert lease.last_life(run) == 1
