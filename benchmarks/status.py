"""How long does `hpcai status` take over 500 run folders? Without torch and numpy, to a pipe and to a terminal.

The folders are those of three real trainings (one completed, one stopped, one killed), each linked many times under other
names. Whole processes, median wall time of several rounds.
"""

from __future__ import annotations

import os
import pty
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from hpcai import lease
from hpcai.rundir import RunDir

FOLDERS = 500
ROUNDS = 9
HEAVY = "import sys; from hpcai.cli import main; main(sys.argv[1:]); sys.exit(bool({'torch', 'numpy'} & set(sys.modules)))"


def main() -> None:
    """Prints the table."""
    with tempfile.TemporaryDirectory() as folder:
        runs = Path(folder, "runs")
        for number, run in enumerate(trained(Path(folder))):
            for copy in range(number, FOLDERS, 3):
                shutil.copytree(run.path, runs / f"run-{copy:08d}", copy_function=os.link)
        command = [sys.executable, "-m", "hpcai.cli", "status", "--runs-dir", str(runs)]
        heavy = subprocess.run([sys.executable, "-c", HEAVY, *command[3:]], stdout=subprocess.DEVNULL).returncode
        lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
        states = {state: sum(f" {state} " in line for line in lines) for state in ("completed", "stopped", "lost")}
        print(f"{len(lines) - 1} runs: {states}; torch or numpy imported: {'yes' if heavy else 'no'}")
        print(f"{'hpcai status':<20}{'median s':>10}{'max s':>8}   ({ROUNDS} rounds; at most 1 s asked)")
        for where, time_it in (("to a pipe", to_pipe), ("to a terminal", to_terminal), ("--json", to_json)):
            seen = [time_it(command) for _ in range(ROUNDS)]
            print(f"{where:<20}{statistics.median(seen):>10.3f}{max(seen):>8.3f}")


def to_pipe(command: list[str]) -> float:
    """Seconds until it has ended."""
    before = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - before


def to_json(command: list[str]) -> float:
    """The same, with all facts."""
    return to_pipe([*command, "--json"])


def to_terminal(command: list[str]) -> float:
    """Seconds until a terminal has its last line."""
    master, slave = pty.openpty()
    before = time.perf_counter()
    process = subprocess.Popen(command, stdout=slave, stderr=slave, stdin=slave)
    os.close(slave)
    try:
        while os.read(master, 65536):
            pass
    except OSError:  # how Linux tells that the other end is closed
        pass
    assert process.wait() == 0
    os.close(master)
    return time.perf_counter() - before


def trained(folder: Path) -> list[RunDir]:
    """Three real runs: one to its end, one stopped by SIGTERM, one killed."""
    rng, arrays = np.random.default_rng(0), {}
    for split in ("train", "val", "test"):
        y = np.arange(64) % 2
        arrays |= {f"{split}_images": (rng.integers(0, 120, (64, 8, 8)) + y[:, None, None] * 40).astype(np.uint8)}
        arrays |= {f"{split}_labels": y[:, None]}
    np.savez(folder / "tiny.npz", **arrays)
    return [one_run(folder, name) for name in ("completed", "stopped", "killed")]


def one_run(folder: Path, name: str) -> RunDir:
    """A training that ends as its name says."""
    made = folder / "made"
    epochs = 20 if name == "completed" else 5000
    words = [
        f"name={name}",
        f"data.path={folder}/tiny.npz",
        "data.labels=[no,yes]",
        "data.identifiers=none",
        f"runs_dir={made}",
        f"trainer.epochs={epochs}",
    ]
    words += ["trainer.log_every=1", "trainer.batch_size=16", "model.width=8", "resources.cpus_per_task=1"]
    process = subprocess.Popen(
        [sys.executable, "-m", "hpcai.run", *words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    while name != "completed" and not any(f.stat().st_size > 20_000 for f in made.glob(f"{name}-*/metrics.jsonl")):
        assert process.poll() is None
        time.sleep(0.05)
    if name == "completed":
        process.wait()
    (run,) = (RunDir(f) for f in made.glob(f"{name}-*"))
    if name == "stopped":
        process.send_signal(signal.SIGTERM)
    if name == "killed":
        for record in lease.records(run, 1)[0][:1]:
            os.kill(record["pid"], signal.SIGKILL)
    process.wait()
    return run


if __name__ == "__main__":
    main()
