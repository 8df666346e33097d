"""Score a trained run, or the mean of several, on a split of labelled data: the one it was made with, or another.

    python -m hpcai.run +experiment=pneumonia job=evaluate from_run=RUN [data.path=... data.eval_split=all]
    python -m hpcai.run +experiment=pneumonia job=evaluate from_run=[A,B,C]

data -> for each trained run: model, rows -> mean -> threshold, what it gained -> report
"""

from __future__ import annotations

import logging
from operator import itemgetter
from typing import Any

import numpy as np

from hpcai import rundir
from hpcai.comm import process_group
from hpcai.config.schema import Config
from hpcai.context import RunContext
from hpcai.data.open import open_cases
from hpcai.data.samples import load_samples
from hpcai.data.split_file import note_cases
from hpcai.infer import as_table, averaged, logits_of, rows_of, write_rows
from hpcai.plan import sources
from hpcai.report import write_report
from hpcai.report.pictures import note_pictures
from hpcai.tasks.classification import Classification
from hpcai.tracking import follow
from hpcai.trained import judging_cases, load_trained, threshold_of, together

log = logging.getLogger("hpcai")


def main(cfg: Config, run: RunContext) -> None:
    """Leaves rows/<split>, threshold.json (the trained run's), of several runs together.json, and the report.

    Raises: DataError, RunError, Stopped.
    """
    if cfg.data.reader == "table":
        evaluate_table(cfg, run)
        return
    gpus, deterministic = cfg.resources.gpus_per_node, cfg.trainer.deterministic
    with follow(cfg, run), process_group(run, gpus=gpus, seed=cfg.seed, deterministic=deterministic, mpi=True) as group:
        members, name = sources(cfg, run.dir), cfg.data.eval_split
        task = Classification(cfg.data.labels)
        cases = open_cases(cfg.data, rundir.read_digests(run.dir))
        indices = judging_cases(members, run.dir, cases, cfg.data)
        log.info("data  %s: %s of %s cases", name, f"{len(indices):,}", f"{len(cases):,}")

        # ---- one model at a time: any number of them fits
        scored: list[list[dict[str, Any]]] = []
        for member in members:
            trained = load_trained(member, cfg.seed, group.device)
            samples = load_samples(cases, indices, trained.dtype, group.device, trained.scaling)
            run.stop.check("stopped before scoring. The same command goes on.")
            scored.append(rows_of(task, cases, indices, logits_of(trained.model, samples, len(task.labels), group)))
            if len(members) > 1:
                log.info("scored by %s, %d of %d", member.path.name, len(scored), len(members))

        # ---- rows -> threshold -> report
        if group.first:
            counts = np.bincount(cases.labels[indices], minlength=len(task.labels)).tolist()
            split = {"by": "evaluate", "counts": {name: len(indices)}, "patients": None, "duplicates": {},
                     "classes": {name: {str(k): n for k, n in enumerate(counts)}}}  # fmt: skip
            note_cases(run, cases, {name: indices})
            rundir.write_json(run.dir.split, split)
            rundir.write_json(run.dir.threshold, threshold_of(members))
        write_rows(run, name, averaged(scored))
        if group.first:
            if len(members) > 1:
                tables = [as_table(sorted(rows, key=itemgetter("case"))) for rows in scored]  # the order in which reports count
                rundir.write_json(run.dir.together, together(members, name, tables))
            run.note("progress", step=len(indices))
            note_pictures(run.dir, cases)
            write_report(run.dir)


def evaluate_table(cfg: Config, run: RunContext) -> None:
    """The same by what job=fit left. One rank works: tables are small."""
    if not run.ranks.first:
        return
    if cfg.task.name == "screening":
        from hpcai.screening.fit import evaluate
    else:
        from hpcai.tabular.apply import evaluate
    with follow(cfg, run):
        evaluate(cfg, run)
        write_report(run.dir)
