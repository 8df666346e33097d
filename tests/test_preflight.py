"""Is a node fit: every fault is found, told in one line with its cure and written as a verdict, whatever hangs or is broken."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hpcai import preflight
from hpcai.preflight import Check, torch_variant, wheel_advice, wheel_cuda
from hpcai.rundir import write_json

SCRIPT = Path(__file__).parent.parent / "slurm" / "preflight.sh"
TORCH = {"torch": "2.13.0+cu126", "cuda": "12.6", "hip": None, "nccl": "2.28.9", "gpus": 4}
FIELDS = "{i}, 31, 0, 560.35.03, NVIDIA A100-SXM4-40GB"
HEALTHY = [FIELDS.format(i=i) for i in range(4)]
FAKE_TORCH = """
import types
__version__ = "2.13.0+cu126"
version = types.SimpleNamespace(cuda="12.6", hip=None)
nccl = types.SimpleNamespace(version=lambda: (2, 28, 9))
cuda = types.SimpleNamespace(nccl=nccl, is_available=lambda: True, device_count=lambda: 4)
distributed = types.SimpleNamespace(is_nccl_available=lambda: True)
"""


@pytest.fixture
def nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """nvidia_smi(rows): a driver's program that says so, first on PATH."""
    bin_dir = tmp_path / "bin"

    def make(rows: list[str], *, cuda: str = "12.6", code: int = 0, last: str = "") -> Path:
        bin_dir.mkdir(exist_ok=True)
        file = bin_dir / "nvidia-smi"
        header = f"| NVIDIA-SMI 560.35.03    Driver Version: 560.35.03    CUDA Version: {cuda}   |"
        rest = [header, "EOF", ";;", "esac", last, f"exit {code}"]
        lines = ["#!/bin/sh", 'case "$1" in --query-gpu=*)', "cat <<'EOF'", *rows, "EOF", ";;", "*)", "cat <<'EOF'", *rest]
        file.write_text("\n".join(lines) + "\n")
        file.chmod(0o755)
        return bin_dir

    monkeypatch.setenv("PATH", f"{bin_dir}:{os.environ.get('PATH', '/usr/bin:/bin')}")
    return make


def gpus(wanted: int = 4, **torch: Any) -> dict[str, Check]:
    return {check.name: check for check in preflight.gpus(wanted, TORCH | torch)}


def bad(checks: dict[str, Check]) -> dict[str, str]:
    return {name: check.words for name, check in checks.items() if not check.ok}


# --- which torch a driver can run


@pytest.mark.parametrize(("cuda", "variant"), [
    ("12.6", "cu126"), ("12.7", "cu126"), ("12.9", "cu128"), ("13.0", "cu130"), ("13.4", "cu130"), ("15.0", "cu130"),
    ("12.2", "cu126"),  # a newer minor version runs on the same major one
    ("11.2", "cu118"), ("10.2", None), ("", None), ("new", None),
])  # fmt: skip
def test_the_build_of_torch_follows_the_driver(cuda: str, variant: str | None) -> None:
    assert torch_variant(cuda) == variant


@pytest.mark.parametrize(("driver", "wheel"), [
    ("12.6", "12.6"), ("12.6", "12.8"), ("13.0", "12.6"), ("12.6", "11.8"), (None, "13.0"), ("12.6", None), ("U", "13.0"),
])  # fmt: skip
def test_nothing_is_advised_where_torch_runs_or_nobody_knows(driver: str | None, wheel: str | None) -> None:
    assert wheel_advice(driver, wheel) is None


def test_a_wheel_that_is_too_new_gets_the_variant_to_install() -> None:
    said = wheel_advice("12.6", "13.0")
    assert said == (
        "torch is built for CUDA 13.0; the GPUs' driver runs CUDA up to 12.6. "
        "Install its cu126 build (pip's --extra-index-url; PyTorch's install page names the index)."
    )
    assert "is a build without CUDA" in str(wheel_advice("12.6", ""))
    assert "Ask the site for a newer driver" in str(wheel_advice("10.1", "12.6"))


@pytest.mark.parametrize(("line", "cuda"), [
    ("cuda: Optional[str] = '13.0'", "13.0"), ("cuda = '12.6'", "12.6"), ("cuda: Optional[str] = None", ""), ("x = 1", None),
])  # fmt: skip
def test_the_cuda_of_a_wheel_is_read_without_importing_it(tmp_path: Path, line: str, cuda: str | None) -> None:
    file = tmp_path / "lib/python3.12/site-packages/torch/version.py"
    file.parent.mkdir(parents=True)
    file.write_text(f"from typing import Optional\n__version__ = '2.13.0'\ncuda_like = '9'\n{line}\n")
    assert wheel_cuda(str(tmp_path / "bin/python3")) == cuda
    assert wheel_cuda(str(tmp_path / "elsewhere/bin/python3")) is None


def test_the_cuda_of_this_very_wheel_is_found() -> None:
    import torch

    assert wheel_cuda(sys.executable) == (torch.version.cuda or "")


# --- GPUs


def test_healthy_gpus_pass(nvidia_smi: Callable[..., Path]) -> None:
    nvidia_smi(HEALTHY)
    checks = gpus()
    assert bad(checks) == {} and set(checks) == {"gpus", "gpu_errors", "gpu_heat", "driver"}
    assert checks["driver"].found == "driver 560.35.03 runs CUDA up to 12.6; torch is built for 12.6"


def test_a_run_without_gpus_asks_no_driver(nvidia_smi: Callable[..., Path], tmp_path: Path) -> None:
    nvidia_smi([], last=f"touch '{tmp_path}/asked'")
    assert bad(gpus(0)) == {} and not (tmp_path / "asked").exists()


@pytest.mark.parametrize(("rows", "name", "said"), [
    (HEALTHY[:3], "gpus", "gpus=3: 4 are asked for."),
    ([], "gpus", "gpus=0: 4 are asked for."),
    ([*HEALTHY[:3], "3, 31, 2, 560.35.03, A100"], "gpu_errors", "gpu_errors: GPU 3: 2 uncorrected memory errors"),
    ([*HEALTHY[:3], "3, 31, [Unknown Error], 560.35.03, A100"], "gpu_errors", "GPU 3: [Unknown Error]"),
    ([*HEALTHY[:3], "3, 96, 0, 560.35.03, A100"], "gpu_heat", "gpu_heat: GPU 3: 96 degrees C"),
])  # fmt: skip
def test_sick_gpus_are_named(nvidia_smi: Callable[..., Path], rows: list[str], name: str, said: str) -> None:
    nvidia_smi(rows)
    (found,) = (words for check, words in bad(gpus()).items() if check == name)
    assert found.startswith(said) or said in found
    assert found.endswith("sbatch --exclude={node} goes elsewhere.")


def test_gpus_that_count_no_errors_pass(nvidia_smi: Callable[..., Path]) -> None:
    nvidia_smi(["0, 31, [N/A], 560.35.03, NVIDIA T4"])
    assert bad(gpus(1)) == {}


def test_a_driver_that_hangs_is_a_fault_within_its_time(
    nvidia_smi: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    nvidia_smi(HEALTHY, last="exec sleep 600")
    monkeypatch.setattr(preflight, "SMI_S", 0.5)
    before = time.monotonic()
    assert bad(gpus())["gpus"].startswith("gpus: nvidia-smi: no answer in 0.5 s.")
    assert time.monotonic() - before < 60


def test_a_driver_that_fails_is_cited(nvidia_smi: Callable[..., Path]) -> None:
    nvidia_smi(["NVIDIA-SMI has failed because it could not talk to the driver."], code=9)
    assert "has failed because it could not talk to the driver" in bad(gpus())["gpus"]


def test_no_driver_at_all_is_a_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "nvidia-smi: cannot be started" in bad(gpus())["gpus"]
    assert bad(gpus(4, hip="6.2", cuda=None)) == {}, "AMD's GPUs have no nvidia-smi: torch counts them"
    assert bad(gpus(4, hip="6.2", cuda=None, gpus=3))["gpus"].startswith("gpus=3: 4 are asked for.")


def test_torch_too_new_for_the_driver_is_told_with_its_variant(nvidia_smi: Callable[..., Path]) -> None:
    nvidia_smi(HEALTHY)
    assert "Install its cu126 build" in bad(gpus(cuda="13.0", gpus=0))["driver"]


def test_gpus_that_torch_does_not_see_are_told(nvidia_smi: Callable[..., Path]) -> None:
    nvidia_smi(HEALTHY)
    assert bad(gpus(gpus=1))["driver"].startswith("driver=560.35.03: torch uses 1 of 4 GPUs.")


def test_without_a_header_the_drivers_own_version_decides(nvidia_smi: Callable[..., Path]) -> None:
    nvidia_smi(HEALTHY, cuda="?")
    assert "runs CUDA up to 12.0" in gpus()["driver"].found


# --- disk and clock


def test_a_full_disk_is_a_fault(small_disk: Callable[[str], Path]) -> None:
    disk = small_disk("size=64k")
    check = preflight.folder("run_dir", disk, 0)
    assert not check.ok and "No space left on device" in check.words
    assert list(disk.iterdir()) == [], "what it tried with is gone again"


def test_a_disk_with_too_little_space_is_a_fault(small_disk: Callable[[str], Path]) -> None:
    check = preflight.folder("run_dir", small_disk("size=8m"), 1.0)
    assert not check.ok and "1 are needed" in check.words


def test_a_read_only_disk_is_a_fault(small_disk: Callable[[str], Path]) -> None:
    disk = small_disk("size=8m")
    if subprocess.run(["mount", "-o", "remount,ro", str(disk)], capture_output=True).returncode:
        pytest.skip("remount is not permitted here (run as root)")
    assert "Read-only file system" in preflight.folder("run_dir", disk, 0).words
    assert preflight.clock(disk).ok, "one fault is told once"


def test_a_good_folder_passes_and_keeps_nothing(tmp_path: Path) -> None:
    assert preflight.folder("run_dir", tmp_path, 0).ok and preflight.clock(tmp_path).ok
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("ahead", "ok"), [(0, True), (4, True), (60, False), (-60, False)])
def test_a_clock_that_is_off_is_a_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ahead: int, ok: bool) -> None:
    true_time = time.time
    monkeypatch.setattr(preflight.time, "time", lambda: true_time() + ahead)
    check = preflight.clock(tmp_path)
    assert check.ok == ok
    assert ok or check.words.startswith(f"clock={ahead:+d} s: ")


# --- MPI and bandwidth


def test_mpi_is_told_apart_from_processes_that_do_not_see_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(preflight, "_MPI", 'print(\'{"size": 1, "hosts": 1, "library": "Open MPI v5"}\')')
    assert preflight.mpi({}).ok, "one process"
    alone = preflight.mpi({"SLURM_STEP_NUM_TASKS": "2"})
    assert not alone.ok and "2 processes are started" in alone.words and "srun --mpi=list" in alone.words


def test_an_mpi_that_hangs_ends_in_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(preflight, "_MPI", "import time; time.sleep(600)")
    monkeypatch.setattr(preflight, "MPI_S", 0.5)
    assert "no answer in 0.5 s" in preflight.mpi({"OMPI_COMM_WORLD_SIZE": "2"}).words


def test_without_mpi4py_mpi_is_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert preflight.mpi({"SLURM_STEP_NUM_TASKS": "2"}).ok


@pytest.mark.slow
def test_bandwidth_is_measured_between_processes() -> None:
    check = preflight.bandwidth(2, "gloo", mb=1)
    assert check.ok and check.found.endswith("GB/s (gloo, 2 GPUs)"), check
    assert preflight.bandwidth(1).ok


def test_a_bandwidth_that_cannot_be_measured_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "_DEEP", "raise SystemExit('unhandled system error')")
    assert "nccl: unhandled system error" in preflight.bandwidth(2).words


# --- the script, as a job starts it


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    run = tmp_path / "a run's folder"
    write_json(run / "plan.json", {"resources": {"gpus_per_node": 4}})
    (tmp_path / "site/torch").mkdir(parents=True)
    (tmp_path / "site/torch/__init__.py").write_text(FAKE_TORCH)
    return run


def start(run: Path, *words: str, **environ: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": str(run.parent / "site"), "HPCAI_PYTHON": sys.executable, "SLURMD_NODENAME": "mel2001"}
    env.pop("SLURM_STEP_NUM_TASKS", None)
    return subprocess.run(["bash", SCRIPT, run, *words], env=env | environ, capture_output=True, text=True, timeout=120)


def verdict(run: Path) -> dict[str, Any]:
    told: dict[str, Any] = json.loads((run / "preflight/mel2001.json").read_text())
    assert {p.name for p in (run / "preflight").iterdir()} == {"mel2001.json"}, "written beside, renamed"
    return told


def test_a_fit_node_writes_its_verdict_and_exits_0(run_dir: Path, nvidia_smi: Callable[..., Path]) -> None:
    nvidia_smi(HEALTHY)
    done = start(run_dir, SLURM_JOB_ID="48211")
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    told = verdict(run_dir)
    assert (told["node"], told["job"], told["ok"]) == ("mel2001", "48211", True) and abs(told["time"] - time.time()) < 120
    assert [set(check) for check in told["checks"]] == [{"name", "ok", "found", "wanted", "words"}] * len(told["checks"])
    found = {check["name"]: check["found"] for check in told["checks"]}
    assert set(found) == {"mpi", "run_dir", "tmp", "clock", "versions", "gpus", "gpu_errors", "gpu_heat", "driver"}
    assert "torch 2.13.0+cu126, CUDA 12.6, NCCL 2.28.9" in found["versions"]


def test_an_unfit_node_says_each_fault_in_one_line_and_exits_1(run_dir: Path, nvidia_smi: Callable[..., Path]) -> None:
    nvidia_smi([*HEALTHY[:2], "2, 31, 7, 560.35.03, A100"])
    done = start(run_dir)
    lines = done.stderr.splitlines()
    assert done.returncode == 1 and len(lines) == 2
    assert (
        lines[0] == "node=mel2001: gpus=3: 4 are asked for. Tell the site's help desk; sbatch --exclude=mel2001 goes elsewhere."
    )
    told = verdict(run_dir)
    assert not told["ok"] and [c["name"] for c in told["checks"] if not c["ok"]] == ["gpus", "gpu_errors"]
    assert "{node}" not in json.dumps(told)


def test_a_frozen_copy_is_what_runs(run_dir: Path, nvidia_smi: Callable[..., Path]) -> None:
    nvidia_smi(HEALTHY)
    (run_dir / "code/hpcai").mkdir(parents=True)
    (run_dir / "code/hpcai/__init__.py").touch()
    (run_dir / "code/hpcai/preflight.py").write_text("print('frozen')")
    done = start(run_dir)
    assert (done.returncode, done.stdout) == (0, "frozen\n"), done.stderr


@pytest.mark.parametrize(("python", "code"), [
    ("import time; time.sleep(600)", "no verdict in 1 s: a file system, driver or MPI hangs."),
    ("import sys; sys.exit(3)", "ended with 3 and no verdict."),
    ("import os; os.kill(os.getpid(), 9)", "ended with 137 and no verdict."),
    ("raise ImportError", "ended with 1 and no verdict."),
])  # fmt: skip
def test_a_python_that_gives_no_verdict_gets_one(run_dir: Path, python: str, code: str) -> None:
    (run_dir / "code/hpcai").mkdir(parents=True)
    (run_dir / "code/hpcai/__init__.py").write_text(python)
    (run_dir / "preflight").mkdir()
    (run_dir / "preflight/mel2001.json").write_text('{"ok": true, "of": "an earlier start"}')
    done = start(run_dir, HPCAI_PREFLIGHT_S="1" if "sleep" in python else "60")
    told = verdict(run_dir)
    assert done.returncode == 1 and told["ok"] is False
    assert code in told["checks"][0]["words"] and code in done.stderr.splitlines()[-1]


def test_no_python_at_all_is_an_unfit_node(run_dir: Path) -> None:
    done = start(run_dir, HPCAI_PYTHON='/no"where/python3')
    assert done.returncode == 1 and "ended with 127" in verdict(run_dir)["checks"][0]["words"]


def test_a_full_disk_still_ends_in_a_line_and_exit_1(run_dir: Path, small_disk: Callable[[str], Path]) -> None:
    disk = small_disk("size=16k")
    (disk / "plan.json").write_bytes((run_dir / "plan.json").read_bytes())
    (disk / "filler").write_bytes(b"")
    with pytest.raises(OSError, match="No space"), (disk / "filler").open("wb", buffering=0) as f:
        while f.write(bytes(4096)) == 4096:
            pass
    done = start(disk, "--gpus", "0", PYTHONPATH=str(run_dir.parent / "site"))
    assert done.returncode == 1 and any(
        "cannot be written (No space left on device)" in line for line in done.stderr.splitlines()
    )


@pytest.mark.parametrize("words", [[], ["--gpus", "x"], ["--deeper"]])
def test_what_is_no_run_is_refused(tmp_path: Path, words: list[str]) -> None:
    done = start(tmp_path, *words)
    assert done.returncode == 2 and not (tmp_path / "preflight").exists()
    assert "RUN_DIR=" in done.stderr or "usage" in done.stderr
    assert subprocess.run(["bash", SCRIPT], capture_output=True, timeout=60).returncode == 2


def test_a_node_with_a_strange_name_cannot_write_elsewhere(run_dir: Path, nvidia_smi: Callable[..., Path]) -> None:
    nvidia_smi(HEALTHY)
    start(run_dir, SLURMD_NODENAME="../../x y")
    assert [p.name for p in (run_dir / "preflight").iterdir()] == [".._.._x_y.json"]
