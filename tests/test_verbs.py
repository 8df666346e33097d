"""`hpcai logs|wait|resume|report`: real runs by the real launcher, and hand-made folders where only the state counts."""

from __future__ import annotations

import json
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import Done, Launcher, Started
from run_folders import live, make_run, make_sweep, validated

from hpcai import lease, rundir, standings, verbs
from hpcai import run as launcher_module
from hpcai.cli import main
from hpcai.rundir import RunDir

LONG = "trainer.max_steps=2000"  # with step_s=0.01: longer than any test waits


def start(launch: Launcher, *words: str) -> Started:
    """`hpcai VERB ...` on the launcher's runs, as a process."""
    return launch.start(*words, "--runs-dir", str(launch.runs), module="hpcai.cli", bare=True)


def call(launch: Launcher, *words: str) -> Done:
    """The same to its end."""
    return start(launch, *words).wait()


def running(launch: Launcher, *words: str) -> Started:
    """A run that has come to its first step and goes on until it is stopped."""
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


def said(capsys: pytest.CaptureFixture[str], code: int, *words: str) -> tuple[list[str], list[str]]:
    """What a verb prints, out and err by line."""
    assert main(list(words)) == code
    out, err = capsys.readouterr()
    assert "Traceback" not in err and "a fault of our own" not in err
    return out.splitlines(), err.splitlines()


# --- any verb


@pytest.mark.parametrize("verb", ["logs", "wait", "cancel", "resume", "report", "rm"])
@pytest.mark.parametrize("name", ["", "../x", "a\nb", "x-*", "/etc", "x\x1b[2J", "~", "-- -x"])
def test_hostile_names_are_one_line_and_exit_2(here: Path, verb: str, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    make_run(here / "x-1")
    out, err = said(capsys, 2, verb, *(name.split(" ") if name.startswith("--") else [name]))
    assert out == [] and len(err) == 1 and err[0].startswith("run=") and (here / "x-1").is_dir()


@pytest.mark.parametrize("verb", ["wait", "cancel", "rm"])
def test_all_unknown_names_are_told_and_nothing_is_done(here: Path, verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    make_run(here / "tiny-1")
    out, err = said(capsys, 2, verb, "tiny-1", "tini-1", "zzz")
    assert out == [] and err[0].endswith("Did you mean tiny-1?") and len(err) == 2 and (here / "tiny-1").is_dir()


# --- logs


def test_logs_prints_a_ranks_log_or_else_what_it_printed(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(here / "x-1")
    assert said(capsys, 3, "logs", "x")[1] == ["run=x-1: rank 0 has said nothing yet. hpcai logs -f waits for its words."]
    rundir.write_bytes(run.submitit / "7_0_log.out", b"printed\n")
    rundir.write_bytes(run.submitit / "7_0_log.err", b"complained")
    assert said(capsys, 0, "logs", "x")[0] == ["printed", "complained"]
    rundir.write_bytes(run.log(0), b"one\n\xff\ntorn")
    assert said(capsys, 0, "logs", "x")[0] == ["one", "\ufffd", "torn"]
    lines = [json.loads(line) for line in said(capsys, 0, "logs", "x", "--json")[0]]
    assert lines[0] == {"rank": 0, "line": "one"} and len(lines) == 3


def test_logs_of_a_rank_or_a_sweep_that_has_none_is_exit_2(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(here / "x-1")
    assert said(capsys, 2, "logs", "x", "--rank", "1")[1] == ["--rank=1: run=x-1 has 1 rank, from 0. Name one below 1."]
    make_sweep(here, [run])
    line = "sweep=grid-11111111: is a sweep. Name one of its members: x-1."
    assert said(capsys, 2, "logs", "grid")[1] == [line]


@pytest.mark.slow
def test_logs_follows_to_the_end_of_the_run_and_misses_no_word(launch: Launcher) -> None:
    started = running(launch)
    following = start(launch, "logs", "-f", "tiny")
    following.until(lambda: following.out_file.stat().st_size, 60)
    started.process.send_signal(signal.SIGTERM)
    assert started.wait().rc == 143
    done = following.wait()
    assert (done.rc, done.err) == (0, "")
    assert done.out.startswith("counting from 0\n") and "stopped after step" in done.out.splitlines()[-1]


@pytest.mark.slow
def test_ctrl_c_ends_following_alone(launch: Launcher) -> None:
    """Also where the shell had SIGINT ignored, as for a job in the background."""
    started = running(launch)
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        following = start(launch, "logs", "-f", "tiny")
    finally:
        signal.signal(signal.SIGINT, before)
    following.until(lambda: following.out_file.stat().st_size, 60)
    following.process.send_signal(signal.SIGINT)
    done = following.wait()
    assert (done.rc, done.err) == (130, "")
    step = launch.step()
    started.until(lambda: launch.step() > step, 60)
    started.process.send_signal(signal.SIGTERM)
    started.wait()


def test_following_begins_before_there_is_a_log_and_shows_a_torn_end(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(here / "x-1", "pending")
    turns: list[Callable[[], object]] = [
        lambda: rundir.write_bytes(run.log(0), b"one\ntw"),
        lambda: run.log(0).open("ab").write(b"o\nthr") and lease.append(run, 1, 0, "end", code=0),
    ]
    monkeypatch.setattr(time, "sleep", lambda s: turns.pop(0)())
    assert said(capsys, 0, "logs", "-f", "x")[0] == ["one", "two", "thr"]


# --- wait


def test_wait_tells_each_and_exits_with_the_lowest_code_that_is_not_0(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for state in ("completed", "failed", "stopped", "lost", "new"):
        make_run(here / f"{state}-1", state)
    assert said(capsys, 0, "wait", "completed") == (["completed-1: completed"], [])
    assert said(capsys, 143, "wait", "stopped", "completed")[0] == [
        "stopped-1: stopped: stopped after step 7, checkpoint kept. The same command goes on.", "completed-1: completed",
    ]  # fmt: skip
    assert (
        said(capsys, 4, "wait", "stopped", "failed", "lost")[0][1] == "failed-1: failed: data: row 7 cannot be read. Mend it."
    )
    assert said(capsys, 3, "wait", "new", "failed")[0][0] == "new-1: not started"
    told = json.loads("\n".join(said(capsys, 5, "wait", "lost", "completed", "--json")[0]))
    assert [(f["name"], f["state"]) for f in told] == [("lost-1", "lost"), ("completed-1", "completed")]


def test_a_damaged_run_is_not_waited_for(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(here / "x-1", "running")
    (lease.life_dir(run, 1) / "owner.json").write_text("{")
    assert said(capsys, 5, "wait", "x")[0] == ["x-1: unreadable: run=x-1: its records in lives/ are damaged."]


def test_a_run_that_is_removed_while_waited_for_ends_the_wait(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(here / "x-1", "running")
    monkeypatch.setattr(time, "sleep", lambda s: shutil.rmtree(run.path))
    assert said(capsys, 3, "wait", "x")[0] == ["x-1: removed"]


def test_a_sweep_has_ended_when_its_last_member_has(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its driver may have been killed."""
    run = make_run(here / "x-1", "running")
    make_sweep(here, [run], "lost")
    ended: list[bool] = []

    def end(seconds: float) -> None:
        ended.append(True)
        lease.append(run, 1, 0, "end", code=0)

    monkeypatch.setattr(time, "sleep", end)
    assert said(capsys, 5, "wait", "grid")[0][0].startswith("grid-11111111: lost: ") and ended == [True]


@pytest.mark.slow
def test_wait_returns_when_a_real_run_ends_with_its_code(launch: Launcher) -> None:
    launch.job = {"step_s": 0.01, "fail": "run", "at": 100}
    started = launch.start(LONG)
    started.until(launch.step, 60)
    waiting = start(launch, "wait", "tiny")
    done = waiting.wait()
    assert done.rc == started.wait().rc == 5 and done.err == ""
    assert done.out == f"{launch.run_dir().path.name}: failed: trainer.step=1: the loss is nan. Lower trainer.lr.\n"


# --- resume


@pytest.fixture
def failed(launch: Launcher) -> RunDir:
    """A run that failed at its third step, and would not any more."""
    launch.job = {"fail": "run", "at": 3}
    assert launch("trainer.max_steps=5").rc == 5
    launch.job = {}
    return launch.run_dir()


@pytest.mark.slow
def test_resume_goes_on_in_the_same_folder_to_the_end_and_then_shows_it(launch: Launcher, failed: RunDir) -> None:
    plan = rundir.read_json(failed.plan)
    done = call(launch, "resume", "tiny")
    assert (done.rc, done.err) == (0, "") and "counting from 2" in done.out
    assert launch.run_dir() == failed and lease.read_state(failed).life == 2
    assert rundir.read_json(failed.plan) == plan
    again = call(launch, "resume", failed.path.name)
    assert again.rc == 0 and again.out.startswith("finished ") and lease.read_state(failed).life == 2
    told = call(launch, "resume", "tiny", "--json")
    assert told.rc == 0 and [f["state"] for f in json.loads(told.out)] == ["completed"] and told.err.startswith("finished")


@pytest.mark.slow
def test_resume_follows_a_folder_that_was_moved(launch: Launcher, failed: RunDir) -> None:
    elsewhere = launch.home / "else where"
    elsewhere.mkdir()
    moved = RunDir(failed.path.rename(elsewhere / failed.path.name))
    done = call(launch, "resume", str(moved.path))
    assert done.rc == 0, done.err
    assert lease.read_state(moved).state == "completed" and not any(launch.runs.iterdir())


@pytest.mark.slow
def test_resume_goes_on_with_a_run_whose_data_were_named_by_a_relative_path(launch: Launcher) -> None:
    """Its identity is taken from the path as it was typed, its config holds the absolute one."""
    shutil.copy(launch.npz, launch.home / "mine.npz")
    launch.job = {"fail": "run", "at": 2}
    assert launch("data.path=mine.npz").rc == 5
    launch.job = {}
    done = call(launch, "resume", "tiny")
    assert done.rc == 0, done.err
    assert launch("data.path=mine.npz").out.startswith("finished ")


@pytest.mark.slow
def test_resume_does_not_wait_where_it_is_told_so(launch: Launcher, failed: RunDir) -> None:
    done = call(launch, "resume", "tiny", "--no-wait")
    assert done.rc == 0 and done.out.splitlines()[-1].startswith("started: ")
    until(lambda: lease.read_state(failed).state == "completed")


@pytest.mark.slow
def test_resume_refuses_what_the_command_itself_would(launch: Launcher, failed: RunDir) -> None:
    facts = rundir.read_json(failed.environment)
    rundir.write_json(failed.environment, facts | {"code_sha256": "0" * 64})
    done = call(launch, "resume", "tiny")
    assert (done.rc, len(done.errors)) == (3, 1) and "hpcai's code has changed" in done.err
    rundir.write_json(failed.environment, facts)
    config = yaml.safe_load(failed.config.read_text("utf-8"))
    for change, said in (({"name": "other"}, "is another run's"), ({"job": "evaluate"}, ""), ({"seed": "x"}, "is damaged")):
        failed.config.write_text(yaml.safe_dump(config | change))
        done = call(launch, "resume", "tiny")
        assert done.rc in (2, 3) and said in done.err and "Traceback" not in done.err, done
    assert lease.read_state(failed).life == 1


@pytest.mark.slow
def test_resume_of_a_running_run_is_exit_7(launch: Launcher) -> None:
    started = running(launch)
    assert call(launch, "resume", "tiny").rc == 7
    started.process.send_signal(signal.SIGTERM)
    assert started.wait().rc == 143


@pytest.mark.parametrize(("kind", "facts", "flags", "words"), [
    ("sweep", {}, [], ["-m", "seed=0,1"]),
    ("pipeline", {"config_dir": "/a b"}, ["--no-wait"], ["-m", "seed=0,1", "--config-dir", "/a b", "--no-wait"]),
    ("search", {"options": {"trials": 30, "prune": True}}, [], ["-m", "seed=0,1", "--search", "trials=30,prune=True"]),
])  # fmt: skip
def test_resume_of_a_sweep_is_its_own_words_again(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    kind: Any, facts: dict[str, Any], flags: list[str], words: list[str],
) -> None:  # fmt: skip
    make_sweep(here, [], "lost", kind=kind, **facts)
    given: list[list[str]] = []
    monkeypatch.setattr(launcher_module, "main", lambda argv: given.append(argv) or 5)
    assert said(capsys, 5, "resume", "grid", *flags) == ([], []) and given == [words]


@pytest.mark.slow
def test_resume_of_a_sweep_goes_on_where_its_words_were_typed(launch: Launcher, tmp_path: Path) -> None:
    launch.job = {"fail": "run", "seed": 1}
    assert launch("-m", "seed=0,1", "runs_dir=runs").rc == 5  # a relative path
    launch.job = {}
    elsewhere = Launcher(launch.npz, tmp_path / "elsewhere", launch.package)
    elsewhere.home.mkdir()
    done = elsewhere.start("resume", str(launch.sweep_dir().path), module="hpcai.cli", bare=True).wait()
    assert done.rc == 0, done.err
    assert set(launch.states().values()) == {"completed"} and not elsewhere.runs.exists()


# --- report


@pytest.mark.slow
def test_report_prints_the_answer_and_its_path(launch: Launcher) -> None:
    assert launch().rc == 0
    run = launch.run_dir()
    done = call(launch, "report", "tiny")
    assert (done.rc, done.err, done.out) == (0, "", f"counted\nreport: runs/{run.path.name}/report.html\n")
    assert json.loads(call(launch, "report", "tiny", "--json").out) == rundir.read_json(run.report_json)


@pytest.mark.parametrize(("state", "line"), [
    ("running", "run=x-1: has no report, it is running (step 4). Type hpcai wait x-1."),
    ("failed", "run=x-1: has no report, it is failed (step 4). Type hpcai resume x-1."),
])  # fmt: skip
def test_without_a_report_it_is_one_line_and_exit_3(
    here: Path, state: str, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(here / "x-1", state)
    lease.append(run, 1, 0, "progress", step=4)
    assert said(capsys, 3, "report", "x") == ([], [line])


def test_a_report_that_is_gone_damaged_or_of_another_version_is_one_line_and_exit_4(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(here / "x-1", "completed")
    line = "run=x-1: its report.json is gone or damaged. Restore it, or run it anew with --anew."
    assert said(capsys, 4, "report", "x") == ([], [line])
    for garbage in (b"{", b"[]", b"{}", b'{"version": 2, "estimates": 3, "threshold": 0}', b"\xff"):
        rundir.write_bytes(run.report_json, garbage)
        assert said(capsys, 4, "report", "x") == ([], [line])
    rundir.write_json(run.report_json, {"version": 1, "answer": "fine", "estimates": [], "threshold": None})
    for words in (["report", "x"], ["report", "x", "--json"]):
        assert said(capsys, 4, *words) == ([], [
            "run=x-1: its report.json is of version 1, this hpcai reads 2. "
            "Read it with the hpcai that wrote it, or run it anew with --anew."
        ])  # fmt: skip


def test_report_of_a_sweep_tells_how_its_members_stand(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [make_run(here / f"x-{i}", state) for i, state in enumerate(("completed", "completed", "failed"))]
    for i, run in enumerate(runs[:2]):
        validated(run, 0.9 + i / 100)
    sweep = make_sweep(here, runs, "failed")
    line = "sweep=grid-11111111: has no report, it is failed. Type hpcai resume grid-11111111."
    assert said(capsys, 3, "report", "grid") == ([], [line])
    told = standings.outcomes(sweep.members)
    standings.write_results(sweep, told)
    file = sweep.path / "results.json"
    answer = [*standings.table(told), f"results: {file.relative_to(here.parent)}"]
    assert (
        said(capsys, 0, "report", "grid") == (answer, standings.fault_lines(told)) and "x-2" in standings.fault_lines(told)[0]
    )
    gathered = replace(told[0], member=replace(told[0].member, job="gather", label="gather"))
    rundir.write_bytes(runs[0].report_json, b"{")
    standings.write_results(sweep, [gathered, *told[1:]])
    assert said(capsys, 0, "report", "grid")[0][-3:-1] == [
        "gather:",
        "run=x-0: its report.json is gone or damaged. Restore it, or run it anew with --anew.",
    ]
    assert json.loads("\n".join(said(capsys, 0, "report", "grid", "--json")[0])) == rundir.read_json(file)
    for garbage in (b"{", b"[]", b'{"members": [{}]}', b'{"members": [7]}'):
        file.write_bytes(garbage)
        assert "is gone or damaged" in said(capsys, 3, "report", "grid")[1][0]
    live(sweep.dir, "running", life=2)
    assert said(capsys, 3, "report", "grid")[1][0].endswith("it is running. Type hpcai wait grid-11111111.")


# --- words


def test_the_exit_code_is_that_of_the_ending(tmp_path: Path) -> None:
    states = {"completed": 0, "new": 3, "failed": 4, "stopped": 143, "lost": 5}
    for state, code in states.items():
        assert verbs.exit_code(lease.read_state(make_run(tmp_path / state, state))) == code
    run = make_run(tmp_path / "odd", "lost")
    live(run, "failed", life=2, code=1, message="")
    assert verbs.ending(run, lease.read_state(run)) == "odd: failed"
