"""Would site, scanner, age and sex alone do as well?   A logistic model on the columns of cases, judged beside the network.

A network that is no better than this may have learnt where an image comes from. Two classes. Shape letters: n cases, p columns.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hpcai.metrics.binary import auc, auc_estimate
from hpcai.metrics.estimate import Estimate
from hpcai.metrics.groups import Column, columns
from hpcai.metrics.intervals import percentile, resampled
from hpcai.metrics.logistic import expit, fit
from hpcai.metrics.measures import areas
from hpcai.metrics.rows import Bools, Floats, Rows
from hpcai.metrics.sample import Sample
from hpcai.metrics.table import CaseTable

LEVEL = 10  # training cases of a text that gets a column of its own
RIDGE = 1.0  # on standardised columns: a rare site cannot grow without end


@dataclass(frozen=True)
class Shortcut:
    """What the columns alone reach. `difference`: the network's AUC less theirs, on the same cases, paired."""

    columns: list[str]
    estimate: Estimate
    network: Estimate
    difference: Estimate
    n_train: int


def shortcut(rows: Rows, table: CaseTable, split: str) -> Shortcut | None:
    """Fitted on the training cases of `table`, judged on `rows` (labelled, two classes).

    None where there are no columns that vary, no training cases of both classes, or one class to judge.
    """
    training = np.array([s == "train" for s in table.split]) & (table.label >= 0)
    labels = table.label == 1
    if rows.classes != 2 or len(np.unique(labels[training])) < 2 or len(np.unique(rows.label)) < 2:
        return None
    parts = {column.name: encoded(column, training) for column in columns(table)}
    used = [name for name, part in parts.items() if part.shape[1]]
    if not used:
        return None
    x = np.column_stack([np.ones(len(table.case)), *(parts[name] for name in used)])
    model = fit(x[training], labels[training], ridge=RIDGE)
    place = {case: i for i, case in enumerate(table.case)}
    score = expit(x[[place[case] for case in rows.case]] @ model.beta)
    label = rows.label == 1
    theirs, network = (
        Sample(label, s, s >= 0.5, split, rows.case, rows.patient) for s in (score, np.asarray(rows.scores[:, 1], np.float64))
    )
    return Shortcut(used, auc_estimate(theirs), auc_estimate(network), _difference(network, theirs), int(training.sum()))


def encoded(column: Column, training: Bools) -> Floats:
    """(n, p) standardised on the training cases: a quantity, with a column for what is missing; a text by its levels."""
    if column.number is not None:
        missing = np.isnan(column.number)
        known = column.number[training & ~missing]
        middle = float(known.mean()) if known.size else 0.0
        found = [np.where(missing, middle, column.number), missing.astype(np.float64)]
    else:
        text = np.array(["" if value is None else f"={value}" for value in column.text])
        levels, counts = np.unique(text[training], return_counts=True)
        found = [(text == level).astype(np.float64) for level in levels[counts >= LEVEL]]
    x = np.column_stack(found) if found else np.empty((len(column.text), 0))
    spread = x[training].std(0) if len(x) else np.empty(0)
    x = x[:, spread > 1e-12]
    return np.asarray((x - x[training].mean(0)) / x[training].std(0), np.float64)


def _difference(network: Sample, other: Sample) -> Estimate:
    label, n = network.label, len(network.label)
    value = auc(label, network.score) - auc(label, other.score)
    one, two = areas(label, network.score), areas(label, other.score)
    drawn = resampled(lambda weight: one(weight)[:, 0] - two(weight)[:, 0], network.units)
    low, high = percentile(drawn) or (None, None)
    return Estimate("auc_difference", network.split, value, low, high, n, f"paired bootstrap; {network.drawn_note()}")
