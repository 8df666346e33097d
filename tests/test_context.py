"""A rank's place and its stop flag."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from hpcai import lease
from hpcai.context import HELD_SIGNALS, STOP_SIGNALS, Ranks, RunContext, Stop, alone, read_ranks
from hpcai.errors import OwnedError, PlanError, Stopped
from hpcai.rundir import RunDir

TORCHRUN = {"RANK": "3", "LOCAL_RANK": "1", "WORLD_SIZE": "4", "GROUP_RANK": "1", "GROUP_WORLD_SIZE": "2",
            "TORCHELASTIC_RUN_ID": "a"}  # fmt: skip
SUBMITIT = {
    "SUBMITIT_LOCAL_GLOBALID": "1", "SUBMITIT_LOCAL_LOCALID": "1", "SUBMITIT_LOCAL_NTASKS": "2", "SUBMITIT_LOCAL_NODEID": "0",
    "SUBMITIT_LOCAL_JOB_NUM_NODES": "1", "SUBMITIT_LOCAL_JOB_ID": "77",
}  # fmt: skip
SRUN = {"SLURM_PROCID": "2", "SLURM_LOCALID": "0", "SLURM_STEP_NUM_TASKS": "4", "SLURM_NODEID": "1",
        "SLURM_STEP_NUM_NODES": "2", "SLURM_JOB_ID": "9"}  # fmt: skip
MPIEXEC = {"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_LOCAL_RANK": "0", "OMPI_COMM_WORLD_SIZE": "2",
           "PMIX_NAMESPACE": "n"}  # fmt: skip


@pytest.mark.parametrize(("environ", "ranks"), [
    ({}, Ranks()),
    (TORCHRUN, Ranks(3, 1, 4, 1, 2, "torchrun", "a")),
    (SUBMITIT, Ranks(1, 1, 2, 0, 1, "submitit", "77")),
    (SRUN, Ranks(2, 0, 4, 1, 2, "srun", "9")),
    (MPIEXEC, Ranks(0, 0, 2, 0, 1, "mpiexec", "n")),
    (SRUN | TORCHRUN, Ranks(3, 1, 4, 1, 2, "torchrun", "a")),
    (SRUN | SUBMITIT, Ranks(1, 1, 2, 0, 1, "submitit", "77")),
    ({"SLURM_PROCID": "0", "SLURM_JOB_ID": "9"}, Ranks()),  # the batch script itself is no step
])  # fmt: skip
def test_a_rank_knows_its_place_from_whoever_started_it(environ: dict[str, str], ranks: Ranks) -> None:
    assert read_ranks(environ) == ranks
    assert ranks.first == (ranks.rank == 0)


@pytest.mark.parametrize(("change", "said"), [
    ({"RANK": "4"}, "RANK=4: WORLD_SIZE is 4. "),
    ({"RANK": "-1"}, "RANK=-1: WORLD_SIZE is 4. "),
    ({"RANK": ""}, "RANK=: torchrun sets whole numbers here. "),
    ({"LOCAL_RANK": "x"}, "RANK=3: torchrun sets whole numbers here. "),
])  # fmt: skip
def test_variables_that_contradict_each_other_are_refused(change: dict[str, str], said: str) -> None:
    with pytest.raises(PlanError, match=f"^{said}"):
        read_ranks(TORCHRUN | change)


@pytest.fixture
def handlers() -> Iterator[None]:
    """Puts the process's handlers and its mask back."""
    kept = {s: signal.getsignal(s) for s in (*STOP_SIGNALS, signal.SIGHUP)}
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    yield
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    for signum, handler in kept.items():
        signal.signal(signum, handler)


@pytest.mark.usefixtures("handlers")
@pytest.mark.parametrize("signum", STOP_SIGNALS)
def test_a_signal_only_sets_the_flag_and_the_first_one_counts(signum: signal.Signals) -> None:
    stop = Stop().install()
    stop.check("not yet.")
    os.kill(os.getpid(), signum)
    os.kill(os.getpid(), signal.SIGUSR2)
    assert stop.signum == signum
    with pytest.raises(Stopped, match=r"^after step 3\.$") as caught:
        stop.check("after step 3.")
    assert caught.value.code == 128 + signum


@pytest.mark.usefixtures("handlers")
def test_a_signal_that_came_before_the_handlers_is_heard_and_a_hang_up_is_not() -> None:
    """A rank starts with SIGINT and SIGHUP blocked (submit.py)."""
    signal.pthread_sigmask(signal.SIG_BLOCK, HELD_SIGNALS)
    for signum in HELD_SIGNALS:
        signal.pthread_kill(threading.get_ident(), signum)  # to this thread: another one of pytest's would take it
    assert Stop().install().signum == signal.SIGINT


def test_a_superseded_context_may_not_write(tmp_path: Path) -> None:
    context = RunContext(RunDir(tmp_path / "r"), life=lease.take(RunDir(tmp_path / "r"), 1))
    context.fence()
    context.note("progress", step=1)
    assert lease.records(context.dir, 1)[0][0]["step"] == 1
    lease.life_dir(context.dir, 2).mkdir()
    with pytest.raises(OwnedError, match="life 2 runs it now"):
        context.fence()
    assert alone(tmp_path).ranks == Ranks()
