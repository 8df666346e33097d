"""For each case of my share: do it, write one row, skip it next time.   cases -> blocks -> shards -> ranks -> rows -> merged

Cases are cut into blocks of BLOCK in their own order. A shard (predict.shard) has every predict.shards-th block, a rank of it
every world_size-th of those. A block is computed whole even if a part of its rows was written before a kill (the same batch
gives the same bits, in whatever shard) and only missing rows are appended, each a whole line on the disk before the next block
starts. So every case has exactly one row, or one line among the failed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpcai import lease, rundir, runs, submit
from hpcai.context import RunContext
from hpcai.data.cases import Cases
from hpcai.errors import DataError, HpcaiError, PlanError, RunError
from hpcai.inputs import Input
from hpcai.metrics.rows import rows_in
from hpcai.plan import read_config, read_plan
from hpcai.rundir import RunDir
from hpcai.submit import Frozen

BLOCK = 64
Json = dict[str, Any]


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

    def write(self, rows: Sequence[Json]) -> None:
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


def blocks_of(cases: int, shard: int | None = None, shards: int = 1) -> range:
    """The numbers of the blocks that `shard`, from 1, has of so many cases; None: all. No two shards differ by over a block."""
    blocks = range(-(-cases // BLOCK))
    return blocks if shard is None else blocks[shard - 1 :: shards]


def indices_of(block: int, cases: int) -> range:
    """The numbers of the cases of a block."""
    return range(block * BLOCK, min((block + 1) * BLOCK, cases))


def remaining_blocks(run: RunContext, cases: Cases, shard: int | None = None, shards: int = 1) -> Iterator[Block]:
    """The blocks of this rank that are not whole on disk."""
    rank, ranks = run.ranks.rank, run.ranks.world_size
    files: list[Path] = [run.dir.rows_file("predict", rank), run.dir.failed_file(rank)]
    for file in files:
        rundir.cut_torn_line(file)
    written = {line["case"] for file in files for line in rundir.read_lines(file)}
    mine = 0
    for number in blocks_of(len(cases), shard, shards)[rank::ranks]:
        indices = np.array(indices_of(number, len(cases)))
        mine += len(indices)
        if any(cases.ids[i] not in written for i in indices):
            yield Block(run, cases, number, indices, written, done=mine)


# --- shards together


def merged(run: RunDir, cases: Cases, shards: Sequence[RunDir]) -> tuple[list[Json], list[Json]]:
    """The rows of all shards and the lines of what could not be read, in the order of cases: each case once in one of them.

    Raises: PlanError for a run that is not that shard, or has not finished; DataError for other data, a case twice or one that
        is missing; RunError for a damaged file.
    """
    at = {case: i for i, case in enumerate(cases.ids)}
    rows: dict[int, Json] = {}
    failed: dict[int, Json] = {}
    for number, shard in enumerate(shards, 1):
        check_shard(run, shard, number, len(shards))
        own = {i for block in blocks_of(len(cases), number, len(shards)) for i in indices_of(block, len(cases))}
        told = [(rows, row) for file in shard.row_files("predict") for row in _read(shard, file)]
        told += [(failed, line) for file in shard.failed_files() for line in _read(shard, file)]
        seen: set[int] = set()
        for kind, line in told:
            i = at.get(line["case"], -1)
            if i in seen or i not in own:
                raise DataError(
                    f"{_named(shard, number, len(shards))}: holds a case {'twice' if i in seen else 'of another'}. {AGAIN}"
                )
            seen.add(i)
            kind[i] = line
        if lost := len(own - seen):
            raise DataError(f"{_named(shard, number, len(shards))}: {lost:,} of its {len(own):,} cases have no row. {AGAIN}")
    return [rows[i] for i in sorted(rows)], [failed[i] for i in sorted(failed)]


AGAIN = "Remove that run (hpcai rm); the same command predicts it again."


def _named(shard: RunDir, number: int, of: int) -> str:
    return f"predict.shard={number}/{of}: run {shard.path.name}"


def _read(shard: RunDir, file: Path) -> list[Json]:
    """Rows, or lines of failed cases.

    Raises: RunError naming the run, if one is damaged.
    """
    try:
        if file.parent == shard.rows:
            return rows_in(file)
        lines = list(rundir.read_lines(file))
        if not all(isinstance(line["case"], str) for line in lines):
            raise TypeError
        return lines
    except HpcaiError as e:
        raise RunError(f"run={shard.path.name}: {e}") from e
    except runs.DAMAGED as e:
        raise RunError(f"run={shard.path.name}: its {file.name} is damaged. {AGAIN}") from e


def check_shard(run: RunDir, shard: RunDir, number: int, of: int) -> None:
    """`shard` is that part of this very prediction, and has finished: the same models, data and code.

    Raises: PlanError, DataError; Faults for many.
    """
    named = _named(shard, number, of)
    if not shard.plan.is_file():
        raise PlanError(f"{named}: is not there. The same command predicts it.")
    then, config = read_plan(shard), read_config(shard)
    if (then.job, config.predict.shard, config.predict.shards) != ("predict", number, of):
        raise PlanError(f"{named}: is another one. Name the runs of predict.shards={of}, in their order.")
    if (state := lease.read_state(shard).state) != "completed":
        raise PlanError(f"{named}: has not finished ({state}). hpcai resume {shard.path.name} goes on with it.")
    if then.from_run != read_plan(run).from_run:
        raise PlanError(f"{named}: was made by other models than this run names. --anew predicts all of it anew.")
    try:
        files = [Input(**file) for file in rundir.read_json(run.data)["files"]]
        now = Frozen(run.code, rundir.read_json(run.environment))
        faults = list(submit.differences(shard, then, files, now))
    except runs.DAMAGED as e:
        raise PlanError(
            f"run={run.path.name}: its environment.json or data.json is damaged. --anew starts another folder."
        ) from e
    if faults:
        raise faults[0]
