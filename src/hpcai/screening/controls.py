"""Plate controls -> which plates may be reported.   wells, assigned means -> z -> Westgard's rules -> a verdict a plate"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hpcai.book.analytes import Column, Dictionary
from hpcai.book.controls import Controls
from hpcai.errors import DataError, Faults, HpcaiError
from hpcai.screening.batch import Batch, Bools, Floats, Ints, Texts
from hpcai.screening.table import open_plain_table

NO_READING = "no reading"  # of an analyte on a plate, which most of the laboratory's controls have: as bad as a rejecting rule
NEEDED = {"laboratory": False, "plate": True, "material": True, "month": False}  # columns of the table: whether required
BEYOND = 99.0  # what a plot calls a reading without a number
SHOWN_ANALYTES, SHOWN_CONTROLS = 4, 200  # of a laboratory; of a material
Plate = tuple[str, str]  # (laboratory, plate): two laboratories may number their plates alike


@dataclass(frozen=True)
class ControlTable:
    """Control specimens in the order in which they were measured.

    Attributes:
        batch: text has `laboratory`, `plate` and `material`.
        analytes: names of the columns of batch.x_NA.
    """

    batch: Batch
    analytes: list[str]


@dataclass(frozen=True)
class Broken:
    """A rule that an analyte broke on a plate; `material` is "" where controls of several materials broke it together."""

    analyte: str
    material: str
    rule: str


@dataclass(frozen=True)
class PlateVerdict:
    """Whether a plate's newborns may be reported.

    Attributes:
        ok: False too where there are too few controls.
        broken: rules broken, warnings among them.
        n: control specimens on the plate.
        why: "" or the reason as a person reads it.
    """

    ok: bool
    broken: list[Broken]
    n: int
    why: str = ""


def read_controls(path: Path, dictionary: Dictionary, fingerprint: dict[str, str] | None = None) -> ControlTable:
    """The controls table: columns laboratory, plate, material and analytes; rows as they were measured.

    Raises:
        Faults: it is no such table; each fault says that it is of this one, not of the newborns'.
    """
    analytes = [a.model_copy(update={"required": False}) for a in dictionary.analytes]
    others = [c.model_copy(update={"required": False}) for c in dictionary.columns if c.name not in ("sample", *NEEDED)]
    known = {n: Column(name=n, kind="text") for n in NEEDED} | {c.name: c for c in dictionary.columns}
    columns = [known[name].model_copy(update={"required": required}) for name, required in NEEDED.items()]
    own = dictionary.model_copy(update={"analytes": analytes, "columns": [*others, *columns]})
    try:
        table = open_plain_table(path, own, fingerprint)
        ((_, batch),) = table.batches(table.rows)
    except HpcaiError as e:
        lines = [re.sub(r"^data(\.path)?:", "screening.controls:", str(fault)) for fault in e.members]
        raise Faults([DataError(line.replace("a row a newborn", "a row a control")) for line in lines]) from e
    return ControlTable(batch, [a.name for a in analytes])


def judge_plates(table: ControlTable, book: Controls) -> dict[Plate, PlateVerdict]:
    """The verdict of every plate that has a control.

    Plates are in order of time: by month, where the table has one, else in the order of the file. A run of controls over
    several plates (2_2s, 4_1s, 10_x) fails the plate that ends it and each one that goes on with it. A reading that the table
    could not give (negative, no number) counts as beyond every limit.
    """
    verdicts: dict[Plate, PlateVerdict] = {}
    for laboratory, runs in _laboratories(table, book):
        broken: list[list[Broken]] = [[] for _ in runs.plates]
        for rule in dict.fromkeys((*book.warning, *book.rejecting, *book.fatal, NO_READING)):
            for material, mask_PA in broken_by(rule, runs):
                for p, a in np.argwhere(mask_PA).tolist():
                    broken[p].append(Broken(table.analytes[a], material, rule))
        for p, plate in enumerate(runs.plates):
            n = int((runs.plate_M == p).sum())
            verdicts[laboratory, plate] = _verdict(list(dict.fromkeys(broken[p])), n, book)
    return verdicts


def verdict_of(verdicts: dict[Plate, PlateVerdict], laboratory: str, plate: str) -> PlateVerdict:
    """The verdict of a newborn's plate; a plate without any control is not ok."""
    return verdicts.get((laboratory, plate)) or PlateVerdict(False, [], 0, "no control on the plate")


def levey_jennings(table: ControlTable, book: Controls, analytes: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Plain data of the plots, one a laboratory, analyte and material: each control's plate, z, and the rules broken there.

    Without `analytes`: those of each laboratory that broke most rules on failed plates. At most 200 controls are shown: the
    last ones, or those before and with the last failed plate. z is None where there is no reading.

    Source: Levey & Jennings 1950, Am J Clin Pathol 20:1059-1066.
    """
    verdicts = judge_plates(table, book)
    series = []
    for laboratory, runs in _laboratories(table, book):
        failed = [p for p, plate in enumerate(runs.plates) if not verdicts[laboratory, plate].ok]
        counts = Counter(b.analyte for p in failed for b in verdicts[laboratory, runs.plates[p]].broken)
        measured = [name for name, z in zip(table.analytes, runs.z_MA.T) if not np.isnan(z).all()]
        for name in analytes or sorted(measured, key=lambda name: -counts[name])[:SHOWN_ANALYTES]:
            for material, rows in runs.materials():
                last = int(np.searchsorted(runs.plate_M[rows], failed[-1], "right")) if failed else len(rows)
                rows = rows[max(0, last - SHOWN_CONTROLS) :][:SHOWN_CONTROLS]
                plates = [runs.plates[p] for p in runs.plate_M[rows]]
                told = {p: {b.rule for b in verdicts[laboratory, p].broken if b.analyte == name} for p in dict.fromkeys(plates)}
                z = [round(float(v), 2) for v in np.clip(runs.z_MA[rows, table.analytes.index(name)], -BEYOND, BEYOND)]
                series.append({
                    "laboratory": laboratory, "analyte": name, "material": material, "plates": plates,
                    "z": [None if np.isnan(v) else v for v in z], "broken": [sorted(told[p]) for p in plates],
                    "ok": [verdicts[laboratory, p].ok for p in plates],
                })  # fmt: skip
    return series


def broken_by(rule: str, runs: Runs) -> Iterator[tuple[str, Bools]]:
    """Where a rule is broken, (P, A) by plate and analyte: within each material, then across all of a plate's.

    Source: Westgard et al. 1981, Clin Chem 27:493-501 (rules within and across materials).
    """
    if rule == NO_READING:
        yield (
            "",
            ~runs.by_plate(~np.isnan(runs.z_MA)) & (np.isfinite(runs.z_MA).mean(axis=0) > 0.5 if len(runs.z_MA) else False),
        )
        return
    if found := re.fullmatch(r"R_(\d(?:\.\d)?)s", rule):
        half = float(found[1]) / 2
        high, low = (runs.by_plate(side * runs.z_MA > half) for side in (1, -1))
        yield "", high & low
        return
    count, limit = (int(rule[:-2]), 0.0) if rule.endswith("_x") else (int(rule.split("_")[0]), float(rule.split("_")[1][:-1]))
    for material, rows in runs.materials():
        yield material, runs.by_plate(_in_a_row(runs.z_MA[rows], limit, count), rows)
    if count > 1:
        yield "", runs.by_plate(_in_a_row(runs.z_MA, limit, count))


@dataclass(frozen=True)
class Runs:
    """A laboratory's controls in order of time.

    Attributes:
        plates: names, in order; plate_M (M,) is the place of each control's in it, ascending.
        material_M: (M,) name of its material.
        z_MA: (M, A) (reading - mean) / sd; NaN where there is none, or none assigned.
    """

    plates: list[str]
    plate_M: Ints
    material_M: Texts
    z_MA: Floats

    def materials(self) -> Iterator[tuple[str, Ints]]:
        """Each material and the places of its controls."""
        for name in np.unique(self.material_M).tolist():
            yield name, np.flatnonzero(self.material_M == name)

    def by_plate(self, mask_MA: Bools, rows: Ints | None = None) -> Bools:
        """(P, A): whether it holds for any of a plate's controls; `rows` are the places of those in `mask_MA`."""
        found = np.zeros((len(self.plates), mask_MA.shape[1]), np.bool_)
        control, analyte = np.nonzero(mask_MA)
        found[(self.plate_M if rows is None else self.plate_M[rows])[control], analyte] = True
        return found


def _laboratories(table: ControlTable, book: Controls) -> Iterator[tuple[str, Runs]]:
    """Each laboratory and its controls, those of materials that the book knows."""
    text, z_NA = table.batch.text, _z(table, book)
    known = np.isin(text["material"], [m.name for m in book.materials])
    month = text.get("month", np.full(len(known), ""))
    for laboratory in dict.fromkeys(text["laboratory"].tolist()):
        here = np.flatnonzero(text["laboratory"] == laboratory)
        order = sorted(dict.fromkeys(zip(month[here].tolist(), text["plate"][here].tolist())), key=lambda place: place[0])
        place = {plate: p for p, plate in enumerate(dict.fromkeys(plate for _, plate in order))}
        rows = here[known[here]]
        plate_M = np.array([place[plate] for plate in text["plate"][rows].tolist()], np.int64)
        by_time = np.argsort(plate_M, kind="stable")
        yield laboratory, Runs(list(place), plate_M[by_time], text["material"][rows][by_time], z_NA[rows][by_time])


def _z(table: ControlTable, book: Controls) -> Floats:
    """(n, A) of every row of the table; NaN without an assigned value."""
    mean, sd = (np.full(table.batch.x_NA.shape, np.nan) for _ in range(2))
    for material in book.materials:
        rows = np.flatnonzero(table.batch.text["material"] == material.name)
        for name, target in material.targets.items():
            if name in table.analytes:
                mean[rows, table.analytes.index(name)], sd[rows, table.analytes.index(name)] = target.mean, target.sd
    z: Floats = (table.batch.x_NA - mean) / sd
    place = {name: a for a, name in enumerate(table.analytes)}
    for fault in table.batch.faults:
        if fault.column in place and np.isfinite(mean[fault.index, place[fault.column]]):
            z[fault.index, place[fault.column]] = np.inf
    return z


def _in_a_row(z_MA: Floats, limit: float, count: int) -> Bools:
    """Where at least `count` readings, up to and with this one, lie beyond `limit` sd on the same side."""
    found = np.zeros(z_MA.shape, np.bool_)
    place = np.arange(1, len(z_MA) + 1)[:, None]
    for side in (1, -1):
        beyond = side * z_MA > limit
        since = np.maximum.accumulate(np.where(beyond, 0, place), axis=0) if len(z_MA) else found
        found |= beyond & (place - since >= count)
    return found


def _verdict(broken: list[Broken], n: int, book: Controls) -> PlateVerdict:
    fatal = [b for b in broken if b.rule in book.fatal]
    failing = fatal + [b for b in broken if b.rule in (*book.rejecting, NO_READING)]
    analytes = list(dict.fromkeys(b.analyte for b in failing))
    if n < book.per_plate:
        return PlateVerdict(False, broken, n, f"{n} controls, {book.per_plate} wanted")
    if not fatal and len(analytes) < book.fails_at:
        return PlateVerdict(True, broken, n)
    more = f" and {len(analytes) - 5} more" if len(analytes) > 5 else ""
    rules = ", ".join(dict.fromkeys(b.rule for b in failing))
    return PlateVerdict(False, broken, n, f"controls of {', '.join(analytes[:5])}{more} broke {rules}")
