"""One row of scores a case, for images without labels; each case exactly once, whatever is killed.

    python -m hpcai.run name=today job=predict from_run=RUN data.reader=images data.path=FOLDER data.identifiers=none
    python -m hpcai.run name=today job=predict from_run=[A,B,C] data.identifiers=none ...
    python -m hpcai.run name=today job=predict from_run=RUN data.identifiers=none ... predict.shards=8

trained runs -> models -> for each block of cases: read, score by each, append the mean -> report
shards, each a run as above -> merge: every case once, in their order -> the same report
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from hpcai import rundir
from hpcai.cases import merged, remaining_blocks
from hpcai.comm import process_group
from hpcai.config.schema import Config
from hpcai.context import RunContext
from hpcai.data.open import open_cases
from hpcai.errors import DataError
from hpcai.infer import averaged, logits_of_cases, write_rows
from hpcai.metrics.rows import rows_then
from hpcai.plan import sources
from hpcai.report import write_report
from hpcai.rundir import RunDir
from hpcai.tasks.classification import Classification
from hpcai.tracking import follow
from hpcai.trained import load_trained, threshold_of, together

log = logging.getLogger("hpcai")
NOTE_S = 5.0  # how far it is stands in the records so often


def main(cfg: Config, run: RunContext) -> None:
    """Leaves rows/predict.rank<r>.jsonl, failed.rank<r>.jsonl with what could not be read, and the report.

    Raises: DataError if no case at all could be read, or shards do not fit together; PlanError, RunError, Stopped.
    """
    with follow(cfg, run):
        if cfg.task.name == "screening":
            screened(cfg, run)
        elif cfg.predict.merge:
            merge(cfg, run)
        elif cfg.data.reader == "table":
            score_table(cfg, run)
        else:
            score(cfg, run)


def score(cfg: Config, run: RunContext) -> None:
    """All cases, or those of one shard. A shard of unreadable images is no failure: the merge judges the whole.

    All models of an ensemble stay loaded: to load one costs reading and digesting its whole checkpoint, at each block again.
    """
    gpus, deterministic = cfg.resources.gpus_per_node, cfg.trainer.deterministic
    shard, shards = cfg.predict.shard, cfg.predict.shards
    with process_group(run, gpus=gpus, seed=cfg.seed, deterministic=deterministic, mpi=True) as group:
        members = sources(cfg, run.dir)
        trained = [load_trained(member, cfg.seed, group.device) for member in members]
        task = Classification(cfg.data.labels)
        cases = open_cases(cfg.data, rundir.read_digests(run.dir), labelled=False)
        log.info("data  %s cases to predict%s", f"{len(cases):,}", f", shard {shard} of {shards}" if shard else "")
        noted = 0.0
        for block in remaining_blocks(run, cases, shard, shards):
            read, logits = logits_of_cases(trained, cases, block.indices, block.failed)
            patients = [cases.patients[i] for i in read] if cases.patients else None
            ids = [cases.ids[i] for i in read]
            block.write(averaged([task.rows(ids, patients, [-1] * len(read), each.cpu()) for each in logits]))
            if time.monotonic() - noted > NOTE_S:  # each life's first block too: a run that is killed again and again gets on
                run.note("progress", step=block.done)
                noted = time.monotonic()
            if block.number % 20 == 0:
                log.info("predicted %s of %s cases", f"{block.done:,}", f"{len(cases):,}")
            run.stop.check(f"stopped after {block.done:,} cases, all of them kept. The same command goes on.")
        files = (run.dir.rows_file("predict", group.rank), run.dir.failed_file(group.rank))
        counts = torch.tensor([sum(1 for _ in rundir.read_lines(file)) for file in files], device=group.device)
        rows, lost = (int(n) for n in group.sum_(counts))
        if not (rows or shard):
            raise DataError(_nothing(len(cases), run.dir))
        if group.first:
            answer(run, members, rows + lost, whole=shard is None)


def score_table(cfg: Config, run: RunContext) -> None:
    """The same by what job=fit left; ranks share the blocks."""
    from hpcai.tabular.apply import predict

    with process_group(run, gpus=0, seed=cfg.seed, deterministic=True, mpi=True) as group:
        cases = predict(cfg, run)
        group.barrier()
        if group.first:
            answer(run, sources(cfg, run.dir), cases, whole=cfg.predict.shard is None)


def screened(cfg: Config, run: RunContext) -> None:
    """Newborns: one record each, or the records of all shards as one run's."""
    from hpcai.screening import cohort

    (cohort.merge if cfg.predict.merge else cohort.screen)(cfg, run)
    if run.ranks.first:
        write_report(run.dir)


def merge(cfg: Config, run: RunContext) -> None:
    """The rows of all shards as one run's. Rank 0 alone has work."""
    if not run.ranks.first:
        return
    members = sources(cfg, run.dir)
    cases = open_cases(cfg.data, rundir.read_digests(run.dir), labelled=False)
    shards = [RunDir(Path(path)) for path in cfg.predict.merge]
    rows, lost = merged(run.dir, cases, shards)
    log.info("merged %s rows of %d shards, %s cases could not be read", f"{len(rows):,}", len(shards), f"{len(lost):,}")
    run.stop.check("stopped before anything was written. The same command starts it.")
    run.fence()
    run.dir.failed_file(0).unlink(missing_ok=True)
    if lost:
        rundir.append_lines(run.dir.failed_file(0), lost, sync=True)
    if not rows:
        raise DataError(_nothing(len(cases), run.dir))
    write_rows(run, "predict", rows)
    answer(run, members, len(cases))


def answer(run: RunContext, members: Sequence[RunDir], cases: int, *, whole: bool = True) -> None:
    """Threshold and report. What an ensemble gained shows on the cases that its runs were tested on; no shard need tell it."""
    rundir.write_json(run.dir.threshold, threshold_of(members))
    if whole and len(members) > 1:
        rundir.write_json(run.dir.together, together(members, "test", [rows_then(m, "test") for m in members]))
    run.note("progress", step=cases)
    write_report(run.dir)


def _nothing(cases: int, run: RunDir) -> str:
    return f"data.path: not one of {cases:,} images could be read. {run.failed_file(0).name} says why, row by row."
