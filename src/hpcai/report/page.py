"""report.json and curves -> report.html: one file, no script, no request; every text escaped by Jinja2."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from hpcai.metrics.classification import predicted, roc
from hpcai.report import charts, used
from hpcai.report.folder import Folder, Json
from hpcai.report.words import duration, moment, named, number, percent, place, signed, size

HERE = Path(__file__).parent
MATRIX = 20  # classes up to which the matrix is drawn; report.json has it at any size


def render(folder: Folder, report: Json) -> str:
    """The page of `report`."""
    import jinja2
    from markupsafe import Markup

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    lows = [e["low"] for e in report["estimates"] if e["low"] is not None]
    floor = min(0.9, math.floor(10 * min(lows, default=0)) / 10)  # where the drawn intervals begin
    environment.filters |= {"number": number, "percent": percent, "size": size, "place": place, "signed": signed}
    environment.filters["along"] = lambda x: f"{(x - floor) / (1 - floor):.4f}"
    return environment.get_template("report.html.j2").render(
        css=Markup((HERE / "report.css").read_text(encoding="utf-8")),
        report=report,
        facts=_facts(report),
        floor=f"{floor:g}",
        name_of=lambda estimate: named(estimate, report["labels"]),
        figures=[f | {"svg": Markup(f["svg"])} for f in _figures(folder, report)],
        matrices=_matrices(report),
        called=_called(folder, report),
        config_text=folder.config_text,
    )


def _figures(folder: Folder, report: Json) -> list[Json]:
    """Each chart with its title, its key (color, text), its section of the page and perhaps a note."""
    if folder.job == "predict":
        return _histogram(folder)
    return [*_learning(folder), *_roc(folder, report)]


def _learning(folder: Folder) -> list[Json]:
    train = [m for m in folder.metrics if m.get("kind") == "train" and m.get("loss") is not None]
    val = [m for m in folder.metrics if m.get("kind") == "val"]
    if not train and not val:
        return []
    losses = [m for m in val if m.get("loss") is not None]
    key: list[tuple[int | str, str]] = [(0, "training"), (1, "validation")]
    svg = charts.loss_chart(_curve(train, "loss"), _curve(losses, "loss"))
    found: list[Json] = [{"title": "Loss", "section": "learning", "key": key, "svg": svg}]
    scored = [m for m in val if None not in (m.get("auc"), m.get("low"), m.get("high"))]
    if scored:
        best = next((i for i in reversed(range(len(scored))) if scored[i].get("best")), None)
        name = "AUC" if len(folder.labels) == 2 else "macro AUC"
        marks: list[tuple[int | str, str]] = [
            (1, "validation, with its 95 % band"),
            ("ring", "weights that were kept"),
        ]
        value, low, high = (_curve(scored, k) for k in ("auc", "low", "high"))
        svg = charts.score_chart(value, low, high, best, name)
        key = marks[: 1 if best is None else 2]
        found.append({"title": f"Validation {name}", "section": "learning", "key": key, "svg": svg})
    return found


def _curve(lines: list[Json], key: str) -> charts.Curve:
    return np.array([float(m["step"]) for m in lines]), np.array([float(m[key]) for m in lines])


Line = tuple[charts.Curve, tuple[float, float] | None, str]  # curve, operating point, text of the key


def _roc(folder: Folder, report: Json) -> list[Json]:
    two = len(folder.labels) == 2
    lines = (_roc_splits(folder, report) if two else _roc_classes(folder))[: len(charts.SERIES)]
    if not lines:
        return []
    svg = charts.roc_chart([curve for curve, _, _ in lines], [point for _, point, _ in lines])
    key = [(i, text) for i, (_, _, text) in enumerate(lines)]
    first, shown = place(next(iter(folder.labelled))), f"{len(lines)} of {len(folder.labels)} classes"
    note = "A dot is an operating point." if two else f"Each class against the rest, {first} split; {shown}."
    return [{"title": "ROC curve", "section": "roc", "key": key, "svg": svg, "note": note}]


def _roc_splits(folder: Folder, report: Json) -> list[Line]:
    """Two classes: a curve a split, where both occur."""
    value = {(e["split"], e["name"]): e["value"] for e in report["estimates"]}
    return [
        (
            roc(rows.label == 1, rows.scores[:, 1]),
            (1 - value[split, "specificity"], value[split, "sensitivity"]),
            f"{place(split)}, AUC {number(value[split, 'auc'])}",
        )
        for split, rows in folder.labelled.items()
        if value[split, "auc"] is not None
    ]


def _roc_classes(folder: Folder) -> list[Line]:
    """More classes: one curve a class that occurs, of the first split."""
    return [
        (roc(rows.label == k, rows.scores[:, k]), None, folder.labels[k])
        for rows in list(folder.labelled.values())[:1]
        for k in range(rows.classes)
        if 0 < (rows.label == k).sum() < len(rows.label)
    ]


def _histogram(folder: Folder) -> list[Json]:
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


def _matrices(report: Json) -> list[Json]:
    """For each split the rows of its matrix: label, total and (count, share of the row) a class."""
    if len(report["labels"]) > MATRIX:
        return []
    found = []
    for split, matrix in report["confusion"].items():
        rows = [
            {
                "label": label,
                "n": sum(counts),
                "cells": [(c, c / sum(counts) if any(counts) else 0.0) for c in counts],
            }
            for label, counts in zip(report["labels"], matrix, strict=True)
        ]
        found.append({"split": split, "rows": rows})
    return found


def _called(folder: Folder, report: Json) -> list[tuple[str, int, float]]:
    """predict: how many cases each class was given, and their share."""
    if folder.job != "predict" or not folder.rows:
        return []
    count = sum(np.bincount(predicted(r, folder.threshold), minlength=r.classes) for r in folder.rows.values())
    total = int(np.sum(count))
    return [(label, int(n), int(n) / total) for label, n in zip(report["labels"], np.atleast_1d(count))]


def _where(cost: Json) -> str:
    """`meluxina, 2 gpu nodes; at most 4.0 node-h (...)`."""
    slurm = cost["slurm"]
    if not slurm:
        return ""
    price = f"; {slurm['price']['words']}" if slurm["price"] else ""
    if slurm.get("shared_by"):
        price = f" shared by {slurm['shared_by']} runs{price}{' for all of them' * bool(price)}"
    return f"{slurm['cluster']}, {slurm['nodes']} {slurm['partition']} node{'s' * (slurm['nodes'] > 1)}{price}"


def _facts(report: Json) -> list[tuple[str, str]]:
    """What it used: (name, text) pairs; what was not recorded is left out."""
    cost, machine = report["cost"], report["provenance"]["machine"] or {}
    gpus = machine.get("gpus") or []
    found = [
        ("Begun", cost["begun"] is not None and moment(cost["begun"])),
        ("Time", cost["wall_s"] is not None and duration(cost["wall_s"])),
        ("Samples a second", cost["samples_s"] is not None and f"{cost['samples_s']:,.0f}"),
        ("Steps", cost["steps"] is not None and f"{cost['steps']:,} in {cost['epochs']:,} epoch{'s'[: cost['epochs'] != 1]}"),
        ("Ranks", f"{cost['ranks']:,}"),
        ("Restarts", f"{cost['restarts']:,}"),
        ("Cluster", _where(cost)),
        ("Nodes checked", ", ".join(f"{n['node']} {'fit' if n['ok'] else 'unfit'}" for n in cost["preflight"])),
        *(used.facts(report["used"]) if "used" in report else []),
        ("Processor", machine.get("cpu") and f"{machine['cpu']}, {machine.get('cores', '?')} cores"),
        ("Memory", machine.get("mem_gb") and f"{machine['mem_gb']:.0f} GB"),
        ("GPUs", ", ".join(map(str, gpus)) or "none"),
    ]
    return [(name, str(text)) for name, text in found if text]
