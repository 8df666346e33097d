"""The cases called most wrongly: Folder -> report.json's block. By row number and score alone, unless ids may be shown."""

from __future__ import annotations

import numpy as np

from hpcai.metrics.classification import predicted
from hpcai.metrics.rows import Floats, Ints, Rows
from hpcai.report.folder import Folder, Json, may_show

MOST = 12  # of each kind


def mistakes(folder: Folder, *, ids: bool = False) -> Json | None:
    """The most wrong cases of the split that judges, at most MOST of a kind; None where no row of the data is known.

    Two classes: `false_positive` by highest score, `false_negative` by lowest, each with `row`, `score` and the `threshold`
    that called it (None: the higher score). More: `wrong` by the score of the class called, with `label` and `called`.
    `shown`: `rows`, or `ids` where `case` stands beside: of data.shareable, or where `ids` are asked for.
    """
    if not folder.labelled or folder.cases is None or folder.cases.row is None:
        return None
    split, rows = next(iter(folder.labelled.items()))
    row = dict(zip(folder.cases.case, folder.cases.row))
    if any(case not in row for case in rows.case):
        return None
    ids = ids or may_show(folder.config, folder.screening)
    called = predicted(rows, folder.threshold)
    thresholds = _thresholds(folder, rows)

    def entry(k: int) -> Json:
        fact: Json = {"row": row[rows.case[k]], "score": float(rows.scores[k, 1 if rows.classes == 2 else int(called[k])])}
        if rows.classes == 2:
            fact["threshold"] = thresholds[k]
        else:
            fact |= {"label": folder.labels[int(rows.label[k])], "called": folder.labels[int(called[k])]}
        return fact | ({"case": rows.case[k]} if ids else {})

    found = {kind: [entry(k) for k in places] for kind, places in most_wrong(rows, called).items()}
    return {"split": split, "shown": "ids" if ids else "rows", **found}


def most_wrong(rows: Rows, called: Ints) -> dict[str, list[int]]:
    """For each kind of mistake the places of its cases, the most wrong first; equal scores in the order of the rows."""
    if rows.classes != 2:
        score: Floats = rows.scores[np.arange(len(called)), called]
        return {"wrong": _first(called != rows.label, -score)}
    score = rows.scores[:, 1]
    return {
        "false_positive": _first((called == 1) & (rows.label == 0), -score),
        "false_negative": _first((called == 0) & (rows.label == 1), score),
    }


def _first(wrong: np.ndarray[tuple[int], np.dtype[np.bool_]], order: Floats) -> list[int]:
    places = np.flatnonzero(wrong)
    found: list[int] = places[np.argsort(order[places], kind="stable")][:MOST].tolist()
    return found


def _thresholds(folder: Folder, rows: Rows) -> list[float | None]:
    """What each case was called by: one value, or that of its fold."""
    if rows.fold is None:
        return [folder.threshold.value if folder.threshold else None] * len(rows.case)
    own = {run["fold"]: run.get("threshold") for run in folder.split.get("runs", [])}
    return [own.get(int(fold)) for fold in rows.fold]
