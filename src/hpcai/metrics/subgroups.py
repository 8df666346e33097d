"""How it does in groups of people, and who they are: rows, cases -> subgroups, characteristics; small groups are hidden."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from hpcai.metrics.binary import auc_estimate, share
from hpcai.metrics.classification import Threshold, macro_auc, predicted
from hpcai.metrics.estimate import Estimate
from hpcai.metrics.groups import UNKNOWN, Column, columns, grouped, shown, sizes
from hpcai.metrics.rows import Ints, Rows
from hpcai.metrics.sample import sample_of
from hpcai.metrics.table import CaseTable

Json = dict[str, Any]


def subgroups(rows: Rows, table: CaseTable, split: str, threshold: Threshold | None) -> list[Json]:
    """For each column the groups of `rows` (labelled, all in `table`) with estimates; small ones are only counted."""
    called = predicted(rows, threshold)
    here = table.of(rows.case)
    found = []
    for column in columns(table):
        names, order = grouped(column, np.array([s == "train" for s in table.split]))
        own = dict(zip(table.case, names, strict=True))
        mine = [own[case] for case in rows.case]
        size = sizes(mine, here.patient)
        told = shown(size)
        groups = [_group(rows, called, mine, name, split) for name in order if name in told]
        found.append({"column": column.name, "kind": column.kind, "hidden": len(size) - len(told), "groups": groups})
    return found


def _group(rows: Rows, called: Ints, mine: Sequence[str], name: str, split: str) -> Json:
    keep = np.array([group == name for group in mine])
    part = rows.where(keep)
    patients = None if part.patient is None else len(set(part.patient))
    positives = int((part.label == 1).sum()) if part.classes == 2 else None
    estimates = [asdict(e) for e in _estimates(part, called[keep], split)]
    return {"name": name, "n": len(part.case), "patients": patients, "positives": positives, "estimates": estimates}


def _estimates(part: Rows, called: Ints, split: str) -> list[Estimate]:
    sample = sample_of(part, called, split)
    right = called == part.label
    if part.classes > 2:
        return [macro_auc(part, split), share("accuracy", sample, right, np.ones(len(right), bool))]
    return [
        auc_estimate(sample),
        share("sensitivity", sample, right, sample.label),
        share("specificity", sample, right, ~sample.label),
    ]


def characteristics(table: CaseTable, labels: Sequence[str]) -> list[Json]:
    """Who the cases of each split are: their class, columns and sizes, with what is missing; small levels are only counted."""
    classes = [None if k < 0 or k >= len(labels) else labels[k] for k in table.label.tolist()]
    found = []
    for column in (Column("class", classes, None), *columns(table)):
        splits = {}
        for split in dict.fromkeys(table.split):
            keep = np.array([s == split for s in table.split])
            splits[split] = _described(column, keep, table)
        found.append({"name": column.name, "kind": column.kind, "splits": splits})
    return found


def _described(column: Column, keep: Any, table: CaseTable) -> Json:
    part = table.where(keep)
    if column.number is not None:
        known = column.number[keep]
        missing = int(np.isnan(known).sum())
        known = known[~np.isnan(known)]
        people = len(known) if part.patient is None else len(set(part.patient))
        if len(known) < 10 or people < 10:
            return {
                "n": len(part.case),
                "missing": missing,
                "mean": None,
                "sd": None,
                "median": None,
                "low": None,
                "high": None,
            }
        low, median, high = np.quantile(known, [0.25, 0.5, 0.75])  # quartiles: the extremes can name somebody
        return {
            "n": len(part.case), "missing": missing, "mean": float(known.mean()), "sd": float(known.std(ddof=1)),
            "median": float(median), "low": float(low), "high": float(high),
        }  # fmt: skip
    text = [value for value, k in zip(column.text, keep) if k]
    names = [UNKNOWN if value is None else value for value in text]
    told = shown(sizes(names, part.patient)) if column.name != "class" else list(dict.fromkeys(names))
    levels = sorted(set(names) - {UNKNOWN})
    counts = {name: names.count(name) for name in levels if name in told}
    return {"n": len(text), "missing": text.count(None), "levels": counts, "hidden": len(levels) - len(counts)}
