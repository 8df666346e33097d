"""Many runs on one screen: a block in its place on a terminal, one line a change elsewhere, and no stream stops a sweep."""
# ruff: noqa: E501  (a row of a table is one line)

from __future__ import annotations

import fcntl
import io
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpcai import board as board_module
from hpcai.board import Board, Row, _cut, _width


class Clock:
    """Stands still until it is told."""

    now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(board_module, "time", made)
    monkeypatch.delenv("TERM", raising=False)
    return made


class Terminal(io.StringIO):
    """A terminal that does what the board asks of it: text, newline, carriage return, cursor up, clear to the end."""

    def __init__(self, width: int = 80, height: int = 24) -> None:
        super().__init__()
        self.width, self.height = width, height
        self.lines, self.row, self.column, self.writes = [""], 0, 0, 0

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> int:
        self.writes += 1
        for part in re.findall(r"\x1b\[\d*[A-Z]|[^\x1b]", text):
            if part == "\n":
                self.row, self.column = self.row + 1, 0
                self.lines += [""] * (self.row + 1 - len(self.lines))
            elif part == "\r":
                self.column = 0
            elif part.endswith("A") and len(part) > 1:
                self.row -= int(part[2:-1])
                assert self.row >= max(0, len(self.lines) - self.height), "up beyond the screen"
            elif part == "\x1b[J":
                self.lines = [*self.lines[: self.row], self.lines[self.row][: self.column]]
            else:
                assert len(part) == 1, part
                line = self.lines[self.row]
                self.lines[self.row] = line[: self.column] + part + line[self.column + 1 :]
                self.column += 1
                assert _width(self.lines[self.row]) < self.width, "the last column is full"
        return len(text)


@pytest.fixture
def sized(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, int], Terminal]:
    """sized(80, 24): a terminal that says so."""

    def make(width: int, height: int) -> Terminal:
        terminal = Terminal(width, height)
        monkeypatch.setattr(Board, "_size", lambda self: (terminal.width, terminal.height))
        return terminal

    return make


# --- not a terminal


def test_without_a_terminal_each_change_of_a_state_is_one_line() -> None:
    to = io.StringIO()
    board = Board(to, 3)
    a, b, c = "trainer.lr=0.001 seed=0", "trainer.lr=0.001 seed=1", "trainer.lr=0.1 seed=0"
    board.update([Row(a, "new"), Row(b, "new"), Row(c, "new")])
    board.update([Row(a, "running", "epoch 1/3", "val AUC 0.8"), Row(b, "new"), Row(c, "new")])
    board.update([Row(a, "running", "epoch 2/3", "val AUC 0.9"), Row(b, "new"), Row(c, "new")])
    board.update([Row(a, "completed", "epoch 3/3", "val AUC 0.953"), Row(b, "running"), Row(c, "failed", "the loss is nan.")])
    board.update([Row(a, "completed", "", "val AUC 0.953"), Row(b, "running"), Row(c, "failed", "other words")])
    board.close()
    assert to.getvalue().splitlines() == [
        f"[0/3] {a}  running",
        f"[1/3] {a}  completed  val AUC 0.953",
        f"[1/3] {b}  running",
        f"[2/3] {c}  failed  the loss is nan.",
    ]


def test_a_search_that_knows_no_total_counts_what_has_ended() -> None:
    to = io.StringIO()
    board = Board(to, None)
    board.update([Row("a", "running")])
    board.update([Row("a", "pruned"), Row("b", "running")])
    board.update([Row("a", "pruned"), Row("b", "completed"), Row("c", "running")])
    assert to.getvalue().splitlines() == [
        "[0] a  running",
        "[1] a  pruned",
        "[1] b  running",
        "[2] b  completed",
        "[2] c  running",
    ]


def test_lines_hold_no_control_characters_and_more_members_than_promised_are_counted() -> None:
    to = io.StringIO()
    Board(to, 1).update([Row("a\n\x1b[31m", "failed"), Row("b", "failed")])
    assert to.getvalue() == "[1/2] a??[31m  failed\n[2/2] b  failed\n"


def test_a_dumb_terminal_is_treated_as_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    to = io.StringIO()
    monkeypatch.setattr(to, "isatty", lambda: True)
    Board(to, 1).update([Row("a", "running")])
    assert to.getvalue() == "[0/1] a  running\n"


# --- a terminal


def test_the_block_is_redrawn_in_its_place(clock: Clock, sized: Callable[[int, int], Terminal]) -> None:
    to = sized(80, 24)
    to.write("$ hpcai\n")
    board = Board(to, 2)
    board.update([Row("lr=1", "running", "epoch 1/3", "val AUC 0.8"), Row("lr=10", "new")])
    assert to.lines == ["$ hpcai", "lr=1   running    epoch 1/3  val AUC 0.8", "lr=10  new", "[0/2] 1 new, 1 running"]
    board.update([Row("lr=1", "completed", "", "val AUC 0.9"), Row("lr=10", "running", "epoch 1/3")])
    assert to.lines == [
        "$ hpcai",
        "lr=1   completed  val AUC 0.9",
        "lr=10  running    epoch 1/3",
        "[1/2] 1 completed, 1 running",
    ]
    board.close()
    assert to.lines == ["$ hpcai", ""]
    board.close()
    to.write("ranked\n")
    assert to.lines == ["$ hpcai", "ranked", ""]


def test_it_is_drawn_five_times_a_second_at_most_unless_a_state_has_changed(
    clock: Clock, sized: Callable[[int, int], Terminal]
) -> None:
    to = sized(80, 24)
    board = Board(to, 1)
    for i in range(100):
        board.update([Row("a", "running", f"step {i}")])
    assert to.writes == 1 and "step 0" in to.lines[0]
    clock.now += 0.21
    board.update([Row("a", "running", "step 100")])
    assert to.writes == 2 and "step 100" in to.lines[0]
    board.update([Row("a", "completed")])
    assert to.writes == 3 and to.lines[-1] == "[1/1] 1 completed"


def test_a_line_said_stays_above_the_block(clock: Clock, sized: Callable[[int, int], Terminal]) -> None:
    to = sized(80, 24)
    board = Board(to, 1)
    board.update([Row("a", "running")])
    board.say("warning: a\nb")
    board.update([Row("a", "running")])
    assert to.lines == ["warning: a?b", "a  running", "[0/1] 1 running"]
    plain = io.StringIO()
    Board(plain, 1).say("warning")
    assert plain.getvalue() == "warning\n"


def test_a_long_sweep_shows_what_runs_and_failed_first_and_counts_the_rest(
    clock: Clock, sized: Callable[[int, int], Terminal]
) -> None:
    to = sized(80, 6)
    board = Board(to, 100)
    states = ["completed"] * 50 + ["new"] * 47 + ["failed", "running", "running"]
    board.update([Row(f"a={i}", state) for i, state in enumerate(states)])
    assert to.lines == [
        "a=98  running",
        "a=99  running",
        "a=97  failed",
        "a=50  new",
        "[51/100] 50 completed, 1 failed, 47 new, 2 running  (96 not shown)",
    ]
    board.update([Row(f"a={i}", "completed") for i in range(100)])
    assert len(to.lines) == 5 and to.lines[-1] == "[100/100] 100 completed  (96 not shown)"


@pytest.mark.parametrize("size", [(1, 1), (2, 2), (10, 3), (40, 5), (200, 100)])
def test_the_block_fits_whatever_screen_and_follows_its_size(
    size: tuple[int, int], clock: Clock, sized: Callable[[int, int], Terminal]
) -> None:
    to = sized(80, 24)
    board = Board(to, 30)
    rows = [Row(f"größe=日本{'本' * i}", "running", "epoch 1/3", "val AUC 0.9") for i in range(30)]
    board.update(rows)
    board.close()
    to.width, to.height = size
    to.lines, to.row = [""], 0
    board.update([*rows[1:], Row("last", "completed")])
    assert len(to.lines) <= max(size[1] - 1, 1) and all(_width(line) < size[0] for line in to.lines)


def test_wide_letters_and_accents_keep_the_columns(clock: Clock, sized: Callable[[int, int], Terminal]) -> None:
    to = sized(80, 24)
    Board(to, 3).update([Row("日本", "running"), Row("e\u0301e", "running"), Row("abcd", "running")])
    assert [_width(line[: line.index("running")]) for line in to.lines[:3]] == [6, 6, 6]


@settings(max_examples=300, deadline=None)
@given(st.text(st.sampled_from("ab日é\u0301\u200d\x1b\n😀"), max_size=30), st.integers(0, 20))
def test_what_is_cut_fits_and_what_fits_is_not_cut(text: str, width: int) -> None:
    cut = _cut(text, width)
    assert _width(cut) <= width and cut.isprintable()
    whole = "".join(c if c.isprintable() else "?" for c in text)
    assert (cut == whole) == (_width(whole) <= width)
    assert cut == whole or cut == "" or (cut.endswith("~") and whole.startswith(cut[:-1]))


@contextmanager
def real_terminal(width: int, height: int) -> Iterator[tuple[int, io.TextIOWrapper]]:
    """The master's descriptor, and a stream to the terminal."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))
    try:
        with os.fdopen(slave, "w", encoding="utf-8") as to:
            yield master, to
    finally:
        os.close(master)


def test_a_real_terminal_says_its_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    with real_terminal(30, 5) as (master, to):
        Board(to, 9).update([Row(f"a={i} {'x' * 50}", "running") for i in range(9)])
        told = os.read(master, 10_000).decode().replace("\r\n", "\n").split("\n")
    assert len(told) == 4 and all(len(line) < 30 for line in told) and told[-1].startswith("[0/9] 9 running")


def test_a_terminal_of_size_zero_counts_as_80_by_24() -> None:
    with real_terminal(0, 0) as (_, to):
        assert Board(to, 1)._size() == (80, 24)
    assert Board(io.StringIO(), 1)._size() == (80, 24)


# --- streams that fail


def test_a_closed_stream_stops_nothing(tmp_path: Path) -> None:
    to = (tmp_path / "x").open("w")
    to.close()
    board = Board(to, 1)
    board.update([Row("a", "running")])
    board.say("x")
    board.close()


def test_a_stream_that_closes_or_fills_up_on_the_way_stops_nothing() -> None:
    read, write = os.pipe()
    os.close(read)
    for descriptor in (os.open("/dev/full", os.O_WRONLY), write):
        to = os.fdopen(descriptor, "w")
        board = Board(to, 2)
        board.update([Row("a", "running"), Row("b", "new")])
        board.update([Row("a", "completed"), Row("b", "running")])
        board.close()
        with pytest.raises(OSError):  # its buffer is still full: it did fail
            to.close()


def test_letters_that_the_stream_lacks_are_spelt(tmp_path: Path) -> None:
    with (tmp_path / "x").open("w", encoding="ascii") as to:
        Board(to, 1).update([Row("größe", "running")])
    assert (tmp_path / "x").read_text() == "[0/1] gr\\xf6\\xdfe  running\n"


def test_with_the_products_own_streams_a_reader_that_went_away_leaves_no_trace() -> None:
    program = "from hpcai.output import steady; steady(); import sys; from hpcai.board import *; b = Board(sys.stdout, 9)\nfor i in range(9999): b.update([Row('a', ['running', 'failed'][i % 2])])"
    script = f'set -o pipefail; {sys.executable} -c "{program}" | head -1'
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "[0/9] a  running\n", "")
