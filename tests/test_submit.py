"""What the submitter freezes, what it starts, and that a person could start the same."""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import tiny_words
from fake_slurm import FakeSlurm

import hpcai
from hpcai import lease, provenance, rundir, submit
from hpcai.config.check import load
from hpcai.config.schema import Config
from hpcai.errors import DataError, Faults, HpcaiError, PlanError
from hpcai.inputs import Input
from hpcai.plan import JobPlan, make_plan
from hpcai.rundir import RunDir

ROOT = Path(__file__).parent.parent


@pytest.fixture
def planned(tiny_npz: Path, tmp_path: Path) -> tuple[RunDir, JobPlan, Config, list[Input]]:
    words = tiny_words(tiny_npz) | {"runs_dir": str(tmp_path / "runs")}
    plan, config, files = make_plan(load([f"{k}='{v}'" if "/" in v else f"{k}={v}" for k, v in words.items()]))
    return RunDir(Path(plan.run_dir)), plan, config, files


@pytest.fixture
def prepared(planned: tuple[RunDir, JobPlan, Config, list[Input]]) -> tuple[RunDir, JobPlan, Config, list[Input]]:
    submit.prepare(*planned)
    return planned


# --- what stands in the folder


def test_the_environment_names_every_package_with_its_licence(prepared: Any) -> None:
    facts = rundir.read_json(prepared[0].environment)
    packages = {p["name"].lower(): p for p in facts["packages"]}
    assert packages.keys() >= {"torch", "numpy", "pydantic", "hydra-core", "submitit", "psutil", "hpcai"}
    assert all(p["version"] == metadata.version(p["name"]) and p["licence"] for p in facts["packages"])
    assert packages["hpcai"]["licence"] == "Apache-2.0" and "BSD" in packages["torch"]["licence"]
    assert facts["python"] == sys.version.split()[0] and facts["hpcai"] == hpcai.__version__


def test_the_versions_that_decide_results_are_pythons_and_of_what_hpcai_requires(prepared: Any) -> None:
    versions = rundir.read_json(prepared[0].environment)["versions"]
    assert versions.keys() >= {"python", "torch", "numpy", "pillow", "safetensors", "hydra-core"}
    assert not versions.keys() & {"pytest", "ruff", "mypy", "hpcai"}
    assert "/" not in json.dumps(versions)  # no path, no host


def test_the_environment_names_the_commit_and_the_uncommitted(prepared: Any) -> None:
    def git(*words: str) -> bytes:
        return subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, check=True).stdout

    if not ((ROOT / ".git").exists() and provenance.PACKAGE.is_relative_to(ROOT)):
        pytest.skip("hpcai does not run from a git checkout")
    facts = rundir.read_json(prepared[0].environment)["git"]
    assert facts["commit"] == git("rev-parse", "HEAD").decode().strip()
    assert (facts["diff_sha256"] is not None) == bool(git("diff", "HEAD"))
    assert facts["dirty"] or facts["diff_sha256"] is None


def test_an_installed_copy_has_no_commit_even_inside_someone_elses_checkout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    (tmp_path / "hpcai").mkdir()
    (tmp_path / "hpcai/__init__.py").touch()
    monkeypatch.setattr(provenance, "PACKAGE", tmp_path / "hpcai")
    assert provenance._git() is None


def test_the_data_stand_with_source_licence_and_digests(prepared: Any, tiny_npz: Path) -> None:
    facts = rundir.read_json(prepared[0].data)
    digest = hashlib.sha256(tiny_npz.read_bytes()).hexdigest()
    assert facts["files"] == [{"path": str(tiny_npz), "bytes": tiny_npz.stat().st_size, "sha256": digest}]
    assert (facts["name"], facts["licence"]) == ("Tiny", "CC0")


def test_the_config_is_whole_and_loads_back(prepared: Any) -> None:
    run, _, config, _ = prepared
    assert Config.model_validate(yaml.safe_load(run.config.read_text("utf-8"))) == config


# --- the frozen code


def test_the_snapshot_is_the_whole_package_without_data_and_caches(prepared: Any) -> None:
    frozen = prepared[0].code / "hpcai"
    source = Path(hpcai.__file__).parent
    there = {
        os.path.relpath(Path(folder, name), source)
        for folder, _, names in os.walk(source, followlinks=True)
        for name in names
        if not {"__pycache__", "shipped"} & set(Path(folder).parts)
    }
    assert {str(f.relative_to(frozen)) for f in frozen.rglob("*") if f.is_file()} == there
    assert all((frozen / name).read_bytes() == (source / name).read_bytes() for name in there)
    assert {"jobs/train.py", "configs/config.yaml", "report/report.css", "worker.py"} <= there
    assert [f for f in frozen.rglob("*") if f.is_symlink()] == []


@pytest.mark.slow
def test_every_module_of_the_snapshot_is_imported_from_the_snapshot(prepared: Any) -> None:
    code = (
        "import sys, pkgutil, importlib, hpcai, hpcai.jobs\n"
        "names = [m.name for m in pkgutil.walk_packages(hpcai.__path__, 'hpcai.') if m.name != 'hpcai.models.monai_nets']\n"
        "files = [importlib.import_module(n).__file__ for n in names]\n"
        "assert len(files) > 40, files\n"
        "sys.exit([f for f in files if not f.startswith(sys.argv[1])] or 0)"
    )
    env = {**os.environ, "PYTHONPATH": str(prepared[0].code)}
    done = subprocess.run([sys.executable, "-P", "-c", code, str(prepared[0].code)], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr


def test_the_code_digest_is_that_of_the_snapshot_and_any_byte_changes_it(
    prepared: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, frozen = provenance.code_digest(), prepared[0].code / "hpcai"
    assert rundir.read_json(prepared[0].environment)["code_sha256"] == here
    monkeypatch.setattr(provenance, "PACKAGE", frozen)
    assert provenance.code_digest() == here
    (frozen / "jobs/train.py").open("a").write("#")
    changed = provenance.code_digest()
    (frozen / "jobs/train.py").rename(frozen / "jobs/train2.py")
    assert len({here, changed, provenance.code_digest()}) == 3
    (frozen / "__pycache__").mkdir(exist_ok=True)
    before = provenance.code_digest()
    (frozen / "__pycache__/x.pyc").touch()
    assert provenance.code_digest() == before


# --- again


def test_what_does_not_differ_goes_on_and_keeps_what_was_frozen(prepared: Any) -> None:
    run = prepared[0]
    frozen = run.environment.read_bytes()
    (run.code / "hpcai/mark").touch()
    submit.prepare(*prepared)
    assert (run.code / "hpcai/mark").exists() and run.environment.read_bytes() == frozen


def test_a_preparation_that_was_cut_short_is_done_anew(prepared: Any) -> None:
    run = prepared[0]
    run.plan.unlink()
    (run.code / "hpcai/worker.py").unlink()
    run.environment.write_text("{")
    submit.prepare(*prepared)
    assert (run.code / "hpcai/worker.py").is_file() and rundir.read_json(run.environment)["python"]


def test_every_difference_is_told_at_once(prepared: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    run, plan, config, files = prepared
    facts = rundir.read_json(run.environment)
    then = facts["versions"] | {"torch": "1.0", "gone": "2"}
    rundir.write_json(run.environment, facts | {"code_sha256": "0", "versions": then})
    other = [Input(files[0].path, files[0].bytes, "0" * 64)]
    plan = JobPlan(**plan.to_json() | {"resources": plan.resources | {"tasks_per_node": 2}})
    with pytest.raises(Faults) as caught:
        submit.prepare(run, plan, config, other)
    assert [type(f) for f in caught.value.members] == [PlanError, PlanError, DataError, PlanError]
    assert f"versions have changed: torch 1.0 -> {metadata.version('torch')}, gone 2 -> gone." in caught.value.lines[1]
    assert all(line.startswith(f"run={plan.run_id}: ") and "--anew" in line for line in caught.value.lines)


# --- the start


def test_the_line_that_starts_a_rank_is_one_that_a_person_can_type(prepared: Any) -> None:
    run = prepared[0]
    line = submit.command(run, 7)
    assert line == [
        "env", f"PYTHONPATH={os.pathsep.join(filter(None, [str(run.code), os.environ.get('PYTHONPATH', '')]))}", "HPCAI_LIFE=7",
        sys.executable, "-P", "-u", "-m", "hpcai.worker", str(run.path),
    ]  # fmt: skip


def test_submitit_is_given_our_command_the_resources_and_nothing_to_unpickle(
    prepared: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import submitit.local.local as local

    assert metadata.version("submitit").startswith("1.5.")
    run, plan, _, _ = prepared
    told: dict[str, Any] = {}

    def start_controller(**kw: Any) -> subprocess.Popen[bytes]:
        told.update(kw)
        return subprocess.Popen(["true"])

    monkeypatch.setattr(local, "start_controller", start_controller)
    life = lease.take(run, 1)
    plan = JobPlan(**plan.to_json() | {"resources": plan.resources | {"tasks_per_node": 3, "timeout_min": 2}})
    job = submit.start(run, plan, life)
    job._process.wait()
    limits = {key: told[key] for key in ("tasks_per_node", "timeout_min", "signal_delay_s", "cuda_devices")}
    assert limits == {"tasks_per_node": 3, "timeout_min": 2, "signal_delay_s": 60, "cuda_devices": ""}
    assert shlex.split(told["command"]) == submit.command(run, life)
    assert list(run.submitit.rglob("*.pkl")) == []
    assert rundir.read_json(lease.life_dir(run, life) / "owner.json")["pid"] == job._process.pid


@pytest.fixture
def descriptors() -> Iterator[None]:
    def now() -> list[tuple[int, int]]:
        return [(os.fstat(fd).st_dev, os.fstat(fd).st_ino) for fd in (0, 1, 2)]

    before, mask = now(), signal.pthread_sigmask(signal.SIG_BLOCK, [])
    yield
    assert now() == before and signal.pthread_sigmask(signal.SIG_BLOCK, []) == mask


@pytest.mark.usefixtures("descriptors")
def test_what_is_started_apart_has_none_of_our_output_and_no_ctrl_c_and_we_get_ours_back(tmp_path: Path) -> None:
    log = tmp_path / "controller.log"
    code = "import os, signal; print(os.isatty(0), signal.pthread_sigmask(signal.SIG_BLOCK, []))"
    with submit.apart(log):
        process = subprocess.Popen([sys.executable, "-c", code])
    assert process.wait() == 0
    text = log.read_text()
    assert text.startswith("False {") and "SIGINT" in text and "SIGHUP" in text and "SIGTERM" not in text
    with pytest.raises(HpcaiError, match="x"), submit.apart(log):
        raise HpcaiError("x")
    assert log.stat().st_mode & 0o077 == 0


def test_a_snapshot_copies_what_the_links_lead_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, planned: Any) -> None:
    """A checkout has jobs/ beside src/; an installed package has it inside: the snapshots are the same."""
    installed = tmp_path / "site/hpcai"
    shutil.copytree(Path(hpcai.__file__).parent, installed, ignore=shutil.ignore_patterns("__pycache__", "*.npz"))
    here = provenance.code_digest()
    monkeypatch.setattr(provenance, "PACKAGE", installed)
    assert provenance.code_digest() == here


# --- Slurm


@pytest.fixture
def to_slurm(tiny_npz: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[FakeSlurm, RunDir, JobPlan, Config]:
    """A run that is prepared for a Slurm of paper."""
    slurm = FakeSlurm.on(tmp_path, monkeypatch)
    words = tiny_words(tiny_npz) | {"runs_dir": str(tmp_path / "runs"), "cluster": "testbed"}
    plan, config, files = make_plan(load([f"{k}='{v}'" if "/" in v else f"{k}={v}" for k, v in words.items()]))
    run = RunDir(Path(plan.run_dir))
    assert lease.take(run, 1, kind="slurm", job=None, restart=0) == 1
    submit.prepare(run, plan, config, files)
    return slurm, run, plan, config


def test_a_surrounding_jobs_variables_reach_no_sbatch_and_come_back_to_us(
    to_slurm: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    slurm, run, plan, _ = to_slurm
    for name in ("SLURM_JOB_ID", "SLURM_NTASKS", "SBATCH_HOLD", "SRUN_CPUS_PER_TASK"):
        monkeypatch.setenv(name, "3")
    before = dict(os.environ)
    assert submit.send(run, plan, 1, [[""]]) == ["101"]
    assert {k for k in slurm.seen("sbatch") if k.startswith(("SLURM_", "SBATCH_", "SRUN_"))} == {"SLURM_CONF"}
    assert dict(os.environ) == before and lease.read_owner(run, 1)["job"] == "101"


def test_what_sbatch_refuses_ends_the_life_with_the_sites_reason(to_slurm: Any) -> None:
    slurm, run, plan, _ = to_slurm
    slurm.says("sbatch", err="sbatch: error: Batch job submission failed: Invalid qos specification\n", code=1)
    with pytest.raises(PlanError, match="no such QOS"):
        submit.send(run, plan, 1, [[""]])
    assert (lease.read_state(run).state, lease.read_state(run).code) == ("failed", 3)


def test_a_job_that_sbatch_made_before_it_failed_is_no_refusal(to_slurm: Any) -> None:
    """As where the controller's answer came too late."""
    slurm, run, plan, _ = to_slurm
    slurm.says("squeue", out=f"55 {run.script}\n")
    slurm.says("sbatch", err="sbatch: error: Batch job submission failed: Socket timed out on send/recv operation\n", code=1)
    assert submit.send(run, plan, 1, [[""]]) == ["55"]
    assert lease.read_state(run).slurm_job == "55" and lease.read_state(run).state == "pending"


def test_arrays_are_sent_one_after_the_other_and_each_wave_follows_the_one_before(to_slurm: Any) -> None:
    slurm, run, plan, _ = to_slurm
    slurm.says("sbatch", script=f'echo "$@" >> {slurm.folder}/told; echo "Submitted batch job $(wc -l < {slurm.folder}/told)"')
    waves = [["--array=0-9%2", "--array=0-3%1"]] * 2
    assert submit.send(run, plan, 1, waves, ["afterok:7"]) == ["1", "2", "3", "4"]
    told = [line.rpartition(" ")[0] for line in (slurm.folder / "told").read_text().splitlines()]
    assert told == [
        f"{array} --dependency={after} --kill-on-invalid-dep=yes"
        for after in ("afterok:7", "afterany:1:2")
        for array in ("--array=0-9%2", "--array=0-3%1")
    ]
    assert lease.read_owner(run, 1)["chain"] == ["1", "2", "3", "4"]


def test_a_chain_that_breaks_off_keeps_what_was_sent(to_slurm: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    slurm, run, plan, config = to_slurm
    chain = config.model_copy(update={"cluster": config.cluster.model_copy(update={"chain": 3})})
    once = f'test -e {slurm.folder}/once && exit 1; touch {slurm.folder}/once; echo "Submitted batch job 41"'
    slurm.says("sbatch", script=once)
    assert submit.send(run, plan, 1, [[""]] * submit.chain(chain)) == ["41"]
    assert lease.read_state(run).chain == ("41",)


def test_the_life_of_a_job_that_was_faster_than_its_submitter_stays_that_ones(to_slurm: Any) -> None:
    _, run, _, _ = to_slurm
    assert lease.claim(run, 1, "9 0")
    lease.give_to_job(run, 1, "9")
    lease.give_to_job(run, 1, "10", ["10"])
    assert lease.read_owner(run, 1)["job"] == "9"
