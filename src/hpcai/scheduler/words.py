"""Slurm's words in plain ones, each with what to do: why a job waits, why it ended, why sbatch refused it. Pure.

What nobody has put into the tables is shown as Slurm says it.
"""

from __future__ import annotations

import os
import pwd
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from hpcai.errors import one_line
from hpcai.scheduler.ask import GONE, Job

GOES_ON = "The same command goes on."
ASK = "ask the site"

# ---- why it waits. Source: squeue(1), JOB REASON CODES, of Slurm 22.05 to 26.11.

REASONS = {
    "": "waiting",
    "Priority": "waiting behind jobs of higher priority",
    "Resources": "waiting for a node",
    "Dependency": "waiting for another job to end",
    "DependencyNeverSatisfied": "the job that it follows has failed, so it never starts: hpcai cancel, then hpcai resume",
    "JobHeldUser": "held by its user: scontrol release starts it",
    "JobHeldAdmin": f"held by an administrator: {ASK}",
    "BeginTime": "waiting for its time, as after a requeue",
    "JobArrayTaskLimit": "waiting for others of its sweep to end",
    "ReqNodeNotAvail": f"its nodes are down or reserved, as before a maintenance: wait, or {ASK}",
    "Reservation": "waiting for its reservation to begin",
    "ReservationDeleted": "its reservation is gone: cancel it and name another",
    "PartitionDown": "its partition is closed: wait",
    "PartitionInactive": f"its partition is not in use: cancel it and name another, or {ASK}",
    "PartitionNodeLimit": "more nodes than its partition gives, so it never starts: cancel it and ask for fewer",
    "PartitionTimeLimit": "longer than its partition allows, so it never starts: cancel it and ask for less time",
    "PartitionConfig": "over a limit of its partition, so it never starts: cancel it and ask for less",
    "BadConstraints": "no node is as it asks, so it never starts: cancel it and ask for another",
    "Licenses": "waiting for a licence",
    "NodeDown": "a node that it needs is down: wait",
    "Cleaning": "its last start is still being cleaned up",
    "Prolog": "its node is being prepared",
    "InvalidQOS": "its QOS is not valid any longer: cancel it and name another",
    "QOSNotAllowed": "its QOS is not allowed there, so it never starts: cancel it and name another",
    "QOSTimeLimit": "its QOS has used up its time: wait, or name another",
    "InvalidAccount": f"its account is not valid any longer: {ASK}",
    "AccountNotAllowed": "its account may not use that partition: cancel it and name another",
    "AccountingPolicy": f"over a limit of its account: wait, or {ASK}",
    "JobHoldMaxRequeue": f"held, for it was queued again too often: see its log; scontrol release starts it, or {ASK}",
    "launch_failed_requeued_held": f"held, for its node could not start it: {ASK} to release it, or cancel it and resume",
    "job_requeued_in_held_state": "held after a requeue: scontrol release starts it",
    "user_env_retrieval_failed_requeued_held": "held, for its environment could not be read: scontrol release starts it",
    "SchedDefer": "waiting for the scheduler's next round",
    "BurstBufferResources": "waiting for space on fast storage",
    "MaxMemPerLimit": "more memory than its partition gives: cancel it and ask for less",
    "NonZeroExitCode": "failed before and waits again",
}  # fmt: skip


def reason_words(job: Job, now: float | None = None) -> str:
    """Why it waits, what to do about it, and when Slurm expects it to start: `waiting for a node, starts about 22:40`.

    Nothing for one that does not wait.
    """
    if not job.waits:
        return ""
    first = job.reason.partition(",")[0].strip()
    key = re.sub(r"[^A-Za-z]+", "_", first).strip("_")
    words = REASONS.get(first, REASONS.get(key)) or _limit(first) or _unmet(key) or f"waiting ({first})"
    return words + _start(job.start, time.time() if now is None else now)


def _limit(reason: str) -> str:
    """`QOSMaxCpuPerUserLimit`, `AssocGrpNodeLimit`, `AssocMaxWallDurationPerJobLimit`: whose limit, and what ends the wait."""
    m = re.fullmatch(r"(QOS|Assoc|Max)(\w*)", reason)
    if not m or not ("Limit" in reason or "Max" in reason or "Grp" in reason):
        return ""
    whose = {"QOS": "its QOS", "Assoc": "its account"}.get(m[1], "its account")
    if re.search(r"Minutes|Billing|RunM|GrpWall", m[2]) and "PerJob" not in m[2]:
        return f"{whose} has used up its hours ({reason}): ask for more, or name another"
    if re.search(r"PerJob|PerNode|WallDuration|MinutesPer|MinCpu|MinGRES|MinMemory", m[2]):
        return f"over a job's limit of {whose} ({reason}), so it never starts: cancel it and ask for less, or name another"
    if "Grp" in m[2]:
        return f"over the limit of {whose} for all its jobs together ({reason}): starts when others end"
    what = "running jobs" if "Jobs" in m[2] else "what one user may hold"
    return f"over the limit of {whose} of {what} ({reason}): starts when one of yours ends"


def _unmet(key: str) -> str:
    return f"its nodes are down, drained or reserved: wait, or {ASK}" if key.startswith("Nodes_required_for_job_are") else ""


def _start(start: float | None, now: float) -> str:
    if start is None or start <= now:
        return ""
    at, today = time.localtime(start), time.localtime(now)
    if start - now < 20 * 3600 or at[:3] == today[:3]:
        return time.strftime(", starts about %H:%M", at)
    return time.strftime(", starts about %Y-%m-%d %H:%M", at)


# ---- why it ended

Kind = Literal[
    "completed", "time_limit", "preempted", "out_of_memory", "gpu_memory", "node_failure", "cancelled", "failed", "unknown"
]


@dataclass(frozen=True)
class Cause:
    """Why a job ended. `again`: the same job, as it is, would go on; else `todo` says what to change first."""

    kind: Kind
    words: str
    todo: str
    again: bool


MORE_MEMORY = "Ask for more resources.mem_gb."
CAUSES = {
    "time_limit": Cause("time_limit", "its time limit was reached", GOES_ON, True),
    "preempted": Cause("preempted", "preempted by a job of higher priority", GOES_ON, True),
    "out_of_memory": Cause("out_of_memory", "out of memory", f"{MORE_MEMORY} {GOES_ON}", False),
    "gpu_memory": Cause("gpu_memory", "out of GPU memory", "Take a smaller trainer.batch_size, or trainer.accumulate.", False),
    "node_failure": Cause("node_failure", "its node failed", GOES_ON, True),
    "failed": Cause("failed", "failed", f"See its log. {GOES_ON}", False),
    "completed": Cause("completed", "ended without an error, but its ranks wrote no end", f"See its log. {GOES_ON}", False),
    "unknown": Cause("unknown", "gone from the queue without a word, and Slurm keeps no record of why", GOES_ON, True),
}
STATES = {
    "COMPLETED": "completed", "FAILED": "failed", "TIMEOUT": "time_limit", "DEADLINE": "time_limit", "PREEMPTED": "preempted",
    "NODE_FAIL": "node_failure", "BOOT_FAIL": "node_failure", "LAUNCH_FAILED": "node_failure", "OUT_OF_MEMORY": "out_of_memory",
}  # fmt: skip

# What slurmstepd, srun and torch write. Source: seen on 22.05; slurmstepd's `oom_kill` on cgroup sites (23.11).
NOTICES = {
    "time_limit": r"CANCELLED AT \S+ DUE TO TIME LIMIT",
    "preempted": r"CANCELLED AT \S+ DUE TO PREEMPTION",
    "node_failure": r"CANCELLED AT \S+ DUE TO (?:NODE FAILURE|SLURMD NOT RUNNING)",
    "out_of_memory": r"exceeded memory limit|oom[-_]kill event|Some of the step tasks have been OOM Killed",
    "gpu_memory": r"(?:CUDA|HIP) out of memory",
}
CANCELLED = r"\*\*\* JOB \S+ ON \S+ CANCELLED AT \S+ \*\*\*"


def cause(job: Job | None, log: str = "") -> Cause:
    """Why a job is gone. `log`: what its script and ranks said last, which decides where Slurm has no word, or only `failed`.

    CUDA's out-of-memory is FAILED to Slurm, and memory that slurmstepd polls (no cgroups) too.
    """
    if job is not None and job.state == "CANCELLED":
        return _cancelled(job)
    kind = STATES.get(job.state, "unknown") if job is not None else "unknown"
    if kind == "failed" and job is not None and job.oom:
        kind = "out_of_memory"
    if kind in ("failed", "unknown") and (told := _notice(log)):
        kind = told
    if kind == "cancelled":
        return Cause("cancelled", "cancelled", GOES_ON, False)
    if kind == "failed" and job is not None:
        return _failed(job)
    if kind == "unknown" and job is not None and job.state not in (GONE, ""):
        return Cause("unknown", f"ended as {job.state}", GOES_ON, False)
    return CAUSES[kind]


def cause_words(job: Job | None, log: str = "") -> str:
    """The same on one line: `job 48211: out of memory. Ask for more resources.mem_gb. The same command goes on.`"""
    why = cause(job, log)
    return f"{f'job {job.id}' if job else 'its job'}: {why.words}. {why.todo}"


def _notice(log: str) -> str:
    """The last of Slurm's and torch's notices in a log; a plain cancellation only where there is no other."""
    found = {kind: [m.end() for m in re.finditer(pattern, log)] for kind, pattern in NOTICES.items()}
    last = max(((ends[-1], kind) for kind, ends in found.items() if ends), default=None)
    return last[1] if last else "cancelled" if re.search(CANCELLED, log) else ""


def _cancelled(job: Job) -> Cause:
    if not job.cancelled_by:
        why = f" ({job.reason})" if job.reason else ""
        needed = ": a run that it needed did not end well" if job.reason == "DependencyNeverSatisfied" else ""
        return Cause("cancelled", f"cancelled{needed}{why}", GOES_ON, False)
    uid = int(job.cancelled_by)
    if uid == os.getuid():
        return Cause("cancelled", "cancelled by you", GOES_ON, False)
    try:
        name = pwd.getpwuid(uid).pw_name
    except (KeyError, OverflowError):
        name = f"user {uid}"
    todo = f"Ask them why. {GOES_ON}"
    return Cause("cancelled", f"cancelled by {'an administrator (root)' if uid == 0 else one_line(name, 40)}", todo, False)


def _failed(job: Job) -> Cause:
    """Slurm's exit code is code:signal of the script, and a shell says 128 + signal of what it ran."""
    known = [re.fullmatch(r"(\d{1,5}):(\d{1,5})", text, re.ASCII) for text in (job.exit, job.derived)]
    codes = [(int(m[1]), int(m[2])) for m in known if m]
    signals = [s or c - 128 for c, s in codes if s or 128 < c < 192]
    if 9 in signals:
        return Cause("failed", "killed by signal 9, which is often memory", f"{MORE_MEMORY} {GOES_ON}", False)
    if signals:
        return Cause("failed", f"killed by signal {signals[0]}", f"See its log. {GOES_ON}", False)
    if job.reason in ("JobLaunchFailure", "BadConstraints"):
        return Cause("node_failure", f"its node could not start it ({job.reason})", GOES_ON, True)
    code = f" with code {codes[0][0]}" if codes else f" ({job.reason})" if job.reason else ""
    return Cause("failed", f"failed{code}", f"See its log. {GOES_ON}", False)


# ---- why sbatch refused it

TIME, NODES, GPUS, MEMORY = "resources.timeout_min", "resources.nodes", "resources.gpus_per_node", "resources.mem_gb"
QOS, PARTITION, ACCOUNT = "cluster.qos", "cluster.partition", "cluster.account"

# What sbatch says -> the keys that it is about, the fact, what to do. The first that fits: the words of a limit stand above the
# sentence that all limits share. Source: seen on 22.05, Flags=DenyOnLimit; 23.11 says the same.
REJECTIONS: list[tuple[str, tuple[str, ...], str, str]] = [
    (r"\w*MaxWallDurationPerJob\w*", (TIME, QOS), "longer than the QOS allows", "Ask for less time, or name another QOS."),
    (r"\w*MaxNodePerJob\w*", (NODES, QOS), "more nodes than the QOS gives a job", "Ask for fewer, or name another QOS."),
    (r"\w*(?:MaxSubmit|GrpSubmit)\w*", (QOS, ACCOUNT), "as many jobs as may be submitted are in the queue",
     "Wait until some have ended, or name another QOS."),
    (r"(?:QOS|Assoc)\w*Minutes\w*", (ACCOUNT,), "the hours are used up", "Ask for more, or name another account."),
    (r"(?:QOS|Assoc)(?:Max|Grp|Min)\w+", (QOS, ACCOUNT), "over a limit", "Ask for less, or name another QOS."),
    (r"Invalid account[^\n]*", (ACCOUNT, PARTITION), "no such account, or you are no member, or it may not use that partition",
     "Name one of yours: sacctmgr show assoc user=$USER lists them."),
    (r"[Ii]nvalid partition[^\n]*", (PARTITION,), "no such partition", "Name another: sinfo -s lists them."),
    (r"Invalid qos specification", (QOS,), "no such QOS, or the account lacks it",
     "Name another: sacctmgr show assoc user=$USER lists them."),
    (r"Node count specification invalid", (NODES, PARTITION), "more nodes than there are", "Ask for fewer."),
    (r"Requested time limit is invalid[^\n]*", (TIME, PARTITION), "longer than the partition allows", "Ask for less time."),
    (r"Memory specification can not be satisfied", (MEMORY,), "more memory than a node has", "Ask for less."),
    (r"CPU count per node can not be satisfied", ("resources.cpus_per_task", "resources.tasks_per_node"),
     "more cores than a node has", "Ask for fewer."),
    (r"Invalid generic resource[^\n]*", (GPUS, PARTITION), "no GPUs by that name", "Correct cluster.facts.gpu_type."),
    (r"Requested node configuration is not available", (GPUS, NODES, MEMORY, PARTITION),
     "no node of the partition is like that", "Ask for less, or name another partition."),
    (r"Invalid job array specification", (), "an index above the site's MaxArraySize", "Correct cluster.facts.max_array."),
    (r"Requested reservation is invalid", ("cluster.reservation",), "no such reservation, or not yours", "Correct it."),
    (r"Job dependency problem", (), "the job that it should follow is unknown", "Submit that one again."),
    (r"Invalid (?:node name|feature) specifi\w+", (), "no node has that name or feature", "Correct the cluster file."),
    (r"Invalid wckey specification", (), "this site wants a wckey", "Ask the site which one is yours."),
    (r"Munge encode failed[^\n]*|Protocol authentication error|Invalid authentication credential", (),
     "munge, which signs requests, does not run here", "Try again, or tell the site."),
    (r"Unable to contact slurm controller[^\n]*|Connection refused|Socket timed out[^\n]*", (),
     "Slurm's controller does not answer", "Nothing was sent. Try again in some minutes."),
    (r"Could not establish a configuration source|Unable to process configuration file", (),
     "Slurm is not configured here", "Set SLURM_CONF, or type this on a login node."),
    (r"System is being upgraded|Slurm is in maintenance|temporarily (?:unable|disabled)[^\n]*|submission is disabled[^\n]*", (),
     "the site accepts no jobs at the moment", "Try again later."),
]  # fmt: skip


def rejection(text: str, asked: Mapping[str, object] | None = None) -> str:
    """sbatch's refusal on one line: `cluster.qos=dev: longer than the QOS allows (QOSMax...). Ask for less time.`

    Args:
        text: what sbatch said, whatever stands round it.
        asked: the run's keys and their values; those that it is about are named in front.
    """
    for pattern, keys, fact, todo in REJECTIONS:
        if m := re.search(pattern, text):
            named = [f"{key}={asked[key]}" for key in keys if asked and asked.get(key) is not None]
            return one_line(f"{', '.join(named)}{': ' if named else ''}{fact} (Slurm: {m[0].strip()}). {todo}")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    told = [line for line in lines if re.match(r"(sbatch|srun): (error|fatal): ", line)] or lines or ["without a word"]
    said = "; ".join(
        re.sub(r"^((sbatch|srun): (error|fatal): )?(Batch job submission failed: )?", "", line) for line in told[-2:]
    )
    return one_line(f"Slurm refused it ({said}). sbatch on its script by hand says more.")
