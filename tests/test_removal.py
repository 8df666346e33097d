"""`hpcai rm`: asks first, never a run that runs, gone at once to others, and nothing beyond the folder."""

from __future__ import annotations

import json
import os
import pty
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from conftest import Launcher
from run_folders import make_run, make_sweep

from hpcai import lease, removal, rundir, runs
from hpcai.cli import main
from hpcai.errors import OwnedError
from hpcai.rundir import RunDir


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`runs` below the current folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path / "runs"


def said(capsys: pytest.CaptureFixture[str], code: int, *words: str) -> tuple[list[str], list[str]]:
    """What rm prints, out and err by line."""
    assert main(["rm", *words]) == code
    out, err = capsys.readouterr()
    return out.splitlines(), err.splitlines()


def left(folder: Path) -> list[str]:
    """Every name in a folder, hidden ones too."""
    return sorted(f.name for f in folder.iterdir())


# --- what goes


def test_folders_go_whole_and_others_stay(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, state in (("a-1", "completed"), ("b-2", "lost"), ("c-3", "new"), ("d-4", "failed")):
        make_run(here / name, state)
    assert said(capsys, 0, "a-1", "b", "runs/c-3", "--yes") == (["removed a-1", "removed b-2", "removed c-3"], [])
    assert left(here) == ["d-4"]


def test_json_says_what_is_gone(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(here / "x-1")
    out, _ = said(capsys, 0, "x", "-y", "--json")
    assert json.loads("\n".join(out)) == [{"name": "x-1", "path": str(run.path), "removed": True}]


def test_links_in_a_folder_are_removed_and_not_followed(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(here / "x-1")
    precious = here.parent / "precious"
    rundir.write_json(precious / "file", 1)
    (run.path / "folder").symlink_to(precious)
    (run.path / "file").symlink_to(precious / "file")
    (run.path / "checkpoints").mkdir()
    (run.path / "checkpoints" / "up").symlink_to("../..")
    said(capsys, 0, "x", "--yes")
    assert left(here) == [] and left(precious) == ["file"]


def test_a_link_in_place_of_a_folder_is_refused(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(here.parent / "far" / "x-1")
    here.mkdir()
    (here / "x-1").symlink_to(run.path)
    out, err = said(capsys, 2, "x-1", "--yes")
    assert out == [] and err[0].startswith("run=x-1: is a link.") and run.plan.is_file()


@pytest.mark.parametrize("name", ["notes", "runs", ".", "/", "runs/.."])
def test_what_is_no_run_folder_is_refused(here: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    make_run(here / "x-1")
    (here / "notes").mkdir()
    (here.parent / "notes").mkdir()
    assert len(said(capsys, 2, name, "--yes")[1]) == 1
    assert left(here) == ["notes", "x-1"]


# --- what does not


@pytest.mark.parametrize("state", ["running", "pending"])
def test_a_run_that_runs_is_refused_and_with_it_all_that_were_named(
    here: Path, state: str, capsys: pytest.CaptureFixture[str]
) -> None:
    make_run(here / "x-1", state)
    make_run(here / "y-2")
    line = f"run=x-1: process {os.getpid()} on {lease.me()['host']} runs. Stop it first: hpcai cancel x-1."
    assert said(capsys, 7, "y", "x", "--yes") == ([], [line])
    assert left(here) == ["x-1", "y-2"] and lease.last_life(RunDir(here / "x-1")) == 1


def test_damaged_records_are_removed_unless_a_process_was_there_just_now(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(here / "x-1", "running")
    (lease.life_dir(run, 1) / "owner.json").write_text("{")
    lease.beat(run, 1)
    line = "run=x-1: its records are damaged, but its process was there just now. Stop it first."
    assert said(capsys, 7, "x", "--yes") == ([], [line])
    then = time.time() - 2 * lease.SILENT_S
    os.utime(lease.life_dir(run, 1) / "beat", (then, then))
    assert said(capsys, 0, "x", "--yes") == (["removed x-1"], []) and left(here) == []


def test_a_run_that_is_started_while_the_question_waits_stays(here: Path) -> None:
    run = make_run(here / "x-1")
    lease.take(run, 1)
    with pytest.raises(OwnedError):
        removal.remove(run)
    assert left(here) == ["x-1"]


def test_nobody_can_start_a_run_that_is_being_removed(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(here / "x-1")
    seen: list[str] = []
    rename = Path.rename

    def watched(self: Path, to: Path) -> Path:
        if ".removed-" in str(to):
            with pytest.raises(OwnedError):
                lease.take(run, 1)
            seen.append("owned")
        return rename(self, to)

    monkeypatch.setattr(Path, "rename", watched)
    removal.remove(run)
    assert seen == ["owned"] and left(here) == []
    assert lease.take(run, 1) == 1  # a new folder, as for a run that never was


def test_a_rename_that_fails_leaves_the_run_as_it_was(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(here / "x-1")
    before, rename = lease.read_state(run), Path.rename

    def refused(self: Path, to: Path) -> Path:
        if ".removed-" in str(to):
            raise OSError(30, "Read-only file system")
        return rename(self, to)

    monkeypatch.setattr(Path, "rename", refused)
    line = "run=x-1: cannot be removed (Read-only file system). Mend the folder's rights, then rm it again."
    assert said(capsys, 3, "x", "--yes") == ([], [line])
    assert lease.read_state(run) == before


def test_on_a_full_disk_a_run_can_be_removed(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(here / "x-1")

    def full(*of: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(lease, "write_json", full)
    removal.remove(run)
    assert left(here) == []


# --- asking


def test_without_a_terminal_it_demands_yes(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_run(here / "x-1")
    command = [sys.executable, "-m", "hpcai.cli", "rm", "x"]
    for stdin in (subprocess.DEVNULL, subprocess.PIPE):
        done = subprocess.run(command, stdin=None if stdin == subprocess.PIPE else stdin, capture_output=True, text=True,
                              **({"input": "y\n"} if stdin == subprocess.PIPE else {}))  # fmt: skip
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr == "hpcai rm: deletes without asking only with --yes. Add it.\n"
    assert left(here) == ["x-1"]


@pytest.mark.parametrize(("answer", "gone"), [
    (b"y\n", True), (b"YES\n", True), (b"\n", False), (b"n\n", False), (b"x\n", False), (b"\x04", False)
])  # fmt: skip
def test_at_a_terminal_it_asks_and_only_yes_is_yes(here: Path, answer: bytes, gone: bool) -> None:
    make_run(here / "x-1")
    master, slave = pty.openpty()
    env = {key: value for key, value in os.environ.items() if key != "TERM"}
    process = subprocess.Popen([sys.executable, "-m", "hpcai.cli", "rm", "x"], stdin=slave, stdout=slave, stderr=slave, env=env)
    os.close(slave)
    shown = b""
    while b"[y/N]" not in shown:
        shown += os.read(master, 1000)
    assert b"run=x-1: completed" in shown and (here / "x-1").is_dir()
    os.write(master, answer)
    try:
        while chunk := os.read(master, 1000):
            shown += chunk
    except OSError:  # how Linux tells that the other end is closed
        pass
    os.close(master)
    assert process.wait(60) == 0 and (b"removed x-1" in shown) is gone
    assert left(here) == ([] if gone else ["x-1"])


# --- kills


@pytest.mark.fault
def test_a_removal_that_was_killed_is_out_of_sight_and_rm_again_ends_it(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_run(here / "x-1")
    code = (
        "import os, shutil, signal, sys\nfrom hpcai.cli import main\n"
        "shutil.rmtree = lambda *a, **k: os.kill(os.getpid(), signal.SIGKILL)\nmain(sys.argv[1:])"
    )
    done = subprocess.run([sys.executable, "-c", code, "rm", "x", "--yes"])
    assert done.returncode == -signal.SIGKILL
    (rest,) = left(here)
    assert rest.startswith(".x-1.removed-") and runs.run_folders(here) == []
    assert main(["status"]) == 0 and capsys.readouterr().out.startswith("no runs in runs.")
    assert said(capsys, 0, "x-1", "--yes") == (["removed the rest of x-1"], []) and left(here) == []
    assert said(capsys, 2, "x-1", "--yes")[0] == []


def test_the_rest_of_a_killed_removal_goes_with_the_next_run_of_that_name(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_run(here / "x-1")
    make_run(here / ".x-1.removed-1-1")
    make_run(here / ".x-12.removed-1-1")
    assert said(capsys, 0, "x-1", "--yes")[0] == ["removed x-1"] and left(here) == [".x-12.removed-1-1"]


def test_what_cannot_be_deleted_is_told_and_named(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_run(here / "x-1")
    make_run(here / "y-2")
    rmtree = shutil.rmtree

    def spare(path: Path, **how: Any) -> None:
        if ".x-1" not in str(path):
            rmtree(path, **how)

    monkeypatch.setattr(shutil, "rmtree", spare)
    out, err = said(capsys, 3, "x", "y", "--yes")
    assert out == ["removed y-2"] and err[0].startswith("run=x-1: a part of it cannot be deleted: ")
    assert not (here / "x-1").exists()


# --- sweeps and runs that need others


def test_of_a_sweep_the_folder_alone_goes_or_its_members_too(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    members = [make_run(here / "x-1"), make_run(here / "x-2"), RunDir(here / "gone-3")]
    make_sweep(here, members)
    assert said(capsys, 0, "grid", "--yes") == (["removed grid-11111111"], [])
    assert left(here) == ["sweeps", "x-1", "x-2"] and left(here / "sweeps") == []
    make_sweep(here, members)
    assert said(capsys, 0, "grid", "--yes", "--members")[0] == ["removed x-1", "removed x-2", "removed grid-11111111"]
    assert left(here) == ["sweeps"] and left(here / "sweeps") == []


@pytest.mark.parametrize(("driver", "member"), [("running", "completed"), ("lost", "running")])
def test_a_sweep_that_runs_is_refused(here: Path, driver: str, member: str, capsys: pytest.CaptureFixture[str]) -> None:
    make_sweep(here, [make_run(here / "x-1", member)], driver)
    for words in (["--yes"], ["--yes", "--members"]):
        out, err = said(capsys, 7, "grid", *words)
        assert out == [] and err[-1].startswith("sweep=grid-11111111: ")
    assert left(here) == ["sweeps", "x-1"]


def test_unfinished_runs_that_need_it_are_told(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trained = make_run(here / "tiny-1")
    for name, state, source in (
        ("a-1", "failed", [{"run_id": "tiny-1"}]),
        ("b-2", "completed", [{"run_id": "tiny-1"}]),
        ("c-3", "lost", {"run_id": "tiny-1"}),
        ("d-4", "lost", [{"run_id": "other"}]),
        ("e-5", "lost", "damaged"),
    ):
        run = make_run(here / name, state)
        rundir.write_json(run.plan, rundir.read_json(run.plan) | {"from_run": source})
    sweep = make_sweep(here, [trained, RunDir(here / "waits-6")], "failed")
    value = rundir.read_json(sweep.path / "members.json")
    value["members"][1]["needs"] = [str(trained.path)]
    rundir.write_json(sweep.path / "members.json", value)
    out, err = said(capsys, 0, "tiny", "--yes")
    assert out == ["removed tiny-1"]
    assert sorted(err) == [f"note: {name} is not finished and needs tiny-1." for name in ("a-1", "c-3", "waits-6")]


@pytest.mark.slow
def test_a_real_run_is_removed_and_its_command_starts_it_anew(launch: Launcher) -> None:
    assert launch().rc == 0
    words = ["rm", "tiny", "--yes", "--runs-dir", str(launch.runs)]
    assert launch(*words, module="hpcai.cli", bare=True).rc == 0
    assert left(launch.runs) == []
    assert "counting from 0" in launch().out
