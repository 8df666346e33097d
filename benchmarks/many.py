"""200 members that sleep 30 s on one GPU each, four GPUs a node, on the real Slurm of slurm/testbed: what do they cost?

    python benchmarks/many.py [--members 200] [--sleep 30] [--peer PYTHON] [--commands 10]

Prints how many array tasks and sbatch calls it took, the node-hours of Slurm's own accounting against the members' sum / 4, and
how long submitting took, from the command to the last job's number; beside it, where PYTHON has hydra-submitit-launcher, that
launcher with one command a member (a few are timed, one after the other, and their mean is taken for all).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

import hpcai
from hpcai import lease
from hpcai.rundir import RunDir, read_json
from hpcai.slurm.testbed.machine import missing
from slurm import Site, a_bed, until

JOB = '''"""Sleeps."""

import time


def main(cfg, run):
    """So many seconds."""
    time.sleep(cfg.trainer.max_steps)
'''
PEER = """
import time
import hydra


@hydra.main(version_base="1.3", config_path=None)
def main(cfg):
    time.sleep({})


main()
"""
WORDS = ("+experiment=smoke", "cluster=testbed", "resources.gpus_per_node=1", "resources.timeout_min=10")


def main() -> int:
    """Prints the figures."""
    parser = argparse.ArgumentParser()
    for name, default in (("--members", 200), ("--sleep", 30), ("--commands", 10)):
        parser.add_argument(name, type=int, default=default)
    parser.add_argument("--peer", help="a Python with hydra-submitit-launcher")
    asked = parser.parse_args()
    if why := missing():
        print(f"not measured: {why}")
        return 0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with tempfile.TemporaryDirectory(prefix="hpcai-many-") as folder, a_bed() as bed:
        site = Site(bed, Path(folder))
        code = Path(folder, "site")
        shutil.copytree(Path(hpcai.__file__).parent, code / "hpcai", ignore=shutil.ignore_patterns("__pycache__"))
        (code / "hpcai/jobs/train.py").write_text(JOB)
        site.noted["PYTHONPATH"] = str(code)
        busy = psutil.cpu_percent(3.0) / 100 * (psutil.cpu_count() or 1)
        print(f"{asked.members} members of {asked.sleep} s; other work kept {busy:.1f} cores busy before", flush=True)
        mine = submit(site, asked.members, asked.sleep)
        if asked.peer:
            other = peer(site, asked.peer, asked.sleep, asked.commands)
            all_of_them = other * asked.members
            print(
                f"hydra-submitit-launcher: {other:.2f} s a command (mean of {asked.commands}), so {all_of_them:.0f} s for ",
                end="",
            )
            print(f"{asked.members}: {all_of_them / mine:.0f}x")
    return 0


def submit(site: Site, members: int, sleep: int) -> float:
    """The sweep, sent and done; seconds from the command to its last job's number."""
    words = [*WORDS, f"trainer.max_steps={sleep}", f"seed=range(0,{members})", f"runs_dir={site.runs}"]
    began = time.time()
    subprocess.run(
        [sys.executable, "-m", "hpcai.run", "-m", *words], env=site.noted, cwd="/", check=True, stdout=subprocess.DEVNULL
    )
    told = time.time()
    calls = [call for call in site.calls() if call[0] == "sbatch" and call[2].startswith("--array")]
    sweep = RunDir(next((site.runs / "sweeps").iterdir()))
    owner = lease.read_owner(sweep, 1)
    print(f"sent in {told - began:.1f} s: {len(calls)} sbatch calls, {owner['jobs']} array tasks", flush=True)
    subprocess.run([sys.executable, "-m", "hpcai.cli", "wait", str(sweep.path)], env=site.noted, cwd="/", check=True)
    states = [m["state"] for m in read_json(sweep.path / "results.json")["members"]]
    assert states == ["completed"] * members, states
    until(lambda: not site.queue())
    rows = site.bed.client(
        "sacct",
        "-X",
        "-n",
        "-P",
        "--format=JobID,ElapsedRaw,NNodes",
        f"--jobs={','.join(owner['chain'])}",
        "--starttime=now-1days",
    )
    spent = [int(elapsed) * int(nodes) for _, elapsed, nodes in (row.split("|") for row in rows.splitlines())]
    slept, floor = sum(seconds(sweep)), members * sleep / 4
    tasks, total = sum(1 for s in spent if s), sum(spent)
    print(f"{total / 3600:.2f} node-h by sacct in {tasks} tasks, {time.time() - told:.0f} s from the first to the last")
    print(f"the members' {members} x {sleep} s / 4 are {floor / 3600:.2f} node-h: {total / floor:.2f}x", end="")
    print(f" (from begin to end record {slept / members:.1f} s each)")
    return told - began


def seconds(sweep: RunDir) -> list[float]:
    """From begin to end of each member."""
    return [float(m["seconds"]) for m in json.loads((sweep.path / "results.json").read_bytes())["members"]]


def peer(site: Site, python: str, sleep: int, commands: int) -> float:
    """Mean seconds from a one-member command of hydra-submitit-launcher to its job's number."""
    home = site.folder / "peer"
    home.mkdir()
    (home / "app.py").write_text(PEER.format(sleep))
    options = {"partition": "gpu", "account": "p200000", "qos": "default", "gpus_per_node": 1, "timeout_min": 10}
    words = [f"hydra.launcher.{name}={value}" for name, value in options.items()]
    took = []
    for i in range(commands):
        site.calls()
        began = time.time()
        command = [python, "app.py", "-m", "hydra/launcher=submitit_slurm", *words, f"+seed={i}"]
        process = subprocess.Popen(command, env=site.noted, cwd=home, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        until(lambda: bool(site.queue()))
        took.append(time.time() - began)
        process.kill()
        process.wait()
        site.quiet()
    return statistics.mean(took)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        os.umask(0o022)
        sys.exit(main())
