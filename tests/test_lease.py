"""One winner, whoever comes at whatever moment; a dead owner is found out; a live one never taken for dead."""

# ruff: noqa: E501  (a row of a table is one line)

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from hpcai import lease, rundir
from hpcai.errors import OwnedError
from hpcai.lease import RunState, _verdict
from hpcai.rundir import RunDir

TAKE = """
import sys, time
from pathlib import Path
from hpcai import lease
from hpcai.errors import OwnedError
from hpcai.rundir import RunDir
import psutil
for line in sys.stdin:
    folder, at = line.rsplit(" ", 1)
    while time.monotonic() < float(at):
        pass
    try:
        print(lease.take(RunDir(Path(folder)), 1), flush=True)
    except OwnedError:
        print("owned", flush=True)
    except Exception as e:
        print(type(e).__name__, e, flush=True)
"""


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return RunDir(tmp_path / "x-12345678")


def gone() -> int:
    """The pid of a process that has ended."""
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


def abandon(run: RunDir, life: int = 1, ranks: int = 1, **owner: Any) -> int:
    """A life whose owner is dead."""
    who = {**lease.me(), "pid": gone(), "ranks": ranks, "time": time.time(), **owner}
    rundir.write_json(lease.life_dir(run, life) / "owner.json", who)
    return life


def dead(**more: Any) -> dict[str, Any]:
    """What a begin record of a rank that has died holds."""
    return {**lease.me(), "pid": gone(), **more}


# --- taking


def test_a_new_run_is_taken_and_then_owned(run: RunDir) -> None:
    assert lease.read_state(run) == RunState("new")
    assert lease.take(run, 2) == 1
    state = lease.read_state(run)
    assert (state.state, state.life) == ("pending", 1) and f"process {os.getpid()} on " in state.owner
    with pytest.raises(OwnedError, match=rf"^run=x-12345678: process {os.getpid()} on \S+ runs it\. "):
        lease.take(run, 2)
    assert lease.last_life(run) == 1


@pytest.mark.slow
@pytest.mark.fault
@pytest.mark.parametrize("before", ["nothing", "a dead owner", "a stopped life"])
def test_of_many_who_take_at_the_same_moment_exactly_one_wins(tmp_path: Path, before: str) -> None:
    rng = random.Random(7)
    takers = [subprocess.Popen([sys.executable, "-c", TAKE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
              for _ in range(8)]  # fmt: skip
    try:
        for number in range(20):
            run = RunDir(tmp_path / f"round {number}")
            lives = 0 if before == "nothing" else abandon(run)
            if before == "a stopped life":
                lease.append(run, 1, 0, "end", code=143, message="stopped.")
            at = time.monotonic() + 0.03
            for taker in takers:
                assert taker.stdin
                taker.stdin.write(f"{run.path} {at + rng.random() * rng.choice([0, 0.0005, 0.005])}\n")
                taker.stdin.flush()
            told = sorted(taker.stdout.readline().strip() for taker in takers if taker.stdout)
            assert told == [str(lives + 1)] + ["owned"] * 7
            assert [f.name for f in run.lives.iterdir() if f.name.startswith(".")] == []
            owner = rundir.read_json(lease.life_dir(run, lives + 1) / "owner.json")
            assert owner["pid"] in {taker.pid for taker in takers}
    finally:
        for taker in takers:
            taker.kill()
            taker.communicate()


def test_a_take_that_a_kill_cut_short_leaves_the_run_free(run: RunDir) -> None:
    (run.lives / ".host-1-1").mkdir(parents=True)
    (run.lives / ".host-1-1" / "owner.json").write_text("{")
    assert lease.read_state(run).state == "new"
    assert lease.take(run, 1) == 1


def test_a_superseded_life_is_fenced_off(run: RunDir) -> None:
    abandon(run)
    lease.fence(run, 1)
    assert lease.take(run, 1) == 2
    lease.fence(run, 2)
    with pytest.raises(OwnedError, match=r"^run=x-12345678: life 2 runs it now, this is life 1\. Nothing was written\.$"):
        lease.fence(run, 1)


def test_lives_count_on_past_9999(run: RunDir) -> None:
    abandon(run, 9999)
    assert lease.take(run, 1) == 10000 == lease.last_life(run)


# --- who lives


def test_a_pid_that_is_used_again_by_another_process_counts_as_dead(run: RunDir) -> None:
    abandon(run, pid=os.getpid(), started=_another_start())
    assert lease.read_state(run).state == "lost"
    assert lease.take(run, 1) == 2


def _another_start() -> Any:
    """The start of a process that is not this one."""
    process = subprocess.Popen(["sleep", "60"])
    lease_of = process.pid
    try:
        return lease.process_start(lease_of)
    finally:
        process.kill()
        process.wait()


def test_an_owner_lives_on_where_the_clock_is_set(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    """Time servers and laptops that wake move the wall clock, and with it the boot time that Linux tells."""
    import psutil

    lease.take(run, 1)
    before = psutil._pslinux.boot_time()
    monkeypatch.setattr(psutil._pslinux, "boot_time", lambda: before + 3.0)
    monkeypatch.setattr(psutil, "boot_time", lambda: before + 3.0)
    assert lease.read_state(run).state == "pending"


def test_a_zombie_counts_as_dead(run: RunDir) -> None:
    process = subprocess.Popen(["true"])
    started = lease.process_start(process.pid)
    before = time.monotonic()
    while Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
        assert time.monotonic() - before < 10
    abandon(run, pid=process.pid, started=started)
    assert lease.read_state(run).state == "lost"
    process.wait()


def test_a_name_that_looks_like_the_end_of_the_stat_line_changes_nothing(tmp_path: Path) -> None:
    """/proc/PID/stat holds the program's name in brackets, whatever it is."""
    program = tmp_path / "a) Z 1 ("
    program.symlink_to("/bin/sleep")
    process = subprocess.Popen([str(program), "60"])
    try:
        start = lease.process_start(process.pid)
        assert start is not None and start == lease.process_start(process.pid)
    finally:
        process.kill()
        process.wait()


def test_a_child_that_is_handed_the_run_owns_it(run: RunDir) -> None:
    lease.take(run, 1)
    child = subprocess.Popen(["sleep", "60"])
    lease.hand_over(run, 1, child.pid)
    assert f"process {child.pid} " in lease.read_state(run).owner
    assert lease.read_state(run).state == "pending"
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert lease.read_state(run).state == "lost"


def test_a_rank_that_lives_keeps_the_run_when_its_owner_has_died(run: RunDir) -> None:
    abandon(run)
    lease.append(run, 1, 0, "begin", **lease.me())
    assert lease.read_state(run).state == "running"
    with pytest.raises(OwnedError):
        lease.take(run, 1)


@pytest.mark.parametrize(
    ("silent_s", "beats", "state"), [(1, False, "pending"), (500, False, "lost"), (1, True, "running"), (500, True, "lost")]
)
def test_on_another_host_silence_means_death(run: RunDir, silent_s: float, beats: bool, state: str) -> None:
    then = time.time() - silent_s
    abandon(run, host="elsewhere", time=then)
    if beats:
        lease.append(run, 1, 0, "begin", **lease.me() | {"host": "elsewhere"})
        lease.beat(run, 1)
        os.utime(lease.life_dir(run, 1) / "beat", (then, then))
    assert lease.read_state(run).state == state


# --- what became of it


def test_a_vanished_process_makes_the_run_lost_and_names_the_rank(run: RunDir) -> None:
    abandon(run, ranks=2)
    for rank in (0, 1):
        lease.append(run, 1, rank, "begin", **dead())
    lease.append(run, 1, 0, "progress", step=42)
    lease.append(run, 1, 0, "end", code=0)
    state = lease.read_state(run)
    assert (state.state, state.code, state.step) == ("lost", 5, 42)
    assert state.message == "run.rank=1: ended without a word (killed, or out of memory). The same command goes on."


def test_a_torn_last_line_is_ignored(run: RunDir) -> None:
    abandon(run)
    lease.append(run, 1, 0, "begin", **dead())
    lease.append(run, 1, 0, "progress", step=7)
    with (lease.life_dir(run, 1) / "rank0.jsonl").open("a") as f:
        f.write('{"event": "end", "code": 0, "ti')
    state = lease.read_state(run)
    assert (state.state, state.step) == ("lost", 7)


def test_two_ends_of_one_rank_do_not_stand_for_two_ranks(run: RunDir) -> None:
    abandon(run, ranks=2)
    for _ in range(2):
        lease.append(run, 1, 0, "end", code=0)
    assert lease.read_state(run).state == "lost"


ENDS: list[tuple[str, list[dict[str, Any]], str, int, str]] = [
    ("all well", [{"code": 0}, {"code": 0}], "completed", 0, ""),
    ("an error before what follows from it", [{"code": 1, "collateral": True, "message": "peer"}, {"code": 5, "message": "nan"}], "failed", 5, "nan"),
    ("the earliest of two errors", [{"code": 5, "message": "first"}, {"code": 4, "message": "second"}], "failed", 5, "first"),
    ("an error before a stop", [{"code": 143, "message": "stopped"}, {"code": 4, "message": "data"}], "failed", 4, "data"),
    ("a stop before what follows from it", [{"code": 1, "collateral": True, "message": "peer"}, {"code": 143, "message": "stopped"}], "stopped", 143, "stopped"),
    ("a bug before what follows from it", [{"code": 1, "collateral": True, "message": "peer"}, {"code": 1, "message": "bug"}], "failed", 1, "bug"),
    ("an error after a good end", [{"code": 0}, {"code": 5, "message": "report"}], "failed", 5, "report"),
    ("what follows from it alone", [{"code": 1, "collateral": True, "message": "peer"}, {"code": 1, "collateral": True, "message": "peer 2"}], "failed", 1, "peer"),
]  # fmt: skip


@pytest.mark.parametrize(("ends", "state", "code", "message"), [case[1:] for case in ENDS], ids=[case[0] for case in ENDS])
def test_of_many_ends_the_cause_is_the_verdict(
    run: RunDir, ends: list[dict[str, Any]], state: str, code: int, message: str
) -> None:
    """In any order of ranks; the order in time is the list's."""
    for order in ([0, 1], [1, 0]):
        told = [{"rank": order[i], "time": 100.0 + i, "event": "end", **end} for i, end in enumerate(ends)]
        verdict = _verdict(told, 1, "me", None)
        assert (verdict.state, verdict.code, verdict.message, verdict.ended) == (state, code, message, 101.0)


def test_an_error_outlives_the_silence_of_other_ranks_but_its_consequence_does_not(run: RunDir) -> None:
    abandon(run, 1, ranks=2)
    lease.append(run, 1, 0, "end", code=1, message="peer", collateral=True)
    assert lease.read_state(run).message.startswith("run.rank=1: ended without a word")
    abandon(run, 2, ranks=2)
    lease.append(run, 2, 0, "end", code=4, message="data: row 7.")
    assert (lease.read_state(run).state, lease.read_state(run).message) == ("failed", "data: row 7.")
    abandon(run, 3, ranks=2)
    lease.append(run, 3, 0, "end", code=143, message="stopped.")
    assert lease.read_state(run).state == "lost"


def test_a_life_is_judged_by_its_own_records(run: RunDir) -> None:
    abandon(run, 1)
    lease.append(run, 1, 0, "end", code=0)
    assert lease.read_state(run).state == "completed"
    abandon(run, 2)
    assert lease.read_state(run).state == "lost"


def test_records_are_on_the_disk_when_append_returns(run: RunDir) -> None:
    lease.take(run, 1)
    lease.append(run, 1, 3, "warning", message="größe\n  ")
    text = (lease.life_dir(run, 1) / "rank3.jsonl").read_bytes()
    assert text.count(b"\n") == 1 and json.loads(text)["message"] == "größe\n  "
    assert [r["event"] for r in lease.records(run, 1)[3]] == ["warning"]


# --- lives of Slurm jobs


def test_a_life_that_waits_for_its_job_is_pending_and_belongs_to_it(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    life = lease.take(run, 2, kind="slurm", job=None, restart=0)
    assert lease.read_state(run).state == "pending"  # its submitter, this process, is alive
    lease.give_to_job(run, life, "48211", ["48211", "48212"])
    owner = lease.read_owner(run, life)
    rundir.write_json(lease.life_dir(run, life) / "owner.json", {**owner, "pid": 2**22 - 1, "started": "gone"})
    state = lease.read_state(run)
    assert (state.state, state.slurm_job, state.owner) == ("pending", "48211", "job 48211")
    with pytest.raises(OwnedError, match="job 48211"):
        lease.take(run, 2)


def test_a_life_whose_submitter_vanished_before_there_was_a_job_is_lost(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    life = lease.take(run, 1, kind="slurm", job=None, restart=0)
    owner = lease.read_owner(run, life)
    rundir.write_json(lease.life_dir(run, life) / "owner.json", {**owner, "pid": 2**22 - 1, "started": "gone"})
    assert lease.read_state(run).state == "lost"


def test_a_life_is_claimed_once(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    life = lease.take(run, 1, kind="slurm", job="7", restart=0)
    assert [lease.claim(run, life, who) for who in ("7 0", "7 0", "7 1")] == [True, False, False]


def test_a_life_that_the_scheduler_calls_over_is_followed_whatever_its_records_say(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    lease.take(run, 1, kind="slurm", job="7", restart=0)
    lease.append(run, 1, 0, "begin", **lease.me())
    assert lease.read_state(run).state == "running"
    with pytest.raises(OwnedError):
        lease.take(run, 1, kind="slurm", job="8", restart=0)
    assert lease.take(run, 1, over=1, kind="slurm", job="7", restart=1) == 2
    with pytest.raises(OwnedError, match="Nothing was written"):
        lease.fence(run, 1)


def test_a_run_that_was_given_up_says_why(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    lease.take(run, 1, kind="slurm", job="7", restart=0)
    lease.append(run, 1, 0, "end", code=140, message="stopped.")
    lease.give_up(run, 1, "run=x: 3 starts without a new step.")
    state = lease.read_state(run)
    assert (state.state, state.code, state.message) == ("failed", 5, "run=x: 3 starts without a new step.")
