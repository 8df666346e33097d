"""From a try of a few steps to what the whole run will take: its records -> Pace -> Proposal -> a line in a later plan.

    time     start-up + steps x a step + validations x one + checkpoints x one + the end (test, report), for one life
    limit    half as much again, up to the next 10 min, from an hour on the next half hour, from a day on the next hour
    memory   the fullest node's peak and a quarter more: meter.memory_to_ask
    price    the site's own rule (limits.price): expected for that time, at most for that limit

A step is the mean of those after the first one, which warms up; early stopping is not foreseen. A try stays in its folder, with
its proposal of each whole run that has the same first steps.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from hpcai import lease, rundir
from hpcai.config.schema import Config
from hpcai.errors import RunError, one_line
from hpcai.plan import JobPlan
from hpcai.rundir import RunDir
from hpcai.runs import DAMAGED

TRY = "try-"
MARGIN = 1.5
STATED = ("nodes", "tasks_per_node", "gpus_per_node", "cpus_per_task")  # what a pace depends on


def name_of_try(name: str) -> str:
    """The name of a run's try. It begins otherwise, so that the beginning of the run's own name stays clear."""
    return f"{TRY}{name}"[:64]


def is_try(name: object) -> bool:
    """Whether a run of this name is a try: its score is of a few steps, and nobody chooses by it."""
    return str(name).startswith(TRY)


@dataclass(frozen=True)
class Pace:
    """Seconds: until the first step is done, one step, one validation, one checkpoint, all that follows the last step."""

    start: float
    step: float
    validation: float
    checkpoint: float
    end: float


@dataclass(frozen=True)
class Proposal:
    """What a whole run will take, tried at `time`. `mem_gb`: the peak of a node; `ask_gb`: None where nobody looked at it."""

    time: float
    cluster: str
    resources: dict[str, Any]
    pace: Pace
    tried_steps: int
    steps: int
    validations: int
    seconds: float
    timeout_min: int
    mem_gb: float | None
    ask_gb: int | None
    price: dict[str, Any] | None  # expected, at_most, unit, words

    @property
    def words(self) -> str:
        """The keys to give."""
        memory = f" resources.mem_gb={self.ask_gb}" if self.ask_gb else ""
        return f"resources.timeout_min={self.timeout_min}{memory}"


def pace_of(run: RunDir) -> Pace:
    """The pace of a finished try, from the records of its last life.

    Raises: RunError if that life did not do two steps in a row.
    """
    told = lease.records(run, lease.last_life(run)).get(0, [])
    begun, ended = (next((float(r["time"]) for r in told if r["event"] == event), math.inf) for event in ("begin", "end"))
    lines = [line for line in rundir.read_lines(run.metrics) if line["time"] >= begun]
    trained = [line for line in lines if line["kind"] == "train"]
    steps = [b["time"] - a["time"] for a, b in pairwise(lines) if (a["kind"], b["kind"]) == ("train", "train")]
    judged = [b["time"] - a["time"] for a, b in pairwise(lines) if (a["kind"], b["kind"]) == ("train", "val")]
    if not trained or (len(trained) > 1 and not steps) or ended == math.inf:
        raise RunError(f"run={run.path.name}: was interrupted before two steps in a row. hpcai try --anew measures again.")
    last = lines[-1]
    saved = next((r["time"] for r in told if r["event"] == "progress" and r.get("step") == last["step"]), last["time"])
    return Pace(
        start=max(0.0, trained[0]["time"] - begun),
        step=sum(steps) / len(steps) if steps else 0.0,
        validation=max(judged, default=0.0),
        checkpoint=max(0.0, saved - last["time"]),
        end=max(0.0, ended - max(saved, last["time"])),
    )


def propose(whole: Config, run: RunDir) -> Proposal:
    """What `whole` will take, from its finished try.

    Raises: RunError if the try cannot tell.
    """
    from hpcai import meter  # at use: each plan looks for a proposal, and few find one

    pace, cases = pace_of(run), int(rundir.read_json(run.split)["counts"]["train"])
    trainer = whole.trainer
    an_epoch = math.ceil(cases / trainer.batch_size)
    steps = min(an_epoch * trainer.epochs, trainer.max_steps or math.inf)
    validations = math.ceil(math.ceil(steps / an_epoch) / trainer.validate_every)
    seconds = pace.start + steps * pace.step + validations * pace.validation + pace.end
    saves = validations + steps // (trainer.checkpoint_every or math.inf) + seconds / 60 // trainer.checkpoint_every_min
    seconds += saves * pace.checkpoint
    timeout_min, uses = limit_of(seconds), meter.read_use(run)
    peak = meter.node_peak(uses) or None
    asked = whole.resources.model_dump()
    return Proposal(
        time=lease.read_state(run).ended or time.time(),
        cluster=whole.cluster.name,
        resources={name: asked[name] for name in STATED},
        pace=pace,
        tried_steps=max(line["step"] for line in rundir.read_lines(run.metrics)),
        steps=int(steps),
        validations=validations,
        seconds=round(seconds, 1),
        timeout_min=timeout_min,
        mem_gb=peak,
        ask_gb=meter.memory_to_ask(peak) if peak else None,
        price=_price(whole, seconds, timeout_min),
    )


def limit_of(seconds: float) -> int:
    """Minutes to ask for, of a run that takes so long: see the rule above."""
    minutes = max(1.0, MARGIN * seconds / 60)
    step = 10 if minutes <= 60 else 30 if minutes <= 1440 else 60
    return step * math.ceil(minutes / step)


def _price(whole: Config, seconds: float, timeout_min: int) -> dict[str, Any] | None:
    from hpcai import limits

    given = limits.allocation(whole) if whole.cluster.executor == "slurm" else None
    limit = whole.resources.model_copy(update={"timeout_min": timeout_min})
    price = limits.price(whole.model_copy(update={"resources": limit}), given) if given else None
    if price is None:
        return None
    expected = price.amount * seconds / 60 / timeout_min
    return {"expected": expected, "at_most": price.amount, "unit": price.unit, "words": price.words}


# --- kept, and quoted


def keep(run: RunDir, identity: str, proposal: Proposal) -> None:
    """Notes it in the try's folder; `identity`: of the whole run (plan.digest)."""
    rundir.write_json(run.proposal, {**_kept(run), identity: asdict(proposal)})


def _kept(run: RunDir) -> dict[str, Any]:
    try:
        value = rundir.read_json(run.proposal)
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def find(plan: JobPlan) -> Proposal | None:
    """The newest proposal for the run that is planned: the same identity, on the same machine with the same ranks."""
    run = Path(plan.run_dir)
    begin = f"{name_of_try(plan.run_id.rpartition('-')[0])}-"
    asked = {name: plan.resources.get(name) for name in STATED}
    found = []
    try:
        with os.scandir(run.parent) as entries:
            names = [e.name for e in entries if e.name.startswith(begin)]
    except OSError:
        return None
    for name in names:
        value = _kept(RunDir(run.parent / name)).get(plan.identity, {})
        try:
            proposal = Proposal(**{f.name: value[f.name] for f in fields(Proposal)})
            proposal = replace(proposal, pace=Pace(**value["pace"]))
            if (proposal.cluster, proposal.resources) == (plan.cluster, asked) and quote(proposal):
                found.append(proposal)
        except (*DAMAGED, OverflowError):
            continue
    return max(found, key=lambda p: p.time, default=None)


def quote(proposal: Proposal) -> str:
    """`tried 2026-11-26: 34 min, 6.0 GB: resources.timeout_min=60 resources.mem_gb=8 would do`: for a later plan."""
    from hpcai import limits

    day = time.strftime("%Y-%m-%d", time.gmtime(proposal.time))
    memory = f", {proposal.mem_gb:.1f} GB" if proposal.mem_gb else ""
    price = f", about {limits.rounded_up(proposal.price['expected'])} {proposal.price['unit']}" if proposal.price else ""
    took = limits.duration(max(1, math.ceil(proposal.seconds / 60)))
    return one_line(f"tried {day}: {took}{memory}{price}: {proposal.words} would do", 300)


def tell(run: RunDir, proposal: Proposal) -> Iterator[str]:
    """For whoever tried it."""
    from hpcai import limits

    pace = proposal.pace
    memory = f", {proposal.mem_gb:.1f} GB" if proposal.mem_gb else ""
    yield (
        f"tried    {proposal.tried_steps} steps ({run.path.name}): start {pace.start:.1f} s, a step {pace.step:.3f} s, "
        f"a validation {pace.validation:.1f} s, the end {pace.end:.1f} s{memory}"
    )
    whole = limits.duration(max(1, math.ceil(proposal.seconds / 60)))
    plural = "s" * (proposal.validations != 1)
    yield f"whole    {proposal.steps:,} steps, {proposal.validations:,} validation{plural}: about {whole}"
    yield f"propose  {proposal.words}"
    if proposal.price:
        about = f"about {limits.rounded_up(proposal.price['expected'])} {proposal.price['unit']}"
        yield f"price    {about}, {proposal.price['words']}"
