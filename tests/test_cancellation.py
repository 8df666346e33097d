"""`hpcai cancel`: from any shell, with a checkpoint; never a process that is not the run's."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from conftest import Done, Launcher, Started
from run_folders import GONE, make_run, make_sweep

from hpcai import cancellation, lease, rundir
from hpcai.cli import main
from hpcai.rundir import RunDir

LONG = "trainer.max_steps=2000"  # with step_s=0.01: longer than any test waits
ANSWERS = """
import signal, sys, time
from pathlib import Path
from hpcai import lease
from hpcai.rundir import RunDir
run, asked = RunDir(Path(sys.argv[1])), []
signal.signal(signal.SIGTERM, lambda *a: asked.append(1))
if sys.argv[2] == "owner":
    lease.take(run, 1)
lease.append(run, 1, 0, "begin", **lease.me())
print("ready", flush=True)
while not asked:
    time.sleep(0.01)
lease.append(run, 1, 0, "end", code=143, message="stopped.")
"""


def call(launch: Launcher, *words: str) -> Done:
    """`hpcai cancel ...` on the launcher's runs."""
    return launch("cancel", *words, "--runs-dir", str(launch.runs), module="hpcai.cli", bare=True)


def running(launch: Launcher, *words: str) -> Started:
    """A run that goes on until it is stopped."""
    launch.job = {"step_s": 0.01}
    started = launch.start(LONG, *words)
    started.until(launch.step, 60)
    return started


def until(condition: Callable[[], Any]) -> None:
    """Waits for it, long enough for a busy machine."""
    before = time.monotonic()
    while not condition():
        assert time.monotonic() - before < 60, "nothing came"
        time.sleep(0.01)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`runs` below the current folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path / "runs"


@pytest.fixture
def answering() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """answering(run, "owner" | "rank"): a process that owns a run, or is its rank, and ends it at SIGTERM."""
    started: list[subprocess.Popen[str]] = []

    def begin(run: RunDir, role: str = "owner") -> subprocess.Popen[str]:
        command = [sys.executable, "-c", ANSWERS, str(run.path), role]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        started.append(process)
        assert process.stdout and process.stdout.readline() == "ready\n"
        return process

    yield begin
    for process in started:
        process.kill()
        process.communicate()


def said(capsys: pytest.CaptureFixture[str], code: int, *words: str) -> tuple[list[str], list[str]]:
    """What cancel prints, out and err by line."""
    assert main(["cancel", *words]) == code
    out, err = capsys.readouterr()
    return out.splitlines(), err.splitlines()


# --- real runs


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
def test_a_run_is_stopped_from_a_second_shell_with_its_checkpoint(launch: Launcher, ranks: int) -> None:
    started = running(launch, f"resources.tasks_per_node={ranks}")
    done = call(launch, "tiny")
    run = launch.run_dir()
    state = lease.read_state(run)
    assert (done.rc, done.err, state.state) == (0, "", "stopped")
    assert done.out == f"{run.path.name}: stopped: {state.message}\n" and "checkpoint kept" in state.message
    assert started.wait().rc == 143 and launch.ranks(run) == []
    assert call(launch, "tiny").out == f"{run.path.name}: nothing to cancel, it is stopped\n"


@pytest.mark.slow
def test_a_run_that_has_just_been_started_is_stopped_when_it_can_answer(launch: Launcher) -> None:
    launch.job = {"step_s": 0.01}
    started = launch.start(LONG)
    started.until(lambda: launch.prepared() and launch.run_dir().plan.is_file(), 60)
    done = call(launch, "tiny")
    assert done.rc == 0 and lease.read_state(launch.run_dir()).state == "stopped", done
    assert started.wait().rc == 143


@pytest.mark.slow
def test_no_wait_comes_back_before_the_end(launch: Launcher) -> None:
    started = running(launch)
    done = call(launch, "tiny", "--no-wait")
    assert done.rc == 0 and len(done.out.splitlines()) == 1
    assert started.wait().rc == 143


@pytest.mark.slow
@pytest.mark.fault
def test_ranks_whose_controller_was_killed_are_asked_themselves(launch: Launcher) -> None:
    started = running(launch, "resources.tasks_per_node=2")
    run = launch.run_dir()
    owner = psutil.Process(rundir.read_json(lease.life_dir(run, 1) / "owner.json")["pid"])
    owner.kill()
    until(lambda: not lease.is_here(rundir.read_json(lease.life_dir(run, 1) / "owner.json")))
    done = call(launch, "tiny")
    assert (done.rc, done.err) == (0, "") and ": stopped: stopped after step" in done.out
    assert started.wait().rc and launch.ranks(run) == []


@pytest.mark.slow
@pytest.mark.fault
def test_a_run_whose_processes_were_killed_has_nothing_to_cancel(launch: Launcher) -> None:
    launch.job = {"fail": "kill", "at": 2}
    assert launch(LONG).rc == 5
    done = call(launch, "tiny", "--json")
    assert (done.rc, done.err) == (0, "") and [f["state"] for f in json.loads(done.out)] == ["lost"]


@pytest.mark.slow
def test_a_real_sweep_is_stopped_from_a_second_shell_with_all_its_members(launch: Launcher) -> None:
    started = running(launch, "seed=0,1", "-m")
    (sweep,) = (RunDir(folder) for folder in (launch.runs / "sweeps").iterdir())
    until(lambda: len(list(launch.runs.glob("tiny-*/count.rank0.json"))) == 2)
    done = call(launch, sweep.path.name)
    assert (done.rc, done.err) == (0, "") and done.out.startswith(f"{sweep.path.name}: stopped: ")
    assert started.wait().rc == 143
    members = [RunDir(folder) for folder in launch.runs.glob("tiny-*")]
    assert [lease.read_state(run).state for run in (sweep, *members)] == ["stopped"] * 3


# --- who is asked


@pytest.mark.parametrize("state", ["completed", "failed", "stopped", "lost", "new"])
def test_where_nothing_runs_it_says_so(here: Path, state: str, capsys: pytest.CaptureFixture[str]) -> None:
    make_run(here / "x-1", state)
    word = "not started" if state == "new" else state
    assert said(capsys, 0, "x") == ([f"x-1: nothing to cancel, it is {word}"], [])


def test_a_pid_that_another_process_has_now_gets_no_signal(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(here / "x-1", "running")
    bystander = subprocess.Popen(["sleep", "600"])
    try:
        reused = lease.me() | {"pid": bystander.pid}  # its start is this process's, not the bystander's
        rundir.write_json(lease.life_dir(run, 1) / "owner.json", {**reused, "ranks": 1, "time": time.time()})
        (lease.life_dir(run, 1) / "rank0.jsonl").unlink()
        lease.append(run, 1, 0, "begin", **reused)
        assert said(capsys, 0, "x") == (["x-1: nothing to cancel, it is lost"], [])
        assert not cancellation.ask(run) and bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()


def test_of_a_dead_owner_only_the_ranks_that_live_are_asked(
    here: Path, answering: Callable[..., subprocess.Popen[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(here / "x-1", "pending")
    owner = rundir.read_json(lease.life_dir(run, 1) / "owner.json")
    rundir.write_json(lease.life_dir(run, 1) / "owner.json", {**owner, **GONE})
    rank = answering(run, "rank")
    assert said(capsys, 0, "x") == (["x-1: stopped: stopped."], []) and rank.wait(60) == 0


def test_a_rank_that_never_begins_does_not_keep_cancel_waiting_for_ever(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its launch is ended after BEGIN_S, and not before."""
    run = make_run(here / "x-1", "pending")
    owner = subprocess.Popen(["sleep", "600"])
    lease.hand_over(run, 1, owner.pid)
    try:
        assert not cancellation.ask(run) and owner.poll() is None
        monkeypatch.setattr(cancellation, "BEGIN_S", 0.0)
        reaped = threading.Thread(target=owner.wait)
        reaped.start()
        assert said(capsys, 0, "x") == (["x-1: stopped before its first step"], [])
        reaped.join()
        assert owner.returncode == -signal.SIGTERM
    finally:
        owner.kill()


def test_a_run_on_another_host_is_exit_3_and_the_others_are_stopped(
    here: Path, answering: Callable[..., subprocess.Popen[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    away, mine = make_run(here / "away-1", "running"), make_run(here / "mine-2", "new")
    there = lease.me() | {"host": "else\nwhere"}
    rundir.write_json(lease.life_dir(away, 1) / "owner.json", {**there, "ranks": 1, "time": time.time()})
    (lease.life_dir(away, 1) / "rank0.jsonl").unlink()
    lease.append(away, 1, 0, "begin", **there)
    lease.beat(away, 1)
    process = answering(mine)
    out, err = said(capsys, 3, "away", "mine")
    assert out == ["mine-2: stopped: stopped."] and process.wait(60) == 0
    assert err == ["run=away-1: runs on else?where. Type hpcai cancel away-1 there."]


def test_another_users_process_is_exit_7(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_run(here / "x-1", "running")

    def forbidden(pid: int, signum: int) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "kill", forbidden)
    line = f"run=x-1: process {os.getpid()} is another user's. Ask them to type hpcai cancel x-1."
    assert said(capsys, 7, "x") == ([], [line])


def test_a_run_whose_records_are_damaged_is_no_success(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(here / "x-1", "running")
    (lease.life_dir(run, 1) / "owner.json").write_text("{")
    line = "run=x-1: its records in lives/ are damaged, so its process is not known. Stop it by hand."
    assert said(capsys, 3, "x") == ([], [line])


# --- sweeps


def test_of_a_sweep_the_driver_is_asked_and_not_its_members(
    here: Path, answering: Callable[..., subprocess.Popen[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    member = make_run(here / "x-1", "completed")
    sweep = make_sweep(here, [member], "new")
    driver = answering(sweep.dir)
    assert said(capsys, 0, "grid") == (["grid-11111111: stopped: stopped."], []) and driver.wait(60) == 0


def test_members_that_have_outlived_their_driver_are_asked_each(
    here: Path, answering: Callable[..., subprocess.Popen[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    members = [make_run(here / f"x-{i}", "new") for i in range(3)]
    processes = [answering(member) for member in members[:2]]
    make_sweep(here, members, "lost")
    assert said(capsys, 0, "grid") == (["grid-11111111: its driver is gone, its members have ended"], [])
    assert [process.wait(60) for process in processes] == [0, 0]
    assert [lease.read_state(m).state for m in members] == ["stopped", "stopped", "new"]
