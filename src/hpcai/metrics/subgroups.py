"""How it does in groups of people, and who they are: rows, cases -> subgroups, characteristics; small groups are hidden."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpcai.metrics.binary import auc_estimate, share
from hpcai.metrics.classification import Threshold, macro_auc, predicted
from hpcai.metrics.estimate import Estimate
from hpcai.metrics.groups import LEAST, UNKNOWN, Column, columns, grouped, shown, sizes
from hpcai.metrics.rows import Floats, Ints, Rows
from hpcai.metrics.sample import sample_of
from hpcai.metrics.table import CaseTable

Json = dict[str, Any]
Places = NDArray[np.intp]


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
    """Who the cases of each split are: their class, columns and sizes, with what is missing.

    Of a text the levels that some split may tell; null in a split where they are few, and the others only counted (`hidden`).
    """
    classes = [None if k < 0 or k >= len(labels) else labels[k] for k in table.label.tolist()]
    there = set(table.split)
    order = [*(s for s in ("train", "val", "test") if s in there), *sorted(there - {"train", "val", "test"})]
    parts = {split: np.flatnonzero([s == split for s in table.split]) for split in order}
    found = []
    for column in (Column("label", classes, None), *columns(table)):
        told = _levels(column, parts, table) if column.number is None else _quantities(column.number, parts, table)
        found.append({"name": column.name, "kind": column.kind, "splits": told})
    return found


def _levels(column: Column, parts: dict[str, Places], table: CaseTable) -> Json:
    names = {split: [column.text[i] for i in part] for split, part in parts.items()}
    if column.name == "label":
        may = {split: set(texts) for split, texts in names.items()}
    else:
        size = {split: sizes([UNKNOWN if t is None else t for t in texts], table.take(parts[split].tolist()).patient)
                for split, texts in names.items()}  # fmt: skip
        may = {split: set(shown(each)) for split, each in size.items()}
    some = sorted({name for each in may.values() for name in each if name is not None} - {UNKNOWN})
    found = {}
    for split, texts in names.items():
        there = set(texts) - {None}
        levels = {name: texts.count(name) if name in may[split] or name not in there else None for name in some}
        found[split] = {"n": len(texts), "missing": texts.count(None), "levels": levels, "hidden": len(there - set(some))}
    return found


def _quantities(number: Floats, parts: dict[str, Places], table: CaseTable) -> Json:
    found = {}
    for split, part in parts.items():
        known = number[part][~np.isnan(number[part])]
        people = sizes(["known"] * len(known), table.take(part[~np.isnan(number[part])].tolist()).patient).get("known", 0)
        told: Json = dict.fromkeys(("mean", "sd", "median", "low", "high"))
        if people >= LEAST:
            low, median, high = map(float, np.quantile(known, [0.25, 0.5, 0.75]))  # the extremes can name somebody
            told = {"mean": float(known.mean()), "sd": float(known.std(ddof=1)), "median": median, "low": low, "high": high}
        found[split] = {"n": len(part), "missing": len(part) - len(known)} | told
    return found
