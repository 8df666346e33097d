"""What the tests of training share: tiny data, a run started for real, its whole process tree killed, two runs compared.

Every run is width 8 on 12x12 pixel: seconds. Validation has over one block of cases, so that each of two ranks scores a part.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from torch import Tensor

from hpcai import lease, rundir
from hpcai.comm import Group
from hpcai.config.check import load
from hpcai.config.schema import Config, Model, Trainer
from hpcai.context import RunContext, alone
from hpcai.data.samples import Samples, Scaling
from hpcai.models import build
from hpcai.plan import make_plan
from hpcai.rundir import RunDir
from hpcai.submit import prepare
from hpcai.tasks.classification import Classification
from hpcai.training.checkpoint import read_checkpoint
from hpcai.training.state import TrainState
from hpcai.training.steps import Outcome, Step, optimise, steps, total_steps

SIZES = {"train": 150, "val": 300, "test": 40}
NOT_COMPARED = ("time", "samples_s", "left_s")
TIMEOUT_S = 120.0
SMALL = (
    "name=t", "data.labels=[no,yes]", "data.identifiers=none",
    "model.width=8", "model.norm=group", "trainer.epochs=2", "trainer.batch_size=16",
    "trainer.log_every=1", "resources.cpus_per_task=1",
)  # fmt: skip
HARD = (
    "model.norm=batch", "model.dropout=0.2", "trainer.ema_decay=0.9", "trainer.augment=[affine,intensity,flip,noise]",
    "trainer.accumulate=2", "trainer.clip_norm=0.5", "trainer.class_weights=balanced", "trainer.checkpoint_every=3",
)  # fmt: skip


def write_npz(path: Path, sizes: dict[str, int] = SIZES, side: int = 12, seed: int = 0) -> Path:
    """Noise, with a brighter corner in class 1 (a third of the cases): learnt in a few steps, not perfectly."""
    rng = np.random.default_rng(seed)
    arrays: dict[str, Any] = {}
    for name, n in sizes.items():
        y = (rng.random(n) < 1 / 3).astype(np.int64)
        y[:2] = 0, 1
        x = rng.integers(0, 180, (n, side, side))
        x[:, : side // 2, : side // 2] += (y * 75)[:, None, None]
        arrays |= {f"{name}_images": x.astype(np.uint8), f"{name}_labels": y[:, None]}
    np.savez(path, **arrays)
    return path


def words(data: Path, runs: Path, *more: str) -> list[str]:
    """The overrides of a small run; a later one replaces an earlier one."""
    chosen: dict[str, str] = {}
    for word in (*SMALL, f"data.path={data}", f"runs_dir={runs}", *more):
        chosen[word.partition("=")[0]] = word
    return list(chosen.values())


def config(data: Path, *more: str) -> Config:
    """The checked config of a small run."""
    return load(words(data, Path("runs"), *more))


def start(args: list[str]) -> subprocess.Popen[str]:
    """The launcher, in a session of its own."""
    command = [sys.executable, "-m", "hpcai.run", *args]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True, cwd="/"
    )  # fmt: skip


def launch(args: list[str], timeout: float = TIMEOUT_S) -> subprocess.CompletedProcess[str]:
    """A run from its start to its end."""
    process = start(args)
    try:
        out, err = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        kill_tree(process.pid, random.Random(0))
        raise
    return subprocess.CompletedProcess(args, process.returncode, out, err)


def finish(args: list[str], timeout: float = TIMEOUT_S) -> subprocess.CompletedProcess[str]:
    """A run that must end well."""
    done = launch(args, timeout)
    assert done.returncode == 0, (done.returncode, done.stdout[-2000:], done.stderr[-2000:])
    return done


def kill_tree(pid: int, rng: random.Random) -> None:
    """SIGKILL to the launcher, the controller and every rank, in random order; returns when all are gone."""
    with contextlib.suppress(psutil.NoSuchProcess):
        root = psutil.Process(pid)
        doomed = [root, *root.children(recursive=True)]
        rng.shuffle(doomed)
        for process in doomed:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(doomed, timeout=20)


def run_in(runs: Path, name: str = "t") -> RunDir:
    """The one run of `name` in `runs`."""
    (folder,) = runs.glob(f"{name}-*")
    return RunDir(folder)


def steps_on_record(runs: Path) -> int:
    """The last step in metrics.jsonl, as far as it can be read now."""
    with contextlib.suppress(ValueError, OSError):
        return max((line["step"] for line in rundir.read_lines(run_in(runs).metrics)), default=0)
    return 0


def wait_until(condition: Any, process: subprocess.Popen[str] | None = None, timeout: float = 60) -> bool:
    """Polls; False if `process` ended before."""
    before = time.monotonic()
    while not condition():
        if process is not None and process.poll() is not None:
            return False
        assert time.monotonic() - before < timeout, "nothing came"
        time.sleep(0.005)
    return True


def interrupt(args: list[str], runs: Path, at_step: int, rng: random.Random) -> bool:
    """Starts the run and SIGKILLs all of it a random moment after `at_step` stands in metrics.jsonl.

    False if the run ended before.
    """
    process = start(args)
    with process:
        hit = wait_until(lambda: steps_on_record(runs) >= at_step, process)
        time.sleep(rng.random() * 0.03)
        kill_tree(process.pid, rng)
    return hit


def ask_to_stop(args: list[str], runs: Path, at_step: int, signum: signal.Signals) -> int:
    """Starts the run and signals its launcher after `at_step`; returns the exit code."""
    process = start(args)
    with process:
        wait_until(lambda: steps_on_record(runs) >= at_step, process)
        process.send_signal(signum)
        process.communicate(timeout=TIMEOUT_S)
        return process.returncode


def curve(run: RunDir) -> list[dict[str, Any]]:
    """metrics.jsonl, whole lines all, without what depends on the clock."""
    text = run.metrics.read_text()
    assert text.endswith("\n")
    return [{k: v for k, v in json.loads(line).items() if k not in NOT_COMPARED} for line in text.splitlines()]


def last_step(run: RunDir) -> int:
    """The step of the newest checkpoint."""
    return max(int(f.stem.removeprefix("step-")) for f in run.checkpoints.glob("step-*.json"))


def assert_same(a: RunDir, b: RunDir) -> None:
    """Two finished runs have the same bits: last and best checkpoint, curve, rows, threshold."""
    assert curve(a) == curve(b)
    steps = {run.path: (last_step(run), rundir.read_json(run.model)["step"]) for run in (a, b)}
    assert steps[a.path] == steps[b.path]
    for step in steps[a.path]:
        (x, fx), (y, fy) = (read_checkpoint(run.checkpoints / f"step-{step:08d}") for run in (a, b))
        assert fx["progress"] == fy["progress"]
        assert x.keys() == y.keys()
        assert [k for k in x if not same_bits(x[k], y[k])] == []
    assert rows_of(a) == rows_of(b)
    assert a.threshold.read_bytes() == b.threshold.read_bytes()


def same_bits(x: Tensor, y: Tensor) -> bool:
    """Equal in type, shape and every bit."""
    return x.dtype == y.dtype and x.shape == y.shape and raw(x) == raw(y)


def raw(x: Tensor) -> bytes:
    """The bytes of a tensor of any type."""
    return x.contiguous().view(-1).view(torch.uint8).numpy().tobytes()


def rows_of(run: RunDir) -> dict[str, bytes]:
    """Every rows file by name; what a kill left half written is hidden and read by nobody."""
    return {f.name: f.read_bytes() for f in sorted(run.rows.glob("[!.]*"))}


def warnings_of(run: RunDir) -> list[str]:
    """What the ranks warned of, in every life."""
    lives = range(1, lease.last_life(run) + 1)
    told = [r for life in lives for records in lease.records(run, life).values() for r in records]
    return [r["message"] for r in told if r["event"] == "warning"]


def end_of(run: RunDir) -> lease.RunState:
    """What the records say."""
    return lease.read_state(run)


def litter(folder: Path) -> list[str]:
    """Half-written files below `folder`."""
    return [f.name for f in folder.rglob("*") if f.name.endswith(".tmp")]


def ranks_alive(run: RunDir) -> Iterator[psutil.Process]:
    """Processes that work in this run's folder."""
    for process in psutil.process_iter(["cmdline"]):
        if "hpcai.worker" in (process.info["cmdline"] or []) and str(run.path) in process.info["cmdline"]:
            yield process


@contextlib.contextmanager
def small_disk(folder: Path, mb: int = 3) -> Iterator[Path]:
    """A disk of so many MB at `folder`; skips where it may not be mounted."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={mb}m", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a small disk needs root and the right to mount")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


# ---- ranks as threads of this process


class ThreadGroup(Group):
    """A rank that meets the others in memory: the same sums in the same order, without processes."""

    def __init__(self, rank: int, size: int, meeting: Meeting) -> None:
        super().__init__(rank, size, torch.device("cpu"))
        self.meeting = meeting

    def stack(self, x: Tensor) -> Tensor:
        """See Group.stack."""
        return torch.stack(self.meeting.share(self.rank, x.clone()))

    def sum_(self, x: Tensor) -> Tensor:
        """See Group.sum_."""
        return x.copy_(sum(self.meeting.share(self.rank, x.clone()), torch.zeros_like(x)))

    def barrier(self) -> None:
        """See Group.barrier."""
        self.meeting.share(self.rank, torch.zeros(1))


class Meeting:
    """Where `size` threads lay down a tensor each and see all of them."""

    def __init__(self, size: int) -> None:
        self.parts: list[Tensor] = [torch.zeros(0)] * size
        self.met = threading.Barrier(size, timeout=30)

    def share(self, rank: int, x: Tensor) -> list[Tensor]:
        """Everybody's tensor, in the order of ranks."""
        self.parts[rank] = x
        self.met.wait()
        seen = list(self.parts)
        self.met.wait()
        return seen


def on_ranks(size: int, work: Callable[[Group], Any]) -> list[Any]:
    """What `work` gives on each of `size` ranks; the first error of any is raised."""
    meeting = Meeting(size)

    def rank(number: int) -> Any:
        try:
            return work(ThreadGroup(number, size, meeting))
        except BaseException:
            meeting.met.abort()
            raise

    with ThreadPoolExecutor(size) as pool:
        futures = [pool.submit(rank, r) for r in range(size)]
    errors = [e for f in futures if (e := f.exception())]
    for error in sorted(errors, key=lambda e: isinstance(e, threading.BrokenBarrierError)):
        raise error
    return [f.result() for f in futures]


def taken(folder: Path) -> RunContext:
    """A context whose run has begun: the fence lets it write."""
    context = alone(folder)
    lease.take(context.dir, 1)
    return context


def table(n: int, seed: int = 0, dtype: torch.dtype = torch.float64, classes: int = 2) -> Samples:
    """`n` random samples of 6x6 pixel."""
    rng = np.random.default_rng(seed)
    x = torch.from_numpy(rng.integers(0, 255, (n, 1, 6, 6)).astype(np.uint8))
    y = torch.from_numpy(np.arange(n) % 3 % classes)
    return Samples(x, y, torch.arange(n), Scaling((127.0,), (70.0,)), dtype, torch.device("cpu"))


def small_net(norm: str = "group", dropout: float = 0.0, classes: int = 2) -> torch.nn.Module:
    """The small net at its least width."""
    return build(Model(width=8, norm=norm, dropout=dropout), 1, classes)  # type: ignore[arg-type]


_ONE_AT_A_TIME = threading.Lock()
ALONE = Group(0, 1, torch.device("cpu"))


def fresh_state(cfg: Trainer, n: int, group: Group = ALONE, norm: str = "group", dropout: float = 0.0) -> TrainState:
    """A small net before its first step on `n` samples; threads share torch's generator, so one at a time."""
    with _ONE_AT_A_TIME:
        state = TrainState(lambda: small_net(norm, dropout), cfg, total_steps(n, cfg), 0, group)
    group.barrier()
    return state


def train(state: TrainState, samples: Samples, each: Callable[[Step, Outcome], None] = lambda step, outcome: None) -> None:
    """Every step that is left, as jobs/train.py does them; `each` sees a step done."""
    task, group = Classification(["no", "yes"]), state.group
    for step in steps(state.progress, len(samples), state.cfg, 0, group.rank, group.size):
        each(step, optimise(state, task, samples, step, 0, stop=False, save=False))


# ---- a job in this process: for what is not about processes


def prepared(args: list[str]) -> tuple[Config, RunContext]:
    """A run folder as the launcher would leave it, and the context of its one rank."""
    plan, cfg, files = make_plan(load(args))
    context = taken(Path(plan.run_dir))
    prepare(context.dir, plan, cfg, files)
    return cfg, context


def run_here(args: list[str]) -> RunDir:
    """A run on one rank, in this process; what its job raises is raised."""
    cfg, context = prepared(args)
    again(cfg, context)
    return context.dir


def again(cfg: Config, context: RunContext) -> None:
    """The job of a prepared run."""
    try:
        import_module(f"hpcai.jobs.{cfg.job}").main(cfg, context)
    finally:
        torch.use_deterministic_algorithms(False)


_TRAINED: list[tuple[Path, RunDir]] = []


def a_trained_run(factory: Any) -> tuple[Path, RunDir]:
    """(its data, a finished training of two epochs), made once a session; leave it as it is."""
    if not _TRAINED:
        folder = factory.mktemp("trained")
        data = write_npz(folder / "d.npz")
        _TRAINED.append((data, run_here(words(data, folder / "runs", "trainer.ema_decay=0.9", "model.norm=batch"))))
    return _TRAINED[0]
