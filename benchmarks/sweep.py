"""Twenty members: hpcai's -m, as many at once as this machine has cores, beside Hydra's submitit_local launcher, all at once.

    python benchmarks/sweep.py [MEMBERS]

Two jobs: one that returns at once, and one that imports torch and returns. Both sides go through the command line, in turn,
three times; the table shows each side's median wall time and the ratio. Needs `pip install hydra-submitit-launcher`; remove it
afterwards: Hydra imports every launcher that it finds, at each start of any program.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import hpcai

ROUNDS = 3
OURS = '"""A job that does nothing."""\n{imports}\n\n\ndef main(cfg, run):\n    """Nothing."""\n'
PEER = "import hydra\n{imports}\n\n\n@hydra.main(version_base='1.3', config_path=None)\ndef main(cfg):\n    pass\n\n\nmain()\n"


def timed(command: list[str], cwd: Path, **env: str) -> float:
    """Seconds of one command, which must succeed."""
    before = time.perf_counter()
    done = subprocess.run(command, cwd=cwd, env={**os.environ, **env}, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)}: exit {done.returncode}\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return time.perf_counter() - before


def ours(home: Path, imports: str, members: int) -> float:
    """hpcai, with the job in the place of jobs/train.py."""
    site = home / "site"
    shutil.copytree(Path(hpcai.__file__).parent, site / "hpcai", ignore=shutil.ignore_patterns("__pycache__"))
    (site / "hpcai/jobs/train.py").write_text(OURS.format(imports=imports))
    words = ["-m", "+experiment=smoke", "resources.cpus_per_task=1", f"seed=range(0,{members})"]
    seconds = timed([sys.executable, "-m", "hpcai.run", *words], home, PYTHONPATH=str(site))
    (results,) = (home / "runs/sweeps").glob("*/results.json")
    assert [m["state"] for m in json.loads(results.read_bytes())["members"]] == ["completed"] * members
    return seconds


def peer(home: Path, imports: str, members: int) -> float:
    """Hydra's launcher, with its defaults."""
    (home / "app.py").write_text(PEER.format(imports=imports))
    words = ["-m", f"+seed=range(0,{members})", "hydra/launcher=submitit_local"]
    return timed([sys.executable, "app.py", *words], home)


def main() -> None:
    """Prints a line a job."""
    if importlib.util.find_spec("hydra_plugins.hydra_submitit_launcher") is None:
        sys.exit("benchmarks/sweep.py: needs the peer. pip install hydra-submitit-launcher, and uninstall it afterwards.")
    members = int(sys.argv[1]) if len(sys.argv) > 1 else 20
    print(f"{members} members on {len(os.sched_getaffinity(0))} cores, median of {ROUNDS}")
    print(f"{'job':<16}{'hpcai':>9}{'submitit_local':>16}{'ratio':>8}")
    for name, imports in (("returns at once", ""), ("imports torch", "import torch")):
        seen: dict[str, list[float]] = {"ours": [], "peer": []}
        for _ in range(ROUNDS):
            for side, call in (("ours", ours), ("peer", peer)):
                with tempfile.TemporaryDirectory() as home:
                    seen[side].append(call(Path(home), imports, members))
        one, other = (statistics.median(seen[side]) for side in ("ours", "peer"))
        print(f"{name:<16}{one:>7.2f} s{other:>14.2f} s{one / other:>7.2f}x")


if __name__ == "__main__":
    main()
