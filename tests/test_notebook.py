"""`hpcai.open_run`: config, state, report and tables of a run, as a notebook reads them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from conftest import Launcher
from run_folders import make_run, make_sweep, validated

import hpcai
from hpcai import lease, rundir
from hpcai.errors import ConfigError, DataError, HpcaiError, PlanError, RunError
from hpcai.notebook import METRICS
from hpcai.rundir import RunDir


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunDir:
    """A completed run `x-1` below `runs`, seen from beside it."""
    monkeypatch.chdir(tmp_path)
    return make_run(tmp_path / "runs" / "x-1")


def row(case: str, label: int | None, *scores: float, **more: Any) -> dict[str, Any]:
    return {"case": case, "label": label, "scores": list(scores), **more}


# --- which run


def test_a_run_is_opened_by_folder_name_or_a_beginning(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("x", "x-1", "runs/x-1", run.path, str(run.path)):
        assert hpcai.open_run(name).dir == run
    monkeypatch.chdir("/")
    assert hpcai.open_run("x", runs_dir=run.path.parent).dir == run


@pytest.mark.parametrize(("name", "said"), [
    ("y-1", "run=y-1: no such run or sweep in runs. Did you mean x-1?"),
    ("", "run=: names nothing."),
    ("runs/../..", "run=runs/../..: is no folder of a run or a sweep."),
    ("a\nb\0", "run=a?b?: names nothing."),
    ("grid", "sweep=grid-11111111: is a sweep. Open one of its members: x-1."),
])  # fmt: skip
def test_what_is_no_run_is_refused_with_a_clear_error(run: RunDir, name: str, said: str) -> None:
    make_sweep(run.path.parent, [run])
    with pytest.raises(ConfigError) as e:
        hpcai.open_run(name)
    assert e.value.lines[0].startswith(said)


def test_hpcai_itself_stays_light(tmp_path: Path) -> None:
    code = "import sys, hpcai; hpcai.open_run; print({'numpy', 'polars', 'hpcai.notebook', 'pydantic'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"


def test_without_polars_the_tables_alone_say_what_to_install(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "polars", None)
    opened = hpcai.open_run("x")
    assert opened.state.state == "completed" and opened.config["seed"] == 0
    for table in (opened.metrics, lambda: opened.rows("test")):
        with pytest.raises(ConfigError, match=r"^polars: is not installed\. Type pip install 'hpcai\[notebook\]'\.$"):
            table()


# --- facts


def test_config_state_and_report_are_read_anew_at_each_look(run: RunDir) -> None:
    opened = hpcai.open_run("x")
    assert opened.config["trainer"] == {"epochs": 10, "max_steps": None}
    assert opened.report is None and repr(opened) == "<run x-1: completed>"
    report = {"version": 2, "answer": "größe", "estimates": [], "warnings": [], "threshold": None}
    rundir.write_json(run.report_json, report)
    lease.take(run, 1)
    assert opened.report == report and opened.state.state == "pending"


@pytest.mark.parametrize("garbage", [b"{", b"\xff\xff"])
def test_damaged_files_are_a_fault_of_one_line(run: RunDir, garbage: bytes) -> None:
    for file in (run.config, run.report_json):
        rundir.write_bytes(file, garbage)
    for file in (run.metrics, run.rows_file("test", 0)):
        rundir.write_bytes(file, garbage + b"\n")
    opened = hpcai.open_run("x")
    for look, kind in ((lambda: opened.config, PlanError), (lambda: opened.report, DataError), (opened.metrics, PlanError),
                       (lambda: opened.rows("test"), RunError)):  # fmt: skip
        with pytest.raises(HpcaiError) as e:
            look()
        assert isinstance(e.value, kind) and len(e.value.lines) == 1


# --- tables


def test_metrics_has_the_same_columns_whatever_the_lines_hold(run: RunDir) -> None:
    opened = hpcai.open_run("x")
    empty = opened.metrics()
    assert empty.columns == list(METRICS) and empty.height == 0
    validated(run, 0.7, None)
    table = opened.metrics()
    assert table.schema == empty.schema and table.height == 4
    assert table.filter(pl.col("kind") == "val")["auc"].to_list() == [0.7, None]
    assert table["samples_s"].to_list() == [9.0, None, 9.0, None]
    rundir.append_lines(run.metrics, [{"kind": "val", "step": 9, "auc": 1, "dice": 0.5}])
    assert opened.metrics().columns == [*METRICS, "dice"] and opened.metrics()["auc"].to_list()[-1] == 1.0


def test_a_torn_last_line_is_left_out(run: RunDir) -> None:
    validated(run, 0.7)
    with run.metrics.open("a") as f:
        f.write('{"kind": "va')
    assert hpcai.open_run("x").metrics().height == 2


@pytest.mark.parametrize("line", [{"step": "nine"}, {"best": 3}, {"step": {"a": 1}}])
def test_a_metric_of_another_type_is_damage(run: RunDir, line: dict[str, Any]) -> None:
    rundir.append_lines(run.metrics, [{"kind": "val", **line}])
    with pytest.raises(PlanError, match=r"^run=x-1: its metrics\.jsonl is damaged\."):
        hpcai.open_run("x").metrics()


def test_rows_are_a_table_with_a_score_for_each_class_by_name(run: RunDir) -> None:
    rundir.append_lines(
        run.rows_file("test", 0), [row("b", 1, 0.25, 0.75, patient="p"), row("a", None, 0.5, 0.5, patient=None)]
    )
    rundir.append_lines(run.rows_file("test", 1), [row("b", 0, 1.0, 0.0)])
    table = hpcai.open_run("x").rows("test")
    assert table.schema == {
        "case": pl.String, "patient": pl.String, "label": pl.Int64, "score_no": pl.Float64, "score_yes": pl.Float64
    }  # fmt: skip
    assert table.rows() == [("a", None, None, 0.5, 0.5), ("b", "p", 1, 0.25, 0.75)]


def test_columns_are_stable_where_no_patient_or_label_is_known(run: RunDir) -> None:
    rundir.append_lines(run.rows_file("predict", 0), [row("a", None, 0.5, 0.5)])
    table = hpcai.open_run("x").rows("predict")
    assert table.schema["patient"] == pl.String and table.schema["label"] == pl.Int64
    assert table.columns == ["case", "patient", "label", "score_no", "score_yes"]


@pytest.mark.parametrize(("labels", "columns"), [
    ("['case', 'label']", ["score_case", "score_label"]),
    ("['a', 'b', 'c']", ["score_0", "score_1"]),
    ("['a', 'a']", ["score_0", "score_1"]),
    ("7", ["score_0", "score_1"]),
])  # fmt: skip
def test_class_names_never_clash_with_other_columns(run: RunDir, labels: str, columns: list[str]) -> None:
    run.config.write_text(f"data:\n  labels: {labels}\n")
    rundir.append_lines(run.rows_file("test", 0), [row("a", 1, 0.5, 0.5)])
    assert hpcai.open_run("x").rows("test").columns == ["case", "patient", "label", *columns]


def test_a_split_without_rows_is_told_with_those_that_have_some(run: RunDir) -> None:
    rundir.append_lines(run.rows_file("test", 0), [row("a", 1, 0.5, 0.5)])
    rundir.write_bytes(run.rows_file("val", 0), b"")
    with pytest.raises(ConfigError, match=r"^split=tset: run=x-1 has no rows of it\. Did you mean test\?$"):
        hpcai.open_run("x").rows("tset")
    with pytest.raises(ConfigError, match=r"^split=\.\./x: run=x-1 has no rows of it\."):
        hpcai.open_run("x").rows("../x")
    with pytest.raises(DataError):
        hpcai.open_run("x").rows("val")


@pytest.mark.slow
def test_a_real_training_is_read_whole(train: Launcher) -> None:
    assert train(OMP_NUM_THREADS="1").rc == 0
    opened = hpcai.open_run("tiny", runs_dir=train.runs)
    assert opened.state.state == "completed" and opened.report is not None
    metrics = opened.metrics()
    assert metrics.columns == list(METRICS) and set(metrics["kind"]) == {"train", "val"}
    rows = opened.rows("test")
    assert rows.height == 24 and rows.columns == ["case", "patient", "label", "score_no", "score_yes"]
    assert ((rows["score_no"] + rows["score_yes"] - 1).abs() < 1e-6).all()
    assert opened.config["data"]["labels"] == ["no", "yes"]
