"""The charts of a page, each with its title, its key and the section where it stands: Folder, report.json -> dicts."""

from __future__ import annotations

from typing import Any

import numpy as np

from hpcai.metrics.classification import roc
from hpcai.metrics.rows import Bools, Floats
from hpcai.report import charts, screened
from hpcai.report.folder import Folder, Json
from hpcai.report.words import number, place

Mark = tuple[int | str, str]  # number of a series, or `ring`, `dash`, `dot`; its text
Point = tuple[float, float] | None
Line = tuple[charts.Curve, Point, str]  # curve, operating point, text of the key


def figures(folder: Folder, report: Json) -> list[Json]:
    """Each chart: `title`, `section`, `key` of (mark, text), `svg`, perhaps a `note`."""
    newborns = screened.figures(report["screening"]) if "screening" in report else []
    if folder.job == "predict":
        return [*newborns, *_histograms(folder)]
    return [
        *newborns,
        *_roc(folder, report),
        *_precision_recall(folder, report),
        *_calibration(report),
        *_learning(folder),
    ]


def precision_recall(label: Bools, score: Floats) -> charts.Curve:
    """Recall and precision at each distinct score (n,), from the highest down; recall rises. A positive case must occur.

    No point is drawn at recall 0: the precision of no call is not defined.
    """
    level, inverse = np.unique(score, return_inverse=True)
    hits = np.bincount(inverse[label], minlength=len(level))[::-1].cumsum()
    calls = np.bincount(inverse, minlength=len(level))[::-1].cumsum()
    return hits / hits[-1], hits / calls


def _values(report: Json) -> dict[tuple[str, str], float | None]:
    return {(e["split"], e["name"]): e["value"] for e in report["estimates"]}


def _lines(folder: Folder, report: Json, curve: Any, point: Any, measure: str) -> tuple[list[Line], str]:
    """Two classes: a line a split; more: a line a class, of the first split. And what stands below the chart."""
    if len(folder.labels) == 2:
        value = _values(report)
        shown = {s: rows for s, rows in folder.labelled.items() if 0 < (rows.label == 1).sum() < len(rows.label)}
        found: list[Line] = []
        for split, rows in shown.items():
            told = value.get((split, measure))
            text = place(split) if told is None else f"{place(split)}, {number(told)}"
            found.append((curve(rows.label == 1, rows.scores[:, 1]), point(split, value), text))
        return found[: len(charts.SERIES)], "A dot is the operating point."
    lines: list[Line] = [
        (curve(rows.label == k, rows.scores[:, k]), None, folder.labels[k])
        for rows in list(folder.labelled.values())[:1]
        for k in range(rows.classes)
        if 0 < (rows.label == k).sum() < len(rows.label)
    ]
    lines = lines[: len(charts.SERIES)]
    split = place(next(iter(folder.labelled), ""))
    return lines, f"Each class against the rest, {split} split; {len(lines)} of {len(folder.labels)} classes."


def _roc(folder: Folder, report: Json) -> list[Json]:
    def point(split: str, value: dict[tuple[str, str], float | None]) -> Point:
        sensitivity, specificity = value.get((split, "sensitivity")), value.get((split, "specificity"))
        return None if sensitivity is None or specificity is None else (1 - specificity, sensitivity)

    lines, note = _lines(folder, report, roc, point, "auc")
    if not lines:
        return []
    svg = charts.roc_chart([curve for curve, _, _ in lines], [dot for _, dot, _ in lines])
    note = f"Key: area under the curve. {note}" if len(folder.labels) == 2 else note
    return [{"title": "ROC curve", "section": "discrimination", "key": _key(lines), "svg": svg, "note": note}]


def _precision_recall(folder: Folder, report: Json) -> list[Json]:
    def point(split: str, value: dict[tuple[str, str], float | None]) -> Point:
        """The operating point, by counts: the precision of no call is not defined."""
        (_, wrong), (_, right) = report["confusion"][split]
        sensitivity = value.get((split, "sensitivity"))
        return None if sensitivity is None or right + wrong == 0 else (sensitivity, right / (right + wrong))

    lines, note = _lines(folder, report, precision_recall, point, "average_precision")
    if not lines:
        return []
    share = None
    if len(folder.labels) == 2:
        split, rows = next(iter(folder.labelled.items()))
        share = float((rows.label == 1).mean())
        told = "Key: average precision. " if (split, "average_precision") in _values(report) else ""
        note = f"{told}Dotted: {number(share)}, the share of positive {place(split)} cases."
    svg = charts.precision_recall_chart([curve for curve, _, _ in lines], [dot for _, dot, _ in lines], share)
    return [{"title": "Precision and recall", "section": "discrimination", "key": _key(lines), "svg": svg, "note": note}]


def _key(lines: list[Line]) -> list[Mark]:
    return [(i, text) for i, (_, _, text) in enumerate(lines)]


def _calibration(report: Json) -> list[Json]:
    """A chart a split, at most two."""
    found: list[Json] = []
    for series, (split, told) in enumerate(list(report["calibration"].items())[:2]):
        ends = ("mean", "rate", "rate_low", "rate_high")
        bins = {k: np.array([b[k] for b in told["bins"]], float) for k in ends}
        curve = {k: np.array(told["curve"][k], float) for k in ("score", "rate", "low", "high")}
        key: list[Mark] = [("dot", "bins of cases, 95 % interval"), (series, "smooth, with its 95 % band")]
        svg = charts.calibration_chart(bins, curve, series)
        found.append({"title": place(split).capitalize(), "section": "calibration", "key": key, "svg": svg})
    return found


def _learning(folder: Folder) -> list[Json]:
    train = [m for m in folder.metrics if m.get("kind") == "train" and m.get("loss") is not None]
    val = [m for m in folder.metrics if m.get("kind") == "val"]
    if not train and not val:
        return []
    losses = [m for m in val if m.get("loss") is not None]
    key: list[Mark] = [(0, "training"), (1, "validation")]
    svg = charts.loss_chart(_curve(train, "loss"), _curve(losses, "loss"))
    found: list[Json] = [{"title": "Loss", "section": "learning", "key": key, "svg": svg}]
    scored = [m for m in val if None not in (m.get("auc"), m.get("low"), m.get("high"))]
    if scored:
        best = next((i for i in reversed(range(len(scored))) if scored[i].get("best")), None)
        name = "AUC" if len(folder.labels) == 2 else "macro AUC"
        marks: list[Mark] = [(1, "validation, with its 95 % band"), ("ring", "weights that were kept")]
        value, low, high = (_curve(scored, k) for k in ("auc", "low", "high"))
        svg = charts.score_chart(value, low, high, best, name)
        key = marks[: 1 if best is None else 2]
        found.append({"title": f"Validation {name}", "section": "learning", "key": key, "svg": svg})
    return found


def _curve(lines: list[Json], key: str) -> charts.Curve:
    return np.array([float(m["step"]) for m in lines]), np.array([float(m[key]) for m in lines])


def _histograms(folder: Folder) -> list[Json]:
    found = []
    for rows in folder.rows.values():
        two = rows.classes == 2
        score = rows.scores[:, 1] if two else rows.scores.max(1)
        threshold = folder.threshold.value if folder.threshold and two else None
        svg = charts.histogram_chart(score, threshold, "score" if two else "highest score")
        title = f"Score of {folder.labels[1]}" if two else "Highest score of a case"
        key = [("dash", f"threshold {number(threshold)}")] if threshold is not None else []
        found.append({"title": title, "section": "scores", "key": key, "svg": svg})
    return found
