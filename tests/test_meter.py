"""What a rank uses is looked at beside it: whole process trees, over all lives, and never to the harm of a run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from conftest import Launcher, until

from hpcai import lease, meter, rundir
from hpcai.context import Ranks, RunContext, alone
from hpcai.errors import OwnedError
from hpcai.meter import GIB, Gpu, Meter, Use, memory_to_ask, node_peak, read_use
from hpcai.rundir import RunDir

BURN = "import time, sys\nwhile time.process_time() < {s}: pass\nprint('done', flush=True)\nsys.stdin.read()"


@pytest.fixture
def context(tmp_path: Path) -> RunContext:
    run = RunDir(tmp_path / "run")
    run.path.mkdir()
    assert lease.take(run, 1) == 1
    return RunContext(run)


def burn(seconds: float) -> None:
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass


# --- what is counted


def test_cpu_seconds_are_those_of_the_process_and_of_children_that_live_or_have_ended(context: RunContext) -> None:
    looked = Meter(context, gpu=False)
    burn(0.2)
    subprocess.run([sys.executable, "-c", BURN.format(s=0.3)], stdin=subprocess.DEVNULL, check=True, capture_output=True)
    with subprocess.Popen([sys.executable, "-c", BURN.format(s=0.3)], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout and child.stdout.readline() == b"done\n"
        assert child.pid in meter.tree(os.getpid())
        looked.look()
    assert looked.use.cpu_s >= 0.2 + 0.3 + 0.3 - 0.05
    before = looked.use.cpu_s
    looked.look()
    assert before <= looked.use.cpu_s < before + 0.3, "a child that was counted living is not counted again"


def test_what_was_used_before_the_start_does_not_count(context: RunContext) -> None:
    burn(0.2)
    looked = Meter(context, gpu=False)
    looked.look()
    assert looked.use.cpu_s < 0.2 and looked.use.seconds < 10


def test_memory_is_the_peak_of_the_tree_also_between_two_looks(context: RunContext) -> None:
    looked = Meter(context, gpu=False)
    filled = bytearray(os.urandom(1) * (200 * 2**20))
    del filled
    looked.look()
    assert looked.use.mem >= 200 * 2**20
    code = "x = bytearray(b'1' * (300 * 2**20)); print('done', flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout and child.stdout.readline() == b"done\n"
        looked.look()
        alone_mem = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        assert looked.use.mem >= 300 * 2**20 + alone_mem / 2
        child.communicate(b"\n")


def test_lives_add_their_seconds_and_keep_the_highest_memory(context: RunContext) -> None:
    file = context.dir.use_file(0)
    rundir.write_json(file, asdict(Use(0, 3, lives=2, seconds=100.0, cpu_s=50.0, mem=10**15)))
    looked = Meter(context, gpu=False)
    looked.look()
    looked.write()
    (use,) = read_use(context.dir)
    assert (use.lives, use.node, use.mem) == (3, 0, 10**15)
    assert 100 < use.seconds < 160 and 50 <= use.cpu_s < 110


def test_what_ranks_of_one_node_took_is_added() -> None:
    uses = [Use(0, 0, mem=GIB), Use(1, 0, mem=2 * GIB), Use(2, 1, mem=2 * GIB)]
    assert node_peak(uses) == 3 and node_peak([]) == 0


@pytest.mark.parametrize(
    ("peak", "ask"), [(0.0, 1), (0.4, 1), (0.81, 2), (6.0, 8), (6.5, 16), (12.8, 16), (12.9, 24), (30.0, 40), (300.0, 376)]
)
def test_to_ask_for_is_the_peak_and_a_quarter_rounded_up(peak: float, ask: int) -> None:
    assert memory_to_ask(peak) == ask


# --- the file


GOOD = asdict(Use(0, 0))


@pytest.mark.parametrize("text", [
    "", "{", "[]", "null", '{"rank": 0}', "[" * 100_000, json.dumps(GOOD | {"cpu_s": "x"}), json.dumps(GOOD | {"mem": -1}),
    json.dumps(GOOD | {"cpu_s": float("nan")}), json.dumps(GOOD | {"lives": True}),
])  # fmt: skip
def test_a_damaged_file_is_left_out_and_replaced(context: RunContext, text: str) -> None:
    context.dir.use_file(0).write_text(text)
    assert read_use(context.dir) == []
    looked = Meter(context, gpu=False)
    looked.look()
    looked.write()
    assert read_use(context.dir)[0].lives == 1


def test_a_process_of_an_older_life_writes_nothing(context: RunContext) -> None:
    looked = Meter(context, gpu=False)
    lease.append(context.dir, 1, 0, "end", code=5, message="x")
    assert lease.take(context.dir, 1) == 2
    with pytest.raises(OwnedError):
        looked.write()
    assert not context.dir.use_file(0).exists()


def test_a_full_disk_harms_nothing_and_leaves_no_litter(small_disk: Callable[[str], Path]) -> None:
    disk = small_disk("size=64k")
    run = RunDir(disk / "run")
    run.path.mkdir()
    lease.take(run, 1)
    with (disk / "fill").open("wb", buffering=0) as f, pytest.raises(OSError):
        while True:
            f.write(b"x" * 4096)
    meter.start(RunContext(run), gpu=False)
    meter.settle()
    assert [f.name for f in run.path.iterdir()] == ["lives"]


def test_without_a_start_there_is_nothing_to_settle(tmp_path: Path) -> None:
    meter.settle()
    meter.start(alone(tmp_path / "gone"), gpu=True)  # no folder, no life
    meter.settle()
    assert not (tmp_path / "gone").exists()


def test_a_look_that_takes_long_is_taken_rarely(context: RunContext) -> None:
    looked = Meter(context, gpu=False)
    pauses: list[float] = []

    class Ended(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            pauses.append(timeout or 0)
            return len(pauses) == 3

    looked.ended, looked.look = Ended(), lambda: burn(0.02)
    looked._run()
    assert pauses[0] == meter.LOOK_S and all(pause >= 200 * 0.02 for pause in pauses[1:])


# --- the GPU


class FakeNvml:
    """NVML's functions as ctypes calls them: two GPUs of 80 GB; the second is a part of one, whose use is not told."""

    def __init__(self, load: int = 12, init: int = 0) -> None:
        self.load, self.init = load, init

    def nvmlInit_v2(self) -> int:
        return self.init

    def nvmlDeviceGetHandleByIndex_v2(self, index: Any, handle: Any) -> int:
        handle._obj.value = index.value + 1
        return 0 if index.value < 2 else 2

    def nvmlDeviceGetHandleByUUID(self, name: Any, handle: Any) -> int:
        handle._obj.value = {b"GPU-a": 1, b"MIG-b": 2}.get(name.value, 0)
        return 0 if handle._obj.value else 6

    def nvmlDeviceGetUtilizationRates(self, handle: Any, told: Any) -> int:
        told._obj.gpu = self.load
        return 3 if handle.value == 2 else 0

    def nvmlDeviceGetMemoryInfo(self, handle: Any, told: Any) -> int:
        told._obj.used, told._obj.total = 5 * GIB * handle.value, 80 * GIB
        return 0


@pytest.mark.parametrize(("visible", "rank", "used"), [
    (None, 0, 5), (None, 1, 10), ("1,0", 0, 10), ("1,0", 1, 5), ("GPU-a,MIG-b", 0, 5), ("GPU-a, MIG-b", 1, 10), ("", 1, 10),
])  # fmt: skip
def test_a_rank_looks_at_the_gpu_that_it_takes(visible: str | None, rank: int, used: int) -> None:
    assert Gpu(FakeNvml(), rank, visible).memory() == (used * GIB, 80 * GIB)


@pytest.mark.parametrize(("library", "visible", "rank"), [
    (FakeNvml(init=9), None, 0), (FakeNvml(), "7", 0), (FakeNvml(), "0", 1), (FakeNvml(), "GPU-gone", 0), (object(), None, 0),
    (OSError("no such library"), None, 0),
])  # fmt: skip
def test_no_gpu_that_can_be_looked_at_is_no_fault(
    library: Any, visible: str | None, rank: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(name: str) -> Any:
        assert name == "libnvidia-ml.so.1"
        if isinstance(library, OSError):
            raise library
        return library

    monkeypatch.setattr(meter.ctypes, "CDLL", load)
    assert meter.gpu_of(rank, {"CUDA_VISIBLE_DEVICES": visible} if visible else {}) is None


def test_gpu_time_is_weighted_by_how_busy_it_was(context: RunContext) -> None:
    looked = Meter(context, gpu=True)
    library = FakeNvml(load=50)
    looked.gpu = Gpu(library, 0, None)
    looked.looked -= 10
    looked.look()
    library.load = 200  # a driver's nonsense is at most all of the time
    looked.looked -= 10
    looked.look()
    use = looked.use
    assert use.gpu_s == pytest.approx(use.seconds) and use.gpu_s > 20
    assert use.gpu_busy_s / use.gpu_s == pytest.approx(0.75, abs=0.1)
    assert (use.gpu_mem, use.gpu_mem_total) == (5 * GIB, 80 * GIB)


def test_a_part_of_a_gpu_tells_its_memory_alone(context: RunContext) -> None:
    looked = Meter(context, gpu=True)
    looked.gpu = Gpu(FakeNvml(), 1, None)
    looked.look()
    assert (looked.use.gpu_s, looked.use.gpu_mem) == (0, 10 * GIB)


# --- in a run


@pytest.mark.slow
def test_each_rank_of_a_run_leaves_what_it_used(launch: Launcher) -> None:
    assert launch("resources.tasks_per_node=2").rc == 0
    uses = read_use(launch.run_dir())
    assert [(u.rank, u.node, u.lives) for u in uses] == [(0, 0, 1), (1, 0, 1)]
    assert all(u.seconds > 0 and 2**20 < u.mem < 2**40 for u in uses)


@pytest.mark.slow
@pytest.mark.fault
def test_a_rank_that_is_killed_leaves_its_last_look_and_the_next_life_adds_to_it(launch: Launcher) -> None:
    launch.job = {"step_s": 0.2}
    started = launch.start("trainer.max_steps=600")
    run = started.until(launch.prepared)
    started.until(lambda: read_use(run), timeout=60)
    (rank,) = launch.ranks(run)
    rank.kill()
    assert started.wait().rc == 5
    (before,) = read_use(run)
    assert before.lives == 1 and before.seconds >= meter.LOOK_S
    launch.job = {"fail": "run", "at": int(rundir.read_json(run.path / "count.rank0.json")) + 2}
    assert launch("trainer.max_steps=600").rc == 5, "a run that fails leaves it too"
    (after,) = read_use(run)
    assert (after.lives, after.rank) == (2, 0) and after.seconds > before.seconds and after.cpu_s >= before.cpu_s
    assert until(lambda: [f.name for f in run.path.glob(".use*")] == [])


def test_the_file_of_a_rank_names_its_rank_and_node(context: RunContext) -> None:
    looked = Meter(RunContext(context.dir, Ranks(rank=3, node=1, world_size=4), 1), gpu=False)
    looked.look()
    looked.write()
    assert context.dir.use_files() == [context.dir.use_file(3)]
    assert replace(read_use(context.dir)[0], seconds=0, cpu_s=0, mem=0) == Use(3, 1, lives=1)
