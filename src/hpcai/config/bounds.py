"""The rules of a Slurm machine, over its facts.   Ask -> what it breaks, each with the nearest legal choice

A rule says what is broken and proposes cures, nearest first; the first that breaks nothing new is named, so that what a message
names is legal. What the facts do not state is unknown: never refused here.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from hpcai.config.facts import Facts, Partition, Qos
from hpcai.config.schema import Config
from hpcai.errors import PlanError, near


@dataclass(frozen=True)
class Ask:
    """What is asked of which machine: the part of a Config that rules read, light enough to be tried in variants."""

    facts: Facts
    machine: str
    partition: str | None
    qos: str | None
    reservation: str | None
    nodes: int
    tasks_per_node: int
    gpus_per_node: int
    cpus_per_task: int | None
    mem_gb: float | None
    timeout_min: int

    @property
    def where(self) -> str | None:
        """The partition that is stated, or the machine's own for runs with, or without, GPUs."""
        return self.partition or (self.facts.gpu_partition if self.gpus_per_node else self.facts.cpu_partition)

    @property
    def node(self) -> Partition | None:
        """Its nodes; None: it is unknown."""
        return self.facts.partitions.get(self.where or "")

    @property
    def under(self) -> str | None:
        """The QOS that is stated, or the machine's default."""
        return self.qos or self.facts.default_qos


def ask_of(config: Config) -> Ask:
    """The part of `config` that rules read."""
    cluster, asked = config.cluster, config.resources
    return Ask(
        cluster.facts, cluster.name, cluster.partition, cluster.qos, cluster.reservation,
        asked.nodes, asked.tasks_per_node, asked.gpus_per_node, asked.cpus_per_task, asked.mem_gb, asked.timeout_min,
    )  # fmt: skip


TIME_AND_NODES = frozenset({"cluster.partition", "cluster.qos", "resources.timeout_min", "resources.nodes"})
OF_A_NODE = frozenset(f"resources.{name}" for name in ("gpus_per_node", "tasks_per_node", "cpus_per_task", "mem_gb"))
ALL = TIME_AND_NODES | OF_A_NODE


@dataclass(frozen=True)
class Cure:
    """A way to mend a fault: the keys of Ask that it sets, its words, and what else must be right once it is taken."""

    changes: dict[str, Any]
    words: str
    clears: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Broken:
    """A limit that is not kept. `cures`: nearest first, computed only when they are told; `otherwise`: if none helps."""

    key: str
    text: str
    cures: Callable[[], Iterable[Cure]]
    otherwise: str = ""


def told(ask: Ask) -> Iterator[PlanError]:
    """What `ask` breaks, each with the first cure that breaks nothing new."""
    found = list(broken(ask))
    before = {fault.key for fault in found}
    for fault in found:
        words = (cure.words for cure in fault.cures() if _helps(ask, cure, before - {fault.key}))
        yield PlanError(fault.text + next(words, fault.otherwise or f". See hpcai cluster check {ask.machine}."))


def _helps(ask: Ask, cure: Cure, others: set[str]) -> bool:
    return {fault.key for fault in broken(replace(ask, **cure.changes))} <= others - cure.clears


def broken(ask: Ask) -> Iterator[Broken]:
    """The limits that `ask` breaks, without a word about account and paths."""
    if ask.node is None:
        yield _no_partition(ask)
    yield from _qos(ask)
    yield from _time(ask)
    yield from _nodes(ask)
    if ask.node is not None:
        yield from _gpus(ask, ask.node)
        yield from _ranks(ask, ask.node)
        yield from _cores(ask, ask.node)
        yield from _memory(ask, ask.node)


def _no_partition(ask: Ask) -> Broken:
    name, known = ask.where or "", list(ask.facts.partitions)
    key, kind = "cluster.partition", "with" if ask.gpus_per_node else "without"
    text = f"{key}={name}: unknown on {ask.machine}" if name else f"{key}: required on {ask.machine} for runs {kind} GPUs"
    if not known:
        return Broken(key, f"{text}, whose file names no partition", lambda: [], ". Name them: hpcai cluster probe does.")
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.6)

    def cures() -> Iterator[Cure]:
        for other in (*close, *(k for k in known if k not in close)):
            words = f". Did you mean {other}?" if other in close else f". Give cluster.partition={other}."
            yield Cure({"partition": other}, words, ALL)

    return Broken(key, text, cures, f". {near(name, known)}")


def usable(ask: Ask) -> list[str]:
    """The QOS that anyone may use in the partition, without an arrangement or a reservation that is not named."""
    return [name for name, qos in ask.facts.qos.items() if _open(ask, qos)]


def _open(ask: Ask, qos: Qos) -> bool:
    here = qos.partitions is None or ask.where in qos.partitions
    return here and not qos.by_arrangement and (not qos.reservations or ask.reservation in qos.reservations.values())


def _qos(ask: Ask) -> Iterator[Broken]:
    name, key = ask.under, "cluster.qos"
    if name is None:
        return
    qos, known = ask.facts.qos.get(name), list(ask.facts.qos)
    shown = f"{key}={name}"
    if qos is None:
        if known or ask.qos is None:  # of a machine whose QOS nobody has written down, any may exist
            close = difflib.get_close_matches(name, known, n=3, cutoff=0.6)
            yield Broken(key, f"{shown}: unknown on {ask.machine}", lambda: _other_qos(ask, close), f". {near(name, known)}")
    elif ask.where is not None and qos.partitions is not None and ask.where not in qos.partitions:
        where = ", ".join(qos.partitions) or "no partition"
        yield Broken(key, f"{shown}: on {ask.machine} for {where}, not for {ask.where}", lambda: _other_qos(ask))
    elif qos.by_arrangement:
        granted = f"cluster.facts.qos.{name}.by_arrangement=false"
        yield Broken(key, f"{shown}: on {ask.machine} by arrangement alone (granted: {granted})", lambda: _other_qos(ask))
    elif (wanted := qos.reservations.get(ask.where or "")) and ask.reservation != wanted:
        cure = Cure({"reservation": wanted}, f". Give cluster.reservation={wanted}.")
        yield Broken(key, f"{shown}: its jobs in {ask.where} name a reservation", lambda: [cure])


def _other_qos(ask: Ask, close: Sequence[str] = ()) -> Iterator[Cure]:
    default, qos = ask.facts.default_qos, ask.facts.qos
    names = sorted(usable(ask), key=lambda name: (name != default, qos[name].preemptible))
    for clears in (ALL, frozenset[str]()):
        for other in (*(n for n in close if n in names), *(n for n in names if n not in close)):
            words = f". Did you mean {other}?" if other in close else f". Give cluster.qos={other}."
            yield Cure({"qos": other}, words, clears)
    if ask.qos is not None:
        yield Cure({"qos": None}, ". Leave cluster.qos out.")


Bound = tuple[int, str]  # a limit, and whose it is


def _qos_bounds(ask: Ask, limit: Callable[[Qos], int | None]) -> Iterator[Bound]:
    """The limit of the QOS; where Slurm chooses one that we do not know, that of the most generous."""
    if ask.under is not None:
        qos = ask.facts.qos.get(ask.under)
        if qos is not None and (most := limit(qos)) is not None:
            yield most, f"QOS {ask.under} ends at"
        return
    limits = [limit(ask.facts.qos[name]) for name in usable(ask)]
    known = [most for most in limits if most is not None]
    if known and len(known) == len(limits):
        yield max(known), f"every QOS of {ask.machine} ends at"


def _qos_nodes(ask: Ask) -> Callable[[Qos], int | None]:
    return lambda qos: qos.nodes.get(ask.where or "", qos.max_nodes)


def longest(ask: Ask) -> Bound | None:
    """The strictest known limit of time, in minutes."""
    bounds = list(_qos_bounds(ask, lambda qos: qos.max_min))
    if ask.node is not None and ask.node.max_min is not None:
        bounds.append((ask.node.max_min, f"partition {ask.where} ends at"))
    return min(bounds, default=None)


def most_nodes(ask: Ask) -> Bound | None:
    """The strictest known limit of nodes."""
    bounds = list(_qos_bounds(ask, _qos_nodes(ask)))
    if ask.node is not None:
        stated = ((ask.node.max_nodes, "ends at"), (ask.node.nodes, "has"))
        bounds += [(most, f"partition {ask.where} {verb}") for most, verb in stated if most is not None]
    return min(bounds, default=None)


def _time(ask: Ask) -> Iterator[Broken]:
    bound = longest(ask)
    if bound is not None and ask.timeout_min > bound[0]:
        text = f"resources.timeout_min={ask.timeout_min}: {bound[1]} {bound[0]}"
        yield Broken("resources.timeout_min", text, lambda: _elsewhere(ask, longest, "timeout_min", bound[0]))


def _nodes(ask: Ask) -> Iterator[Broken]:
    bound = most_nodes(ask)
    if bound is not None and ask.nodes > bound[0]:
        text = f"resources.nodes={ask.nodes}: {bound[1]} {bound[0]}"
        yield Broken("resources.nodes", text, lambda: _elsewhere(ask, most_nodes, "nodes", bound[0]))


def _elsewhere(ask: Ask, bound: Callable[[Ask], Bound | None], name: str, most: int) -> Iterator[Cure]:
    """The QOS, then the partition, that allows what is asked with the least to spare; then less."""
    qos = [(ask.facts.qos[n].preemptible, n, "", replace(ask, qos=n)) for n in usable(ask)]
    partitions = [(False, n, "partition ", replace(ask, partition=n)) for n in _like(ask)]
    for others in (qos, partitions):
        found = [(loses, limit[0], word, n) for loses, n, word, other in others if (limit := bound(other)) is not None]
        for _, there, word, choice in sorted(found, key=lambda one: one[:2]):  # least wanted last: one whose jobs give way
            changes = {"partition" if word else "qos": choice}
            yield Cure(changes, f"; {word}{choice} allows {there}.", TIME_AND_NODES)
    yield Cure({name: most}, f". Ask for resources.{name}={most}.")


def _like(ask: Ask) -> list[str]:
    """The partitions that have GPUs where any are asked for, and none where none are: no cure idles what is dear."""
    return [name for name, node in ask.facts.partitions.items() if bool(node.gpus) == bool(ask.gpus_per_node)]


def _gpus(ask: Ask, node: Partition) -> Iterator[Broken]:
    if ask.gpus_per_node <= node.gpus:
        return
    key, has = "resources.gpus_per_node", node.gpus or "none"
    text = f"{key}={ask.gpus_per_node}: partition {ask.where} of {ask.machine} has {has} a node"

    def cures() -> Iterator[Cure]:
        others = {name: p.gpus for name, p in ask.facts.partitions.items() if p.gpus and name != ask.where}
        order = sorted(others, key=lambda name: (name != ask.facts.gpu_partition, others[name]))
        for clears in (ALL, frozenset[str]()):
            for name in order:
                yield Cure({"partition": name}, f"; {name} has {others[name]}. Give cluster.partition={name}.", clears)
        if node.gpus:
            times, ranks = math.ceil(ask.gpus_per_node / node.gpus), min(ask.tasks_per_node, node.gpus)
            less = f"{key}={node.gpus}" + (f" resources.tasks_per_node={ranks}" if ranks < ask.tasks_per_node else "")
            changes = {"gpus_per_node": node.gpus, "tasks_per_node": ranks}
            yield Cure(changes | {"nodes": ask.nodes * times}, f". Ask for {less} resources.nodes={ask.nodes * times}.", ALL)
            yield Cure(changes, f". Ask for {less}.")
        for name in order:
            ranks = min(ask.tasks_per_node, others[name])
            less = f"{key}={others[name]} resources.tasks_per_node={ranks}"
            both = {"partition": name, "gpus_per_node": others[name], "tasks_per_node": ranks}
            yield Cure(both, f"; {name} has {others[name]}. Give cluster.partition={name} {less}.")
        yield Cure({"gpus_per_node": 0}, f". Ask for {key}=0.")

    yield Broken(key, text, cures)


def _ranks(ask: Ask, node: Partition) -> Iterator[Broken]:
    """A rank takes a core, and a GPU where GPUs are asked for."""
    key, ranks = "resources.tasks_per_node", ask.tasks_per_node
    gpus = ask.gpus_per_node  # more than a node has is _gpus' fault
    if gpus and ranks > gpus:
        most, text = min(gpus, node.cores), f"{gpus} GPUs a node, and a rank takes one"
    elif ranks > node.cores:
        most, text = node.cores, f"a node of {ask.where} has {node.cores} cores, and a rank takes one"
    else:
        return
    yield Broken(key, f"{key}={ranks}: {text}", lambda: [Cure({"tasks_per_node": most}, f". Ask for {key}={most}.")])


def _cores(ask: Ask, node: Partition) -> Iterator[Broken]:
    """Physical cores: the script asks for one thread a core, since the second thread of a core slows numeric code down."""
    key, ranks = "resources.cpus_per_task", min(ask.tasks_per_node, node.cores)
    if ask.cpus_per_task is None or ask.cpus_per_task * ranks <= node.cores:
        return
    most = node.cores // ranks
    text = f"{key}={ask.cpus_per_task}: x {ask.tasks_per_node} ranks; a node of {ask.where} has {node.cores} cores"
    yield Broken(key, text, lambda: [Cure({"cpus_per_task": most}, f". Ask for {key}={most}.")])


def _memory(ask: Ask, node: Partition) -> Iterator[Broken]:
    if ask.mem_gb is None or node.mem_gb is None or ask.mem_gb <= node.mem_gb:
        return
    key, most = "resources.mem_gb", node.mem_gb

    def cures() -> Iterator[Cure]:
        known = ((ask.facts.partitions[name].mem_gb or 0, name) for name in _like(ask))
        for mem, name in sorted(pair for pair in known if pair[0] > most):
            words = f"; {name} has {mem:.12g}. Give cluster.partition={name}."
            yield Cure({"partition": name}, words, OF_A_NODE)
        yield Cure({"mem_gb": most}, f". Ask for {key}={most:.12g}.")

    yield Broken(key, f"{key}={ask.mem_gb:.12g}: a node of {ask.where} has {most:.12g} GB", cures)
