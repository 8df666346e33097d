"""One newborn's decision, told so that a person can follow it.   run, case -> record, table's row -> Told -> lines, dossier

The record says what was decided; the table's row, judged anew by the same facts, says why, comparison by comparison. Where both
differ, something was changed since, and nothing is told. `case`: a sample's id, or `row:17`. Shape letters: C channels.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hpcai.book.rules import Rules
from hpcai.book.shelf import Books
from hpcai.context import RunContext
from hpcai.errors import ConfigError, PlanError, RunError
from hpcai.metrics.logistic import expit
from hpcai.plan import read_config
from hpcai.rundir import RunDir
from hpcai.screening import rules, specimen
from hpcai.screening.batch import Floats
from hpcai.screening.cells import safe_text
from hpcai.screening.cohort import BLOCK, Cohort, Ground, block_files, counted, recorder_of
from hpcai.screening.controls import verdict_of
from hpcai.screening.decisions import CODES, NAMES, NOT_ASSESSABLE, REASONS
from hpcai.screening.records import UNTRIED, Judged
from hpcai.screening.survey import channels_of

HEAD = 2  # the row of a table's first newborn
WHOLE = 2  # diseases that a dossier tells in full: it is one page
MOVED = 5  # channels that are named as having moved a logit
Json = dict[str, Any]


@dataclass(frozen=True)
class Part:
    """One disease. `lines`: indented, each rule's comparisons and what the model says."""

    name: str
    title: str
    decision: str
    reason: str
    by_day: int
    second_tier: str | None
    urgent: bool
    markers: list[tuple[str, str, str]]  # channel, value with its unit, multiple of the median
    lines: list[str]


@dataclass(frozen=True)
class Told:
    """A record, and why. `notes`: the specimen's and the plate's."""

    record: Json
    parts: list[Part]
    notes: list[str]

    @property
    def urgent(self) -> list[Part]:
        """Diseases for which somebody is to do something, the most urgent first."""
        return sorted((part for part in self.parts if part.urgent), key=lambda p: (-CODES[p.decision], p.by_day))

    @property
    def others(self) -> list[str]:
        """The urgent diseases that a dossier does not tell in full, those of one decision and reason on a line."""
        lines: dict[str, list[str]] = {}
        for part in self.urgent[WHOLE:]:
            lines.setdefault(f"{part.decision}, {part.reason}, by day {part.by_day} of life", []).append(part.name)
        return [f"{said}: {', '.join(names)}" for said, names in lines.items()]


def told(run: RunDir, case: str) -> Told:
    """The decision of `case` and its reasons.

    Raises: ConfigError for a case that is not there, or is there twice; PlanError where rules, model or table are no longer
        those of the run; DataError or RunError for what cannot be read.
    """
    config = read_config(run)
    if not (run.records.is_dir() and run.counted_file("plates").is_file()):
        raise PlanError(f"run={run.path.name}: holds no records of newborns. Name a finished run of job=predict on newborns.")
    block, index, record = find(run, case)
    ground = Ground.open(config, RunContext(run))
    cohort = counted(ground, None)
    judged = _judged(ground, cohort, block)
    if index >= len(judged.batch) or recorder_of(ground, cohort).records(judged)[index] != record:
        raise PlanError(f"run={run.path.name}: its rules, model or table were changed since. Restore them, or screen anew.")
    return Told(record, list(_parts(ground, cohort, judged, index)), list(_notes(ground, cohort, judged, index)))


def find(run: RunDir, case: str) -> tuple[int, int, Json]:
    """The block, the place in it and the record of a newborn.

    Raises: ConfigError, whose message does not repeat the case.
    """
    if case.startswith("row:") and case[4:].isascii() and case[4:].isdigit():
        block, index = divmod(int(case[4:]) - HEAD, BLOCK)
        file = run.records_file(block) if 0 <= block < 10**8 else None
        lines = file.read_bytes().splitlines() if file and file.is_file() else []
        if index >= len(lines) or block < 0:
            raise ConfigError("CASE=row:N: the run has no record of such a row. The first newborn is row:2.")
        return block, index, _read(run, lines[index])
    wanted = b'{"sample":' + json.dumps(safe_text(case), ensure_ascii=False).encode(errors="backslashreplace") + b","
    found = list(_holding(run, wanted))
    if len(found) != 1:
        rows = " or ".join(f"row:{record['row']}" for _, _, record in found[:3])
        said = (
            f"several rows are of this sample. Name {rows}" if found else "no record is of this sample. Name its row as row:N"
        )
        raise ConfigError(f"CASE: {said}.")
    return found[0]


def _holding(run: RunDir, start: bytes) -> Iterator[tuple[int, int, Json]]:
    """Records whose line begins so. Only a file that holds the bytes at all is cut into lines."""
    for file in block_files(run):
        data = file.read_bytes()
        if start in data:
            for index, line in enumerate(data.splitlines()):
                if line.startswith(start):
                    yield int(file.stem), index, _read(run, line)


def _read(run: RunDir, line: bytes) -> Json:
    try:
        record: Json = json.loads(line)
    except ValueError as e:
        raise RunError(f"run={run.path.name}: one of its records is damaged. hpcai verify names the file.") from e
    return record


def _judged(ground: Ground, cohort: Cohort, block: int) -> Judged:
    for _, batch in ground.table.batches(BLOCK, lambda number: number == block):
        return cohort.judge(batch)
    raise PlanError("data.path: the table is shorter than the run's. Restore it, or screen anew.")


# ---- why


def _parts(ground: Ground, cohort: Cohort, judged: Judged, i: int) -> Iterator[Part]:
    known, made = ground.books, judged.decisions
    row = judged.batch.x_NA[i]
    values = channels_of(known.dictionary, row[None])[0]
    place, analytes = {name: c for c, name in enumerate(known.dictionary.channels)}, len(known.dictionary.analytes)
    z_C = cohort.judge.features(judged.batch).z_NC[i]
    for d, disease in enumerate(known.panel.diseases):
        markers = []
        for c in (place[name] for name in disease.markers):
            unit = " umol/L" if c < analytes else ""
            value, multiple = (f"{x:.3g}" if np.isfinite(x) else "missing" for x in (values[c], judged.multiple_NC[i, c]))
            markers.append((known.dictionary.channels[c], value + (unit if value != "missing" else ""), multiple))
        said = {name: int(verdict_ND[i, d]) for name, verdict_ND in judged.rules.items()}
        lines = [line for each in known.rules for line in _ruled(each, known, disease.name, row, said[each.name])]
        yield Part(
            name=disease.name,
            title=disease.title,
            decision=NAMES[made.code_ND[i, d]],
            reason=REASONS[made.reason_ND[i, d]],
            by_day=known.panel.critical_day if disease.time_critical else known.panel.other_day,
            second_tier=disease.second_tier,
            urgent=bool(made.code_ND[i, d] > NOT_ASSESSABLE),
            markers=markers,
            lines=lines + _modelled(ground, judged, i, d, z_C),
        )


SAID = {1: "positive", 0: "negative", -1: "cannot be said"}


def _ruled(each: Rules, known: Books, disease: str, x_A: Floats, said: int) -> list[str]:
    """A rule set's word on a disease and its comparisons; nothing where it has no rule."""
    own = [rule for rule in each.rules if rule.disease == disease]
    counts = "" if each.name in known.policy.rule_sets else ", shown only"
    lines = [f"{each.name}: {SAID[said]}{counts}"] if own else []
    return lines + [f"  {line}" for rule in own for line in rules.told(rule, known.dictionary, x_A)]


def _modelled(ground: Ground, judged: Judged, i: int, d: int, z_C: Floats) -> list[str]:
    """The model's word on a disease, what moved it, and what would have changed it."""
    name, model, scores = ground.books.panel.names[d], ground.model, judged.scores
    if scores is None or not judged.decisions.heard_ND[i, d]:
        return ["model: not heard"]
    called, unsure = bool(scores.called_ND[i, d]), bool(scores.uncertain_ND[i, d])
    word = "called" if called else "undecided" if unsure else "not called"
    limit = model.detectors[model.diseases.index(name)].threshold.value
    said = [f"model: {word}; probability {scores.probability_ND[i, d]:.2g}, calls from {expit(np.array(limit)):.2g}"]
    if moved := model.contributions(z_C, name)[:MOVED]:
        said.append("  moved by " + ", ".join(f"{channel} {by:+.1f}" for channel, by in moved))
    if change := model.counterfactual(z_C, name):
        changed = ", ".join(f"{c.analyte} x {c.factor:.2g}" for c in change)
        said.append(f"  would {'not ' if called else ''}be called with {changed}")
    return said


def _notes(ground: Ground, cohort: Cohort, judged: Judged, i: int) -> Iterator[str]:
    """What the specimen, the plate and the laboratory's population say."""
    known, batch = ground.books, judged.batch
    if recorder_of(ground, cohort).untried:
        yield f"model: {UNTRIED}"
    for reason in specimen.reasons(known.specimen, known.panel, specimen.effects(known.specimen, known.panel, batch), i):
        when = f", {reason.repeat_when}" if reason.repeat_when else ""
        touched = "all diseases" if len(reason.diseases) == len(known.panel.names) else ", ".join(reason.diseases)
        yield f"specimen: {reason.text} ({reason.effect.replace('_', ' ')}{when}: {touched})"
    place = (str(batch.text["laboratory"][i]), str(batch.text["plate"][i]))
    if cohort.controlled is not None:
        verdict = verdict_of(cohort.controlled.plates, *place)
        yield f"plate: {'good' if verdict.ok else verdict.why or 'not good'}"
    for month in dict.fromkeys(("", str(batch.text["month"][i]) if "month" in batch.text else "")):
        if fit := cohort.judge.fits.get((place[0], month)):
            yield f"{month or 'laboratory'}: {fit.sentence}"


# ---- for people


def lines(case: Told, *, everything: bool = False) -> list[str]:
    """The decision, rule by rule: of the diseases that are not clear; with `everything` of all."""
    record = case.record
    wanted = f"; wanted by day {record['by_day']} of life" if record["by_day"] else ""
    simulated = "; simulated" if record["simulated"] else ""
    found = [f"row {record['row']}: {record['line']}", f"{record['status']}{wanted}{simulated}", *case.notes]
    for part in case.parts:
        if part.decision == "clear" and not everything:
            continue
        second = f"; second tier: {part.second_tier}" if part.second_tier and part.decision == "reflex" else ""
        found += ["", f"{part.name} ({part.title})", f"  {part.decision.replace('_', ' ')}: {part.reason}{second}"]
        found += ["  " + ", ".join(f"{name} {value} ({multiple} x median)" for name, value, multiple in part.markers)]
        found += [f"  {line}" for line in part.lines]
    return found


def dossier(case: Told) -> str:
    """The recall dossier: one page of HTML that prints and can be signed; no script, no request, every text escaped."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template("dossier.html.j2").render(case=case, record=case.record, whole=case.urgent[:WHOLE])
    return f"{page}\n"
