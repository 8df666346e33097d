"""The numbers of a report: Folder -> the blocks of report.json that are measured, from rows and cases alone."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np

from hpcai.metrics.calibration import bins, curve
from hpcai.metrics.classification import estimates
from hpcai.metrics.sample import sample_of
from hpcai.metrics.shift import Shift, Tested, shift
from hpcai.metrics.shortcut import shortcut
from hpcai.metrics.subgroups import characteristics, subgroups
from hpcai.report.folder import Folder
from hpcai.report.words import percent

Json = dict[str, Any]


def measured(folder: Folder) -> Json:
    """`estimates`, `calibration`, `subgroups`, `shortcut`, `shift`, `characteristics`: see report/schema.json."""
    prevalence = (folder.config.get("report") or {}).get("prevalence")
    found = [e for split, rows in folder.labelled.items() for e in estimates(rows, split, folder.threshold, prevalence)]
    split, rows = next(iter(folder.labelled.items()), ("", None))
    known = folder.cases is not None and rows is not None and set(rows.case) <= set(folder.cases.case)
    return {
        "estimates": [asdict(e) for e in found],
        "calibration": _calibration(folder),
        "subgroups": subgroups(rows, folder.cases, split, folder.threshold) if known and rows and folder.cases else [],
        "shortcut": _shortcut(folder, split) if known else None,
        "shift": _shift(folder),
        "characteristics": {"columns": [] if folder.cases is None else characteristics(folder.cases, folder.labels)},
    }


def _calibration(folder: Folder) -> Json:
    found = {}
    for split, rows in folder.labelled.items():
        if rows.classes == 2 and len(np.unique(rows.label)) == 2:
            sample = sample_of(rows, rows.label, split)
            smooth = curve(sample.label, sample.score, sample.units) or {k: [] for k in ("score", "rate", "low", "high")}
            found[split] = {"bins": bins(sample.label, sample.score), "curve": smooth}
    return found


def _shortcut(folder: Folder, split: str) -> Json | None:
    assert folder.cases is not None
    found = shortcut(folder.labelled[split], folder.cases, split)
    if found is None:
        return None
    note = "a logistic model on these columns, fitted on the training cases"
    told = asdict(found) | {"note": note}
    return told | {"difference": {key: told["difference"][key] for key in ("value", "low", "high", "method")}}


def _shift(folder: Folder) -> Json | None:
    """Validation against test; None without both, and of newborns, whose laboratories `screening.fitness` compares."""
    first, second = folder.labelled.get("val"), folder.labelled.get("test")
    if first is None or second is None or folder.screening:
        return None
    found = shift(first, second)
    score = min(found.score, key=lambda t: t.p)
    return {
        "first": "val",
        "second": "test",
        "prevalence": [_shares(t, folder) for t in found.prevalence],
        "score": {"statistic": score.statistic, "p": min(1.0, score.p * len(found.score)), "method": score.method},
        "within": [{"class": folder.labels[t.k], "p": t.p, "method": t.method} for t in found.within],
        "label_shift": {"rejected": found.label_shift_rejected, "p": found.label_shift_p},
        "verdict": found.verdict,
        "sentence": sentence(found, folder),
    }


def _shares(t: Tested, folder: Folder) -> Json:
    (k1, n1), (k2, n2) = t.first or (0, 1), t.second or (0, 1)
    return {"class": folder.labels[t.k], "first": k1 / n1, "second": k2 / n2, "p": t.p, "method": t.method}


def sentence(found: Shift, folder: Folder) -> str:
    """What a reader must know of the two splits; empty where no test tells them apart."""
    if found.verdict == "same":
        return ""
    words = []
    if found.prevalence_differs:
        t = min(found.prevalence, key=lambda t: t.p)
        (k1, n1), (k2, n2) = t.first or (0, 1), t.second or (0, 1)
        p = min(1.0, t.p * len(found.prevalence))
        words.append(
            f"{folder.labels[t.k]} is {k1:,} of {n1:,} cases ({percent(k1 / n1)}) there and {k2:,} of {n2:,} "
            f"({percent(k2 / n2)}) in the test ({t.method}, p {_p(p)})"
        )
    if found.label_shift_rejected:
        too = " too" if words else ""
        words.append(f"scores within a class differ{too} (Kolmogorov-Smirnov, p {_p(found.label_shift_p)})")
        end = "A correction for prevalence alone would be wrong, and a threshold chosen on validation may be off."
    else:
        end = "A threshold chosen on validation may be off."
    if not words:
        words.append(f"scores differ (p {_p(min(t.p for t in found.score))})")
    return f"Validation is not like the test: {'; '.join(words)}. {end}"


def _p(p: float) -> str:
    return "< 0.0001" if p < 0.0001 else f"= {p:.4f}"
