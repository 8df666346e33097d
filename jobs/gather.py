"""Pool the folds of a cross-validation: every case judged once, by the fold that had not seen it.

    python -m hpcai.run +experiment=pneumonia job=gather from_run=[FOLD0,FOLD1,FOLD2]

trained runs -> one a fold, alike but for it -> rows of each fold's test, called by its own threshold -> report
"""

from __future__ import annotations

import json
import logging

from hpcai import rundir
from hpcai.config.schema import Config
from hpcai.context import RunContext
from hpcai.metrics.folds import by_fold, check_alike, check_whole, judged, pooled_cases, pooled_split, read
from hpcai.plan import sources
from hpcai.report import write_report

log = logging.getLogger("hpcai")


def main(cfg: Config, run: RunContext) -> None:
    """Leaves rows/oof (out of fold), split.json with the folds, threshold.json and the report. Rank 0 alone has work.

    Raises: PlanError for runs that are no whole cross-validation; DataError for other data, or a case judged twice or by a
        fold that knew its patient; RunError, Stopped.
    """
    if not run.ranks.first:
        return
    # ---- one run a fold, alike but for it, on these data
    folds = by_fold(sources(cfg, run.dir))
    check_alike(list(folds.values()), run.dir)
    splits = {fold: read(source, source.split) for fold, source in folds.items()}

    # ---- each fold's rows, called by its own threshold
    rows = [row for fold, source in folds.items() for row in judged(fold, source, splits[fold])]
    check_whole(rows, folds, splits)
    log.info("data  %s cases, each judged by one of %d folds", f"{len(rows):,}", len(folds))
    run.stop.check("stopped before anything was written. The same command starts it.")

    # ---- rows, split, threshold -> report
    run.fence()
    text = "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows)
    rundir.write_bytes(run.dir.rows_file("oof", 0), text.encode(errors="backslashreplace"))
    pooled_cases(folds, run.dir)
    rundir.write_json(run.dir.split, pooled_split(rows, folds, splits))
    rule = f"each fold's own: {cfg.task.threshold}" if len(cfg.data.labels) == 2 else "highest score"
    rundir.write_json(run.dir.threshold, {"value": None, "rule": rule, "split": "val", "n": 0})
    run.note("progress", step=len(rows))
    write_report(run.dir)
