"""What a Slurm machine's facts allow: every limit is kept by what passes, and what a message names instead is legal."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpcai.config.bounds import Ask, told, usable
from hpcai.config.facts import Facts

MACHINE: dict[str, Any] = {
    "partitions": {
        "cpu": {"cores": 128, "mem_gb": 480.0, "nodes": 573},
        "gpu": {"cores": 64, "mem_gb": 480.0, "gpus": 4, "nodes": 200},
        "fat": {"cores": 128, "mem_gb": 4096.0, "nodes": 20},
    },
    "cpu_partition": "cpu",
    "gpu_partition": "gpu",
    "qos": {
        "dev": {"max_min": 4000, "max_nodes": 9, "reservations": {"gpu": "gpudev"}},
        "test": {"max_min": 30, "max_nodes": 5},
        "give-way": {"max_min": 360, "max_nodes": 10, "preemptible": True},
        "short": {"max_min": 360, "nodes": {"cpu": 28, "gpu": 10, "fat": 1}},
        "default": {"max_min": 2880, "nodes": {"cpu": 140, "gpu": 50, "fat": 5}},
        "long": {"max_min": 8640, "nodes": {"cpu": 28, "gpu": 10, "fat": 1}},
        "large": {"max_min": 1440, "max_nodes": 400, "by_arrangement": True},
        "fatty": {"max_min": 60, "partitions": ["fat"]},
    },
    "default_qos": "default",
}


def ask(facts: dict[str, Any] | None = None, **words: Any) -> Ask:
    plain: dict[str, Any] = {
        "facts": Facts.model_validate(MACHINE if facts is None else facts), "machine": "mel", "partition": None, "qos": None,
        "reservation": None, "nodes": 1, "tasks_per_node": 1, "gpus_per_node": 0, "cpus_per_task": None, "mem_gb": None,
        "timeout_min": 60,
    }  # fmt: skip
    return Ask(**(plain | words))


def lines(asked: Ask) -> list[str]:
    return [str(fault) for fault in told(asked)]


def test_what_fits_is_allowed_to_the_last_piece() -> None:
    whole = {"nodes": 50, "gpus_per_node": 4, "tasks_per_node": 4, "cpus_per_task": 16, "mem_gb": 480.0, "timeout_min": 2880}
    assert lines(ask(**whole)) == []
    for more in ({"nodes": 51}, {"gpus_per_node": 5}, {"tasks_per_node": 5}, {"cpus_per_task": 17}, {"mem_gb": 480.1}):
        assert lines(ask(**(whole | more))) != [], more
    assert lines(ask(**(whole | {"timeout_min": 2881}))) != []


@pytest.mark.parametrize(("asked", "said"), [
    ({"timeout_min": 4000}, "resources.timeout_min=4000: QOS default ends at 2880; long allows 8640."),
    ({"timeout_min": 9000}, "resources.timeout_min=9000: QOS default ends at 2880. Ask for resources.timeout_min=2880."),
    ({"timeout_min": 4000, "nodes": 50},
     "resources.timeout_min=4000: QOS default ends at 2880. Ask for resources.timeout_min=2880."),
    ({"qos": "test"}, "resources.timeout_min=60: QOS test ends at 30; short allows 360."),
    ({"qos": "short", "nodes": 40}, "resources.nodes=40: QOS short ends at 28; default allows 140."),
    ({"nodes": 141}, "resources.nodes=141: QOS default ends at 140. Ask for resources.nodes=140."),
    ({"partition": "fat", "nodes": 6, "timeout_min": 361},
     "resources.nodes=6: QOS default ends at 5; partition cpu allows 140."),
    ({"partition": "gpuu", "gpus_per_node": 1}, "cluster.partition=gpuu: unknown on mel. Did you mean gpu?"),
    ({"partition": "xyz"}, "cluster.partition=xyz: unknown on mel. Give cluster.partition=cpu."),
    ({"qos": "defualt"}, "cluster.qos=defualt: unknown on mel. Did you mean default?"),
    ({"qos": "fatty"}, "cluster.qos=fatty: on mel for fat, not for cpu. Give cluster.qos=default."),
    ({"qos": "large"},
     "cluster.qos=large: on mel by arrangement alone (granted: cluster.facts.qos.large.by_arrangement=false). "
     "Give cluster.qos=default."),
    ({"qos": "dev", "gpus_per_node": 1},
     "cluster.qos=dev: its jobs in gpu name a reservation. Give cluster.reservation=gpudev."),
    ({"gpus_per_node": 8, "tasks_per_node": 8}, "resources.gpus_per_node=8: partition gpu of mel has 4 a node. "
     "Ask for resources.gpus_per_node=4 resources.tasks_per_node=4 resources.nodes=2."),
    ({"gpus_per_node": 2, "partition": "cpu"}, "resources.gpus_per_node=2: partition cpu of mel has none a node; gpu has 4. "
     "Give cluster.partition=gpu."),
    ({"gpus_per_node": 1, "tasks_per_node": 2}, "resources.tasks_per_node=2: 1 GPUs a node, and a rank takes one. "
     "Ask for resources.tasks_per_node=1."),
    ({"tasks_per_node": 129}, "resources.tasks_per_node=129: a node of cpu has 128 cores, and a rank takes one. "
     "Ask for resources.tasks_per_node=128."),
    ({"tasks_per_node": 3, "cpus_per_task": 43}, "resources.cpus_per_task=43: x 3 ranks; a node of cpu has 128 cores. "
     "Ask for resources.cpus_per_task=42."),
    ({"mem_gb": 500.0}, "resources.mem_gb=500: a node of cpu has 480 GB; fat has 4096. Give cluster.partition=fat."),
    ({"mem_gb": 5000.0}, "resources.mem_gb=5000: a node of cpu has 480 GB. Ask for resources.mem_gb=480."),
    ({"mem_gb": 500.0, "gpus_per_node": 1}, "resources.mem_gb=500: a node of gpu has 480 GB. Ask for resources.mem_gb=480."),
])  # fmt: skip
def test_a_broken_limit_is_told_with_the_nearest_legal_choice(asked: dict[str, Any], said: str) -> None:
    found = lines(ask(**asked))
    assert said in found and len(found) == len({line.split("=")[0] for line in found})


def test_everything_is_told_at_once_and_a_better_qos_is_named_beside_faults_that_it_does_not_mend() -> None:
    found = lines(ask(timeout_min=4000, gpus_per_node=2, partition="cpu", cpus_per_task=500, mem_gb=9999.0))
    assert [line.split("=")[0] for line in found] == [
        "resources.timeout_min", "resources.gpus_per_node", "resources.cpus_per_task", "resources.mem_gb",
    ]  # fmt: skip
    assert found[0] == "resources.timeout_min=4000: QOS default ends at 2880; long allows 8640."


def test_two_faults_are_not_mended_by_two_choices_that_exclude_each_other() -> None:
    both = {"qos": "short", "nodes": 40, "timeout_min": 4000}  # long allows the time, default the nodes, none allows both
    assert lines(ask(**both)) == [
        "resources.timeout_min=4000: QOS short ends at 360. Ask for resources.timeout_min=360.",
        "resources.nodes=40: QOS short ends at 28. Ask for resources.nodes=28.",
    ]


def test_a_qos_that_needs_a_reservation_or_an_arrangement_is_never_proposed() -> None:
    assert "dev" not in usable(ask()) and "large" not in usable(ask()) and "dev" in usable(ask(reservation="gpudev"))


def test_what_is_unknown_is_not_refused() -> None:
    bare = {"partitions": {"p": {"cores": 4}}, "cpu_partition": "p"}
    assert lines(ask(bare, nodes=99_999, timeout_min=525_600, mem_gb=1e6, qos="any")) == []


def test_a_machine_that_names_no_default_partition_asks_for_one() -> None:
    named = {"partitions": {"p": {"cores": 4}, "q": {"cores": 4, "gpus": 1}}}
    assert lines(ask(named)) == ["cluster.partition: required on mel for runs without GPUs. Give cluster.partition=p."]
    (line,) = lines(ask(named, gpus_per_node=1))
    assert line == "cluster.partition: required on mel for runs with GPUs. Give cluster.partition=q."
    (line,) = lines(ask({}))
    assert "whose file names no partition" in line and "hpcai cluster probe" in line


def test_where_slurm_chooses_the_qos_the_most_generous_one_is_the_limit() -> None:
    facts: dict[str, Any] = {"partitions": {"p": {"cores": 4}}, "cpu_partition": "p"}
    facts["qos"] = {"a": {"max_min": 10}, "b": {"max_min": 99}}
    assert lines(ask(facts, timeout_min=99)) == []
    assert lines(ask(facts, timeout_min=100)) == [
        "resources.timeout_min=100: every QOS of mel ends at 99. Ask for resources.timeout_min=99."
    ]
    facts["qos"] = {"a": {"max_min": 10}, "b": {}}
    assert lines(ask(facts, timeout_min=100)) == []


# --- any machine, any wish

LIMIT = st.none() | st.integers(1, 12)
NODE = st.fixed_dictionaries(
    {"cores": st.integers(1, 8), "gpus": st.integers(0, 4)},
    optional={"mem_gb": st.integers(1, 9).map(lambda n: n + 0.1), "nodes": LIMIT, "max_nodes": LIMIT, "max_min": LIMIT},
)
RULES = st.fixed_dictionaries(
    {},
    optional={
        "max_min": LIMIT, "max_nodes": LIMIT, "nodes": st.dictionaries(st.sampled_from("abc"), st.integers(1, 12), max_size=2),
        "partitions": st.none() | st.lists(st.sampled_from("abc"), max_size=2, unique=True), "by_arrangement": st.booleans(),
        "preemptible": st.booleans(), "reservations": st.dictionaries(st.sampled_from("abc"), st.just("res"), max_size=1),
    },
)  # fmt: skip
FACTS = st.fixed_dictionaries(
    {"partitions": st.dictionaries(st.sampled_from("abc"), NODE, max_size=3)},
    optional={
        "qos": st.dictionaries(st.sampled_from("xyz"), RULES, max_size=3), "default_qos": st.none() | st.sampled_from("xyz"),
        "cpu_partition": st.none() | st.sampled_from("abc"), "gpu_partition": st.none() | st.sampled_from("abc"),
    },
)  # fmt: skip
ASKS = st.builds(
    ask,
    FACTS,
    partition=st.none() | st.sampled_from([*"abc", "nope"]),
    qos=st.none() | st.sampled_from([*"xyz", "nope"]),
    reservation=st.none() | st.just("res"),
    nodes=st.integers(1, 14),
    tasks_per_node=st.integers(1, 10),
    gpus_per_node=st.integers(0, 9),
    cpus_per_task=st.none() | st.integers(1, 10),
    mem_gb=st.none() | st.floats(0.5, 11),
    timeout_min=st.integers(1, 14),
)


def excess(a: Ask) -> set[str]:
    """What is wrong with a wish, said again in the plainest way: the oracle of the tests below."""
    facts, wrong = a.facts, set[str]()
    where = a.partition or (facts.gpu_partition if a.gpus_per_node else facts.cpu_partition)
    node = facts.partitions.get(where) if where else None
    name = a.qos or facts.default_qos
    qos = facts.qos.get(name) if name else None
    if node is None:
        wrong.add("cluster.partition")
    if name and qos is None and (facts.qos or not a.qos):
        wrong.add("cluster.qos")
    if qos is not None:
        elsewhere = qos.partitions is not None and where is not None and where not in qos.partitions
        unreserved = where in qos.reservations and qos.reservations[where] != a.reservation
        wrong |= {"cluster.qos"} if elsewhere or qos.by_arrangement or unreserved else set()
        wrong |= {"resources.timeout_min"} if qos.max_min and a.timeout_min > qos.max_min else set()
        most = qos.nodes.get(where or "", qos.max_nodes)
        wrong |= {"resources.nodes"} if most and a.nodes > most else set()
    if name is None and facts.qos:  # Slurm chooses: legal is what one of those that are open allows
        some = [facts.qos[n] for n in usable(a)]
        if some and all(q.max_min and a.timeout_min > q.max_min for q in some):
            wrong.add("resources.timeout_min")
        if some and all((m := q.nodes.get(where or "", q.max_nodes)) and a.nodes > m for q in some):
            wrong.add("resources.nodes")
    if node is not None:
        wrong |= {"resources.timeout_min"} if node.max_min and a.timeout_min > node.max_min else set()
        wrong |= {"resources.nodes"} if any(m and a.nodes > m for m in (node.max_nodes, node.nodes)) else set()
        wrong |= {"resources.gpus_per_node"} if a.gpus_per_node > node.gpus else set()
        wrong |= {"resources.tasks_per_node"} if a.tasks_per_node > node.cores else set()
        wrong |= {"resources.tasks_per_node"} if a.gpus_per_node and a.tasks_per_node > a.gpus_per_node else set()
        wrong |= {"resources.mem_gb"} if a.mem_gb and node.mem_gb and a.mem_gb > node.mem_gb else set()
        wrong |= {"resources.cpus_per_task"} if a.cpus_per_task and a.cpus_per_task * a.tasks_per_node > node.cores else set()
    return wrong


def cured(a: Ask, line: str) -> Ask | None:
    """`a` with what a message names instead; None: it names nothing."""
    key = re.split("[=:]", line)[0]
    changes: dict[str, Any] = {}
    if match := re.search(r"; (partition )?(\S+) allows \d+\.$", line):
        changes["partition" if match[1] else "qos"] = match[2]
    elif match := re.search(r"Did you mean (\S+)\?$", line):
        changes[key.split(".")[1]] = match[1]
    elif line.endswith("Leave cluster.qos out."):
        changes["qos"] = None
    elif match := re.search(r"(?:Give|Ask for) (\S+=.+)\.$", line):
        words = dict(word.split("=") for word in match[1].split())
        for name, value in words.items():
            changes[name.split(".")[1]] = (
                value if name.startswith("cluster.") else float(value) if "mem" in name else int(value)
            )
    return replace(a, **changes) if changes else None


def key_of(line: str) -> str:
    return re.split("[=:]", line)[0]


@settings(max_examples=600, deadline=None)
@given(ASKS)
def test_what_passes_keeps_every_limit_and_what_is_refused_breaks_one(a: Ask) -> None:
    found = {key_of(line) for line in lines(a)}
    assert bool(found) == bool(excess(a))
    assert found <= excess(a)
    # a rank too many may stand for cores too few: of those two, one line is enough
    assert excess(a) - found <= {"resources.cpus_per_task", "resources.tasks_per_node"}


@settings(max_examples=600, deadline=None)
@given(ASKS)
def test_what_a_message_names_mends_its_fault_and_breaks_nothing_that_was_right(a: Ask) -> None:
    found = {key_of(line) for line in lines(a)}
    for line in lines(a):
        better = cured(a, line)
        if better is not None:
            assert {key_of(other) for other in lines(better)} <= found - {key_of(line)}, line


@settings(max_examples=400, deadline=None)
@given(ASKS)
def test_who_follows_the_messages_one_by_one_arrives_at_what_is_legal(a: Ask) -> None:
    for _ in range(12):
        said = lines(a)
        if not said:
            assert excess(a) == set()
            return
        better = next((b for line in said if (b := cured(a, line)) is not None), None)
        if better is None:  # nothing here is legal at all, or only what the file does not tell
            assert all("Known: " in line or "See hpcai" in line or "hpcai cluster probe" in line for line in said)
            return
        a = better
    raise AssertionError("the messages lead round in a circle")


@settings(max_examples=300, deadline=None)
@given(ASKS)
def test_every_message_is_one_line_that_begins_with_its_key(a: Ask) -> None:
    for line in lines(a):
        assert line.isprintable() and re.match(r"(cluster|resources)\.[a-z_]+[=:]", line) and line[-1] in ".?"
