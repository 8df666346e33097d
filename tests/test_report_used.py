"""What a run used of what it was given, in its report: sums over ranks, and what to ask for next time where much was idle."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from report_runs import make_run
from test_report import report_of, text_of

from hpcai import rundir
from hpcai.meter import GIB, Use
from hpcai.rundir import RunDir

ASKED = {"nodes": 1, "tasks_per_node": 1, "gpus_per_node": 0, "cpus_per_task": 8, "mem_gb": 64.0}
USED = Use(0, 0, lives=1, seconds=3600.0, cpu_s=4320.0, mem=6 * GIB)
NODE = {"partitions": {"gpu": {"cores": 64, "gpus": 4}}}


def ran(path: Path, *uses: Use, threads: int = 8, slurm: dict[str, Any] | None = None, **asked: Any) -> RunDir:
    """A finished run with what its ranks used."""
    resources = ASKED | asked
    run = make_run(path, epochs=1, ranks=resources["tasks_per_node"], resources=resources, cluster={"name": "m", "facts": NODE})
    plan = rundir.read_json(run.plan) | {"threads": threads, "slurm": slurm}
    rundir.write_json(run.plan, plan)
    for use in uses:
        rundir.write_json(run.use_file(use.rank), asdict(use))
    return run


def wasted(run: RunDir) -> list[str]:
    report, page = report_of(run)
    told: list[str] = report["used"]["waste"]
    assert all(text in text_of(page) for text in told) and ('id="waste"' in page) == bool(told)
    return told


def test_what_was_asked_for_and_not_used_is_told_with_what_to_ask_for(tmp_path: Path) -> None:
    assert wasted(ran(tmp_path, USED)) == [
        "Memory: asked 64 GB a node, used 6.0: next time resources.mem_gb=8.",
        "Cores: 8, 1.2 busy on average: next time resources.cpus_per_task=2.",
    ]


def test_its_numbers_stand_in_the_page_beside_its_cost(tmp_path: Path) -> None:
    report, page = report_of(ran(tmp_path, USED))
    assert report["used"] | {"waste": []} == {
        "seconds": 3600.0, "cpu_s": 4320.0, "cores": 8, "busy": 1.2, "efficiency": 0.15, "mem_gb": 6.0, "mem_asked_gb": 64.0,
        "gpus": 0, "gpu": None, "gpu_mem_gb": None, "gpu_has_gb": None, "waste": [],
    }  # fmt: skip
    text = text_of(page)
    for words in ("CPU time 1 h 12 min", "Peak memory 6.0 of 64 GB asked a node", "Cores busy 1.2 of 8 (15 %)"):
        assert words in text
    assert text.index("Ranks") < text.index("Peak memory") < text.index("Processor")


def test_a_run_that_nobody_looked_at_has_the_report_that_it_had(tmp_path: Path) -> None:
    report, page = report_of(ran(tmp_path))
    assert "used" not in report and "waste" not in page and "Peak memory" not in page


@pytest.mark.parametrize(("use", "asked"), [
    (Use(0, 0, seconds=3600, cpu_s=3600 * 6, mem=40 * GIB), {}),  # six of eight cores, 50 of 64 GB
    (Use(0, 0, seconds=59, cpu_s=10, mem=40 * GIB), {}),  # mostly start-up
    (Use(0, 0, seconds=3600, cpu_s=3600, mem=6 * GIB), {"mem_gb": None, "cpus_per_task": None}),  # nothing was asked for
])  # fmt: skip
def test_what_was_needed_short_or_not_asked_for_is_no_waste(tmp_path: Path, use: Use, asked: dict[str, Any]) -> None:
    assert wasted(ran(tmp_path, use, **asked)) == []


def test_memory_is_that_of_the_fullest_node_and_cores_those_of_the_busiest_rank(tmp_path: Path) -> None:
    uses = [Use(r, r // 2, seconds=100.0, cpu_s=100.0 * (1 + r), mem=(1 + r) * GIB) for r in range(4)]
    run = ran(tmp_path, *uses, nodes=2, tasks_per_node=2, cpus_per_task=16, threads=16, mem_gb=20.0)
    report, _ = report_of(run)
    assert (report["used"]["mem_gb"], report["used"]["busy"], report["used"]["cores"]) == (7.0, 10.0, 64)
    assert wasted(run) == ["Cores: 16 a rank, 4.0 busy on average: next time resources.cpus_per_task=5."]


def test_of_whole_nodes_the_idle_cores_are_told_and_no_cure_that_saves_nothing(tmp_path: Path) -> None:
    run = ran(tmp_path, USED, slurm={"partition": "gpu", "whole": True, "price": None})
    assert wasted(run) == ["Cores: 64 are billed with whole nodes, 1.2 were busy on average."]


@pytest.mark.parametrize(("gpus", "busy", "said"), [
    (1, 0.12, ["GPU: 1 GPU, 12 % busy: next time resources.gpus_per_node=0, or a larger trainer.batch_size."]),
    (4, 0.12, ["GPU: 4 GPUs, 12 % busy: next time fewer (resources.gpus_per_node), or a larger trainer.batch_size."]),
    (4, 0.2, []),
])  # fmt: skip
def test_gpus_that_idle_are_told(tmp_path: Path, gpus: int, busy: float, said: list[str]) -> None:
    use = Use(0, 0, 1, 100.0, 800.0, 60 * GIB, gpu_s=90.0, gpu_busy_s=90.0 * busy, gpu_mem=10 * GIB, gpu_mem_total=80 * GIB)
    run = ran(tmp_path, use, gpus_per_node=gpus)
    assert wasted(run) == said
    report, page = report_of(run)
    assert (report["used"]["gpus"], report["used"]["gpu"]) == (gpus, busy) and "10.0 of 80 GB" in page


@pytest.mark.parametrize(("beside", "said"), [
    (1, "m, 1 gpu node; at most 0.5 node-h (1 gpu node x 30 min)"),
    (4, "m, 1 gpu node shared by 4 runs; at most 0.5 node-h (1 gpu node x 30 min) for all of them"),
])  # fmt: skip
def test_the_price_of_a_node_that_several_runs_share_is_told_as_such(tmp_path: Path, beside: int, said: str) -> None:
    price = {"amount": 0.5, "unit": "node-h", "words": "at most 0.5 node-h (1 gpu node x 30 min)"}
    slurm = {"partition": "gpu", "qos": None, "whole": True, "price": price, "per_node": beside}
    run = ran(tmp_path, USED, slurm=slurm)
    rundir.write_json(run.plan, rundir.read_json(run.plan) | {"cluster": "m"})
    _, page = report_of(run)
    text = text_of(page)
    assert f"Cluster {said}" in text and f"Cluster {said};" not in text
