"""What job=fit left, on other tables.   trained runs, table -> rows of scores, each case once -> threshold

job=evaluate judges labelled cases, job=predict gives each case a row, whatever is killed; of several runs the mean is taken.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpcai import rundir
from hpcai.cases import remaining_blocks
from hpcai.config.schema import Config
from hpcai.context import RunContext
from hpcai.data.split_file import note_cases
from hpcai.data.table import TableCases
from hpcai.errors import DataError
from hpcai.metrics.classification import Threshold
from hpcai.plan import read_config, sources
from hpcai.plan import read_model as model_facts
from hpcai.rundir import RunDir
from hpcai.tabular.fit import called_of, open_table_cases, rows_of, write_rows
from hpcai.tabular.model import TableModel, read_model
from hpcai.trained import judging_cases, same_data, threshold_of

Json = dict[str, Any]
Ints = NDArray[np.int64]


def load(source: RunDir) -> TableModel:
    """The model of a finished job=fit.

    Raises: DataError if it is damaged, gone, or another than model.json says.
    """
    try:
        text = source.table_model.read_bytes()
    except OSError as e:
        raise DataError(f"run={source.path.name}: its table_model.json cannot be read ({e.strerror}). Fit it again.") from None
    try:
        return read_model(text, model_facts(source)["sha256"])
    except DataError as e:
        raise DataError(f"run={source.path.name}: {e}") from None


def evaluate(cfg: Config, run: RunContext) -> None:
    """Leaves rows/<split>, split.json, cases.jsonl and the runs' threshold. Rank 0 alone has work.

    Raises: DataError for cases that taught one of the runs, or a table that lacks a feature; Stopped.
    """
    if not run.ranks.first:
        return
    members, name = sources(cfg, run.dir), cfg.data.eval_split
    cases = open_table_cases(cfg, run)
    at = _judging(members, run.dir, cases, cfg)
    threshold = threshold_of(members)
    rows = _scored([load(m) for m in members], cases, at, _used(threshold))
    run.stop.check("stopped before anything was written. The same command starts it.")
    run.fence()
    counts = np.bincount(cases.labels[at], minlength=len(cfg.data.labels)).tolist()
    classes = {name: {str(k): n for k, n in enumerate(counts)}}
    note_cases(run, cases, {name: at})
    people = None if cases.patients is None else {name: len({cases.patients[i] for i in at})}
    split = {"by": "evaluate", "counts": {name: len(at)}, "patients": people, "duplicates": {}, "classes": classes}
    rundir.write_json(run.dir.split, split)
    rundir.write_json(run.dir.threshold, threshold)
    write_rows(run, name, rows)
    run.note("progress", step=len(at))


def predict(cfg: Config, run: RunContext) -> int:
    """Leaves rows/predict.rank<r>.jsonl: blocks that are there already are skipped.

    Returns: how many cases the table has.

    Raises: DataError for a table that lacks a feature; Stopped.
    """
    members = sources(cfg, run.dir)
    models, threshold = [load(m) for m in members], _used(threshold_of(members))
    cases = open_table_cases(cfg, run, labelled=False)
    for block in remaining_blocks(run, cases, cfg.predict.shard, cfg.predict.shards):
        block.write(_scored(models, cases, block.indices, threshold))
        run.note("progress", step=block.done)
        run.stop.check(f"stopped after {block.done:,} cases, all of them kept. The same command goes on.")
    return len(cases)


def _scored(models: list[TableModel], cases: TableCases, at: Ints, threshold: Threshold) -> list[Json]:
    """One row a case; of several models the mean of their probabilities, and of what one alone would say nothing."""
    told = []
    for model in models:
        judged = model.judge(cases.names, cases.x_nF[at])
        told.append(rows_of(cases, at, judged, model, called_of(judged, threshold)))
    if len(models) == 1:
        return told[0]
    members = [[row["scores"] for row in rows] for rows in told]
    mean = np.array(members, np.float64).mean(0).tolist()
    return [
        {key: row[key] for key in ("case", "patient", "label")} | {"scores": mean[i], "members": [own[i] for own in members]}
        for i, row in enumerate(told[0])
    ]


def _used(value: Json) -> Threshold:
    """The threshold of threshold.json, of two classes and one rule; else none."""
    return Threshold(value.get("value"), str(value.get("rule")), str(value.get("split")), int(value.get("n") or 0))


def _judging(members: list[RunDir], run: RunDir, cases: TableCases, cfg: Config) -> Ints:
    """See trained.judging_cases. What a nested run leaves was fitted to every case of its data.

    Raises: DataError if there is none.
    """
    for member in members:
        if read_config(member).data.split.by == "nested" and same_data(member, run):
            raise DataError(
                f"from_run={member.path.name}: every case of these data taught its final model. Its report has each judged "
                "once, by one that had not seen it; give other data."
            )
    return judging_cases(members, run, cases, cfg.data)
