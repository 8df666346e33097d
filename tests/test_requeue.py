"""After the step: which jobs come again, which do not, and who says so."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcai import lease, requeue
from hpcai.lease import RunState
from hpcai.requeue import STARTS, idle_starts, judge
from hpcai.rundir import RunDir

USR2, TERM = 128 + signal.SIGUSR2, 128 + signal.SIGTERM


@pytest.mark.parametrize(("state", "code"), [
    ("completed", 0), ("failed", 2), ("failed", 5), ("stopped", TERM), ("stopped", 130), ("pending", None), ("running", None),
    ("new", None), ("unreadable", None),
])  # fmt: skip
def test_what_ended_for_a_reason_or_by_somebodys_will_does_not_come_again(state: lease.State, code: int | None) -> None:
    assert judge(RunState(state, 1, code), [5]) == ""


@pytest.mark.parametrize("state", [RunState("stopped", 1, USR2, "x."), RunState("lost", 1, 5, "x.")])
def test_what_ran_out_of_time_or_lost_a_rank_comes_again_while_it_gets_further(state: RunState) -> None:
    assert judge(state, [5]) == judge(state, [5, 5, 9]) == judge(state, [5, 5, 5]) == judge(state, [None, None]) == "again"
    for stuck in ([5, 5, 5, 5], [None] * 3, [9, 3, 9, 9], [5, None, None, None]):
        assert judge(state, stuck).startswith("3 starts without a new step: x. See its log")


@given(st.lists(st.none() | st.integers(0, 50), max_size=12))
def test_a_new_step_starts_the_count_anew(steps: list[int | None]) -> None:
    idle = idle_starts(steps)
    assert 0 <= idle <= len(steps)
    assert idle_starts([*steps, 51]) == 0
    assert idle_starts([*steps, 51, *[51] * STARTS]) == STARTS


def a_life(run: RunDir, step: int | None, **end: object) -> int:
    """A life of job 7 that came to `step` and may have ended."""
    life = lease.take(run, 1, over=lease.last_life(run), kind="slurm", job="7", restart=0)
    lease.claim(run, life, "7 0")
    gone = {**lease.me(), "pid": 2**22 - 1, "started": "gone"}
    lease.append(run, life, 0, "begin", **gone)
    if step is not None:
        lease.append(run, life, 0, "progress", step=step)
    if end:
        lease.append(run, life, 0, "end", **end)
    return life


@pytest.fixture
def job(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """This process is the batch script of job 7; the ids that were asked to come again."""
    asked: list[str] = []
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    for name in ("SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(requeue, "_again", lambda run, job: asked.append(job))
    return asked


def test_a_run_that_was_told_in_time_is_queued_again(tmp_path: Path, job: list[str]) -> None:
    a_life(RunDir(tmp_path), 5, code=USR2, message="stopped.")
    assert requeue.main([str(tmp_path), "140"]) == 140
    assert job == ["7"]


def test_a_run_that_gets_no_further_says_so_and_stays(
    tmp_path: Path, job: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    run = RunDir(tmp_path)
    for _ in range(STARTS + 1):
        a_life(run, 5)
    assert requeue.main([str(tmp_path), "1"]) == 1
    assert job == []
    state = lease.read_state(run)
    assert (state.state, state.code) == ("failed", 5)
    assert "3 starts without a new step" in state.message and "3 starts without a new step" in capsys.readouterr().out


@pytest.mark.parametrize("code", [0, 1])
def test_a_start_without_a_rank_names_the_verb_that_goes_on(
    tmp_path: Path, job: list[str], monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    """Slurm 22.05 ends a step with 0 where a node that died kept the last start's PMIx socket: no rank ran. A new job goes."""
    run = RunDir(tmp_path)
    a_life(run, 5)
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert requeue.main([str(tmp_path), str(code)]) == code
    assert job == []
    state = lease.read_state(run)
    assert state.state == "failed" and f"ended with {code} before any rank began" in state.message
    assert "hpcai resume" in state.message


def test_a_run_that_has_another_job_by_now_is_left_alone(tmp_path: Path, job: list[str]) -> None:
    run = RunDir(tmp_path)
    a_life(run, 5)
    lease.take(run, 1, over=1, kind="slurm", job="8", restart=0)
    assert requeue.main([str(tmp_path), "9"]) == 9
    assert job == []


@pytest.mark.parametrize("argv", [[], ["x"], ["x", "y"], ["x", "1", "2"]])
def test_other_words_are_refused(argv: list[str]) -> None:
    assert requeue.main(argv) == 2


def test_a_damaged_folder_changes_no_exit_code(tmp_path: Path, job: list[str]) -> None:
    run = RunDir(tmp_path)
    a_life(run, 5)
    (lease.life_dir(run, 1) / "rank0.jsonl").write_text("{\n")
    assert requeue.main([str(tmp_path), "3"]) == 3
    assert job == []
