"""`hpcai support`: one tar that a help desk can read and that names nobody, of a run in whatever state."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import stat
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import Launcher
from fake_slurm import FakeSlurm, past
from run_folders import live, make_run, make_sweep, validated

from hpcai import lease, rundir, scheduler
from hpcai.cli import main
from hpcai.rundir import RunDir

NAMES = ("Meier", "Anna", "Schulz", "Kranz", "4711-B", "0815123", "hunter2", "s3cr3t", "clinic.example", "Dr Weber", "/home/")
DATA = "/home/weber/Dr Weber/wrist.csv"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder where it is typed: tars lie in it, runs in runs/ below."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def bundle(*words: str, code: int = 0) -> dict[str, bytes]:
    """The files of the tar that `hpcai support` leaves, by name below its one folder."""
    before = set(Path().glob("*.tar.gz"))
    assert main(["support", *words]) == code
    (file,) = set(Path().glob("*.tar.gz")) - before
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    found = {}
    with tarfile.open(file) as tar:
        for entry in tar:
            assert entry.isfile() and entry.name.startswith(f"{file.name.removesuffix('.tar.gz')}/")
            assert (entry.mode, entry.uid, entry.uname) == (0o600, 0, "")
            read = tar.extractfile(entry)
            assert read is not None
            found[entry.name.partition("/")[2]] = read.read()
    return found


def planted(folder: Path, state: str = "failed") -> RunDir:
    """A run whose every file holds names, identifiers, paths and passwords."""
    run = make_run(folder, state, message="data: row 7 cannot be read. Mend it.")
    validated(run, 0.7)
    config = {
        "name": "wrist", "runs_dir": str(folder.parent), "from_run": f"{folder.parent}/old-1",
        "data": {"path": DATA, "reader": "csv", "labels": ["no", "yes"]}, "model": {"init_from": "/home/weber/Anna/w.pt"},
        "cluster": {"mail": "anna.meier@clinic.example.org", "account": "p200000"},
        "container": {"binds": ["/home/weber/Dr Weber:/in:ro"]},
        "tracking": {"mlflow": "https://weber:hunter2@track.example.eu/s3cr3t?token=s3cr3t"},
    }  # fmt: skip
    run.config.write_text(yaml.safe_dump(config))
    files = [DATA, "/home/weber/Dr Weber/img/Meier_Anna 01.png", "/home/weber/Dr Weber/img/x/Kranz.dcm"]
    rundir.write_json(run.data, {"name": "wrist", "files": [{"path": p, "bytes": 1, "sha256": "0"} for p in files]})
    rundir.write_json(run.split, {"by": "random", "train": ["Meier-4711-B"], "val": ["Schulz, Eva"], "test": ["0815123"]})
    rundir.append_lines(run.rows_file("val", 0), [{"case": "Kranz.7", "patient": "Meier^Anna", "scores": [0.1, 0.9]}])
    for name in (
        "report.html",
        "report.json",
        "model.json",
        "together.json",
        "tracking.json",
        "failed.rank0.jsonl",
        "mine.log",
    ):
        (run.path / name).write_text("Meier Anna")
    for name in ("checkpoints/step-00000042.safetensors", "code/hpcai/x.py", "tensorboard/events", "rows/x.log"):
        rundir.write_bytes(run.path / name, b"Meier Anna")
    words = f"""Traceback (most recent call last):
  File "{run.path}/code/hpcai/jobs/train.py", line 41, in main
  File "/home/weber/env/lib/python3.11/site-packages/PIL/Image.py", line 3431, in open
FileNotFoundError: [Errno 2] No such file or directory: '/home/weber/Dr Weber/img/Meier_Anna 01.png'
case Meier-4711-B of SCHULZ, EVA, patient meier^anna: 0815123, Kranz.7_seg
MLFLOW_TRACKING_PASSWORD=hunter2 https://weber:hunter2@track.example.eu/s3cr3t mail anna.meier@clinic.example.org
cannot open {DATA}
"""
    for name in ("logs/rank0.log", "submitit/99_0_log.err", "submitit/99_batch.log", "submitit/controller.log", "job.sbatch"):
        rundir.write_bytes(run.path / name, words.encode())
    lease.append(run, 1, 0, "warning", message="could not read /home/weber/Dr Weber/img/Meier_Anna 01.png")
    rundir.write_json(run.preflight / "n1.json", {"ok": False, "checks": [{"found": "/home/weber/Anna", "words": "no GPU"}]})
    return run


# --- what goes in


def test_no_byte_of_it_names_anybody_and_a_help_desk_can_read_it(here: Path) -> None:
    run = planted(here / "runs" / "wrist-1a2b3c4d")
    found = bundle("wrist")
    for name, data in found.items():
        text = f"{name}\n{data.decode()}".lower()
        assert [word for word in (*NAMES, str(here)) if word.lower() in text] == [], name
    assert set(found) == {
        "README.txt", "plan.json", "config.yaml", "job.sbatch", "lives/0001/owner.json", "lives/0001/rank0.jsonl",
        "preflight/n1.json", "submitit/99_batch.log", "logs/rank0.log", "submitit/99_0_log.err", "submitit/controller.log",
        "metrics.jsonl",
    }  # fmt: skip
    log = found["logs/rank0.log"].decode()
    assert 'File "RUN/code/hpcai/jobs/train.py", line 41, in main\n' in log
    assert 'File "<python>/lib/python3.11/site-packages/PIL/Image.py", line 3431' in log
    assert "FileNotFoundError: [Errno 2] No such file or directory: '<" in log
    config = yaml.safe_load(found["config.yaml"])
    assert (config["data"]["path"], config["from_run"]) == ("<data.path>", "RUNS/old-1")
    assert config["tracking"]["mlflow"] == "https://track.example.eu" and config["cluster"]["account"] == "p200000"
    assert json.loads(found["plan.json"])["run_id"] == "wrist-1a2b3c4d"
    events = [json.loads(line)["event"] for line in found["lives/0001/rank0.jsonl"].splitlines()]
    assert events == ["begin", "end", "warning"]
    readme = found["README.txt"].decode()
    assert "state: failed, start 1, code 4. data: row 7 cannot be read. Mend it." in readme
    assert "also there: checkpoints/ (1 files), rows/ (2 files), code/ (1 files)" in readme
    assert all(name in readme for name in found if name != "README.txt") and run.path.name in readme


def test_a_log_is_cut_to_its_end_from_a_lines_begin_on_and_that_is_said(here: Path) -> None:
    run = make_run(here / "runs" / "a-1")
    rundir.write_bytes(run.log(0), b"".join(b"line %07d of many\n" % i for i in range(100_000)))
    found = bundle("a-1")
    lines = found["logs/rank0.log"].splitlines()
    assert 2**20 - 30 < len(found["logs/rank0.log"]) <= 2**20
    assert re.fullmatch(rb"line \d{7} of many", lines[0]) and lines[-1] == b"line 0099999 of many"
    assert b"cut       logs/rank0.log: its last 10485" in found["README.txt"] and b" of 2100000 bytes" in found["README.txt"]


def test_links_pipes_and_folders_in_place_of_files_are_left_out_and_told(here: Path) -> None:
    run = make_run(here / "runs" / "a-1")
    (run.path / "logs").mkdir()
    (here / "shadow").write_text("root:x")
    run.log(0).symlink_to(here / "shadow")
    os.mkfifo(run.log(1))
    run.log(2).mkdir()
    found = bundle("a-1")
    assert not any(name.startswith("logs/") for name in found) and b"root:x" not in b"".join(found.values())
    assert found["README.txt"].count(b"left out  logs/rank") == 3


def test_lives_and_ranks_come_in_their_order_and_a_run_is_left_as_it_was(here: Path) -> None:
    run = make_run(here / "runs" / "a-1", "lost")
    live(run, "completed", life=2, ranks=11)
    lease.note_cancelled(run, 1)
    before = {path: path.stat().st_mtime_ns for path in run.path.rglob("*")}
    found = [name for name in bundle(str(run.path)) if name.startswith("lives/")]
    assert found == [f"lives/000{n}/owner.json" for n in (1, 2)] + ["lives/0001/cancelled", "lives/0001/rank0.jsonl"] + [
        f"lives/0002/rank{n}.jsonl" for n in range(11)
    ]
    assert before == {path: path.stat().st_mtime_ns for path in run.path.rglob("*")}


def test_a_sweep_brings_its_members_records_and_logs(here: Path) -> None:
    members = [planted(here / "runs" / f"wrist-{i}") for i in range(2)]
    sweep = make_sweep(here / "runs", members, words=[f"data.path={DATA}", "seed=0,1"], cwd="/home/weber/Dr Weber")
    rundir.write_bytes(sweep.path / "driver.log", b"member of Meier-4711-B\n")
    found = bundle(sweep.id)
    assert {"members.json", "driver.log", "lives/0001/owner.json"} <= set(found)
    for i in range(2):
        assert b"RUN/code/hpcai" in found[f"members/wrist-{i}/logs/rank0.log"]
        assert f"members/wrist-{i}/lives/0001/rank0.jsonl" in found
    for name, data in found.items():
        assert [word for word in NAMES if word.lower() in data.decode().lower()] == [], name
    listed = json.loads(found["members.json"])
    assert listed["words"] == ["data.path=<data.path>", "seed=0,1"] and listed["members"][0]["run_dir"] == "RUNS/wrist-0"
    assert b"the sweep grid-11111111" in found["README.txt"]


@pytest.mark.parametrize("deep", [False, True])
def test_a_config_of_aliases_or_without_a_bottom_is_left_out(here: Path, deep: bool) -> None:
    run = make_run(here / "runs" / "a-1")
    lines = (
        ['{"a": ' * 400 + "1" + "}" * 400]
        if deep
        else ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
        + [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 12)]
    )
    run.config.write_text("\n".join(lines))
    assert b"left out  config.yaml: is damaged" in bundle("a-1")["README.txt"]


def test_a_pipe_in_place_of_a_list_holds_nobody_up(here: Path) -> None:
    run = make_run(here / "runs" / "a-1")
    run.rows.mkdir()
    for file in (run.data, run.split, run.rows_file("val", 0)):
        os.mkfifo(file)
    assert "plan.json" in bundle("a-1")


# --- in whatever state


@pytest.mark.parametrize("damage", ["plan.json", "config.yaml", "lives/0001/owner.json", "lives/0001/rank0.jsonl", "split.json",
                                    "data.json", "rows/val.rank0.jsonl", "metrics.jsonl", "preflight/n1.json"])  # fmt: skip
@pytest.mark.parametrize("how", [b"", b'{"x": "half', b"\xff\xfe\x00", b"- [", b"[" * 900 + b"]" * 900])
def test_a_damaged_file_stops_nothing_and_frees_nobody(here: Path, damage: str, how: bytes) -> None:
    run = planted(here / "runs" / "wrist-1a2b3c4d")
    (run.path / damage).write_bytes(how)
    found = bundle(str(run.path))
    lists = ("split.json", "data.json", "rows/val.rank0.jsonl")  # whom one of them alone has named, nobody knows any more
    known = NAMES if damage not in lists else ("/home/", "hunter2", "s3cr3t", "Dr Weber")
    for name, data in found.items():
        assert [word for word in known if word.lower() in data.decode("utf-8", "replace").lower()] == [], name
    assert "logs/rank0.log" in found
    if damage == "config.yaml":
        assert b"left out  config.yaml: is damaged" in found["README.txt"]


@pytest.mark.parametrize("gone", [("plan.json",), ("plan.json", "lives"), ("plan.json", "config.yaml", "data.json")])
def test_a_run_that_its_launcher_did_not_live_to_finish_is_found_by_its_name(here: Path, gone: tuple[str, ...]) -> None:
    run = planted(here / "runs" / "wrist-1a2b3c4d")
    for name in gone:
        path = run.path / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert "logs/rank0.log" in bundle("wrist-1a2b3c4d")


def test_a_sweep_without_its_list_is_found_too(here: Path) -> None:
    sweep = make_sweep(here / "runs", [])
    (sweep.path / "members.json").write_bytes(b"{")
    assert "members.json" in bundle(sweep.id)
    (sweep.path / "members.json").unlink()
    Path("grid-11111111-support.tar.gz").unlink()
    assert "lives/0001/owner.json" in bundle(sweep.id)


@pytest.mark.fault
def test_what_a_real_run_left_that_hit_a_fault_of_ours_has_its_traceback(launch: Launcher, here: Path) -> None:
    launch.job = {"fail": "bug"}
    assert launch("trainer.max_steps=3").rc == 1
    found = bundle("tiny")
    log = found["logs/rank0.log"].decode()
    assert 'File "RUN/code/hpcai/worker.py", line' in log and "ZeroDivisionError" in log
    assert str(here).encode() not in b"".join(found.values()) and b"tiny.npz" not in b"".join(found.values())
    assert yaml.safe_load(found["config.yaml"])["trainer"]["max_steps"] == 3


# --- Slurm


def on_slurm(folder: Path, job: str) -> RunDir:
    """A run that had that job."""
    run = make_run(folder, "lost")
    owner = lease.read_owner(run, 1)
    rundir.write_json(lease.life_dir(run, 1) / "owner.json", {**owner, "kind": "slurm", "job": job, "restart": 0})
    return run


@pytest.fixture
def paper(here: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    return FakeSlurm.on(here, monkeypatch)


def test_what_slurm_says_of_its_jobs_goes_in_and_of_anothers_nothing(here: Path, paper: FakeSlurm) -> None:
    run = on_slurm(here / "runs" / "a-1", "71")
    told = f"JobId=71 JobName=a-1\n   UserId=eva(1000) JobState=FAILED\n   WorkDir=/home/eva/Meier\n   Command={run.script}\n"
    paper.says("scontrol", out=f"{told}\nJobId=72 JobName=a-12\n   Command=/home/x/their.sh\n")
    paper.says("sacct", out="JobID|JobName|State\n71|a-1|FAILED\n")
    words = bundle("a-1")["slurm.txt"].decode()
    assert "UserId=eva(1000) JobState=FAILED\n   WorkDir=<path>\n   Command=RUN/job.sbatch" in words
    assert "their" not in words and "a-12" not in words and "71|a-1|FAILED" in words
    (asked,) = paper.calls("sacct")
    assert "--jobs=71" in asked and "--name=a-1" in asked


def test_a_members_job_is_asked_for_by_its_sweeps_name(here: Path, paper: FakeSlurm) -> None:
    run = on_slurm(here / "runs" / "a-1", "71")
    owner = lease.life_dir(run, 1) / "owner.json"
    rundir.write_json(owner, rundir.read_json(owner) | {"sweep": str(here / "runs" / "sweeps" / "grid-9")})
    paper.says("scontrol", out="JobId=71 JobName=grid-9\n   JobState=FAILED\n")
    paper.says("sacct", out="JobID|JobName|State\n71|grid-9|FAILED\n")
    assert "JobName=grid-9" in bundle("a-1")["slurm.txt"].decode()
    (asked,) = paper.calls("sacct")
    assert "--name=grid-9" in asked


def test_a_slurm_that_is_silent_or_gone_costs_a_line(here: Path, paper: FakeSlurm) -> None:
    on_slurm(here / "runs" / "a-1", "71")
    paper.history(past("70", "COMPLETED"))
    paper.says("scontrol", err="slurm_load_jobs error: Unable to contact slurm controller", code=1)
    paper.says("sacct", err="sacct: error: Connection refused", code=1)
    words = bundle("a-1")["slurm.txt"].decode()
    assert "scontrol show job 71: slurm_load_jobs error: Unable to contact" in words and "sacct: sacct: error:" in words


def test_a_run_that_never_had_a_job_asks_nobody(here: Path, paper: FakeSlurm) -> None:
    make_run(here / "runs" / "a-1")
    assert "slurm.txt" not in bundle("a-1") and paper.calls() == []


@pytest.mark.slurm
def test_a_real_slurm_knows_the_job_by_its_name(slurm: Any) -> None:
    job = str(slurm.submit("--job-name=a-1", wrap="true"))
    slurm.until(job, "COMPLETED")
    shown, history = scheduler.words_of([job], "a-1", 0.0)
    assert f"JobId={job} JobName=a-1" in shown and "JobState=COMPLETED" in shown
    assert history.splitlines()[0].startswith("JobID|JobName|State|ExitCode")
    assert next(scheduler.words_of([job], "a-2", 0.0)) == f"{job}: another's job now"


# --- the file


def test_json_says_where_it_lies_and_what_is_in_it(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_run(here / "runs" / "a-1")
    found = bundle("a-1", "--json")
    told = json.loads(capsys.readouterr().out)
    assert told["files"] == list(found) and told["notes"] == []
    assert Path(told["file"]) == here / "a-1-support.tar.gz" and told["bytes"] == Path(told["file"]).stat().st_size


@pytest.mark.parametrize("there", ["file", "folder", "link"])
def test_a_file_that_is_there_is_never_overwritten(here: Path, there: str, capsys: pytest.CaptureFixture[str]) -> None:
    make_run(here / "runs" / "a-1")
    file = here / "a-1-support.tar.gz"
    {"file": lambda: file.write_text("mine"), "folder": file.mkdir, "link": lambda: file.symlink_to("nowhere")}[there]()
    assert main(["support", "a-1"]) == 3
    err = capsys.readouterr().err
    assert err == "-o=a-1-support.tar.gz: is there already. Remove it, or name another file by -o.\n"
    assert there != "file" or file.read_text() == "mine"
    assert main(["support", "a-1", "-o", "b.tar.gz"]) == 0 and Path("b.tar.gz").is_file()


def test_a_place_that_cannot_be_written_is_one_line_and_leaves_nothing(
    here: Path, small_disk: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(here / "runs" / "a-1")
    rundir.write_bytes(run.log(0), os.urandom(60_000).hex().encode())
    disk = small_disk("size=16k")
    for target, why in ((disk / "a.tar.gz", "No space left on device"), (here / "no" / "a", "No such file or directory")):
        assert main(["support", "a-1", "-o", str(target)]) == 3
        err = capsys.readouterr().err
        assert f": {why}. Name a file that can be written.\n" in err and err.count("\n") == 1 and not target.exists()


@pytest.mark.parametrize("name", ["wrst", "/nowhere", "a\0b", "x" * 5000, ".", ""])
def test_a_name_that_means_nothing_is_exit_2(here: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    make_run(here / "runs" / "wrist-1")
    assert main(["support", name]) == 2
    assert capsys.readouterr().err.count("\n") == 1 and list(here.glob("*.tar.gz")) == []


def test_the_same_run_packs_to_the_same_files(here: Path) -> None:
    planted(here / "runs" / "wrist-1")
    first = bundle("wrist-1")
    assert main(["support", "wrist-1", "-o", "again.tgz"]) == 0
    with tarfile.open(fileobj=io.BytesIO(Path("again.tgz").read_bytes())) as tar:
        assert [entry.name.partition("/")[2] for entry in tar] == list(first)
