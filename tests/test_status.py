"""`hpcai status`: the table and the JSON, of any folder in any state, light and without a traceback."""

from __future__ import annotations

import json
import os
import pty
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import Launcher
from run_folders import live, make_run, make_sweep, validated

from hpcai import lease, rundir, status
from hpcai.cli import main
from hpcai.lease import RunState
from hpcai.rundir import RunDir


def told(capsys: pytest.CaptureFixture[str], *words: str) -> list[str]:
    """What status prints, by line; it never fails."""
    assert main(["status", *words]) == 0
    out, err = capsys.readouterr()
    assert err == "" and "Traceback" not in out
    return out.splitlines()


def facts(capsys: pytest.CaptureFixture[str], *words: str) -> list[dict[str, Any]]:
    """The same for programs."""
    value: list[dict[str, Any]] = json.loads("\n".join(told(capsys, *words, "--json")))
    return value


# --- the table


def test_each_state_is_a_row_with_what_to_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for state in ("new", "pending", "running", "completed", "stopped", "failed", "lost"):
        make_run(tmp_path / f"{state}-1", state)
    lines = told(capsys, "--runs-dir", str(tmp_path))
    assert lines[0].split() == ["RUN", "JOB", "STATE", "PROGRESS", "BEST", "AGE", "NOTE"]
    rows = {line.split()[2]: line for line in lines[1:]}
    assert list(rows) == sorted(rows) and len(rows) == 7
    assert rows["new"].endswith("not started. hpcai resume new-1 starts it.")
    assert rows["running"].endswith(f"process {os.getpid()} on {lease.me()['host']}")
    assert rows["stopped"].endswith("stopped after step 7, checkpoint kept. hpcai resume stopped-1 goes on.")
    assert rows["failed"].endswith("data: row 7 cannot be read. Mend it.")
    assert rows["lost"].endswith("run.rank=0: ended without a word (killed, or out of memory). hpcai resume lost-1 goes on.")
    assert len({line.index("train") for line in rows.values()}) == 1


@pytest.mark.parametrize(("job", "steps", "scores", "step", "progress", "best"), [
    ("train", "null", [0.7, 0.9123], 4, "epoch 2/10", "auc 0.9123"),
    ("train", "30", [0.7, None], 4, "step 8/30", "loss 0.2500"),
    ("train", "30", [], 4, "step 4/30", ""),
    ("train", "null", [], 4, "step 4", ""),
    ("train", "null", [], None, "", ""),
    ("predict", "30", [], 640, "640 cases", ""),
    ("gather", "null", [], None, "", ""),
])  # fmt: skip
def test_progress_and_score_are_those_on_record(
    tmp_path: Path, job: str, steps: str, scores: list[float | None], step: int | None, progress: str, best: str
) -> None:
    run = make_run(tmp_path / "x-1", "running", job=job, steps=steps)
    validated(run, *scores, best=1)
    if step is not None:
        lease.append(run, 1, 0, "progress", step=step)
    row = status.read_row(run)
    assert row is not None and row.progress == progress
    status.show([row], [])
    assert (f"{row.best.name} {row.best.value:.4f}" if row.best else "") == best


def test_age_is_that_of_the_newest_record(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path / "x-1", "lost")
    for age, said in ((3.0, "3 s"), (600.0, "10 min"), (7300.0, "2 h"), (200_000.0, "2 d"), (-5.0, "0 s")):
        row = status.Row(run, "train", RunState("lost"), told=1e6 - age)
        status.show([row], [], now=1e6)
        assert f"  {said}  " in capsys.readouterr().out
    row = status.read_row(run)
    assert row is not None and row.told == lease.records(run, 1)[0][-1]["time"]
    validated(run, 0.5)
    row = status.read_row(run)
    assert row is not None and row.told == list(rundir.read_lines(run.metrics))[-1]["time"]


def test_no_runs_are_told_as_such(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert told(capsys) == ["no runs in runs. --runs-dir DIR names another folder."]
    assert facts(capsys, "--runs-dir", "x") == []


def test_named_runs_are_shown_alone_and_unknown_names_told_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("ant-1", "bird-2", "cat-3"):
        make_run(tmp_path / "runs" / name)
    assert [line.split()[0] for line in told(capsys, "c", "ant-1", "cat-3")] == ["RUN", "cat-3", "ant-1"]
    assert main(["status", "brid-2", "ant", "../x"]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.splitlines() == [
        "run=brid-2: no such run or sweep in runs. Did you mean bird-2?",
        "run=../x: is no folder of a run or a sweep. Give its name, or the path of its folder.",
    ]


# --- sweeps


def test_a_sweep_counts_its_members_which_are_runs_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    states = ("completed", "running", "pending", "failed", "lost", "stopped", "new")
    members = [make_run(tmp_path / f"{state}-1", state) for state in states] + [RunDir(tmp_path / "not-there-1")]
    make_sweep(tmp_path, members, "running")
    lines = told(capsys, "--runs-dir", str(tmp_path))
    assert len(lines) == 1 + 7 + 1 + 2 and lines[8] == ""
    assert lines[9].split() == ["SWEEP", "STATE", "MEMBERS", "AGE", "NOTE"]
    counts = "1 completed, 2 running, 1 stopped, 2 failed, 2 waiting of 8"
    assert re.match(rf"grid-11111111  running  {counts}  \d+ (s|min)  process", lines[10])
    (fact,) = (f for f in facts(capsys, "--runs-dir", str(tmp_path)) if f["kind"] == "sweep")
    assert fact["members"] == {"completed": 1, "running": 2, "stopped": 1, "failed": 2, "waiting": 2, "total": 8}


def test_a_named_sweep_brings_its_members_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_run(tmp_path / "other-1")
    make_sweep(tmp_path, [make_run(tmp_path / "mine-1")])
    assert [f["name"] for f in facts(capsys, "grid", "--runs-dir", str(tmp_path))] == ["mine-1", "grid-11111111"]


def test_a_member_that_ended_well_says_what_it_is_of_its_sweep(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_sweep(tmp_path, [make_run(tmp_path / "mine-1"), make_run(tmp_path / "mine-2", "failed")])
    rows = told(capsys, "grid", "--runs-dir", str(tmp_path))
    assert rows[1].endswith("  seed=0") and "seed=1" not in rows[2]


def test_of_a_search_the_trials_that_are_not_known_yet_count_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_sweep(tmp_path, [], kind="search", options={"trials": 6})
    assert "  none of 6  " in told(capsys, "grid", "--runs-dir", str(tmp_path))[-1]


def test_what_to_do_is_said_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path / "x-1", "pending")
    lease.give_up(run, 1, "cancelled while it waited. hpcai resume x-1 sends it again.", 143)
    assert told(capsys, "--runs-dir", str(tmp_path))[1].endswith(
        "  cancelled while it waited. hpcai resume x-1 sends it again."
    )


# --- JSON


def test_json_has_every_fact(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path / "x-1", "failed", steps="30")
    validated(run, 0.75)
    (fact,) = facts(capsys, "--runs-dir", str(tmp_path))
    assert fact | {"ended": 0, "told": 0} == {
        "kind": "run", "name": "x-1", "path": str(tmp_path / "x-1"), "job": "train", "state": "failed", "life": 1, "code": 4,
        "message": "data: row 7 cannot be read. Mend it.", "note": "data: row 7 cannot be read. Mend it.",
        "owner": fact["owner"], "slurm_job": None, "chain": [], "sweep": "", "claimed": True,
        "step": 4, "steps": 30, "epoch": 1, "epochs": 10, "ended": 0, "told": 0,
        "best": {"name": "auc", "value": 0.75, "low": 0.5, "high": 1.0, "n": 24, "epoch": 1},
    }  # fmt: skip


# --- damage


@pytest.mark.parametrize("garbage", [b"", b"{", b"[]", b"null", b'{"job": 7}', b'{"job": "a\\nb"}', b"\xff", b"[" * 50_000])
def test_a_damaged_plan_is_one_row(tmp_path: Path, capsys: pytest.CaptureFixture[str], garbage: bytes) -> None:
    run = make_run(tmp_path / "x-1")
    make_run(tmp_path / "y-2")
    run.plan.write_bytes(garbage)
    lines = told(capsys, "--runs-dir", str(tmp_path))
    assert len(lines) == 3 and lines[1].split()[:3] == ["x-1", "?", "unreadable"]
    assert lines[1].endswith("run=x-1: its plan.json is damaged. Restore the file, or hpcai rm x-1.")
    assert facts(capsys, "--runs-dir", str(tmp_path))[0]["state"] == "unreadable"


@pytest.mark.parametrize("garbage", [b"", b"{\n", b"[]\n", b"7\n", b'{"step": "x", "epoch": {}, "time": []}\n', b"\xff\n"])
def test_damaged_metrics_and_config_cost_their_cells_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], garbage: bytes
) -> None:
    run = make_run(tmp_path / "x-1", steps="30")
    run.metrics.write_bytes(garbage)
    run.config.write_bytes(garbage)
    (fact,) = facts(capsys, "--runs-dir", str(tmp_path))
    assert (fact["state"], fact["best"], fact["epoch"], fact["steps"]) == ("completed", None, None, None)


def test_damaged_records_and_lists_of_members_are_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path / "x-1")
    (lease.life_dir(run, 1) / "owner.json").write_text("{")
    sweep = make_sweep(tmp_path, [run])
    (sweep.path / "members.json").write_text("[")
    make_sweep(tmp_path, [], name="deep-2")
    (tmp_path / "sweeps" / "deep-2" / "members.json").write_text("[" * 50_000)
    assert [f["state"] for f in facts(capsys, "--runs-dir", str(tmp_path))] == ["unreadable"] * 3
    assert len(told(capsys, "--runs-dir", str(tmp_path))) == 2 + 1 + 3


def test_a_folder_that_is_removed_meanwhile_is_no_row(tmp_path: Path) -> None:
    run = make_run(tmp_path / "x-1")
    shutil.rmtree(run.path)
    assert status.read_row(run) is None


def test_names_and_messages_never_span_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_run(tmp_path / "a\n\x1b[2Jb-1", "failed", message="one\ntwo\x1b[2J")
    lines = told(capsys, "--runs-dir", str(tmp_path))
    assert len(lines) == 2 and lines[1].startswith("a??[2Jb-1 ") and lines[1].endswith("one?two?[2J")


# --- a terminal


def on_terminal(command: list[str], columns: int) -> list[str]:
    """What a terminal of that width shows."""
    master, slave = pty.openpty()
    env = {key: value for key, value in os.environ.items() if key not in ("COLUMNS", "TERM")} | {"COLUMNS": str(columns)}
    process = subprocess.Popen(command, stdin=slave, stdout=slave, stderr=slave, env=env)
    os.close(slave)
    data = b""
    try:
        while chunk := os.read(master, 65536):
            data += chunk
    except OSError:  # how Linux tells that the other end is closed
        pass
    os.close(master)
    assert process.wait() == 0
    return data.decode().replace("\r\n", "\n").splitlines()


def test_lines_are_cut_to_the_terminal_and_causes_of_loss_follow_whole(tmp_path: Path) -> None:
    make_run(tmp_path / "fine-1", "failed", message="z" * 300)
    for i in range(7):
        make_run(tmp_path / f"lost-{i}", "lost")
    command = [sys.executable, "-m", "hpcai.cli", "status", "--runs-dir", str(tmp_path)]
    lines = on_terminal(command, 60)
    assert all(len(line) <= 60 for line in lines[:9]) and len(lines[1]) == 60
    full = "run.rank=0: ended without a word (killed, or out of memory). hpcai resume lost-{0} goes on."
    assert lines[9:14] == [f"lost-{i}: " + full.format(i) for i in range(5)]
    assert lines[14:] == ["and 2 more. hpcai status --json tells all."]
    assert len(on_terminal(command, 1000)) == 9
    piped = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "COLUMNS": "60"}).stdout.splitlines()
    assert len(piped) == 9 and piped[1].endswith("z" * 300)


# --- light, and real


def test_status_imports_nothing_heavy(tmp_path: Path) -> None:
    run = make_run(tmp_path / "x-1", "running")
    validated(run, 0.5)
    heavy = {"torch", "numpy", "pydantic", "yaml", "rich", "submitit", "psutil", "hydra"}
    code = f"import sys; from hpcai.cli import main; assert main(sys.argv[1:]) == 0; print(sorted({heavy} & set(sys.modules)))"
    command = [sys.executable, "-c", code, "status", "--runs-dir", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_of_a_long_run_little_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole files are never parsed: a line in the middle that is no JSON goes unseen."""
    run = make_run(tmp_path / "x-1", "running")
    validated(run, *[0.5] * 400, best=400)
    data = run.metrics.read_bytes()
    middle = data.index(b"\n", len(data) // 2) + 1
    run.metrics.write_bytes(data[:middle] + b"{no json" + data[middle:])
    row = status.read_row(run)
    assert row is not None and row.epoch == 400 and row.best is not None and row.best.epoch == 400


@pytest.mark.slow
def test_real_runs_completed_and_killed_are_told_from_their_records(launch: Launcher) -> None:
    assert launch("trainer.max_steps=4").rc == 0
    launch.job = {"fail": "kill", "at": 3}
    launch("trainer.max_steps=9")
    done = launch("status", "--runs-dir", str(launch.runs), "--json", module="hpcai.cli", bare=True)
    assert (done.rc, done.err) == (0, "")
    told = {f["state"]: f for f in json.loads(done.out)}
    assert (told["completed"]["step"], told["completed"]["steps"]) == (4, 4)
    assert (told["lost"]["step"], told["lost"]["steps"]) == (2, 9)
    assert told["lost"]["note"].endswith(f"hpcai resume {told['lost']['name']} goes on.")


def test_another_life_is_another_state(tmp_path: Path) -> None:
    run = make_run(tmp_path / "x-1", "lost")
    live(run, "completed", life=2)
    row = status.read_row(run)
    assert row is not None and (row.state.state, row.state.life) == ("completed", 2)
