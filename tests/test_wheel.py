"""A wheel, no checkout: the same product from an empty folder."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds the installed wheel and nothing else."""
    folder = tmp_path_factory.mktemp("wheel")
    source, pip = folder / "source", [sys.executable, "-m", "pip", "-q"]
    source.mkdir()  # a copy: setuptools leaves build/ beside its source, and packs what lies in it the next time
    for name in ("src", "jobs", "configs", "slurm"):
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    subprocess.run([*pip, "wheel", "--no-deps", "-w", folder, source], check=True, capture_output=True, timeout=250)
    (wheel,) = folder.glob("*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--target", folder / "site", wheel], check=True, timeout=100)
    return folder / "site"


def ask(installed: Path, cwd: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environ = {**os.environ, "PYTHONPATH": str(installed)}
    return subprocess.run(words, cwd=cwd, env=environ, capture_output=True, text=True, timeout=200, check=False)


def test_wheel_holds_configs_jobs_data_and_their_licences(installed: Path) -> None:
    (wheel,) = installed.parent.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    for name in (
        "hpcai/jobs/train.py",
        "hpcai/configs/experiment/pneumonia.yaml",
        "hpcai/report/report.html.j2",
        "hpcai/report/parts/flow.html.j2",
        "hpcai/report/schema.json",
        "hpcai/report/checklists.yaml",
        "hpcai/shipped/pneumoniamnist/pneumoniamnist.npz",
        "hpcai/shipped/pneumoniamnist/LICENSE.txt",
        "hpcai/py.typed",
    ):
        assert name in names
    assert not [n for n in names if n.startswith(("jobs/", "configs/", "tests/"))]


@pytest.mark.parametrize("start", [("-P", "-m", "hpcai.run"), ("-P", "-m", "hpcai.cli", "run")])
def test_wheel_trains_in_an_empty_folder(installed: Path, tmp_path: Path, start: tuple[str, ...]) -> None:
    done = ask(installed, tmp_path, sys.executable, *start, "+experiment=smoke", "resources.cpus_per_task=1")
    assert done.returncode == 0, done.stderr
    (report,) = tmp_path.glob("runs/smoke-*/report.html")
    assert "test AUC" in done.stdout and str(report.relative_to(tmp_path)) in done.stdout
    frozen = report.parent / "code/hpcai"
    assert (frozen / "jobs/train.py").read_bytes() == (installed / "hpcai/jobs/train.py").read_bytes()


def test_config_dir_adds_a_users_own_experiment(installed: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine folder/experiment/own.yaml"
    mine.parent.mkdir(parents=True)
    text = "# @package _global_\n# Mine.\ndefaults: [{override /data: pneumoniamnist}, _self_]\nname: own\nseed: 7\n"
    mine.write_text(text)
    words = ["+experiment=own", "--config-dir", "mine folder", "--cfg", "job"]
    done = ask(installed, tmp_path, sys.executable, "-P", "-m", "hpcai.run", *words)
    assert done.returncode == 0, done.stderr
    assert "seed: 7" in done.stdout and "name: own" in done.stdout
    shown = ask(installed, tmp_path, sys.executable, "-P", "-m", "hpcai.run", "--help", "--config-dir", "mine folder")
    assert "own" in shown.stdout and "pneumonia" in shown.stdout
