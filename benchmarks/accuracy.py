"""How good is the shipped experiment? PneumoniaMNIST 28 x 28, official split, 5 seeds; the test split is read once a seed.

Each seed is a run of its own, by the launcher, as a user starts it. The threshold is the experiment's rule on validation.
    python benchmarks/accuracy.py [RUNS_DIR] [key=value ...]
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SEEDS = range(5)
NAMES = ("auc", "accuracy", "sensitivity", "specificity")


def main() -> None:
    """Prints a line a seed, then mean and spread."""
    given = [word for word in sys.argv[1:] if "=" not in word]
    runs = Path(given[0] if given else tempfile.mkdtemp(prefix="accuracy-"))
    overrides = [word for word in sys.argv[1:] if "=" in word]
    print(f"{'seed':<6}{'val AUC':>9}" + "".join(f"{'test ' + name:>18}" for name in NAMES) + f"{'seconds':>10}", flush=True)
    table: dict[str, list[float]] = {name: [] for name in ("val", *NAMES)}
    for seed in SEEDS:
        before = time.monotonic()
        command = [sys.executable, "-m", "hpcai.run", "+experiment=pneumonia", f"seed={seed}", f"runs_dir={runs}/{seed}"]
        subprocess.run([*command, *overrides], check=True, capture_output=True)
        (file,) = (runs / str(seed)).glob("*/report.json")
        told = {(e["split"], e["name"]): e["value"] for e in json.loads(file.read_text())["estimates"]}
        table["val"].append(told["val", "auc"])
        for name in NAMES:
            table[name].append(told["test", name])
        row = "".join(f"{told['test', name]:>18.4f}" for name in NAMES)
        print(f"{seed:<6}{told['val', 'auc']:>9.4f}{row}{time.monotonic() - before:>10.0f}", flush=True)
    for label, of in (("mean", statistics.mean), ("sd", statistics.stdev)):
        print(f"{label:<6}{of(table['val']):>9.4f}" + "".join(f"{of(table[name]):>18.4f}" for name in NAMES))
    print("asked: mean test AUC >= 0.98, accuracy >= 0.92")


if __name__ == "__main__":
    main()
