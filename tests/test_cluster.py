"""What this machine is, and what it does not allow."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest

from hpcai import cluster
from hpcai.cluster import Machine, read_machine, threads, violations
from hpcai.config.check import check
from hpcai.config.schema import Config

MACHINE = Machine(cores=8, mem_gb=16.0, gpus=("A", "B"), cpu="c", system="s")
RAW: dict[str, Any] = {
    "name": "x",
    "data": {"path": "x", "labels": ["a", "b"], "identifiers": "none"},
    "cluster": {"name": "here"},
}


def config(job: str = "train", norm: str = "group", **resources: Any) -> Config:
    source = {"from_run": "x"} if job != "train" else {}
    return check(RAW | {"job": job, "model": {"norm": norm}, "resources": resources} | source)


def lines(**resources: Any) -> list[str]:
    cfg = config(**resources)
    return [f"{e.code} {e}" for e in (*cluster.limits(cfg), *violations(cfg, MACHINE))]


def test_what_fits_is_allowed_to_the_last_piece() -> None:
    assert lines(nodes=1, tasks_per_node=2, gpus_per_node=2, mem_gb=16.0, cpus_per_task=999) == []


@pytest.mark.parametrize(("asked", "said"), [
    ({"nodes": 3}, "3 resources.nodes=3: cluster here has 1. Ask for fewer."),
    ({"gpus_per_node": 3}, "3 resources.gpus_per_node=3: this machine has 2 GPUs. Ask for resources.gpus_per_node=2."),
    ({"gpus_per_node": 1, "tasks_per_node": 2}, "3 resources.tasks_per_node=2: 1 GPUs a node, and a rank takes one. "
     "Ask for resources.tasks_per_node=1."),
    ({"mem_gb": 16.1}, "3 resources.mem_gb=16.1: this machine has 16 GB. Ask for less."),
])  # fmt: skip
def test_what_does_not_fit_is_told_with_the_limit(asked: dict[str, Any], said: str) -> None:
    assert lines(**asked) == [said]


def test_all_is_told_at_once() -> None:
    assert len(lines(nodes=3, gpus_per_node=3, tasks_per_node=4, mem_gb=99.0)) == 4


@pytest.mark.parametrize(("asked", "ranks", "given"), [(None, 1, 8), (None, 2, 4), (None, 3, 2), (None, 64, 1), (5, 2, 5)])
def test_cores_are_shared_among_ranks(asked: int | None, ranks: int, given: int) -> None:
    assert threads(config(tasks_per_node=ranks, cpus_per_task=asked), MACHINE) == given


def test_what_runs_otherwise_than_one_may_think_is_warned_of() -> None:
    def told(**kw: Any) -> list[str]:
        return [line.split("=")[0] for line in cluster.warnings(config(**kw), MACHINE)]

    assert told() == told(norm="batch") == told(tasks_per_node=8) == told(job="evaluate", norm="batch", tasks_per_node=2) == []
    assert told(tasks_per_node=9) == told(tasks_per_node=3, cpus_per_task=3) == ["resources.tasks_per_node"]
    assert told(tasks_per_node=2, norm="batch") == ["model.norm"]


def test_this_machine_is_read_without_a_driver_or_torch() -> None:
    machine = read_machine()
    assert machine.cores == len(os.sched_getaffinity(0)) and machine.mem_gb > 0 and machine.system.startswith("Linux ")
    code = "import sys; from hpcai.cluster import read_machine; read_machine(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_cores_are_those_that_this_process_may_use() -> None:
    code = "import os; os.sched_setaffinity(0, [min(os.sched_getaffinity(0))]); "
    code += "from hpcai.cluster import read_machine; print(read_machine().cores)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "1\n"


def test_keys_that_only_a_scheduler_reads_are_told_where_there_is_none() -> None:
    def told(**keys: Any) -> list[str]:
        found = config().model_copy(update={"cluster": config().cluster.model_copy(update=keys)})
        return list(cluster.warnings(found, MACHINE))

    (said,) = told(qos="short", mail="a@b.c", chain=2)
    assert said.startswith("cluster.qos, cluster.mail, cluster.chain: without effect on here, which has no scheduler.")
    assert told() == told(executor="slurm", qos="short") == []


def test_a_batch_norm_over_several_nodes_is_told_too() -> None:
    assert list(cluster.per_rank_statistics(config(norm="batch", nodes=2))) != []
    assert list(cluster.per_rank_statistics(config(norm="batch"))) == list(cluster.per_rank_statistics(config(nodes=2))) == []
