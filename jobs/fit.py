"""Fit an estimator on a table of numbers, choose its threshold on cases that it was not fitted to, judge it once.

    python -m hpcai.run +experiment=nbs_msms      # newborn screening: a detector a disease, beside published cut-offs
    python -m hpcai.run +experiment=iem_miller    # classes of cases: nested cross-validation

table -> split -> features -> grid by inner cross-validation -> estimator -> calibration, threshold -> rows -> report
"""

from __future__ import annotations

from hpcai.config.schema import Config
from hpcai.context import RunContext
from hpcai.report import write_report
from hpcai.tracking import follow


def main(cfg: Config, run: RunContext) -> None:
    """Leaves the estimator, model.json, threshold.json, rows and the report. One rank works: tables are small.

    Raises: DataError, RunError, Stopped.
    """
    if not run.ranks.first:
        return
    with follow(cfg, run):
        if cfg.task.name == "screening":
            from hpcai.screening.fit import fit
        else:
            from hpcai.tabular.fit import fit
        fit(cfg, run)
        write_report(run.dir)
