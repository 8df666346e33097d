"""job=fit of task.name=classification.   table -> split -> choose and fit on training cases -> judge the others -> fit.json

    split.by=nested     outer folds, each judged once by what the others chose (rows/oof); the model is then fitted to all
    published, random,  chosen and fitted on train; rows/val sets the threshold, rows/test judges
    kfold

Leaves table_model.json, model.json, threshold.json, split.json, cases.jsonl, rows and fit.json. A row's `why` explains it.
"""

from __future__ import annotations

import copy
import hashlib
import json
import logging
import re
from collections import Counter
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpcai import rundir
from hpcai.config.schema import Config
from hpcai.context import RunContext
from hpcai.data.open import open_cases
from hpcai.data.split_file import note_cases, sentence, split_once
from hpcai.data.splits import fold_numbers
from hpcai.data.table import TableCases
from hpcai.errors import ConfigError, DataError
from hpcai.metrics.classification import Threshold, choose_threshold
from hpcai.metrics.rows import Rows
from hpcai.models.estimators import Linear
from hpcai.tabular.choose import Chosen, choose
from hpcai.tabular.judged import Outcome, by_class, numbers
from hpcai.tabular.model import Judged, TableModel, explain

log = logging.getLogger("hpcai")
Json = dict[str, Any]
Ints = NDArray[np.int64]

SENSITIVITY = 0.98  # at which specificity is told, where task.threshold names none
SHOWN = 8  # channels of a class in fit.json


def fit(cfg: Config, run: RunContext) -> None:
    """The whole job but its report. Rank 0 alone has work; what one life finished of nested folds the next takes over.

    Raises: ConfigError, DataError, RunError, Stopped.
    """
    if not run.ranks.first:
        return
    cases = open_table_cases(cfg, run)
    if cases.left_out:
        log.info("data  %s cases are of a class that data.labels has not, and left out", f"{cases.left_out:,}")
    told = nested(cfg, run, cases) if cfg.data.split.by == "nested" else parted(cfg, run, cases)
    rundir.write_json(run.dir.fit, told)
    run.note("progress", step=len(cases))


def open_table_cases(cfg: Config, run: RunContext, *, labelled: bool = True) -> TableCases:
    """The cases of data.reader=table.

    Raises: ConfigError for another reader; DataError.
    """
    if cfg.data.reader != "table":
        raise ConfigError(f"data.reader={cfg.data.reader}: job=fit reads tables. Set data.reader=table, or job=train.")
    cases = open_cases(cfg.data, rundir.read_digests(run.dir), labelled=labelled)
    assert isinstance(cases, TableCases)
    return cases


# --- nested


def nested(cfg: Config, run: RunContext, cases: TableCases) -> Json:
    """Each case judged once; beside it the same without groups, which tells what near-duplicates would have added.

    Returns: what fit.json holds.
    """
    everyone = np.arange(len(cases))
    log.info("data  %s cases of %d classes, %s features", f"{len(cases):,}", len(cfg.data.labels), f"{len(cases.names):,}")
    note_cases(run, cases, {"oof": everyone})
    fold, rows, folds, outcome = _outer(cfg, run, cases, "grouped")
    beside = None
    if cases.patients is not None and len(set(cases.patients)) < len(cases):
        alone = copy.copy(cases)
        alone.patients = None
        _, _, _, apart = _outer(cfg, run, alone, "ungrouped")
        beside = [asdict(e) for e in numbers(_replaced_groups(apart, outcome), _sensitivity(cfg))]
    chosen = choose(cases, everyone, cfg, run.stop)
    run.fence()
    write_rows(run, "oof", rows)
    rundir.write_json(run.dir.split, _split_of(cfg, cases, fold))
    threshold = _threshold(chosen.judged, cases, everyone, cfg.task.threshold, "inner")
    rule = threshold.rule if threshold.value is None else f"{threshold.rule} of held-out training cases; a fold by its own"
    rundir.write_json(run.dir.threshold, asdict(threshold) | {"rule": rule, "split": "oof"})
    write_model(run, chosen.model)
    for number in range(cfg.data.split.folds):
        for kind in ("grouped", "ungrouped"):
            _fold_file(run, kind, number).unlink(missing_ok=True)
    return _told(cfg, cases, outcome, chosen, folds) | {"ungrouped": beside}


def _outer(cfg: Config, run: RunContext, cases: TableCases, kind: str) -> tuple[Ints, list[Json], list[Json], Outcome]:
    """Fold of each case, their rows in the order of cases, what each fold chose, and the outcome."""
    everyone = np.arange(len(cases))
    fold = fold_numbers(cases, everyone, cfg.data.split.folds, [cfg.data.split.seed, 0])
    done: list[Json] = []
    for number in range(cfg.data.split.folds):
        file = _fold_file(run, kind, number)
        if not file.exists():
            run.stop.check(f"stopped before fold {number}; those before it are kept. The same command goes on.")
            judged = _one_fold(cfg, run, cases, fold, number)
            run.fence()
            rundir.write_json(file, judged)
        done.append(rundir.read_json(file))
        log.info("%s fold %d of %d  %s", kind, number + 1, cfg.data.split.folds, done[-1]["told"].get("chosen"))
    lines = sorted((line for each in done for line in each["lines"]), key=lambda line: int(line["at"]))
    outcome = Outcome(
        label=cases.labels,
        probability=np.array([line["row"]["scores"] for line in lines]),
        ranked=np.array([line["ranked"] for line in lines]),
        in_set=np.array([line["in_set"] for line in lines], bool),
        flagged=np.array([line["flagged"] for line in lines], bool),
        group=_groups(cases),
        split="oof",
    )
    return fold, [line["row"] for line in lines], [each["told"] for each in done], outcome


def _one_fold(cfg: Config, run: RunContext, cases: TableCases, fold: Ints, number: int) -> Json:
    """Choose on the other folds, judge this one."""
    train, held = np.flatnonzero(fold != number), np.flatnonzero(fold == number)
    if not len(held):
        return {"told": {"fold": number, "n": 0}, "lines": []}
    chosen = choose(cases, train, cfg, run.stop)
    judged = chosen.model.judge(cases.names, cases.x_nF[held])
    threshold = _threshold(chosen.judged, cases, train, cfg.task.threshold, "inner")
    rows = rows_of(cases, held, judged, chosen.model, called_of(judged, threshold))
    flagged = _flagged(judged, chosen.judged, cases.labels[train], _sensitivity(cfg))
    lines = [
        {"at": int(i), "row": row | {"fold": number}, "ranked": r, "in_set": s, "flagged": f}
        for i, row, r, s, f in zip(held, rows, judged.ranked.tolist(), judged.in_set.tolist(), flagged.tolist(), strict=True)
    ]
    told = {"fold": number, "n": len(held), "threshold": threshold.value} | _chosen(chosen)
    return {"told": told, "lines": lines}


def _fold_file(run: RunContext, kind: str, number: int) -> Any:
    return run.dir.rows / f".{kind}{number}.json"


def _replaced_groups(outcome: Outcome, grouped: Outcome) -> Outcome:
    """The outcome with the intervals of the other's groups: cases that are alike stay so, however they were parted."""
    return Outcome(**{**vars(outcome), "group": grouped.group})


def _split_of(cfg: Config, cases: TableCases, fold: Ints) -> Json:
    classes = Counter(str(k) for k in cases.labels.tolist())
    return {
        "by": "nested",
        "seed": cfg.data.split.seed,
        "folds": cfg.data.split.folds,
        "counts": {"oof": len(cases)},
        "classes": {"oof": dict(sorted(classes.items(), key=lambda item: int(item[0])))},
        "patients": {"oof": len(set(cases.patients))} if cases.patients else None,
        "duplicates": {},
        "test": {str(k): [cases.ids[i] for i in np.flatnonzero(fold == k)] for k in range(cfg.data.split.folds)},
    }


# --- one split


def parted(cfg: Config, run: RunContext, cases: TableCases) -> Json:
    """Chosen and fitted on train, threshold on val, judged on test.

    Returns: what fit.json holds.
    """
    split = split_once(run, cases, cfg.data.split)
    log.info("data  %s", sentence(split, cases))
    chosen = choose(cases, split.train, cfg, run.stop)
    judged = {name: chosen.model.judge(cases.names, cases.x_nF[at]) for name, at in split.parts().items() if name != "train"}
    threshold = _threshold(judged["val"], cases, split.val, cfg.task.threshold, "val")
    run.fence()
    for name, at in (("val", split.val), ("test", split.test)):
        called = called_of(judged[name], threshold)
        write_rows(run, name, rows_of(cases, at, judged[name], chosen.model, called))
    rundir.write_json(run.dir.threshold, asdict(threshold))
    write_model(run, chosen.model)
    test = judged["test"]
    outcome = Outcome(
        label=cases.labels[split.test],
        probability=test.probability,
        ranked=test.ranked,
        in_set=test.in_set,
        flagged=_flagged(test, chosen.judged, cases.labels[split.train], _sensitivity(cfg)),
        group=_groups(cases)[split.test],
        split="test",
    )
    return _told(cfg, cases, outcome, chosen, []) | {"ungrouped": None}


# --- what both leave


def write_model(run: RunContext, model: TableModel) -> None:
    """table_model.json, then model.json, which says that it is whole."""
    text = model.to_text().encode()
    rundir.write_bytes(run.dir.table_model, text)
    rundir.write_json(run.dir.model, {
        "checkpoint": run.dir.table_model.name,
        "sha256": hashlib.sha256(text).hexdigest(),
        "labels": model.labels,
        "input": None,  # no image
    })  # fmt: skip


def rows_of(cases: TableCases, at: Ints, judged: Judged, model: TableModel, called: Ints) -> list[Json]:
    """One row a case of `at`, each with why it was called so."""
    views = model.views(cases.names, cases.x_nF[at])
    return [
        {
            "case": cases.ids[i],
            "patient": cases.patients[i] if cases.patients else None,
            "label": int(cases.labels[i]) if cases.labels[i] >= 0 else None,
            "scores": judged.probability[k].tolist(),
            "called": int(called[k]),
            "set": [name for name, inside in zip(model.labels, judged.in_set[k], strict=True) if inside],
            "why": explain(model, [view[k] for view in views]),
        }
        for k, i in enumerate(at.tolist())
    ]


def called_of(judged: Judged, threshold: Threshold) -> Ints:
    """(n,) of two classes by the threshold, else the highest probability."""
    if threshold.value is not None and judged.probability.shape[1] == 2:
        return (judged.probability[:, 1] >= threshold.value).astype(np.int64)
    return np.asarray(judged.probability.argmax(1), np.int64)


def write_rows(run: RunContext, split: str, rows: list[Json]) -> None:
    """The whole split: all of it or nothing."""
    text = "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows)
    rundir.write_bytes(run.dir.rows_file(split, 0), text.encode(errors="backslashreplace"))


def _threshold(judged: Judged, cases: TableCases, at: Ints, rule: str, split: str) -> Threshold:
    rows = Rows([cases.ids[i] for i in at], None, cases.labels[at], judged.probability)
    return choose_threshold(rows, rule, split)


def _sensitivity(cfg: Config) -> float:
    """What task.threshold asks for, where it asks for a sensitivity."""
    found = re.fullmatch(r"sensitivity>=([\d.]+)", cfg.task.threshold)
    return float(found[1]) if found else SENSITIVITY


def _flagged(judged: Judged, inner: Judged, label: Ints, sensitivity: float) -> NDArray[np.bool_]:
    """(n,) 1 - P(first class) reaches what `sensitivity` of the training patients reach out of fold."""
    patients = np.sort(1 - inner.ranked[label > 0, 0])[::-1]
    if not len(patients):
        raise DataError("data.labels: no training case is of another class than the first. Bring some.")
    at = patients[max(1, int(np.ceil(sensitivity * len(patients) - 1e-9))) - 1]
    return np.asarray(1 - judged.ranked[:, 0] >= at, np.bool_)


def _groups(cases: TableCases) -> Ints:
    return np.unique(np.array(cases.patients or cases.ids), return_inverse=True)[1].astype(np.int64)


def _chosen(chosen: Chosen) -> Json:
    model = chosen.model
    return {
        "chosen": chosen.told,
        "losses": chosen.losses,
        "features": len(model.channels.names),
        "used": len(model.used()),
        "slope": model.calibration.slope,
        "prior": model.calibration.prior,
    }


def _told(cfg: Config, cases: TableCases, outcome: Outcome, chosen: Chosen, folds: list[Json]) -> Json:
    """What fit.json holds of the judged cases and the final model."""
    sizes = Counter(cases.patients or cases.ids)
    return {
        "estimator": cfg.estimator.name,
        "by": cfg.data.split.by,
        "left_out": cases.left_out,
        "groups": {"cases": sum(n for n in sizes.values() if n > 1), "groups": sum(1 for n in sizes.values() if n > 1)},
        "sensitivity": _sensitivity(cfg),
        "miscoverage": cfg.estimator.miscoverage,
        "numbers": [asdict(e) for e in numbers(outcome, _sensitivity(cfg))],
        "classes": by_class(outcome, cfg.data.labels),
        "folds": folds,
        "final": _chosen(chosen) | {"reads": _reads(chosen.model)},
    }


def _reads(model: TableModel) -> list[Json]:
    """Of linear estimators the channels with the largest weights for each class."""
    linear = [(m.slope, m.estimator) for m in model.members if isinstance(m.estimator, Linear)]
    if len(linear) < len(model.members):
        return []
    names = model.channels.channels
    weight_KC = np.mean([slope * np.array(estimator.weight) for slope, estimator in linear], axis=0)
    found = []
    for label, weight in zip(model.labels, weight_KC, strict=True):
        order = [k for k in np.argsort(-np.abs(weight), kind="stable")[:SHOWN] if weight[k]]
        found.append({"label": label, "channels": [{"channel": names[k], "weight": float(weight[k])} for k in order]})
    return found
