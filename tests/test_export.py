"""The supplement: which files go, what is taken out of them, and what is refused. Real runs: tests/test_private.py."""

from __future__ import annotations

import io
import json
import os
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from report_runs import make_run
from run_folders import make_sweep

from hpcai import export, rundir
from hpcai.cli import main
from hpcai.report import write_report
from hpcai.rundir import RunDir, append_lines

HOME = "/home/erika.beispiel"
CLUSTER = {
    "name": "meluxina",
    "executor": "slurm",
    "account": "p200999",
    "mail": "erika@klinik.example",
    "python": f"{HOME}/py",
}


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    """A finished run in `runs`, all of whose files name somebody or some place."""
    made = make_run(
        tmp_path / "runs" / "pneumonia-8d2f41c0", cases_a_patient=2, runs_dir=f"{HOME}/runs", cluster=CLUSTER,
        tracking={"mlflow": f"https://erika:geheim@{CLUSTER['name']}.example/x"},
        data={"name": "Ward", "path": f"{HOME}/ward/scans.npz", "labels": ["normal", "pneumonia"], "source": "a@b.example"},
    )  # fmt: skip
    slurm = {"partition": "gpu", "qos": "q", "account": "p200999", "reservation": "klinik", "price": None}
    rundir.write_json(
        made.plan, rundir.read_json(made.plan) | {"slurm": slurm, "warnings": [f"runs_dir={HOME}/runs: is slow."]}
    )
    rundir.write_json(made.data, {"files": [{"path": f"{HOME}/ward/scans.npz", "bytes": 9, "sha256": "ab" * 32}]})
    rundir.write_json(made.path / "lives" / "0001" / "owner.json", {"host": "nodezwölf.klinik.example", "time": 1.0})
    rundir.write_json(made.runtime, {"python": "3.11", "machine": {"system": "Linux", "node": "nodezwölf"}, "packages": []})
    made.script.write_text(
        f"#!/bin/bash\n#SBATCH --account=p200999\ncd {HOME}/runs\nsrun hostname -f nodezwölf.klinik.example\n"
    )
    append_lines(
        made.cases, [{"case": "x", "split": "train", "label": 0, "patient": "patient-train-77", "groups": {}, "size": None}]
    )
    append_lines(made.metrics, [{"kind": "train", "step": 999, "epoch": 10, "loss": 0.1, "note": "patient-train-77"}])
    write_report(made)
    return made


def exported(run: RunDir, *words: str) -> dict[str, str]:
    assert main(["export", str(run.path), "-o", str(run.path.parent / "s.zip"), "--force", *words]) == 0
    with zipfile.ZipFile(run.path.parent / "s.zip") as z:
        return {name: z.read(name).decode() for name in z.namelist()}


def test_the_files_that_are_named_go_and_no_other(run: RunDir) -> None:
    (run.path / "notes.txt").write_text("mine")
    run.report_internal.write_text("patients")
    rundir.write_json(run.pictures, {"cases": {}})
    files = exported(run)
    assert list(files) == [
        "README.txt", "report.html", "report.json", "config.yaml", "plan.json", "environment.json", "runtime.json",
        "threshold.json", "metrics.jsonl", "job.sbatch",
    ]  # fmt: skip
    for name in list(files)[1:]:
        assert f"  {name}\n" in files["README.txt"]
    assert "Left out: the scores of single cases" in files["README.txt"]


def test_no_person_place_host_or_project_is_in_any_of_them(run: RunDir) -> None:
    files = exported(run)
    for name, text in files.items():
        for word in (
            "erika",
            "beispiel",
            "/home",
            "scans",
            "ward/",
            "p200999",
            "klinik",
            "nodezwölf",
            "geheim",
            "secret-",
            "patient-train",
        ):
            assert word not in text.lower(), (name, word)
        assert str(run.path.parent) not in text, name


def test_the_numbers_stay_as_they_are(run: RunDir) -> None:
    files, report = exported(run), rundir.read_json(run.report_json)
    told = json.loads(files["report.json"])
    assert (told["estimates"], told["confusion"], told["splits"]) == (
        report["estimates"],
        report["confusion"],
        report["splits"],
    )
    assert json.loads(files["threshold.json"]) == rundir.read_json(run.threshold)
    config = yaml.safe_load(files["config.yaml"])
    assert (
        config["trainer"] == yaml.safe_load(run.config.read_text("utf-8"))["trainer"]
        and config["cluster"]["account"] == "<private>"
    )
    assert "0.981" in files["report.html"] or f"{report['estimates'][0]['value']:.3f}" in files["report.html"]


def test_the_same_run_gives_the_same_bytes(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    exported(run)
    first = (run.path.parent / "s.zip").read_bytes()
    monkeypatch.setattr("time.time", lambda: 2e9)
    os.utime(run.report_json, (1, 1))
    exported(run)
    assert (run.path.parent / "s.zip").read_bytes() == first


def test_a_report_that_was_edited_to_show_ids_shows_none(run: RunDir) -> None:
    value = rundir.read_json(run.report_json)
    case = next(rundir.read_lines(run.row_files("test")[0]))["case"]
    entry = {"row": "1", "score": 0.9, "threshold": 0.5, "case": case}
    block = {"split": "test", "shown": "ids", "false_positive": [entry], "false_negative": []}
    rundir.write_json(run.report_json, value | {"mistakes": block})
    assert case not in "".join(exported(run).values())


# --- refused


def said(capsys: pytest.CaptureFixture[str], code: int, *words: str) -> str:
    assert main(["export", *words]) == code
    out, err = capsys.readouterr()
    assert "Traceback" not in err and "a fault of our own" not in err
    return (out + err).strip()


def test_what_cannot_be_exported_is_one_line(run: RunDir, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sweep = make_sweep(tmp_path / "runs", [])
    assert said(capsys, 2, str(sweep.path)) == "sweep=grid-11111111: is a sweep. Name one of its runs."
    assert said(capsys, 2, "nobody", "--runs-dir", str(tmp_path / "runs")).startswith("run=nobody: no such run")
    (tmp_path / "mine").write_text("x")
    assert "is there already. --force replaces it" in said(capsys, 3, str(run.path), "-o", str(tmp_path / "mine"))
    for damaged in (b"{", b"[]", b"{}", b'{"estimates": 3}'):
        run.report_json.write_bytes(damaged)
        assert said(capsys, 3, str(run.path), "-o", str(tmp_path / "a.zip")).startswith(
            "run=pneumonia-8d2f41c0: its report.json is"
        )
    run.report_json.unlink()
    assert "has no report.json" in said(capsys, 3, str(run.path), "-o", str(tmp_path / "a.zip"))
    assert not (tmp_path / "a.zip").exists()


@pytest.mark.parametrize("file", ["plan.json", "environment.json", "threshold.json", "config.yaml"])
def test_a_damaged_file_of_the_run_is_told_and_nothing_is_written(
    run: RunDir, tmp_path: Path, file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (run.path / file).write_bytes(b"[" if file != "config.yaml" else b"a: [")
    assert file in said(capsys, 5, str(run.path), "-o", str(tmp_path / "a.zip"))
    assert not (tmp_path / "a.zip").exists()


def test_facts_for_programs(run: RunDir, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    facts: dict[str, Any] = json.loads(said(capsys, 0, str(run.path), "--json", "-o", str(tmp_path / "a.zip")))
    assert facts["file"] == str(tmp_path / "a.zip") and facts["taken_out"] > 0 and "report.html" in facts["files"]


def test_entries_of_the_zip_have_no_time_and_no_owner() -> None:
    with zipfile.ZipFile(io.BytesIO(export.zipped({"a": b"x" * 1000, "b": b""}))) as z:
        assert {entry.date_time for entry in z.infolist()} == {export.WHEN} and z.testzip() is None
