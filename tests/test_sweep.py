"""One command, many runs, real processes: all that was asked for is done once, whoever is killed; the exit code is true."""

from __future__ import annotations

import os
import shutil
import signal
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from conftest import Launcher, processes, until

from hpcai import lease, submit, sweep
from hpcai.rundir import RunDir, read_json, read_lines, write_json

LONG = "trainer.max_steps=100000"


def count(run: RunDir) -> int:
    """Steps that the light job has made, over all lives."""
    path = run.path / "count.rank0.json"
    return int(read_json(path)) if path.exists() else 0


def lives(launch: Launcher) -> dict[str, int]:
    return {label: lease.last_life(run) for label, run in launch.members().items()}


def running(launch: Launcher, n: int) -> Callable[[], bool]:
    """True once `n` members have made a step."""
    return lambda: sum(count(run) > 0 for run in launch.members().values()) >= n


# --- members


def test_each_member_is_a_run_of_its_own_and_all_are_done(launch: Launcher) -> None:
    done = launch("-m", "seed=0,1,2", "trainer.lr=0.1,0.2")
    assert (done.rc, done.err) == (0, "")
    assert launch.states() == {f"seed={s} trainer.lr={r}": "completed" for s in (0, 1, 2) for r in (0.1, 0.2)}
    for run in launch.members().values():
        assert run.path.parent == launch.runs and run.report_html.is_file()
        assert read_json(run.plan)["run_id"] == run.path.name
    assert "results: " in done.out and done.out.splitlines()[0].startswith("plan  tiny-")


def test_a_member_alone_is_the_same_run(launch: Launcher) -> None:
    assert launch("-m", "seed=0,1").rc == 0
    assert launch("seed=1").out.startswith("finished ")


def test_the_same_command_again_starts_nothing(launch: Launcher) -> None:
    first = launch("-m", "seed=0,1")
    again = launch("-m", "seed=0,1")
    assert again.rc == 0 and "2 finished" in again.out
    assert set(lives(launch).values()) == {1}
    assert again.out.splitlines()[-3:] == first.out.splitlines()[-3:]


def test_more_members_start_only_what_is_new(launch: Launcher) -> None:
    launch("-m", "seed=0,1")
    assert launch("-m", "seed=0,1,2").rc == 0
    assert len(list((launch.runs / "sweeps").iterdir())) == 2 and len(list(launch.runs.glob("tiny-*"))) == 3


def test_members_are_ranked_by_validation_over_their_seeds(launch: Launcher) -> None:
    launch.job = {"curve": True}
    done = launch("-m", "trainer.lr=0.01,0.05,0.001", "seed=0,1")
    ranked = read_json(launch.sweep_dir().path / "results.json")["ranking"]
    assert [(g["label"], g["seeds"], g["of"]) for g in ranked] == [
        ("trainer.lr=0.01", 2, 2), ("trainer.lr=0.001", 2, 2), ("trainer.lr=0.05", 2, 2),
    ]  # fmt: skip
    assert ranked[0]["mean"] == pytest.approx(0.961667, abs=1e-6) and ranked[0]["sd"] == pytest.approx(0.0070711, abs=1e-6)
    assert "ranked by validation AUC; the test split chose nothing" in done.out
    assert "  1. trainer.lr=0.01 " in done.out


def test_all_of_a_machine_is_never_exceeded_and_is_used(launch: Launcher) -> None:
    launch.job = {"step_s": 0.1}
    launch("-m", "seed=range(0,6)", "trainer.max_steps=3")
    spans = []
    for run in launch.members().values():
        told = lease.records(run, 1)[0]
        spans.append((told[0]["time"], told[-1]["time"]))
    at_once = max(sum(begin <= t < end for begin, end in spans) for t, _ in spans)
    assert at_once <= len(os.sched_getaffinity(0))


# --- what goes wrong


def test_a_failing_member_is_named_gives_the_exit_code_and_hides_nothing(launch: Launcher, tmp_path: Path) -> None:
    launch.job = {"fail": "data", "seed": 1}
    done = launch("-m", "seed=0,1,2", f"--junit={tmp_path}/out/report.xml")
    assert done.rc == 4
    (line,) = done.errors
    assert "seed=1" in line and "row 7 cannot be read" in line and "code 4" in line
    assert launch.states() == {"seed=0": "completed", "seed=1": "failed", "seed=2": "completed"}
    suite = ET.parse(tmp_path / "out/report.xml").getroot()
    assert (suite.get("tests"), suite.get("failures")) == ("3", "1")
    launch.job = {}
    assert launch("-m", "seed=0,1,2").rc == 0  # the cause is gone: what failed is started again, and nothing else
    assert lives(launch) == {"seed=0": 1, "seed=1": 2, "seed=2": 1}


def test_every_fault_of_every_member_is_told_before_anything_starts(launch: Launcher) -> None:
    done = launch("-m", "trainer.lr=-1,0.1", "resources.mem_gb=1,1e9", "trainer.epoch=3")
    assert (done.rc, done.out) == (2, "")
    assert sorted(line.split(":")[0].split("=")[0] for line in done.errors) == [
        "resources.mem_gb",
        "trainer.epoch",
        "trainer.lr",
    ]
    assert not launch.runs.exists()


def test_two_members_that_are_one_run_are_refused(launch: Launcher) -> None:
    done = launch("-m", "trainer.log_every=1,2")
    assert done.rc == 2 and not launch.runs.exists()
    assert "trainer.log_every=2" in done.err and "is the same run as trainer.log_every=1" in done.err


@pytest.mark.parametrize("words", [["--junit=x.xml"], ["--search=trials=3"]])
def test_options_for_many_runs_need_the_word_for_many_runs(launch: Launcher, words: list[str]) -> None:
    done = launch(*words)
    assert done.rc == 2 and "-m" in done.err and not launch.runs.exists()


def test_a_dry_run_lists_the_members_and_writes_nothing(launch: Launcher) -> None:
    done = launch("-m", "seed=0,1", "--dry-run")
    assert done.rc == 0 and not launch.runs.exists()
    assert [line.split()[-1] for line in done.out.splitlines()[1:]] == ["seed=0", "seed=1"]


def test_a_report_for_ci_that_cannot_be_written_is_said_before_anything_starts(launch: Launcher) -> None:
    done = launch("-m", "seed=0,1", "--junit=/proc/no/such.xml")
    assert done.rc == 3 and "--junit" in done.errors[-1]
    assert not list(launch.runs.glob("tiny-*"))


def test_a_sweep_folder_of_other_members_is_refused(launch: Launcher) -> None:
    launch("-m", "seed=0,1")
    path = launch.sweep_dir().path / "members.json"
    told = read_json(path)
    told["members"][0]["run_id"] = "tiny-00000000"
    write_json(path, told)
    done = launch("-m", "seed=0,1")
    assert done.rc == 3 and "other members" in done.err


def test_damaged_lists_are_written_anew(launch: Launcher) -> None:
    launch("-m", "seed=0,1")
    for name in ("members.json", "results.json"):
        (launch.sweep_dir().path / name).write_text("{torn")
    (launch.sweep_dir().path / "results.json").unlink()
    assert launch("-m", "seed=0,1").rc == 0
    assert len(read_json(launch.sweep_dir().path / "results.json")["members"]) == 2
    assert set(lives(launch).values()) == {1}


def test_a_member_whose_folder_was_removed_is_run_again(launch: Launcher) -> None:
    launch("-m", "seed=0,1")
    shutil.rmtree(launch.members()["seed=1"].path)
    assert launch("-m", "seed=0,1").rc == 0
    assert set(launch.states().values()) == {"completed"}


def test_a_copied_run_folder_is_not_taken_for_a_member(launch: Launcher) -> None:
    launch("-m", "seed=0,1")
    members = launch.members()
    shutil.rmtree(members["seed=1"].path)
    shutil.copytree(members["seed=0"].path, members["seed=1"].path)
    done = launch("-m", "seed=0,1")
    assert done.rc == 3 and "holds another run" in done.err


@pytest.mark.fault
def test_a_full_disk_is_one_line_and_the_same_command_goes_on(launch: Launcher, small_disk: Callable[[str], Path]) -> None:
    disk = small_disk("size=6m")
    words = ["-m", "seed=0,1", f"runs_dir='{disk}/runs'"]
    filler = disk / "filler"
    filler.write_bytes(b"x" * (6 * 2**20 - 300_000))  # the code alone needs more
    done = launch(*words)
    assert done.rc == 5 and "No space left" in done.err and "Traceback" not in done.err
    filler.unlink()
    done = launch(*words)
    assert done.rc == 0, done.err


# --- stops


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.fault
def test_a_stop_leaves_every_member_with_a_checkpoint(launch: Launcher, signum: signal.Signals) -> None:
    driver = launch.start("-m", "seed=0,1,2", LONG)
    driver.until(running(launch, 1), 60)
    if signum == signal.SIGINT:
        os.killpg(driver.process.pid, signum)  # as a terminal does: everybody in the foreground gets it
    else:
        driver.process.send_signal(signum)
    done = driver.wait()
    assert done.rc == 128 + signum and "The same command goes on." in done.err
    assert set(launch.states().values()) <= {"stopped", "new"} and "stopped" in launch.states().values()
    assert lease.read_state(launch.sweep_dir()).state == "stopped"
    before = {label: count(run) for label, run in launch.members().items()}
    again = launch.start("-m", "seed=0,1,2", LONG)  # goes on where each was
    again.until(lambda: any(count(r) > before[label] > 0 for label, r in launch.members().items()), 60)
    again.process.send_signal(signal.SIGTERM)
    assert again.wait().rc == 143


@pytest.mark.fault
def test_a_second_shell_sees_a_member_and_can_stop_it_alone(launch: Launcher) -> None:
    launch.job = {"step_s": 0.05}
    driver = launch.start("-m", "seed=0,1", "trainer.max_steps=60")
    driver.until(running(launch, 1), 60)
    label = next(label for label, run in launch.members().items() if count(run))
    run = launch.members()[label]
    driver.until(lambda: submit.ask_to_stop(run, 1, 1))
    done = driver.wait()
    assert done.rc == 143 and label in done.err
    assert launch.states()[label] == "stopped" and sorted(launch.states().values()) == ["completed", "stopped"]


@pytest.mark.fault
def test_a_killed_driver_leaves_its_members_and_the_next_one_waits_for_them(launch: Launcher) -> None:
    launch.job = {"step_s": 0.05}
    words = ["-m", "seed=0,1", "trainer.max_steps=80"]
    driver = launch.start(*words)
    driver.until(running(launch, 1), 60)
    driver.process.kill()
    driver.process.wait()
    assert lease.read_state(launch.sweep_dir()).state == "lost"
    assert "running" in launch.states().values()
    assert launch(*words).rc == 0
    assert set(launch.states().values()) == {"completed"}
    assert all(count(run) == 80 for run in launch.members().values())
    assert max(lives(launch).values()) == 1  # nobody was started twice


@pytest.mark.fault
def test_a_killed_fork_server_costs_nothing(launch: Launcher) -> None:
    launch.job = {"step_s": 0.05}
    driver = launch.start("-m", "seed=range(0,5)", "trainer.max_steps=40")
    driver.until(running(launch, 1), 60)
    servers = [p for p in psutil.Process(driver.process.pid).children() if "hpcai.forkserver" in " ".join(p.cmdline())]
    assert len(servers) == 1
    servers[0].kill()
    assert driver.wait().rc == 0
    assert set(launch.states().values()) == {"completed"}


@pytest.mark.fault
def test_a_killed_member_goes_on_from_its_checkpoint_within_the_sweep(launch: Launcher) -> None:
    launch.job = {"step_s": 0.05}
    driver = launch.start("-m", "seed=0,1", "trainer.max_steps=60")
    driver.until(running(launch, 1), 60)
    label, run = next((label, run) for label, run in launch.members().items() if count(run))
    for rank in launch.ranks(run):
        rank.kill()
    done = driver.wait()
    assert done.rc == 0, done.err
    assert lives(launch)[label] == 2 and count(run) == 60


def test_a_member_that_dies_at_its_first_step_is_lost_with_a_cause(launch: Launcher) -> None:
    launch.job = {"fail": "kill", "seed": 1}
    done = launch("-m", "seed=0,1")
    assert done.rc == 5 and "seed=1" in done.err and "ended without a word" in done.err
    assert lives(launch) == {"seed=0": 1, "seed=1": 1}  # no step, so no second try: it would die for ever


@pytest.mark.fault
def test_of_two_drivers_one_has_the_sweep(launch: Launcher) -> None:
    launch.job = {"step_s": 0.05}
    both = [launch.start("-m", "seed=0,1,2", "trainer.max_steps=30") for _ in range(2)]
    codes = sorted(driver.wait().rc for driver in both)
    assert codes in ([0, 7], [0, 0])  # the later one comes while the first drives, or after its end
    assert set(lives(launch).values()) == {1} and all(count(run) == 30 for run in launch.members().values())


# --- a driver of its own


@pytest.mark.fault
def test_without_waiting_a_process_of_its_own_drives(launch: Launcher) -> None:
    launch.job = {"step_s": 0.02}
    done = launch("-m", "seed=0,1,2", "--no-wait")
    assert done.rc == 0 and "started: " in done.out
    until(lambda: lease.read_state(launch.sweep_dir()).state == "completed")
    assert set(launch.states().values()) == {"completed"}
    assert "results: " in (launch.sweep_dir().path / "driver.log").read_text("utf-8")


@pytest.mark.fault
def test_that_process_stops_all_when_it_is_asked_to(launch: Launcher) -> None:
    launch("-m", "seed=0,1", LONG, "--no-wait")
    until(running(launch, 1))
    owner = read_json(lease.life_dir(launch.sweep_dir(), 1) / "owner.json")
    assert owner["pid"] not in [p.pid for s in launch.sessions for p in processes(s)]  # a session of its own
    until(lambda: submit.ask_to_stop(launch.sweep_dir(), 1, 1))
    until(lambda: lease.read_state(launch.sweep_dir()).state == "stopped")
    assert "stopped" in launch.states().values() and set(launch.states().values()) <= {"stopped", "new"}


# --- chains


def test_a_pipeline_runs_in_its_order_each_reading_what_train_left(launch: Launcher) -> None:
    done = launch("pipeline=[train,evaluate,predict]")
    assert done.rc == 0, done.err
    members = launch.members()
    assert list(members) == ["train", "evaluate", "predict"]
    for job in ("evaluate", "predict"):
        plan = read_json(members[job].plan)
        assert plan["from_run"] == [{"run_id": members["train"].path.name, "sha256": "0" * 64}]
    ends = [lease.records(run, 1)[0][-1]["time"] for run in members.values()]
    assert ends == sorted(ends)


def test_a_pipelines_members_are_the_runs_that_the_commands_alone_name(launch: Launcher) -> None:
    assert launch("pipeline=[train,evaluate]").rc == 0
    members = launch.members()
    assert launch().out.startswith("finished ")
    assert launch("job=evaluate", f"from_run={members['train'].path.name}").out.startswith("finished ")


def test_a_pipeline_on_data_named_by_a_relative_path(launch: Launcher) -> None:
    shutil.copyfile(launch.npz, launch.home / "mine.npz")
    done = launch("pipeline=[train,evaluate]", "data.path=mine.npz")
    assert done.rc == 0, done.err
    assert launch("job=evaluate", f"from_run={launch.members()['train'].path.name}", "data.path=mine.npz").out.startswith(
        "finished "
    )


@pytest.mark.slow
def test_a_real_pipeline_trains_judges_and_predicts(train: Launcher) -> None:
    done = train("pipeline=[train,evaluate,predict]", "trainer.epochs=1", "model.norm=group", timeout=200)
    assert done.rc == 0, done.err
    members = train.members()
    first = read_json(members["train"].model)["sha256"]
    assert [read_json(members[job].plan)["from_run"][0]["sha256"] for job in ("evaluate", "predict")] == [first, first]
    assert len(list(read_lines(members["predict"].rows_file("predict", 0)))) == 96
    assert "evaluate:" in done.out and "predict:" in done.out


def test_what_can_no_longer_run_is_cancelled_and_what_can_runs(launch: Launcher) -> None:
    launch.job = {"fail": "data", "seed": 1}
    done = launch("-m", "seed=0,1", "pipeline=[train,evaluate]")
    assert done.rc == 4
    assert launch.states() == {
        "train seed=0": "completed", "evaluate seed=0": "completed", "train seed=1": "failed", "evaluate seed=1": "new",
    }  # fmt: skip
    (cancelled,) = [line for line in done.errors if "evaluate seed=1" in line]
    assert cancelled.startswith("cancelled") and "which failed" in cancelled


def test_a_pipeline_goes_on_in_the_middle(launch: Launcher) -> None:
    launch("pipeline=[train,evaluate,predict]")
    shutil.rmtree(launch.members()["evaluate"].path)
    assert launch("pipeline=[train,evaluate,predict]").rc == 0
    assert lives(launch) == {"train": 1, "evaluate": 1, "predict": 1}
    assert set(launch.states().values()) == {"completed"}


def test_depends_on_waits_for_a_run_of_another_command(launch: Launcher) -> None:
    launch.job = {"step_s": 0.05}
    first = launch.start("trainer.max_steps=40")
    first.until(launch.prepared, 60)
    second = launch.start("seed=7", f"depends_on={launch.run_dir().path.name}")
    done = second.wait()
    assert done.rc == 0, done.err
    assert first.wait().rc == 0
    (run,) = launch.members().values()
    before = lease.records(RunDir(next(p for p in launch.runs.glob("tiny-*") if p != run.path)), 1)[0][-1]["time"]
    assert before <= lease.records(run, 1)[0][0]["time"]


def test_depends_on_a_run_that_failed_cancels(launch: Launcher) -> None:
    launch.job = {"fail": "run"}
    launch()
    launch.job = {}
    done = launch("seed=7", f"depends_on={launch.run_dir().path.name}")
    assert done.rc == 3 and "which failed" in done.err
    assert set(launch.states().values()) == {"new"}


def test_depends_on_an_unknown_run_names_the_nearest(launch: Launcher) -> None:
    launch()
    name = launch.run_dir().path.name
    done = launch("seed=7", f"depends_on={name[:-1]}x")
    assert done.rc == 2 and name in done.err


@pytest.mark.parametrize("pipeline", ["[evaluate,train]", "[train,train]", "[predict]"])
def test_a_pipeline_that_makes_no_sense_is_refused(launch: Launcher, pipeline: str) -> None:
    done = launch(f"pipeline={pipeline}")
    assert done.rc == 2 and done.errors[0].startswith("pipeline=") and not launch.runs.exists()


def test_whole_sets_of_folds_are_gathered_one_a_seed(launch: Launcher) -> None:
    words = ["data.split.by=kfold", "data.split.folds=3", "data.split.fold=0,1,2", "seed=0,1"]
    done = launch("-m", *words)
    assert done.rc == 0, done.err
    gathers = {label: run for label, run in launch.members().items() if label.startswith("gather")}
    assert set(gathers) == {"gather seed=0", "gather seed=1"}
    folds = {label: run.path.name for label, run in launch.members().items() if not label.startswith("gather")}
    for label, run in gathers.items():
        seed = label.split()[-1]
        assert sorted(f["run_id"] for f in read_json(run.plan)["from_run"]) == sorted(
            name for fold, name in folds.items() if seed in fold.split()
        )
        assert lease.records(run, 1)[0][0]["time"] >= max(
            lease.records(launch.members()[fold], 1)[0][-1]["time"] for fold in folds if seed in fold.split()
        )


def test_folds_that_are_not_whole_are_only_run(launch: Launcher) -> None:
    assert launch("-m", "data.split.by=kfold", "data.split.folds=3", "data.split.fold=0,2").rc == 0
    assert sorted(launch.members()) == ["data.split.fold=0", "data.split.fold=2"]


# --- the bits


@pytest.mark.slow
def test_a_forked_member_has_the_bits_of_a_run_alone(train: Launcher, tmp_path: Path) -> None:
    done = train("-m", "seed=0,1", timeout=200)
    assert done.rc == 0, done.err
    alone = train("seed=1", f"runs_dir='{tmp_path}/alone'", timeout=200)
    assert alone.rc == 0, alone.err
    (one,) = [RunDir(p) for p in (tmp_path / "alone").glob("tiny-*")]
    many = train.members()["seed=1"]
    begin: dict[str, Any] = lease.records(many, 1)[0][0]
    assert begin["launcher"] == "submitit" and list(many.submitit.glob("*_0_log.out"))
    assert read_json(many.model)["sha256"] == read_json(one.model)["sha256"]
    assert [f.read_bytes() for f in many.row_files("test")] == [f.read_bytes() for f in one.row_files("test")]


# --- found by reading


def test_a_thousand_finished_members_are_passed_over_in_one_look(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def entry(n: int) -> Any:
        folder = str(tmp_path / str(n))
        return SimpleNamespace(plan=SimpleNamespace(run_dir=folder, run_id=str(n)), member=SimpleNamespace(needs=()))

    monkeypatch.setattr(sweep, "_completed", lambda entry: lease.RunState("completed"))
    members = sweep.Members(SimpleNamespace(), [entry(n) for n in range(3000)])
    assert members.next() is None and len(members.ends) == 3000


def test_anew_gives_a_pipeline_new_folders_from_its_first_job_on(launch: Launcher) -> None:
    assert launch("pipeline=[train,evaluate]").rc == 0
    first = launch.members()["train"].path.name
    done = launch("pipeline=[train,evaluate]", "--anew")
    assert done.rc == 0, done.err
    assert (launch.runs / f"{first}.2/report.json").is_file()
    read = [read_json(f)["from_run"] for f in launch.runs.glob("*/plan.json") if read_json(f)["job"] == "evaluate"]
    assert sorted(r[0]["run_id"] for r in read) == [first, f"{first}.2"]


def test_damaged_facts_of_a_member_are_its_fault_in_one_line(launch: Launcher) -> None:
    launch.job = {"fail": "data", "seed": 1}
    launch("-m", "seed=0,1")
    run = launch.members()["seed=1"]
    run.environment.write_text("{torn")
    done = launch("-m", "seed=0,1")
    assert done.rc == 3 and done.errors == [
        f"run={run.path.name}: its environment.json, data.json or plan.json is damaged. --anew starts another folder."
    ]


def test_what_a_chain_answers_is_shown_at_its_end(launch: Launcher) -> None:
    done = launch("pipeline=[train,evaluate]")
    report = launch.members()["evaluate"].report_html.relative_to(launch.home)
    assert "counted" in done.out.splitlines() and f"report: {report}" in done.out.splitlines()
