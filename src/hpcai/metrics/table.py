"""What is known of each case but its score: RUN/cases.jsonl -> CaseTable, checked. No message names a case."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from hpcai.errors import RunError
from hpcai.metrics.rows import Bools, Ints, patients_of
from hpcai.rundir import RunDir, read_lines


@dataclass(frozen=True)
class CaseTable:
    """n cases of a run, of all its splits.

    Attributes:
        case: n ids, each once.
        split: n names: train, val, test, or as evaluate and gather call theirs.
        label: (n,) int64, -1 where it is not known.
        patient: n ids, or None where no patients are known; a case without one, among others with one, stands for itself.
        groups: for each of data.group_cols n texts, None where missing.
        size: n tuples of pixels along each axis as stored, None where unknown; None if all are.
        row: n texts, the row of each case as messages name it (`17`, "3 of `test_images`"); None in runs of older versions.
    """

    case: list[str]
    split: list[str]
    label: Ints
    patient: list[str] | None = None
    groups: Mapping[str, list[str | None]] = field(default_factory=dict)
    size: list[tuple[int, ...] | None] | None = None
    row: list[str] | None = None

    def take(self, places: Sequence[int]) -> CaseTable:
        """The cases at these places, in this order; perhaps none."""
        return CaseTable(
            case=[self.case[k] for k in places],
            split=[self.split[k] for k in places],
            label=self.label[list(places)],
            patient=None if self.patient is None else [self.patient[k] for k in places],
            groups={name: [values[k] for k in places] for name, values in self.groups.items()},
            size=None if self.size is None else [self.size[k] for k in places],
            row=None if self.row is None else [self.row[k] for k in places],
        )

    def where(self, keep: Bools) -> CaseTable:
        """The cases where `keep` (n,) is true."""
        return self.take(np.flatnonzero(keep).tolist())

    def of(self, cases: Sequence[str]) -> CaseTable:
        """These cases, in this order.

        Raises:
            RunError: one of them is not in the table.
        """
        place = {case: k for k, case in enumerate(self.case)}
        if lost := sum(case not in place for case in cases):
            raise RunError(f"cases.jsonl: lacks {lost:,} of {len(cases):,} cases that have a row. Start the run anew.")
        return self.take([place[case] for case in cases])


def read_cases(run: RunDir) -> CaseTable | None:
    """The table of `run`, in the order of case ids; None where it has none (predict, and runs of older versions).

    Raises:
        RunError: it is damaged; names the row.
    """
    lines: list[dict[str, Any]] = []
    try:
        for line in read_lines(run.cases):
            lines.append(_checked(line))
        names = list(lines[0]["groups"]) if lines else []
        if len({line["case"] for line in lines}) < len(lines) or any(list(line["groups"]) != names for line in lines):
            raise ValueError
    except (ValueError, KeyError, TypeError, AttributeError):
        raise RunError(f"cases.jsonl: row {len(lines)} is damaged. Start the run anew.") from None
    if not lines:
        return None
    lines.sort(key=lambda line: str(line["case"]))
    sizes = [None if line["size"] is None else tuple(line["size"]) for line in lines]
    return CaseTable(
        case=[line["case"] for line in lines],
        split=[line["split"] for line in lines],
        label=np.array([line["label"] for line in lines], np.int64),
        patient=patients_of(lines),
        groups={name: [line["groups"][name] for line in lines] for name in names},
        size=sizes if any(size is not None for size in sizes) else None,
        row=[line["row"] for line in lines] if all("row" in line for line in lines) else None,
    )


def _checked(line: dict[str, Any]) -> dict[str, Any]:
    """`line` if it is one of cases.jsonl; raises TypeError or KeyError if it is not."""
    patient, size, groups = line["patient"], line["size"], line["groups"].values()
    fits = isinstance(line["case"], str) and isinstance(line["split"], str) and type(line["label"]) is int
    fits = fits and isinstance(line.get("row", ""), str)
    fits = fits and (patient is None or isinstance(patient, str)) and all(v is None or isinstance(v, str) for v in groups)
    if not (fits and (size is None or all(type(n) is int and n > 0 for n in size))):
        raise TypeError
    return line
