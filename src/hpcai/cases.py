"""For each case of my shard: do it, write one row, skip it next time.

Cases are cut into blocks of BLOCK in their own order; a rank takes every world_size-th block. A block is computed whole even if
a part of its rows was written before a kill (the same batch gives the same bits) and only missing rows are appended, each a
whole line on the disk before the next block starts. So every case has exactly one row, or one line among the failed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpcai import rundir
from hpcai.context import RunContext
from hpcai.data.cases import Cases

BLOCK = 64


@dataclass
class Block:
    """Some cases to do. `failed` is filled by who reads them: {index: reason without patient data}."""

    run: RunContext
    cases: Cases
    number: int
    indices: NDArray[np.int64]
    written: set[str]
    done: int = 0
    failed: dict[int, str] = field(default_factory=dict)

    def write(self, rows: Sequence[dict[str, Any]]) -> None:
        """Appends the rows that are not there yet and the cases that failed, and waits for the disk."""
        self.run.fence()
        rank = self.run.ranks.rank
        new = [row for row in rows if row["case"] not in self.written]
        lost = [{"case": self.cases.ids[i], "row": i, "reason": reason} for i, reason in self.failed.items()]
        lost = [line for line in lost if line["case"] not in self.written]
        if new:
            rundir.append_lines(self.run.dir.rows_file("predict", rank), new, sync=True)
        if lost:
            rundir.append_lines(self.run.dir.failed_file(rank), lost, sync=True)


def remaining_blocks(run: RunContext, cases: Cases) -> Iterator[Block]:
    """The blocks of this rank that are not whole on disk."""
    rank, ranks = run.ranks.rank, run.ranks.world_size
    files: list[Path] = [run.dir.rows_file("predict", rank), run.dir.failed_file(rank)]
    for file in files:
        rundir.cut_torn_line(file)
    written = {line["case"] for file in files for line in rundir.read_lines(file)}
    mine = 0
    for number in range(rank, -(-len(cases) // BLOCK), ranks):
        indices = np.arange(number * BLOCK, min((number + 1) * BLOCK, len(cases)))
        mine += len(indices)
        if any(cases.ids[i] not in written for i in indices):
            yield Block(run, cases, number, indices, written, done=mine)
