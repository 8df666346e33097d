"""What a Slurm machine allows and costs, read off its cluster file.   Config -> Allocation, Price, violations, warnings

Pure: asks no scheduler, so a plan is checked on a laptop. What a file does not state is unknown: never refused, but told in the
warnings. The rules themselves, with their cures: config/bounds.py.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import BaseModel

from hpcai.config.bounds import Ask, ask_of, longest, most_nodes, told, usable
from hpcai.config.facts import Charge, Facts, Partition
from hpcai.config.schema import Config
from hpcai.config.site import is_folder
from hpcai.errors import HpcaiError, PlanError, one_line


@dataclass(frozen=True)
class Allocation:
    """What a job is given. `cores`, `gpus`, `mem_gb`: a node's; all of a whole one, else as asked. `threads`: a rank's."""

    partition: str
    qos: str | None
    nodes: int
    cores: int
    gpus: int
    mem_gb: float | None
    whole: bool
    threads: int


@dataclass(frozen=True)
class Price:
    """What a job can cost at most, were it to use its whole time limit."""

    amount: float
    unit: str
    words: str


@dataclass(frozen=True)
class Pieces:
    """The sizes of the arrays that can be submitted now, and how many of their jobs have to wait."""

    sizes: tuple[int, ...]
    rest: int


def allocation(config: Config, members: int = 1) -> Allocation | None:
    """What a job is given that holds so many members side by side; None where its partition is unknown."""
    ask = ask_of(config)
    node = ask.node
    if node is None:
        return None
    whole, ranks = bool(node.whole_nodes), ask.tasks_per_node * members
    if whole:
        cores, gpus, mem_gb = node.cores, node.gpus, node.mem_gb
    else:
        gpus, mem_gb = ask.gpus_per_node * members, ask.mem_gb and ask.mem_gb * members
        share = min(1.0, gpus / node.gpus) if gpus and node.gpus else 1.0
        cores = min(node.cores, ranks * ask.cpus_per_task if ask.cpus_per_task else max(1, math.floor(node.cores * share)))
    threads = ask.cpus_per_task or max(1, cores // ranks)
    return Allocation(str(ask.where), ask.under, ask.nodes, cores, gpus, mem_gb, whole, threads)


def per_node(config: Config) -> int:
    """Members of a sweep side by side in one job: as asked, or what a whole node has room for by GPUs, cores and memory.

    One where jobs share nodes (a member then has a job of its own), where a member takes several nodes, or where it does not
    say how many GPUs or cores it needs: it then takes all of them.
    """
    ask = ask_of(config)
    node = ask.node
    if config.sweep.per_node is not None:
        return config.sweep.per_node
    return room(ask, node) if node is not None and node.whole_nodes and ask.nodes == 1 else 1


def room(ask: Ask, node: Partition) -> int:
    """How many members of that size a node holds; 1 where they take it whole."""
    sizes = [
        (node.gpus, ask.gpus_per_node),
        (node.cores, ask.tasks_per_node * (ask.cpus_per_task or (1 if ask.gpus_per_node else node.cores))),
        (node.mem_gb or 0, ask.mem_gb or 0),
    ]
    return max(1, min(int(has // takes) for has, takes in sizes if has and takes))


# --- what it costs


def price(config: Config, allocation: Allocation) -> Price | None:
    """At most: time limit x nodes x what an hour of such a node costs. None: the file has no charge for it."""
    facts = config.cluster.facts
    node = facts.partitions.get(allocation.partition)
    if node is None or node.charge is None:
        return None
    minutes = config.resources.timeout_min
    amount = hourly(node.charge, allocation) * allocation.nodes * minutes / 60
    unit = node.charge.unit or facts.unit
    nodes = f"{allocation.nodes} {allocation.partition} node{'s' * (allocation.nodes > 1)}"
    return Price(amount, unit, f"at most {rounded_up(amount)} {unit} ({nodes} x {duration(minutes)})")


def hourly(charge: Charge, allocation: Allocation) -> float:
    """What an hour of one node's share costs: the dearest of node, cores, memory and GPUs."""
    sums = [charge.node, charge.core * allocation.cores, charge.gpu * allocation.gpus]
    dearest = max(*sums, charge.mem_gb * (allocation.mem_gb or 0))
    # a sum such as 0.1 * 3 lies just above its multiple: without the small number it would be rounded up to the next
    return dearest if charge.step is None else math.ceil(dearest / charge.step - 1e-9) * charge.step


def rounded_up(amount: float) -> str:
    """`2.0`, `0.02`: never less than `amount`, since it stands after "at most"."""
    digits = 1 if amount >= 1 else 2
    return f"{math.ceil(amount * 10**digits - 1e-6) / 10**digits:.{digits}f}" if amount else "0.0"


def duration(minutes: int) -> str:
    """`2 h`, `1 h 30 min`, `3 d`."""
    if minutes % 1440 == 0:
        return f"{minutes // 1440} d"
    hours, rest = divmod(minutes, 60)
    return " ".join(part for part in (f"{hours} h" * bool(hours), f"{rest} min" * bool(rest)) if part)


def array_pieces(config: Config, jobs: int, queued: int = 0, waves: int = 1) -> Pieces:
    """`jobs` as arrays of at most MaxArraySize; beyond the submit limit, of which `queued` is used up, they have to wait.

    `waves`: so many times each is sent, to follow each other.
    """
    ask = ask_of(config)
    qos = ask.facts.qos.get(ask.under or "")
    stated = [ask.facts.max_submit, ask.node and ask.node.max_submit, qos and qos.max_submit]
    room = min([jobs, *(max(0, limit - queued) // waves for limit in stated if limit)])
    size = ask.facts.max_array or room or 1
    full, last = divmod(room, size)
    return Pieces((size,) * full + (last,) * bool(last), jobs - room)


# --- what is not allowed


def violations(config: Config) -> Iterator[HpcaiError]:
    """Everything that the machine's file does not allow, at once, each with the nearest legal choice."""
    yield from told(ask_of(config))
    yield from _side_by_side(config)
    yield from _account(config)
    yield from _paths(config)


def _side_by_side(config: Config) -> Iterator[PlanError]:
    """More members on a node than it has room for."""
    asked, ask = config.sweep.per_node, ask_of(config)
    if asked is None or ask.node is None or asked == 1:
        return
    if ask.nodes > 1:
        yield PlanError(f"sweep.per_node={asked}: a member takes {ask.nodes} nodes whole. Ask for sweep.per_node=1.")
        return
    each = replace(ask, cpus_per_task=ask.cpus_per_task or 1)
    if asked > (most := room(each, ask.node)):
        yield PlanError(f"sweep.per_node={asked}: a node of {ask.where} has room for {most} such members. Ask for {most}.")


def _account(config: Config) -> Iterator[PlanError]:
    cluster, facts = config.cluster, config.cluster.facts
    such = facts.account_example or facts.account_pattern
    if cluster.account is None:
        if facts.account_required:
            yield PlanError(f"cluster.account: required on {cluster.name}{f' ({such})' if such else ''}.")
    elif facts.account_pattern is not None and not re.search(facts.account_pattern, cluster.account):
        yield PlanError(f"cluster.account={cluster.account}: no account of {cluster.name} ({such}). Correct it.")


def _paths(config: Config) -> Iterator[PlanError]:
    """Folders that compute nodes do not see; of those below the current folder only where that may be the machine's own."""
    facts = config.cluster.facts
    for key, path in _unseen(config):
        if _is_here(facts) or not _below(path, str(Path.cwd())):
            yield PlanError(f"{key}={one_line(path, 120)}: {_visible(config)}")


def _unseen(config: Config) -> Iterator[tuple[str, str]]:
    """What is read or written outside the folders that compute nodes see. What is relative is not known yet."""
    shared = config.cluster.facts.shared
    named = {"data.path": config.data.path, "data.root": config.data.root or "", "runs_dir": config.runs_dir}
    for key, path in named.items():
        forms = (path, os.path.realpath(path))
        if shared and path.startswith("/") and not any(_below(form, folder) for form in forms for folder in shared):
            yield key, path


def _visible(config: Config) -> str:
    """The folders that compute nodes see, and a place in them for this user."""
    facts = config.cluster.facts
    place = next((p for p in (facts.project, facts.scratch) if p and any(_below(p, s) for s in facts.shared)), facts.shared[0])
    place = place.replace("$ACCOUNT", config.cluster.account or "$ACCOUNT")
    return f"compute nodes of {config.cluster.name} see {', '.join(facts.shared[:6])}. Choose a place such as {place}."


def _is_here(facts: Facts) -> bool:
    """Whether this may be the machine itself: one of its shared folders exists."""
    return any(is_folder(Path(folder)) for folder in facts.shared)


def _below(path: str, folder: str) -> bool:
    top = os.path.normpath(folder).rstrip("/")
    return f"{os.path.normpath(path)}/".startswith(f"{top}/")


# --- what is allowed, but may not be meant


def warnings(config: Config, allocation: Allocation, members: int = 1) -> Iterator[str]:
    """What is billed and not used, what may happen to the job, and how well the machine is known.

    `members`: of a sweep, side by side in the job.
    """
    yield from idle(config, allocation, members)
    yield from _unsaid(config, allocation)
    qos = config.cluster.facts.qos.get(allocation.qos or "")
    if qos is not None and qos.preemptible:
        yield f"cluster.qos={allocation.qos}: its jobs may have to give way to others. They go on from their last checkpoint."
    for key, path in _unseen(config):
        if not _is_here(config.cluster.facts) and _below(path, str(Path.cwd())):
            yield f"{key}={one_line(path, 120)}: lies on this machine; {_visible(config)}"
    yield from _doubts(config, allocation)


def idle(config: Config, allocation: Allocation, members: int) -> Iterator[str]:
    """GPUs, or cores where there are none, that are billed and not used, with what else they could do for the same price."""
    asked, given, facts = config.resources, allocation, config.cluster.facts
    if given.gpus and not asked.gpus_per_node:
        other = f"; cluster.partition={facts.cpu_partition} is for runs without" if facts.cpu_partition else ""
        yield f"0 of {given.gpus} GPUs: billed {given.gpus}{other}{_lost(config, given, 1)}"
    elif given.gpus:
        used = min(asked.gpus_per_node, asked.tasks_per_node) * members
        if used < given.gpus:
            lost = _lost(config, given, 1 - used / given.gpus)
            yield f"{used} of {given.gpus} GPUs: billed {given.gpus}; {_more(config, given.gpus, members)} costs the same{lost}"
    elif given.whole and (used := given.threads * asked.tasks_per_node * members) * 2 <= given.cores:
        same = f"resources.cpus_per_task={given.cores // asked.tasks_per_node // members}"
        lost = _lost(config, given, 1 - used / given.cores)
        yield f"{used} of {given.cores} cores: billed {given.cores}; {same} costs the same{lost}"


def _more(config: Config, gpus: int, members: int) -> str:
    """What else fills the node: seeds side by side, or more ranks."""
    asked = config.resources
    times = gpus // (asked.gpus_per_node * members)
    if config.job == "train" and asked.nodes == 1 and asked.gpus_per_node == asked.tasks_per_node and times > 1:
        return f"-m seed={','.join(str(config.seed + i) for i in range(times * members))}"
    return f"resources.gpus_per_node={gpus} resources.tasks_per_node={gpus}"


def _lost(config: Config, allocation: Allocation, share: float) -> str:
    cost = price(config, allocation)
    return f" (idle: at most {rounded_up(cost.amount * share)} of {rounded_up(cost.amount)} {cost.unit})" if cost else ""


def _unsaid(config: Config, allocation: Allocation) -> Iterator[str]:
    """What is left to Slurm, or to a guess of ours."""
    ask, asked = ask_of(config), config.resources
    if asked.cpus_per_task is None and not allocation.whole and not asked.gpus_per_node:
        yield (
            f"resources.cpus_per_task=null: takes all {allocation.cores} cores of a node of {allocation.partition}, which jobs "
            f"may share. Say how many a rank needs."
        )
    if allocation.qos is None and (names := usable(ask)):
        tried = {name: replace(ask, qos=name) for name in names}
        fit = [name for name, other in tried.items() if not list(told(other))]
        if fit and len(fit) < len(names):
            taken = f"which one {config.cluster.name} takes then is unknown"
            yield f"cluster.qos=null: {taken}; cluster.qos={fit[0]} allows this run."


LIMITS = ("cores", "mem_gb", "gpus", "whole_nodes", "max_min", "max_nodes", "charge", "env", "srun")
OF_QOS = ("max_min", "max_nodes", "nodes", "partitions", "preemptible", "by_arrangement", "reservations")
GENERAL = ("account_required", "account_pattern", "requeue", "mem", "mpi", "setup", "shared", "unit")
MATTERS = ("account_required", "requeue")  # general facts whose absence a user should know of


def _doubts(config: Config, allocation: Allocation) -> Iterator[str]:
    """One line: which facts that this plan rests on are known from others' notes, from nobody, or not at all."""
    facts, cluster = config.cluster.facts, config.cluster
    where, under = f"partitions.{allocation.partition}", f"qos.{allocation.qos}"
    groups: dict[str, list[str]] = {
        where: _stated(facts.partitions[allocation.partition], LIMITS),
        under: _stated(facts.qos[allocation.qos], OF_QOS) if allocation.qos in facts.qos else [],
    }
    doubtful: dict[str, list[str]] = {"second-hand": [], "unverified": [], "unknown": list(_unknown(config, allocation))}
    for group, names in groups.items():
        kinds = {name: facts.standing(f"{group}.{name}")[0] for name in names}
        for kind in ("second-hand", "unverified"):
            found = [f"{group}.{name}" for name in names if kinds[name] == kind]
            doubtful[kind] += [group] if names and len(found) == len(names) else found
    general = [
        *GENERAL,
        *["identifiers"] * _of_persons(config),
        *["gpu_request"] * bool(config.resources.gpus_per_node),
        *["default_qos"] * (cluster.qos is None),
    ]
    for name in _stated(facts, general):
        if (kind := facts.standing(name)[0]) in doubtful:
            doubtful[kind].append(name)
    lines = [f"{kind}: {', '.join(names)}" for kind, names in doubtful.items() if names]
    if lines:
        yield f"cluster={cluster.name}: {'; '.join(lines)}. hpcai cluster check {cluster.name} says what is known from where."


def _of_persons(config: Config) -> bool:
    """Whether the data may lead to persons, so that it matters what the site accepts."""
    return config.job != "gather" and config.data.identifiers in ("pseudonymised", "identifying")


def _stated(group: BaseModel, names: Sequence[str]) -> list[str]:
    return [name for name in names if name in group.model_fields_set and getattr(group, name) is not None]


def _unknown(config: Config, allocation: Allocation) -> Iterator[str]:
    """Limits of this plan that no file states: what is not refused here may be refused there."""
    ask, facts = ask_of(config), config.cluster.facts
    node = facts.partitions[allocation.partition]
    found = {
        "longest time": longest(ask), "most nodes": most_nodes(ask), "memory of a node": node.mem_gb,
        "whole nodes": node.whole_nodes, "charge": node.charge, **{name: getattr(facts, name) for name in MATTERS},
    }  # fmt: skip
    if _of_persons(config):
        found[f"whether it accepts {config.data.identifiers} data"] = facts.identifiers
    yield from (name for name, value in found.items() if value is None)
