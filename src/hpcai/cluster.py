"""What this machine is, and the rules of runs that it does itself. What a Slurm machine allows: limits.py."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from hpcai.config.schema import Config
from hpcai.errors import HpcaiError, PlanError

GIB = 2**30


@dataclass(frozen=True)
class Machine:
    """This machine: cores this process may use, memory in GiB, names of its GPUs."""

    cores: int
    mem_gb: float
    gpus: tuple[str, ...]
    cpu: str
    system: str


def read_machine() -> Machine:
    """Looks at /proc and /sys alone: no driver is loaded, no torch."""
    import psutil

    return Machine(
        cores=len(os.sched_getaffinity(0)),
        mem_gb=round(psutil.virtual_memory().total / GIB, 1),
        gpus=tuple(_gpus()),
        cpu=_cpu_name(),
        system=f"{platform.system()} {platform.release()}",
    )


def _gpus() -> Iterator[str]:
    for info in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information")):
        lines = info.read_text("utf-8", "replace").splitlines()
        yield next((line.split(":", 1)[1].strip() for line in lines if line.startswith("Model")), "NVIDIA GPU")


def _cpu_name() -> str:
    lines = Path("/proc/cpuinfo").read_text("utf-8", "replace").splitlines()
    facts = dict(line.split(":", 1) for line in lines if ":" in line)
    clean = {k.strip(): v.strip() for k, v in facts.items()}
    parts = [clean.get(k, "?") for k in ("model name", "cpu family", "model")]
    return f"{parts[0]} ({platform.machine()}, family {parts[1]}, model {parts[2]})"


def threads(config: Config, machine: Machine) -> int:
    """Threads of one rank: as asked, or the machine's cores shared among its ranks."""
    asked = config.resources.cpus_per_task
    return asked if asked is not None else max(1, machine.cores // config.resources.tasks_per_node)


def limits(config: Config) -> Iterator[HpcaiError]:
    """What the machine's file forbids: nodes without a scheduler, data of persons that it does not accept."""
    asked, name = config.resources.nodes, config.cluster.name
    if asked > 1 and config.cluster.executor == "local":
        yield PlanError(f"resources.nodes={asked}: cluster {name} has 1. Ask for fewer.")
    takes, holds = config.cluster.facts.identifiers, config.data.identifiers
    if takes is not None and holds is not None and config.job != "gather" and holds not in takes:
        yield PlanError(
            f"data.identifiers={holds}: cluster {name} accepts {', '.join(takes) or 'no data'}, says its file. "
            "Take out what names persons and state it anew, or run elsewhere."
        )


def violations(config: Config, machine: Machine) -> Iterator[HpcaiError]:
    """Everything that this machine does not allow, at once."""
    asked = config.resources
    if asked.gpus_per_node > len(machine.gpus):
        yield PlanError(
            f"resources.gpus_per_node={asked.gpus_per_node}: this machine has {len(machine.gpus)} GPUs. "
            f"Ask for resources.gpus_per_node={len(machine.gpus)}."
        )
    if asked.gpus_per_node and asked.gpus_per_node < asked.tasks_per_node:
        yield PlanError(
            f"resources.tasks_per_node={asked.tasks_per_node}: {asked.gpus_per_node} GPUs a node, and a rank takes one. "
            f"Ask for resources.tasks_per_node={asked.gpus_per_node}."
        )
    if asked.mem_gb is not None and asked.mem_gb > machine.mem_gb:
        yield PlanError(f"resources.mem_gb={asked.mem_gb:g}: this machine has {machine.mem_gb:g} GB. Ask for less.")


def warnings(config: Config, machine: Machine) -> Iterator[str]:
    """What runs, but not as its user may think."""
    ranks = config.resources.tasks_per_node
    wanted = ranks * (config.resources.cpus_per_task or 1)
    if wanted > machine.cores:
        yield (f"resources.tasks_per_node={ranks}: {wanted} threads share {machine.cores} cores. It runs, but no faster.")
    yield from per_rank_statistics(config)
    yield from without_effect(config)


def per_rank_statistics(config: Config) -> Iterator[str]:
    """Whether a net's scores depend on the number of its ranks, on whatever machine."""
    ranks = config.resources.nodes * config.resources.tasks_per_node
    if ranks > 1 and config.job == "train" and config.model.norm == "batch":
        yield (
            f"model.norm=batch: on {ranks} ranks the statistics are per rank, so scores differ from one rank's. "
            "model.norm=group gives the same on any rank count."
        )


OF_A_SCHEDULER = ("account", "partition", "qos", "reservation", "mail", "python", "preflight", "chain")


def without_effect(config: Config) -> Iterator[str]:
    """Keys that only Slurm reads, set for a run without it: a mail that never comes should be no surprise."""
    cluster = config.cluster
    asked = [f"cluster.{name}" for name in OF_A_SCHEDULER if getattr(cluster, name)]
    asked += [f"sweep.{name}" for name, value in config.sweep if value is not None]
    if asked and cluster.executor == "local":
        yield f"{', '.join(asked)}: without effect on {cluster.name}, which has no scheduler. Name another cluster."
