"""Folder -> report.json: what was asked, the answer, its numbers, what they cost and where they come from."""

from __future__ import annotations

import hashlib
import math
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from statistics import fmean, median, stdev

import numpy as np

from hpcai import ledger
from hpcai.metrics.classification import confusion, estimates
from hpcai.report import screened
from hpcai.report.cautions import cautions
from hpcai.report.folder import Folder, Json, may_show
from hpcai.report.measured import measured
from hpcai.report.mistakes import mistakes
from hpcai.report.used import used
from hpcai.report.words import named, number, place, signed
from hpcai.rundir import REPORT_VERSION


def summarize(folder: Folder) -> Json:
    """report.json, with every number in full. Its shape: schema.json; its keys in words: docs/run-folder.md."""
    blocks = measured(folder)
    splits = _splits(folder)
    report: Json = {
        "version": REPORT_VERSION,
        "run_id": folder.run_id,
        "name": folder.config.get("name", folder.run_id),
        "job": folder.job,
        "question": _question(folder),
        "answer": "",
        **blocks,
        "prevalence": (folder.config.get("report") or {}).get("prevalence"),
        "threshold": asdict(folder.threshold) if folder.threshold else None,
        "labels": folder.labels,
        "confusion": {s: confusion(rows, folder.threshold).tolist() for s, rows in folder.labelled.items()},
        "splits": splits,
        "flow": _flow(folder, splits),
        "duplicates": folder.split.get("duplicates", {}),
        "failed": folder.failed,
        "warnings": cautions(folder, blocks),
        "study": _study(folder),
        "cost": _cost(folder),
        "provenance": _provenance(folder),
    }
    report |= {"ledger": folder.ledger | {"sentence": ledger.sentence(folder.ledger)}} if folder.ledger else {}
    report |= {"mistakes": found} if (found := mistakes(folder)) else {}
    report |= {"used": used(folder)} if folder.use else {}
    report |= {"together": folder.together} if folder.together else {}
    report |= {"screening": folder.screening} if folder.screening else {}
    report |= {"fit": folder.fit} if folder.fit else {}
    folds = _folds(folder) if folder.job == "gather" else []
    report |= {"folds": folds, "spread": _spread(folds)} if folder.job == "gather" else {}
    return report | {"answer": _answer(folder, report)}


def _study(folder: Folder) -> dict[str, str]:
    """What its authors state of the study: the keys of the group `study` that hold a text, in their order."""
    return {str(key): str(text) for key, text in (folder.config.get("study") or {}).items() if text}


def _flow(folder: Folder, splits: Json) -> Json:
    """How many cases were found, what was left out of them and why, and how many of each split have a score."""
    before = (folder.config.get("data") or {}).get("excluded") or {}  # as `hpcai new` counted
    excluded: list[Json] = [{"why": str(why), "n": int(n)} for why, n in before.items() if n]
    excluded += [{"why": "could not be read", "n": folder.failed}] if folder.failed else []
    kept = sum(split["cases"] for split in splits.values())
    scored = {split: len(rows.case) for split, rows in folder.rows.items()}
    by = str(folder.split["by"]) if "by" in folder.split else None
    return {"found": kept + sum(part["n"] for part in excluded), "excluded": excluded, "by": by, "scored": scored}


def _question(folder: Folder) -> str:
    if stated := _study(folder).get("question"):
        return stated
    model, data = folder.config.get("model", {}), folder.config.get("data", {})
    what, labels = data.get("name") or "the given data", folder.labels
    apart = f"{labels[1]} from {labels[0]}" if len(labels) == 2 else f"{len(labels)} classes apart"
    if folder.job == "fit" and (estimator := (folder.config.get("estimator") or {}).get("name")):
        model = {"name": f"{'an' if estimator[0] in 'aeiou' else 'a'} {estimator} estimator"}
    named = folder.config.get("from_run") or "?"
    if folder.screening:
        return screened.question(folder.screening, what, Path(str(named)).name)
    origin = f"the mean of {len(named)} runs" if isinstance(named, list) else Path(str(named)).name
    if folder.job == "gather":
        folds = len(folder.split.get("runs", []))
        return f"How well does {model.get('name', 'the model')}, cross-validated in {folds} folds of {what}, tell {apart}?"
    if folder.job == "evaluate":
        return f"How well does {origin} tell {apart} on {what}?"
    if folder.job == "predict":
        return f"Which class does {origin} give to each case of {what}?"
    return f"Can {model.get('name', 'the model')}, trained on {what}, tell {apart}?"


def _answer(folder: Folder, report: Json) -> str:
    if folder.screening:
        return screened.answer(folder.screening)
    if folder.job == "predict":
        scored = sum(len(rows.case) for rows in folder.rows.values())
        failed = f", {folder.failed:,} could not be read" if folder.failed else ""
        return f"{scored:,} cases scored{failed}.{_gained(report)}"
    if not report["estimates"]:
        return "No scores: the run did not come so far."
    first = report["estimates"][0]
    name = named(first, folder.labels)
    if first["value"] is None:
        return f"{name} on {first['n']:,} {place(first['split'])} cases is {first['method']}."
    interval = "" if first["low"] is None else f" (95 % interval {number(first['low'])} to {number(first['high'])})"
    return f"{name} {number(first['value'])}{interval} on {first['n']:,} {place(first['split'])} cases.{_gained(report)}"


def _gained(report: Json) -> str:
    """What an ensemble gained over the mean of its members, as a sentence after another."""
    gain = next(iter(report.get("together", {}).get("gain", [])), None)
    if gain is None:
        return ""
    interval = "" if gain["low"] is None else f" (95 % interval {signed(gain['low'])} to {signed(gain['high'])})"
    cases = f"{gain['n']:,} {place(gain['split'])} cases"
    return f" Against one run the mean gained {signed(gain['value'])} in AUC{interval}, on {cases}."


def _folds(folder: Folder) -> list[Json]:
    """Each fold of a cross-validation: its run, threshold and estimates on the cases that it held out."""
    found = []
    for run in folder.split.get("runs", []):
        for rows in folder.labelled.values():
            here = None if rows.fold is None else rows.fold == run["fold"]
            if here is not None and here.any():
                found.append(run | {"n": int(here.sum()), "estimates": [
                    asdict(e) for e in estimates(rows.where(here), "oof", folder.threshold)
                ]})  # fmt: skip
    return found


def _spread(folds: list[Json]) -> list[Json]:
    """Of each measure the mean and standard deviation over the folds where it is defined, and their number."""
    found = []
    for k, first in enumerate(folds[0]["estimates"] if folds else []):
        values = [v for fold in folds if (v := fold["estimates"][k]["value"]) is not None]
        mean, sd = (fmean(values) if values else None), (stdev(values) if len(values) > 1 else None)
        found.append({"name": first["name"], "mean": mean, "sd": sd, "folds": len(values)})
    return found


def _splits(folder: Folder) -> Json:
    """For each split its cases, patients and cases a class: as split.json says, else as the rows do."""
    counts, labels = folder.split.get("counts"), folder.labels
    if counts:
        names = {str(k): label for k, label in enumerate(labels)} | {label: label for label in labels}
        classes, patients = folder.split.get("classes") or {}, folder.split.get("patients") or {}
        named_classes = {s: {names.get(k, k): n for k, n in each.items()} for s, each in classes.items()}
        return {s: _split(n, patients.get(s), named_classes.get(s, {})) for s, n in counts.items()}
    found = {}
    for split, rows in folder.rows.items():
        known = np.bincount(rows.label[rows.label >= 0], minlength=rows.classes)
        classes = dict(zip(labels, map(int, known))) if known.any() else {}
        patients = None if rows.patient is None else len(set(rows.patient))
        found[split] = _split(len(rows.case), patients, classes)
    return found


def _split(cases: int, patients: int | None, classes: Json) -> Json:
    return {"cases": cases, "patients": patients, "classes": classes}


def _cost(folder: Folder) -> Json:
    """Time that ranks ran, over all lives. The `end` record does not count: it comes after the report."""
    begins = [life[0]["time"] for life in folder.lives if "time" in life[0]]
    wall_s = 0.0
    for begin, after in pairwise([*begins, math.inf]):
        seen = [r.get("time", begin) for life in folder.lives for r in life if r.get("event") != "end"]
        seen += [line.get("time", begin) for line in folder.metrics]
        wall_s += max([t for t in seen if begin <= t < after], default=begin) - begin
    speeds = [line["samples_s"] for line in folder.metrics if line.get("samples_s") is not None]
    return {
        "begun": begins[0] if begins else None,
        "wall_s": round(wall_s, 3) if wall_s else None,
        "samples_s": median(speeds) if speeds else None,
        "steps": max((line.get("step", 0) for line in folder.metrics), default=None),
        "epochs": max((line.get("epoch", 0) for line in folder.metrics), default=None),
        "ranks": folder.ranks,
        "restarts": max(0, len(folder.lives) - 1),
        "slurm": _slurm(folder),
        "preflight": [{"node": told.get("node"), "ok": told.get("ok")} for told in folder.preflight],
    }


def _slurm(folder: Folder) -> Json | None:
    """Where it ran and what that can cost at most; None without a scheduler. `shared_by`: so many runs of a sweep."""
    asked = folder.plan.get("slurm")
    if not asked:
        return None
    nodes = (folder.plan.get("resources") or {}).get("nodes")
    return {
        "cluster": folder.plan.get("cluster"),
        "partition": asked.get("partition"),
        "nodes": nodes,
        "price": asked.get("price"),
    } | ({"shared_by": beside} if (beside := asked.get("per_node", 1)) > 1 else {})


def _machine(folder: Folder) -> Json | None:
    """The machine that it ran on: the submitter's, unless rank 0 has told of another."""
    told = [r["machine"] for life in folder.lives for r in life if r.get("event") == "begin" and "machine" in r]
    return told[-1] if told else folder.environment.get("machine")


def _provenance(folder: Folder) -> Json:
    environment = folder.environment
    return {
        "seed": folder.config.get("seed"),
        "from_run": folder.config.get("from_run"),
        "data": {key: folder.data.get(key) for key in ("name", "source", "licence")} | {"files": _files(folder)},
        "code_sha256": environment.get("code_sha256"),
        "git": environment.get("git"),
        "python": environment.get("python"),
        "hpcai": environment.get("hpcai"),
        "machine": _machine(folder),
        "packages": environment.get("packages", []),
    }


def _files(folder: Folder) -> list[Json]:
    """The file that `data.path` names, then all others as one line: the name of a file or folder can name a patient."""
    stated, files = folder.config.get("data", {}), folder.data.get("files", [])
    first = [] if stated.get("reader") == "images" else files[:1]
    named_file = [f | {"path": _told(Path(f["path"]), may_show(folder.config, folder.screening))} for f in first]
    others = files[len(named_file) :]
    if not others:
        return named_file
    digest = hashlib.sha256("".join(sorted(f["sha256"] for f in others)).encode()).hexdigest()
    total = sum(f["bytes"] for f in others)
    return [*named_file, {"path": f"{len(others):,} images", "bytes": total, "sha256": digest}]


def _told(path: Path, public: bool) -> str:
    """A file's name where anybody may see it, else its kind."""
    return path.name if public else f"data.path ({path.suffix})" if path.suffix in (".npz", ".csv") else "data.path"
