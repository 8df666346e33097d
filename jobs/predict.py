"""One row of scores a case, for images without labels; each case exactly once, whatever is killed.

    python -m hpcai.run name=today job=predict from_run=RUN data.reader=images data.path=FOLDER
    python -m hpcai.run name=today job=predict from_run=[A,B,C] data.reader=images data.path=FOLDER

trained runs -> models -> for each block of cases: read, score by each, append the mean -> report
"""

from __future__ import annotations

import logging

import torch

from hpcai import rundir
from hpcai.cases import remaining_blocks
from hpcai.comm import process_group
from hpcai.config.schema import Config
from hpcai.context import RunContext
from hpcai.data.open import open_cases
from hpcai.errors import DataError
from hpcai.infer import averaged, logits_of_cases
from hpcai.metrics.rows import rows_then
from hpcai.plan import sources
from hpcai.report import write_report
from hpcai.tasks.classification import Classification
from hpcai.tracking import follow
from hpcai.trained import load_trained, threshold_of, together

log = logging.getLogger("hpcai")


def main(cfg: Config, run: RunContext) -> None:
    """Leaves rows/predict.rank<r>.jsonl, failed.rank<r>.jsonl with what could not be read, and the report.

    All models of an ensemble stay loaded: to load one costs reading and digesting its whole checkpoint, at each block again.

    Raises: DataError if no case at all could be read; RunError, Stopped.
    """
    gpus, deterministic = cfg.resources.gpus_per_node, cfg.trainer.deterministic
    with follow(cfg, run), process_group(run, gpus=gpus, seed=cfg.seed, deterministic=deterministic, mpi=True) as group:
        members = sources(cfg, run.dir)
        trained = [load_trained(member, cfg.seed, group.device) for member in members]
        task = Classification(cfg.data.labels)
        cases = open_cases(cfg.data, rundir.read_digests(run.dir), labelled=False)
        log.info("data  %s cases to predict", f"{len(cases):,}")
        for block in remaining_blocks(run, cases):
            read, logits = logits_of_cases(trained, cases, block.indices, block.failed)
            patients = [cases.patients[i] for i in read] if cases.patients else None
            ids = [cases.ids[i] for i in read]
            block.write(averaged([task.rows(ids, patients, [-1] * len(read), each.cpu()) for each in logits]))
            if block.number % 20 == 0:
                log.info("predicted %s of %s cases", f"{block.done:,}", f"{len(cases):,}")
            run.stop.check(f"stopped after {block.done:,} cases, all of them kept. The same command goes on.")
        written = sum(1 for _ in rundir.read_lines(run.dir.rows_file("predict", group.rank)))
        if not group.sum_(torch.tensor(written, device=group.device)).item():
            why = run.dir.failed_file(0).name
            raise DataError(f"data.path: not one of {len(cases):,} images could be read. {why} says why, row by row.")
        if group.first:
            rundir.write_json(run.dir.threshold, threshold_of(members))
            if len(members) > 1:  # what was gained shows on the cases that the runs were tested on
                rundir.write_json(run.dir.together, together(members, "test", [rows_then(m, "test") for m in members]))
            run.note("progress", step=len(cases))
            write_report(run.dir)
