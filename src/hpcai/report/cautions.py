"""What a reader must know before trusting the numbers: Folder -> sentences. Counts only, never an id."""

from __future__ import annotations

from collections.abc import Iterator

from hpcai import ledger
from hpcai.report import screened
from hpcai.report.folder import Folder, Json
from hpcai.report.words import number, place


def cautions(folder: Folder, report: Json) -> list[str]:
    """The warnings of a run, each once, the gravest first. `report`: what is measured (report/measured.py)."""
    found = [
        *(screened.cautions(folder.screening) if folder.screening else []),
        *_duplicates(folder),
        *_undefined(report),
        *_shift(report),
        *_shortcut(report),
        *_calibration(report),
        *_threshold(folder),
        *_patients(folder),
        *_batch_norm(folder),
        *_failed(folder),
        *_ledger(folder),
        *(str(text) for text in folder.plan.get("warnings", [])),
        *(str(r.get("message")) for life in folder.lives for r in life if r.get("event") == "warning"),
    ]
    return list(dict.fromkeys(found))


def _duplicates(folder: Folder) -> Iterator[str]:
    for pair, n in (folder.split.get("duplicates") or {}).items():
        if n:
            first, second = map(place, pair.split("/"))
            one = "1 image stands" if n == 1 else f"{n:,} images stand"
            yield f"{one} in both {first} and {second} (same pixels): scores on {second} may be too good."


def _undefined(report: Json) -> Iterator[str]:
    firsts = [e for e in report["estimates"] if e["name"] in ("auc", "macro_auc", "sensitivity", "specificity")]
    for split in dict.fromkeys(e["split"] for e in firsts if e["value"] is None):
        yield f"The {place(split)} split lacks a class: some numbers are not defined there."


def _shift(report: Json) -> Iterator[str]:
    """The tests of report/measured.py: asked once, told here and in their own section."""
    if report["shift"] is not None and report["shift"]["sentence"]:
        yield report["shift"]["sentence"]


def _shortcut(report: Json) -> Iterator[str]:
    """The network is not shown to do better than what is known of a case without its image."""
    found = report["shortcut"]
    if found and found["difference"]["low"] is not None and found["difference"]["low"] <= 0:
        theirs, own = (number(found[name]["value"]) for name in ("estimate", "network"))
        yield (
            f"Without any image, {', '.join(found['columns'])} alone reach an AUC of {theirs} (the network: {own}): it is not "
            "shown to have learnt more than where and of whom the images are."
        )


def _calibration(report: Json) -> Iterator[str]:
    """Scores that are clearly no probabilities: the interval of the slope lies outside 0.8 to 1.25."""
    slopes = [e for e in report["estimates"] if e["name"] == "calibration_slope"]
    for e in slopes[:1]:
        if e["value"] is not None and (e["high"] < 0.8 or e["low"] > 1.25):
            how = "too extreme" if e["value"] < 1 else "too timid"
            yield (
                f"Scores are {how} on the {place(e['split'])} split (calibration slope {e['value']:.2f}, 95 % interval "
                f"{e['low']:.2f} to {e['high']:.2f}): do not read them as probabilities."
            )


def _threshold(folder: Folder) -> Iterator[str]:
    if not folder.labelled or len(folder.labels) != 2 or any(rows.called is not None for rows in folder.labelled.values()):
        return
    if folder.threshold is None:
        yield "No threshold was chosen: a case is called by its higher score."
    elif folder.threshold.value is None:
        yield f"No threshold was chosen ({folder.threshold.rule.partition(':')[0]}): a case is called by its higher score."


def _patients(folder: Folder) -> Iterator[str]:
    if any(rows.patient is None for rows in folder.labelled.values()):
        yield "No patient ids: cases are taken as independent. If patients repeat, the intervals are too narrow."


def _batch_norm(folder: Folder) -> Iterator[str]:
    told = any(str(text).startswith("model.norm=batch") for text in folder.plan.get("warnings", []))
    batch = folder.config.get("model", {}).get("norm") == "batch"
    if folder.job == "train" and folder.ranks > 1 and batch and not told:
        yield (
            f"model.norm=batch on {folder.ranks} ranks: statistics are per rank, so another number of ranks gives "
            "another model. model.norm=group does not depend on it."
        )


def _failed(folder: Folder) -> Iterator[str]:
    if folder.failed:
        one = "1 case has no score: it" if folder.failed == 1 else f"{folder.failed:,} cases have no score: they"
        yield f"{one} could not be read (failed.rank*.jsonl)."


def _ledger(folder: Folder) -> Iterator[str]:
    if folder.ledger and (told := ledger.caution(folder.ledger)):
        yield told
