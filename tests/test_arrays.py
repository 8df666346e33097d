"""How many jobs a sweep is sent as, and what sbatch is told of them. What Slurm makes of it: test_pack.py."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcai import arrays
from hpcai.arrays import Jobs
from hpcai.config.check import load
from hpcai.run import main

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


def planned_on_slurm(*words: str, capsys: pytest.CaptureFixture[str]) -> tuple[str, list[str]]:
    """The line of jobs of a plan of many runs, and its warnings."""
    smoke = ["+experiment=smoke", "cluster=testbed", "resources.timeout_min=10", "runs_dir=/tmp/none-there", *words]
    assert main(["--dry-run", *smoke]) == 0
    out, err = capsys.readouterr()
    return next(line for line in out.splitlines() if line.startswith("jobs ")), err.splitlines()


def test_what_few_members_leave_idle_of_a_node_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    jobs, warned = planned_on_slurm("-m", "resources.gpus_per_node=1", "seed=0,1", capsys=capsys)
    assert jobs == "jobs  2 runs in 1 job, up to 2 side by side"
    assert any(w.startswith("warning: 2 of 4 GPUs: billed 4; -m seed=0,1,2,3 costs the same") for w in warned), warned
    _, warned = planned_on_slurm("-m", "resources.gpus_per_node=1", "seed=0,1,2,3", capsys=capsys)
    assert not any("billed" in w for w in warned), warned


def test_a_search_whose_trials_all_begin_at_once_is_told_to_learn_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    search = ["-m", "--search", "trials=8", "resources.cpus_per_task=1", "trainer.lr=interval(0.1,0.2)"]
    words = "sweep.per_node=2 sweep.array_parallelism=1"
    _, warned = planned_on_slurm(*search, capsys=capsys)
    said = f"warning: --search: all 8 trials begin at once, so that none learns from another. {words} has the later ones learn."
    assert said in warned
    _, warned = planned_on_slurm(*search, *words.split(), capsys=capsys)
    assert not any("--search" in w for w in warned), warned


def test_some_folds_without_the_others_are_told_to_be_pooled_by_nobody(capsys: pytest.CaptureFixture[str]) -> None:
    folds = ["-m", "resources.cpus_per_task=1", "data.split.by=kfold"]
    _, warned = planned_on_slurm(*folds, "data.split.fold=range(0,3)", capsys=capsys)
    assert (
        "warning: data.split.fold: 3 of data.split.folds=5: what they leave out is not pooled. "
        "'data.split.fold=range(0,5)' has all of them."
    ) in warned
    jobs, warned = planned_on_slurm(*folds, "data.split.fold=range(0,5)", capsys=capsys)
    assert not any("pooled" in w for w in warned) and jobs.startswith("jobs  6 runs")
