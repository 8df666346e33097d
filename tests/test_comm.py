"""Real ranks: processes that meet, add up, agree and part."""

from __future__ import annotations

import importlib.util
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from training_kit import ALONE

from hpcai import comm, lease
from hpcai.comm import Group, process_group, seed_everything
from hpcai.context import Ranks, RunContext, Stop
from hpcai.errors import RunError, Stopped
from hpcai.rundir import RunDir
from hpcai.worker import leave

pytestmark = pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")  # Python 3.12's; nothing runs in our threads
torch.set_num_threads(1)
ENDINGS = Path(__file__).parents[1] / "benchmarks" / "endings.py"


def context(run: RunDir, rank: int, size: int, stop: Stop | None = None) -> RunContext:
    return RunContext(run, Ranks(rank, rank, size), 1, stop or Stop())


def on_processes(size: int, folder: Path, work: Callable[[Group], Any], patience: float = 60) -> list[str]:
    """What `work` returns on each of `size` real ranks, as text; a rank that raises fails the test."""
    run = RunDir(folder)
    lease.take(run, size)
    pids = []
    for rank in range(size):
        if not (pid := os.fork()):
            try:
                with process_group(context(run, rank, size), gpus=0, seed=0, deterministic=True) as group:
                    out = json.dumps(work(group))
                (folder / f"out{rank}").write_text(out)
            except BaseException as e:
                (folder / f"out{rank}").write_text(f"{type(e).__name__}: {e}")
                leave(1)
            leave(0)
        pids.append(pid)
    before, codes = time.monotonic(), {}
    while len(codes) < size and time.monotonic() - before < patience:
        for pid in pids:
            if pid not in codes and os.waitpid(pid, os.WNOHANG)[0]:
                codes[pid] = True
        time.sleep(0.005)
    for pid in set(pids) - codes.keys():
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    assert len(codes) == size, "a rank hung"
    return [(folder / f"out{rank}").read_text() for rank in range(size)]


def test_one_rank_starts_no_process_group(tmp_path: Path) -> None:
    with process_group(context(RunDir(tmp_path), 0, 1), gpus=0, seed=0, deterministic=False) as group:
        assert (group.rank, group.size, group.first) == (0, 1, True)
        assert not torch.distributed.is_initialized()
        group.barrier()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("size", [2, 3])
def test_ranks_add_up_agree_and_stack(tmp_path: Path, size: int) -> None:
    def work(group: Group) -> Any:
        summed = group.sum_(torch.tensor([group.rank + 1.0, 0.1]))
        agreed = group.from_first(0.1 + group.rank)
        stacked = group.stack(torch.tensor([group.rank, 7], dtype=torch.uint8))
        group.barrier()
        return summed.tolist(), agreed, stacked.tolist(), group.first

    outs = [json.loads(out) for out in on_processes(size, tmp_path, work)]
    for rank, (summed, agreed, stacked, first) in enumerate(outs):
        assert summed[0] == size * (size + 1) / 2 and summed == outs[0][0]
        assert agreed == 0.1  # in float64: no rank sees a rounded score
        assert stacked == [[r, 7] for r in range(size)]
        assert first == (rank == 0)


@pytest.mark.slow
def test_ranks_find_each_other_without_a_host_name(tmp_path: Path) -> None:
    def work(group: Group) -> Any:
        return os.environ["GLOO_SOCKET_IFNAME"]

    assert on_processes(2, tmp_path, work) == ['"lo"', '"lo"']


@pytest.mark.slow
def test_a_rank_that_raises_takes_the_others_with_it(tmp_path: Path) -> None:
    def work(group: Group) -> Any:
        if group.rank == 1:
            raise ValueError("here")
        return group.sum_(torch.ones(1)).item()

    before = time.monotonic()
    first, second = on_processes(2, tmp_path, work)
    assert second == "ValueError: here" and first.startswith(("RuntimeError", "DistBackendError"))
    assert time.monotonic() - before < 30  # and not gloo's time-out


def test_a_rank_that_never_comes_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comm, "TIMEOUT_S", 0.5)
    lease.take(RunDir(tmp_path), 2)
    with pytest.raises(RunError, match=r"^run\.rank=1: did not come within 0\.5 s"):
        enter(context(RunDir(tmp_path), 0, 2))
    (tmp_path / "lives" / "0001" / "address.json").unlink()
    with pytest.raises(RunError, match=r"^run\.rank=1: rank 0 gave no address within 0\.5 s"):
        enter(context(RunDir(tmp_path), 1, 2))


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_waits_for_others_hears_a_signal(tmp_path: Path, rank: int) -> None:
    lease.take(RunDir(tmp_path), 2)
    stop = Stop()
    stop.signum = signal.SIGTERM
    with pytest.raises(Stopped) as caught:
        enter(context(RunDir(tmp_path), rank, 2, stop))
    assert caught.value.code == 143


def enter(run: RunContext) -> None:
    try:
        with process_group(run, gpus=0, seed=0, deterministic=False):
            raise AssertionError("met nobody")
    finally:
        os.environ.pop("GLOO_SOCKET_IFNAME", None)


def test_asking_for_a_gpu_where_there_is_none_is_one_sentence(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    group = process_group(context(RunDir(tmp_path), 0, 1), gpus=1, seed=0, deterministic=False)
    with pytest.raises(RunError, match=r"^resources\.gpus_per_node=1: torch .* sees 0 here\. "), group:
        pass


def test_seeds_reach_every_generator_and_differ_between_ranks() -> None:
    def draws(seed: int, rank: int) -> tuple[float, float, float]:
        seed_everything(seed, rank)
        return torch.rand(()).item(), float(np.random.random()), random.random()

    assert draws(3, 0) == draws(3, 0)
    different = [draws(3, 0), draws(3, 1), draws(4, 0), draws(2**31 - 1, 1023)]
    for each in zip(*different, strict=True):
        assert len(set(each)) == len(different)


def test_the_group_alone_is_the_identity() -> None:
    x = torch.arange(3.0)
    assert ALONE.sum_(x) is x and ALONE.from_first(0.1) == 0.1 and ALONE.stack(x).tolist() == [[0, 1, 2]]


@pytest.mark.slow
def test_no_good_run_hangs_at_its_end() -> None:
    done = subprocess.run([sys.executable, ENDINGS, "10"], capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("10 of 10 endings within 20 s")


@pytest.mark.slow
def test_an_ending_that_hangs_is_counted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("endings", ENDINGS)
    assert spec and spec.loader
    endings = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(endings)
    monkeypatch.setattr(endings, "PATIENCE_S", 1.0)
    monkeypatch.setattr(endings, "rank", lambda run, life, number: time.sleep(60 * number) or os._exit(0))
    assert not endings.one_ending(RunDir(tmp_path / "a"))
    monkeypatch.setattr(endings, "rank", lambda run, life, number: os._exit(number))
    assert not endings.one_ending(RunDir(tmp_path / "b"))
