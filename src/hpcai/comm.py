"""Ranks talk here and nowhere else: process group, device, the collectives that jobs need.

One flat all-reduce a step carries gradients, loss, weight and the flags. It replaces DistributedDataParallel, whose buckets
differ between the first step after a start and later ones: from 3 ranks up a resumed run then has other bits (decisions.md).
On one rank every call is the identity, and torch.distributed is not started.
"""

from __future__ import annotations

import datetime
import os
import random
import socket
import time
from collections.abc import Iterator
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


@contextmanager
def process_group(run: RunContext, *, gpus: int, seed: int, deterministic: bool) -> Iterator[Group]:
    """The ranks, met and seeded; they part together at the end of a good run.

    Raises: RunError if a rank does not come within 5 minutes, or there is no GPU for it.
    """
    device = _device(run, gpus)
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", torch.get_num_threads())))
    torch.use_deterministic_algorithms(deterministic)
    seed_everything(seed, run.ranks.rank)
    group = Group(run.ranks.rank, run.ranks.world_size, device)
    if group.size > 1:
        _meet(run, device)
    yield group
    if group.size > 1:
        dist.barrier()  # last in the group: a rank that leaves while another's gloo thread still answers has hung it
        dist.destroy_process_group()


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


def _meet(run: RunContext, device: torch.device) -> None:
    """Starts the process group. torchrun gives an address; else rank 0 takes a free port and writes it into the life."""
    backend = "nccl" if device.type == "cuda" else "gloo"
    patience = datetime.timedelta(seconds=TIMEOUT_S)
    if run.ranks.nodes == 1:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # a host name that resolves nowhere stops no local run
    if run.ranks.launcher == "torchrun":
        dist.init_process_group(backend, init_method="env://", timeout=patience)
        return
    at = lease.life_dir(run.dir, run.life) / "address.json"
    if run.ranks.first:
        host = "127.0.0.1" if run.ranks.nodes == 1 else socket.gethostname()
        store = TCPStore(host, 0, run.ranks.world_size, True, patience, wait_for_workers=False)
        rundir.write_json(at, {"host": host, "port": store.port})
    else:
        address = _address(run, at)
        store = TCPStore(address["host"], address["port"], run.ranks.world_size, False, patience)
    store.set(f"here{run.ranks.rank}", "1")
    _all_here(run, store)
    dist.init_process_group(backend, store=store, rank=run.ranks.rank, world_size=run.ranks.world_size, timeout=patience)


def _address(run: RunContext, at: Path) -> Any:
    before = time.monotonic()
    while time.monotonic() - before < TIMEOUT_S:
        run.stop.check("stopped before its first step. The same command goes on.")
        if at.exists():
            return rundir.read_json(at)
        time.sleep(POLL_S)
    raise RunError(f"run.rank={run.ranks.rank}: rank 0 gave no address within {TIMEOUT_S:g} s. See its log.")


def _all_here(run: RunContext, store: TCPStore) -> None:
    """Polls in Python, so that a signal is heard: the collective set-up below would not."""
    before = time.monotonic()
    for rank in range(run.ranks.world_size):
        while not store.check([f"here{rank}"]):
            run.stop.check("stopped before its first step. The same command goes on.")
            if time.monotonic() - before > TIMEOUT_S:
                raise RunError(f"run.rank={rank}: did not come within {TIMEOUT_S:g} s. See its log.")
            time.sleep(POLL_S)
