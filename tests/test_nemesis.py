"""The campaign of faults, benchmarks/nemesis.py: it draws the same again, its verdict bites, and a short one ends well."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from hpcai import lease, rundir
from hpcai.rundir import RunDir

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def nemesis(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import nemesis

    return nemesis


def test_a_seed_draws_the_same_faults_again_and_each_kind_as_often(nemesis: Any) -> None:
    kinds = list(nemesis.KINDS)
    drawn = list(nemesis.draw(3, 3 * len(kinds), kinds))
    assert drawn == list(nemesis.draw(3, 3 * len(kinds), kinds)) != list(nemesis.draw(4, 3 * len(kinds), kinds))
    assert {kind: sum(fault.kind == kind for fault in drawn) for kind in kinds} == dict.fromkeys(kinds, 3)
    assert set(nemesis.SHORT) <= set(kinds)


def ended(runs_dir: Path, lives: int = 1, sha256: str = "a", steps: tuple[int, ...] = (1, 2)) -> RunDir:
    """A run whose last life is through, by its records."""
    run = RunDir(runs_dir / "n00-1")
    for life in range(1, lives + 1):
        lease.take(run, 1, over=life - 1)
        lease.append(run, life, 0, "begin", **lease.me())
        lease.append(run, life, 0, "progress", step=2)
    lease.append(run, lives, 0, "end", code=0)
    rundir.write_json(run.model, {"sha256": sha256})
    rundir.write_json(run.threshold, 0.5)
    rundir.append_lines(run.rows_file("val", 0), [{"case": 0}])
    rundir.append_lines(run.metrics, [{"step": step, "time": 0.0} for step in steps])
    return run


@pytest.mark.parametrize(("fault", "said"), [
    ("none", None),
    ("lost", "n00: not completed"),
    ("twice", "n00: completed 2 times"),
    ("weights", "n00: other weights than undisturbed"),
    ("curve", "n00: other curve than undisturbed"),
    ("rows", "n00: other rows than undisturbed"),
    ("fence", "n00: life 1 saved "),
])  # fmt: skip
def test_the_verdict_finds_what_is_wrong(nemesis: Any, tmp_path: Path, fault: str, said: str | None) -> None:
    calm = ended(tmp_path / "calm")
    words = {"weights": {"sha256": "b"}, "curve": {"steps": (1, 2, 2)}}.get(fault, {})
    run = ended(tmp_path / "n00", lives=2, **words)
    if fault == "lost":
        (lease.life_dir(run, 2) / "rank0.jsonl").unlink()
    if fault == "twice":
        lease.append(run, 1, 0, "end", code=0)
    if fault == "rows":
        rundir.append_lines(run.rows_file("val", 0), [{"case": 0}])
    if fault == "fence":
        lease.append(run, 1, 0, "progress", step=2)
    found = nemesis.wrong(nemesis.Run("n00", tmp_path / "n00", []), calm)
    assert found == [] if said is None else len(found) == 1 and found[0].startswith(said), found


@pytest.mark.slurm
@pytest.mark.slow
@pytest.mark.fault
@pytest.mark.timeout(1200)
def test_after_a_short_campaign_no_run_is_lost_done_twice_or_other_than_undisturbed(slurm: Any) -> None:
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / "nemesis.py"), "--short", "--seed", "1"],
        capture_output=True, text=True, timeout=1100, env={**os.environ, "HPCAI_BED": str(slurm.folder)},
    )  # fmt: skip
    said = re.search(r"^none lost, none doubled, (\d+) of (\d+) identical$", done.stdout, re.MULTILINE)
    assert done.returncode == 0 and said and said[1] == said[2], done.stdout + done.stderr
