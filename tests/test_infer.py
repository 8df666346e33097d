"""Rows of a split: whole, in order, the same whoever computed them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from training_kit import ALONE, config, on_ranks, same_bits, small_net, table, taken, write_npz

from hpcai import lease, rundir
from hpcai.context import Ranks, RunContext
from hpcai.data.cases import Cases, Pixels
from hpcai.data.open import open_cases
from hpcai.data.samples import Scaling
from hpcai.errors import DataError, OwnedError
from hpcai.infer import BLOCK, as_table, logits_of, logits_of_cases, rows_of, write_rows
from hpcai.rundir import RunDir
from hpcai.tasks.classification import Classification
from hpcai.trained import Trained

torch.set_num_threads(1)


@pytest.mark.parametrize("n", [1, BLOCK - 1, BLOCK, 2 * BLOCK + 5])
def test_logits_have_the_same_bits_on_any_rank_count(n: int) -> None:
    net, samples = small_net("batch").eval(), table(n, dtype=torch.float32)
    one = logits_of(net, samples, 2, ALONE)
    assert one.shape == (n, 2) and not one.requires_grad
    for ranks in (2, 3):
        for logits in on_ranks(ranks, lambda group: logits_of(net, samples, 2, group)):
            assert same_bits(logits, one)
    torch.testing.assert_close(one, net(samples.x).detach(), rtol=1e-4, atol=1e-5)


def test_rows_become_the_table_that_metrics_read(tmp_path: Path) -> None:
    cases = open_cases(config(write_npz(tmp_path / "d.npz")).data)
    indices = np.array([3, 0, 200])
    rows = rows_of(Classification(["no", "yes"]), cases, indices, torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]]))
    assert [r["case"] for r in rows] == ["train/3", "train/0", "val/50"]
    table = as_table(rows)
    assert table.case == ["train/3", "train/0", "val/50"] and table.patient is None
    assert table.label.tolist() == cases.labels[indices].tolist()
    assert table.scores[0].tolist() == [0.5, 0.5]
    cases.patients = [f"p{i}" for i in range(len(cases))]
    assert as_table(rows_of(Classification(["no", "yes"]), cases, indices, torch.zeros(3, 2))).patient == ["p3", "p0", "p200"]


def test_rows_are_written_by_rank_0_whole(tmp_path: Path) -> None:
    context = taken(tmp_path)
    rows = [{"case": "ü", "patient": None, "label": 1, "scores": [0.1, 0.9]}] * 3
    write_rows(RunContext(context.dir, Ranks(rank=1, world_size=2)), "val", rows)
    assert not context.dir.rows.exists()
    write_rows(context, "val", rows)
    write_rows(context, "val", rows)  # again, after a kill
    assert [json.loads(line) for line in context.dir.rows_file("val", 0).read_text().splitlines()] == rows


def test_scores_that_are_no_numbers_are_never_written(tmp_path: Path) -> None:
    context = taken(tmp_path)
    with pytest.raises(ValueError):
        write_rows(context, "val", [{"case": "a", "scores": [float("nan")]}])
    assert not context.dir.rows_file("val", 0).exists()


def test_a_life_that_lost_the_run_writes_no_rows(tmp_path: Path) -> None:
    context = taken(tmp_path)
    lease.append(context.dir, 1, 0, "end", code=5)
    lease.take(context.dir, 1)
    with pytest.raises(OwnedError):
        write_rows(context, "val", [])


# ---- cases that may not be readable


class Some(Cases):
    """Four images: whole, unreadable, of another shape, whole."""

    def __init__(self) -> None:
        self.ids, self.labels = ["a", "b", "c", "d"], np.full(4, -1)

    def read(self, index: int) -> Pixels:
        if index == 1:
            raise DataError("data: row 1: is no image.")
        return np.full((1, 6, 7 if index == 2 else 6), index, np.uint8)


def trained(dtype: torch.dtype = torch.float32) -> Trained:
    net = small_net().to(dtype).eval()
    return Trained(RunDir(Path("/nowhere")), net, ["no", "yes"], Scaling((1.0,), (2.0,)), (6, 6), dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_cannot_be_read_is_told_and_the_rest_is_scored(dtype: torch.dtype) -> None:
    failed: dict[int, str] = {}
    model = trained(dtype)
    read, (logits,) = logits_of_cases([model], Some(), np.arange(4), failed)
    assert read == [0, 3] and logits.shape == (2, 2) and logits.dtype == dtype
    assert failed.keys() == {1, 2}
    assert failed[1] == "data: row 1: is no image." and "(1, 6, 7)" in failed[2]
    x = model.scaling.apply(torch.tensor([0.0, 3.0]).view(2, 1, 1, 1).expand(2, 1, 6, 6), dtype)
    torch.testing.assert_close(logits, model.model(x).detach())


def test_with_nothing_readable_there_are_no_logits() -> None:
    failed: dict[int, str] = {}
    read, (logits,) = logits_of_cases([trained()], Some(), np.array([1, 2]), failed)
    assert read == [] and logits.shape == (0, 2) and len(failed) == 2


def test_logits_without_a_nan_give_json_that_any_program_reads(tmp_path: Path) -> None:
    context = taken(tmp_path)
    rows: list[dict[str, Any]] = Classification(["no", "yes"]).rows(["a"], None, [1], torch.tensor([[1e4, -1e4]]))
    write_rows(context, "test", rows)
    assert list(rundir.read_lines(context.dir.rows_file("test", 0))) == rows
