"""JobPlan -> the batch script that Slurm is given: lines, each with why it is there. Pure text: the same plan, the same bytes.

    header    what it runs, for whom, for how long, what it writes; #SBATCH options
    set-up    rights of new files, the site's modules, variables, strict mode
    the step  srun ... python -m hpcai.worker RUN_DIR: the last line, the same that a person may type

The text holds nothing that changes with time, so that it can be sent again by hand, and `--dry-run` can print it beforehand.
Source of the habits: sbatch(1) and srun(1) of Slurm 22.05 to 26.11.
"""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import hpcai
from hpcai import limits
from hpcai.config.facts import Partition
from hpcai.config.schema import Config
from hpcai.errors import one_line
from hpcai.plan import JobPlan
from hpcai.rundir import RunDir

STRICT = "set -euo pipefail"


@dataclass(frozen=True)
class Line:
    """One line of a script, and why it is there."""

    text: str
    why: str = ""


def text(plan: JobPlan, config: Config) -> str:
    """The whole script."""
    return "".join(f"{line.text}\n" for line in lines(plan, config))


def explain(plan: JobPlan, config: Config) -> str:
    """The script with a reason below each line that needs one."""
    told: list[str] = []
    for line in lines(plan, config):
        told.append(line.text)
        told += [f"    ^ {line.why}"] if line.why else []
    return "\n".join(told) + "\n"


def lines(plan: JobPlan, config: Config) -> Iterator[Line]:
    """Every line, in order."""
    yield Line("#!/bin/bash -l", "a login shell: sites define `module` in its profile")
    yield from _said(plan, config)
    for name, value, why in _options(plan, config):
        yield Line(f"#SBATCH --{name}" + (f"={quoted(value)}" if value else ""), why)
    yield Line("")
    yield from _set_up(plan, config)
    yield Line("")
    yield Line(
        'trap : TERM; trap \'"$PYTHON" -u -m hpcai.requeue "$RUN" "$?" || :\' EXIT',
        "after the step: asks Slurm to queue this job again where it was stopped by its time limit or lost a rank; "
        "TERM is left to the ranks, which save a checkpoint",
    )
    yield from _preflight(plan, config)
    yield Line(_srun(plan, config), "one process a rank; one that dies ends the step and with it the allocation")


# --- header


def _said(plan: JobPlan, config: Config) -> Iterator[Line]:
    """What a reader wants to know first."""
    asked, slurm = plan.resources, plan.slurm or {}
    whom = f" for account {slurm['account']}" if slurm.get("account") else ""
    gpus = f", {asked['gpus_per_node']} GPU{'s' * (asked['gpus_per_node'] > 1)} a node" if asked["gpus_per_node"] else ""
    nodes = f"{asked['nodes']} node{'s' * (asked['nodes'] > 1)} of {slurm.get('partition')}"
    yield Line(f"# hpcai {hpcai.__version__}: {plan.job} of {plan.run_id}{whom}.")
    yield Line(f"# At most {limits.duration(asked['timeout_min'])} on {nodes}{gpus}" + _price(plan) + ".")
    yield Line(f"# Reads and writes {one_line(plan.run_dir, 400)}; its data is listed in data.json there.")
    yield Line(f"# To stop it: hpcai cancel NAME, or scancel --me -n {plan.run_id}. Sent again (sbatch THIS_FILE), it goes on.")


def _price(plan: JobPlan) -> str:
    price = (plan.slurm or {}).get("price")
    return f": {price['words']} for each start" if price else ""


def _options(plan: JobPlan, config: Config) -> Iterator[tuple[str, str, str]]:
    """The #SBATCH options: name, value, why."""
    asked, slurm, facts, cluster = plan.resources, plan.slurm or {}, config.cluster.facts, config.cluster
    run = RunDir(Path(plan.run_dir))
    partition = _partition(plan, config)
    yield "job-name", plan.run_id, "the run's own name; no patient data, no comma (squeue and sacct split on it)"
    yield "comment", f"hpcai:{hpcai.__version__}:{plan.run_id}", "who made this job, for accounting and the help desk"
    for name in ("account", "partition", "qos", "reservation"):
        if value := slurm.get(name):
            yield name, str(value), {"account": "whom the site bills", "qos": "its limits and priority"}.get(name, "")
    yield "time", clock(asked["timeout_min"]), "written always: a site's default is another at each site"
    yield "nodes", str(asked["nodes"]), ""
    yield "ntasks-per-node", str(asked["tasks_per_node"]), "ranks a node"
    yield "cpus-per-task", str(plan.threads), "cores a rank"
    if partition.threads_per_core > 1:
        yield "hint", "nomultithread", "one thread a core: the second one slows numeric code down"
    if slurm.get("whole"):
        yield "exclusive", "", "this machine gives whole nodes"
    if gpus := asked["gpus_per_node"]:
        kind = f"{facts.gpu_type}:" if facts.gpu_type else ""
        if facts.gpu_request == "gres":
            yield "gres", f"gpu:{kind}{gpus}", "GPUs a node"
        else:
            yield "gpus-per-node", f"{kind}{gpus}", "every rank of a node sees all of them and takes its own"
    if facts.mem == "all" or (facts.mem == "asked" and slurm.get("whole") and asked["mem_gb"] is None):
        yield "mem", "0", "all memory of the node: --exclusive alone does not give it"
    elif facts.mem == "asked" and asked["mem_gb"] is not None:
        yield "mem", f"{int(asked['mem_gb'] * 1024)}M", "memory a node"
    _, lead = limits_of(plan)
    yield "signal", f"USR2@{lead}", "so many seconds before the end the ranks are told; they save a checkpoint and end"
    if facts.requeue is False:
        yield "no-requeue", "", "this site allows none: jobs of a chain follow each other"
    else:
        yield "requeue", "", "after a node failure or a preemption Slurm queues it again; it goes on from its checkpoint"
    yield "open-mode", "append", "a start that follows another keeps its words"
    yield "output", str(run.submitit / "%j_batch.log"), "what this script itself says"
    yield "export", "NONE", "nothing of the submitter's shell leaks into the job"
    if cluster.mail:
        yield "mail-user", cluster.mail, ""
        yield "mail-type", "END,FAIL,TIME_LIMIT_90", "asked for by cluster.mail"


def quoted(value: str) -> str:
    """A value in an #SBATCH line, which no shell reads: sbatch knows double quotes, and a backslash before one or another."""
    return value if re.fullmatch(r"[A-Za-z0-9_./:,@%+=-]+", value) else '"' + re.sub(r'(["\\])', r"\\\1", value) + '"'


# --- set-up


def _set_up(plan: JobPlan, config: Config) -> Iterator[Line]:
    facts = config.cluster.facts
    mask, whom = {"user": ("077", "the user alone"), "group": ("027", "the group")}[config.runs_access]
    yield Line(f"umask {mask}", f"what is derived from patients is readable by {whom}")
    yield Line("export SLURM_EXPORT_ENV=ALL", "steps get what this script sets, in spite of --export=NONE")
    yield Line(f"RUN={shlex.quote(plan.run_dir)}", "the run's folder: everything that it writes lies below")
    yield Line(f"PYTHON={shlex.quote(config.cluster.python or sys.executable)}", "of the compute nodes' environment")
    if facts.setup:
        yield Line("# shellcheck source=/dev/null")
        own = facts.setup.startswith("/")
        where = shlex.quote(facts.setup) if own else f'"$RUN/code/hpcai/slurm/setup/{facts.setup}"'
        yield Line(f". {where} || exit 3", "the site's modules" + "; the run's own copy, frozen at submission" * (not own))
    yield Line(
        'echo "hpcai: start ${SLURM_RESTART_COUNT:-0} of job $SLURM_JOB_ID on $SLURM_JOB_NODELIST, $(date)"',
        "into the batch log, which every start appends to",
    )
    yield Line(STRICT, "from here on a failing command ends the job; modules are not written for it")
    for name, value in sorted(_partition(plan, config).env.items()):
        yield Line(f"export {name}={shlex.quote(value)}", "this partition's setting, from the cluster file")
    yield Line(
        'export PYTHONPATH="$RUN/code${PYTHONPATH:+:$PYTHONPATH}"', "the code as it was at submission, whatever is edited later"
    )
    yield Line("export PYTHONSAFEPATH=1", "nothing is imported from the folder where Python starts")


def _preflight(plan: JobPlan, config: Config) -> Iterator[Line]:
    if not config.cluster.preflight:
        return
    nodes = plan.resources["nodes"]
    step = ["srun", f"--nodes={nodes}", f"--ntasks={nodes}", "--ntasks-per-node=1", "--kill-on-bad-exit=0"]
    words = shlex.join([*step, f"--cpus-per-task={plan.threads}", *_mpi(config), "bash"])
    yield Line(
        f'HPCAI_PYTHON="$PYTHON" {words} "$RUN/code/hpcai/slurm/preflight.sh" "$RUN"',
        "one process a node: an unfit node ends the job before it burns hours",
    )


# --- the step


def _srun(plan: JobPlan, config: Config) -> str:
    words = [
        "srun", "--kill-on-bad-exit=1", f"--cpus-per-task={plan.threads}", *_mpi(config), *_partition(plan, config).srun,
        "--open-mode=append",
    ]  # fmt: skip
    logs = '--output="$RUN/submitit/%j_%t_log.out" --error="$RUN/submitit/%j_%t_log.err"'
    return f'{shlex.join(words)} {logs} {_inside(plan, config)} -u -m hpcai.worker "$RUN"'


def _inside(plan: JobPlan, config: Config) -> str:
    """What starts a rank: the nodes' Python, or that of a container, which sees the run, its inputs (read only) and GPUs."""
    box = config.container
    if box.image is None:
        return '"$PYTHON"'
    gpu = ["--rocm" if "AMD" in _partition(plan, config).gpu else "--nv"] if plan.resources["gpus_per_node"] else []
    named = [config.from_run] if isinstance(config.from_run, str) else config.from_run or []
    inputs = [path for path in (config.data.path, config.model.init_from, *named) if path and path.startswith("/")]
    binds = [*(f"{path}:{path}:ro" for path in dict.fromkeys(inputs)), *box.binds]
    begun = shlex.join([*shlex.split(config.cluster.facts.container), *gpu])
    return " ".join([
        begun, '--bind "$RUN:$RUN"', *(f"--bind {shlex.quote(bind)}" for bind in binds), '--pwd "$RUN"', shlex.quote(box.image),
        shlex.quote(box.python),
    ])  # fmt: skip


def _mpi(config: Config) -> list[str]:
    return [f"--mpi={config.cluster.facts.mpi}"] if config.cluster.facts.mpi else []


def _partition(plan: JobPlan, config: Config) -> Partition:
    name = (plan.slurm or {}).get("partition")
    return config.cluster.facts.partitions.get(str(name)) or Partition(cores=1)


# --- times


def limits_of(plan: JobPlan) -> tuple[int, int]:
    """Minutes that the ranks have, and how many seconds before their end they are told.

    A signal may come 60 s early, so a short job is told at two thirds of its time: sooner, it would be told at once.
    """
    minutes = int(plan.resources["timeout_min"])
    return minutes, min(120, minutes * 20)


def clock(minutes: int) -> str:
    """Slurm's D-HH:MM:00."""
    days, rest = divmod(minutes, 1440)
    return f"{days}-{rest // 60:02d}:{rest % 60:02d}:00" if days else f"{rest // 60:02d}:{rest % 60:02d}:00"
