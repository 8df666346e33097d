"""Config -> JobPlan: checked, printable, JSON on disk.   check(config) finds every fault; make_plan writes nothing.

Identity: run_id = name + digest of the groups that the job reads, less the keys that do not change a result. Ranks, code,
package versions and data digests stand in the run folder and are compared there (submit.py).
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ValidationError

from hpcai import cluster, inputs, rundir
from hpcai.book import shelf
from hpcai.cluster import Machine
from hpcai.config.jobs import JOBS, PLACEHOLDER_LABELS, misfit, teaches
from hpcai.config.schema import Config, Screening
from hpcai.config.site import site_faults
from hpcai.errors import ConfigError, Faults, HpcaiError, PlanError, RunError, near, one_line
from hpcai.inputs import Input
from hpcai.rundir import RunDir

if TYPE_CHECKING:  # what only a Slurm plan needs is imported by it: a plan for this machine starts without
    from hpcai.limits import Allocation

LATER = {"root": None, "window": None, "samples_in": "rows", "label_path": None, "near_duplicates": None, "unlisted": "refuse"}
# keys of data that came later, with the values that say what was so before
GIVEN = ("labels", "image_size", "channels")  # keys of data that a job takes from the runs it names


@dataclass(frozen=True)
class JobPlan:
    """What will run, where, with what. `threads` is per rank; `from_run`: run_id and the model's sha256 of each run read.

    `slurm`: what is asked of the scheduler (partition, qos, account, reservation, whole) and its price; None: no scheduler. A
    sweep's member has `per_node`: how many share the job that this is the price of.
    `access`: who may read what it writes (runs_access).
    """

    run_id: str
    run_dir: str
    job: str
    cluster: str
    executor: str
    resources: dict[str, Any]
    threads: int
    identity: str
    from_run: list[dict[str, str | None]]
    warnings: list[str]
    slurm: dict[str, Any] | None = None
    access: str = "user"
    version: int = rundir.VERSION

    @property
    def ranks(self) -> int:
        """Ranks of the whole run."""
        return int(self.resources["nodes"] * self.resources["tasks_per_node"])

    def to_json(self) -> dict[str, Any]:
        """As it lies in plan.json."""
        return asdict(self)


def read_plan(run: RunDir) -> JobPlan:
    """The plan in a run folder.

    Raises: PlanError if it is of another version.
    """
    try:
        value = rundir.read_json(run.plan)
    except ValueError as e:
        raise PlanError(f"run={run.path.name}: its plan.json is damaged. --anew starts another folder.") from e
    if value.get("version") != rundir.VERSION:
        raise PlanError(f"run={run.path.name}: its format is {value.get('version')}, this hpcai reads {rundir.VERSION}.")
    if not isinstance(source := value["from_run"], list):  # before there were several
        value["from_run"] = [source] if source else []
    return JobPlan(**value)


def make_plan(
    config: Config,
    *,
    anew: bool = False,
    pending: bool = False,
    member: bool = False,
    files: list[Input] | None = None,
) -> tuple[JobPlan, Config, list[Input]]:
    """The plan, the config with absolute paths, and the fingerprint of the data. Writes nothing.

    `pending`: the runs that from_run names may still train; what they will give (labels, image size) stays open. `member`: of a
    sweep, so that it may share a node with others. `files`: the fingerprint, where the same data were looked at just now.

    Raises: Faults with everything that is wrong, of every kind.
    """
    faults: list[HpcaiError] = []
    machine = cluster.read_machine()
    config = config.model_copy(update={"runs_dir": str(inputs.expanded(config.runs_dir))})
    faults += machine_faults(config, machine)
    faults += _folder_faults(Path(config.runs_dir), on_slurm=config.cluster.executor == "slurm")
    trained: list[RunDir] = _try(faults, lambda: find_runs(config, finished=not pending)) or []
    if ended := [run for run in trained if _ended(run)]:
        config = _try(faults, lambda: with_trained(config, ended)) or config
    data = _try(faults, lambda: inputs.located(config.data))
    screening: Screening | None = config.screening
    if config.task.name == "screening":
        screening = _try(faults, lambda: shelf.checked(inputs.located_books(config.screening)))
    if data and screening and files is None:
        more = inputs.listed_books(screening) if config.task.name == "screening" else []
        files = _try(faults, lambda: inputs.fingerprint(data, more))
    model = _try(faults, lambda: _located_model(config))
    if faults:
        raise Faults(faults)
    assert data is not None and files is not None and model is not None
    plan = outline(config, machine, trained, anew=anew, member=member)
    sources = [str(run.path) for run in trained]
    where = {"data": data, "model": model, "screening": screening, "runs_dir": str(Path(plan.run_dir).parent)}
    resolved = config.model_copy(update=where | {"from_run": sources if len(sources) > 1 else next(iter(sources), None)})
    return plan, resolved, files


def outline(
    config: Config, machine: Machine, trained: Sequence[RunDir] = (), *, anew: bool = False, member: bool = False
) -> JobPlan:
    """The plan alone, of a config that was checked: looks at no data."""
    identity = digest(config, [run.path.name for run in trained])
    beside = _side_by_side(config) if member and config.cluster.executor == "slurm" else 1
    given = _given(config, beside) if config.cluster.executor == "slurm" else None
    run_dir = _folder(Path(config.runs_dir).absolute() / f"{config.name}-{identity[:8]}", anew)
    sources = [{"run_id": run.path.name, "sha256": read_model(run)["sha256"] if _ended(run) else None} for run in trained]
    return JobPlan(
        run_id=run_dir.name,
        run_dir=str(run_dir),
        job=config.job,
        cluster=config.cluster.name,
        executor=config.cluster.executor,
        resources=config.resources.model_dump(),
        threads=given.threads if given else cluster.threads(config, machine),
        identity=identity,
        from_run=sources,
        warnings=list(_slurm_warnings(config, given, beside) if given else cluster.warnings(config, machine)),
        slurm=_asked_of_slurm(config, given) | ({"per_node": beside} if member else {}) if given else None,
        access=config.runs_access,
    )


def machine_faults(config: Config, machine: Machine) -> Iterator[HpcaiError]:
    """What the machine that is to run it does not allow: this one, or the one that the cluster file describes."""
    yield from cluster.limits(config)
    yield from site_faults(config)
    if config.cluster.executor != "slurm":
        yield from cluster.violations(config, machine)
        return
    from hpcai import limits

    yield from limits.violations(config)
    if config.cluster.python is None and find_spec("torch") is None:
        yield PlanError("cluster.python=null: this Python has no torch. Give the Python of the compute nodes' environment.")


def _given(config: Config, members: int) -> Allocation | None:
    from hpcai import limits

    return limits.allocation(config, members)


def _side_by_side(config: Config) -> int:
    from hpcai import limits

    return limits.per_node(config)


def _slurm_warnings(config: Config, given: Allocation, members: int) -> Iterator[str]:
    from hpcai import limits, preflight

    yield from limits.warnings(config, given, members)
    yield from cluster.per_rank_statistics(config)
    if config.resources.gpus_per_node:
        wheel = preflight.wheel_cuda(config.cluster.python or sys.executable)
        if advice := preflight.wheel_advice(config.cluster.facts.cuda, wheel):
            yield advice


def _asked_of_slurm(config: Config, given: Allocation) -> dict[str, Any]:
    from hpcai import limits

    price = limits.price(config, given)
    return {
        "partition": given.partition,
        "qos": given.qos,
        "account": config.cluster.account,
        "reservation": config.cluster.reservation,
        "whole": given.whole,
        "price": asdict(price) if price else None,
    }


def _folder(first: Path, anew: bool) -> Path:
    """The newest folder of one identity; or with `anew` the next one."""
    there = numbered(first)
    if not there:
        return first
    return first.parent / f"{first.name}.{_number(first, there[-1].name) + 1}" if anew else there[-1]


def numbered(first: Path) -> list[Path]:
    """The folders of one identity that exist, oldest first: `first`, `first.2`, `first.3` ...; some may have been removed."""
    try:
        with os.scandir(first.parent) as entries:
            names = [e.name for e in entries if e.name.startswith(first.name) and _number(first, e.name)]
    except OSError:  # no folder yet, or none that can hold runs: _folder_faults tells
        return []
    return [first.parent / name for name in sorted(names, key=lambda name: _number(first, name))]


def _number(first: Path, name: str) -> int:
    """Which folder of its identity `name` is, from 1; 0 for one of another."""
    dot, digits = name[len(first.name) : len(first.name) + 1], name[len(first.name) + 1 :]
    if not dot:
        return 1
    return int(digits) if dot == "." and re.fullmatch("[2-9]|[1-9][0-9]{1,8}", digits) else 0


def digest(config: Config, from_run: Sequence[str] = ()) -> str:
    """sha256 of what decides a result. `from_run`: the run_ids of the runs that the job reads, in any order."""
    parts = decisive(config)
    if from_run:
        parts["from_run"] = from_run[0] if len(from_run) == 1 else sorted(from_run)
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def decisive(config: Config) -> dict[str, Any]:
    """What decides a result: the groups that the job reads, less keys marked `changes_result=False`."""
    parts: dict[str, Any] = {"job": config.job}
    for name in JOBS[config.job].reads:
        value = getattr(config, name)
        parts[name] = _identity(value) if isinstance(value, BaseModel) else value
    if "data" in parts:  # a run without them is named as before there were such keys
        parts["data"] = {k: v for k, v in parts["data"].items() if k not in LATER or v != LATER[k]}
    if JOBS[config.job].needs_run and "data" in parts:  # what the runs give follows from them; a pipeline does not know it yet
        parts["data"] = {k: v for k, v in parts["data"].items() if k not in GIVEN}
    if config.task.name != "screening":
        parts.pop("screening", None)
    elif JOBS[config.job].needs_run:
        parts["screening"] = _identity(config.screening)
    if config.job == "predict" and config.predict.shards > 1:  # one run alone is named as before there were shards
        parts["predict"] = _identity(config.predict)
    return parts


def flat(value: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of nested groups."""
    for key, inner in value.items():
        if isinstance(inner, dict):
            yield from flat(inner, f"{prefix}{key}.")
        else:
            yield prefix + key, inner


def _identity(group: BaseModel) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for name, info in type(group).model_fields.items():
        extra = info.json_schema_extra
        if isinstance(extra, dict) and extra.get("changes_result") is False:
            continue
        value = getattr(group, name)
        out[name] = _identity(value) if isinstance(value, BaseModel) else value
    return out


def find_runs(config: Config, *, finished: bool = True) -> list[RunDir]:
    """The trained runs that `from_run` names, in the order of their run_ids, so that any order of words is one command.

    Each is a folder, a run_id below runs_dir, or an unambiguous beginning of one. Not `finished`: a training that goes on will
    do, and so will the absolute path of a folder that is not there yet.

    Raises: ConfigError for an unknown name or one run named twice, PlanError if one did not finish a training; Faults for many.
    """
    named = [config.from_run] if isinstance(config.from_run, str) else config.from_run or []
    faults: list[HpcaiError] = []
    tried = [_try(faults, lambda name=name: _find_run(name, config, finished)) for name in named]
    found = sorted((run for run in tried if run is not None), key=lambda run: run.path.name)
    twice = dict.fromkeys(a.path.name for a, b in pairwise(found) if a.path.name == b.path.name)
    faults += [ConfigError(f"from_run={one_line(name, 120)}: is named twice. Name each run once.") for name in twice]
    if faults:
        raise Faults(faults) if len(faults) > 1 else faults[0]
    return found


def _find_run(name: str, config: Config, finished: bool) -> RunDir:
    named, runs = inputs.expanded(name), inputs.expanded(config.runs_dir)
    shown = f"from_run={one_line(name, 120)}"
    candidates = [named] if inputs.exists(named) and named.is_dir() else sorted(
        d for d in runs.glob("*") if d.name.startswith(name) and (d / "plan.json").is_file()
    )  # fmt: skip
    candidates = [d for d in candidates if d.name == name] or candidates
    if len(candidates) > 1:
        raise ConfigError(f"{shown}: {', '.join(d.name for d in candidates[:5])} begin so. Write more of it.")
    if not candidates or not (candidates[0] / "plan.json").is_file():
        if not finished and Path(name).is_absolute():
            return RunDir(named)
        known = [d.name for d in runs.glob("*") if (d / "plan.json").is_file()]
        raise ConfigError(f"{shown}: no such run in {one_line(str(runs), 80)}. {near(name, known)}")
    run = RunDir(candidates[0].absolute())
    if not teaches(job := read_plan(run).job):
        raise PlanError(f"{shown}: is a run of job={job}. Name a run of job=train or job=fit.")
    if finished and not _ended(run):
        raise PlanError(f"{shown}: has not finished its training. Start it again; it goes on where it stopped.")
    return run


def _ended(run: RunDir) -> bool:
    """The training left its model and its threshold: from then on both stay as they are."""
    return run.model.is_file() and run.threshold.is_file()


def read_model(run: RunDir) -> dict[str, Any]:
    """model.json of a finished training: checkpoint, sha256, labels, input (channels, size, mean, std; null: a table).

    Raises: PlanError if it is gone or damaged.
    """
    try:
        facts: dict[str, Any] = rundir.read_json(run.model)
        if not (isinstance(facts["sha256"], str) and facts["labels"]):
            raise ValueError
        if (reads := facts["input"]) is not None and not (reads["size"] and reads["channels"]):
            raise ValueError
    except (OSError, ValueError, KeyError, TypeError) as e:
        what = "gone" if isinstance(e, FileNotFoundError) else "damaged"
        raise PlanError(f"run={run.path.name}: its model.json is {what}. Restore the file, or train again.") from e
    return facts


def sources(config: Config, run: RunDir) -> list[RunDir]:
    """The trained runs that the job of `run` reads, in the order of their run_ids.

    Raises: RunError if the model of one is another than at submission.
    """
    named = [config.from_run] if isinstance(config.from_run, str) else config.from_run or []
    found = [RunDir(Path(path)) for path in named]
    for source, then in zip(found, read_plan(run).from_run, strict=True):
        if read_model(source)["sha256"] != then["sha256"]:
            raise RunError(
                f"from_run={source.path.name}: its model is another one than at submission. --anew takes the new one."
            )
    return found


def with_trained(config: Config, trained: Sequence[RunDir]) -> Config:
    """`config` with what a job takes from the runs it names: task, model, precision, labels, image size; gather: the seed too.

    Raises: ConfigError if the job cannot read them, they differ in task, labels, channels or image size, or in data.labels.
    """
    first, then, facts = trained[0], read_config(trained[0]), read_model(trained[0])
    theirs = _alike(then, facts)
    if why := misfit(config, then, len(trained)):
        raise ConfigError(f"from_run={one_line(first.path.name, 120)}: {why}")
    for run in trained[1:]:
        for what, value in _alike(read_config(run), read_model(run)).items():
            if value != theirs[what]:
                raise ConfigError(
                    f"from_run={first.path.name},{run.path.name}: differ in {what} ({one_line(theirs[what], 60)} and "
                    f"{one_line(value, 60)}). Name runs that answer one question."
                )
    stated = config.data.labels
    if stated not in (PLACEHOLDER_LABELS, facts["labels"]):
        raise ConfigError(
            f"data.labels={one_line(','.join(stated), 80)}: run {first.path.name} was trained for "
            f"{one_line(','.join(facts['labels']), 80)}. Leave data.labels out."
        )
    image = {} if (reads := facts["input"]) is None else {"image_size": list(reads["size"]), "channels": reads["channels"]}
    data = config.data.model_copy(update={"labels": facts["labels"], **image})
    trainer = config.trainer.model_copy(update={"precision": then.trainer.precision})
    seed = then.seed if config.job == "gather" else config.seed
    return config.model_copy(update={"task": then.task, "model": then.model, "data": data, "trainer": trainer, "seed": seed})


def _alike(config: Config, facts: dict[str, Any]) -> dict[str, str]:
    """What runs that answer together must share, as text; their scaling may differ, since each scales its own input."""
    reads = facts["input"]
    image = {} if reads is None else {
        "data.channels": str(reads["channels"]), "data.image_size": "x".join(map(str, reads["size"])),
    }  # fmt: skip
    return {"task": config.task.name, "labels": ",".join(facts["labels"]), "job": config.job, **image}


def read_config(run: RunDir) -> Config:
    """The resolved config of a run folder.

    Raises: PlanError if it is not what was written at submission.
    """
    import yaml

    fast = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        return Config.model_validate(yaml.load(run.config.read_text("utf-8"), Loader=fast))
    except (OSError, yaml.YAMLError, ValidationError) as e:
        raise PlanError(f"run={run.path.name}: its config.yaml is damaged. Start the same command again.") from e


def _located_model(config: Config) -> Any:
    start = config.model.init_from
    if start is None:
        return config.model
    path = inputs.expanded(start)
    if not inputs.exists(path) and inputs.exists(Path(config.runs_dir) / start):
        path = Path(config.runs_dir) / start
    if not inputs.exists(path):
        raise ConfigError(f"model.init_from={one_line(start, 120)}: does not exist. Give a run, .safetensors or .pt.")
    return config.model.model_copy(update={"init_from": str(path)})


def _folder_faults(folder: Path, *, on_slurm: bool = False) -> Iterator[HpcaiError]:
    shown = f"runs_dir={one_line(str(folder), 120)}"
    if on_slurm and not str(folder.absolute()).isprintable():
        yield PlanError(f"{shown}: holds a control character, which ends a line of a batch script. Choose another folder.")
    if on_slurm and "\\" in str(folder.absolute()):
        yield PlanError(f"{shown}: holds a backslash, which Slurm reads as a sign in the names of logs. Choose another folder.")
    for sign, why in (("%", "which submitit replaces in paths"), (":", "which parts the folders of PYTHONPATH")):
        if sign in str(folder.absolute()):
            yield PlanError(f"{shown}: holds {sign}, {why}. Choose another folder.")
    parent = folder.absolute()
    try:
        while not parent.exists() and parent != parent.parent:
            parent = parent.parent
    except OSError as e:
        yield PlanError(f"{shown}: cannot be reached ({e.strerror}). Choose another folder.")
        return
    if not parent.is_dir():
        yield PlanError(f"{shown}: {one_line(parent.name, 60)} is no folder. Choose another.")
    elif not os.access(parent, os.W_OK | os.X_OK):
        yield PlanError(f"{shown}: may not be written. Choose another folder, or ask for the right.")


def _try(faults: list[HpcaiError], step: Any) -> Any:
    """The value of `step`, or None with its faults noted."""
    try:
        return step()
    except HpcaiError as e:
        faults += e.members
    return None
