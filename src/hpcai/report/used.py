"""What a run used of what it was given, and what to ask for next time: Folder -> the block `used` of report.json."""

from __future__ import annotations

import math
from collections.abc import Iterator
from statistics import fmean

from hpcai.meter import GIB, memory_to_ask, node_peak
from hpcai.report.folder import Folder, Json
from hpcai.report.words import duration

TOLD_S = 60.0  # a shorter run is mostly start-up: its cores and GPUs say nothing of a longer one
GPU_LOW = 0.2  # busy for less of the time


def used(folder: Folder) -> Json:
    """Sums over ranks and lives; `busy`: cores at work on average; `cores`: those given; `waste`: sentences."""
    uses = folder.use
    seconds = fmean(use.seconds for use in uses)
    cpu_s, gpu_s = sum(use.cpu_s for use in uses), sum(use.gpu_s for use in uses)
    cores, busy = _cores(folder), cpu_s / max(seconds, 1e-9)
    gpus = [use for use in uses if use.gpu_mem_total]
    found: Json = {
        "seconds": round(seconds, 1),
        "cpu_s": round(cpu_s, 1),
        "cores": cores,
        "busy": round(busy, 2),
        "efficiency": round(busy / cores, 3) if cores else None,
        "mem_gb": round(node_peak(uses), 2),
        "mem_asked_gb": _asked(folder, "mem_gb"),
        "gpus": _nodes(folder) * int(_asked(folder, "gpus_per_node") or 0),
        "gpu": round(sum(use.gpu_busy_s for use in uses) / gpu_s, 3) if gpu_s else None,
        "gpu_mem_gb": round(max(use.gpu_mem for use in gpus) / GIB, 1) if gpus else None,
        "gpu_has_gb": round(max(use.gpu_mem_total for use in gpus) / GIB, 1) if gpus else None,
    }
    return found | {"waste": [*_memory(folder, found), *_idle_cores(folder, found), *_idle_gpus(found)]}


def facts(found: Json) -> list[tuple[str, str]]:
    """For the page: (name, text)."""
    gpu, asked = found["gpu"], f" of {found['mem_asked_gb']:g} GB asked a node" if found["mem_asked_gb"] else " GB"
    told = [("CPU time", duration(found["cpu_s"])), ("Peak memory", f"{found['mem_gb']:.1f}{asked}")]
    if found["cores"]:
        share = f"{100 * found['efficiency']:.0f}\N{NO-BREAK SPACE}%"
        told.append(("Cores busy", f"{found['busy']:.1f} of {found['cores']:,} ({share})"))
    if gpu is not None:
        told.append(("GPU busy", f"{100 * gpu:.0f}\N{NO-BREAK SPACE}% of the time"))
    if found["gpu_mem_gb"] is not None:
        told.append(("GPU memory", f"{found['gpu_mem_gb']:.1f} of {found['gpu_has_gb']:.0f} GB"))
    return told


def _memory(folder: Folder, found: Json) -> Iterator[str]:
    """Told where half of what was asked, or less, would do: see meter.memory_to_ask."""
    asked, ask = found["mem_asked_gb"], memory_to_ask(found["mem_gb"])
    if asked and not _whole(folder) and 2 * ask <= asked:
        yield f"Memory: asked {asked:g} GB a node, used {found['mem_gb']:.1f}: next time resources.mem_gb={ask}."


def _idle_cores(folder: Folder, found: Json) -> Iterator[str]:
    """Told where half the cores, or fewer, would do: those of the busiest rank and a quarter more."""
    threads, ranks = int(folder.plan.get("threads") or 0), folder.ranks
    counted = bool(folder.plan.get("slurm") or _asked(folder, "cpus_per_task"))
    if not (threads and counted and found["seconds"] >= TOLD_S):
        return
    if _whole(folder):  # billed whole, whatever a rank asks for
        if found["cores"] and 2 * found["busy"] <= found["cores"]:
            yield f"Cores: {found['cores']:,} are billed with whole nodes, {found['busy']:.1f} were busy on average."
        return
    busy = max(use.cpu_s / max(use.seconds, 1e-9) for use in folder.use)
    ask = max(1, math.ceil(1.25 * busy - 1e-9))
    if 2 * ask <= threads:
        each = "" if ranks == 1 else " a rank"
        yield f"Cores: {threads}{each}, {busy:.1f} busy on average: next time resources.cpus_per_task={ask}."


def _idle_gpus(found: Json) -> Iterator[str]:
    if found["gpus"] and found["gpu"] is not None and found["gpu"] < GPU_LOW and found["seconds"] >= TOLD_S:
        one = "1 GPU" if found["gpus"] == 1 else f"{found['gpus']:,} GPUs"
        fewer = "resources.gpus_per_node=0" if found["gpus"] == 1 else "fewer (resources.gpus_per_node)"
        yield f"GPU: {one}, {100 * found['gpu']:.0f} % busy: next time {fewer}, or a larger trainer.batch_size."


def _asked(folder: Folder, name: str) -> float | None:
    value = (folder.plan.get("resources") or {}).get(name)
    return value if isinstance(value, int | float) else None


def _nodes(folder: Folder) -> int:
    return int(_asked(folder, "nodes") or 1)


def _whole(folder: Folder) -> bool:
    """It had its nodes alone: neither of a site that shares them, nor beside other members of a sweep."""
    slurm = folder.plan.get("slurm") or {}
    return bool(slurm.get("whole")) and slurm.get("per_node", 1) == 1


def _cores(folder: Folder) -> int | None:
    """Cores that the run was given: of a whole node all of them; None where the plan does not tell."""
    if _whole(folder):
        partitions = ((folder.config.get("cluster") or {}).get("facts") or {}).get("partitions") or {}
        cores = (partitions.get(str(folder.plan["slurm"].get("partition"))) or {}).get("cores")
        return int(cores) * _nodes(folder) if cores else None
    threads = folder.plan.get("threads")
    return int(threads) * folder.ranks if threads else None
