"""Blocks of cases: each done once, whatever was written before a kill."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from training_kit import taken

from hpcai import lease, rundir
from hpcai.cases import BLOCK, Block, remaining_blocks
from hpcai.context import Ranks, RunContext
from hpcai.data.cases import Cases, Pixels
from hpcai.errors import OwnedError


class Many(Cases):
    """`n` cases of no pixels."""

    def __init__(self, n: int) -> None:
        self.ids, self.labels = [f"c{i}" for i in range(n)], np.full(n, -1)

    def read(self, index: int) -> Pixels:
        raise NotImplementedError


def row(block: Block, i: int) -> dict[str, Any]:
    return {"case": block.cases.ids[i], "scores": [0.5, 0.5]}


def do(block: Block, bad: int | None = None) -> None:
    """Scores a block; case `bad` cannot be read."""
    if bad in block.indices:
        block.failed[bad] = "no image"  # type: ignore[index]
    block.write([row(block, i) for i in block.indices if i != bad])


def on_rank(context: RunContext, rank: int, ranks: int) -> RunContext:
    return RunContext(context.dir, Ranks(rank=rank, world_size=ranks))


def written(context: RunContext) -> list[str]:
    files = [*context.dir.row_files("predict"), *context.dir.failed_files()]
    return [line["case"] for f in files for line in rundir.read_lines(f)]


@given(n=st.integers(1, 5 * BLOCK), ranks=st.integers(1, 4))
@settings(max_examples=25, deadline=None)
def test_every_case_is_in_one_block_of_one_rank(tmp_path_factory: pytest.TempPathFactory, n: int, ranks: int) -> None:
    context, cases = taken(tmp_path_factory.mktemp("run")), Many(n)
    for rank in range(ranks):
        for block in remaining_blocks(on_rank(context, rank, ranks), cases):
            do(block, bad=n // 2)
    assert sorted(written(context)) == sorted(cases.ids)
    assert [line["case"] for f in context.dir.failed_files() for line in rundir.read_lines(f)] == [f"c{n // 2}"]


@given(cut=st.integers(0, 10_000), bad=st.integers(0, 3 * BLOCK - 1))
@settings(max_examples=40, deadline=None)
def test_rows_cut_anywhere_are_completed_to_one_a_case(tmp_path_factory: pytest.TempPathFactory, cut: int, bad: int) -> None:
    context, cases = taken(tmp_path_factory.mktemp("run")), Many(3 * BLOCK - 7)
    for block in remaining_blocks(context, cases):
        do(block, bad)
    whole = sorted(written(context))
    file = context.dir.rows_file("predict", 0)
    file.write_bytes(file.read_bytes()[:cut])
    done = 0
    for block in remaining_blocks(context, cases):
        assert len(block.indices) in (BLOCK, BLOCK - 7)  # a block is computed whole: the same bits as before
        do(block, bad)
        done += 1
    assert sorted(written(context)) == whole and len(set(whole)) == len(whole)
    assert list(remaining_blocks(context, cases)) == []
    assert done or cut >= file.stat().st_size


def test_a_case_that_failed_is_not_tried_again(tmp_path: Path) -> None:
    context, cases = taken(tmp_path), Many(3)
    for block in remaining_blocks(context, cases):
        block.failed = {0: "a", 1: "b", 2: "c"}
        block.write([])
    assert list(remaining_blocks(context, cases)) == []
    assert [(v["row"], v["reason"]) for v in rundir.read_lines(context.dir.failed_file(0))] == [(0, "a"), (1, "b"), (2, "c")]


def test_blocks_count_what_a_rank_has_done(tmp_path: Path) -> None:
    context, cases = taken(tmp_path), Many(3 * BLOCK)
    assert [b.done for b in remaining_blocks(on_rank(context, 0, 2), cases)] == [BLOCK, 2 * BLOCK]
    assert [b.done for b in remaining_blocks(on_rank(context, 1, 2), cases)] == [BLOCK]


def test_a_life_that_lost_the_run_adds_no_row(tmp_path: Path) -> None:
    context, cases = taken(tmp_path), Many(2)
    (block,) = remaining_blocks(context, cases)
    lease.append(context.dir, 1, 0, "end", code=5)
    lease.take(context.dir, 1)
    with pytest.raises(OwnedError):
        do(block)
    assert written(context) == []
