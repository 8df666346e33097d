"""One rank, started by hand: the frozen code, its place, its end, whoever starts it and wherever its words go."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import Launcher, processes
from fake_slurm import FakeSlurm, row

from hpcai import cancellation, lease, queued, requeue, rundir, scheduler, worker
from hpcai.context import Ranks
from hpcai.errors import OwnedError
from hpcai.lease import RunState
from hpcai.rundir import RunDir

pytestmark = pytest.mark.slow


@pytest.fixture
def failed(launch: Launcher) -> RunDir:
    """A prepared run that has failed in its first step, and will not again."""
    return prepare(launch)


def prepare(launch: Launcher, *words: str) -> RunDir:
    launch.job = {"fail": "run"}
    assert launch(*words).rc == 5
    launch.job = {}
    return launch.run_dir()


def plant(run: RunDir, line: str) -> None:
    """A first line of the job, in the run's own copy of the code."""
    file = run.code / "hpcai/jobs/train.py"
    file.write_text(file.read_text().replace("    asked: dict", f"    {line}\n    asked: dict"))


@pytest.mark.parametrize("path", ["snapshot first", "as it is"])
def test_the_frozen_code_runs_whatever_is_on_the_path(launch: Launcher, failed: RunDir, path: str) -> None:
    plant(failed, "run.note('warning', message='planted')")
    done = launch.worker(failed, **({"PYTHONPATH": str(failed.code)} if path == "snapshot first" else {}))
    assert (done.rc, done.err) == (0, ""), done
    assert [r["message"] for r in lease.records(failed, 2)[0] if r["event"] == "warning"] == ["planted"]
    assert lease.read_state(failed).state == "completed"


def test_the_checkout_imports_no_job_of_a_run_with_damaged_code_and_does_not_start_for_ever(
    launch: Launcher, failed: RunDir
) -> None:
    (failed.code / "hpcai/__init__.py").unlink()
    done = launch.worker(failed, timeout=30)
    assert done.rc == 3 and done.err.startswith(f"RUN_DIR={failed.path.name}: its code/ cannot be imported")


def test_a_run_folder_that_was_moved_to_a_name_with_a_colon_does_not_start_for_ever(launch: Launcher, failed: RunDir) -> None:
    moved = failed.path.rename(failed.path.parent / "a:b")
    done = launch.worker(RunDir(moved), timeout=30)
    assert done.rc == 3 and done.err.startswith("RUN_DIR=a:b: its code/ cannot be imported") and len(done.errors) == 1


def test_a_finished_run_is_done_at_once_also_where_nothing_may_be_written(
    launch: Launcher, small_disk: Callable[[str], Path]
) -> None:
    assert launch().rc == 0
    run = launch.run_dir()
    disk = small_disk("size=20m")
    shutil.copytree(run.path, disk / run.path.name)
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    for folder in (run, RunDir(disk / run.path.name)):
        done = launch.worker(folder)
        assert (done.rc, done.err) == (0, "") and done.out.startswith("finished already: ")
    assert lease.last_life(run) == 1


def test_an_unfinished_run_where_nothing_may_be_written_is_exit_5_in_one_line(
    launch: Launcher, failed: RunDir, small_disk: Callable[[str], Path]
) -> None:
    disk = small_disk("size=20m")
    shutil.copytree(failed.path, disk / failed.path.name)
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    done = launch.worker(RunDir(disk / failed.path.name))
    assert done.rc == 5 and done.err == (
        f"RUN_DIR={failed.path.name}: Read-only file system. Free space or mend the folder, then start it again.\n"
    )


@pytest.mark.parametrize(("env", "start"), [
    ({"RANK": "0", "WORLD_SIZE": "3"}, "world_size=3: run "),
    ({"SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "2"}, "world_size=2: run "),
    ({"RANK": "3", "WORLD_SIZE": "3"}, "RANK=3: WORLD_SIZE is 3."),
    ({"RANK": "one", "WORLD_SIZE": "1"}, "RANK=one: torchrun sets whole numbers here."),
])  # fmt: skip
def test_another_number_of_ranks_than_planned_is_exit_3(
    launch: Launcher, failed: RunDir, env: dict[str, str], start: str
) -> None:
    done = launch.worker(failed, **env)
    assert done.rc == 3 and done.err.startswith(start) and len(done.errors) == 1
    assert lease.last_life(failed) == 1


def test_no_folder_or_no_run_folder_is_told(launch: Launcher) -> None:
    for words, code, said in (
        ([], 2, "usage: python -m hpcai.worker RUN_DIR"),
        (["a", "b"], 2, "usage: "),
        ([str(launch.home)], 3, f"RUN_DIR={launch.home.name}: holds no plan.json."),
    ):
        done = launch(*words, module="hpcai.worker", bare=True)
        assert done.rc == code and done.err.startswith(said) and len(done.errors) == 1


def test_a_plan_of_another_version_or_damaged_is_exit_3(launch: Launcher, failed: RunDir) -> None:
    plan = rundir.read_json(failed.plan)
    rundir.write_json(failed.plan, plan | {"version": 99})
    assert launch.worker(failed).err.startswith(f"run={failed.path.name}: its format is 99, this hpcai reads 1.")
    failed.plan.write_text("{")
    done = launch.worker(failed)
    assert done.rc == 3 and done.err.startswith(f"run={failed.path.name}: its plan.json is damaged.")


def test_a_traceback_stands_in_the_log_alone(launch: Launcher) -> None:
    launch.job = {"fail": "bug"}
    assert launch().rc == 1
    run = launch.run_dir()
    done = launch.worker(run)
    assert done.rc == 1 and "Traceback" not in done.out + done.err and "secret-patient" not in done.out + done.err
    text = run.log(0).read_text()
    assert text.count("Traceback (most recent call last)") == 2 and "ZeroDivisionError: secret-patient-4711" in text
    end = lease.records(run, 2)[0][-1]
    assert end["event"] == "end" and "secret-patient" not in str(end)


def test_by_hand_two_at_once_give_one_run(launch: Launcher, failed: RunDir) -> None:
    launch.job = {"step_s": 0.5}
    both = [launch.start(str(failed.path), module="hpcai.worker", bare=True) for _ in range(2)]
    ends = [started.wait() for started in both]
    assert sorted(end.rc for end in ends) == [0, 7]
    assert max(ends, key=lambda end: end.rc).err.startswith(f"run={failed.path.name}: ")


def test_a_rank_of_a_superseded_life_writes_nothing(launch: Launcher, failed: RunDir) -> None:
    assert lease.take(failed, 1) == 2
    before = {f: f.read_bytes() for f in failed.lives.rglob("*.jsonl")}
    done = launch.worker(failed, HPCAI_LIFE="1")
    assert done.rc == 7 and done.err.startswith(f"run={failed.path.name}: life 2 runs it now, this is life 1.")
    assert {f: f.read_bytes() for f in failed.lives.rglob("*.jsonl")} == before


@pytest.mark.fault
@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGUSR2, 140)])
def test_by_hand_a_signal_stops_between_steps(launch: Launcher, failed: RunDir, signum: signal.Signals, code: int) -> None:
    launch.job = {"step_s": 1.0}
    started = launch.start(str(failed.path), module="hpcai.worker", bare=True)
    started.until(lambda: lease.last_life(failed) == 2 and lease.records(failed, 2))
    started.process.send_signal(signum)
    done = started.wait()
    assert done.rc == code and "stopped after step 1" in done.out and done.err == ""
    assert (lease.read_state(failed).state, lease.read_state(failed).code) == ("stopped", code)


def test_by_hand_into_a_pipe_that_breaks_the_run_completes(launch: Launcher, failed: RunDir) -> None:
    plant(failed, "import logging; [logging.getLogger('hpcai').info('word ' * 1000) for _ in range(100)]")
    script = f"set -o pipefail; {sys.executable} -m hpcai.worker {failed.path} | head -1"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, env=launch.env(), timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert lease.read_state(failed).state == "completed"


@pytest.mark.parametrize("fails", [False, True])
def test_torchrun_starts_the_ranks_too(launch: Launcher, fails: bool) -> None:
    run = prepare(launch, "resources.tasks_per_node=2")
    words = ["--standalone", "--nproc-per-node", "2", "-m", "hpcai.worker", str(run.path)]
    if fails:
        launch.job = {"fail": "data"}
    done = launch(*words, module="torch.distributed.run", bare=True)
    assert (done.rc == 0) != fails, done
    told = lease.records(run, 2)
    assert {r["launcher"] for rank in told.values() for r in rank if r["event"] == "begin"} == {"torchrun"}
    state = lease.read_state(run)
    assert (state.state, state.code) == (("failed", 4) if fails else ("completed", 0)), state
    assert processes(launch.sessions[-1]) == []


def test_torchrun_trains_for_real_on_two_ranks(train: Launcher) -> None:
    started = train.start("resources.tasks_per_node=2")
    run = started.until(train.prepared)
    started.until(run.plan.is_file)
    train.clean()
    words = ["--standalone", "--nproc-per-node", "2", "-m", "hpcai.worker", str(run.path)]
    done = train(*words, module="torch.distributed.run", bare=True)
    assert done.rc == 0, done
    assert run.report_html.is_file() and lease.read_state(run).state == "completed"


@pytest.mark.mpi
def test_mpiexec_starts_the_ranks_too(launch: Launcher) -> None:
    run = prepare(launch, "resources.tasks_per_node=2")
    worker = [sys.executable, "-m", "hpcai.worker", str(run.path)]
    words = ["mpiexec", "--allow-run-as-root", "--oversubscribe", "-n", "2"]
    done = subprocess.run(words + worker, capture_output=True, text=True, env=launch.env(), timeout=60)
    assert done.returncode == 0, done
    assert lease.read_state(run).state == "completed"


# --- as a job of Slurm, which is of paper here


def life_of_a_job(run: RunDir, *begun: dict[str, Any], job: str = "7", start: str = "7 0") -> int:
    """A life that a job's start has claimed, and whose ranks have begun."""
    life = lease.take(run, max(1, len(begun)), over=lease.last_life(run), kind="slurm", job=job, restart=0)
    lease.claim(run, life, start)
    for rank, who in enumerate(begun):
        lease.append(run, life, rank, "begin", **{**lease.me(), "pid": 2**22 - 1, "started": "gone", **who})
        lease.append(run, life, rank, "progress", step=5)
    return life


@pytest.fixture
def paper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    """A Slurm on whose queue job 7 runs; this process is its batch script."""
    slurm = FakeSlurm.on(tmp_path, monkeypatch)
    slurm.queue(row("7", "RUNNING", name="r"))
    for name in ("SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID", "SLURM_RESTART_COUNT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    cluster = SimpleNamespace(facts=SimpleNamespace(requeue=True))
    monkeypatch.setattr(requeue, "read_config", lambda run: SimpleNamespace(cluster=cluster))
    return slurm


@pytest.fixture
def ranked(monkeypatch: pytest.MonkeyPatch) -> Ranks:
    """The only rank of a step of that job."""
    return Ranks(launcher="srun", group="7-0")


def test_a_rank_that_was_killed_on_another_host_is_a_reason_to_come_again(tmp_path: Path, paper: FakeSlurm) -> None:
    """Its host's beat is fresh for two minutes, but the step has ended."""
    run = RunDir(tmp_path / "r")
    life = life_of_a_job(run, {}, {"host": "another"})
    lease.beat(run, life)
    assert lease.read_state(run).state == "running"
    assert requeue.main([str(run.path), "137"]) == 137
    assert paper.calls("scontrol") == [["requeue", "7"]]


def test_a_rank_that_vanished_while_slurm_ends_the_job_brings_no_job_back(tmp_path: Path, paper: FakeSlurm) -> None:
    run = RunDir(tmp_path / "r")
    life_of_a_job(run, {}, {})
    paper.queue(row("7", "COMPLETING", name="r"))
    assert requeue.main([str(run.path), "143"]) == 143
    assert paper.calls("scontrol") == []


def test_a_finished_run_that_is_started_again_is_not_given_up(
    tmp_path: Path, paper: FakeSlurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunDir(tmp_path / "r")
    lease.append(run, life_of_a_job(run, {}), 0, "end", code=0)
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert requeue.main([str(run.path), "0"]) == 0
    assert lease.read_state(run).state == "completed"


def test_a_run_that_is_through_stays_so_whatever_was_asked_meanwhile(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "r")
    life = life_of_a_job(run, {})
    lease.append(run, life, 0, "end", code=0)
    lease.give_up(run, life, "cancelled while it waited.", 143)
    assert (lease.read_state(run).state, lease.read_state(run).code) == ("completed", 0)


def test_a_start_takes_no_life_that_has_ended(tmp_path: Path, paper: FakeSlurm, ranked: Ranks) -> None:
    """As of a submission that was called refused, or of a job that was told to end before it began."""
    run = RunDir(tmp_path / "r")
    lease.give_up(run, lease.take(run, 1, kind="slurm", job="7", restart=0), "told to end.", 143)
    assert worker._take(run, ranked) == 2
    other = RunDir(tmp_path / "s")
    lease.append(other, lease.take(other, 1, kind="slurm", job=None, restart=0), 0, "end", code=3)
    assert worker._take(other, ranked) == 2


def test_a_second_step_of_one_start_does_not_take_the_run_from_the_first(
    tmp_path: Path, paper: FakeSlurm, ranked: Ranks, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunDir(tmp_path / "r")
    life_of_a_job(run, lease.me())
    with pytest.raises(OwnedError):
        worker._take(run, ranked)
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")  # the next start does: Slurm started it because the first is gone
    assert worker._take(run, ranked) == 2


def test_a_job_of_a_chain_does_not_follow_one_that_was_cancelled(tmp_path: Path, paper: FakeSlurm, ranked: Ranks) -> None:
    run = RunDir(tmp_path / "r")
    life = lease.take(run, 1, kind="slurm", job="6", restart=0, chain=["6", "7"])
    lease.claim(run, life, "6 0")
    lease.append(run, life, 0, "end", code=143)
    paper.queue(row("6", "CANCELLED", name="r"), row("7", "RUNNING", name="r"))
    with pytest.raises(OwnedError, match="job 6 was cancelled"):
        worker._take(run, ranked)
    paper.queue(row("6", "TIMEOUT", name="r"), row("7", "RUNNING", name="r"))
    assert worker._take(run, ranked) == 2


def test_a_cancel_that_did_not_reach_slurm_is_not_told_as_done(
    tmp_path: Path, paper: FakeSlurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunDir(tmp_path / "r")
    lease.take(run, 1, kind="slurm", job="7", restart=0)
    paper.queue(row("7", "PENDING", name="r"))
    paper.says("scancel", err="scancel: error: Kill job error on job id 7: Unable to contact slurm controller", code=1)
    answer, sent = scheduler.look(["7"]), dict[Path, float]()
    cancellation._stop_jobs([run], answer, sent)
    assert paper.calls("scancel") and not sent and lease.read_state(run).state == "pending"
    paper.unsaid("scancel")
    cancellation._stop_jobs([run], answer, sent)
    assert lease.read_state(run).state == "stopped" and not paper.jobs()


def test_a_run_that_comes_again_has_not_ended_while_slurm_is_silent(tmp_path: Path) -> None:
    silent = scheduler.Answer({}, queue=False, accounting=False)
    state = RunState("stopped", 1, 140, "stopped.", slurm_job="7")
    assert queued.with_scheduler(state, silent).state == "running"


def test_a_run_that_is_sent_again_while_the_queue_is_asked_is_not_lost(
    tmp_path: Path, paper: FakeSlurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, asked = RunDir(tmp_path / "r"), scheduler.look
    lease.append(run, life_of_a_job(run, {}), 0, "end", code=143)
    paper.queue(row("7", "CANCELLED", name="r"), row("8", "PENDING", name="r"))

    def slow(ids: Any, **how: Any) -> scheduler.Answer:
        answer = asked(ids, **how)
        lease.take(run, 1, over=1, kind="slurm", job="8", restart=0)
        return answer

    monkeypatch.setattr(scheduler, "look", slow)
    assert queued.state_of(run).state in ("stopped", "pending")
