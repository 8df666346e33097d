"""A sweep killed with SIGKILL at seeded moments and started again until it ends: nothing lost, nothing twice, the same table.

    python benchmarks/kills.py [MOMENTS] [SEED]

Each moment: a fresh sweep of real trainings, one kill (the driver; the driver and all that it started; or the members alone),
then the same command to its end. Compared with one undisturbed sweep: labels, scores, and the digest of each model.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

from hpcai import lease
from hpcai.rundir import RunDir

WORDS = ["-m", "+experiment=smoke", "resources.cpus_per_task=1", "trainer.max_steps=12", "trainer.checkpoint_every=3",
         "seed=0,1", "trainer.lr=1e-3,1e-2"]  # fmt: skip
WHO = ("driver", "all", "members")


def start(home: Path) -> subprocess.Popen[bytes]:
    """The command, in a session of its own."""
    command = [sys.executable, "-m", "hpcai.run", *WORDS]
    return subprocess.Popen(command, cwd=home, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def processes(driver: int) -> list[psutil.Process]:
    """All of the driver's session."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.pid and os.getsid(process.pid) == driver:
                found.append(process)
        except ProcessLookupError:
            continue
    return found


def kill(driver: subprocess.Popen[bytes], who: str) -> None:
    """SIGKILL to those that `who` names."""
    targets = processes(driver.pid)
    if who == "driver":
        targets = [p for p in targets if p.pid == driver.pid]
    if who == "members":
        targets = [p for p in targets if p.pid != driver.pid]
    for process in targets:
        try:
            process.send_signal(signal.SIGKILL)
        except psutil.NoSuchProcess:
            continue


def facts(home: Path) -> tuple[list[Any], list[str], int]:
    """(members with scores and models, the ranking), faults, lives."""
    (folder,) = (home / "runs/sweeps").iterdir()
    told = json.loads((folder / "results.json").read_bytes())
    table, faults, lives = [], [], 0
    for member in told["members"]:
        run = RunDir(Path(member["run_dir"]))
        lives += lease.last_life(run)
        model = json.loads(run.model.read_bytes())["sha256"] if run.model.is_file() else None
        table.append((member["label"], member["state"], member["score"], model))
        ended = [r for life in range(1, lease.last_life(run) + 1) for rank in lease.records(run, life).values()
                 for r in rank if r["event"] == "end" and r["code"] == 0]  # fmt: skip
        if len(ended) != 1:
            faults.append(f"{member['label']}: completed {len(ended)} times")
    return [table, told["ranking"]], faults, lives


def main() -> None:
    """Prints a line a moment, then the count."""
    moments = int(sys.argv[1]) if len(sys.argv) > 1 else 20
    rng = random.Random(int(sys.argv[2]) if len(sys.argv) > 2 else 0)
    with tempfile.TemporaryDirectory() as home:
        before = time.monotonic()
        assert start(Path(home)).wait() == 0
        calm, length = facts(Path(home)), time.monotonic() - before
    print(f"undisturbed: {len(calm[0][0])} members in {length:.1f} s", flush=True)
    good = 0
    for n in range(moments):
        at, who = rng.uniform(0.2, length), rng.choice(WHO)
        with tempfile.TemporaryDirectory() as home:
            driver = start(Path(home))
            time.sleep(at)
            early = driver.poll() is None
            kill(driver, who)
            driver.communicate()
            last = start(Path(home))
            _, err = last.communicate()
            found, faults, lives = facts(Path(home))
        same = last.returncode == 0 and not faults and found == calm[0]
        good += same
        when = f"after {at:5.2f} s" + ("" if early else " (had ended)")
        print(f"{n + 1:>3}  {who:<8} {when}  lives {lives}  {'same' if same else 'NOT THE SAME'}", flush=True)
        if not same:
            other = [(a, b) for a, b in zip(calm[0][0] + calm[0][1], found[0] + found[1]) if a != b]
            print(f"     exit {last.returncode} {faults} {other} {err.decode()[-500:]}", flush=True)
    print(f"{good} of {moments} moments: no member lost, none completed twice, the same table and the same models")
    sys.exit(good != moments)


if __name__ == "__main__":
    main()
