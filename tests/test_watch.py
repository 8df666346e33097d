"""What a person sees while a run goes on and when it ends."""

from __future__ import annotations

import io
import time
from pathlib import Path
from typing import Any

import pytest

from hpcai import lease, rundir, watch
from hpcai.config.check import check
from hpcai.rundir import RunDir
from hpcai.watch import Screen, Tail, ago, answer, conclude, duration, shown

CONFIG = check(
    {
        "name": "x",
        "data": {"path": "x", "labels": ["a", "b"], "identifiers": "none"},
        "cluster": {"name": "x"},
        "trainer": {"epochs": 5},
    }
)
TRAIN = {"kind": "train", "step": 10, "epoch": 2, "loss": 0.5, "lr": 0.1, "samples_s": 1234.5, "left_s": 100.4, "time": 0.0}
VAL = {"kind": "val", "step": 10, "epoch": 2, "auc": 0.9, "low": 0.85, "high": 0.95, "n": 9, "best": True, "time": 0.0}


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    run = RunDir(tmp_path / "x-1")
    run.path.mkdir()
    return run


# --- lines as they come


def test_a_tail_gives_each_whole_line_once(tmp_path: Path) -> None:
    tail = Tail(tmp_path / "x")
    assert tail.read() == []
    for text, lines in (("a\nb", ["a"]), ("c\n", ["bc"]), ("", []), ("é\n\n", ["é", ""]), ("\xff", [])):
        with (tmp_path / "x").open("a", encoding="latin-1" if text == "\xff" else "utf-8") as f:
            f.write(text)
        assert tail.read() == lines


def test_a_tail_goes_on_where_a_file_was_cut(tmp_path: Path) -> None:
    file = tmp_path / "x"
    file.write_text("a\nb\n")
    tail = Tail(file, skip=True)
    assert tail.read() == []
    file.write_text("a\n")
    assert tail.read() == []
    file.write_text("a\nc\n")
    assert tail.read() == ["c"]


def test_into_a_file_go_rank_0_s_words_alone(run: RunDir, tmp_path: Path) -> None:
    out, to = tmp_path / "out", io.StringIO()
    screen = Screen(run, CONFIG, out, to)
    out.write_text("data  5 cases\nepo")
    rundir.append_lines(run.metrics, [TRAIN])
    screen.update()
    out.write_text("data  5 cases\nepoch 1\n")
    screen.close()
    assert to.getvalue() == "data  5 cases\nepoch 1\n"


def test_on_a_terminal_one_live_line_stands_below_them_and_goes_at_the_end(run: RunDir, tmp_path: Path) -> None:
    rundir.append_lines(run.metrics, [TRAIN | {"samples_s": 1.0}])  # of an earlier life: not shown
    out, to = tmp_path / "out", Terminal()
    screen = Screen(run, CONFIG, out, to)
    screen.update()
    assert to.getvalue() == ""
    rundir.append_lines(run.metrics, [TRAIN])
    screen.update()
    assert to.getvalue() == "\r\x1b[2Kepoch 2/5  1,234 img/s  1 min 40 s left"
    rundir.append_lines(run.metrics, [VAL])
    out.write_text("word\n")
    screen.update()
    live = "epoch 2/5  1,234 img/s  val AUC 0.900 [0.850, 0.950]  1 min 40 s left"
    assert to.getvalue().endswith(f"\r\x1b[2Kword\n{live}")
    screen.update()
    assert to.getvalue().endswith(live)
    screen.close()
    assert to.getvalue().endswith(f"{live}\r\x1b[2K")


def test_a_score_or_an_interval_that_is_undefined_is_left_out(run: RunDir, tmp_path: Path) -> None:
    to = Terminal()
    screen = Screen(run, CONFIG, tmp_path / "out", to)
    rundir.append_lines(run.metrics, [TRAIN, VAL | {"low": None, "high": None}])
    screen.update()
    assert "  val AUC 0.900  1 min" in to.getvalue()
    to.truncate(0)
    rundir.append_lines(run.metrics, [TRAIN, VAL | {"auc": None, "low": None, "high": None}])
    screen.update()
    assert "AUC" not in to.getvalue()


# --- the end


def ended(run: RunDir, *records: dict[str, Any], ranks: int = 1) -> None:
    owner = {**lease.me(), "pid": 2**22 + 1, "ranks": ranks, "time": time.time()}
    rundir.write_json(lease.life_dir(run, 1) / "owner.json", owner)
    for record in records:
        lease.append(run, 1, **{"rank": 0} | record)


STOPPED = {"event": "end", "code": 143, "message": "stopped after step 7."}
FAILED = {"event": "end", "code": 4, "message": "data: row 7 cannot be read."}
STEP = {"event": "progress", "step": 7}


@pytest.mark.parametrize(("records", "signum", "code", "said"), [
    ([STOPPED], 2, 130, "stopped after step 7."),
    ([STOPPED], None, 143, "stopped after step 7."),
    ([FAILED], None, 4, "data: row 7 cannot be read."),
    ([FAILED], 15, 4, "data: row 7 cannot be read."),
    ([], 15, 143, "stopped before its first step. The same command starts it."),
    ([], None, 5, "run.rank=0: ended without a word (killed, or out of memory). The same command goes on."),
    ([STEP], 15, 5, "run.rank=0: ended without a word (killed, or out of memory). The same command goes on."),
])  # fmt: skip
def test_the_verdict_is_one_line_and_its_code(
    run: RunDir, capsys: pytest.CaptureFixture[str], records: list[dict[str, Any]], signum: int | None, code: int, said: str
) -> None:
    ended(run, *records)
    assert conclude(run, signum) == code
    out, err = capsys.readouterr()
    assert out == "" and err.splitlines()[0] == said


def test_a_good_end_is_good_even_if_a_stop_was_asked_for(run: RunDir, capsys: pytest.CaptureFixture[str]) -> None:
    ended(run, {"event": "end", "code": 0})
    rundir.write_json(
        run.report_json, {"version": 2, "answer": "fine", "estimates": [], "threshold": None, "warnings": list("abcdefg")}
    )
    assert conclude(run, 15) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "fine" and lines[-1] == f"report: {run.report_html}"
    assert len([line for line in lines if line.startswith("note: ")]) == 5


def test_a_log_that_does_not_exist_is_not_pointed_at(run: RunDir, capsys: pytest.CaptureFixture[str]) -> None:
    ended(run)
    conclude(run)
    assert capsys.readouterr().err.splitlines()[1] == f"log: {run.submitit}"
    run.log(0).parent.mkdir()
    run.log(0).touch()
    conclude(run)
    assert capsys.readouterr().err.splitlines()[1] == f"log: {run.log(0)}"


def test_the_answer_names_split_interval_n_and_the_operating_point() -> None:
    estimates = [
        {"name": "auc", "split": "test", "value": 0.98, "low": 0.967, "high": 0.989, "n": 624},
        {"name": "sensitivity", "split": "val", "value": 0.1},
        {"name": "sensitivity", "split": "test", "value": 0.97},
        {"name": "specificity", "split": "test", "value": 0.86},
    ]
    threshold = {"value": 0.61, "rule": "sensitivity>=0.95", "split": "val"}
    report = {"answer": "-", "estimates": estimates, "threshold": threshold}
    line = "test AUC 0.980 [0.967, 0.989] n=624 . sensitivity 0.97, specificity 0.86 at 0.61 (rule: sensitivity>=0.95 on val)"
    assert answer(report) == line
    assert answer(report | {"threshold": None}) == line.partition(" at ")[0]
    bare = [{**estimates[0], "low": None, "high": None}]
    assert answer(report | {"estimates": bare, "threshold": None}) == "test AUC 0.980 n=624"
    assert answer({"answer": "-", "estimates": [{**estimates[0], "value": None}], "threshold": None}) == "-"


# --- words


def test_a_path_is_shown_as_one_would_type_it_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert shown(tmp_path / "a\nb/c") == "a?b/c"
    assert shown(Path("/x/y")) == "/x/y"


def test_times_are_told_in_words() -> None:
    assert [ago(s) for s in (0, 59, 60, 7200, 200_000)] == ["0 s ago", "59 s ago", "1 min ago", "2 h ago", "2 d ago"]
    assert [duration(s) for s in (0.4, 59.6, 100, 3599.6, 4200)] == [
        "0 s",
        "1 min 0 s",
        "1 min 40 s",
        "1 h 0 min",
        "1 h 10 min",
    ]
    assert watch.POLL_S < 1
