"""The launcher as a user meets it: what a shell sees (exit code, stdout, stderr), what lies on disk, who lives on.

Most runs here only count (light_job.py): the launcher, the lease, submitit and the ranks' worker are real, the learning is not.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import yaml
from conftest import Done, Launcher, processes, until

from hpcai import lease, rundir, submit
from hpcai.config.schema import Config
from hpcai.rundir import RunDir

ENDLESS = "trainer.max_steps=100000"
LONG = "trainer.max_steps=2000"  # with step_s=0.01: longer than any test waits
STOPS = [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGUSR2, 140)]


def refused(done: Done, code: int, *starts: str) -> None:
    """Exit `code`, a line `key=value: ... .` a fault, nothing else on stderr, no traceback."""
    assert done.rc == code, done
    assert "Traceback" not in done.out + done.err
    assert len(done.errors) == len(starts), done.err
    for line, start in zip(done.errors, starts, strict=True):
        assert line.startswith(start), line
        assert line[-1] in ".?]", line


def tree(folder: Path) -> dict[str, tuple[int, int]]:
    """Every path below `folder`, with size and time of change."""
    return {str(f.relative_to(folder)): (f.lstat().st_size, f.lstat().st_mtime_ns) for f in folder.rglob("*")}


# --- the same command again


def test_a_run_ends_with_its_answer_and_the_same_command_shows_it_at_once(launch: Launcher) -> None:
    done = launch()
    assert (done.rc, done.err) == (0, "")
    assert done.out.splitlines()[0].startswith("plan  tiny-") and "counted" in done.out.splitlines()
    assert "report: runs/tiny-" in done.out.splitlines()[-1]
    before = time.monotonic()
    again = launch()
    assert time.monotonic() - before < 2 * (1 + psutil.getloadavg()[0] / (os.cpu_count() or 1))
    assert (again.rc, again.err) == (0, "")
    assert re.fullmatch(r"finished \d+ s ago: runs/tiny-\w{8}/report.html\n", again.out)


@pytest.mark.slow
def test_a_running_run_is_left_alone_and_its_owner_named(launch: Launcher) -> None:
    launch.job = {"step_s": 0.01}
    first = launch.start(LONG)
    first.until(launch.step)
    run = launch.run_dir()
    owner = rundir.read_json(lease.life_dir(run, 1) / "owner.json")
    second = launch(LONG)
    refused(second, 7, f"run={run.path.name}: process {owner['pid']} on {owner['host']} runs it.")
    assert lease.last_life(run) == 1
    first.process.send_signal(signal.SIGTERM)
    assert first.wait().rc == 143


@pytest.mark.slow
def test_two_launches_at_once_give_one_run(launch: Launcher) -> None:
    launch.job = {"step_s": 0.02}
    both = [launch.start("trainer.max_steps=100") for _ in range(2)]
    ends = [started.wait() for started in both]
    assert sorted(end.rc for end in ends) == [0, 7]
    refused(max(ends, key=lambda end: end.rc), 7, "run=tiny-")
    assert lease.last_life(launch.run_dir()) == 1


@pytest.mark.slow
def test_anew_starts_another_folder_each_time(launch: Launcher) -> None:
    assert launch().rc == 0
    assert launch("--anew").rc == 0
    assert launch("--anew").rc == 0
    first = min(launch.runs.iterdir()).name
    assert sorted(f.name for f in launch.runs.iterdir()) == [first, f"{first}.2", f"{first}.3"]
    shown = launch()
    assert shown.rc == 0 and f"{first}.3/report.html" in shown.out


@pytest.fixture
def stopped(launch: Launcher, tmp_path: Path) -> RunDir:
    """A run of data of its own that was stopped after some steps."""
    launch.npz = Path(shutil.copy(launch.npz, tmp_path))
    launch.job = {"step_s": 0.01}
    started = launch.start(LONG)
    started.until(lambda: launch.step() >= 2)
    started.process.send_signal(signal.SIGTERM)
    assert started.wait().rc == 143
    return launch.run_dir()


@pytest.mark.slow
@pytest.mark.parametrize(("change", "code", "said"), [
    ("code", 3, "hpcai's code has changed since it was submitted. --anew"),
    ("versions", 3, "versions have changed: torch 1.0 -> "),
    ("data", 4, "the data has changed since it was submitted. --anew"),
    ("ranks", 3, "it began on 1 ranks, not 2. Ask for 1, or --anew"),
])  # fmt: skip
def test_an_unfinished_run_does_not_go_on_otherwise_than_it_began(
    launch: Launcher, stopped: RunDir, change: str, code: int, said: str
) -> None:
    facts, words = rundir.read_json(stopped.environment), [LONG]
    match change:
        case "code":
            rundir.write_json(stopped.environment, facts | {"code_sha256": "0" * 64})
        case "versions":
            rundir.write_json(stopped.environment, facts | {"versions": facts["versions"] | {"torch": "1.0"}})
        case "data":
            with launch.npz.open("ab") as f:
                f.write(b"\0")
        case "ranks":
            words += ["resources.tasks_per_node=2"]
    before = tree(stopped.path)
    done = launch(*words)
    refused(done, code, f"run={stopped.path.name}: {said}")
    assert tree(stopped.path) == before
    assert lease.read_state(stopped).state == "stopped"


@pytest.mark.slow
def test_another_rank_count_while_it_runs_is_still_somebody_elses_run(launch: Launcher) -> None:
    launch.job = {"step_s": 0.01}
    started = launch.start(LONG)
    started.until(launch.step)
    assert launch(LONG, "resources.tasks_per_node=2").rc == 7
    started.process.send_signal(signal.SIGTERM)
    started.wait()


@pytest.mark.slow
def test_a_finished_run_is_shown_also_where_the_code_has_changed_and_says_so(launch: Launcher) -> None:
    assert launch().rc == 0
    run = launch.run_dir()
    rundir.write_json(run.environment, rundir.read_json(run.environment) | {"code_sha256": "0" * 64})
    done = launch()
    assert done.rc == 0 and done.out.startswith("finished")
    why = "hpcai's code has changed since it was submitted. --anew starts another folder."
    assert done.errors == [f"note: run={run.path.name}: {why}"]


# --- exit codes


def test_wrong_keys_are_told_all_at_once_with_exit_2(launch: Launcher) -> None:
    refused(launch("trainer.lrr=1", "model.width=no", "seed=-1"), 2, "seed=-1: ", "model.width=no: ", "trainer.lrr: ")
    assert not launch.runs.exists()


def test_what_this_machine_lacks_is_exit_3(launch: Launcher) -> None:
    done = launch("resources.gpus_per_node=64", "resources.mem_gb=1e6", "resources.nodes=2", "model.norm=batch")
    refused(done, 3, "resources.nodes=2: ", "resources.gpus_per_node=64: ", "resources.mem_gb=1e+06: ")
    assert not launch.runs.exists()


@pytest.mark.parametrize(("word", "start"), [
    ("data.path=/nowhere/x.npz", "data.path=/nowhere/x.npz: does not exist."),
    ("data.path=shipped:x/y.npz", "data.path=shipped:x/y.npz: is not shipped."),
    ("data.path='~nobody-here/x.npz'", "data.path="),
    (f"data.path='/{'a' * 300}'", "data.path=/aaa"),
    (f"data.sha256={'0' * 64}", "data.sha256=000000000000...: the file has "),
])  # fmt: skip
def test_missing_or_other_data_is_exit_4(launch: Launcher, word: str, start: str) -> None:
    refused(launch(word), 4, start)
    assert not launch.runs.exists()


def test_a_pipe_as_data_is_refused_and_not_waited_for(launch: Launcher) -> None:
    os.mkfifo(launch.home / "pipe.npz")
    refused(launch(f"data.path='{launch.home}/pipe.npz'", timeout=20), 4, "data.path=")


def test_of_several_kinds_of_faults_all_are_told_and_the_lowest_code_wins(launch: Launcher) -> None:
    done = launch("data.path=/nowhere", "resources.gpus_per_node=64", "model.init_from=/nowhere.pt")
    refused(done, 2, "resources.gpus_per_node=64", "data.path=/nowhere", "model.init_from=/nowhere.pt")
    done = launch("data.path=/nowhere", "resources.gpus_per_node=64")
    refused(done, 3, "resources.gpus_per_node=64", "data.path=/nowhere")


@pytest.mark.slow
@pytest.mark.parametrize(("how", "code", "said"), [
    ("data", 4, "data: row 7 cannot be read. Mend it."),
    ("run", 5, "trainer.step=1: the loss is nan."),
    ("disk", 5, "run.rank=0: OSError: No space left on device. Free space"),
    ("bug", 1, "run.rank=0: ZeroDivisionError. Its traceback stands in rank0.log."),
    ("kill", 5, "run.rank=0: ended without a word (killed, or out of memory). The same command goes on."),
])  # fmt: skip
def test_a_job_that_fails_gives_its_code_one_line_and_where_its_log_lies(
    launch: Launcher, how: str, code: int, said: str
) -> None:
    launch.job = {"fail": how}
    done = launch()
    refused(Done(done.rc, done.out, "".join(f"{line}\n" for line in done.errors[:1])), code, said)
    assert re.fullmatch(r"log: runs/tiny-\w+/logs/rank0.log", done.errors[1]) and len(done.errors) == 2
    assert (launch.home / done.errors[1].removeprefix("log: ")).is_file()
    assert "secret-patient" not in done.out + done.err
    launch.job = {}
    assert launch().rc == 0


@pytest.mark.slow
@pytest.mark.parametrize(("how", "code", "said"), [
    ("run", 5, "trainer.step=1: the loss is nan."),
    ("bug", 1, "run.rank=1: ZeroDivisionError."),
    ("kill", 5, "run.rank=1: ended without a word"),
])  # fmt: skip
def test_on_two_ranks_the_launcher_names_the_rank_that_failed(launch: Launcher, how: str, code: int, said: str) -> None:
    launch.job = {"fail": how, "rank": 1}
    done = launch("resources.tasks_per_node=2")
    assert done.rc == code and done.errors[0].startswith(said) and len(done.errors) == 2


@pytest.mark.slow
@pytest.mark.fault
@pytest.mark.parametrize(("signum", "code"), STOPS)
@pytest.mark.parametrize("to", ["launcher", "rank"])
def test_a_signal_stops_between_steps_and_the_same_command_goes_on(
    launch: Launcher, signum: signal.Signals, code: int, to: str
) -> None:
    launch.job = {"step_s": 0.01}
    started = launch.start("trainer.max_steps=200")
    started.until(lambda: launch.step() >= 2)
    started.process.send_signal(signum) if to == "launcher" else launch.ranks()[0].send_signal(signum)
    done = started.wait()
    assert done.rc == code
    assert re.match(r"stopped after step \d+, checkpoint kept. The same command goes on.", done.errors[0])
    step = launch.step()
    assert 2 <= step < 200
    launch.job = {"step_s": 0}
    again = launch("trainer.max_steps=200")
    assert again.rc == 0 and f"counting from {step}" in again.out


@pytest.mark.slow
@pytest.mark.fault
def test_a_signal_in_the_first_moments_is_not_lost(launch: Launcher) -> None:
    """From the plan's line on: before the ranks are there, and while they start."""
    launch.job = {"step_s": 0.01}
    for delay in (0.0, 0.05, 0.1, 0.3, 0.6):
        started = launch.start(LONG, f"seed={int(delay * 100)}", PYTHONUNBUFFERED="1")
        started.until(lambda started=started: started.out_file.stat().st_size)
        time.sleep(delay)
        started.process.send_signal(signal.SIGINT)
        done = started.wait(30)
        assert done.rc == 130, done
        assert len(done.errors) == 1 and done.err.startswith("stopped "), done.err
        assert [p for p in processes(started.process.pid) if p.status() != psutil.STATUS_ZOMBIE] == []


# --- who lives on


@pytest.mark.slow
@pytest.mark.fault
def test_ctrl_c_as_a_terminal_sends_it_stops_all_ranks_with_a_checkpoint(launch: Launcher) -> None:
    """SIGINT to the whole foreground group: launcher, submitit's controller and ranks."""
    launch.job = {"step_s": 0.2}
    started = launch.start("trainer.max_steps=60", "resources.tasks_per_node=2")
    started.until(lambda: launch.step() >= 2)
    os.killpg(started.process.pid, signal.SIGINT)
    done = started.wait()
    assert done.rc == 130 and done.errors[0].startswith("stopped after step ")
    run = launch.run_dir()
    ends = [r["code"] for rank in lease.records(run, 1).values() for r in rank if r["event"] == "end"]
    assert ends == [130, 130]
    launch.job = {"step_s": 0}
    assert launch("trainer.max_steps=60", "resources.tasks_per_node=2").rc == 0


@pytest.mark.slow
@pytest.mark.fault
@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGHUP])
def test_a_launcher_that_dies_leaves_the_run_running(launch: Launcher, signum: signal.Signals) -> None:
    """SIGHUP goes to all, as when a terminal is closed."""
    launch.job = {"step_s": 0.01}
    started = launch.start(ENDLESS)
    started.until(launch.step)
    started.process.kill() if signum == signal.SIGKILL else os.killpg(started.process.pid, signum)
    assert started.wait().rc == 128 + signum
    run = launch.run_dir()
    refused(launch(ENDLESS), 7, f"run={run.path.name}: process ")
    before = lease.read_state(run).step or 0
    until(lambda: (lease.read_state(run).step or 0) > before)
    until(lambda: submit.ask_to_stop(run, 1, 1))
    until(lambda: lease.read_state(run).state != "running")
    assert lease.read_state(run).state == "stopped"
    (run.path / "count.rank0.json").write_text("99999")
    assert launch(ENDLESS).rc == 0
    assert launch(ENDLESS).out.startswith("finished ")


@pytest.mark.slow
@pytest.mark.fault
def test_a_controller_that_dies_does_not_end_the_watch_while_ranks_live(launch: Launcher) -> None:
    launch.job = {"step_s": 0.05}
    started = launch.start("trainer.max_steps=40")
    started.until(launch.step)
    owner = rundir.read_json(lease.life_dir(launch.run_dir(), 1) / "owner.json")
    os.kill(owner["pid"], signal.SIGKILL)
    done = started.wait()
    assert (done.rc, done.err) == (0, ""), done


@pytest.mark.slow
@pytest.mark.fault
@pytest.mark.parametrize("ranks", [1, 2])
def test_a_rank_that_is_killed_is_told_in_one_line_and_the_same_command_goes_on(launch: Launcher, ranks: int) -> None:
    launch.job = {"step_s": 0.01}
    words = ["trainer.max_steps=200", f"resources.tasks_per_node={ranks}"]
    started = launch.start(*words)
    started.until(lambda: launch.step() >= 2 and len(launch.ranks()) == ranks)
    launch.ranks()[-1].kill()
    done = started.wait()
    assert done.rc == 5
    assert done.errors[0] == f"run.rank={ranks - 1}: ended without a word (killed, or out of memory). The same command goes on."
    launch.job = {"step_s": 0}
    again = launch(*words)
    assert again.rc == 0 and "counting from 0" not in again.out


@pytest.mark.slow
def test_no_wait_returns_at_once_even_into_a_pipe_and_the_run_completes(launch: Launcher) -> None:
    """`x=$(... --no-wait)` waits for everyone who holds the pipe."""
    launch.job = {"step_s": 0.1}
    command = [sys.executable, "-m", "hpcai.run", *launch.words("trainer.max_steps=50"), "--no-wait"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=launch.env(), cwd=launch.home, start_new_session=True
    ) as process:
        launch.sessions.append(process.pid)
        out, _ = process.communicate(timeout=60)
    run = launch.run_dir()
    assert lease.read_state(run).state in ("pending", "running")
    assert process.returncode == 0 and b"started: runs/tiny-" in out
    before = time.monotonic()
    while lease.read_state(run).state != "completed":
        assert time.monotonic() - before < 30
        time.sleep(0.05)


# --- words


@pytest.mark.slow
@pytest.mark.parametrize("redirect", ["| head -1", "> /dev/full", ">&-", "2>&1 | true", "> /dev/null 2>&-"])
def test_an_output_that_breaks_stops_no_run(launch: Launcher, redirect: str) -> None:
    launch.job = {"step_s": 0.05}
    words = " ".join(f'"{word}"' for word in [*launch.words("trainer.max_steps=30")])
    script = f"set -o pipefail; {sys.executable} -m hpcai.run {words} {redirect}"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, env=launch.env(), cwd=launch.home, timeout=60)
    assert done.stderr == ""
    assert done.returncode == 0
    assert lease.read_state(launch.run_dir()).state == "completed"


def test_an_output_in_another_encoding_stops_no_run(launch: Launcher) -> None:
    done = launch("data.name='größe'", PYTHONIOENCODING="ascii", PYTHONUTF8="0")
    assert (done.rc, done.err) == (0, "") and "gr\\xf6\\xdfe" in done.out


def test_a_dry_run_prints_the_plan_and_the_line_and_writes_nothing(launch: Launcher) -> None:
    before = tree(launch.home)
    done = launch("--dry-run", PYTHONDONTWRITEBYTECODE="1")
    after = {k: v for k, v in tree(launch.home).items() if not k.startswith("0.")}
    assert (done.rc, done.err) == (0, "")
    assert after == {k: v for k, v in before.items() if not k.startswith("0.")}
    plan, line = done.out.splitlines()
    assert plan.startswith("plan  tiny-") and "-m hpcai.worker" in line


@pytest.mark.slow
def test_a_dry_run_over_a_stopped_run_changes_nothing_either(launch: Launcher, stopped: RunDir) -> None:
    before = tree(stopped.path)
    assert launch(LONG, "--dry-run").rc == 0
    assert tree(stopped.path) == before


def test_the_printed_config_loads_back(launch: Launcher) -> None:
    done = launch("--cfg", "job", "data.name='größe: #1'")
    config = Config.model_validate(yaml.safe_load(done.out))
    assert (done.rc, done.err) == (0, "") and config.data.name == "größe: #1" and config.name == "tiny"
    assert not launch.runs.exists()


@pytest.mark.parametrize(("words", "start"), [
    (["--wait"], "--wait: unknown option. See --help."),
    (["-x"], "-x: unknown option. See --help."),
    (["--"], "--: unknown option. See --help."),
    (["seed=0,1"], "seed=0,1: many values are many runs."),
    (["--junit=x.xml"], "--junit: is about many runs."),
    (["--multirun=1"], "argument --multirun/-m: "),
    (["--cfg", "hydra"], "argument --cfg: "),
    (["--config-dir"], "argument --config-dir/-cd: "),
    (["--dry-run=1"], "argument --dry-run: "),
    (["seed"], "seed: "),
])  # fmt: skip
def test_a_wrong_word_is_exit_2_and_one_line(launch: Launcher, words: list[str], start: str) -> None:
    refused(launch(*words), 2, start)
    assert not launch.runs.exists()


def test_help_and_version_load_nothing_heavy(launch: Launcher) -> None:
    heavy = ["torch", "numpy", "matplotlib", "submitit", "safetensors", "PIL", "jinja2", "monai", "mpi4py", "scipy"]
    for option, found in (("--help", "+experiment=pneumonia"), ("--version", "0.")):
        code = (
            f"import sys; from hpcai.run import main; rc = main(['{option}']); "
            f"sys.exit(rc or [m for m in {heavy} if m in sys.modules] or 0)"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=launch.env(), timeout=60)
        assert (done.returncode, done.stderr) == (0, "") and found in done.stdout


def test_a_plan_loads_neither_torch_nor_numpy(launch: Launcher) -> None:
    words = launch.words("--dry-run")
    found = "[m for m in ('torch', 'numpy') if m in sys.modules]"
    code = f"import sys; from hpcai.run import main; rc = main({words}); sys.exit(rc or {found} or 0)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=launch.env(), timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


# --- hostile places


NAMES = ["with space", "quo'te\"s", "new\nline", "ünïcödé 名", "-rf", "$(touch x) `y` ;&", "a" * 200, "~"]


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_runs_may_lie_in_folders_of_any_name(launch: Launcher, name: str) -> None:
    escaped = name.replace("\\", "\\\\").replace("'", "\\'")
    done = launch(f"runs_dir='./{escaped}'", "resources.tasks_per_node=2", "trainer.max_steps=2")
    assert (done.rc, done.err) == (0, ""), done
    assert [f.name[:5] for f in (launch.home / name).iterdir()] == ["tiny-"]
    assert "Traceback" not in done.out


@pytest.mark.parametrize(("name", "why"), [("100%", "holds %"), ("a:b", "holds :")])
def test_folders_that_submitit_or_the_path_of_modules_cannot_hold_are_refused(launch: Launcher, name: str, why: str) -> None:
    done = launch(f"runs_dir='{launch.home}/{name}'")
    refused(done, 3, "runs_dir=")
    assert why in done.err and not (launch.home / name).exists()


@pytest.mark.slow
def test_the_home_folder_may_be_written_short(launch: Launcher) -> None:
    done = launch("runs_dir='~/r'", HOME=str(launch.home))
    assert done.rc == 0 and (launch.home / "r").is_dir() and not (launch.home / "~").exists()


def test_a_name_with_a_newline_and_a_file_as_runs_dir_are_refused(launch: Launcher) -> None:
    refused(launch("name='a\nb'"), 2, "name=a?b: ")
    refused(launch(f"runs_dir='{launch.npz}/x'"), 3, "runs_dir=")
    refused(launch(f"runs_dir='/tmp/{'a' * 300}'"), 3, "runs_dir=")


def test_a_read_only_folder_is_refused_before_anything_starts(launch: Launcher, small_disk: Callable[[str], Path]) -> None:
    refused(launch(f"runs_dir='{small_disk('ro,size=1m')}'"), 3, "runs_dir=")


@pytest.mark.slow
def test_a_damaged_run_folder_is_told_in_one_line(launch: Launcher, stopped: RunDir) -> None:
    for file in (stopped.plan, stopped.environment, stopped.data):
        kept = file.read_bytes()
        file.write_bytes(kept[: len(kept) // 2])
        done = launch(LONG)
        assert done.rc in (3, 5) and len(done.errors) == 1 and "Traceback" not in done.err, done
        file.write_bytes(kept)


@pytest.mark.slow
def test_run_files_are_the_users_alone(launch: Launcher) -> None:
    launch.home.chmod(0o755)
    assert launch().rc == 0
    files = [f for f in launch.runs.rglob("*") if "code" not in f.relative_to(launch.runs).parts]
    assert [f for f in (launch.runs, *files) if f.stat().st_mode & 0o077] == []


# --- the real training


@pytest.mark.slow
@pytest.mark.slow
def test_run_files_are_the_groups_to_read_where_that_is_asked_for(launch: Launcher) -> None:
    assert launch("runs_access=group").rc == 0
    run = launch.run_dir()
    told = [f for f in run.path.rglob("*") if f.parent != run.submitit and "code" not in f.parts]
    modes = {f.name: f.stat().st_mode & 0o777 for f in told}
    assert {mode & 0o027 for mode in modes.values()} == {0}, modes
    assert modes["plan.json"] == modes["rank0.jsonl"] == modes["rank0.log"] == 0o640 and modes["lives"] == 0o750


@pytest.mark.slow
@pytest.mark.fault
def test_a_real_training_completes_is_stopped_by_ctrl_c_and_goes_on(train: Launcher) -> None:
    words = ["trainer.epochs=60", "trainer.validate_every=60", "trainer.checkpoint_every=30"]
    started = train.start(*words)
    started.until(lambda: train.step() >= 30, timeout=60)
    os.killpg(started.process.pid, signal.SIGINT)
    done = started.wait()
    assert done.rc == 130 and re.match(r"stopped after step [\d,]+, checkpoint kept. The same command goes on.", done.errors[0])
    again = train(*words)
    assert (again.rc, again.err) == (0, ""), again
    assert "resuming at step" in again.out and train.run_dir().report_html.is_file()


@pytest.mark.slow
@pytest.mark.fault
def test_a_full_disk_ends_a_real_run_with_one_line_and_a_bigger_one_resumes_it(
    train: Launcher, small_disk: Callable[[str], Path]
) -> None:
    """The disk holds the folder and some checkpoints; then it is full."""
    disk = small_disk("size=6m")
    words = [f"runs_dir='{disk}/runs'", "trainer.epochs=8", "trainer.checkpoint_every=1", "trainer.keep_last=1000"]
    words += ["trainer.validate_every=8"]
    done = train(*words)
    assert done.rc == 5 and "Traceback" not in done.err
    assert "No space left on device" in done.errors[0] and len(done.errors) <= 2
    (folder,) = (disk / "runs").iterdir()
    whole = [f.stem for f in (folder / "checkpoints").glob("step-*.json")]
    assert whole and all((folder / "checkpoints" / f"{stem}.safetensors").is_file() for stem in whole)
    assert list(folder.rglob("*.tmp")) == []
    for file in folder.rglob("*.json"):
        json.loads(file.read_bytes())
    subprocess.run(["mount", "-o", "remount,size=200m", str(disk)], check=True)
    again = train(*words)
    assert (again.rc, again.err) == (0, ""), again
    assert "resuming at step" in again.out
