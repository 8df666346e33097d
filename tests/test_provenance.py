"""What a run runs on: noted once on the compute nodes, and kept to. What the submitter notes: test_submit.py."""

from __future__ import annotations

from pathlib import Path

import pytest
from report_runs import make_run

from hpcai import provenance, rundir
from hpcai.errors import PlanError
from hpcai.report.folder import read_folder
from hpcai.report.summary import summarize
from hpcai.rundir import RunDir


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    run = RunDir(tmp_path / "x-1")
    run.path.mkdir()
    return run


def test_the_first_start_notes_what_it_runs_on_and_the_next_ones_keep_to_it(run: RunDir) -> None:
    provenance.keep(run)
    noted = rundir.read_json(run.runtime)
    assert noted["versions"] == provenance.versions() and {p["name"] for p in noted["packages"]} >= {"torch", "numpy"}
    before = run.runtime.stat().st_mtime_ns
    provenance.keep(run)
    assert run.runtime.stat().st_mtime_ns == before


def test_other_versions_on_the_compute_nodes_are_refused_and_named(run: RunDir) -> None:
    provenance.keep(run)
    noted = rundir.read_json(run.runtime)
    rundir.write_json(run.runtime, {**noted, "versions": {**noted["versions"], "torch": "1.0", "psutil": "0"}})
    with pytest.raises(PlanError, match=r"run=x-1: versions on the compute nodes have changed: torch 1\.0 -> ") as caught:
        provenance.keep(run)
    assert "psutil" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"versions": 3}', "\0"])
def test_a_damaged_note_is_said(run: RunDir, text: str) -> None:
    run.runtime.write_text(text)
    with pytest.raises(PlanError, match=r"its runtime\.json is damaged"):
        provenance.keep(run)


def test_the_report_of_a_run_on_slurm_names_what_its_ranks_ran_on(tmp_path: Path) -> None:
    run = make_run(tmp_path / "x-1")
    there = {"python": "3.12.99", "packages": [{"name": "torch", "version": "9.9", "licence": "BSD"}], "versions": {}}
    rundir.write_json(run.runtime, there)
    told = summarize(read_folder(run))["provenance"]
    assert (told["python"], told["packages"]) == ("3.12.99", there["packages"])
    assert told["code_sha256"] == rundir.read_json(run.environment)["code_sha256"]
