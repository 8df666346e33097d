"""What the tests of a screened cohort share: a model that simulated newborns taught, their table, a run on it, for real.

`python tests/cohort_kit.py RUN` is one rank of the run in RUN, as a worker would start it.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from hpcai import inputs, lease, rundir
from hpcai.book import shelf
from hpcai.book.simulation import SimulationBook
from hpcai.config.check import load
from hpcai.config.schema import Config, Estimator, Screening
from hpcai.context import RunContext, Stop, alone, read_ranks
from hpcai.plan import JobPlan, read_config
from hpcai.rundir import RunDir
from hpcai.screening.batch import Batch
from hpcai.screening.cohort import block_files
from hpcai.screening.fit import taught
from hpcai.screening.model import ScreeningModel
from hpcai.screening.simulate import Simulation
from hpcai.screening.teaching import Newborns

HERE = Path(__file__).parent
LABELS = "data.labels=[no,yes]"  # the model's are its own
SMALL = 64  # rows of a block, in tests that need many blocks


def simulation(seed: int, enrich: float, **more: Any) -> Simulation:
    """The shipped simulation, with dictionary and panel."""
    book = shelf.read("simulation", "nbs", SimulationBook)
    return Simulation(book, shelf.dictionary("nbs_msms"), shelf.panel("nbs"), seed=seed, enrich=enrich, **more)


def batch_of(frame: pl.DataFrame, first: int = 2) -> Batch:
    """A frame of the simulation as arrays, without a file between."""
    book = shelf.dictionary("nbs_msms")
    there = set(frame.columns)

    def numbers(name: str) -> np.ndarray:
        return frame[name].cast(pl.Float64).fill_null(np.nan).to_numpy() if name in there else np.full(len(frame), np.nan)

    texts = [c.name for c in book.columns if c.kind == "text" and c.name in there]
    return Batch(
        np.arange(first, first + len(frame)),
        np.array(frame["sample"].to_list()),
        np.column_stack([numbers(a.name) for a in book.analytes]),
        {c.name: numbers(c.name) for c in book.columns if c.kind != "text"},
        {name: np.array(frame[name].fill_null("").to_list()) for name in texts if name != "sample"},
    )


@cache
def model() -> ScreeningModel:
    """Taught by 6,000 simulated newborns of two laboratories, validated on 2,000: seconds."""
    draws = simulation(1, 0.005, laboratories=["A", "B"])
    newborns = Newborns(batch_of(pl.concat([draws.block(k) for k in range(2)])), shelf.panel("nbs"))
    at = np.arange(len(newborns))
    few = Estimator(penalty=[0.1], folds=2)
    return taught(shelf.books(Screening()), newborns, at[at % 4 > 0], at[at % 4 == 0], few, "sensitivity>=0.95", 0)


def digest_of(file: Path) -> str:
    """sha256."""
    return hashlib.sha256(file.read_bytes()).hexdigest()


def trained(folder: Path) -> RunDir:
    """A finished run of job=fit, as far as a prediction reads it."""
    run = RunDir(folder)
    rundir.write_bytes(run.screening_model, model().to_json().encode())
    facts = {"checkpoint": run.screening_model.name, "sha256": model().digest, "labels": ["unaffected", *model().diseases],
             "input": {"channels": 1, "size": [1], "mean": [0.0], "std": [1.0]}}  # fmt: skip
    rundir.write_json(run.model, facts)
    return run


def prepared(folder: Path, source: RunDir, table: Path, *words: str, ranks: int = 1) -> tuple[Config, RunContext]:
    """A run folder of job=predict as the launcher would leave it, and the context of its one rank here."""
    config = load([
        f"name={folder.name}", "job=predict", f"from_run={json.dumps(str(source.path))}", "task.name=screening",
        "data.reader=table", "data.identifiers=none", f"data.path={json.dumps(str(table))}", LABELS, *words,
    ])  # fmt: skip
    run = RunDir(folder)
    read = [table, *inputs.listed_books(config.screening)]
    files = [{"path": str(f), "bytes": f.stat().st_size, "sha256": digest_of(f)} for f in read]
    resources = {"nodes": 1, "tasks_per_node": ranks, "gpus_per_node": 0}
    whence: list[dict[str, str | None]] = [{"run_id": source.path.name, "sha256": rundir.read_json(source.model)["sha256"]}]
    plan = JobPlan(folder.name, str(folder), "predict", "laptop", "local", resources, 1, folder.name, whence, [])
    rundir.write_json(run.plan, plan.to_json())
    rundir.write_json(run.data, {"name": "", "source": "", "license": "", "files": files})
    rundir.write_json(run.environment, {})
    lease.life_dir(run, 1).mkdir(parents=True, exist_ok=True)
    rundir.write_bytes(run.config, config.model_dump_json().encode())  # JSON is YAML
    return config, alone(folder)


def records(run: RunDir) -> list[dict[str, Any]]:
    """All of a run's, in the table's order."""
    return [json.loads(line) for file in block_files(run) for line in file.read_bytes().splitlines()]


def ranks_of(folder: Path, ranks: int = 1, port: int = 0) -> list[subprocess.Popen[str]]:
    """The run in `folder` by so many real processes, met as torchrun would have them meet."""
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(ranks), "GLOO_SOCKET_IFNAME": "lo"}
    common = {**os.environ, "OMP_NUM_THREADS": "1"} | (place if ranks > 1 else {})
    return [
        subprocess.Popen(
            [sys.executable, str(HERE / "cohort_kit.py"), str(folder)],
            env=common | ({"RANK": str(rank), "LOCAL_RANK": str(rank)} if ranks > 1 else {}),
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for rank in range(ranks)
    ]  # fmt: skip


def main(folder: Path) -> None:
    """One rank, with blocks as small as the tests' own."""
    from hpcai.screening import cohort

    cohort.BLOCK = SMALL
    run = RunDir(folder)
    cohort.screen(read_config(run), RunContext(run, read_ranks(os.environ), 1, Stop().install()))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
