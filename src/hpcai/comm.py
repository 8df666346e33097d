"""Ranks talk here and nowhere else: process group, device, the collectives that jobs need.

One flat all-reduce a step carries gradients, loss, weight and the flags. It replaces DistributedDataParallel, whose buckets
differ between the first step after a start and later ones: from 3 ranks up a resumed run then has other bits (decisions.md).
On one rank every call is the identity, and torch.distributed is not started.

Meeting: rank 0 takes a free port and writes into its life where it may be reached; the others try until one way leads there.
Which interface carries gloo follows from the way that led there. Jobs without gradients talk by MPI where that is fit.
"""

from __future__ import annotations

import contextlib
import datetime
import importlib.util
import json
import logging
import os
import random
import secrets
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch._C._distributed_c10d import TCPStore

from hpcai import lease, rundir
from hpcai.context import RunContext
from hpcai.errors import RunError

TIMEOUT_S = 300.0  # gloo's 30 min would hold an allocation for a lost rank
POLL_S = 0.02
CONNECT_S = 2.0  # an address behind a firewall answers nothing: the next one is tried
STOPPED = "stopped before its first step. The same command goes on."
log = logging.getLogger("hpcai")


class Group:
    """The ranks of one run. `device`: this rank's."""

    def __init__(self, rank: int, size: int, device: torch.device) -> None:
        self.rank, self.size, self.device = rank, size, device

    @property
    def first(self) -> bool:
        """Rank 0 writes what is written once."""
        return self.rank == 0

    def sum_(self, x: torch.Tensor) -> torch.Tensor:
        """`x` summed over ranks, in place; the same bits on each rank."""
        if self.size > 1:
            dist.all_reduce(x)
        return x

    def from_first(self, value: float) -> float:
        """Rank 0's `value`, on every rank."""
        if self.size == 1:
            return value
        x = torch.tensor([value if self.first else 0.0], dtype=torch.float64, device=self.device)
        return float(self.sum_(x).item())

    def stack(self, x: torch.Tensor) -> torch.Tensor:
        """(size, *x.shape): every rank's `x`, of one shape and dtype."""
        if self.size == 1:
            return x[None]
        parts = [torch.empty_like(x) for _ in range(self.size)]
        dist.all_gather(parts, x)
        return torch.stack(parts)

    def barrier(self) -> None:
        """Every rank has come here."""
        if self.size > 1:
            dist.barrier()

    def part(self) -> None:
        """The end of a good run; collective."""
        if self.size > 1:
            dist.barrier()  # last in the group: a rank that leaves while another's gloo thread still answers has hung it
            dist.destroy_process_group()


class MpiGroup(Group):
    """The same by MPI, on CPUs. Sums are added up in the order of ranks; who waits hears signals and leaves its core alone."""

    def __init__(self, run: RunContext, mpi: Any, store: TCPStore) -> None:
        super().__init__(run.ranks.rank, run.ranks.world_size, torch.device("cpu"))
        self._run, self._mpi = run, mpi
        self._store = store  # rank 0's serves the others, who may still read what was told

    def stack(self, x: torch.Tensor) -> torch.Tensor:
        """(size, *x.shape): every rank's `x`, of one shape and dtype."""
        mine = x.contiguous().reshape(-1).view(torch.uint8)  # bytes: MPI has no name for some dtypes
        parts = torch.empty((self.size, len(mine)), dtype=torch.uint8)
        asked = self._mpi.COMM_WORLD.Iallgather(mine.numpy(), parts.numpy())
        while not asked.Test():
            self._run.stop.check("stopped while it waited for the other ranks. What is done is kept; the same command goes on.")
            time.sleep(POLL_S / 10)
        return parts.view(x.dtype).reshape(self.size, *x.shape)

    def sum_(self, x: torch.Tensor) -> torch.Tensor:
        """`x` summed over ranks, in place; the same bits on each rank."""
        first, *others = self.stack(x)
        x.copy_(first)
        for other in others:
            x += other
        return x

    def barrier(self) -> None:
        """Every rank has come here."""
        self.stack(torch.zeros(1))

    def part(self) -> None:
        """The end of a good run; collective."""
        self.barrier()
        self._mpi.Finalize()


@contextmanager
def process_group(run: RunContext, *, gpus: int, seed: int, deterministic: bool, mpi: bool = False) -> Iterator[Group]:
    """The ranks, met and seeded; they part together at the end of a good run. `mpi`: a job without gradients, which may use it.

    Raises: RunError if a rank does not come within 5 minutes or cannot reach rank 0, or there is no GPU for it.
    """
    device = _device(run, gpus)
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", torch.get_num_threads())))
    torch.use_deterministic_algorithms(deterministic)
    seed_everything(seed, run.ranks.rank)
    group = Group(run.ranks.rank, run.ranks.world_size, device)
    if group.size > 1:
        group = _meet(run, group, mpi)
    else:
        _warn_of_cores(run, [{"node": run.ranks.node, "cores": _cores()}])
    yield group
    group.part()


def seed_everything(seed: int, rank: int) -> None:
    """torch, numpy and Python: a library may draw from any. Each rank has a stream of its own (dropout)."""
    torch.manual_seed(seed * 100_003 + rank)
    np.random.seed((seed * 100_003 + rank) % 2**32)
    random.seed(seed * 100_003 + rank)


def _device(run: RunContext, gpus: int) -> torch.device:
    if not gpus:
        return torch.device("cpu")
    if not torch.cuda.is_available() or torch.cuda.device_count() <= run.ranks.local_rank:
        raise RunError(
            f"resources.gpus_per_node={gpus}: torch {torch.__version__} sees {torch.cuda.device_count()} here. "
            "Install a CUDA build of torch, or ask for resources.gpus_per_node=0."
        )
    torch.cuda.set_device(run.ranks.local_rank)
    return torch.device("cuda", run.ranks.local_rank)


def _meet(run: RunContext, group: Group, mpi: bool) -> Group:
    """Starts the process group. torchrun gives an address; else rank 0 takes a free port and writes it into the life."""
    backend = "nccl" if group.device.type == "cuda" else "gloo"
    patience = datetime.timedelta(seconds=TIMEOUT_S)
    if run.ranks.nodes == 1:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # a host name that resolves nowhere stops no local run
    if run.ranks.launcher == "torchrun":
        dist.init_process_group(backend, init_method="env://", timeout=patience)
        return group
    at = lease.life_dir(run.dir, run.life) / "address.json"
    store, way = (_open(run, at), {}) if run.ranks.first else _reach(run, at)
    fit = mpi and backend == "gloo" and _mpi_is_fit(run)
    told = _tell_all(run, store, "here", {"node": run.ranks.node, "cores": _cores(), "mpi": fit, **way})
    if run.ranks.nodes > 1 and (interface := _interface(_own_end(run, told))):
        os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
    _warn_of_cores(run, told)
    if all(each["mpi"] for each in told) and (world := _mpi_world(run, store)):
        return world
    before = time.monotonic()
    try:
        dist.init_process_group(backend, store=store, rank=group.rank, world_size=group.size, timeout=patience)
    except RuntimeError as e:
        if time.monotonic() - before < TIMEOUT_S:
            raise  # a rank that died meanwhile: what follows from it must not hide its cause
        via = os.environ.get("NCCL_SOCKET_IFNAME" if backend == "nccl" else "GLOO_SOCKET_IFNAME", "an interface of its choice")
        raise RunError(f"run.rank={group.rank}: {backend} met nobody over {via} within {TIMEOUT_S:g} s. {NETWORK}") from e
    return group


# --- rank 0's address


NETWORK = (
    "Set GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME in the partition's env of the cluster file to the interface that the nodes "
    "share (ip -br addr), or ask staff whether nodes may talk over TCP."
)


def _open(run: RunContext, at: Path) -> TCPStore:
    """Rank 0's: at a port that the kernel chose, on every interface. The token tells it from any other that listens there."""
    patience, token = datetime.timedelta(seconds=TIMEOUT_S), secrets.token_hex(8)
    store = TCPStore("127.0.0.1", 0, run.ranks.world_size, True, patience, wait_for_workers=False)
    store.set("token", token)
    hosts = ["127.0.0.1"] if run.ranks.nodes == 1 else _addresses()
    rundir.write_json(at, {"hosts": hosts, "port": store.port, "token": token})
    return store


def _reach(run: RunContext, at: Path) -> tuple[TCPStore, dict[str, str]]:
    """The way to rank 0, and both its ends. What address.json says is read anew each time: it may be about to be replaced.

    Raises: RunError if none leads there in time; Stopped.
    """
    before, tried = time.monotonic(), {}
    while time.monotonic() - before < TIMEOUT_S:
        run.stop.check(STOPPED)
        told = rundir.read_json(at) if at.exists() else {"hosts": []}
        for host in told["hosts"]:
            run.stop.check(STOPPED)
            try:
                return _store_at(host, told, run.ranks.world_size)
            except (OSError, RuntimeError) as e:  # torch's are RuntimeErrors
                tried[f"{host}:{told['port']}"] = getattr(e, "strerror", None) or str(e).partition("\n")[0][:60]
        time.sleep(POLL_S)
    if not tried:
        raise RunError(f"run.rank={run.ranks.rank}: rank 0 gave no address within {TIMEOUT_S:g} s. See its log.")
    places = ", ".join(f"{place} ({why})" for place, why in list(tried.items())[:3])
    raise RunError(f"run.rank={run.ranks.rank}: cannot reach rank 0 at {places} within {TIMEOUT_S:g} s. {NETWORK}")


def _store_at(host: str, told: dict[str, Any], size: int) -> tuple[TCPStore, dict[str, str]]:
    """Raises: OSError, RuntimeError if rank 0 cannot be reached there."""
    with socket.create_connection((host, told["port"]), CONNECT_S) as way:  # Python's: it ends in its time, and says why not
        ends = {"own": way.getsockname()[0], "peer": way.getpeername()[0]}
    store = TCPStore(host, told["port"], size, False, datetime.timedelta(seconds=5 * CONNECT_S), wait_for_workers=False)
    if not store.check(["token"]) or store.get("token").decode() != told["token"]:
        raise OSError(0, "another run listens there")
    store.set_timeout(datetime.timedelta(seconds=TIMEOUT_S))
    return store, ends


def _addresses() -> list[str]:
    """Where other nodes may reach this one, likeliest first: the site's interface, the host name's address, any other.

    A host name may lead nowhere, or to this machine alone (Debian's 127.0.1.1): so addresses are told, and no names.
    """
    names = [os.environ.get(name, "") for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")]
    wanted = tuple(part for name in names if not name.startswith("^") for part in name.lstrip("=").split(",") if part)
    named: set[str] = set()
    for name in (os.environ.get("SLURMD_NODENAME", ""), socket.gethostname()):
        with contextlib.suppress(OSError):  # it resolves nowhere
            named |= {str(found[4][0]) for found in socket.getaddrinfo(name or None, 0)}
    own = [(name, address) for name, address in _interfaces() if not address.startswith("127.") and address != "::1"]
    own.sort(key=lambda one: (not one[0].startswith(wanted or ("\0",)), one[1] not in named, ":" in one[1]))
    return [address for _, address in own] or ["127.0.0.1"]


def _interfaces() -> list[tuple[str, str]]:
    """(name, address) of every interface that is up."""
    import psutil

    up = {name for name, stats in psutil.net_if_stats().items() if stats.isup}
    found = [(name, a) for name, addresses in psutil.net_if_addrs().items() if name in up for a in addresses]
    return [(name, a.address) for name, a in found if a.family in (socket.AF_INET, socket.AF_INET6) and "%" not in a.address]


def _interface(address: str | None) -> str | None:
    """Which interface has that address; None if none has."""
    return next((name for name, own in _interfaces() if own == address), None)


def _own_end(run: RunContext, told: Sequence[dict[str, Any]]) -> str | None:
    """This node's end of a way between rank 0's node and another: on rank 0's, where the first of the others reached it."""
    here = run.ranks.node
    if here != told[0]["node"]:
        return str(told[run.ranks.rank]["own"])
    return next((str(each["peer"]) for each in told if each["node"] != here), None)


# --- all ranks


def _tell_all(run: RunContext, store: TCPStore, key: str, facts: object) -> list[Any]:
    """What each rank says under `key`. Polls in Python, so that a signal is heard: a collective would not."""
    store.set(f"{key}{run.ranks.rank}", json.dumps(facts))
    before = time.monotonic()
    for rank in range(run.ranks.world_size):
        while not store.check([f"{key}{rank}"]):
            run.stop.check(STOPPED)
            if time.monotonic() - before > TIMEOUT_S:
                raise RunError(f"run.rank={rank}: did not come within {TIMEOUT_S:g} s. See its log.")
            time.sleep(POLL_S)
    return [json.loads(store.get(f"{key}{rank}")) for rank in range(run.ranks.world_size)]


def _cores() -> list[int]:
    return sorted(os.sched_getaffinity(0))


def _warn_of_cores(run: RunContext, told: Sequence[dict[str, Any]]) -> None:
    """A launcher that binds ranks to too few cores, or all of them to the same ones, makes a run slow and says nothing."""
    if run.ranks.launcher not in ("srun", "mpiexec") or run.ranks.local_rank:
        return  # on this machine the plan has said it; one rank speaks for its node
    threads, here = torch.get_num_threads(), [each["cores"] for each in told if each["node"] == run.ranks.node]
    least, together = min(map(len, here)), len({core for cores in here for core in cores})
    if least < threads or together < threads * len(here):
        message = (
            f"run.rank={run.ranks.rank}: {len(here)} ranks of {threads} threads each on its node have {least} cores each, "
            f"{together} together. Lower resources.cpus_per_task, or mend the binding (srun --cpu-bind, the partition's srun)."
        )
        log.warning(message)
        run.note("warning", message=message)


# --- MPI


def _mpi_is_fit(run: RunContext) -> bool:
    """srun started us under PMIx, and the preflight of this very job has seen MPI connect its processes, one a node.

    It must be known beforehand: an MPI_Init that fails ends the process (Open MPI 4), and PMIx takes a rank once, so that no
    child can try it for us. Where it is not known, gloo.
    """
    if run.ranks.launcher != "srun" or os.environ.get("PMIX_RANK") != str(run.ranks.rank):
        return False
    if importlib.util.find_spec("mpi4py") is None:
        return False
    told = [rundir.read_json(file) for file in run.dir.preflight.glob("*.json")]
    seen = f"{run.ranks.nodes} processes on "
    fit = [
        check["ok"] and check["found"].startswith(seen)
        for each in told if each["job"] == os.environ.get("SLURM_JOB_ID")
        for check in each["checks"] if check["name"] == "mpi"
    ]  # fmt: skip
    return len(fit) >= run.ranks.nodes and all(fit)


def _mpi_world(run: RunContext, store: TCPStore) -> Group | None:
    """The ranks by MPI; None, for all of them, if one has no MPI or another world."""
    mpi: Any = None
    world = (0, 1)
    try:
        importlib.import_module("mpi4py").rc(initialize=False, finalize=False)
        mpi = importlib.import_module("mpi4py.MPI")
        mpi.Init_thread(mpi.THREAD_FUNNELED)
        world, why = (mpi.COMM_WORLD.rank, mpi.COMM_WORLD.size), mpi.Get_library_version().partition(",")[0]
    except (ImportError, RuntimeError) as e:  # no libmpi, or one that mpi4py cannot use
        why = type(e).__name__
    good = mpi is not None and world == (run.ranks.rank, run.ranks.world_size)
    if all(_tell_all(run, store, "mpi", good)):
        log.info("ranks  %d of %d by MPI: %s", *world, why)
        return MpiGroup(run, mpi, store)
    log.info("ranks  by gloo: MPI gave rank %d of %d (%s)", *world, why)
    return None
