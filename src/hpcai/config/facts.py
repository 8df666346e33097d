"""What a machine is and allows, as data: the `cluster.facts` of a cluster file, each with where it is known from.

A value that is null is unknown, which is not the same as allowed. `sources` names for a key, or for all below it, where it
comes from; `cited` spells the names out. `hpcai cluster check` lists both, key by key.
"""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, StringConstraints

from hpcai.config.words import NAME, Group, Name, PathText, Text, key

Identifiers = Literal["none", "pseudonymised", "identifying"]  # how much of persons data may hold
Standing = Literal["sourced", "second-hand", "probed", "unverified"]


def _simple(pattern: str) -> str:
    """Without groups and with few repeats no pattern takes long over a name of 64 characters, whoever wrote it."""
    try:
        re.compile(pattern)
    except re.error as e:
        raise ValueError(f"is no regular expression ({e}). Correct it.") from None
    if "(" in pattern or sum(pattern.count(sign) for sign in "*+{") > 4:
        raise ValueError("holds a group or more than four repeats. Write a simpler one, such as ^p[0-9]{6}$.")
    return pattern


Limit = Annotated[int, Field(ge=1, le=2**31)]
Variable = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$", max_length=100)]
Script = Annotated[str, StringConstraints(pattern=rf"^(?:{NAME}|/[^\x00-\x1f\x7f]+)$", max_length=1000)]
Pattern = Annotated[Text, AfterValidator(_simple)]


class Charge(Group):
    """An hour's cost in the site's unit: of node, core, GB and GPU the dearest counts, rounded up to a multiple of `step`."""

    node: float = key(0.0, "units an hour of a node", ge=0, le=1e6)
    core: float = key(0.0, "units an hour of a physical core", ge=0, le=1e6)
    mem_gb: float = key(0.0, "units an hour of a GB of memory", ge=0, le=1e6)
    gpu: float = key(0.0, "units an hour of a GPU", ge=0, le=1e6)
    step: float | None = key(None, "a node's sum is rounded up to a multiple of this", gt=0, le=1e6)
    unit: Text | None = key(None, "what is billed, where it is not the machine's `unit`")


class Partition(Group):
    """Nodes of one kind."""

    cores: Limit = key(..., "physical cores of a node that jobs may use")
    threads_per_core: int = key(1, "hardware threads a core", ge=1, le=8)
    mem_gb: float | None = key(None, "memory of a node that a job may ask for", unit="GB", gt=0, le=1e6)
    gpus: int = key(0, "GPUs of a node", ge=0, le=64)
    gpu: Text = key("", "what its GPUs are")
    gpu_mem_gb: float | None = key(None, "memory of one GPU", unit="GB", gt=0, le=1e6)
    nodes: Limit | None = key(None, "how many there are")
    whole_nodes: bool | None = key(None, "a job gets its nodes alone, whatever it asks for")
    max_min: Limit | None = key(None, "longest time limit", unit="min")
    max_nodes: Limit | None = key(None, "most nodes of one job")
    max_submit: Limit | None = key(None, "most jobs of one user in it, array tasks counted")
    charge: Charge | None = key(None, "what it costs")
    env: dict[Variable, Text] = key({}, "variables set for every rank, such as NCCL's")
    srun: list[Text] = key([], "options of every srun in it, such as binding")


class Qos(Group):
    """One quality of service."""

    max_min: Limit | None = key(None, "longest time limit", unit="min")
    max_nodes: Limit | None = key(None, "most nodes of one job")
    nodes: dict[str, Limit] = key({}, "most nodes of one job by partition, where they differ")
    max_running: Limit | None = key(None, "most running jobs of one user")
    max_submit: Limit | None = key(None, "most submitted jobs of one user")
    partitions: list[Name] | None = key(None, "where it may be used; null: in all")
    priority: Text = key("", "low, regular, high: in the site's words")
    preemptible: bool = key(False, "its jobs may be put back into the queue for others")
    by_arrangement: bool = key(False, "only for those who have asked the site")
    reservations: dict[str, Name] = key({}, "partition -> the reservation that its jobs there must name")


class Facts(Group):
    """A machine."""

    site: Text = key("", "its full name and who runs it")
    slurm: Text | None = key(None, "Slurm's version")
    partitions: dict[Name, Partition] = key({}, "its partitions")
    cpu_partition: Name | None = key(None, "taken where cluster.partition is null and no GPU is asked for")
    gpu_partition: Name | None = key(None, "taken where cluster.partition is null and GPUs are asked for")
    qos: dict[Name, Qos] = key({}, "its qualities of service")
    default_qos: Name | None = key(None, "taken where cluster.qos is null; null: Slurm chooses")
    account_required: bool | None = key(None, "every job names an account")
    account_pattern: Pattern | None = key(None, "regular expression of an account's name")
    account_example: Text = key("", "such a name in words, for messages")
    unit: Text = key("node-h", "what is billed")
    max_array: Limit | None = key(None, "MaxArraySize: the highest index of an array is one less")
    max_submit: Limit | None = key(None, "most submitted jobs of an account, array tasks counted")
    requeue: bool | None = key(None, "a job may be put back into the queue (scontrol requeue)")
    kill_wait_s: Limit | None = key(None, "from SIGTERM to SIGKILL at a job's end", unit="s")
    gpu_request: Literal["gpus-per-node", "gres"] = key("gpus-per-node", "how a script asks for GPUs")
    gpu_type: Text = key("", "the type in that request, where the site wants one")
    mem: Literal["all", "asked", "never"] = key(
        "asked", "--mem: all of a whole node (0), what resources.mem_gb says, or never written"
    )
    mpi: Text | None = key(None, "srun --mpi; null: left out, the site's default")
    setup: Script | None = key(
        None, "script that loads the site's modules: a name in slurm/setup, or the site's own by its path"
    )
    home: PathText | None = key(None, "home folders; $USER and $ACCOUNT stand for names")
    project: PathText | None = key(None, "a project's folder, seen by every node")
    scratch: PathText | None = key(None, "large and fast, not kept")
    shared: list[PathText] = key([], "folders that compute nodes see; empty: unknown")
    container: Text = key("apptainer exec", "how a container is run")
    identifiers: list[Identifiers] | None = key(
        None, "data of persons that it accepts (data.identifiers); null: unknown, ask the site", max_length=3
    )
    internet: bool | None = key(None, "compute nodes reach the internet")
    login_modules: bool | None = key(None, "`module` exists on login nodes")
    driver: Text | None = key(None, "version of the NVIDIA driver")
    cuda: Text | None = key(None, "newest CUDA that this driver runs")
    sources: dict[str, Text] = key({}, "key, or group of keys -> where it is known from: names of `cited`, `probed DATE`")
    cited: dict[str, Text] = key({}, "what such a name stands for: document, and the date of what it says")

    def standing(self, name: str) -> tuple[Standing, str]:
        """How a key of these facts (`partitions.gpu.cores`) is known, and from where in words.

        The longest entry of `sources` that holds the key decides. Second-hand: every document of it calls itself so.
        """
        parts = name.split(".")
        held = (".".join(parts[:n]) for n in range(len(parts), 0, -1))
        said = next((self.sources[key] for key in held if key in self.sources), "")
        if said.startswith("probed"):
            return "probed", said
        cited = [self.cited[word] for word in said.split() if word in self.cited]
        if not cited:
            return "unverified", said
        return ("second-hand" if all("second-hand" in text for text in cited) else "sourced"), said
