"""`hpcai try +experiment=NAME [key=value ...]`: a few real steps of a run, then what all of it will take.

config -> the same with fewer steps and another name -> run, or submit in the shortest QOS and wait -> proposal.py
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from hpcai import cluster, lease, proposal, queued, verbs
from hpcai import run as launcher
from hpcai.arguments import Words
from hpcai.config.check import load
from hpcai.config.schema import Config, Tracking
from hpcai.errors import ConfigError, Faults, one_line
from hpcai.inputs import Input
from hpcai.plan import JobPlan, machine_faults, make_plan, outline, read_plan
from hpcai.proposal import Proposal
from hpcai.rundir import RunDir

STEPS = 20
MINUTES = 30  # twenty steps take less, or the proposal would be no help

TRY = f"""\
Trains {STEPS} real steps on the real data, in a folder of its own (try-NAME-...), on Slurm in the QOS with the shortest time
limit that allows it, and waits. Then proposes resources.timeout_min and resources.mem_gb of the whole run, and tells its
price where the site has one. A later plan of the same run quotes it. The words are those of hpcai run."""


def main(argv: list[str]) -> int:
    """`hpcai try`; returns the exit code: the try's own.

    Raises: HpcaiError as `hpcai run`; ConfigError for a job that is no training.
    """
    words = Words("try", "+experiment=NAME [key=value ...]", TRY)
    words.set_defaults(runs_dir=None)
    words.add_argument("--config-dir", "-cd", metavar="DIR", type=Path, help="folder with your own experiments")
    words.add_argument("--anew", action="store_true", help="measure again, in another folder")
    options = words.read(argv)
    if options is None:
        return 0
    if not options.names:
        raise ConfigError("hpcai try: names nothing to try. Write +experiment=NAME; hpcai run --help lists them.")
    whole = _whole(options)
    machine = cluster.read_machine()
    if faults := list(machine_faults(whole, machine)):
        raise Faults(faults)
    identity = outline(whole, machine).identity
    with contextlib.redirect_stdout(sys.stderr) if options.json else contextlib.nullcontext():
        run, code = _train(options, shortened(whole))
    if code:
        return code
    found = proposal.propose(whole, run)
    proposal.keep(run, identity, found)
    if options.json:
        print(json.dumps({"run_id": run.path.name, "of": identity, **asdict(found)}, indent=1))
        return 0
    print("\n".join(proposal.tell(run, found)))
    for fault in _not_allowed(whole, found):
        print(f"note: {fault}", file=sys.stderr)
    return 0


def _whole(options: argparse.Namespace) -> Config:
    """The run that is meant.

    Raises: ConfigError, Faults.
    """
    config = load(options.names, options.config_dir)
    if config.job != "train":
        raise ConfigError(f"job={config.job}: hpcai try measures the steps of a training. Name an experiment with job=train.")
    return config.model_copy(update={"runs_dir": str(options.runs_dir)} if options.runs_dir else {})


def shortened(whole: Config) -> Config:
    """Its try: the same first steps, each of them noted, without trackers, mail and a chain of jobs."""
    steps = min(STEPS, whole.trainer.max_steps or STEPS)
    trainer = {"max_steps": steps, "log_every": 1, "checkpoint_every": None, "patience": 0}
    minutes, machine = whole.resources.timeout_min, whole.cluster
    if machine.executor == "slurm":
        minutes, qos = _shortest(whole)
        machine = machine.model_copy(update={"qos": qos, "mail": None, "chain": 1})
    return whole.model_copy(update={
        "name": proposal.name_of_try(whole.name),
        "pipeline": [],
        "depends_on": None,
        "tracking": Tracking(),
        "trainer": whole.trainer.model_copy(update=trainer),
        "resources": whole.resources.model_copy(update={"timeout_min": minutes}),
        "cluster": machine,
    })  # fmt: skip


def _shortest(whole: Config) -> tuple[int, str | None]:
    """Minutes and QOS of a try on Slurm: the QOS with the least time among those that allow it, one that gives way last."""
    from hpcai.config.bounds import ask_of, longest, told, usable

    ask, asked = ask_of(whole), min(MINUTES, whole.resources.timeout_min)
    found = []
    for name in usable(ask):
        other, qos = replace(ask, qos=name), ask.facts.qos[name]
        bound = longest(other)
        other = replace(other, timeout_min=min(asked, bound[0]) if bound else asked)
        if not list(told(other)):
            found.append((qos.preemptible, qos.max_min or math.inf, name, other.timeout_min))
    return (min(found)[3], min(found)[2]) if found else (asked, whole.cluster.qos)


def _train(options: argparse.Namespace, config: Config) -> tuple[RunDir, int]:
    """Runs the try to its end, or takes the one that is there: its folder and exit code."""
    plan, config, files = _planned(options, config)
    run = RunDir(Path(plan.run_dir))
    if plan.executor == "slurm":
        waits = queued.state_of(run).state in lease.ACTIVE
        if not waits and (code := _launch(plan, config, files)):
            return run, code
        return run, next(verbs.exit_code(state) for _, state in verbs.ends([run], quiet=options.json))
    return run, _launch(plan, config, files)


def _launch(plan: JobPlan, config: Config, files: list[Input]) -> int:
    return launcher.launch(launcher.parse([])[0], plan, config, files)


def _planned(options: argparse.Namespace, config: Config) -> tuple[JobPlan, Config, list[Input]]:
    """The plan of the try. What was tried on other ranks or another machine tells nothing of these: another folder."""
    plan, resolved, files = make_plan(config, anew=options.anew)
    before = RunDir(Path(plan.run_dir))
    if before.plan.is_file() and _place(read_plan(before)) != _place(plan):
        plan, resolved, files = make_plan(config, anew=True)
    return plan, resolved, files


def _place(plan: JobPlan) -> tuple[Any, ...]:
    return plan.cluster, (plan.slurm or {}).get("partition"), *(plan.resources.get(name) for name in proposal.STATED)


def _not_allowed(whole: Config, found: Proposal) -> Iterator[str]:
    """What of the proposal the machine does not allow, with what it does."""
    asked = {"timeout_min": found.timeout_min} | ({"mem_gb": float(found.ask_gb)} if found.ask_gb else {})
    config = whole.model_copy(update={"resources": whole.resources.model_copy(update=asked)})
    return (one_line(str(fault)) for fault in machine_faults(config, cluster.read_machine()))
