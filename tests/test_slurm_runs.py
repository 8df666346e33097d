"""Runs on a real Slurm: sent once, they come back from whatever ends them, and end with the bits of a run left in peace."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from conftest import until
from training_kit import HARD, assert_same, finish, litter, run_in, steps_on_record, words, write_npz

import hpcai
from hpcai import lease
from hpcai.rundir import RunDir, read_json

pytestmark = [pytest.mark.slurm, pytest.mark.slow]
LONG = (*HARD, "trainer.epochs=24", "resources.timeout_min=5")  # 240 steps: time to be hit in
Start = Callable[..., RunDir]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_npz(tmp_path_factory.mktemp("data") / "d.npz")


@pytest.fixture(scope="module")
def in_peace(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], RunDir]:
    """The same run on the local executor, on so many ranks, made once."""
    made: dict[int, RunDir] = {}

    def run(ranks: int) -> RunDir:
        if ranks not in made:
            runs = tmp_path_factory.mktemp("peace")
            finish(words(data, runs, *LONG, f"resources.tasks_per_node={ranks}"))
            made[ranks] = run_in(runs)
        return made[ranks]

    return run


def verb(*argv: str, timeout: float = 120.0) -> subprocess.CompletedProcess[str]:
    """`hpcai ...` as a user types it."""
    return subprocess.run([sys.executable, "-m", "hpcai.cli", *argv], capture_output=True, text=True, timeout=timeout, cwd="/")


def send(data: Path, runs: Path, *more: str) -> RunDir:
    """A run, submitted; its folder."""
    before = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "hpcai.run", *words(data, runs, "cluster=testbed", *more)],
        capture_output=True, text=True, timeout=60, cwd="/",
    )  # fmt: skip
    assert done.returncode == 0, (done.stdout, done.stderr)
    assert "submitted: job " in done.stdout and time.monotonic() - before < 30
    return run_in(runs)


def job_of(run: RunDir) -> str:
    """The id of its Slurm job."""
    return str(lease.read_owner(run, lease.last_life(run))["job"])


def wait(run: RunDir, timeout: float = 150.0) -> int:
    """`hpcai wait`; its exit code."""
    return verb("wait", str(run.path), timeout=timeout).returncode


def at_step(run: RunDir, step: int) -> None:
    """Returns when it has come so far."""
    until(lambda: steps_on_record(run.path.parent) >= step, timeout=90)


def client(*argv: str) -> str:
    """A client's words."""
    return subprocess.run(argv, capture_output=True, text=True, timeout=30, check=True).stdout


def ranks(run: RunDir) -> list[psutil.Process]:
    """The processes that work in its folder."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        line = process.info["cmdline"] or []
        if "hpcai.worker" in line and str(run.path) in line and not line[0].endswith("srun"):
            found.append(process)
    return found


def test_a_run_is_sent_at_once_and_leaves_its_answer(data: Path, tmp_path: Path, slurm: Any) -> None:
    run = send(data, tmp_path, "resources.timeout_min=5")
    assert wait(run) == 0
    assert run.report_html.is_file() and (run.path / "job.sbatch").read_text().startswith("#!/bin/bash -l\n")
    again = subprocess.run(
        [sys.executable, "-m", "hpcai.run", *words(data, tmp_path, "cluster=testbed", "resources.timeout_min=5")],
        capture_output=True, text=True,
    )  # fmt: skip
    assert again.returncode == 0 and again.stdout.startswith("finished ")
    job = slurm.job(job_of(run))
    assert (job["JobState"], job["Account"], job["Partition"]) == ("COMPLETED", "p200000", "cpu")
    assert job["Comment"] == f"hpcai:{hpcai.__version__}:{run.path.name}"


def test_a_run_on_two_nodes_meets_and_has_the_bits_of_one_machine(
    data: Path, tmp_path: Path, slurm: Any, in_peace: Callable[[int], RunDir]
) -> None:
    run = send(data, tmp_path, *LONG, "resources.nodes=2", "resources.tasks_per_node=2")
    assert wait(run) == 0
    assert_same(in_peace(4), run)


def again_by_signal(bed: Any, run: RunDir) -> None:
    client("scancel", "--signal=USR2", job_of(run))


def again_by_requeue(bed: Any, run: RunDir) -> None:
    client("scontrol", "requeue", job_of(run))


def kill_a_rank(bed: Any, run: RunDir) -> None:
    max(ranks(run), key=lambda p: p.pid).kill()


@pytest.mark.fault
@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("hit", [again_by_signal, again_by_requeue, kill_a_rank])
def test_a_run_that_is_interrupted_comes_back_by_itself_with_the_same_bits(
    slurm: Any, data: Path, tmp_path: Path, in_peace: Callable[[int], RunDir], hit: Callable[..., None], count: int
) -> None:
    run = send(data, tmp_path, *LONG, f"resources.tasks_per_node={count}")
    at_step(run, 60)
    hit(slurm, run)
    until(lambda: lease.last_life(run) == 2, timeout=60)
    assert wait(run) == 0
    assert_same(in_peace(count), run)
    assert litter(run.checkpoints) == []


@pytest.mark.fault
def test_a_run_that_is_preempted_comes_back_with_the_same_bits(
    slurm: Any, data: Path, tmp_path: Path, in_peace: Callable[[int], RunDir]
) -> None:
    run = send(data, tmp_path, *LONG, "cluster.qos=short-preempt", "resources.nodes=2", "cluster.partition=cpu")
    at_step(run, 60)
    node = client("squeue", "-h", "-j", job_of(run), "-o", "%N").strip()
    urgent = ["-A", "p200000", "-q", "urgent", "-p", "cpu", "-N", "2", "-t", "1", "-w", node, "-o", "/dev/null"]
    client("sbatch", "--parsable", *urgent, "--wrap", "sleep 2")
    until(lambda: lease.last_life(run) == 2, timeout=90)
    assert wait(run) == 0
    assert_same(in_peace(2), run)


@pytest.mark.fault
@pytest.mark.timeout(400)
def test_a_run_that_outlasts_its_time_limit_goes_on_after_it(
    data: Path, tmp_path: Path, slurm: Any, in_peace: Callable[[int], RunDir]
) -> None:
    run = send(data, tmp_path, *HARD, "trainer.epochs=6000", "trainer.max_steps=100000", "resources.timeout_min=1")
    until(lambda: lease.last_life(run) == 2, timeout=150)
    told = lease.records(run, 1)[0]
    assert told[-1]["event"] == "end" and told[-1]["code"] == 128 + signal.SIGUSR2
    step = told[-1].get("step") or max(r["step"] for r in told if r.get("step"))
    at_step(run, step + 1)
    assert verb("cancel", str(run.path)).returncode == 0


@pytest.mark.fault
def test_a_node_that_dies_is_replaced_and_its_living_ranks_write_nothing_more(
    slurm: Any, data: Path, tmp_path: Path, in_peace: Callable[[int], RunDir]
) -> None:
    run = send(data, tmp_path, *LONG, "trainer.epochs=24")
    at_step(run, 40)
    node = client("squeue", "-h", "-j", job_of(run), "-o", "%N").strip()
    old = ranks(run)
    for process in old:
        process.suspend()  # cut off: it neither ends nor writes, until the successor runs
    slurm.node_dies(node, processes_live=True)
    try:
        until(lambda: lease.last_life(run) == 2, timeout=120)
        for process in old:
            process.resume()
        assert wait(run) == 0
        psutil.wait_procs(old, timeout=60)
        assert_same(in_peace(1), run)
    finally:
        slurm.node_returns(node)


@pytest.mark.fault
def test_a_controller_that_is_away_costs_a_run_nothing(
    slurm: Any, data: Path, tmp_path: Path, in_peace: Callable[[int], RunDir]
) -> None:
    run = send(data, tmp_path, *LONG)
    at_step(run, 10)
    with slurm.no_controller():
        said = verb("status", str(run.path), "--json", "--runs-dir", str(tmp_path))
        assert said.returncode == 0 and json.loads(said.stdout)[0]["state"] in ("running", "completed")
    assert wait(run) == 0
    assert_same(in_peace(1), run)


@pytest.mark.fault
def test_a_run_that_gets_nowhere_in_three_starts_says_so_and_stops(data: Path, tmp_path: Path, slurm: Any) -> None:
    run = send(data, tmp_path, *LONG)
    for life in (1, 2, 3):
        until(lambda life=life: lease.last_life(run) == life and lease.records(run, life).get(0) and ranks(run), timeout=90)
        for process in ranks(run):  # it has begun, and imports torch: no step is done
            process.kill()
    assert wait(run) == 5
    assert lease.last_life(run) == 3
    assert "3 starts without a new step" in lease.read_state(run).message


def test_a_step_that_cannot_start_is_told_at_once(data: Path, tmp_path: Path, slurm: Any) -> None:
    run = send(data, tmp_path, *LONG, "cluster.python=/bin/false")
    assert wait(run) == 5  # nothing begins, and the batch script cannot say why either: lost, with a cause
    said = verb("status", str(run.path), "--json")
    assert json.loads(said.stdout)[0]["state"] == "lost"


@pytest.mark.parametrize(("word", "said"), [
    ("cluster.account=p999999", "account"),
    ("++cluster.facts.qos.nosuch={}", "qos"),
])  # fmt: skip
def test_what_the_plan_cannot_know_slurm_refuses_in_one_line(
    data: Path, tmp_path: Path, slurm: Any, word: str, said: str
) -> None:
    more = ["cluster.qos=nosuch"] if "nosuch" in word else []
    done = subprocess.run(
        [sys.executable, "-m", "hpcai.run", *words(data, tmp_path, "cluster=testbed", word, *more)],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    faults = [line for line in done.stderr.splitlines() if not line.startswith("warning: ")]
    assert done.returncode == 3 and len(faults) == 1 and said in faults[0], done.stderr
    assert client("squeue", "-h") == ""


def test_an_allocation_never_outlives_a_rank_that_died_for_good(data: Path, tmp_path: Path, slurm: Any) -> None:
    run = send(
        data, tmp_path, *LONG, "resources.tasks_per_node=2", "trainer.optimizer=sgd", "trainer.lr=100", "trainer.clip_norm=null"
    )
    assert wait(run) == 5
    until(lambda: client("squeue", "-h") == "", timeout=30)
    assert lease.read_state(run).state == "failed"


def test_no_slurm_is_one_sentence_and_leaves_nothing(data: Path, tmp_path: Path) -> None:
    env = {k: v for k, v in os.environ.items() if not k.startswith("SLURM")} | {"SLURM_CONF": str(tmp_path / "none")}
    done = subprocess.run(
        [sys.executable, "-m", "hpcai.run", *words(data, tmp_path / "runs", "cluster=testbed")],
        capture_output=True, text=True, timeout=60, env=env,
    )  # fmt: skip
    faults = [line for line in done.stderr.splitlines() if not line.startswith("warning: ")]
    assert done.returncode == 3 and len(faults) == 1 and faults[0].startswith("cluster=testbed: "), done.stderr
    assert not (tmp_path / "runs").exists() or not list((tmp_path / "runs").iterdir())


def test_cancel_saves_a_checkpoint_and_resume_goes_on(
    data: Path, tmp_path: Path, slurm: Any, in_peace: Callable[[int], RunDir]
) -> None:
    run = send(data, tmp_path, *LONG)
    at_step(run, 50)
    done = verb("cancel", str(run.path))
    assert done.returncode == 0 and "stopped" in done.stdout, (done.stdout, done.stderr)
    assert client("squeue", "-h") == ""
    assert verb("resume", str(run.path)).returncode == 0
    assert wait(run) == 0
    assert_same(in_peace(1), run)
    assert read_json(run.plan)["slurm"]["partition"] == "cpu"


def test_members_that_share_a_node_and_were_stopped_have_the_bits_of_a_run_alone(
    data: Path, tmp_path: Path, slurm: Any, in_peace: Callable[[int], RunDir]
) -> None:
    calm = in_peace(1)
    asked = words(data, tmp_path, "cluster=testbed", *LONG, "sweep.per_node=2")
    done = subprocess.run(
        [sys.executable, "-m", "hpcai.run", "-m", *asked, "seed=0,1"], capture_output=True, text=True, timeout=120, cwd="/"
    )
    assert done.returncode == 0 and "2 runs in 1 job, up to 2 side by side" in done.stdout, (done.stdout, done.stderr)
    run = RunDir(tmp_path / calm.path.name)  # the same run_id
    until(lambda: run.metrics.is_file() and run.metrics.read_bytes().count(b"\n") > 20, timeout=90)
    client("scancel", "--signal=USR2", job_of(run))
    assert verb("wait", str(next((tmp_path / "sweeps").iterdir())), timeout=200).returncode == 0
    assert lease.last_life(run) == 2
    assert_same(calm, run)
