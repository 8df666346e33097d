"""What nemesis.py does to runs on a test bed: a run under way, what a user types and sees, and each fault by its name."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

import hpcai
from hpcai import lease, runs, status
from hpcai.rundir import RunDir
from hpcai.slurm.testbed.bed import Bed

DISK = "size=24m"  # of each run, which takes 3 MB
WORDS = ("+experiment=smoke", "resources.cpus_per_task=1", "trainer.epochs=1000", "trainer.checkpoint_every=25",
         "trainer.log_every=1")  # fmt: skip
SLURM = ("cluster=testbed", "cluster.partition=cpu", "cluster.qos=short-preempt", "resources.timeout_min=30")


@dataclass(frozen=True)
class Fault:
    """What is drawn of a fault: its kind, the wait before it, the victim's number among those that can be hit, and how far."""

    kind: str
    pause_s: float
    victim: int
    share: float


@dataclass
class Run:
    """A run. `seen`: the highest step seen in each life."""

    name: str
    runs_dir: Path
    words: list[str]
    seen: dict[int, int] = field(default_factory=dict)

    @property
    def dir(self) -> RunDir | None:
        """Its folder, once there is one."""
        return next((RunDir(folder) for folder in self.runs_dir.glob(f"{self.name}-*")), None)

    @property
    def life(self) -> int:
        """The number of its newest life."""
        return lease.last_life(self.dir) if self.dir else 0

    @property
    def job(self) -> str:
        """The Slurm job that has its newest life."""
        return str(lease.read_owner(self.dir, self.life).get("job") or "") if self.dir else ""

    @property
    def begun(self) -> float:
        """When the rank of its newest life began; the future before that."""
        told = lease.records(self.dir, self.life).get(0, []) if self.dir else []
        return float(told[0]["time"]) if told else float("inf")

    def newest(self) -> dict[str, Any]:
        """The last whole line of its metrics."""
        with contextlib.suppress(OSError, ValueError):
            line: dict[str, Any] = json.loads(next(runs.lines_from_end(self.dir.metrics), b"{}")) if self.dir else {}
            return line
        return {}

    def step(self) -> int:
        """Its newest step, noted down."""
        life, step = self.life, int(self.newest().get("step", 0))
        if life == self.life:
            self.seen[life] = max(step, self.seen.get(life, 0))
        return step

    def processes(self, what: str) -> list[psutil.Process]:
        """Its `rank` or `srun`, of any life."""
        found = [(p, line) for p, line in commands() if "hpcai.worker" in line and str(self.dir and self.dir.path) in line]
        return [p for p, line in found if line[0].endswith("srun") == (what == "srun")]


def commands() -> Iterator[tuple[psutil.Process, list[str]]]:
    """Every process with its command line."""
    for process in psutil.process_iter(["cmdline"]):
        if line := process.info["cmdline"]:
            yield process, line


def until(met: Callable[[], Any], limit_s: float = 60.0) -> Any:
    """The first true answer of `met`; its last one where time is up."""
    end = time.monotonic() + limit_s
    while not (answer := met()) and time.monotonic() < end:
        time.sleep(0.2)
    return answer


class Site:
    """The bed and the runs on it, as a user has them. `submit_s`: what a submission took, the longest."""

    def __init__(self, bed: Bed, folder: Path, steps: int) -> None:
        self.bed, self.folder, self.steps, self.submit_s = bed, folder, steps, 1.0
        self.runs: list[Run] = []
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "SBATCH", "HPCAI_"))}
        self.env = {**clean, "SLURM_CONF": str(bed.conf), "PYTHONPATH": str(Path(hpcai.__file__).resolve().parents[1])}
        self.disks = self.mount(folder / "probe")

    def mount(self, folder: Path) -> bool:
        """A small file system of its own at `folder`; False, and a folder, where none may be mounted."""
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", DISK, "tmpfs", str(folder)]
        return bool(shutil.which("mount")) and subprocess.run(command, capture_output=True).returncode == 0

    def close(self) -> None:
        """Gives the disks back."""
        for folder in self.folder.iterdir():
            if folder.is_mount():
                subprocess.run(["umount", "-l", str(folder)], check=False)

    def config(self, name: str) -> Run:
        """A run by its command, without where it runs."""
        folder = self.folder / name
        return Run(name, folder, ["hpcai.run", *WORDS, f"name={name}", f"trainer.max_steps={self.steps}", f"runs_dir={folder}"])

    def new(self) -> Run:
        """The next run for Slurm, not submitted yet."""
        run = self.config(f"n{len(self.runs):02d}")
        run.words += SLURM
        if self.disks:
            self.mount(run.runs_dir)
        self.runs.append(run)
        return run

    def type(self, *words: str) -> subprocess.Popen[str]:
        """A command of hpcai, begun."""
        return subprocess.Popen(
            [sys.executable, "-m", *words], env=self.env, cwd="/", stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, start_new_session=True,
        )  # fmt: skip

    def status(self, run: Run) -> tuple[str, str]:
        """State and note, as `hpcai status` shows them; `none` where there is no run yet."""
        if not (run.dir and runs.is_run(run.dir.path)):
            return "none", "The same command goes on."
        row = status.look(run.runs_dir, [run.dir])[0][0]
        return row.state.state, status.note(row.name, row.state)

    def queue(self) -> list[str]:
        """The jobs that wait, run or are about to end."""
        return self.bed.client("squeue", "--noheader", "--format=%A", fails=True).split()

    def running(self, those: Sequence[Run]) -> list[Run]:
        """Those whose job has a node, in their order."""
        told = self.bed.client("squeue", "--noheader", "--states=RUNNING", "--format=%A", fails=True).split()
        return [run for run in those if run.job in told]

    def about(self, run: Run, what: str) -> str:
        """squeue's word for its job: %N, the node, nothing where it has none; %P, the partition; %T, the state."""
        return self.bed.client("squeue", "--noheader", f"--jobs={run.job}", f"--format={what}", fails=True).strip()


# --- the faults: each returns what it did


def kill_rank(site: Site, run: Run, fault: Fault) -> str:
    """SIGKILL to its rank, also while it imports."""
    return killed(until(lambda: run.processes("rank"), 30.0))


def kill_srun(site: Site, run: Run, fault: Fault) -> str:
    """SIGKILL to the srun of its step."""
    return killed(until(lambda: run.processes("srun"), 30.0))


def kill_batch(site: Site, run: Run, fault: Fault) -> str:
    """SIGKILL to its batch script."""
    script = re.compile(rf"{re.escape(str(site.bed.folder))}/spool/\w+/job0*{run.job}/slurm_script")
    return killed([p for p, line in commands() if any(script.fullmatch(word) for word in line)])


def killed(found: Sequence[psutil.Process]) -> str:
    """SIGKILL to processes; what that was."""
    for process in found:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    return "killed" if found else "none was there"


def kill_node(site: Site, run: Run, fault: Fault) -> str:
    """Its node dies with all on it, and returns: before Slurm notices (10 to 30 s), or after."""
    return _outage(site, run, fault, ("slurmd", "slurmstepd", "job"))


def kill_slurmd(site: Site, run: Run, fault: Fault) -> str:
    """Its node's slurmd dies, the rank works on."""
    return _outage(site, run, fault, ("slurmd",))


def _outage(site: Site, run: Run, fault: Fault, roles: Sequence[str]) -> str:
    if not (node := site.about(run, "%N")):
        return "its job had left its node"
    site.bed.kill(*(f"{role} {node}" for role in roles))
    time.sleep(1 + 34 * fault.share)
    site.bed.start(f"slurmd {node}")
    return f"{node} away for {1 + 34 * fault.share:.0f} s"


def cut_off(site: Site, run: Run, fault: Fault) -> str:
    """A network that parts: its rank stands still, Slurm gives it up, and it wakes while its successor works.

    Staff move the job to idle nodes: behind the others it would wait for minutes.
    """

    def works() -> bool:
        if site.about(run, "%T %P") == "PENDING cpu":
            site.bed.client("scontrol", "update", f"JobId={run.job}", "Partition=gpu", fails=True)
        return run.life > life and run.newest().get("time", 0.0) > run.begun

    node, life, old = site.about(run, "%N"), run.life, until(lambda: run.processes("rank"), 30.0)
    if not node or not old:
        return "its job had left its node"
    try:
        for process in old:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.suspend()
        site.bed.kill(f"slurmd {node}")
        worked = until(works, 240.0)
        time.sleep(4 * fault.share)
    finally:
        for process in old:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.resume()
    psutil.wait_procs(old, timeout=60)
    site.bed.start(f"slurmd {node}")
    return f"{node} away, its rank asleep until {'the next one worked' if worked else 'time was up'}"


def kill_controller(site: Site, run: Run, fault: Fault) -> str:
    """slurmctld dies, with its state on disk: else it would forget jobs, which is Slurm's matter."""
    site.bed.settle()
    site.bed.kill("slurmctld", "slurmscriptd")
    time.sleep(12 * fault.share)
    site.bed.start("slurmctld")
    return f"away for {12 * fault.share:.0f} s"


def kill_submitter(site: Site, run: Run, fault: Fault) -> str:
    """The command that submits a new run dies somewhere on its way."""
    process = site.type(*run.words)
    time.sleep(site.submit_s * fault.share)
    early = process.poll() is None
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    return f"killed after {site.submit_s * fault.share:.1f} s" if early else "it was through already"


def time_limit(site: Site, run: Run, fault: Fault) -> str:
    """Its time ends: with the warning that it asked for, or (one in three) at once, without."""
    life, job = run.life, run.job
    told = re.search(r"RunTime=(?:(\d+)-)?(\d+):(\d+):(\d+)", site.bed.client("scontrol", "show", "job", job, fails=True))
    minutes = (int(told[1] or 0) * 24 + int(told[2])) * 60 + int(told[3]) if told else 0
    warned = fault.share > 1 / 3 or minutes < 1
    limit = minutes + 1 if warned else 1
    site.bed.client("scontrol", "update", f"JobId={job}", f"TimeLimit={limit}", fails=True)
    until(lambda: run.life > life or site.status(run)[0] not in ("running", "none"), 120.0)
    site.bed.client("scontrol", "update", f"JobId={job}", "TimeLimit=30", fails=True)  # Slurm keeps the new one in a requeue
    return "with its warning" if warned else "without a warning"


def preempt(site: Site, run: Run, fault: Fault) -> str:
    """A job of a higher QOS takes its node."""
    if not (node := site.about(run, "%N")):
        return "its job had left its node"
    words = ["-A", "p200000", "-q", "urgent", "-p", site.about(run, "%P"), "-N", "1", "-t", "1", "-w", node, "-o", "/dev/null"]
    told = site.bed.client("sbatch", "--parsable", *words, "--chdir=/tmp", f"--wrap=sleep {1 + 5 * fault.share:.0f}")
    until(lambda: told.strip() not in site.queue(), 90.0)
    return f"{node} was taken"


def fill_disk(site: Site, run: Run, fault: Fault) -> str:
    """Its disk is full for a while."""
    filler, life = run.runs_dir / "filler", run.life
    with contextlib.suppress(OSError), filler.open("wb", buffering=0) as f:
        while f.write(b"x" * 4096):
            pass
    felt = until(lambda: run.life > life or site.status(run)[0] != "running", 60.0)
    time.sleep(10 * fault.share)
    filler.unlink()
    return f"{'felt' if felt else 'not felt'}, then full for {10 * fault.share:.0f} s more"


def scancel(site: Site, run: Run, fault: Fault) -> str:
    """Somebody cancels its job."""
    job = run.job
    site.bed.client("scancel", job, fails=True)
    until(lambda: job not in site.queue(), 60.0)
    return "cancelled"


def requeue(site: Site, run: Run, fault: Fault) -> str:
    """Somebody has its job queued again."""
    site.bed.client("scontrol", "requeue", run.job, fails=True)
    return "queued again"


KINDS: dict[str, Callable[[Site, Run, Fault], str]] = {
    "rank": kill_rank, "srun": kill_srun, "batch shell": kill_batch, "node": kill_node, "slurmd": kill_slurmd,
    "cut off": cut_off, "slurmctld": kill_controller, "submitter": kill_submitter, "time limit": time_limit,
    "preemption": preempt, "full disk": fill_disk, "scancel": scancel, "requeue": requeue,
}  # fmt: skip
