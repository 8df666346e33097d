"""One JSON record a newborn.   batch, decisions, rules, scores, multiples -> lines, the same bytes wherever they are made

A record holds what a person needs to understand a decision and to find it again: the decision of each disease and why, what
each rule set said, the model's probability, the multiples of the median, flags, the digests of what decided. Nothing of it is
final: `status` is `proposed` (or `shadow`) until somebody releases it. No text of the table is written out raw (safe_text).

    {"sample", "row", "laboratory", "plate", "month",          who; the row as a person counts it
     "line", "decision", "by_day", "status",                   the most urgent word; the day of life by which it is wanted
     "own",                                                    shadow alone: the laboratory's own decision
     "diseases": {name: {"decision", "reason", "rules": {set: true | false | null}, "probability", "called", "uncertain",
                         "softened"}},                         null: cannot be said, was not heard
     "multiples": {channel: of the median | null}, "flags": [...], "digests": {...}, "simulated"}
"""

from __future__ import annotations

import gc
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from hpcai.screening.batch import Batch, Floats
from hpcai.screening.cells import safe_text
from hpcai.screening.decisions import NAMES, NOT_ASSESSABLE, REASONS, Codes, Decisions, line

if TYPE_CHECKING:
    from hpcai.book.shelf import Books
    from hpcai.screening.model import Scores

DIGITS = 4  # significant ones of probabilities and multiples: more would show a precision that no assay has
UNTRIED = "simulated newborns alone taught the model"
Json = dict[str, Any]


@dataclass(frozen=True)
class Judged:
    """A batch and all that was said of it.

    Attributes:
        rules: what each rule set says, (n, D): 1, 0, -1 cannot be said, -2 no rule.
        scores: of the model; None: there is none.
        multiple_NC: multiples of the median; NaN where missing.
        holds_NS: which rules of the specimen hold.
        notes: more flags of a row, by its laboratory and month: what its population is like.
        plate_notes: the same by laboratory and plate: why it is not good.
    """

    batch: Batch
    decisions: Decisions
    rules: Mapping[str, Codes]
    scores: Scores | None
    multiple_NC: Floats
    holds_NS: Any
    notes: Mapping[tuple[str, str], str] = field(default_factory=dict)
    plate_notes: Mapping[tuple[str, str], str] = field(default_factory=dict)


@dataclass(frozen=True)
class Recorder:
    """Writes records of one cohort.

    Attributes:
        shadow: the laboratory's own decisions stand beside, and nothing can be released.
        untried: simulated newborns alone taught the model, and these are real.
    """

    books: Books
    digests: Mapping[str, str]
    simulated: bool
    shadow: bool = False
    untried: bool = False

    def lines(self, judged: Judged) -> bytes:
        """A batch as JSON lines, in its order."""
        collects = gc.isenabled()
        gc.disable()  # records hold no cycles, and to look for some among 100,000 dicts again and again takes half of the time
        try:
            return self._lines(judged)
        finally:
            if collects:
                gc.enable()

    def _lines(self, judged: Judged) -> bytes:
        dump = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"), check_circular=False).encode
        return "".join(f"{dump(record)}\n" for record in self.records(judged)).encode(errors="backslashreplace")

    def records(self, judged: Judged) -> list[Json]:
        """A batch as records."""
        batch, made, panel = judged.batch, judged.decisions, self.books.panel
        names, channels = panel.names, self.books.dictionary.channels
        days = [panel.critical_day if d.time_critical else panel.other_day for d in panel.diseases]
        multiples, flags, diseases = _listed(judged.multiple_NC), self._flags(judged), self._diseases(judged)
        worst, codes = made.worst_N.tolist(), made.code_ND.tolist()
        records = []
        for i in range(len(batch)):
            record: Json = {"sample": _text(batch.sample[i]), "row": int(batch.row[i])}
            record |= {name: _text(batch.text[name][i]) for name in ("laboratory", "plate", "month") if name in batch.text}
            wanted = [day for day, code in zip(days, codes[i], strict=True) if code > NOT_ASSESSABLE]
            record |= {
                "line": line(names, made.code_ND[i], made.reason_ND[i]),
                "decision": NAMES[worst[i]],
                "by_day": min(wanted) if wanted else None,
                "status": "shadow" if self.shadow else "proposed",
            }
            if self.shadow:
                record["own"] = _text(batch.text["decision"][i]) if "decision" in batch.text else ""
            record["diseases"] = dict(zip(names, diseases[i], strict=True))
            record["multiples"] = dict(zip(channels, multiples[i], strict=True))
            records.append(record | {"flags": flags[i], "digests": dict(self.digests), "simulated": self.simulated})
        return records

    def _diseases(self, judged: Judged) -> list[list[Json]]:
        made, scores = judged.decisions, judged.scores
        codes, reasons, soft = made.code_ND.tolist(), made.reason_ND.tolist(), made.softened_ND.tolist()
        sets = [(name, said.tolist()) for name, said in judged.rules.items()]
        heard = made.heard_ND.tolist()
        chance, called, unsure = (
            (_listed(scores.probability_ND), scores.called_ND.tolist(), scores.uncertain_ND.tolist())
            if scores is not None
            else (heard, heard, heard)
        )
        truth = {1: True, 0: False, -1: None}

        def one(i: int, d: int) -> Json:
            told = heard[i][d]
            return {
                "decision": NAMES[codes[i][d]],
                "reason": REASONS[reasons[i][d]],
                "rules": {name: truth[said[i][d]] for name, said in sets if said[i][d] != -2},
                "probability": chance[i][d] if told else None,
                "called": called[i][d] if told else None,
                "uncertain": unsure[i][d] if told else None,
                "softened": soft[i][d],
            }

        return [[one(i, d) for d in range(len(codes[i]))] for i in range(len(codes))]

    def _flags(self, judged: Judged) -> list[list[str]]:
        """What is odd about each row: cells that cannot be used, states of the specimen, its laboratory's population."""
        batch = judged.batch
        flags: list[list[str]] = [[UNTRIED] if self.untried else [] for _ in range(len(batch))]
        for fault in batch.faults:
            flags[fault.index].append(f"{fault.column}: {fault.why}" if fault.column else fault.why)
        for s, rule in enumerate(self.books.specimen.rules):
            for i in np.flatnonzero(judged.holds_NS[:, s]).tolist():
                flags[i].append(rule.reason)
        for column, notes in (("month", judged.notes), ("plate", judged.plate_notes)):
            for i, place in enumerate(_places(batch, column) if notes else []):
                if note := notes.get(place):
                    flags[i].append(f"plate: {note}" if column == "plate" else note)
        return flags


def _text(cell: Any) -> str:
    return safe_text(str(cell))


def _places(batch: Batch, column: str) -> list[tuple[str, str]]:
    """(laboratory, month or plate) of each row; '' in a table without such a column."""
    laboratories = batch.text["laboratory"].tolist()
    within = batch.text[column].tolist() if column in batch.text else [""] * len(laboratories)
    return list(zip(laboratories, within, strict=True))


def significant(x: Floats, digits: int = DIGITS) -> Floats:
    """`x` rounded to so many significant digits, as the double that such a decimal reads as; NaN and 0 stay."""
    with np.errstate(divide="ignore", invalid="ignore"):
        size = np.floor(np.log10(np.abs(x)))
    power = np.minimum(digits - 1 - np.where(np.isfinite(size), size, 0), 300)  # 1e300 is a double, 1e309 is none
    up, down = 10.0 ** np.maximum(power, 0), 10.0 ** np.maximum(-power, 0)
    return np.asarray(np.round(x * up / down) / up * down, np.float64)


def _listed(x: Floats) -> list[list[float | None]]:
    """Rounded, with None for NaN: JSON has none."""
    rounded = significant(np.asarray(x, np.float64))
    found: list[list[float | None]] = rounded.astype(object).tolist()
    for i, c in np.argwhere(~np.isfinite(rounded)).tolist():
        found[i][c] = None
    return found
