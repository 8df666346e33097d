"""Several nodes, on a real Slurm: what dies on one of them costs no bit, and jobs without gradients talk by MPI."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from conftest import until
from test_slurm_runs import at_step, job_of, ranks, send, wait
from training_kit import HARD, a_trained_run, assert_same, finish, litter, run_in, words, write_npz

from hpcai import lease, rundir
from hpcai.rundir import RunDir

pytestmark = [pytest.mark.slurm, pytest.mark.slow, pytest.mark.timeout(600)]  # four ranks on the few cores of CI
LONG = (*HARD, "trainer.epochs=8", "resources.timeout_min=5")  # 80 steps, a checkpoint each third: time to be hit in
NODES = ("resources.nodes=2", "resources.tasks_per_node=2")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_npz(tmp_path_factory.mktemp("data") / "d.npz")


@pytest.fixture(scope="module")
def in_peace(data: Path, tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """The same training on four ranks of one machine, left alone."""
    runs = tmp_path_factory.mktemp("peace")
    finish(words(data, runs, *LONG, "resources.tasks_per_node=4"))
    return run_in(runs)


def place(process: psutil.Process) -> tuple[int, str]:
    """A rank's number and its node."""
    told = process.environ()
    return int(told["SLURM_PROCID"]), told["SLURMD_NODENAME"]


def kill_last_rank(bed: Any, run: RunDir) -> None:
    next(p for p in ranks(run) if place(p)[0] == 3).kill()


def second_node_dies(bed: Any, run: RunDir) -> None:
    (node,) = {place(p)[1] for p in ranks(run) if place(p)[0] == 3}
    bed.node_dies(node)


@pytest.mark.fault
@pytest.mark.parametrize("hit", [kill_last_rank, second_node_dies])
def test_what_dies_on_one_of_two_nodes_comes_back_by_itself_with_the_same_bits(
    slurm: Any, data: Path, tmp_path: Path, in_peace: RunDir, hit: Callable[[Any, RunDir], None]
) -> None:
    run = send(data, tmp_path, *LONG, *NODES)
    at_step(run, 20)
    until(lambda: len(ranks(run)) == 4)
    assert len({place(p)[1] for p in ranks(run)}) == 2
    hit(slurm, run)
    until(lambda: lease.last_life(run) == 2, timeout=150)
    assert wait(run, timeout=240) == 0
    assert_same(in_peace, run)
    assert litter(run.checkpoints) == []


# --- jobs without gradients


@pytest.fixture
def mpi_python(tmp_path: Path) -> str:
    """A word for a Python that has this one's mpi4py on the compute nodes too, wherever it lies here."""
    spec = importlib.util.find_spec("mpi4py")
    if spec is None or spec.origin is None:
        pytest.skip("mpi4py is not installed")
    file = tmp_path / "python"
    where = Path(spec.origin).parents[1]
    file.write_text(f'#!/bin/bash\nexport PYTHONPATH="${{PYTHONPATH:+$PYTHONPATH:}}{where}"\nexec {sys.executable} "$@"\n')
    file.chmod(0o755)
    return f"cluster.python='{file}'"


def submit(*more: str) -> None:
    """A run of other words than training's, on two nodes of the bed."""
    argv = [sys.executable, "-m", "hpcai.run", "cluster=testbed", "resources.cpus_per_task=1", "resources.timeout_min=5", *more]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, cwd="/")
    assert done.returncode == 0, (done.stdout, done.stderr)


def met_by(run: RunDir) -> list[str]:
    """What each rank's log says of MPI."""
    told = [run.log(rank).read_text("utf-8").splitlines() for rank in range(4)]
    return [line.partition(" ranks  ")[2] for lines in told for line in lines if " ranks  " in line]


@pytest.mark.mpi
@pytest.mark.parametrize("preflight", [True, False])
def test_ranks_of_two_nodes_share_an_evaluation_and_gather_its_rows_by_mpi_where_preflight_has_seen_it(
    slurm: Any, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, mpi_python: str, preflight: bool
) -> None:
    path, source = a_trained_run(tmp_path_factory)
    submit(
        "name=e", "job=evaluate", f"from_run={source.path}", f"data.path={path}", f"runs_dir={tmp_path}", "data.eval_split=val",
        "data.identifiers=none",
        *NODES, f"cluster.preflight={str(preflight).lower()}", mpi_python,
    )  # fmt: skip
    run = run_in(tmp_path, "e")
    assert wait(run, timeout=240) == 0
    assert run.rows_file("val", 0).read_bytes() == source.rows_file("val", 0).read_bytes()
    met = met_by(run)
    if preflight:
        assert [line.partition(":")[0] for line in met] == [f"{rank} of 4 by MPI" for rank in range(4)]
        assert slurm.until(job_of(run), "COMPLETED")["ExitCode"] == "0:0"  # each rank left MPI well
    else:
        assert met == []


@pytest.mark.mpi
def test_a_prediction_by_mpi_has_each_case_once(
    slurm: Any, data: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, mpi_python: str
) -> None:
    _, source = a_trained_run(tmp_path_factory)
    with np.load(data) as arrays:
        np.savez(tmp_path / "new.npz", images=arrays["val_images"])
    submit(
        "name=p", "job=predict", f"from_run={source.path}", f"data.path={tmp_path / 'new.npz'}", f"runs_dir={tmp_path}",
        "data.identifiers=none",
        *NODES, "cluster.preflight=true", mpi_python,
    )  # fmt: skip
    run = run_in(tmp_path, "p")
    assert wait(run, timeout=240) == 0
    assert len(met_by(run)) == 4
    shards = [[row["case"] for row in rundir.read_lines(run.rows_file("predict", rank))] for rank in range(4)]
    assert all(shards) and sorted((case for shard in shards for case in shard), key=int) == [str(i) for i in range(300)]


def test_a_rank_knows_the_threads_that_it_was_given(slurm: Any, data: Path, tmp_path: Path) -> None:
    """The bed binds nothing and has fewer cores than it says: who asks for more threads than there are is warned."""
    cores = len(os.sched_getaffinity(0))
    run = send(data, tmp_path, "trainer.epochs=1", *NODES, "resources.timeout_min=5", f"resources.cpus_per_task={cores}")
    assert wait(run, timeout=240) == 0
    told = lease.records(run, 1)
    assert {records[0]["threads"] for records in told.values()} == {cores}
    warned = [
        r["message"] for records in told.values() for r in records if r["event"] == "warning" and "--cpu-bind" in r["message"]
    ]
    assert len(warned) == 2 and all(f": 2 ranks of {cores} threads each on its node have" in message for message in warned)
