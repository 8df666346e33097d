"""Faults of jobs on a real Slurm, with a job that only counts: nothing runs twice, comes back for ever, or is told wrongly."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import Launcher, until
from slurm_kit import LONG, TERM, empty, hold, job_of, manner, once, python, queue, send, sruns, state, step, through, verb

from hpcai import lease
from hpcai.rundir import RunDir

pytestmark = [pytest.mark.slurm, pytest.mark.slow]


# --- before its ranks begin


def test_a_job_that_is_requeued_before_it_begins_waits_again_and_completes(bench: Launcher, slurm: Any, tmp_path: Path) -> None:
    run = send(bench, python(tmp_path, hold(tmp_path)))
    until(lambda: (tmp_path / "came").exists())
    through(slurm, run, "scontrol", "requeue")
    until(lambda: slurm.job(job_of(run)).get("Restarts") == "1")
    assert state(bench, run) in ("pending", "running")
    (tmp_path / "go").touch()
    assert verb(bench, "wait", str(run.path)).rc == 0
    once(run)


@pytest.mark.parametrize("how", ["the worker ends at once", "the disk is full"])
def test_a_start_that_comes_to_nothing_is_not_repeated_for_ever(
    bench: Launcher, slurm: Any, tmp_path: Path, small_disk: Callable[[str], Path], how: str
) -> None:
    broken = tmp_path / "broken"
    words = [LONG, python(tmp_path, f'if [[ " $* " == *" hpcai.worker "* && -e "{broken}" ]]; then exit 3; fi')]
    if how == "the disk is full":
        bench = replace(bench, home=small_disk("size=20m"))
        manner(bench)
    run = send(bench, *words)
    until(lambda: step(run) > 3)
    if how == "the disk is full":
        with contextlib.suppress(OSError), (bench.runs / "all").open("wb", buffering=0) as f:
            while f.write(b"x" * 4096):
                pass
    else:
        broken.touch()
        through(slurm, run, "scancel", "--signal=USR2")
    until(lambda: not queue(slurm) or int(slurm.job(job_of(run)).get("Restarts", "0")) > 3, timeout=120)
    assert not queue(slurm)
    assert verb(bench, "wait", str(run.path)).rc == 5
    (bench.runs / "all").unlink(missing_ok=True)
    broken.unlink(missing_ok=True)
    assert verb(bench, "resume", str(run.path)).rc == 0
    before = step(run)
    until(lambda: lease.last_life(run) > 1 and step(run) > before + 1)


def test_a_scancel_while_one_rank_has_not_begun_brings_no_job_back(bench: Launcher, slurm: Any, tmp_path: Path) -> None:
    run = send(bench, LONG, "resources.tasks_per_node=2", python(tmp_path, hold(tmp_path, rank=1)))
    until(lambda: (tmp_path / "came").exists() and step(run) > 1)
    job = job_of(run)
    through(slurm, run, "scancel")
    until(lambda: not queue(slurm) or slurm.job(job)["Restarts"] != "0")
    assert slurm.job(job)["Restarts"] == "0" and slurm.state(job) == "CANCELLED"
    assert verb(bench, "wait", str(run.path)).rc in (5, TERM)


# --- one writer


def test_a_script_that_is_sent_by_hand_while_the_run_has_a_job_does_nothing(
    bench: Launcher, slurm: Any, tmp_path: Path
) -> None:
    """While it waits (its submitter's record names the job), while it prepares itself, and while it runs."""
    run = send(bench, "trainer.max_steps=400", python(tmp_path, hold(tmp_path)))
    first = job_of(run)
    until(lambda: (tmp_path / "came").exists())
    second = slurm("sbatch", "--parsable", str(run.script)).stdout.strip()
    (tmp_path / "go").touch()
    slurm.until(second, "FAILED", "COMPLETED")
    third = slurm("sbatch", "--parsable", str(run.script)).stdout.strip()
    slurm.until(third, "FAILED", "COMPLETED")
    codes = {slurm.job(job)["ExitCode"] for job in (second, third)}
    assert codes <= {"7:0", "0:0"}  # another has it, or it was through already
    assert verb(bench, "wait", str(run.path)).rc == 0
    once(run, 400)
    assert slurm.until(first, "COMPLETED")["ExitCode"] == "0:0"


def test_the_same_command_at_any_moment_finds_the_run_taken(bench: Launcher, slurm: Any, tmp_path: Path) -> None:
    words = ["cluster=testbed", "resources.timeout_min=5", LONG, python(tmp_path, hold(tmp_path))]
    run = send(bench, *words[2:])
    until(lambda: (tmp_path / "came").exists())
    assert bench(*words).rc == 7  # runs, and has not begun
    (tmp_path / "go").touch()
    until(lambda: step(run) > 1)
    assert bench(*words).rc == 7 and verb(bench, "resume", str(run.path)).rc == 7
    through(slurm, run, "scancel", "--signal=USR2")
    until(lambda: lease.read_state(run).state == "stopped")
    assert bench(*words).rc == 7 and verb(bench, "resume", str(run.path)).rc == 7  # about to come again, or comes already
    until(lambda: lease.last_life(run) == 2)
    assert len(queue(slurm)) == 1


KILLS = {
    "before the folder is whole": "submit.prepare = die",
    "in the middle of the folder": "rundir_write = rundir.write_json; rundir.write_json = lambda p, v: "
    "die() if p.name == 'plan.json' else rundir_write(p, v)",
    "before sbatch": "submit.send = die",
    "before its id is written": "lease.give_to_job = die",
}


@pytest.mark.fault
@pytest.mark.parametrize("where", KILLS)
def test_a_submitter_that_is_killed_loses_and_doubles_nothing(bench: Launcher, slurm: Any, where: str) -> None:
    code = (
        "import os, signal, sys\n"
        "from hpcai import lease, rundir, run, submit\n"
        "def die(*a, **k): os.kill(os.getpid(), signal.SIGKILL)\n"
        f"{KILLS[where]}\n"
        "sys.exit(run.main(sys.argv[1:]))\n"
    )
    words = bench.words("cluster=testbed", "resources.timeout_min=5", "trainer.max_steps=50")
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, env=bench.env(), cwd=bench.home)
    assert done.returncode == -9, done
    again = bench(*words, bare=True)
    sent = where == "before its id is written"
    assert again.rc in ((7, 0) if sent else (0,)), again  # 0: it was through already
    run = bench.run_dir()
    assert verb(bench, "wait", str(run.path)).rc == 0
    empty(slurm)
    once(run, 50)
    assert lease.last_life(run) == (1 if sent else 2)


def test_a_submission_that_fails_after_sbatch_is_no_refusal(bench: Launcher, slurm: Any) -> None:
    code = (
        "import sys, submitit.core.utils as u\n"
        "def full(*a, **k): raise OSError(28, 'No space left on device')\n"
        "u.JobPaths.move_temporary_file = full\n"
        "from hpcai.run import main\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    words = bench.words("cluster=testbed", "resources.timeout_min=5", "trainer.max_steps=200")
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, env=bench.env(), cwd=bench.home)
    assert done.returncode == 0, done
    run = bench.run_dir()
    assert verb(bench, "wait", str(run.path)).rc == 0
    once(run, 200)


# --- whose job is it


def test_a_number_that_another_job_has_now_is_not_this_runs(bench: Launcher, slurm: Any) -> None:
    run = send(bench)
    assert verb(bench, "wait", str(run.path)).rc == 0
    other = str(slurm.submit("-p", "cpu", "-t", "5", "-A", "p200000", "--job-name=mine"))
    life = lease.take(run, 1, kind="slurm", job=None, restart=0)
    lease.give_to_job(run, life, other)
    lease.claim(run, life, f"{other} 0")
    lease.append(run, life, 0, "begin", **{**lease.me(), "pid": 2**22 - 1, "started": "gone"})
    assert state(bench, run) == "lost"
    assert verb(bench, "cancel", str(run.path), timeout=30).rc == 0
    assert slurm.state(other) in ("PENDING", "RUNNING")


def test_a_job_of_the_same_name_in_another_folder_is_not_this_runs(bench: Launcher, slurm: Any, tmp_path: Path) -> None:
    run = send(bench, LONG)
    until(lambda: step(run) > 1)
    copy = RunDir(tmp_path / "other" / run.path.name)
    shutil.copytree(run.path, copy.path)
    shutil.rmtree(copy.lives)
    lease.take(copy, 1, kind="slurm", job=None, restart=0, pid=2**22 - 1, started="gone")  # its submitter was killed
    assert state(bench, copy) == "lost"
    verb(bench, "cancel", str(copy.path))
    assert slurm.state(job_of(run)) == "RUNNING" and not lease.read_owner(copy, 1)["job"]


# --- cancel, and what staff do


@pytest.mark.parametrize("more", [[], ["--no-wait"]])
def test_a_job_that_has_not_begun_is_cancelled(bench: Launcher, slurm: Any, tmp_path: Path, more: list[str]) -> None:
    run = send(bench, LONG, python(tmp_path, hold(tmp_path)))
    until(lambda: (tmp_path / "came").exists())
    done = verb(bench, "cancel", str(run.path), *more)
    assert done.rc == 0 and ("stopped" in done.out or more), done
    empty(slurm)
    assert state(bench, run) == "stopped" and verb(bench, "wait", str(run.path)).rc == TERM


def test_a_job_that_is_held_is_cancelled_and_resume_sends_it_again(bench: Launcher, slurm: Any) -> None:
    run = send(bench, "trainer.max_steps=300")
    until(lambda: step(run) > 1)
    through(slurm, run, "scontrol", "requeuehold")
    until(lambda: slurm.state(job_of(run)) == "PENDING")
    assert state(bench, run) == "pending"
    done = verb(bench, "cancel", str(run.path))
    assert done.rc == 0 and "stopped" in done.out, done
    assert slurm.state(job_of(run)) == "CANCELLED" and verb(bench, "wait", str(run.path)).rc == TERM
    assert verb(bench, "resume", str(run.path)).rc == 0
    assert verb(bench, "wait", str(run.path)).rc == 0
    once(run, 300)


def test_what_staff_cancel_is_told_with_its_cause(bench: Launcher, slurm: Any) -> None:
    slurm.submit("-p", "cpu", "-N", "3", "-t", "5", "-A", "p200000")
    slurm.submit("-p", "cpu", "-N", "1", "-t", "5", "-A", "p200000")
    run = send(bench)
    through(slurm, run, "scancel")
    done = verb(bench, "wait", str(run.path))
    assert done.rc == 5 and "cancelled" in done.out and state(bench, run) == "lost", done


def test_a_scancel_of_a_job_that_runs_is_a_stop_with_a_checkpoint(bench: Launcher, slurm: Any) -> None:
    run = send(bench, LONG)
    until(lambda: step(run) > 1)
    through(slurm, run, "scancel")
    assert verb(bench, "wait", str(run.path)).rc == TERM and state(bench, run) == "stopped" and step(run) > 0


def test_a_scancel_ends_a_chain(bench: Launcher, slurm: Any) -> None:
    """Where a site allows no requeue: the first job's limit starts the second, its user's scancel starts nothing."""
    run = send(bench, LONG, "cluster.facts.requeue=false", "cluster.chain=3")
    until(lambda: step(run) > 3)
    through(slurm, run, "scancel", "--signal=USR2")
    until(lambda: lease.last_life(run) == 2 and step(run) > 0)
    second = job_of(run)
    through(slurm, run, "scancel")
    until(lambda: not queue(slurm) or lease.last_life(run) == 3)
    assert not queue(slurm) and job_of(run) == second and state(bench, run) == "stopped"


def test_a_cancel_ends_a_chain(bench: Launcher, slurm: Any) -> None:
    run = send(bench, LONG, "cluster.facts.requeue=false", "cluster.chain=3")
    until(lambda: step(run) > 3)
    assert verb(bench, "cancel", str(run.path)).rc == 0
    assert not queue(slurm) and lease.last_life(run) == 1 and state(bench, run) == "stopped"


# --- comes back


def test_a_step_whose_srun_is_killed_comes_back(bench: Launcher, slurm: Any) -> None:
    run = send(bench, LONG)
    until(lambda: step(run) > 3)
    for process in sruns(run):
        process.kill()
    until(lambda: lease.last_life(run) == 2 or not queue(slurm), timeout=90)
    assert lease.last_life(run) == 2
    before = step(run)
    until(lambda: step(run) > before)


def test_a_controller_that_is_away_when_a_job_asks_to_come_again_is_awaited(bench: Launcher, slurm: Any) -> None:
    run = send(bench, LONG)
    until(lambda: step(run) > 3)
    through(slurm, run, "scancel", "--signal=USR2")
    with slurm.no_controller():
        until(lambda: lease.read_state(run).state == "stopped")
    until(lambda: lease.last_life(run) == 2, timeout=120)


def test_a_submission_without_a_controller_leaves_nothing_and_goes_on_later(bench: Launcher, slurm: Any) -> None:
    words = ("cluster=testbed", "resources.timeout_min=5")
    with slurm.no_controller():
        done = bench(*words)
        assert done.rc == 3 and "does not answer" in done.err, done
    assert not queue(slurm)
    assert bench(*words).rc == 0
    run = bench.run_dir()
    assert verb(bench, "wait", str(run.path)).rc == 0
    once(run)


# --- what it leaves


def test_files_of_a_run_that_a_group_may_read_are_readable_by_it(bench: Launcher, slurm: Any) -> None:
    run = send(bench, "runs_access=group")
    assert verb(bench, "wait", str(run.path)).rc == 0
    closed = [f.name for f in run.path.rglob("*") if not f.stat().st_mode & 0o040]
    assert set(closed) <= {"claim"} and all(
        not f.stat().st_mode & 0o007 for f in run.path.rglob("*") if run.code not in f.parents
    )


@pytest.mark.parametrize("name", ["-a b'q\"$HOME `id`", "back\\slash", "new\nline", "100%j"])
def test_a_path_may_hold_anything_or_is_refused(bench: Launcher, slurm: Any, tmp_path: Path, name: str) -> None:
    home = tmp_path / name
    home.mkdir()
    bench = replace(bench, home=home)
    manner(bench)
    done = bench("cluster=testbed", "resources.timeout_min=5", "runs_dir=runs")
    if done.rc:
        assert done.rc in (2, 3) and len([line for line in done.errors if not line.startswith("warning: ")]) == 1, done
        assert not queue(slurm)
        return
    run = bench.run_dir()
    empty(slurm)
    once(run)
    assert (run.submitit / f"{job_of(run)}_batch.log").is_file()


@pytest.mark.parametrize(("fail", "code"), [("data", 4), ("", 0)])
def test_the_job_ends_with_the_code_of_its_step(bench: Launcher, slurm: Any, fail: str, code: int) -> None:
    manner(bench, fail=fail)
    run = send(bench)
    assert verb(bench, "wait", str(run.path)).rc == code
    assert slurm.until(job_of(run), "COMPLETED" if code == 0 else "FAILED")["ExitCode"] == f"{code}:0"


def test_what_comes_after_the_step_cannot_fail_a_job_that_is_through(bench: Launcher, slurm: Any, tmp_path: Path) -> None:
    run = send(bench, python(tmp_path, 'if [[ " $* " == *" hpcai.requeue "* ]]; then exit 77; fi'))
    empty(slurm)
    assert slurm.job(job_of(run))["ExitCode"] == "0:0"
    once(run)


def test_nothing_of_a_surrounding_job_or_shell_reaches_the_run(bench: Launcher, slurm: Any, tmp_path: Path) -> None:
    evil = tmp_path / "evil"
    evil.mkdir()
    (evil / "json.py").write_text("raise SystemExit(9)\n")
    words = bench.words("cluster=testbed", "resources.timeout_min=5")
    leaks = {"SLURM_JOB_ID": "1", "SLURM_NTASKS": "7", "SLURM_PROCID": "3", "SBATCH_PARTITION": "gpu", "SBATCH_HOLD": "1",
             "SLURM_RESTART_COUNT": "2", "SLURM_JOB_NAME": "x", "SBATCH_EXPORT": "ALL", "HPCAI_LIFE": "99"}  # fmt: skip
    env = bench.env(**leaks)
    done = subprocess.run([sys.executable, "-m", "hpcai.run", *words], capture_output=True, text=True, env=env, cwd=bench.home)
    assert done.returncode == 0, done
    run = bench.run_dir()
    assert verb(bench, "wait", str(run.path)).rc == 0
    once(run)
    job = slurm.job(job_of(run))
    assert (job["Partition"], job["NumTasks"], job["JobName"]) == ("cpu", "1", run.path.name)


# --- a site without accounting, where no job may be requeued


@pytest.fixture
def bare_site(bench: Launcher, slurm: Any) -> Iterator[Any]:
    """The bed in another shape, and in its own again."""
    usual = slurm.bed.told()[1]
    slurm.bed.down()
    slurm.bed.up(replace(usual, accounting=False, requeue=False))
    yield slurm
    slurm.bed.down()
    slurm.bed.up(usual)


def test_without_accounting_and_requeue_a_chain_completes_and_what_is_gone_is_lost(bench: Launcher, bare_site: Any) -> None:
    words = ("cluster.facts.requeue=false", "cluster.chain=3")
    run = send(bench, "trainer.max_steps=150", *words)
    until(lambda: step(run) > 3)
    through(bare_site, run, "scancel", "--signal=USR2")
    assert verb(bench, "wait", str(run.path)).rc == 0
    empty(bare_site)
    once(run, 150)
    assert lease.last_life(run) == 2
    shutil.rmtree(run.path)
    manner(bench, fail="kill", at=2)
    run = send(bench, *words)
    assert verb(bench, "wait", str(run.path)).rc == 5
    empty(bare_site)
    assert state(bench, run) in ("lost", "failed")
