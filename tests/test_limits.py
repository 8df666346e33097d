"""What a plan for a Slurm machine is told before anything is sent: what it gets, what that costs, what is wrong or idle."""

from __future__ import annotations

import functools
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpcai import limits
from hpcai.config.check import check, load
from hpcai.config.facts import Charge, Facts
from hpcai.config.folder import shipped
from hpcai.config.schema import Config
from hpcai.errors import Faults
from hpcai.limits import Allocation, Pieces, array_pieces, duration, hourly, rounded_up

MELUXINA = ["+experiment=pneumonia", "cluster=meluxina", "cluster.account=p200000", "data.path=/project/home/p200000/x.npz"]
LUCIA = ["+experiment=pneumonia", "cluster=lucia", "data.path=x.npz"]
LUMI = ["+experiment=pneumonia", "cluster=lumi", "cluster.account=project_465000001", "data.path=x.npz"]
PLAIN: dict[str, Any] = {"cores": 8, "mem_gb": 64.0, "gpus": 4, "charge": {"core": 1.0, "mem_gb": 0.1, "gpu": 3.0}}


@pytest.fixture(autouse=True)
def _no_site(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HPCAI_SITE", raising=False)


def given_to(words: list[str]) -> tuple[Config, Allocation]:
    config = load(words)
    found = limits.allocation(config)
    assert found is not None
    return config, found


def priced(words: list[str]) -> str:
    config, found = given_to(words)
    cost = limits.price(config, found)
    return cost.words if cost else "unknown"


def refused(words: list[str]) -> list[str]:
    return [str(fault) for fault in limits.violations(load(words))]


def warned(words: list[str]) -> list[str]:
    return list(limits.warnings(*given_to(words)))


def small(node: dict[str, Any], words: dict[str, Any] | None = None, **resources: Any) -> Config:
    """A config for a machine of one partition."""
    cluster = {
        "name": "m",
        "executor": "slurm",
        "facts": {"partitions": {"p": node}, "cpu_partition": "p", "gpu_partition": "p"},
    }
    raw = {
        "name": "x",
        "data": {"path": "x", "labels": ["a", "b"], "identifiers": "none"},
        "cluster": cluster,
        "resources": resources,
    }
    return check(raw | (words or {}))


# --- what is given


def test_a_whole_node_gives_all_it_has_whatever_is_asked_for() -> None:
    _, found = given_to([*MELUXINA, "resources.gpus_per_node=1", "resources.mem_gb=10"])
    assert found == Allocation("gpu", "default", 1, 64, 4, 480.0, True, 64)


def test_a_shared_node_gives_what_is_asked_for_and_a_gpus_part_of_the_cores() -> None:
    assert given_to([*LUCIA, "resources.gpus_per_node=1"])[1] == Allocation("gpu", None, 1, 8, 1, None, False, 8)
    found = given_to([*LUCIA, "resources.gpus_per_node=2", "resources.tasks_per_node=2", "resources.mem_gb=100"])[1]
    assert (found.cores, found.gpus, found.mem_gb, found.threads) == (16, 2, 100.0, 8)


@pytest.mark.parametrize(("asked", "ranks", "threads"), [(None, 1, 128), (None, 3, 42), (None, 128, 1), (5, 3, 5)])
def test_threads_are_as_asked_or_the_nodes_cores_shared_among_its_ranks(asked: int | None, ranks: int, threads: int) -> None:
    words = [f"resources.tasks_per_node={ranks}", "trainer.batch_size=512"] + (
        [f"resources.cpus_per_task={asked}"] if asked else []
    )
    assert given_to([*MELUXINA, *words])[1].threads == threads


def test_what_is_stated_stands_before_the_machines_own_choice() -> None:
    found = given_to([*MELUXINA, "cluster.partition=largemem", "cluster.qos=short"])[1]
    assert (found.partition, found.qos, found.mem_gb) == ("largemem", "short", 4096.0)
    assert limits.allocation(load([*MELUXINA, "cluster.partition=nowhere"])) is None


# --- what it costs: by hand, from the sites' own formulas


@pytest.mark.parametrize(("words", "said"), [
    ([*MELUXINA, "resources.gpus_per_node=1", "resources.timeout_min=120"], "at most 2.0 node-h (1 gpu node x 2 h)"),
    ([*MELUXINA, "resources.nodes=3", "resources.timeout_min=90"], "at most 4.5 node-h (3 cpu nodes x 1 h 30 min)"),
    ([*MELUXINA, "resources.timeout_min=1"], "at most 0.02 node-h (1 cpu node x 1 min)"),
    ([*LUCIA, "resources.gpus_per_node=1", "resources.timeout_min=60"], "at most 128.0 BUh (1 gpu node x 1 h)"),
    ([*LUCIA, "resources.gpus_per_node=4", "resources.timeout_min=60"], "at most 512.0 BUh (1 gpu node x 1 h)"),
    # half the memory of a node costs as much as half the node
    ([*LUCIA, "resources.gpus_per_node=1", "resources.mem_gb=120", "resources.timeout_min=60"],
     "at most 256.0 BUh (1 gpu node x 1 h)"),
    ([*LUCIA, "resources.gpus_per_node=1", "cluster.partition=ia", "resources.timeout_min=60"],
     "at most 204.8 BUh (1 ia node x 1 h)"),
    ([*LUCIA, "resources.cpus_per_task=32", "resources.timeout_min=60"], "at most 32.0 BUh (1 batch node x 1 h)"),
    ([*LUCIA, "cluster.partition=shared"], "unknown"),
    ([*LUMI, "resources.gpus_per_node=1", "resources.timeout_min=120"], "at most 1.0 GPU-h (1 small-g node x 2 h)"),
    # 9 cores: two groups of 8, rounded up; half a GPU-h each
    ([*LUMI, "resources.gpus_per_node=1", "resources.cpus_per_task=9", "resources.timeout_min=60"],
     "at most 1.0 GPU-h (1 small-g node x 1 h)"),
    ([*LUMI, "resources.gpus_per_node=1", "resources.mem_gb=65", "resources.timeout_min=60"],
     "at most 1.0 GPU-h (1 small-g node x 1 h)"),
    ([*LUMI, "resources.gpus_per_node=1", "cluster.partition=standard-g", "resources.timeout_min=60"],
     "at most 4.0 GPU-h (1 standard-g node x 1 h)"),
    ([*LUMI, "resources.cpus_per_task=2", "resources.mem_gb=9", "resources.timeout_min=60"],
     "at most 5.0 core-h (1 small node x 1 h)"),
    ([*LUMI, "cluster.partition=standard", "resources.timeout_min=60"], "at most 128.0 core-h (1 standard node x 1 h)"),
    ([*LUMI, "cluster.partition=debug", "resources.timeout_min=10"], "unknown"),
])  # fmt: skip
def test_the_price_is_the_sites_own_formula_at_the_time_limit(words: list[str], said: str) -> None:
    assert priced(words) == said


@given(st.floats(0, 1e9))
def test_what_stands_after_at_most_is_never_less_than_the_amount(amount: float) -> None:
    assert float(rounded_up(amount)) >= amount - 1e-6 and (float(rounded_up(amount)) - amount <= 0.11 or amount < 1e-3)


@given(st.integers(1, 128), st.floats(0.1, 512), st.integers(0, 8), st.sampled_from([None, 0.5, 1.0, 0.1]))
def test_a_rounded_price_is_a_multiple_of_its_step_and_less_than_a_step_above(
    cores: int, mem: float, gpus: int, step: float | None
) -> None:
    held = Allocation("p", None, 1, cores, gpus, mem, False, 1)
    plain, rounded = (hourly(Charge(core=0.0625, mem_gb=0.0078125, gpu=0.5, step=s), held) for s in (None, step))
    assert plain == max(cores * 0.0625, mem * 0.0078125, gpus * 0.5)
    if step is not None:
        assert abs(rounded / step - round(rounded / step)) < 1e-6 and -1e-6 <= rounded - plain < step + 1e-6


@pytest.mark.parametrize(
    ("minutes", "said"), [(1, "1 min"), (60, "1 h"), (90, "1 h 30 min"), (1440, "1 d"), (4000, "66 h 40 min")]
)
def test_a_time_reads_as_people_say_it(minutes: int, said: str) -> None:
    assert duration(minutes) == said


# --- what is refused


def test_the_two_faults_of_the_first_ten_minutes_are_told_together_in_these_words() -> None:
    assert refused(["+experiment=pneumonia", "cluster=meluxina", "resources.timeout_min=4000"]) == [
        "resources.timeout_min=4000: QOS default ends at 2880; long allows 8640.",
        "cluster.account: required on meluxina (p and six digits).",
    ]


@pytest.mark.parametrize("account", ["p20000", "p2000000", "P200000", "xp200000", "p200000x"])
def test_an_account_that_cannot_be_one_is_refused(account: str) -> None:
    (said,) = refused([*MELUXINA, f"cluster.account={account}"])
    assert said == f"cluster.account={account}: no account of meluxina (p and six digits). Correct it."


def test_where_it_is_unknown_whether_an_account_is_needed_none_is_asked_for() -> None:
    assert refused(LUCIA) == []


def test_folders_that_compute_nodes_do_not_see_are_refused_with_one_that_they_do(tmp_path: Path) -> None:
    found = refused([*MELUXINA, "data.path=/data/x.npz", "runs_dir=/var/runs"])
    assert [line.split(":")[0] for line in found] == ["data.path=/data/x.npz", "runs_dir=/var/runs"]
    assert all(line.endswith("Choose a place such as /project/home/p200000.") for line in found)
    assert refused([*MELUXINA, "data.path=/project/home/p200000/d", "runs_dir=/mnt/tier1/project/p200000/r"]) == []
    assert len(refused([*MELUXINA, "data.path=/project/home/../../data/x"])) == 1
    assert len(refused([*MELUXINA, "data.path=/project/homeless/x"])) == 1


def test_what_lies_below_the_current_folder_is_a_warning_where_the_machine_is_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = [*MELUXINA, f"runs_dir={tmp_path}/runs"]
    assert refused(words) == [] and any(line.startswith(f"runs_dir={tmp_path}/runs: lies on this") for line in warned(words))
    monkeypatch.setattr(limits, "_is_here", lambda facts: True)
    assert [line.split("=")[0] for line in refused(words)] == ["runs_dir"]
    assert not any(line.startswith("runs_dir") for line in warned(words))


def test_a_link_into_a_shared_folder_is_seen(tmp_path: Path) -> None:
    (tmp_path / "shared").mkdir()
    (tmp_path / "link").symlink_to("shared")
    facts = {"partitions": {"p": {"cores": 1}}, "cpu_partition": "p", "shared": [str(tmp_path / "shared")]}
    raw = {
        "name": "x",
        "data": {"path": str(tmp_path / "link/d"), "labels": ["a", "b"], "identifiers": "none"},
        "runs_dir": str(tmp_path / "shared/r"),
    }
    assert list(limits.violations(check(raw | {"cluster": {"name": "m", "executor": "slurm", "facts": facts}}))) == []


@pytest.mark.parametrize("pattern", ["(a+)+$", "[", "a*a*a*a*a*", "p{1,9}(x)"])
def test_a_pattern_that_is_wrong_or_could_take_for_ever_is_refused_as_a_fault_of_the_file(pattern: str) -> None:
    with pytest.raises(Faults) as caught:
        check({"name": "x", "data": {"path": "x", "labels": ["a", "b"], "identifiers": "none"},
               "cluster": {"name": "m", "facts": {"account_pattern": pattern}}})  # fmt: skip
    assert caught.value.code == 2 and "account_pattern" in caught.value.lines[0]


# --- arrays


def test_members_are_split_at_the_array_size_and_the_submit_limit_and_the_rest_waits() -> None:
    config = load([*MELUXINA])
    assert array_pieces(config, 40) == Pieces((40,), 0)
    assert array_pieces(config, 250) == Pieces((100,), 150)
    assert array_pieces(config, 250, queued=70) == Pieces((30,), 220)
    assert array_pieces(config, 250, queued=500) == Pieces((), 250)
    bed = load(["+experiment=pneumonia", "cluster=testbed", "cluster.facts.max_submit=500", "cluster.facts.max_array=30"])
    assert array_pieces(bed, 100) == Pieces((30, 30, 30, 10), 0)


@given(st.integers(0, 5000), st.none() | st.integers(1, 300), st.none() | st.integers(1, 900), st.integers(0, 1000))
def test_no_member_is_lost_or_doubled_by_splitting(members: int, size: int | None, most: int | None, queued: int) -> None:
    config = small({"cores": 1})
    facts = Facts(partitions=config.cluster.facts.partitions, max_array=size, max_submit=most)
    config = config.model_copy(update={"cluster": config.cluster.model_copy(update={"facts": facts})})
    found = array_pieces(config, members, queued)
    assert sum(found.sizes) + found.rest == members and all(1 <= n <= (size or members) for n in found.sizes)
    assert most is None or sum(found.sizes) <= max(0, most - queued)
    assert found.rest == 0 or most is not None


# --- members side by side


@pytest.mark.parametrize(("words", "members", "threads"), [
    ([*MELUXINA, "resources.gpus_per_node=1"], 4, 16),
    ([*MELUXINA, "resources.gpus_per_node=2", "resources.tasks_per_node=2"], 2, 16),
    ([*MELUXINA, "resources.gpus_per_node=3"], 1, 64),
    ([*MELUXINA, "resources.gpus_per_node=1", "resources.mem_gb=200"], 2, 32),
    ([*MELUXINA, "resources.cpus_per_task=16"], 8, 16),
    ([*MELUXINA, "resources.cpus_per_task=16", "resources.mem_gb=100"], 4, 16),
    ([*MELUXINA], 1, 128),  # says not how many cores it needs: all of them
    ([*MELUXINA, "resources.gpus_per_node=1", "sweep.per_node=2"], 2, 32),
    ([*MELUXINA, "resources.nodes=2", "resources.gpus_per_node=1"], 1, 64),
    ([*LUCIA, "resources.gpus_per_node=1"], 1, 8),  # jobs share its nodes: each member has a job of its own
    ([*LUCIA, "resources.gpus_per_node=1", "sweep.per_node=2"], 2, 8),
])  # fmt: skip
def test_members_share_a_node_by_its_gpus_cores_and_memory(words: list[str], members: int, threads: int) -> None:
    config = load(words)
    assert limits.per_node(config) == members
    given = limits.allocation(config, members)
    assert given is not None and given.threads == threads and given.gpus in (0, 1, 2, 4)


@pytest.mark.parametrize(("words", "said"), [
    (["resources.gpus_per_node=2", "sweep.per_node=3"],
     "sweep.per_node=3: a node of gpu has room for 2 such members. Ask for 2."),
    (["resources.cpus_per_task=64", "sweep.per_node=3"],
     "sweep.per_node=3: a node of cpu has room for 2 such members. Ask for 2."),
    (["resources.nodes=2", "sweep.per_node=2"], "sweep.per_node=2: a member takes 2 nodes whole. Ask for sweep.per_node=1."),
])  # fmt: skip
def test_more_members_than_a_node_has_room_for_are_refused(words: list[str], said: str) -> None:
    assert [str(fault) for fault in limits.violations(load([*MELUXINA, *words]))] == [said]


def test_members_that_fill_their_node_idle_nothing() -> None:
    config = load([*MELUXINA, "resources.gpus_per_node=1"])
    given = limits.allocation(config, 4)
    assert given is not None and not [line for line in limits.warnings(config, given, 4) if "billed" in line]


# --- what is told


def test_idle_gpus_of_a_billed_node_are_told_with_their_price_and_what_else_they_could_do() -> None:
    words = [*MELUXINA, "resources.gpus_per_node=1", "resources.timeout_min=120"]
    said = "-m seed=0,1,2,3 costs the same (idle: at most 1.5 of 2.0 node-h)"
    assert warned(words)[0] == f"1 of 4 GPUs: billed 4; {said}"
    three = warned([*words, "resources.gpus_per_node=3", "resources.tasks_per_node=3"])[0]
    assert "resources.gpus_per_node=4 resources.tasks_per_node=4 costs the same" in three
    assert not [
        line for line in warned([*words, "resources.gpus_per_node=4", "resources.tasks_per_node=4"]) if "billed" in line
    ]
    two = warned([*words, "resources.gpus_per_node=2", "resources.tasks_per_node=2", "seed=5"])[0]
    assert two.startswith("2 of 4 GPUs: billed 4; -m seed=5,6 costs the same")


def test_a_gpu_that_no_rank_takes_is_idle_too() -> None:
    assert warned([*MELUXINA, "resources.gpus_per_node=4"])[0].startswith("1 of 4 GPUs: billed 4;")
    assert warned([*LUCIA, "resources.gpus_per_node=2"])[0].startswith("1 of 2 GPUs: billed 2;")


def test_a_gpu_node_without_gpus_asked_for_and_idle_cores_are_told() -> None:
    assert warned([*MELUXINA, "cluster.partition=gpu"])[0].startswith(
        "0 of 4 GPUs: billed 4; cluster.partition=cpu is for runs"
    )
    said = warned([*MELUXINA, "resources.cpus_per_task=8", "resources.timeout_min=60"])[0]
    assert said == "8 of 128 cores: billed 128; resources.cpus_per_task=128 costs the same (idle: at most 0.94 of 1.0 node-h)"
    assert not [line for line in warned([*MELUXINA]) if "billed" in line]


def test_a_plan_says_which_of_its_facts_are_doubtful_in_one_line() -> None:
    (said,) = [line for line in warned([*MELUXINA, "resources.gpus_per_node=4"]) if line.startswith("cluster=meluxina:")]
    assert "second-hand: partitions.gpu.mem_gb, partitions.gpu.env, qos.default" in said
    assert "unknown: requeue" in said and "unverified" not in said and said.endswith("known from where.")
    (said,) = [line for line in warned([*LUCIA, "resources.gpus_per_node=1"]) if line.startswith("cluster=lucia:")]
    assert "unknown: longest time, account_required, requeue" in said


def test_facts_without_any_source_are_called_unverified() -> None:
    config = small(PLAIN)
    found = limits.allocation(config)
    assert found is not None
    (said,) = [line for line in limits.warnings(config, found) if line.startswith("cluster=m:")]
    assert "unverified: partitions.p" in said


def test_a_job_that_may_have_to_give_way_and_one_that_takes_all_cores_of_a_shared_node_are_told() -> None:
    assert any("give way" in line for line in warned([*MELUXINA, "cluster.qos=short-preempt", "resources.timeout_min=60"]))
    assert any("takes all 128 cores" in line for line in warned(LUMI))
    assert not any("takes all" in line for line in warned([*LUMI, "resources.cpus_per_task=4"]))


def test_where_the_default_qos_is_unknown_the_one_that_allows_the_run_is_named() -> None:
    (said,) = [line for line in warned([*LUCIA, "resources.timeout_min=4000"]) if line.startswith("cluster.qos")]
    assert said.endswith("cluster.qos=long allows this run.")
    assert not [line for line in warned([*LUCIA, "resources.timeout_min=60"]) if line.startswith("cluster.qos")]


# --- the files that come with hpcai

SLURM = [name for name in shipped()["cluster"] if name != "local"]


@pytest.mark.parametrize("name", SLURM)
def test_every_stated_value_of_a_shipped_cluster_has_a_source_that_is_cited(name: str) -> None:
    facts = load(["+experiment=smoke", f"cluster={name}"]).cluster.facts

    def keys(value: Any, path: str) -> list[str]:
        if not isinstance(value, dict):
            return [path]
        return [key for inner in value for key in keys(value[inner], f"{path}.{inner}".lstrip("."))]

    stated = keys(facts.model_dump(exclude_unset=True, exclude={"sources", "cited"}), "")
    assert stated and [key for key in stated if facts.standing(key)[0] == "unverified"] == []
    used = {word for said in facts.sources.values() for word in said.split()}
    assert used == set(facts.cited)


@pytest.mark.parametrize("name", ["meluxina", "lucia", "lumi"])
def test_every_citation_says_of_when_it_is(name: str) -> None:
    cited = load(["+experiment=smoke", f"cluster={name}"]).cluster.facts.cited
    assert [said for said in cited.values() if not any(word in said for word in ("undated", "202"))] == []


@pytest.mark.parametrize("name", SLURM)
def test_the_smallest_run_is_allowed_everywhere_with_an_account(name: str) -> None:
    account = {"meluxina": "p200000", "testbed": "p200000", "lumi": "project_1", "lucia": "x"}[name]
    words = ["+experiment=smoke", f"cluster={name}", f"cluster.account={account}", "data.path=x"]
    for gpus in (0, 1):
        assert refused([*words, f"resources.gpus_per_node={gpus}"]) == []


@functools.cache
def composed(name: str) -> Config:
    return load(["+experiment=smoke", f"cluster={name}", "data.path=x"])


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from(SLURM),
    st.integers(1, 9000),
    st.integers(1, 2000),
    st.integers(0, 9),
    st.integers(1, 300),
    st.floats(1, 9999),
)
def test_a_wish_that_a_shipped_machine_allows_obeys_what_its_file_states(
    name: str, minutes: int, nodes: int, gpus: int, ranks: int, mem: float
) -> None:
    base = composed(name)
    asked = base.resources.model_copy(
        update={"timeout_min": minutes, "nodes": nodes, "gpus_per_node": gpus, "tasks_per_node": ranks, "mem_gb": mem}
    )
    config = base.model_copy(update={"resources": asked})
    if any(str(fault).startswith("resources.") for fault in limits.violations(config)):
        return
    found = limits.allocation(config)
    assert found is not None
    node = config.cluster.facts.partitions[found.partition]
    assert gpus <= node.gpus and ranks <= node.cores and (not node.mem_gb or mem <= node.mem_gb)
    assert nodes <= (node.nodes or nodes) and minutes <= (node.max_min or minutes) and nodes <= (node.max_nodes or nodes)
    if found.qos:
        qos = config.cluster.facts.qos[found.qos]
        assert minutes <= (qos.max_min or minutes) and nodes <= qos.nodes.get(found.partition, qos.max_nodes or nodes)
    assert found.threads >= 1 and found.threads * ranks <= node.cores


def test_limits_start_without_the_heavy_world() -> None:
    code = (
        "import sys, hpcai.limits; print([m for m in ('numpy', 'torch', 'submitit', 'hydra', 'omegaconf') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
