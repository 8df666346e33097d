"""The most wrong cases: which they are, what a mailed report says of them, and what the internal one may."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from report_runs import make_run, simulate, write_rows

from hpcai import rundir
from hpcai.errors import RunError
from hpcai.metrics.rows import Rows
from hpcai.report import write_report
from hpcai.report.folder import read_folder
from hpcai.report.mistakes import MOST, mistakes, most_wrong
from hpcai.report.pictures import SIDE, thumbnail
from hpcai.rundir import RunDir, append_lines

DOT = base64.b64encode(b"\x89PNG\r\n\x1a\n" + bytes(40)).decode()


def rows_of(label: list[int], scores: list[list[float]]) -> Rows:
    return Rows([f"c{k}" for k in range(len(label))], None, np.array(label), np.array(scores))


def run_with_cases(path: Path, **more: Any) -> RunDir:
    """A finished training whose cases have row numbers."""
    run = make_run(path, **more)
    note(run, ("test", "val"))
    return run


def note(run: RunDir, splits: tuple[str, ...]) -> None:
    for split in splits:
        cases = sorted({row["case"] for file in run.row_files(split) for row in rundir.read_lines(file)})
        known = {"split": split, "label": 0, "patient": None, "groups": {}, "size": None}
        append_lines(run.cases, [{"case": f"{case}", "row": f"{k} of `{split}`", **known} for k, case in enumerate(cases)])
        break  # ids of both splits are alike in these runs


# --- which


def test_the_most_wrong_come_first_and_ties_keep_the_order_of_rows() -> None:
    score = [0.9, 0.6, 0.95, 0.9, 0.1, 0.4, 0.1, 0.8]
    rows = rows_of([0, 0, 0, 0, 1, 1, 1, 1], [[1 - s, s] for s in score])
    found = most_wrong(rows, (rows.scores[:, 1] >= 0.5).astype(np.int64))
    assert found == {"false_positive": [2, 0, 3, 1], "false_negative": [4, 6, 5]}


def test_of_many_classes_the_most_confident_are_the_most_wrong() -> None:
    rows = rows_of([0, 1, 2, 0], [[0.1, 0.8, 0.1], [0.5, 0.3, 0.2], [0.0, 0.05, 0.95], [0.9, 0.05, 0.05]])
    assert most_wrong(rows, rows.scores.argmax(1)) == {"wrong": [0, 1]}


def test_at_most_twelve_of_a_kind() -> None:
    rows = rows_of([0] * 30 + [1] * 30, [[0.2, 0.8]] * 30 + [[0.8, 0.2]] * 30)
    assert {kind: len(places) for kind, places in most_wrong(rows, 1 - rows.label).items()} == {
        "false_positive": MOST, "false_negative": MOST,
    }  # fmt: skip


# --- what a mailed report says


def test_a_report_has_rows_scores_and_the_threshold_and_no_id(tmp_path: Path) -> None:
    run = run_with_cases(tmp_path / "run")
    write_report(run)
    block = rundir.read_json(run.report_json)["mistakes"]
    assert (block["split"], block["shown"]) == ("test", "rows")
    for kind, sign in (("false_positive", -1), ("false_negative", 1)):
        entries = block[kind]
        assert entries and all(set(entry) == {"row", "score", "threshold"} for entry in entries)
        assert [e["score"] for e in entries] == sorted((e["score"] for e in entries), key=lambda s: sign * s)
        assert all((e["score"] >= e["threshold"]) == (sign < 0) for e in entries)
    html = run.report_html.read_text("utf-8")
    assert block["false_positive"][0]["row"] in html and "secret-case" not in html + run.report_json.read_text("utf-8")


def test_many_classes_name_what_it_is_and_what_it_was_called(tmp_path: Path) -> None:
    run = run_with_cases(tmp_path / "run", labels=("a", "b", "c"))
    write_report(run)
    entries = rundir.read_json(run.report_json)["mistakes"]["wrong"]
    assert entries and all(set(e) == {"row", "score", "label", "called"} and e["label"] != e["called"] for e in entries)


def test_a_run_without_rows_of_the_data_has_no_mistakes(tmp_path: Path) -> None:
    old, other = make_run(tmp_path / "old"), run_with_cases(tmp_path / "other")
    write_rows(other, "test", simulate(np.random.default_rng(0), 700, 0.5, 2))  # more cases than cases.jsonl knows
    assert mistakes(read_folder(old)) is None and mistakes(read_folder(other)) is None
    write_report(old)
    assert "mistakes" not in rundir.read_json(old.report_json) and "Mistakes" not in old.report_html.read_text("utf-8")


def test_a_case_of_a_fold_is_told_with_the_threshold_of_its_fold(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", job="gather")
    for file in run.rows.glob("*"):
        file.unlink()
    lines = [{"case": f"c{k}", "patient": None, "label": 0, "scores": [0.2, 0.8], "fold": k % 2, "called": 1} for k in range(4)]
    append_lines(run.rows_file("oof", 0), [*lines, {**lines[0], "case": "d", "label": 1}])
    note(run, ("oof",))
    split = {
        "by": "kfold",
        "counts": {"oof": 5},
        "runs": [{"fold": k, "run_id": f"r-{k}", "threshold": 0.5 + k / 10} for k in (0, 1)],
    }
    rundir.write_json(run.split, split)
    block = mistakes(read_folder(run))
    assert block is not None and [e["threshold"] for e in block["false_positive"]] == [0.5, 0.6, 0.5, 0.6]


# --- shareable


def test_ids_and_pictures_are_shown_only_where_the_config_says_so(tmp_path: Path) -> None:
    for shareable in (True, False, "true", 1, None):
        run = make_run(tmp_path / str(shareable), data={"name": "x", "labels": ["a", "b"], "shareable": shareable})
        note(run, ("test",))
        first = (mistakes(read_folder(run), ids=True) or {})["false_positive"][0]["case"]
        rundir.write_json(run.pictures, {"cases": {first: DOT}})
        write_report(run)
        html, block = run.report_html.read_text("utf-8"), rundir.read_json(run.report_json)["mistakes"]
        assert (first in html) == (DOT in html) == ("case" in block["false_positive"][0]) == (shareable is True)


def test_a_laboratorys_own_newborns_are_not_shareable_whatever_a_preset_says(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", data={"name": "x", "labels": ["a", "b"], "shareable": True})
    note(run, ("test",))
    for simulated, shown in ((True, "ids"), (False, "rows")):
        rundir.write_json(run.screening, {"simulated": simulated})
        block = mistakes(read_folder(run)) or {}
        assert block["shown"] == shown and ("case" in block["false_positive"][0]) == simulated


@pytest.mark.parametrize("bad", ["[]", '{"cases": []}', '{"cases": {"c": 3}}', '{"cases": {"c": "<script>"}}', "{"])
def test_what_is_no_picture_is_damaged(tmp_path: Path, bad: str) -> None:
    run = make_run(tmp_path / "run", data={"name": "x", "labels": ["a", "b"], "shareable": True})
    run.pictures.write_text(bad)
    with pytest.raises(RunError, match=r"pictures\.json: is damaged"):
        write_report(run)


@pytest.mark.parametrize(("shape", "dtype", "size"), [
    ((1, 28, 28), "uint8", (28, 28)), ((3, 300, 150), "uint8", (64, 128)), ((1, 9, 40, 20), "float32", (20, 40)),
    ((1, 5, 5), "float32", (5, 5)), ((3, 7, 12, 6), "uint8", (6, 12)), ((1, 1, 1), "uint8", (1, 1)),
])  # fmt: skip
def test_a_thumbnail_is_a_small_png_without_anything_else(shape: tuple[int, ...], dtype: str, size: tuple[int, int]) -> None:
    x = (np.arange(np.prod(shape)).reshape(shape) % 251).astype(dtype)
    data = base64.b64decode(thumbnail(x))
    with Image.open(io.BytesIO(data)) as picture:
        assert picture.format == "PNG" and picture.size == size and max(picture.size) <= SIDE and not picture.info
    assert thumbnail(x) == thumbnail(x.copy()) and thumbnail(np.full(shape, 3, dtype))


# --- rows


def test_the_row_is_the_one_that_messages_cite(tmp_path: Path) -> None:
    from hpcai.metrics.table import read_cases

    line = {"split": "test", "label": 0, "patient": None, "groups": {}, "size": None}
    run = RunDir(tmp_path)
    append_lines(run.cases, [{"case": "b", "row": "17", **line}, {"case": "a", "row": "3 of `test_images`", **line}])
    table = read_cases(run)
    assert table is not None and table.row == ["3 of `test_images`", "17"] and table.of(["b"]).row == ["17"]
    append_lines(run.cases, [{"case": "c", **line}])  # as an older version wrote it
    table = read_cases(run)
    assert table is not None and table.row is None and table.take([0]).row is None
    append_lines(run.cases, [{"case": "d", "row": 4, **line}])
    with pytest.raises(RunError, match="row 3 is damaged"):
        read_cases(run)
