"""Installs tests/example_plugin into a folder of its own, as a user's environment would have it."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

SOURCE = Path(__file__).parent / "example_plugin"


def install(target: Path) -> None:
    """With pip where setuptools can build offline, else by hand. Put `target` on PYTHONPATH to use it."""
    if importlib.util.find_spec("pip") and importlib.util.find_spec("setuptools"):
        source = shutil.copytree(SOURCE, target.parent / f"{target.name}-source")  # setuptools builds inside the source
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--no-build-isolation"]
        subprocess.run([*command, "--target", str(target), str(source)], check=True, capture_output=True, timeout=120)
    else:
        install_by_hand(target)


def install_by_hand(target: Path) -> None:
    """What pip would write, as far as importlib.metadata reads it."""
    project = tomllib.loads((SOURCE / "pyproject.toml").read_text())["project"]
    shutil.copytree(SOURCE / "hpcai_example", target / "hpcai_example")
    info = target / f"hpcai_example-{project['version']}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    groups = project["entry-points"].items()
    text = "".join(f"[{group}]\n" + "".join(f"{k} = {v}\n" for k, v in entries.items()) for group, entries in groups)
    (info / "entry_points.txt").write_text(text)
