"""Slurm's words in plain ones: why a job waits, why it ended, why it was refused, each with what to do."""

from __future__ import annotations

import os
import time
from typing import Any

import pytest

from hpcai import scheduler
from hpcai.scheduler import Job

# --- why it waits

NOON = time.mktime((2026, 11, 26, 12, 0, 0, 0, 0, -1))


@pytest.mark.parametrize(("reason", "hours", "said"), [
    ("Resources", 10.7, "waiting for a node, starts about 22:42"),
    ("Resources", 40, "waiting for a node, starts about 2026-11-28 04:00"),
    ("Priority", None, "waiting behind jobs of higher priority"),
    ("Priority", -1, "waiting behind jobs of higher priority"),
    ("JobHeldAdmin", None, "held by an administrator: ask the site"),
    ("JobHeldUser", None, "held by its user: scontrol release starts it"),
    ("launch failed requeued held", None, "held, for its node could not start it"),
    ("launch_failed_requeued_held", None, "held, for its node could not start it"),
    ("ReqNodeNotAvail, UnavailableNodes:cpu[01-04]", None, "its nodes are down or reserved"),
    ("Nodes_required_for_job_are_DOWN,_DRAINED_or_reserved_for_jobs", None, "its nodes are down, drained or reserved"),
    ("Nodes required for job are DOWN, DRAINED", None, "its nodes are down, drained or reserved"),
    ("DependencyNeverSatisfied", None, "it never starts: hpcai cancel"),
    ("BeginTime", 0.1, "waiting for its time, as after a requeue, starts about 12:06"),
    ("QOSMaxJobsPerUserLimit", None,
     "over the limit of its QOS of running jobs (QOSMaxJobsPerUserLimit): starts when one of yours ends"),
    ("QOSMaxWallDurationPerJobLimit", None, "(QOSMaxWallDurationPerJobLimit), so it never starts: cancel it and ask for less"),
    ("QOSMaxCpuPerUserLimit", None, "starts when one of yours ends"),
    ("QOSGrpNodeLimit", None, "over the limit of its QOS for all its jobs together (QOSGrpNodeLimit): starts when others end"),
    ("AssocGrpBillingMinutes", None, "its account has used up its hours (AssocGrpBillingMinutes): ask for more"),
    ("AssocGrpCPUMinutesLimit", None, "its account has used up its hours"),
    ("AssocMaxJobsLimit", None, "over the limit of its account of running jobs"),
    ("MaxNodePerAccount", None, "over the limit of its account"),
    ("Licenses", None, "waiting for a licence"),
    ("SomethingNew", None, "waiting (SomethingNew)"),
    ("", None, "waiting"),
])  # fmt: skip
def test_a_reason_is_told_in_plain_words_with_what_to_do(reason: str, hours: float | None, said: str) -> None:
    start = None if hours is None else NOON + hours * 3600
    told = scheduler.reason_words(Job("7", "PENDING", reason, start), NOON)
    assert said in told
    assert hours is None or told == said


def test_a_job_that_runs_waits_for_nothing() -> None:
    assert scheduler.reason_words(Job("7", "RUNNING", "None", NOON)) == ""


# --- why it ended

TIME_LIMIT = "slurmstepd-cpu01: error: *** STEP 29.0 ON cpu01 CANCELLED AT 2026-11-26T02:09:23 DUE TO TIME LIMIT ***\n"
PREEMPTED = "slurmstepd: error: *** JOB 9 ON gpu01 CANCELLED AT 2026-11-26T02:09:23 DUE TO PREEMPTION ***\n"
NODE = "slurmstepd: error: *** JOB 9 ON gpu01 CANCELLED AT 2026-11-26T02:09:23 DUE TO NODE FAILURE, SEE SLURMCTLD LOG ***\n"
REQUEUED = "slurmstepd: error: *** JOB 9 ON gpu01 CANCELLED AT 2026-11-26T02:09:23 DUE TO JOB REQUEUE ***\n"
OOM = (
    "slurmstepd-cpu02: error: *** STEP 31.0 ON cpu02 CANCELLED AT 2026-11-26T02:08:11 ***\n"
    "slurmstepd-cpu02: error: StepId=31.0 exceeded memory limit (613863424 > 209715200), being killed\n"
)
CGROUP = "slurmstepd: error: Detected 1 oom_kill event in StepId=9.0. Some of the step tasks have been OOM Killed.\n"
CANCEL = "slurmstepd-mem01: error: *** JOB 34 ON mem01 CANCELLED AT 2026-11-26T02:08:13 ***\n"
CUDA = "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.\n"


@pytest.mark.parametrize(("state", "more", "log", "kind", "again", "said"), [
    ("TIMEOUT", {}, "", "time_limit", True, "job 7: its time limit was reached. The same command goes on."),
    ("TIMEOUT", {}, CUDA, "time_limit", True, "time limit"),
    ("PREEMPTED", {}, "", "preempted", True, "preempted by a job of higher priority"),
    ("NODE_FAIL", {}, "", "node_failure", True, "its node failed"),
    ("BOOT_FAIL", {}, "", "node_failure", True, "its node failed"),
    ("OUT_OF_MEMORY", {}, "", "out_of_memory", False, "out of memory. Ask for more resources.mem_gb."),
    ("FAILED", {"exit": "9:0", "derived": "0:9"}, OOM, "out_of_memory", False, "Ask for more resources.mem_gb."),
    ("FAILED", {"exit": "137:0"}, CGROUP, "out_of_memory", False, "out of memory"),
    ("FAILED", {"oom": True}, "", "out_of_memory", False, "out of memory"),
    ("FAILED", {"exit": "1:0"}, CUDA, "gpu_memory", False, "out of GPU memory. Take a smaller trainer.batch_size"),
    ("FAILED", {"exit": "9:0", "derived": "0:9"}, "", "failed", False, "killed by signal 9, which is often memory"),
    ("FAILED", {"exit": "137:0"}, "", "failed", False, "killed by signal 9"),
    ("FAILED", {"exit": "139:0"}, "", "failed", False, "killed by signal 11"),
    ("FAILED", {"exit": "3:0", "derived": "0:0"}, "", "failed", False, "failed with code 3. See its log."),
    ("FAILED", {"reason": "JobLaunchFailure"}, "", "node_failure", True, "its node could not start it (JobLaunchFailure)"),
    ("FAILED", {"reason": "NonZeroExitCode"}, "", "failed", False, "failed (NonZeroExitCode)"),
    ("FAILED", {"exit": "garbage"}, "", "failed", False, "failed. See its log."),
    ("COMPLETED", {}, "", "completed", False, "its ranks wrote no end"),
    ("CANCELLED", {"cancelled_by": str(os.getuid())}, "", "cancelled", False, "cancelled by you"),
    ("CANCELLED", {"cancelled_by": "4123456789"}, TIME_LIMIT, "cancelled", False,
     "cancelled by user 4123456789. Ask them why."),
    ("CANCELLED", {"reason": "DependencyNeverSatisfied"}, "", "cancelled", False,
     "cancelled: a run that it needed did not end well (DependencyNeverSatisfied)"),
    ("UNKNOWN", {}, "", "unknown", True, "gone from the queue without a word"),
    ("UNKNOWN", {}, PREEMPTED, "preempted", True, "preempted"),
    ("REVOKED", {}, "", "unknown", False, "ended as REVOKED"),
    (None, {}, "", "unknown", True, "its job: gone from the queue without a word, and Slurm keeps no record of why."),
    (None, {}, TIME_LIMIT, "time_limit", True, "time limit"),
    (None, {}, TIME_LIMIT + NODE, "node_failure", True, "its node failed"),
    (None, {}, TIME_LIMIT + NODE + TIME_LIMIT, "time_limit", True, "time limit"),
    (None, {}, OOM + CANCEL, "out_of_memory", False, "out of memory"),
    (None, {}, CANCEL, "cancelled", False, "cancelled"),
    (None, {}, REQUEUED, "unknown", True, "without a word"),
])  # fmt: skip
def test_causes_are_told_apart(state: str | None, more: dict[str, Any], log: str, kind: str, again: bool, said: str) -> None:
    job = Job("7", state, **more) if state else None
    cause = scheduler.cause(job, log)
    assert (cause.kind, cause.again) == (kind, again)
    assert said in scheduler.cause_words(job, log)


# --- why it was refused

POLICY = (
    "sbatch: error: Batch job submission failed: Job violates accounting/QOS policy "
    "(job submit limit, user's size and/or time limits)"
)
ASKED = {"cluster.qos": "dev", "cluster.account": "p1", "cluster.partition": "gpu", "resources.timeout_min": 420,
"resources.nodes": 9,
         "resources.gpus_per_node": 8, "resources.mem_gb": None, "cluster.reservation": None}  # fmt: skip


def refused(text: str, *, policy: bool = False, before: str = "Batch job submission failed: ") -> str:
    return f"sbatch: error: {'' if policy else before}{text}\n" + (POLICY if policy else "")


@pytest.mark.parametrize(("said", "told"), [
    (refused("QOSMaxWallDurationPerJobLimit", policy=True),
     "resources.timeout_min=420, cluster.qos=dev: longer than the QOS allows "
     "(Slurm: QOSMaxWallDurationPerJobLimit). Ask for less time, or name another QOS."),
    (refused("QOSMaxNodePerJobLimit", policy=True), "resources.nodes=9, cluster.qos=dev: more nodes than the QOS gives a job"),
    (refused("QOSMaxSubmitJobPerUserLimit", policy=True),
     "cluster.qos=dev, cluster.account=p1: as many jobs as may be submitted"),
    (refused("AssocGrpSubmitJobsLimit", policy=True), "as many jobs as may be submitted are in the queue"),
    (refused("QOSMinGRES", policy=True), "over a limit (Slurm: QOSMinGRES)"),
    (refused("AssocGrpCPUMinutesLimit", policy=True), "cluster.account=p1: the hours are used up"),
    (refused("Node count specification invalid"), "resources.nodes=9, cluster.partition=gpu: more nodes than there are"),
    (refused("Requested time limit is invalid (missing or exceeds some limit)"), "longer than the partition allows"),
    (refused("Invalid account or account/partition combination specified"),
     "cluster.account=p1, cluster.partition=gpu: no such account"),
    ("sbatch: error: invalid partition specified: nosuch\n" + refused("Invalid partition name specified"),
     "cluster.partition=gpu: no such partition (Slurm: invalid partition specified: nosuch)"),
    (refused("Invalid qos specification"), "cluster.qos=dev: no such QOS, or the account lacks it"),
    (refused("Requested node configuration is not available"),
     "resources.gpus_per_node=8, resources.nodes=9, cluster.partition=gpu: no node"),
    ("sbatch: error: Memory specification can not be satisfied\n" + refused("Requested node configuration is not available"),
     "more memory than a node has (Slurm: Memory specification can not be satisfied). Ask for less."),
    ("sbatch: error: CPU count per node can not be satisfied\n" + refused("Requested node configuration is not available"),
     "more cores than a node has"),
    (refused("Invalid job array specification"), "an index above the site's MaxArraySize"),
    (refused("Invalid node name specified"), "no node has that name or feature"),
    (refused("Invalid feature specification"), "no node has that name or feature"),
    (refused("Job dependency problem"), "the job that it should follow is unknown"),
    (refused("Requested reservation is invalid"), "no such reservation"),
    (refused("Invalid generic resource (gres) specification", before=""), "no GPUs by that name"),
    (refused("Invalid wckey specification"), "wckey"),
    (refused("Unable to contact slurm controller (connect failure)"), "Slurm's controller does not answer"),
    ('sbatch: error: Munge encode failed: Failed to access "/run/munge/munge.socket.2": No such file\n'
     + refused("Protocol authentication error"), "munge, which signs requests, does not run here"),
    ("sbatch: fatal: Could not establish a configuration source", "Slurm is not configured here"),
    ("sbatch: error: Invalid --time specification",
     "Slurm refused it (Invalid --time specification). sbatch on its script by hand"),
    ("sbatch: error: site: no GPU jobs on Fridays\n" + refused("Unspecified error"),
     "Slurm refused it (site: no GPU jobs on Fridays; Unspecified error)."),
    ("", "Slurm refused it (without a word)."),
    ("Command '['sbatch', 'x']' returned non-zero exit status 1", "Slurm refused it (Command"),
])  # fmt: skip
def test_a_refusal_names_the_keys_and_what_to_do(said: str, told: str) -> None:
    line = scheduler.rejection(said, ASKED)
    assert told in line
    assert line.endswith(".") and "\n" not in line
    assert scheduler.rejection(said) in line
