"""What exists and what it is called: found by name, never with a traceback whatever lies in a folder."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from run_folders import make_run, make_sweep, validated

from hpcai import lease, rundir, runs
from hpcai.cli import main
from hpcai.errors import ConfigError, DataError, PlanError
from hpcai.rundir import RunDir
from hpcai.watch import answer

MEMBER = {"run_id": "x-1", "run_dir": "/x-1", "label": "", "group": "", "job": "train", "needs": []}
GARBAGE: list[bytes] = [b"", b"{", b"[]", b"null", b"7", b'"x"', b"{}", b"\xff\xfe\x00", b"[" * 20_000, b'{"time": "x"}\n']


# --- listing


def test_a_run_is_a_folder_with_a_plan(tmp_path: Path) -> None:
    made = [make_run(tmp_path / name).path for name in ("b-2", "a-1")]
    make_sweep(tmp_path, [])
    (tmp_path / "half-3").mkdir()
    (tmp_path / "file").write_text("")
    make_run(tmp_path / ".gone-4.removed-1-1")
    assert [run.path for run in runs.run_folders(tmp_path)] == sorted(made)


def test_where_there_is_no_folder_there_are_no_runs(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "nowhere", tmp_path / "file"):
        assert runs.run_folders(folder) == [] and list(runs.sweep_folders(folder)) == []


# --- state


@pytest.mark.parametrize("state", ["new", "pending", "running", "completed", "stopped", "failed", "lost"])
def test_the_state_is_that_of_the_records(tmp_path: Path, state: str) -> None:
    run = make_run(tmp_path / "x-1", state)
    assert runs.state_of(run) == lease.read_state(run) and runs.state_of(run).state == state


def test_a_run_that_ends_while_it_is_looked_at_is_not_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its end record comes after our look at its records and before our look for its process."""
    run = make_run(tmp_path / "x-1", "lost")
    alive = lease._alive

    def ends_first(*of: Any) -> bool:
        if not any(r["event"] == "end" for r in lease.records(run, 1)[0]):
            lease.append(run, 1, 0, "end", code=0)
        return alive(*of)

    monkeypatch.setattr(lease, "_alive", ends_first)
    assert runs.state_of(run).state == "completed"


@pytest.mark.parametrize("garbage", GARBAGE)
@pytest.mark.parametrize("file", ["owner.json", "rank0.jsonl"])
def test_damaged_records_are_a_state_and_never_raise(tmp_path: Path, file: str, garbage: bytes) -> None:
    run = make_run(tmp_path / "x-1", "running")
    (lease.life_dir(run, 1) / file).write_bytes(garbage + b"\n" if garbage else garbage)
    state = runs.state_of(run)
    if file == "rank0.jsonl" and not garbage:
        assert state.state == "pending"  # an empty file of records is none
    else:
        assert (state.state, state.message) == ("unreadable", "run=x-1: its records in lives/ are damaged.")


@pytest.mark.parametrize("field", [{"step": "7"}, {"step": [1]}, {"code": "0"}, {"code": None}, {"time": None}])
def test_records_of_other_types_are_damaged(tmp_path: Path, field: dict[str, Any]) -> None:
    run = make_run(tmp_path / "x-1", "completed", **field)
    assert runs.state_of(run).state == "unreadable"


def test_a_life_that_is_a_file_or_a_rank_that_is_a_folder_is_damaged(tmp_path: Path) -> None:
    first, second = make_run(tmp_path / "x-1", "new"), make_run(tmp_path / "y-2", "running")
    first.lives.mkdir()
    (first.lives / "0001").write_text("")
    (lease.life_dir(second, 1) / "rank1.jsonl").mkdir()
    assert [runs.state_of(run).state for run in (first, second)] == ["unreadable"] * 2


def test_of_long_records_both_ends_are_read_and_they_are_enough(tmp_path: Path) -> None:
    """Of any length, so that no cut between what is read and what is not hides the last line."""
    run = make_run(tmp_path / "x-1", "running")
    file = lease.life_dir(run, 1) / "rank0.jsonl"
    begin = file.read_text("utf-8")
    line = json.dumps({"event": "progress", "time": 1.0, "rank": 0, "step": 5}) + "\n"
    end = json.dumps({"event": "end", "time": 2.0, "rank": 0, "code": 0}) + "\n"
    fit = 2 * lease.ENDS_BYTES // len(line)
    for extra in (*range(fit - 8, fit + 4), 2 * fit, 20 * fit):
        for pad in range(0, len(line), 7):
            file.write_text(begin + line * extra + line.replace("\n", " " * pad + "\n") + end)
            assert (runs.state_of(run).state, runs.state_of(run).step) == ("completed", 5), (extra, pad)


# --- the best score on validation


def test_the_best_is_the_newest_line_marked_so(tmp_path: Path) -> None:
    run = make_run(tmp_path / "x-1")
    assert runs.best_validation(run) is None
    validated(run, 0.7, 0.9, 0.8, best=1)
    assert runs.best_validation(run) == runs.Score("auc", 0.9, 0.5, 1.0, 24, 2)


def test_without_an_auc_the_best_is_a_loss_without_an_interval(tmp_path: Path) -> None:
    run = make_run(tmp_path / "x-1")
    validated(run, None)
    assert runs.best_validation(run) == runs.Score("loss", 0.25, None, None, None, 1)


@pytest.mark.parametrize("bad", [b"{", b"[]", b'{"best": true}', b'{"best": true, "kind": "val", "auc": NaN}', b"\xff\xff",
                                 b'{"best": true, "kind": "val", "auc": "x"}', b'"best"', b"x" * 3_000_000])  # fmt: skip
def test_a_damaged_line_hides_no_score_before_it_and_raises_nothing(tmp_path: Path, bad: bytes) -> None:
    run = make_run(tmp_path / "x-1")
    validated(run, 0.7)
    with run.metrics.open("ab") as f:
        f.write(bad + b"\n")
    score = runs.best_validation(run)
    assert score is None if len(bad) > 1_000_000 else score is not None and score.value == 0.7


def test_a_torn_last_line_counts_for_nothing(tmp_path: Path) -> None:
    run = make_run(tmp_path / "x-1")
    validated(run, 0.7)
    with run.metrics.open("ab") as f:
        f.write(b'{"kind": "val", "epoch": 2, "auc": 0.99, "best": true}')
    score = runs.best_validation(run)
    assert score is not None and score.value == 0.7


@pytest.mark.parametrize("lengths", [[], [0], [3], [0, 0, 2], [70_000, 1, 65_535, 65_536, 65_537, 200_000], [10] * 30_000])
@pytest.mark.parametrize("torn", [b"", b"torn", b"t" * 70_000])
def test_lines_from_the_end_are_the_lines_backwards(tmp_path: Path, lengths: list[int], torn: bytes) -> None:
    lines = [bytes([97 + i % 26]) * n for i, n in enumerate(lengths)]
    file = tmp_path / "file"
    file.write_bytes(b"".join(line + b"\n" for line in lines) + torn)
    told = list(runs.lines_from_end(file))
    assert [line for line in told if line] == [line for line in reversed(lines) if line]


def test_an_absent_file_has_no_lines(tmp_path: Path) -> None:
    assert list(runs.lines_from_end(tmp_path / "nothing")) == []


# --- names


@pytest.fixture
def some(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Runs tiny-1234abcd, tiny-1299ffff, tiny-1234abcd.2, other-1 and a sweep grid-1, seen from beside them."""
    monkeypatch.chdir(tmp_path)
    for name in ("tiny-1234abcd", "tiny-1299ffff", "tiny-1234abcd.2", "other-1"):
        make_run(tmp_path / "runs" / name)
    make_sweep(tmp_path / "runs", [], name="grid-1")
    return tmp_path / "runs"


@pytest.mark.parametrize(("name", "means"), [
    ("tiny-1234abcd", "tiny-1234abcd"), ("tiny-1234abcd.", "tiny-1234abcd.2"), ("tiny-129", "tiny-1299ffff"), ("o", "other-1"),
    ("grid-1", "sweeps/grid-1"), ("g", "sweeps/grid-1"), ("runs/other-1", "other-1"), ("./runs/other-1/", "other-1"),
    ("runs/../runs/other-1", "other-1"), ("runs/sweeps/grid-1", "sweeps/grid-1"),
])  # fmt: skip
def test_a_name_is_whole_or_a_beginning_or_a_folder(some: Path, name: str, means: str) -> None:
    for runs_dir in (some, Path("runs")):
        assert runs.find(name, runs_dir) == RunDir(some / means)
    assert runs.find(str(some / "other-1"), Path("nowhere")) == RunDir(some / "other-1")


def test_the_folder_that_one_stands_in_is_a_name_too(some: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(some / "other-1")
    assert runs.find(".", Path("..")) == RunDir(some / "other-1")


@pytest.mark.parametrize(("name", "said"), [
    ("tiny", "run=tiny: tiny-1234abcd, tiny-1234abcd.2, tiny-1299ffff begin so. Write more of it."),
    ("tiny-12x", "run=tiny-12x: no such run or sweep in runs. Did you mean tiny-1"),
    ("gird-1", "run=gird-1: no such run or sweep in runs. Did you mean grid-1?"),
    ("zzz", "run=zzz: no such run or sweep in runs. Known: grid-1, other-1, tiny-1234abcd, tiny-1234abcd.2, tiny-1299ffff."),
    ("", "run=: names nothing."),
    ("a\0b", "run=a?b: names nothing."),
    ("../runs", "run=../runs: is no folder of a run or a sweep."),
    ("../x", "run=../x: is no folder of a run or a sweep."),
    ("/", "run=/: is no folder of a run or a sweep."),
    ("..", "run=..: no such run or sweep in runs."),
    ("runs", "run=runs: no such run or sweep in runs."),
    ("tiny-*", "run=tiny-*: no such run or sweep in runs."),
    ("tiny\n-1", "run=tiny?-1: no such run or sweep in runs."),
    ("\x1b[2J/x", "run=?[2J/x: is no folder"),
    ("x" * 100_000, "run=xxx"),
    ("x" * 100_000 + "/", "run=xxx"),
    ("sweeps", "run=sweeps: no such run or sweep in runs."),
    (".", "run=.: no such run or sweep in runs."),
])  # fmt: skip
def test_any_other_name_is_one_line_and_exit_2(some: Path, name: str, said: str) -> None:
    with pytest.raises(ConfigError) as e:
        runs.find(name, Path("runs"))
    (line,) = e.value.lines
    assert line.startswith(said) and len(line) <= 500 and line[-1] in ".?"


def test_of_many_that_begin_so_five_are_named(tmp_path: Path) -> None:
    for i in range(12):
        make_run(tmp_path / f"x-{i:02}")
    with pytest.raises(ConfigError, match=r"^run=x: x-00, x-01, x-02, x-03, x-04 and 7 more begin so\. Write more of it\.$"):
        runs.find("x", tmp_path)
    with pytest.raises(ConfigError, match=r"hpcai status lists them\.$"):
        runs.find("qqq", tmp_path)


def test_the_message_says_whose_value_is_wrong(some: Path) -> None:
    with pytest.raises(ConfigError, match=r"^from_run=zzz: no such run"):
        runs.find("zzz", some, what="from_run")


# --- sweeps


def test_a_sweep_reads_back_as_it_was_written(tmp_path: Path) -> None:
    sweep = make_sweep(tmp_path, [make_run(tmp_path / "x-1")], options={"trials": 3}, kind="search", config_dir="/a")
    assert runs.read_sweep(sweep.path) == sweep and list(runs.sweep_folders(tmp_path)) == [sweep.path]


@pytest.mark.parametrize("garbage", GARBAGE[:-2])
def test_a_damaged_list_of_members_is_a_fault_of_one_line(tmp_path: Path, garbage: bytes) -> None:
    sweep = make_sweep(tmp_path, [])
    (sweep.path / "members.json").write_bytes(garbage)
    with pytest.raises(PlanError, match=r"^sweep=grid-11111111: its members.json is damaged\."):
        runs.read_sweep(sweep.path)


WRONG: list[dict[str, Any]] = [
    {"id": 7}, {"name": None}, {"words": "seed=0,1"}, {"words": [1]}, {"config_dir": 3}, {"kind": "grid"}, {"kind": ["sweep"]},
    {"options": []}, {"options": {"trials": "x"}}, {"options": {"trials": [3]}}, {"cwd": 0}, {"members": 3}, {"members": {}},
    *({"members": [{**MEMBER, key: value}]} for key in MEMBER for value in (7, None, {"x": 1}, ["x", 1], "a\0b")),
]  # fmt: skip


@pytest.mark.parametrize("wrong", WRONG, ids=str)
def test_a_list_of_members_of_other_types_is_damaged_and_a_row_of_status(
    tmp_path: Path, wrong: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = make_sweep(tmp_path, [make_run(tmp_path / "x-1")])
    file = sweep.path / "members.json"
    value = json.loads(file.read_text("utf-8")) | wrong
    file.write_text(json.dumps(value))
    with pytest.raises(PlanError, match=r"^sweep=grid-11111111: its members.json is damaged\."):
        runs.read_sweep(sweep.path)
    assert main(["status", "--runs-dir", str(tmp_path)]) == 0
    out, err = capsys.readouterr()
    assert "grid-11111111  unreadable" in out and err == ""


def test_a_folder_that_may_not_be_read_is_no_run_and_no_fault(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    os.mkfifo(tmp_path / "pipe")
    assert runs.run_folders(tmp_path) == [] and not runs.is_run(tmp_path / ("x" * 300))
    rundir.write_json(tmp_path / "y-1" / "plan.json", {})
    assert [run.path.name for run in runs.run_folders(tmp_path)] == ["y-1"]


# --- report.json


def test_a_report_is_read_as_it_was_written_and_its_whole(tmp_path: Path) -> None:
    run = make_run(tmp_path / "x-1")
    report = {"version": 2, "answer": "größe", "estimates": [], "warnings": ["a"], "threshold": None, "more": [1]}
    rundir.write_json(run.report_json, report)
    assert runs.read_report(run) == report


ESTIMATE = {"name": "auc", "split": "test", "value": 0.5, "low": None, "high": None, "n": 9}
WHOLE = {"version": 2, "answer": "", "estimates": [ESTIMATE], "warnings": [], "threshold": None}


@pytest.mark.parametrize(
    "change",
    [
        *({"answer": 7}, {"estimates": [7]}, {"estimates": [ESTIMATE | {"value": "x"}]}, {"estimates": None}),
        *({"warnings": "ab"}, {"warnings": [7]}, {"threshold": {"value": 0.5}}, {"threshold": 7}),
        *({"estimates": [ESTIMATE | {"low": True}]}, {"estimates": [ESTIMATE | {"name": 5}]}),
    ],
)
def test_a_report_that_lacks_what_its_readers_need_is_damaged(tmp_path: Path, change: dict[str, Any]) -> None:
    run = make_run(tmp_path / "x-1")
    rundir.write_json(run.report_json, WHOLE)
    assert runs.read_report(run) == WHOLE
    rundir.write_json(run.report_json, WHOLE | change)
    with pytest.raises(DataError, match=r"^run=x-1: its report\.json is gone or damaged\. Restore it"):
        runs.read_report(run)


@pytest.mark.parametrize("garbage", [*GARBAGE, None])
def test_a_damaged_or_absent_report_is_a_fault_of_one_line(tmp_path: Path, garbage: bytes | None) -> None:
    run = make_run(tmp_path / "x-1")
    if garbage is not None:
        rundir.write_bytes(run.report_json, garbage)
    with pytest.raises(DataError, match=r"^run=x-1: its report\.json is gone or damaged\."):
        runs.read_report(run)


@pytest.mark.parametrize(("version", "told"), [(1, "1"), (3, "3"), ("2", "another"), (None, "another")])
def test_a_report_of_another_version_is_named(tmp_path: Path, version: Any, told: str) -> None:
    run = make_run(tmp_path / "x-1")
    rundir.write_json(run.report_json, {"version": version, "answer": "fine"})
    with pytest.raises(DataError, match=rf"^run=x-1: its report\.json is of version {told}, this hpcai reads 2\. Read it"):
        runs.read_report(run)


LEAVES = (
    st.none()
    | st.booleans()
    | st.integers(-3, 3)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.sampled_from(["", "auc", "test"])
)
KEYS = st.sampled_from([*WHOLE, *ESTIMATE])
VALUES = st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=6))


@given(st.dictionaries(KEYS, VALUES, max_size=7).map(lambda change: WHOLE | change) | VALUES)
def test_whatever_lies_there_is_a_report_that_can_be_shown_or_one_fault(value: Any) -> None:
    with tempfile.TemporaryDirectory() as folder:
        run = RunDir(Path(folder))
        rundir.write_json(run.report_json, value)
        try:
            report = runs.read_report(run)
        except DataError as e:
            assert len(e.lines) == 1
        else:
            assert isinstance(answer(report), str)
