"""JobPlan -> the batch script that Slurm is given: lines, each with why it is there. Pure text: the same plan, the same bytes.

    header    what it runs, for whom, for how long, what it writes; #SBATCH options
    set-up    rights of new files, the site's modules, variables, strict mode
    the step  srun ... python -m hpcai.worker RUN_DIR: the last line, the same that a person may type

The jobs of a sweep share one script, whose last line is python -m hpcai.pack SWEEP_DIR: it starts such a step for each member.

The text holds nothing that changes with time, so that it can be sent again by hand, and `--dry-run` can print it beforehand.
Source of the habits: sbatch(1) and srun(1) of Slurm 22.05 to 26.11.
"""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import hpcai
from hpcai import limits
from hpcai.config.facts import Facts, Partition
from hpcai.config.schema import Config
from hpcai.errors import one_line
from hpcai.inputs import listed_books
from hpcai.plan import JobPlan
from hpcai.rundir import RunDir

STRICT = "set -euo pipefail"


@dataclass(frozen=True)
class Line:
    """One line of a script, and why it is there."""

    text: str
    why: str = ""


@dataclass(frozen=True)
class Shared:
    """What several jobs with one script do together: the members of a sweep. `plan` of such a script is that of one job."""

    members: int
    jobs: int
    arrays: tuple[str, ...]  # what sbatch was told of each


def job_of(member: JobPlan, times: int, name: str, folder: str) -> JobPlan:
    """The plan of a job that holds so many members side by side."""
    asked = member.resources
    mem_gb = asked["mem_gb"] and asked["mem_gb"] * times
    grown = {name: asked[name] * times for name in ("tasks_per_node", "gpus_per_node")}
    return replace(member, run_id=name, run_dir=folder, resources={**asked, **grown, "mem_gb": mem_gb})


def text(plan: JobPlan, config: Config, shared: Shared | None = None) -> str:
    """The whole script."""
    return "".join(f"{line.text}\n" for line in lines(plan, config, shared))


def explain(plan: JobPlan, config: Config, shared: Shared | None = None) -> str:
    """The script with a reason below each line that needs one."""
    told: list[str] = []
    for line in lines(plan, config, shared):
        told.append(line.text)
        told += [f"    ^ {line.why}"] if line.why else []
    return "\n".join(told) + "\n"


def lines(plan: JobPlan, config: Config, shared: Shared | None = None) -> Iterator[Line]:
    """Every line, in order."""
    yield Line("#!/bin/bash -l", "a login shell: sites define `module` in its profile")
    yield from _said(plan, shared)
    for name, value, why in _options(plan, config, "%j" if shared is None else "%A_%a"):
        yield Line(f"#SBATCH --{name}" + (f"={quoted(value)}" if value else ""), why)
    yield Line("")
    yield from _set_up(plan, config, shared)
    yield Line("")
    if shared is not None:
        yield Line("trap : TERM", "left to the members, which save a checkpoint")
        yield from _preflight(plan, config)
        yield Line(
            '"$PYTHON" -u -m hpcai.pack "$RUN" "$SECONDS"',
            "starts an srun for each member that no job has taken, as many at once as fit, until none is left or time is short",
        )
        return
    yield Line(
        'trap : TERM; trap \'"$PYTHON" -u -m hpcai.requeue "$RUN" "$?" || :\' EXIT',
        "after the step: asks Slurm to queue this job again where it was stopped by its time limit or lost a rank; "
        "TERM is left to the ranks, which save a checkpoint",
    )
    yield from _preflight(plan, config)
    yield Line(_shell(step(plan, config)), "one process a rank; one that dies ends the step and with it the allocation")


# --- header


def _said(plan: JobPlan, shared: Shared | None) -> Iterator[Line]:
    """What a reader wants to know first."""
    asked, slurm = plan.resources, plan.slurm or {}
    whom = f" for account {slurm['account']}" if slurm.get("account") else ""
    gpus = f", {asked['gpus_per_node']} GPU{'s' * (asked['gpus_per_node'] > 1)} a node" if asked["gpus_per_node"] else ""
    nodes = f"{asked['nodes']} node{'s' * (asked['nodes'] > 1)} of {slurm.get('partition')}"
    what = plan.job
    if shared is not None:
        what = f"the {shared.members} runs" if shared.members > 1 else "the run"
        what = what if shared.jobs == 1 else f"one of {shared.jobs} jobs that do {what}"
    yield Line(f"# hpcai {hpcai.__version__}: {what} of {plan.run_id}{whom}.")
    yield Line(f"# At most {limits.duration(asked['timeout_min'])} on {nodes}{gpus}" + _price(plan) + ".")
    where = (
        "its data is listed in data.json there" if shared is None else "its members and the folders of its runs in members.json"
    )
    yield Line(f"# Reads and writes {one_line(plan.run_dir, 400)}; {where}.")
    if shared is not None:
        yield Line(f"# Sent by {' and '.join(f'sbatch {array} THIS_FILE' for array in shared.arrays[:3])}.")
    yield Line(f"# To stop it: hpcai cancel NAME, or scancel --me -n {plan.run_id}. Sent again (sbatch THIS_FILE), it goes on.")


def _price(plan: JobPlan) -> str:
    price = (plan.slurm or {}).get("price")
    return f": {price['words']} for each start" if price else ""


def _options(plan: JobPlan, config: Config, job: str) -> Iterator[tuple[str, str, str]]:
    """The #SBATCH options: name, value, why. `job`: how a log's name begins."""
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
        yield *_gpus(facts, gpus), "GPUs a node: every rank of it sees all of them and takes its own"
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
    yield "output", str(run.submitit / f"{job}_batch.log"), "what this script itself says"
    yield "export", "NONE", "nothing of the submitter's shell leaks into the job"
    if cluster.mail:
        yield "mail-user", cluster.mail, ""
        yield "mail-type", "END,FAIL,TIME_LIMIT_90", "asked for by cluster.mail"


def _gpus(facts: Facts, gpus: int) -> tuple[str, str]:
    """The option that asks for them, and its value."""
    kind = f"{facts.gpu_type}:" if facts.gpu_type else ""
    return ("gres", f"gpu:{kind}{gpus}") if facts.gpu_request == "gres" else ("gpus-per-node", f"{kind}{gpus}")


def quoted(value: str) -> str:
    """A value in an #SBATCH line, which no shell reads: sbatch knows double quotes, and a backslash before one or another."""
    return value if re.fullmatch(r"[A-Za-z0-9_./:,@%+=-]+", value) else '"' + re.sub(r'(["\\])', r"\\\1", value) + '"'


# --- set-up


def _set_up(plan: JobPlan, config: Config, shared: Shared | None) -> Iterator[Line]:
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
    if shared is not None and (site := os.environ.get("HPCAI_SITE")):
        yield Line(f"export HPCAI_SITE={shlex.quote(site)}", "the site's cluster files: a search composes its runs here")
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


RUN, PYTHON = "\0RUN", "\0PYTHON"  # stand for the script's own variables: no path holds a null


def step(plan: JobPlan, config: Config, run: str = RUN, python: str = PYTHON, beside: str | None = None) -> list[str]:
    """The words that start a run's ranks. `beside`: it shares the job with others, and its logs' names begin so."""
    words = ["srun", "--kill-on-bad-exit=1"] + ([] if beside is None else _share(plan, config))
    words += [f"--cpus-per-task={plan.threads}", *_mpi(config), *_partition(plan, config).srun, "--open-mode=append"]
    log = f"{run}/submitit/{beside or '%j'}_%t_log"
    words += [f"--output={log}.out", f"--error={log}.err"]
    return [*words, *_inside(plan, config, run, python), "-u", "-m", "hpcai.worker", run]


def _share(plan: JobPlan, config: Config) -> list[str]:
    """A member's part of the job: its own cores and GPUs, so that others run beside it."""
    asked, facts = plan.resources, config.cluster.facts
    nodes, ranks = asked["nodes"], asked["tasks_per_node"]
    words = ["--exact", f"--nodes={nodes}", f"--ntasks={nodes * ranks}", f"--ntasks-per-node={ranks}"]
    if asked["gpus_per_node"]:
        words.append("--{}={}".format(*_gpus(facts, asked["gpus_per_node"])))
    elif _partition(plan, config).gpus:
        words.append("--gres=none")
    if facts.mem != "never":  # 0: all that the job has, shared; else the first step would take it alone
        words.append(f"--mem={int(asked['mem_gb'] * 1024)}M" if asked["mem_gb"] else "--mem=0")
    return words


def _shell(words: Sequence[str]) -> str:
    """The words as bash reads them: what holds a variable in double quotes, where nothing else needs any."""
    told = []
    for word in words:
        name, equals, value = word.partition("=") if word.startswith("--") else ("", "", word)
        shown = value.replace(RUN, "$RUN").replace(PYTHON, "$PYTHON")
        told.append(f'{name}{equals}"{shown}"' if "\0" in value else shlex.quote(word))
    return " ".join(told)


def _inside(plan: JobPlan, config: Config, run: str, python: str) -> list[str]:
    """What starts a rank: the nodes' Python, or that of a container, which sees the run, its inputs (read only) and GPUs."""
    box = config.container
    if box.image is None:
        return [python]
    gpu = ["--rocm" if "AMD" in _partition(plan, config).gpu else "--nv"] if plan.resources["gpus_per_node"] else []
    named = [config.from_run] if isinstance(config.from_run, str) else config.from_run or []
    inputs = [
        path
        for path in (
            config.data.path,
            config.data.label_path,
            _folder_of_images(config),
            config.model.init_from,
            *named,
            *config.predict.merge,
            *map(str, listed_books(config.screening)),
        )
        if path and path.startswith("/")
    ]
    binds = [f"{run}:{run}", *(f"{path}:{path}:ro" for path in dict.fromkeys(inputs)), *box.binds]
    begun = [*shlex.split(config.cluster.facts.container), *gpu]
    return [*begun, *(word for bind in binds for word in ("--bind", bind)), "--pwd", run, box.image, box.python]


def _folder_of_images(config: Config) -> str | None:
    """Of a listing: where what it lists lies."""
    if config.data.reader != "csv":
        return None
    return config.data.root or str(Path(config.data.path).parent)


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
    return minutes, lead_s(minutes)


def lead_s(minutes: int) -> int:
    """How many seconds before the end ranks are told that have so many minutes."""
    return min(120, minutes * 20)


def clock(minutes: int) -> str:
    """Slurm's D-HH:MM:00."""
    days, rest = divmod(minutes, 1440)
    return f"{days}-{rest // 60:02d}:{rest % 60:02d}:00" if days else f"{rest // 60:02d}:{rest % 60:02d}:00"
