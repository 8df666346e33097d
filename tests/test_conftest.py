"""The rule that a demanded test may not be skipped, tried on a planted file."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

PLANTED = """
import pytest

@pytest.mark.mpi
def test_demanded():
    pytest.skip("a reason")

@pytest.mark.gpu
def test_gpu():
    pytest.skip("no device")

@pytest.mark.mpi
@pytest.mark.xfail(reason="known", strict=True)
def test_known():
    assert False

def test_unmarked():
    pytest.skip("why")
"""


@pytest.mark.slow
@pytest.mark.parametrize(("require", "failed"), [
    ("browser", set()), ("gpu,mpi", {"test_demanded", "test_gpu"}), ("all", {"test_demanded", "test_unmarked"}),
])  # fmt: skip
def test_a_demanded_test_that_skips_fails_and_says_why(tmp_path: Path, require: str, failed: set[str]) -> None:
    file = tmp_path / "test_planted.py"
    file.write_text(PLANTED)
    here = Path(__file__).parent
    code = (  # every need is met here: what skips, skips by itself
        "import sys, pytest, conftest; conftest.NEEDS.update(dict.fromkeys(conftest.NEEDS, lambda: None)); "
        "sys.exit(pytest.main(sys.argv[1:], plugins=[conftest]))"
    )
    words = ["-p", "no:cacheprovider", "-rf", "-c", str(here.parent / "pyproject.toml"), "--rootdir", str(tmp_path), str(file)]
    env = {**os.environ, "PYTHONPATH": str(here), "HPCAI_REQUIRE": require}
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, env=env, timeout=60)
    assert {w.partition("::")[2].split()[0] for w in done.stdout.splitlines() if w.startswith("FAILED")} == failed, done.stdout
    assert done.returncode == bool(failed)
    if "test_demanded" in failed:
        assert "skipped: Skipped: a reason" in done.stdout
