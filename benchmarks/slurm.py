"""What does hpcai cost on Slurm? Four tables, on the real Slurm of slurm/testbed: ten nodes, all of them this machine.

    the first step   from sbatch to the end of the first step, against a bare script that only imports the same
    told to stop     from SIGUSR2 to the rank's end record (its checkpoint is saved by then), and to the job no longer running
    status           `hpcai status` over 500 runs of 500 jobs: seconds, and how often squeue and sacct were asked
    submitting       from the command to the job's number, against sbatch alone

The bed is its own, made and ended here; HPCAI_BED names another, which stays up if it was. It needs Debian's Slurm, and root.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import psutil

import hpcai
from hpcai import lease, rundir
from hpcai.cluster import read_machine
from hpcai.rundir import RunDir
from hpcai.slurm.testbed.bed import Bed
from hpcai.slurm.testbed.machine import missing

ROUNDS = 7
SIGNALS = 7
RUNS = 500
WAITING = 20  # of those 500: jobs that wait in the queue; the others' jobs are over
LOOKS = 9
CYCLE_S = 2.0  # the bed's scheduler looks so often (slurm.conf): what is sent waits for a random part of it
CHUNK = 80  # the bed's account may have 100 jobs in the queue
CLIENTS = ("sbatch", "squeue", "sacct")
SMOKE = ("+experiment=smoke", "cluster=testbed", "resources.cpus_per_task=1", "resources.timeout_min=30")
ONE_STEP = (*SMOKE, "trainer.max_steps=1", "trainer.log_every=1")
LONG = (*SMOKE, "trainer.max_steps=null", "trainer.epochs=5000")
IMPORTS = "numpy, torch, hpcai.worker, hpcai.jobs.train"  # a rank's import lines
LATE = "torch._dynamo, torch._inductor.config"  # torch imports these, 814 modules, when it makes any optimizer (torch 2.13)
BARE = """
import time
import {imports}
now = time.time()
ticks = open("/proc/self/stat").read().rpartition(")")[2].split()[19]
open({to!r} + ".new", "w").write(f"{{ticks}} {{now}}")
import os
os.rename({to!r} + ".new", {to!r})
"""


def main() -> int:
    """Prints the tables."""
    if why := missing():
        print(f"not measured: {why}")
        return 0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the bed shall not outlive us
    machine = read_machine()
    print(f"{machine.cores} cores of {machine.cpu}; Slurm's daemons and the jobs share them")
    with tempfile.TemporaryDirectory(prefix="hpcai-bench-") as folder, a_bed() as bed:
        site = Site(bed, Path(folder))
        for table in (first_step, told_to_stop, status, submitting):
            site.quiet()
            busy = psutil.cpu_percent(3.0) / 100 * (psutil.cpu_count() or 1)
            name = table.__name__.replace("_", " ")
            print(f"\n{name}   (in the 3 s before it, with no job here, other work kept {busy:.1f} cores busy)", flush=True)
            table(site)
    return 0


@contextlib.contextmanager
def a_bed() -> Iterator[Bed]:
    """A bed that is up."""
    bed = Bed(os.environ.get("HPCAI_BED") or f"/tmp/hpcai-bench-bed-{os.getpid()}")
    kept = bool(bed.daemons())
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            bed.up()
        if jobs := bed.client("squeue", "--noheader"):
            raise SystemExit(
                f"HPCAI_BED={bed.folder}: {len(jobs.splitlines())} jobs are there. Wait for them, or name another."
            )
        yield bed
    finally:
        if not kept:
            with contextlib.redirect_stderr(io.StringIO()):
                bed.down()


class Site:
    """The bed, as these measurements use it."""

    def __init__(self, bed: Bed, folder: Path) -> None:
        self.bed, self.folder, self.runs = bed, folder, folder / "runs"
        self.log, self.seed, self.dice = folder / "calls.log", 0, random.Random(0)
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "SBATCH", "HPCAI_"))}
        package = str(Path(hpcai.__file__).resolve().parents[1])
        self.env = {**clean, "SLURM_CONF": str(bed.conf), "PYTHONPATH": package}
        shims = folder / "shims"
        shims.mkdir()
        for name in CLIENTS:
            script = f'#!/bin/sh\necho "{name} $(date +%s.%N) $1" >> {self.log}\nexec {shutil.which(name)} "$@"\n'
            (shims / name).write_text(script)
            (shims / name).chmod(0o755)
        self.noted = {**self.env, "PATH": f"{shims}:{self.env['PATH']}"}

    def calls(self) -> list[list[str]]:
        """Program, time and first word of each client that was called through `noted` since the last look."""
        told = [line.split() for line in self.log.read_text().splitlines()] if self.log.exists() else []
        self.log.unlink(missing_ok=True)
        return told

    def send(self, words: Sequence[str], env: dict[str, str]) -> RunDir:
        """A run that nobody ran before, submitted."""
        self.seed += 1
        before = set(self.runs.glob("*/"))
        command = [sys.executable, "-m", "hpcai.run", *words, f"seed={self.seed}", f"runs_dir={self.runs}"]
        subprocess.run(command, env=env, cwd="/", check=True, capture_output=True)
        (run,) = set(self.runs.glob("*/")) - before
        return RunDir(run)

    def queue(self) -> dict[str, str]:
        """The state of every job that waits, runs or is about to end."""
        return dict(line.split() for line in self.bed.client("squeue", "--noheader", "--format=%A %T").splitlines())

    def quiet(self) -> None:
        """Ends every job and waits until none is left."""
        while self.queue():
            self.bed.client("scancel", "--user=root", "--hurry", fails=True)
            time.sleep(0.2)
        self.bed.wait_for_nodes()

    def drain(self) -> None:
        """Waits until no job is left, and then for a random moment of the scheduler's cycle."""
        until(lambda: not self.queue())
        time.sleep(self.dice.uniform(0, CYCLE_S))

    @contextlib.contextmanager
    def closed(self) -> Iterator[None]:
        """Jobs are taken, and none starts: the machine is left to what is measured."""
        self.bed.client("scontrol", "update", "PartitionName=cpu", "State=DOWN")
        try:
            yield
        finally:
            self.quiet()
            self.bed.client("scontrol", "update", "PartitionName=cpu", "State=UP")


# --- the first step


class Start(NamedTuple):
    """Seconds from sbatch to the process, from there to what counts, and from there to the rank's begin record."""

    wait: float
    work: float
    begin: float = 0.0

    @property
    def total(self) -> float:
        """From sbatch to what counts."""
        return self.wait + self.work


def first_step(site: Site) -> None:
    """sbatch to the first line of metrics.jsonl: data, model and one step are behind it, its loss was read.

    A bare script has our #SBATCH lines and a plain srun; it imports what a rank has imported by then, from the installed
    package, notes the time and does nothing else. So all else that hpcai does before that line counts against it. The other
    one leaves out what torch imports late, by itself: a floor for a script that trains nothing.
    """
    ways: dict[str, Callable[[], Start]] = {
        "bare, same imports": lambda: bare_start(site, header, f"{IMPORTS}, {LATE}"),
        "bare, no optimizer": lambda: bare_start(site, header, IMPORTS),
        "hpcai": lambda: our_start(site),
    }
    seen: dict[str, list[Start]] = {name: [] for name in ways}
    header = options_of(site.send(ONE_STEP, site.env))
    site.drain()
    ways["bare, same imports"]()  # these two warm the file cache
    for number in range(ROUNDS):
        for name in list(ways) if number % 2 else reversed(ways):
            site.drain()
            seen[name].append(ways[name]())
    print(f"{'median s (min to max)':<20}{'sbatch to Python':>21}{'Python to its end':>21}{'in all':>21}"
          f"{'hpcai takes, in all':>22}{'Python alone':>22}")  # fmt: skip
    ours = seen["hpcai"]
    for name, starts in seen.items():
        seconds = [[s.wait for s in starts], [s.work for s in starts], [s.total for s in starts]]
        ratios = [[a.total / b.total for a, b in zip(ours, starts, strict=True)],
                  [a.work / b.work for a, b in zip(ours, starts, strict=True)]]  # fmt: skip
        told = "".join(f"{spread(s):>21}" for s in seconds) + "".join(f"{spread(r):>21}x" for r in ratios)
        print(f"{name:<20}{told}")
    begin = spread([start.begin for start in seen["hpcai"]])
    print(f"({ROUNDS} rounds, ratios round by round; at most 1.3x of the same imports asked. A rank's begin record comes after")
    print(f"{begin} s of Python)")


def options_of(run: RunDir) -> str:
    """The #SBATCH lines of its script, without the log, the name and the comment."""
    lines = run.script.read_text().splitlines()
    own = ("#SBATCH --output", "#SBATCH --job-name", "#SBATCH --comment")
    return "\n".join(["#!/bin/bash -l", *(x for x in lines if x.startswith("#SBATCH") and not x.startswith(own))])


def bare_start(site: Site, header: str, imports: str) -> Start:
    """Seconds from sbatch to the process, and from there to its last import."""
    stamp, script = site.folder / "stamp", site.folder / "bare.sbatch"
    code = site.folder / "bare.py"
    stamp.unlink(missing_ok=True)
    code.write_text(BARE.format(to=str(stamp), imports=imports))
    exports = f"export SLURM_EXPORT_ENV=ALL PYTHONPATH={site.env['PYTHONPATH']}"
    script.write_text(f"{header}\n#SBATCH --output=/dev/null\n{exports}\nsrun {sys.executable} {code}\n")
    site.calls()
    subprocess.run(["sbatch", str(script)], env=site.noted, cwd="/", check=True, capture_output=True)
    until(stamp.exists)
    ticks, now = stamp.read_text().split()
    began = wall(ticks)
    return Start(began - sent(site), float(now) - began)


def our_start(site: Site) -> Start:
    """Seconds from sbatch to the rank's process, from there to the end of its first step, and to its begin record."""
    site.calls()
    run = site.send(ONE_STEP, site.noted)
    until(lambda: run.metrics.exists() and run.metrics.read_bytes().count(b"\n") > 0)
    first = next(iter(rundir.read_lines(run.metrics)))
    begin = lease.records(run, 1)[0][0]
    assert (first["kind"], first["step"], begin["event"]) == ("train", 1, "begin")
    began = wall(begin["started"].split()[-1])
    return Start(began - sent(site), first["time"] - began, begin["time"] - began)


def sent(site: Site) -> float:
    """When the one sbatch of late was called; hpcai's own question for its version is none."""
    (when,) = (float(when) for name, when, word in site.calls() if name == "sbatch" and word != "--version")
    return when


def wall(ticks: str) -> float:
    """A process start of proc(5) as a time of day, to 10 ms."""
    return time.time() - time.clock_gettime(time.CLOCK_BOOTTIME) + int(ticks) / os.sysconf("SC_CLK_TCK")


# --- told to stop


def told_to_stop(site: Site) -> None:
    """One training, signalled again and again at random moments: it saves, ends, and its script has it queued again."""
    run = site.send(LONG, site.env)
    ends, leaves = zip(*(stop(site, run, life) for life in range(1, SIGNALS + 1)), strict=True)
    print(f"{'scancel --signal=USR2 to':<28}{'median s (min to max)':>22}   ({SIGNALS} times, one rank; under 5 s asked)")
    print(f"{'the end record of the rank':<28}{spread(ends):>22}")
    print(f"{'the job no longer running':<28}{spread(leaves):>22}")


def stop(site: Site, run: RunDir, life: int) -> tuple[float, float]:
    """Seconds from the command that signals a training at work to its rank's end record, and to its job not running."""
    saved = checkpoint_step(run)
    until(lambda: lease.last_life(run) == life and steps_of(run) > saved)
    time.sleep(site.dice.uniform(0, CYCLE_S))
    saved, job = checkpoint_step(run), str(lease.read_owner(run, life)["job"])
    assert site.queue()[job] == "RUNNING"
    before = time.time()
    site.bed.client("scancel", "--signal=USR2", job)
    until(lambda: site.queue().get(job) != "RUNNING")
    after = time.time()
    end = lease.records(run, life)[0][-1]
    assert end["event"] == "end" and end["code"] == 128 + signal.SIGUSR2, end
    step = int(re.findall(r"after step ([\d,]+)", end["message"])[0].replace(",", ""))
    assert checkpoint_step(run) == step > saved, (step, saved)
    return end["time"] - before, after - before


def steps_of(run: RunDir) -> int:
    """The newest step in its metrics."""
    return max((int(line["step"]) for line in rundir.read_lines(run.metrics)), default=0) if run.metrics.exists() else 0


def checkpoint_step(run: RunDir) -> int:
    """The step of its newest checkpoint."""
    return max((int(f.stem.rpartition("-")[2]) for f in run.checkpoints.glob("*.json")), default=0)


# --- status


def status(site: Site) -> None:
    """Of every run's job only Slurm knows what became of it: 20 wait, 480 are over. The folders are those of one real run."""
    model = site.send(ONE_STEP, site.env)
    site.drain()
    with site.closed():
        jobs = sent_jobs(site)
        runs = site.folder / "many"
        kinds = Counter(one_of_many(RunDir(runs / f"run-{i:08d}"), model, job, i) for i, job in enumerate(jobs))
        look = [sys.executable, "-m", "hpcai.cli", "status", "--runs-dir", str(runs)]
        commands = {
            "hpcai status": look,
            "squeue alone": ["squeue", "--all", "--states=all", f"--jobs={','.join(jobs)}"],
            "sacct alone": ["sacct", "--allocations", "--parsable2", f"--jobs={','.join(jobs)}"],
        }
        seen: dict[str, list[float]] = {name: [] for name in commands}
        for number in range(LOOKS + 1):
            for name, command in commands.items():
                took, _ = timed(command, site.env)
                if number:  # the first round warms the file cache
                    seen[name].append(took)
        site.calls()
        rows = json.loads(timed([*look, "--json"], site.noted)[1])
        asked = Counter(name for name, *_ in site.calls())
    print(f"{len(rows)} runs, by their records: {words(kinds)}; shown as: {words(Counter(row['state'] for row in rows))}; "
          f"asked: {words(asked)}")  # fmt: skip
    print(f"{'median s (min to max)':<22}{'':>22}   ({LOOKS} rounds; one squeue, at most one sacct and under 1 s asked)")
    for name, times in seen.items():
        print(f"{name:<22}{spread(times):>22}")


def sent_jobs(site: Site) -> list[str]:
    """The numbers of as many jobs as there shall be runs: the last ones wait, the others were cancelled."""
    jobs: list[str] = []
    send = ["sbatch", "--parsable", "--account=p200000", "--output=/dev/null", "--wrap=true"]
    while len(jobs) < RUNS:
        site.quiet()
        jobs += [site.bed.client(*send).strip() for _ in range(min(RUNS - WAITING - len(jobs), CHUNK) or WAITING)]
    return jobs


def one_of_many(run: RunDir, model: RunDir, job: str, number: int) -> str:
    """A run of `job` that has not begun, was stopped by its time limit, or vanished by its records; which one."""
    shutil.copytree(model.path, run.path, copy_function=os.link, ignore=shutil.ignore_patterns("lives", "code"))
    for log in run.submitit.iterdir():
        log.rename(log.with_name(f"{job}_{log.name.partition('_')[2]}"))
    life = lease.take(run, 1, kind="slurm", job=job, restart=0, chain=[job])
    how = ("begun", "stopped", "not begun")[number % 3] if number < RUNS - WAITING else "not begun"
    if how != "not begun":
        who: dict[str, Any] = {"rank": 0, "host": "node", "pid": 1, "started": "another boot 1"}
        told = [
            {"event": "begin", "time": time.time() - 3600, **who},
            {"event": "progress", "time": time.time() - 1800, "step": 7},
        ]
        rundir.append_lines(lease.life_dir(run, life) / "rank0.jsonl", told)
    if how == "stopped":
        lease.append(run, life, 0, "end", code=128 + signal.SIGUSR2, message="stopped after step 7, checkpoint kept.")
    return how


def words(counts: Counter[str]) -> str:
    """`3 lost, 2 pending`."""
    return ", ".join(f"{counts[name]} {name}" for name in sorted(counts))


# --- submitting


def submitting(site: Site) -> None:
    """Whole commands; no job starts meanwhile. The plan alone is what --dry-run takes."""
    seen: dict[str, list[float]] = {"sbatch": [], "--dry-run": [], "hpcai.run": []}
    with site.closed():
        script = site.send(ONE_STEP, site.env).script
        for number in range(ROUNDS + 1):
            words = [*ONE_STEP, f"seed={1000 + number}", f"runs_dir={site.runs}"]
            ours = [sys.executable, "-m", "hpcai.run", *words]
            commands = {"sbatch": ["sbatch", str(script)], "--dry-run": [*ours, "--dry-run"], "hpcai.run": ours}
            for name, command in commands.items():
                took, told = timed(command, site.env)
                assert name == "--dry-run" or "job " in told
                if number:
                    seen[name].append(took)
    print(f"{'median s (min to max)':<22}{'':>22}{'more than sbatch':>22}   ({ROUNDS} rounds)")
    for name, times in seen.items():
        more = spread([a - b for a, b in zip(times, seen["sbatch"], strict=True)])
        print(f"{name:<22}{spread(times):>22}{more:>22}")


# --- common


def timed(command: Sequence[str], env: dict[str, str]) -> tuple[float, str]:
    """Seconds until it has ended, and what it printed."""
    before = time.perf_counter()
    done = subprocess.run(command, env=env, cwd="/", check=True, capture_output=True, text=True)
    return time.perf_counter() - before, done.stdout


def spread(values: Sequence[float]) -> str:
    """`median (min to max)`."""
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def until(met: Callable[[], bool], limit_s: float = 120.0) -> None:
    """Returns when it is so. Raises: TimeoutError."""
    end = time.monotonic() + limit_s
    while not met():
        if time.monotonic() > end:
            raise TimeoutError(f"not so in {limit_s:g} s")
        time.sleep(0.02)


if __name__ == "__main__":
    sys.exit(main())
