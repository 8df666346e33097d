"""cases.jsonl: what is known of each case but its score, written by jobs, read by reports."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hpcai.errors import RunError
from hpcai.metrics.table import read_cases
from hpcai.rundir import RunDir, append_lines


def line(case: str, **other: Any) -> dict[str, Any]:
    fields = {"split": "test", "label": 1, "patient": None, "groups": {"site": "A", "age": None}, "size": [4, 6]}
    return {"case": case} | fields | other


def run_with(tmp_path: Path, *lines: dict[str, Any]) -> RunDir:
    run = RunDir(tmp_path)
    append_lines(run.cases, lines)
    return run


def test_a_table_is_read_in_the_order_of_case_ids(tmp_path: Path) -> None:
    table = read_cases(run_with(tmp_path, line("b", patient="p", label=0), line("a", size=None)))
    assert table is not None
    assert table.case == ["a", "b"] and table.label.tolist() == [1, 0] and table.size == [None, (4, 6)]
    assert table.groups == {"site": ["A", "A"], "age": [None, None]}
    assert table.patient is not None and table.patient[1] == "p" and table.patient[0] not in ("a", "p")


def test_rows_find_their_cases(tmp_path: Path) -> None:
    table = read_cases(run_with(tmp_path, line("b"), line("a"), line("c", split="val")))
    assert table is not None
    assert table.of(["c", "a"]).split == ["val", "test"] and table.where(np.array([False, True, False])).case == ["b"]
    with pytest.raises(RunError, match="lacks 1 of 2 cases"):
        table.of(["a", "secret"])


def test_no_file_is_no_table(tmp_path: Path) -> None:
    assert read_cases(RunDir(tmp_path)) is None


@pytest.mark.parametrize("bad", [
    line("a", label="1"), line("a", label=True), line("a", patient=3), line("a", groups={"site": 1, "age": None}),
    line("a", groups=[]), line("a", groups={"site": "A"}), line("a", size=[0, 3]), line("a", size=[1.5]), line(3),
    {"case": "a"}, line("secret-first"),
])  # fmt: skip
def test_a_damaged_line_is_named_by_its_row(tmp_path: Path, bad: dict[str, Any]) -> None:
    run = run_with(tmp_path, line("secret-first"), bad)
    with pytest.raises(RunError, match=r"cases\.jsonl: row [12] is damaged") as e:
        read_cases(run)
    assert "secret" not in str(e.value)


def test_a_torn_last_line_does_not_count(tmp_path: Path) -> None:
    run = run_with(tmp_path, line("a"))
    with run.cases.open("a") as f:
        f.write(json.dumps(line("b"))[:20])
    table = read_cases(run)
    assert table is not None and table.case == ["a"]
