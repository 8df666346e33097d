"""Files of a run are whole or absent, lines are whole, and what was written is what is read."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hpcai import rundir
from hpcai.rundir import RunDir

NAMES = [name for name, kind in vars(RunDir).items() if isinstance(kind, property)]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
FAST = settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def test_every_name_lies_in_the_folder_and_no_two_are_one() -> None:
    run = RunDir(Path("/x/y"))
    paths = [getattr(run, name) for name in NAMES] + [run.log(0), run.failed_file(0), run.rows_file("val", 0)]
    assert all(p.is_relative_to(run.path) for p in paths) and len(set(paths)) == len(paths)


def test_every_name_of_the_docs_is_one_of_them() -> None:
    assert rundir.__doc__
    for name in NAMES:
        if name != "lives":
            assert getattr(RunDir(Path("/x")), name).name in rundir.__doc__


def test_shards_are_listed_in_the_order_of_ranks(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    for rank in (10, 2, 0):
        rundir.append_lines(run.rows_file("val", rank), [{"case": str(rank)}])
    rundir.append_lines(run.rows_file("validation", 1), [{}])
    assert [f.name for f in run.row_files("val")] == ["val.rank0.jsonl", "val.rank2.jsonl", "val.rank10.jsonl"]


@FAST
@given(value=JSON)
def test_json_is_read_as_it_was_written(tmp_path: Path, value: Any) -> None:
    rundir.write_json(tmp_path / "x.json", value)
    assert rundir.read_json(tmp_path / "x.json") == value


@FAST
@given(values=st.lists(st.dictionaries(st.text(), JSON, max_size=3), max_size=5))
def test_lines_are_read_as_they_were_written(tmp_path: Path, values: list[dict[str, Any]]) -> None:
    (tmp_path / "x.jsonl").unlink(missing_ok=True)
    rundir.append_lines(tmp_path / "x.jsonl", values)
    assert list(rundir.read_lines(tmp_path / "x.jsonl")) == values


def test_a_name_that_is_no_utf8_keeps_its_bytes(tmp_path: Path) -> None:
    """Old Latin-1 file names are common on clusters; Python holds their bytes as surrogates."""
    name = os.fsdecode(b"gr\xf6\xdfe.png")
    rundir.write_json(tmp_path / "x.json", {"path": name})
    rundir.append_lines(tmp_path / "x.jsonl", [{"case": name}])
    assert os.fsencode(rundir.read_json(tmp_path / "x.json")["path"]) == b"gr\xf6\xdfe.png"
    assert next(rundir.read_lines(tmp_path / "x.jsonl")) == {"case": name}
    (tmp_path / "x.json").read_text("utf-8")


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_no_json_is_refused_and_leaves_the_file(tmp_path: Path, bad: float) -> None:
    rundir.write_json(tmp_path / "x.json", 1)
    with pytest.raises(ValueError, match="JSON"):
        rundir.write_json(tmp_path / "x.json", bad)
    with pytest.raises(ValueError, match="JSON"):
        rundir.append_lines(tmp_path / "x.jsonl", [{"a": 1}, {"a": bad}])
    assert rundir.read_json(tmp_path / "x.json") == 1 and not (tmp_path / "x.jsonl").exists()


def test_a_line_torn_anywhere_is_ignored_and_cut(tmp_path: Path) -> None:
    file = tmp_path / "x.jsonl"
    rundir.append_lines(file, [{"step": 1, "größe": "é"}])
    first = file.read_bytes()
    rundir.append_lines(file, [{"step": 2, "größe": "é"}])
    whole = file.read_bytes()
    for size in range(len(first), len(whole)):
        file.write_bytes(whole[:size])
        assert [v["step"] for v in rundir.read_lines(file)] == [1]
        rundir.cut_torn_line(file)
        assert file.read_bytes() == first


def test_absent_and_empty_files_hold_no_lines(tmp_path: Path) -> None:
    assert list(rundir.read_lines(tmp_path / "none.jsonl")) == []
    rundir.cut_torn_line(tmp_path / "none.jsonl")
    (tmp_path / "empty.jsonl").touch()
    rundir.cut_torn_line(tmp_path / "empty.jsonl")
    assert list(rundir.read_lines(tmp_path / "empty.jsonl")) == []


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_write_that_fails_leaves_the_old_file_and_no_litter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    rundir.write_json(tmp_path / "x.json", "old")

    def fail(*_: Any) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(*((os, "fsync", fail) if step == "fsync" else (Path, "replace", fail)))
    with pytest.raises(OSError, match="Input/output"):
        rundir.write_json(tmp_path / "x.json", "new")
    assert rundir.read_json(tmp_path / "x.json") == "old" and [f.name for f in tmp_path.iterdir()] == ["x.json"]


def test_a_full_disk_leaves_whole_lines_and_whole_files(small_disk: Callable[[str], Path]) -> None:
    """And the line after the one that did not fit is no longer than a line."""
    disk = small_disk("size=64k")
    lines, file = disk / "x.jsonl", disk / "x.json"
    rundir.write_json(file, "old")
    with pytest.raises(OSError, match="No space left"):
        for step in range(100_000):
            rundir.append_lines(lines, [{"step": step, "text": "x" * 2999}])
    assert lines.read_bytes().endswith(b"\n")
    with pytest.raises(OSError, match="No space left"):
        rundir.write_json(file, "new" * 100_000)
    assert rundir.read_json(file) == "old" and sorted(f.name for f in disk.iterdir()) == ["x.json", "x.jsonl"]
    rundir.append_lines(lines, [{"step": -1}])
    assert [v["step"] for v in rundir.read_lines(lines)][-1] == -1


def test_digests_are_read_by_path(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    rundir.write_json(run.data, {"files": [{"path": "/a", "bytes": 1, "sha256": "00"}]})
    assert rundir.read_digests(run) == {"/a": "00"}
    assert json.loads(run.data.read_text()) == rundir.read_json(run.data)
