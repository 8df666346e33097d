"""How light is the start? `--help` and `--dry-run` against a bare Hydra Compose app that reads the same files.

Whole processes, in turn (A B C A B C ...), median wall time; the ratio is taken round by round.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time

BARE = """
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf
with initialize_config_module("hpcai.configs", version_base="1.3"):
    print(OmegaConf.to_yaml(compose("config", overrides=["+experiment=pneumonia"])))
"""
ROUNDS = 15


def main() -> None:
    """Prints the table."""
    with tempfile.TemporaryDirectory() as runs:
        commands = {
            "bare Hydra compose": [sys.executable, "-c", BARE],
            "--help": [sys.executable, "-m", "hpcai.run", "--help"],
            "--dry-run": [sys.executable, "-m", "hpcai.run", "+experiment=pneumonia", "--dry-run", f"runs_dir={runs}"],
        }
        times: dict[str, list[float]] = {name: [] for name in commands}
        for round_number in range(ROUNDS + 1):
            for name, command in commands.items():
                before = time.perf_counter()
                subprocess.run(command, check=True, capture_output=True)
                if round_number:  # the first round warms the file cache
                    times[name].append(time.perf_counter() - before)
    bare = times["bare Hydra compose"]
    print(f"{'command':<20}{'median s':>10}{'ratio':>8}   ({ROUNDS} rounds; at most 1.5 asked)")
    for name, seen in times.items():
        ratio = statistics.median(a / b for a, b in zip(seen, bare, strict=True))
        print(f"{name:<20}{statistics.median(seen):>10.3f}{ratio:>8.2f}")


if __name__ == "__main__":
    main()
