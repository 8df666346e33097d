"""Score a trained run on a split of labelled data: the one it was made with, or another.

    python -m hpcai.run +experiment=pneumonia job=evaluate from_run=RUN [data.path=... data.eval_split=all]

trained run -> model, threshold -> data -> rows -> report
"""

from __future__ import annotations

import logging

import numpy as np

from hpcai import rundir
from hpcai.comm import process_group
from hpcai.config.schema import Config
from hpcai.context import RunContext
from hpcai.data.open import open_cases
from hpcai.data.samples import load_samples
from hpcai.data.splits import eval_indices
from hpcai.infer import logits_of, rows_of, write_rows
from hpcai.report import write_report
from hpcai.tasks.classification import Classification
from hpcai.trained import load_trained
from hpcai.training.state import DTYPES

log = logging.getLogger("hpcai")


def main(cfg: Config, run: RunContext) -> None:
    """Leaves rows/<split>, threshold.json (the trained run's) and the report.

    Raises: DataError, RunError, Stopped.
    """
    gpus, deterministic = cfg.resources.gpus_per_node, cfg.trainer.deterministic
    with process_group(run, gpus=gpus, seed=cfg.seed, deterministic=deterministic) as group:
        trained = load_trained(cfg, run, group.device)
        task = Classification(trained.labels)
        cases = open_cases(cfg.data, rundir.read_digests(run.dir))
        indices = (
            trained.same_split(cases, cfg.data.eval_split) if trained.same_data(run.dir) else eval_indices(cases, cfg.data)
        )
        log.info("data  %s: %s of %s cases", cfg.data.eval_split, f"{len(indices):,}", f"{len(cases):,}")
        samples = load_samples(cases, indices, DTYPES[cfg.trainer.precision], group.device, trained.scaling)
        run.stop.check("stopped before scoring. The same command goes on.")
        logits = logits_of(trained.model, samples, len(task.labels), group)
        if group.first:
            counts = np.bincount(cases.labels[indices], minlength=len(task.labels)).tolist()
            split = {"by": "evaluate", "counts": {cfg.data.eval_split: len(indices)}, "patients": None, "duplicates": {},
                     "classes": {cfg.data.eval_split: {str(k): n for k, n in enumerate(counts)}}}  # fmt: skip
            rundir.write_json(run.dir.split, split)
            rundir.write_json(run.dir.threshold, trained.threshold)
        write_rows(run, cfg.data.eval_split, rows_of(task, cases, indices, logits))
        if group.first:
            run.note("progress", step=len(indices))
            write_report(run.dir)
