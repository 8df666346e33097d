"""What a reader must know before trusting the numbers: Folder -> sentences. Counts only, never an id."""

from __future__ import annotations

from collections.abc import Iterator

from hpcai.metrics.estimate import Estimate
from hpcai.metrics.intervals import two_proportions
from hpcai.report.folder import Folder
from hpcai.report.words import percent, place

SIGNIFICANT = 0.05  # chance of a false alarm about prevalence, over all classes together (Bonferroni)


def cautions(folder: Folder, estimates: list[Estimate]) -> list[str]:
    """The warnings of a run, each once, the gravest first."""
    found = [
        *_duplicates(folder),
        *_undefined(estimates),
        *_prevalence(folder),
        *_threshold(folder),
        *_patients(folder),
        *_batch_norm(folder),
        *_failed(folder),
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


def _undefined(estimates: list[Estimate]) -> Iterator[str]:
    for split in dict.fromkeys(e.split for e in estimates if e.value is None):
        yield f"The {place(split)} split lacks a class: some numbers are not defined there."


def _prevalence(folder: Folder) -> Iterator[str]:
    """Validation and test hold a class in different shares: the two-proportion z test."""
    val, test = folder.labelled.get("val"), folder.labelled.get("test")
    if val is None or test is None:
        return
    classes = [1] if val.classes == 2 else range(val.classes)
    for k in classes:
        (k1, n1), (k2, n2) = ((int((rows.label == k).sum()), len(rows.case)) for rows in (val, test))
        p = two_proportions(k1, n1, k2, n2)
        if p * len(classes) < SIGNIFICANT:
            yield (
                f"Validation is not like the test: {folder.labels[k]} is {k1:,} of {n1:,} cases ({percent(k1 / n1)}) "
                f"there and {k2:,} of {n2:,} ({percent(k2 / n2)}) in the test (two-proportion z test, p {_p(p)}). "
                "A threshold chosen on validation may be off."
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


def _p(p: float) -> str:
    return "< 0.0001" if p < 0.0001 else f"= {p:.4f}"
