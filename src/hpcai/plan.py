"""Config -> JobPlan: checked, printable, JSON on disk.   check(config) finds every fault; make_plan writes nothing.

Identity: run_id = name + digest of the groups that the job reads, less the keys that do not change a result. Ranks, code,
package versions and data digests stand in the run folder and are compared there (submit.py).
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from hpcai import cluster, inputs, rundir
from hpcai.cluster import Machine
from hpcai.config.jobs import JOBS, PLACEHOLDER_LABELS
from hpcai.config.schema import Config
from hpcai.errors import ConfigError, Faults, HpcaiError, PlanError, near, one_line
from hpcai.inputs import Input
from hpcai.rundir import RunDir


@dataclass(frozen=True)
class JobPlan:
    """What will run, where, with what. `threads` is per rank; `config` is the resolved one, its paths absolute."""

    run_id: str
    run_dir: str
    job: str
    cluster: str
    executor: str
    resources: dict[str, Any]
    threads: int
    identity: str
    from_run: dict[str, str] | None
    warnings: list[str]
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
    return JobPlan(**value)


def make_plan(config: Config, *, anew: bool = False) -> tuple[JobPlan, Config, list[Input]]:
    """The plan, the config with absolute paths, and the fingerprint of the data. Writes nothing.

    Raises: Faults with everything that is wrong, of every kind.
    """
    faults: list[HpcaiError] = []
    machine = cluster.read_machine()
    config = config.model_copy(update={"runs_dir": str(inputs.expanded(config.runs_dir))})
    faults += cluster.limits(config)
    faults += cluster.violations(config, machine)
    faults += _folder_faults(Path(config.runs_dir))
    trained = _try(faults, lambda: find_run(config)) if config.from_run else None
    if trained is not None:
        config = _try(faults, lambda: with_trained(config, trained)) or config
    data = _try(faults, lambda: config.data.model_copy(update={"path": str(inputs.locate(config.data.path))}))
    files = _try(faults, lambda: inputs.fingerprint(data)) if data else None
    model = _try(faults, lambda: _located_model(config))
    if faults:
        raise Faults(faults)
    assert data is not None and files is not None and model is not None
    plan = outline(config, machine, trained, anew=anew)
    where = {"data": data, "model": model, "runs_dir": str(Path(plan.run_dir).parent)}
    resolved = config.model_copy(update=where | {"from_run": str(trained.path) if trained else None})
    return plan, resolved, files


def outline(config: Config, machine: Machine, trained: RunDir | None = None, *, anew: bool = False) -> JobPlan:
    """The plan alone, of a config that was checked: looks at no data."""
    identity = digest(config, trained.path.name if trained else None)
    run_dir = _folder(Path(config.runs_dir).absolute() / f"{config.name}-{identity[:8]}", anew)
    source = {"run_id": trained.path.name, "sha256": rundir.read_json(trained.model)["sha256"]} if trained else None
    return JobPlan(
        run_id=run_dir.name,
        run_dir=str(run_dir),
        job=config.job,
        cluster=config.cluster.name,
        executor=config.cluster.executor,
        resources=config.resources.model_dump(),
        threads=cluster.threads(config, machine),
        identity=identity,
        from_run=source,
        warnings=list(cluster.warnings(config, machine)),
    )


def _folder(first: Path, anew: bool) -> Path:
    """The newest folder of one identity: `first`, `first.2`, `first.3` ...; or with `anew` the next one."""
    number = 1
    while (first.parent / f"{first.name}.{number + 1}").exists():
        number += 1
    number += anew and first.exists()
    return first if number == 1 else first.parent / f"{first.name}.{number}"


def digest(config: Config, from_run: str | None = None) -> str:
    """sha256 of what decides a result: the groups that the job reads, less keys marked `changes_result=False`."""
    parts: dict[str, Any] = {"job": config.job}
    for name in JOBS[config.job].reads:
        value = getattr(config, name)
        parts[name] = _identity(value) if isinstance(value, BaseModel) else value
    if from_run is not None:
        parts["from_run"] = from_run
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _identity(group: BaseModel) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for name, info in type(group).model_fields.items():
        extra = info.json_schema_extra
        if isinstance(extra, dict) and extra.get("changes_result") is False:
            continue
        value = getattr(group, name)
        out[name] = _identity(value) if isinstance(value, BaseModel) else value
    return out


def find_run(config: Config) -> RunDir:
    """The trained run that `from_run` names: a folder, a run_id below runs_dir, or an unambiguous beginning of one.

    Raises: ConfigError for an unknown name, PlanError if it did not finish a training.
    """
    assert config.from_run is not None
    named, runs = inputs.expanded(config.from_run), inputs.expanded(config.runs_dir)
    shown = f"from_run={one_line(config.from_run, 120)}"
    candidates = [named] if inputs.exists(named) and named.is_dir() else sorted(
        d for d in runs.glob("*") if d.is_dir() and d.name.startswith(config.from_run)
    )  # fmt: skip
    candidates = [d for d in candidates if d.name == config.from_run] or candidates
    if len(candidates) > 1:
        raise ConfigError(f"{shown}: {', '.join(d.name for d in candidates[:5])} begin so. Write more of it.")
    if not candidates or not (candidates[0] / "plan.json").is_file():
        known = [d.name for d in runs.glob("*") if (d / "plan.json").is_file()]
        raise ConfigError(f"{shown}: no such run in {one_line(str(runs), 80)}. {near(config.from_run, known)}")
    run = RunDir(candidates[0].absolute())
    if read_plan(run).job != "train":
        raise PlanError(f"{shown}: is a run of job={read_plan(run).job}. Name a run of job=train.")
    if not run.threshold.is_file():
        raise PlanError(f"{shown}: has not finished its training. Start it again; it goes on where it stopped.")
    return run


def with_trained(config: Config, trained: RunDir) -> Config:
    """`config` with what evaluate and predict take from the run they name: task, model, precision, labels, image size.

    Raises: ConfigError if data.labels are stated and differ.
    """
    then, facts = read_config(trained), rundir.read_json(trained.model)
    stated = config.data.labels
    if stated not in (PLACEHOLDER_LABELS, facts["labels"]):
        raise ConfigError(
            f"data.labels={one_line(','.join(stated), 80)}: run {trained.path.name} was trained for "
            f"{one_line(','.join(facts['labels']), 80)}. Leave data.labels out."
        )
    size, channels = list(facts["input"]["size"]), facts["input"]["channels"]
    data = config.data.model_copy(update={"labels": facts["labels"], "image_size": size, "channels": channels})
    trainer = config.trainer.model_copy(update={"precision": then.trainer.precision})
    return config.model_copy(update={"task": then.task, "model": then.model, "data": data, "trainer": trainer})


def read_config(run: RunDir) -> Config:
    """The resolved config of a run folder.

    Raises: PlanError if it is not what was written at submission.
    """
    import yaml

    try:
        return Config.model_validate(yaml.safe_load(run.config.read_text("utf-8")))
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


def _folder_faults(folder: Path) -> Iterator[HpcaiError]:
    shown = f"runs_dir={one_line(str(folder), 120)}"
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
