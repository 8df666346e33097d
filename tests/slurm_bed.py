"""The test bed as tests use it: one Slurm for the whole session, a clean queue for each test, and faults by name."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from hpcai.slurm.testbed import processes
from hpcai.slurm.testbed.bed import Bed
from hpcai.slurm.testbed.machine import missing as missing  # the reason of the marker `slurm`

PREFIX = "/tmp/hpcai-bed-"  # short, whatever TMPDIR says: sockets lie below; not under pytest's 0700 folder, users submit too


@dataclass(frozen=True)
class SlurmBed:
    """A bed that is up."""

    bed: Bed

    @property
    def folder(self) -> Path:
        """Where all of it lies; logs in log/."""
        return self.bed.folder

    def __call__(
        self, *words: str, timeout: float = 60.0, cwd: Path | None = None, env: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """A Slurm command, or any other, in our environment and `env`; as a shell sees it."""
        variables = {**os.environ, "SLURM_CONF": str(self.bed.conf), **(env or {})}
        return subprocess.run(
            words, capture_output=True, text=True, timeout=timeout, check=False, cwd=cwd, env=variables,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip

    def submit(self, *words: str, wrap: str = "sleep 300") -> int:
        """The id of a new batch job that runs `wrap`; its log is lost unless `words` name one."""
        output = [] if any(w.startswith(("-o", "--output")) for w in words) else ["--output=/dev/null"]
        done = self("sbatch", "--parsable", *output, *words, f"--wrap={wrap}", cwd=Path("/tmp"))
        assert done.returncode == 0, done.stderr
        return int(done.stdout.partition(";")[0])

    def job(self, job_id: int | str) -> dict[str, str]:
        """`scontrol show job` as words: JobState, Reason, Restarts, NodeList and so on; empty where it is unknown."""
        done = self("scontrol", "--oneliner", "show", "job", str(job_id))
        first = done.stdout.splitlines()[:1]
        return dict(word.split("=", 1) for line in first for word in line.split() if "=" in word)

    def state(self, job_id: int | str) -> str:
        """PENDING, RUNNING, COMPLETED ...; empty where the job is unknown."""
        return self.job(job_id).get("JobState", "")

    def until(self, job_id: int | str, *states: str, timeout: float = 90.0) -> dict[str, str]:
        """Waits for one of these states; the job as it is then."""
        limit, job = time.monotonic() + timeout, self.job(job_id)
        while job.get("JobState") not in states:
            assert time.monotonic() < limit, f"job {job_id} is {job.get('JobState')} ({job.get('Reason')}), not {states}"
            time.sleep(0.1)
            job = self.job(job_id)
        return job

    def clear(self) -> None:
        """Every daemon up, no job, every node free: whatever the test before has done."""
        self.bed.up(self.bed.told()[1])
        limit = time.monotonic() + 90.0
        while True:
            self("scancel", "--user=root", "--hurry")
            busy = self("squeue", "--noheader", "--all", "--format=%i %T %r").stdout
            if not busy:
                break
            assert time.monotonic() < limit, f"jobs do not end: {busy}"
            time.sleep(0.2)
        self.bed.wait_for_nodes()

    def node_dies(self, node: str, *, processes_live: bool = False) -> None:
        """kill -9 of a node's slurmd, with its steps and their ranks, or (a network that parts) without."""
        roles = [f"slurmd {node}"] if processes_live else [f"slurmd {node}", f"slurmstepd {node}", f"job {node}"]
        self.bed.kill(*roles)

    def node_returns(self, node: str) -> None:
        """Its slurmd again."""
        self.bed.start(f"slurmd {node}")

    @contextlib.contextmanager
    def no_controller(self, *, kill: bool = False) -> Iterator[None]:
        """A while without slurmctld: stopped in order, or killed once its state is on disk."""
        if kill:
            self.bed.settle()
            self.bed.kill("slurmctld")
        else:
            self.bed.stop("slurmctld")
        try:
            yield
        finally:
            self.bed.start("slurmctld")


def _self() -> processes.Process:
    return next(p for p in processes.processes() if p.pid == os.getpid())


def end_beds_of_the_dead() -> None:
    """A session that was killed leaves a bed: the next one ends it. Its folder's name holds the session's pid and start."""
    living = {(str(p.pid), str(p.start)) for p in processes.processes()}
    for folder in Path("/tmp").glob(f"{Path(PREFIX).name}*"):
        pid, start, *_ = [*folder.name.removeprefix(Path(PREFIX).name).split("-"), ""]
        if (pid, start) not in living:
            Bed(folder).down()


@contextlib.contextmanager
def session_bed() -> Iterator[SlurmBed]:
    """The session's bed, with SLURM_CONF in our environment: its own one, or that of HPCAI_BED, which stays up if it was."""
    given, me = os.environ.get("HPCAI_BED"), _self()
    end_beds_of_the_dead()
    bed = Bed(given or f"{PREFIX}{me.pid}-{me.start}")
    kept = bool(bed.daemons())
    with pytest.MonkeyPatch.context() as patch:
        try:
            bed.up()
            patch.setenv("SLURM_CONF", str(bed.conf))
            yield SlurmBed(bed)
        finally:
            if not kept:
                bed.down()


def keep_logs(bed: SlurmBed, to: Path) -> None:
    """What its daemons said, for whoever looks into a failure."""
    shutil.copytree(bed.folder / "log", to, dirs_exist_ok=True)
