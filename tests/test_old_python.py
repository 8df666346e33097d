"""Under an old Python hpcai says in words what to do. What such a Python reads first keeps to the words of 3.6."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent.parent / "src" / "hpcai"
READ_FIRST = ("__init__.py", "run.py")
# Runs the rest of its words as an interpreter of version 3.6 would: without site-packages, as on a login node.
FAKE = "import sys, runpy; sys.version_info = (3, 6, 8, 'final', 0); how, what, *sys.argv[1:] = sys.argv[1:]; "
FAKE += "runpy.run_path(what, run_name='__main__') if how == 'file' else runpy.run_module(what, run_name='__main__')"


def unknown_to_3_6(source: str) -> list[str]:
    """Why Python 3.6 cannot parse this; nothing if it can."""
    try:
        tree = ast.parse(source, feature_version=(3, 6))
    except SyntaxError as e:
        return [f"line {e.lineno}: {e.msg}"]
    future = [n for n in tree.body if isinstance(n, ast.ImportFrom) and n.module == "__future__"]
    return [f"line {n.lineno}: __future__.{a.name}" for n in future for a in n.names if a.name == "annotations"]


def old(folder: Path, how: str, what: str, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-S", "-E", "-s", "-c", FAKE, how, what, *words]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """What a login node has: src/ and slurm/setup/."""
    for file in (*READ_FIRST, "worker.py"):
        (tmp_path / "src/hpcai").mkdir(parents=True, exist_ok=True)
        shutil.copy(SOURCE / file, tmp_path / "src/hpcai" / file)
    (tmp_path / "slurm/setup").mkdir(parents=True)
    (tmp_path / "slurm/setup/meluxina-install.sh").touch()
    return tmp_path


@pytest.mark.parametrize("file", READ_FIRST)
def test_what_an_old_python_reads_first_can_be_parsed_by_it(file: str) -> None:
    assert unknown_to_3_6((SOURCE / file).read_text("utf-8")) == []


@pytest.mark.parametrize(
    "line", ["from __future__ import annotations", "if (x := 1): pass", "def f(a, /): pass", "match x:\n case 1: pass"]
)
def test_words_that_3_6_does_not_know_are_found(line: str) -> None:
    assert unknown_to_3_6(line)


@pytest.mark.parametrize(("how", "what", "where"), [
    ("file", "src/hpcai/run.py", "."), ("module", "hpcai.run", "src"), ("module", "hpcai.worker", "src"),
])  # fmt: skip
def test_old_python_is_told_which_script_to_run(checkout: Path, how: str, what: str, where: str) -> None:
    done = old(checkout / where, how, what, "+experiment=smoke")
    script = checkout.resolve() / "slurm/setup/meluxina-install.sh"
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr.splitlines() == [
        f"hpcai needs Python 3.11 or newer; this is 3.6. On a login node of MeluXina: bash {script}. "
        "Elsewhere start it with a newer one."
    ]


def test_without_a_checkout_no_script_is_named(checkout: Path) -> None:
    shutil.rmtree(checkout / "slurm")
    done = old(checkout, "file", "src/hpcai/run.py")
    assert (done.returncode, done.stderr) == (
        3,
        "hpcai needs Python 3.11 or newer; this is 3.6. Please start it with a newer one.\n",
    )


def test_a_new_python_starts_run_py_by_its_path(tmp_path: Path) -> None:
    """Its own folder holds a queue.py and must not hide the standard library's."""
    code = f"import runpy, sys; sys.path.insert(0, {str(SOURCE)!r}); sys.argv = ['run.py', '--version']\n"
    code += f"try: runpy.run_path({str(SOURCE / 'run.py')!r}, run_name='__main__')\n"
    code += "finally: import queue; print(queue.SimpleQueue.__module__)"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines()[1:] == ["_queue"] and done.returncode == 0, done.stderr
