"""`hpcai compare`: real trainings on the same cases, and everything that must not be compared."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import Launcher
from run_folders import make_run, make_sweep

from hpcai import comparison, rundir
from hpcai.cli import main
from hpcai.errors import DataError
from hpcai.metrics.paired import names
from hpcai.rundir import RunDir

Said = Callable[..., tuple[list[str], list[str]]]
SECRET = "mueller_anna"


@pytest.fixture(scope="module")
def runs(tiny_npz: Path, package: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, RunDir]]:
    """Two seeds of one configuration, a smaller one, and a prediction's stand-in."""
    launcher = Launcher(tiny_npz, tmp_path_factory.mktemp("home"), package)
    assert launcher("name=new", "seed=0,1", "-m").rc == 0
    assert launcher("name=old", "model.width=4", "trainer.epochs=1").rc == 0
    new = sorted(launcher.runs.glob("new-*"), key=lambda path: comparison.read_config(RunDir(path)).seed)
    yield {"new0": RunDir(new[0]), "new1": RunDir(new[1]), "old": launcher.run_dir("old")}
    launcher.clean()


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str]) -> Said:
    def call(code: int, *words: Any) -> tuple[list[str], list[str]]:
        assert main(["compare", *(str(word.path) if isinstance(word, RunDir) else word for word in words)]) == code
        out, err = capsys.readouterr()
        assert "Traceback" not in err and "a fault of our own" not in err
        return out.splitlines(), err.splitlines()

    return call


def copy(run: RunDir, to: Path) -> RunDir:
    return RunDir(Path(shutil.copytree(run.path, to / run.path.name)))


def rows(run: RunDir, change: Callable[[dict[str, Any]], dict[str, Any] | None]) -> RunDir:
    """Its test rows, each as `change` has it."""
    lines = [new for line in rundir.read_lines(run.rows_file("test", 0)) if (new := change(dict(line))) is not None]
    run.rows_file("test", 0).write_text("".join(json.dumps(line) + "\n" for line in lines))
    return run


def test_what_differs_is_told_and_no_verdict_without_a_margin(runs: dict[str, RunDir], said: Said) -> None:
    out, err = said(0, runs["new0"], runs["old"])
    assert err == [] and "test: the same 24 cases, no patient ids" in out[0]
    assert "differs  model.width: 8 | 4" in out and "differs  trainer.epochs: 2 | 1" in out
    assert "alike    data, split, code, versions" in out
    assert out[-1].startswith("no verdict: state what loss would not matter")
    assert not any("inferior" in line for line in out)


def test_one_run_has_the_interval_that_its_report_has(runs: dict[str, RunDir], said: Said) -> None:
    told = json.loads("\n".join(said(0, runs["new0"], runs["old"], "--json")[0]))
    report = rundir.read_json(runs["new0"].report_json)
    (auc,) = [e for e in report["estimates"] if (e["split"], e["name"]) == ("test", "auc")]
    score = told["sides"][0]["scores"][0]
    assert (score["mean"], score["low"], score["high"]) == (auc["value"], auc["low"], auc["high"])
    assert [d["name"] for d in told["differences"]] == names(2) and told["gate"] is None
    difference = told["differences"][0]
    assert difference["value"] == pytest.approx(difference["first"] - difference["second"]) and difference["verdict"] is None


def test_seeds_are_one_side_with_their_spread(runs: dict[str, RunDir], said: Said) -> None:
    out, _ = said(0, runs["new0"], runs["new1"], runs["old"])
    assert any(line.startswith("A  new-") and line.endswith("2 seeds") for line in out)
    assert any("AUC" in line and "over 2 seeds (sd " in line and "over cases" in line for line in out)
    told = json.loads("\n".join(said(0, runs["new0"], runs["new1"], "--json")[0]))
    assert len(told["sides"]) == 1 and told["differences"] == [] and told["sides"][0]["seeds"] == [0, 1]


def test_with_a_gate_the_last_run_is_the_baseline_even_of_its_own_kind(runs: dict[str, RunDir], said: Said) -> None:
    told = json.loads("\n".join(said(0, runs["new0"], runs["new1"], "--margin", "auc:0.5", "--json")[0]))
    assert [side["seeds"] for side in told["sides"]] == [[0], [1]] and told["baseline"] == "B"


def test_a_gate_that_is_met_exits_0_and_one_that_is_not_exits_6(runs: dict[str, RunDir], said: Said) -> None:
    out, err = said(0, runs["new0"], runs["old"], "--gate", "auc:0.5")
    assert err == [] and any("non-inferior by 0.5" in line for line in out)
    out, err = said(6, runs["new0"], runs["old"], "--gate", "specificity:0.0001", "--gate", "sensitivity:0.0001", "--json")
    assert len(err) == 2 and all("not shown non-inferior by 0.0001: too few cases" in line for line in err)
    assert err[0].startswith("--gate=sensitivity:0.0001: new-")
    told = json.loads("\n".join(out))
    assert told["gate"] == {"met": False, "margins": {"specificity": 0.0001, "sensitivity": 0.0001}}
    assert [d["verdict"] for d in told["differences"]] == [None, "not shown", "not shown", None]


def test_a_worse_run_is_called_inferior(runs: dict[str, RunDir], tmp_path: Path, said: Said) -> None:
    worse = rows(copy(runs["new0"], tmp_path), lambda row: row | {"scores": [float(row["label"]), 1.0 - row["label"]]})
    right = rows(copy(runs["new1"], tmp_path), lambda row: row | {"scores": [1.0 - row["label"], float(row["label"])]})
    _, err = said(6, worse, right, "--gate", "accuracy:0.05")
    assert "is inferior by more than 0.05" in err[0] and "Take the baseline" in err[0]


def test_a_copy_of_a_run_differs_from_it_nowhere(runs: dict[str, RunDir], tmp_path: Path, said: Said) -> None:
    out, _ = said(0, copy(runs["old"], tmp_path), runs["old"], "--gate", "auc:0.01")
    assert sum("0.000  [0.000, 0.000]  equal scores on every case" in line for line in out) == 4


# --- bad input


@pytest.mark.parametrize(
    "word", ["auc", "auc:", ":0.1", "auc:x", "auc:0", "auc:1", "auc:-0.1", "auc:nan", "auc:inf", "x\x1b:2"]
)
def test_what_is_no_margin_is_one_line_and_exit_2(runs: dict[str, RunDir], said: Said, word: str) -> None:
    for option in ("--margin", "--gate"):
        _, err = said(2, runs["new0"], runs["old"], option, word)
        assert len(err) == 1 and err[0].startswith(option) and "\x1b" not in err[0]


def test_unknown_measures_are_told_with_the_nearest(runs: dict[str, RunDir], said: Said) -> None:
    assert "Did you mean sensitivity?" in said(2, runs["new0"], runs["old"], "--gate", "sensitivty:0.1")[1][0]
    assert "State one of them" in said(2, runs["new0"], runs["old"], "--gate", "auc:0.1", "--margin", "auc:0.1")[1][0]
    assert "one run alone" in said(2, runs["new0"])[1][0]


def test_other_cases_labels_and_data_are_refused_without_their_names(
    runs: dict[str, RunDir], tmp_path: Path, said: Said
) -> None:
    one, two, three, four = (copy(runs["new0"], tmp_path / str(i)) for i in range(4))
    rows(one, lambda row: row if row["case"] not in ("test/0", "test/1") else None)
    rows(one, lambda row: row | {"case": f"{SECRET}{row['case']}"} if row["case"].endswith("3") else row)
    lost = len({row["case"] for row in rundir.read_lines(runs["old"].rows_file("test", 0))}
               & {row["case"] for row in rundir.read_lines(one.rows_file("test", 0))})  # fmt: skip
    rows(two, lambda row: row | {"label": 1 - row["label"]})
    data = rundir.read_json(three.data)
    data["files"][0]["sha256"] = "0" * 64
    rundir.write_json(three.data, data)
    rows(four, lambda row: row | {"patient": SECRET})
    _, err = said(4, one, runs["old"])
    assert f"were judged on different cases, test and test: {lost} of " in err[0]
    assert "have other labels for 24 of 24 cases" in said(4, two, runs["old"])[1][0]
    assert "read different data" in said(4, three, runs["old"])[1][0]
    told = said(4, four, runs["old"])[1][0]
    assert "other patients" in told and SECRET not in told + err[0]


@pytest.mark.parametrize("version", [0, 99, None, "2", [1]])
def test_a_report_of_another_version_exits_4(runs: dict[str, RunDir], tmp_path: Path, said: Said, version: Any) -> None:
    run = copy(runs["new0"], tmp_path)
    report = rundir.read_json(run.report_json)
    rundir.write_json(run.report_json, report | {"version": version})
    _, err = said(4, run, runs["old"])
    assert len(err) == 1 and "run=new-" in err[0] and "version" in err[0]


@pytest.mark.parametrize(("name", "text", "code"), [
    ("report.json", "{", 4), ("report.json", "[]", 4), ("threshold.json", "{", 5), ("threshold.json", '{"value": 1}', 5),
    ("data.json", "3", 5), ("split.json", "{", 5), ("rows/test.rank0.jsonl", "{}\n", 5), ("rows/test.rank0.jsonl", "", 5),
    ("config.yaml", "a: [", 3), ("environment.json", "x", 5),
])  # fmt: skip
def test_damaged_files_are_one_line(
    runs: dict[str, RunDir], tmp_path: Path, said: Said, name: str, text: str, code: int
) -> None:
    run = copy(runs["new0"], tmp_path)
    (run.path / name).write_text(text)
    _, err = said(code, run, runs["old"])
    assert len(err) == 1 and run.path.name in err[0]


def test_runs_without_scores_are_refused_with_what_to_do(runs: dict[str, RunDir], tmp_path: Path, said: Said) -> None:
    make_run(tmp_path / "stopped-1", "stopped")
    assert "hpcai resume stopped-1" in said(3, str(tmp_path / "stopped-1"), runs["old"])[1][0]
    predicted = copy(runs["new0"], tmp_path)
    config = yaml.safe_load(predicted.config.read_text()) | {"job": "predict", "from_run": "x"}
    predicted.config.write_text(yaml.safe_dump(config))
    assert "is a prediction, without labels to judge it by. Name runs of train, fit," in said(3, predicted, runs["old"])[1][0]
    sweep = make_sweep(tmp_path, [make_run(tmp_path / "m-1")])
    assert "m-1" in said(2, str(sweep.path), runs["old"])[1][0]


def test_many_runs_are_each_told_from_the_last(runs: dict[str, RunDir]) -> None:
    given = [comparison.read(runs[name]) for name in ("old", "new0", "new1")]
    told = comparison.compare(given, {})
    assert [len(side.runs) for side in told.sides] == [1, 2] and [side.letter for side, _ in told.found] == ["A"]
    assert told.config["model.width"] == [4, 8, 8] and "model.width" in told.decides
    with pytest.raises(DataError):
        comparison.compare([given[0], comparison.Run(**{**vars(given[1]), "data": ["x"]})], {})
