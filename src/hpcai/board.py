"""Many runs on one screen while they go on.   [Row] -> a block redrawn in place, or one line a change where nobody watches

On a terminal the block has at most the screen's height: what runs and what failed comes first, the rest is counted. Elsewhere
(a pipe, a log of CI) each change of a member's state is one line. Never stops a sweep: what the stream does not take is lost.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import time
import unicodedata
from collections import Counter
from dataclasses import dataclass
from typing import TextIO

from hpcai.errors import one_line

REDRAW_S = 0.2  # at most five times a second, unless a state has changed
SIZE = (80, 24)  # of a terminal that does not say
FIRST = ("running", "failed", "lost", "unreadable", "stopped", "cancelled", "pending", "new")  # the rest comes last
OPEN = ("new", "pending", "running")  # not ended yet


@dataclass(frozen=True)
class Row:
    """One member: label, state, how far it is (`epoch 3/10`) or why it ended, best validation score (`val AUC 0.953`)."""

    label: str
    state: str
    progress: str = ""
    score: str = ""


class Board:
    """Shows `total` members (None: a search knows not how many) on `to`."""

    def __init__(self, to: TextIO, total: int | None) -> None:
        self.to = to
        self.total = total
        self._states: list[str] = []
        self._lines = 0  # of the block on the screen
        self._drawn = 0.0
        self._live = False
        with contextlib.suppress(OSError, ValueError):  # closed already
            self._live = to.isatty() and os.environ.get("TERM") != "dumb"

    def update(self, rows: list[Row]) -> None:
        """Shows how the members stand now; `rows` keep their places from call to call, new ones come last."""
        states = [row.state for row in rows]
        changed = states != self._states
        if not self._live:
            self._tell(rows)
        elif changed or time.monotonic() - self._drawn >= REDRAW_S:
            self._draw(self._block(rows))
        self._states = states

    def say(self, text: str) -> None:
        """A line that stays, above the block, which comes back with the next update."""
        self._draw([])
        self._drawn = 0.0
        self._write(one_line(text, 1000) + "\n")

    def close(self) -> None:
        """The block goes; what stays is for whoever prints the result."""
        self._draw([])

    def _tell(self, rows: list[Row]) -> None:
        """`[3/20] trainer.lr=0.001 seed=0  completed  val AUC 0.953` for each state that changed."""
        before = self._states + ["new"] * (len(rows) - len(self._states))
        ended = sum(state not in OPEN for state in before)
        for row, was in zip(rows, before):
            if row.state != was:
                ended += (row.state not in OPEN) - (was not in OPEN)
                why = row.progress if row.state not in (*OPEN, "completed") else ""
                parts = [row.label, row.state, why, "" if row.state in OPEN else row.score]
                line = "  ".join(one_line(part, 200) for part in parts if part)
                self._write(f"[{ended}{self._of(rows)}] {line}\n")

    def _of(self, rows: list[Row]) -> str:
        return "" if self.total is None else f"/{max(self.total, len(rows))}"

    def _block(self, rows: list[Row]) -> list[str]:
        """At most a screen of lines: the members, the important ones first where they are too many, then how many are what."""
        width, height = self._size()
        room = height - 2  # the counts, and the prompt's line below
        top = rows
        if len(rows) > room:
            order = {state: place for place, state in enumerate(FIRST)}
            top = sorted(rows, key=lambda row: order.get(row.state, len(order)))[: max(room, 0)]
        labels = [one_line(row.label, 200) for row in top]
        column = min(max(map(_width, labels), default=0), width // 2)
        lines = []
        for row, label in zip(top, labels):
            facts = "  ".join(fact for fact in (f"{row.state:<9}", row.progress, row.score) if fact)
            lines.append(f"{_cut(label, column)}{' ' * (column - _width(label))}  {facts}")
        counts = Counter(row.state for row in rows)
        ended = len(rows) - sum(counts[state] for state in OPEN)
        told = ", ".join(f"{n} {state}" for state, n in sorted(counts.items()))
        hidden = len(rows) - len(top)
        lines.append(f"[{ended}{self._of(rows)}] {told}" + f"  ({hidden} not shown)" * (hidden > 0))
        return [_cut(line.rstrip(), width - 1) for line in lines]  # a full last column would wrap on some terminals

    def _size(self) -> tuple[int, int]:
        with contextlib.suppress(OSError, ValueError):
            width, height = os.get_terminal_size(self.to.fileno())
            if width > 1 and height > 0:
                return width, height
        return SIZE

    def _draw(self, lines: list[str]) -> None:
        """Puts `lines` in the place of the block: up to its first line, clear from there."""
        if self._lines or lines:
            up = f"\x1b[{self._lines - 1}A" if self._lines > 1 else ""
            self._write((f"\r{up}\x1b[J" if self._lines else "") + "\n".join(lines))
        self._lines = len(lines)
        self._drawn = time.monotonic()

    def _write(self, text: str) -> None:
        """Writes now, or loses it: a reader that went away, a full disk and a closed stream stop nothing."""
        with contextlib.suppress(OSError, ValueError):
            coding = self.to.encoding or "utf-8"
            self.to.write(text.encode(coding, "backslashreplace").decode(coding))
            self.to.flush()


def _width(text: str) -> int:
    """How many columns `text` takes: two for a wide letter, none for an accent that stands on the one before."""
    return sum(_columns(c) for c in text)


def _columns(c: str) -> int:
    if unicodedata.category(c) in ("Mn", "Me"):
        return 0
    return 2 if unicodedata.east_asian_width(c) in "WF" else 1


def _cut(text: str, width: int) -> str:
    """`text` on one line of at most `width` columns; what was cut ends in `~`."""
    text = one_line(text, 1000)
    if _width(text) <= width:
        return text
    ends = itertools.accumulate(map(_columns, text))
    return text[: sum(end < width for end in ends)] + "~" * (width > 0)
