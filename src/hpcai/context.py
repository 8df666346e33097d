"""What a job is given: RunContext(dir, ranks, life, stop).

A rank learns its place from whoever started it: torchrun, submitit's local executor, srun or mpiexec; else it is alone.
"""

from __future__ import annotations

import signal
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from hpcai import lease
from hpcai.errors import PlanError, Stopped
from hpcai.rundir import RunDir

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)  # USR2, not USR1: NCCL may take that one
HELD_SIGNALS = (signal.SIGINT, signal.SIGHUP)  # a rank starts with these blocked, so that none is lost before it can answer


@dataclass(frozen=True)
class Ranks:
    """This process's place, in torch.distributed's words. `group` names the launch, the same on each of its ranks."""

    rank: int = 0
    local_rank: int = 0
    world_size: int = 1
    node: int = 0
    nodes: int = 1
    launcher: str = "alone"
    group: str = ""

    @property
    def first(self) -> bool:
        """Rank 0 writes what is written once."""
        return self.rank == 0


# who -> (rank, local_rank, world_size, node, nodes, group): the variables that each launcher sets
_LAUNCHERS: dict[str, tuple[str, str, str, str, str, str]] = {
    "torchrun": ("RANK", "LOCAL_RANK", "WORLD_SIZE", "GROUP_RANK", "GROUP_WORLD_SIZE", "TORCHELASTIC_RUN_ID"),
    "submitit": (
        "SUBMITIT_LOCAL_GLOBALID", "SUBMITIT_LOCAL_LOCALID", "SUBMITIT_LOCAL_NTASKS",
        "SUBMITIT_LOCAL_NODEID", "SUBMITIT_LOCAL_JOB_NUM_NODES", "SUBMITIT_LOCAL_JOB_ID",
    ),
    "srun": (
        "SLURM_PROCID", "SLURM_LOCALID", "SLURM_STEP_NUM_TASKS", "SLURM_NODEID", "SLURM_STEP_NUM_NODES",
        "SLURM_JOB_ID SLURM_STEP_ID SLURM_RESTART_COUNT",  # one job may hold many steps, and start again
    ),
    "mpiexec": (
        "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_SIZE",
        "OMPI_MCA_orte_node_rank", "OMPI_MCA_orte_num_nodes", "PMIX_NAMESPACE",
    ),
}  # fmt: skip


def read_ranks(environ: Mapping[str, str]) -> Ranks:
    """This process's place, from the first launcher whose rank variable is set: the innermost wins (torchrun inside srun).

    Raises: PlanError if the variables contradict each other.
    """
    for launcher, (rank, local_rank, world_size, node, nodes, group) in _LAUNCHERS.items():
        if rank in environ and world_size in environ:
            try:
                ranks = Ranks(
                    rank=int(environ[rank]),
                    local_rank=int(environ.get(local_rank, "0")),
                    world_size=int(environ[world_size]),
                    node=int(environ.get(node, "0")),
                    nodes=int(environ.get(nodes, "1")),
                    launcher=launcher,
                    group="-".join(environ[part] for part in group.split() if environ.get(part)),
                )
            except ValueError as e:
                raise PlanError(f"{rank}={environ[rank]}: {launcher} sets whole numbers here. Unset it.") from e
            if not 0 <= ranks.rank < ranks.world_size:
                raise PlanError(f"{rank}={ranks.rank}: {world_size} is {ranks.world_size}. Unset both, or start by {launcher}.")
            return ranks
    return Ranks()


def current_job(environ: Mapping[str, str]) -> str | None:
    """The Slurm job that this process belongs to, as squeue names it: an array's task by its array."""
    array, task = environ.get("SLURM_ARRAY_JOB_ID"), environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{task}" if array and task else environ.get("SLURM_JOB_ID")


def this_start(environ: Mapping[str, str]) -> str:
    """Which start of which Slurm job this process belongs to."""
    return f"{current_job(environ)} {environ.get('SLURM_RESTART_COUNT') or '0'}"


class Stop:
    """The stop flag. A signal's handler does nothing but set it; ranks look at it between two steps and agree."""

    def __init__(self) -> None:
        self.signum: int | None = None

    def install(self) -> Stop:
        """Takes SIGINT, SIGTERM and SIGUSR2; a terminal that goes away (SIGHUP) stops nothing."""
        for signum in STOP_SIGNALS:
            signal.signal(signum, self._note)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, HELD_SIGNALS)
        return self

    def _note(self, signum: int, frame: FrameType | None) -> None:
        self.signum = self.signum or signum

    def check(self, message: str) -> None:
        """Raises: Stopped with `message` if a signal came."""
        if self.signum is not None:
            raise Stopped(self.signum, message)


@dataclass(frozen=True)
class RunContext:
    """All that a job knows besides its config. `life` is the fencing token: how many times the run was started."""

    dir: RunDir
    ranks: Ranks = field(default_factory=Ranks)
    life: int = 1
    stop: Stop = field(default_factory=Stop)

    def note(self, event: str, **facts: object) -> None:
        """One state record of this rank (begin, progress, warning, end)."""
        lease.append(self.dir, self.life, self.ranks.rank, event, **facts)

    def fence(self) -> None:
        """Called before anything shared is written.

        Raises: OwnedError if the run has been started anew meanwhile: a process that was thought dead must not write.
        """
        lease.fence(self.dir, self.life)


def alone(path: Path) -> RunContext:
    """A context for one process in this one, for tests and notebooks."""
    return RunContext(RunDir(path))
