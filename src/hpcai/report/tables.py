"""The tables of a page, ready to draw: report.json -> rows of texts and numbers. Nothing here measures."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from hpcai.metrics.classification import predicted
from hpcai.report.folder import Folder, Json
from hpcai.report.words import SCALES, decimal, figure, named, percent

MATRIX = 20  # classes up to which the matrix is drawn; report.json has it at any size
FEW = 4  # classes up to which their counts stand beside the splits
SECTIONS = {  # which section of the page shows which measures; what stands nowhere here comes with the operating point
    "discrimination": ("auc", "macro_auc", "average_precision", "macro_average_precision"),
    "calibration": ("brier", "calibration_intercept", "calibration_slope", "ece"),
}
NOT_DRAWN = SCALES | {"brier", "ece"}  # no share of cases: a line that ends at 1 says nothing of them
LETTERS = "abcdefghijklmnopqrstuvwxyz"


def measure_of(estimate: Json) -> str:
    """The name without its class: `sensitivity[1]` is a sensitivity."""
    return str(estimate["name"]).partition("[")[0]


def numbers(report: Json, section: str) -> Json | None:
    """The estimates of a section: a row a measure, cells a split, how each was made as a footnote; None if there are none."""
    known = {name: home for home, names in SECTIONS.items() for name in names}
    mine = [e for e in report["estimates"] if known.get(measure_of(e), "operating") == section]
    if not mine:
        return None
    splits = list(dict.fromkeys(e["split"] for e in mine))
    methods = list(dict.fromkeys(e["method"] for e in mine))
    notes = {method: LETTERS[i % 26] * (1 + i // 26) for i, method in enumerate(methods)}
    by_name: dict[str, Json] = {}
    for e in mine:
        name = str(e["name"])
        row = by_name.setdefault(name, {"name": name, "title": named(e, report["labels"]), "cells": {}})
        row["drawn"] = measure_of(e) not in NOT_DRAWN
        row["cells"][e["split"]] = _cell(e, notes[e["method"]])
    drawn = [e for e in mine if e["low"] is not None and measure_of(e) not in NOT_DRAWN and e["split"] == splits[0]]
    floor = _floor([e["low"] for e in drawn]) if drawn else None  # where the drawn intervals begin
    return {"splits": splits, "rows": list(by_name.values()), "notes": [(notes[m], m) for m in methods], "floor": floor}


def _floor(lows: list[float]) -> float:
    """The tenth below the lowest of them, at most 0.9."""
    return max(0.0, min(0.9, math.floor(10 * min(lows, default=0)) / 10))


def _cell(e: Json, note: str) -> Json:
    ends = "–" if e["low"] is None else f"{figure(e['name'], e['low'])} to {figure(e['name'], e['high'])}"
    return {**e, "text": figure(e["name"], e["value"]), "interval": ends, "note": note}


def matrices(report: Json) -> list[Json]:
    """For each split the rows of its matrix: label, total and (count, share of the row) a class."""
    if len(report["labels"]) > MATRIX:
        return []
    found = []
    for split, matrix in report["confusion"].items():
        rows = [
            {"label": label, "n": sum(counts), "cells": [(c, c / sum(counts) if any(counts) else 0.0) for c in counts]}
            for label, counts in zip(report["labels"], matrix, strict=True)
        ]
        found.append({"split": split, "rows": rows})
    return found


def shares(report: Json) -> list[tuple[str, int, int]]:
    """Two classes: for each judged split its positive cases and all of them."""
    if len(report["labels"]) != 2:
        return []
    return [(split, sum(matrix[1]), sum(map(sum, matrix))) for split, matrix in report["confusion"].items()]


def called(folder: Folder, report: Json) -> list[tuple[str, int, float]]:
    """predict: how many cases each class was given, and their share."""
    if folder.job != "predict" or not folder.rows:
        return []
    count = sum(np.bincount(predicted(r, folder.threshold), minlength=r.classes) for r in folder.rows.values())
    total = int(np.sum(count))
    return [(label, int(n), int(n) / total) for label, n in zip(report["labels"], np.atleast_1d(count))]


def characteristics(report: Json) -> Json | None:
    """A block of rows a column of the data, a cell a split: (title, [(row, [text a split])]); None if nothing is known."""
    columns = report["characteristics"]["columns"] or _classes(report)
    splits = list(dict.fromkeys(split for column in columns for split in column["splits"]))
    if not splits:
        return None
    total = {split: max(c["splits"][split]["n"] for c in columns if split in c["splits"]) for split in splits}
    blocks = []
    for column in columns:
        told = [column["splits"].get(split, {"n": 0, "missing": 0}) for split in splits]
        rows = _numbers(told) if column["kind"] == "number" else _levels(told)
        if any(each.get("missing") for each in told):
            rows.append(("not known", [_count(each.get("missing", 0), each["n"]) for each in told]))
        if any(each.get("hidden") for each in told):
            rows.append(
                ("others, under 10 each", [f"{each['hidden']:,} kinds" if each.get("hidden") else "–" for each in told])
            )
        blocks.append((column["name"], rows))
    return {"splits": splits, "total": total, "blocks": blocks}


def _classes(report: Json) -> list[Json]:
    """Where no more is known of cases: how many each of many classes has. A few stand beside the splits already."""
    splits = {s: {"n": told["cases"], "missing": 0, "levels": told["classes"]} for s, told in report["splits"].items()}
    many = any(len(told["levels"]) > FEW for told in splits.values())
    return [{"name": "label", "kind": "text", "splits": splits}] if many else []


def _levels(told: list[Json]) -> list[tuple[str, list[str]]]:
    names = dict.fromkeys(name for each in told for name in each.get("levels", {}))
    return [(name, [_count(each.get("levels", {}).get(name, 0), each["n"]) for each in told]) for name in names]


def _count(count: int | None, n: int) -> str:
    """`12 (4.0 %)`; a group under 10 is not shown (its count is null)."""
    if count is None:
        return "under 10"
    return f"{count:,} ({percent(count / n)})" if n else f"{count:,}"


def _numbers(told: list[Json]) -> list[tuple[str, list[str]]]:
    def text(each: Json, *keys: str) -> str:
        values = [each.get(key) for key in keys]
        return "–" if None in values else TEXTS[keys].format(*(decimal(x) for x in values))

    return [
        ("mean (standard deviation)", [text(each, "mean", "sd") for each in told]),
        ("median (lowest to highest)", [text(each, "median", "low", "high") for each in told]),
    ]


TEXTS = {("mean", "sd"): "{} ({})", ("median", "low", "high"): "{} ({} to {})"}


def subgroups(report: Json) -> Json | None:
    """The measures that are shown of each group, and where the drawn intervals begin; None without groups."""
    told = [e for block in report["subgroups"] for group in block["groups"] for e in group["estimates"]]
    if not report["subgroups"]:
        return None
    wanted = ("auc", "macro_auc", "sensitivity", "specificity", "accuracy")
    names = [name for name in wanted if any(e["name"] == name for e in told)][:3]
    lows = [e["low"] for e in told if names and e["name"] == names[0] and e["low"] is not None]
    return {"names": names, "floor": _floor(lows)}


def whisker(e: Json | None, floor: float) -> str:
    """The style that draws an interval on a line from `floor` to 1; nothing where there is none."""
    if e is None or e["value"] is None or e["low"] is None:
        return ""
    low, high, value = (min(1.0, max(0.0, (x - floor) / (1 - floor))) for x in (e["low"], e["high"], e["value"]))
    return f"--low: {low:.4f}; --high: {high:.4f}; --value: {value:.4f}"


def interval(e: Json | None) -> str:
    """`0.980 [0.967 to 0.989]`; a dash where it is not defined."""
    if e is None or e["value"] is None:
        return "–"
    ends = "" if e["low"] is None else f" [{figure(e['name'], e['low'])} to {figure(e['name'], e['high'])}]"
    return f"{figure(e['name'], e['value'])}{ends}"


def one(estimates: list[Json], name: str) -> Any:
    """The estimate of this name, or None."""
    return next((e for e in estimates if e["name"] == name), None)
