"""A user's own model, installed as a package, trained by the launcher and used by predict."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import plugin
import pytest
from training_kit import run_in, words, write_npz

from hpcai.rundir import read_json

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the installed plug-in and a run of its model."""
    home = tmp_path_factory.mktemp("plugin")
    plugin.install(home / "site")
    done = ask(home, "model.name=example_patches", "model.options.patch=3")
    assert done.returncode == 0, done.stderr
    return home


def ask(home: Path, *more: str) -> subprocess.CompletedProcess[str]:
    data = home / "data.npz"
    args = words(data if data.exists() else write_npz(data), home / "runs", *more)
    environ = {**os.environ, "PYTHONPATH": str(home / "site")}
    start = [sys.executable, "-P", "-m", "hpcai.run", *args]
    return subprocess.run(start, env=environ, capture_output=True, text=True, timeout=120, check=False)


def test_an_installed_model_trains_by_its_name(trained: Path) -> None:
    run = run_in(trained / "runs")
    assert run.report_html.is_file()
    assert "hpcai-example" in read_json(run.environment)["versions"]  # a new version of the plug-in is another run


def test_a_trained_plugin_model_predicts(trained: Path) -> None:
    name = run_in(trained / "runs").path.name
    done = ask(trained, "name=p", "job=predict", f"from_run={name}")
    assert done.returncode == 0, done.stderr
    assert "cases scored" in done.stdout


def test_options_of_a_plugin_model_are_checked_before_anything_starts(trained: Path) -> None:
    wrong = ask(trained, "model.name=example_patches", "model.options={patch: 0, wide: 3}")
    assert wrong.returncode == 2
    assert "model.options.patch=0" in wrong.stderr and "model.options.wide" in wrong.stderr
