"""How many jobs a sweep is sent as, and what sbatch is told of them. What Slurm makes of it: test_pack.py."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcai import arrays
from hpcai.arrays import Jobs
from hpcai.config.check import load

MELUXINA = ["+experiment=pneumonia", "cluster=meluxina", "cluster.account=p200000", "resources.gpus_per_node=1"]


@pytest.mark.parametrize(("members", "beside", "more", "jobs"), [
    (1, 4, [], Jobs(4, (1,), None, 0)),
    (5, 4, [], Jobs(4, (2,), None, 0)),
    (200, 4, [], Jobs(4, (50,), None, 0)),
    (600, 4, [], Jobs(4, (100,), None, 50)),
    (600, 4, ["cluster.facts.max_array=40"], Jobs(4, (40, 40, 20), None, 50)),
    (600, 4, ["cluster.chain=3"], Jobs(4, (33,), None, 117)),  # each is sent three times, to follow each other
    (200, 4, ["sweep.array_parallelism=7"], Jobs(4, (50,), 7, 0)),
])  # fmt: skip
def test_a_sweep_is_as_few_jobs_as_hold_its_members(members: int, beside: int, more: list[str], jobs: Jobs) -> None:
    assert arrays.jobs_for(load([*MELUXINA, *more]), members, beside, 0) == jobs


def test_jobs_that_wait_in_the_queue_count_in_the_limit() -> None:
    assert arrays.jobs_for(load(MELUXINA), 200, 4, 70) == Jobs(4, (30,), None, 20)


def test_sbatch_is_told_the_tasks_of_each_array_and_how_many_may_run() -> None:
    assert Jobs(4, (50,), None, 0).specs() == ["--array=0-49"]
    assert Jobs(4, (50,), 7, 0).specs() == ["--array=0-49%7"]
    assert Jobs(4, (5,), 7, 0).specs() == ["--array=0-4"]
    assert Jobs(4, (40, 40, 20), 7, 0).specs() == ["--array=0-39%2", "--array=0-39%2", "--array=0-19%3"]


@given(st.lists(st.integers(1, 100), min_size=1, max_size=8), st.integers(1, 200))
def test_all_arrays_together_run_no_more_at_once_than_was_asked(sizes: list[int], most: int) -> None:
    if most < len(sizes):
        return  # jobs_for sends no more arrays than may run
    told = Jobs(1, tuple(sizes), most, 0).specs()
    shares = [int(spec.partition("%")[2] or size) for spec, size in zip(told, sizes)]
    assert sum(shares) <= most and all(share >= 1 for share in shares)
