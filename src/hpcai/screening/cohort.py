"""job=predict of newborns.   table -> survey -> fitness -> blocks: features, score, decide, record -> tally

    screen(cfg, run)   all blocks, or those of one shard; ranks stripe them
    merge(cfg, run)    the blocks of all shards as one

What a block's decisions need of the whole cohort (medians of laboratories and plates, whether the model fits) is counted first,
in integers, so that it is equal whoever counts. A shard counts the whole table too: to read it costs less than to wait for the
others. Then a block depends on nothing but its rows. Its tally is written first, its records last: who has records is done.

    survey.rank<r>.json  plates.rank<r>.json   what each rank counted
    survey.json  plates.json  fitness.json     the cohort's
    tally/<block:08d>.json                     the block's counts
    records/<block:08d>.jsonl                  a line a newborn, in the table's order
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np

from hpcai import inputs, rundir
from hpcai.book.controls import Controls
from hpcai.book.diseases import Diseases
from hpcai.book.shelf import Books, books, digest, read
from hpcai.cases import AGAIN, check_shard
from hpcai.comm import Group, process_group
from hpcai.config.schema import Config
from hpcai.context import RunContext
from hpcai.errors import DataError, RunError, one_line
from hpcai.plan import sources
from hpcai.rundir import RunDir
from hpcai.screening.batch import Batch, Ints
from hpcai.screening.cells import safe_text
from hpcai.screening.controls import PlateVerdict, judge_plates, levey_jennings, read_controls
from hpcai.screening.fitness import Fitness, fitness
from hpcai.screening.judge import Judge
from hpcai.screening.model import ScreeningModel, read_model
from hpcai.screening.numbers import screening
from hpcai.screening.plates import PlateShift
from hpcai.screening.records import UNTRIED, Judged, Recorder, significant
from hpcai.screening.simulate import is_simulated
from hpcai.screening.survey import BINS, Survey
from hpcai.screening.table import Table, open_table
from hpcai.screening.tally import UNAFFECTED, UNKNOWN, Tally
from hpcai.screening.teaching import UNAFFECTED as HEALTHY

log = logging.getLogger("hpcai")
BLOCK = 4096  # newborns of a file of records: some 20 MB, some seconds
STOPPED = "stopped after {0:,} blocks, all of them kept. The same command goes on."
Json = dict[str, Any]


@dataclass(frozen=True)
class Ground:
    """What every rank knows before it reads a row: facts, model, table."""

    cfg: Config
    run: RunContext
    books: Books
    model: ScreeningModel
    table: Table
    source: RunDir

    @classmethod
    def open(cls, cfg: Config, run: RunContext) -> Ground:
        """Raises: ConfigError for facts that do not fit together, DataError for the table or the model, RunError."""
        digests = rundir.read_digests(run.dir)
        _check_books(cfg, digests)
        known, (source,) = books(cfg.screening), sources(cfg, run.dir)
        model = read_model(source.screening_model, digest(known.dictionary))
        table = open_table(Path(cfg.data.path), known.dictionary, digests)
        if cfg.screening.mode == "shadow" and "decision" not in table.text_columns:
            raise DataError(
                "screening.mode=shadow: the table has no column decision, the laboratory's own. Add it, or leave the mode out."
            )
        return cls(cfg, run, known, model, table, source)

    @property
    def blocks(self) -> range:
        """Numbers of the blocks of the whole table."""
        return range(self.table.blocks(BLOCK))

    @property
    def part(self) -> range:
        """Those of the shard that this run is; of no shard: all."""
        return striped(self.blocks, self.cfg.predict.shard, self.cfg.predict.shards)

    def own(self, blocks: range) -> set[int]:
        """Those of `blocks` that this rank does."""
        return set(blocks[self.run.ranks.rank :: self.run.ranks.world_size])

    def newborns(self, blocks: Iterable[int]) -> int:
        """How many rows `blocks` have."""
        return sum(min(BLOCK, self.table.rows - block * BLOCK) for block in blocks)

    @cached_property
    def digests(self) -> dict[str, str]:
        """Of all that decides, 16 hexadecimal digits each: enough to tell them apart, in every record."""
        limits = json.dumps({d.disease: d.threshold.value for d in self.model.detectors}, sort_keys=True)
        own = {"model": self.model.digest, "threshold": hashlib.sha256(limits.encode()).hexdigest()}
        return {name: whole[:16] for name, whole in {**self.books.digests(), **own}.items()}


def _check_books(cfg: Config, digests: dict[str, str]) -> None:
    """Raises: DataError where a laboratory's own file is another than at submission: half of a cohort would follow it."""
    for path in inputs.listed_books(cfg.screening):
        shown = one_line(path.name, 80)
        try:
            now = inputs.digest_file(path).sha256
        except DataError as e:
            raise DataError(f"screening: {shown} is gone or cannot be read. Restore it.") from e
        if now != digests.get(str(path)):
            raise DataError(f"screening: {shown} was changed since the run was planned. Restore it; --anew takes it as it is.")


@dataclass(frozen=True)
class Controlled:
    """What controls say: the rules, the verdict of each (laboratory, plate), data of Levey-Jennings plots."""

    rules: list[str]
    per_plate: int
    plates: dict[tuple[str, str], PlateVerdict]
    plots: list[Json]


@dataclass(frozen=True)
class Cohort:
    """What was counted of the whole table, and who judges by it. `controlled` None: plates have no controls."""

    survey: Survey
    judge: Judge
    fits: list[Fitness]
    controlled: Controlled | None

    @property
    def simulated(self) -> bool:
        """Whether no newborn of it is real: by the names of all laboratories, those too whose plates all failed."""
        names = {*self.survey.laboratories, *(name for name, _ in (self.controlled.plates if self.controlled else ()))}
        return is_simulated(names)


def screen(cfg: Config, run: RunContext) -> None:
    """Leaves a record a newborn and screening.json; goes on where it was stopped or killed.

    Raises: as Ground.open; OwnedError, Stopped.
    """
    with process_group(run, gpus=0, seed=cfg.seed, deterministic=True, mpi=True) as group:
        ground = Ground.open(cfg, run)
        log.info("table  %s newborns, %d of %d blocks are ours", f"{ground.table.rows:,}", len(ground.part), len(ground.blocks))
        if group.first:
            _sweep(run.dir)
        group.barrier()
        cohort = counted(ground, group)
        record(ground, cohort)
        group.barrier()
        if group.first:
            finish(ground, cohort, ground.part)


def merge(cfg: Config, run: RunContext) -> None:
    """The shards' blocks as one run's. Rank 0 alone has work.

    Raises: PlanError for a run that is not that shard, or has not finished; DataError for blocks that are missing or too many,
        or another count of the cohort.
    """
    if not run.ranks.first:
        return
    ground, shards = Ground.open(cfg, run), [RunDir(Path(path)) for path in cfg.predict.merge]
    for number, shard in enumerate(shards, 1):
        check_shard(run.dir, shard, number, len(shards))
        _check_blocks(ground, shards[0], shard, number, len(shards))
    run.stop.check("stopped before anything was written. The same command starts it.")
    run.fence()
    for name in COUNTED:
        _take(shards[0].counted_file(name), run.dir.counted_file(name))
    for number, shard in enumerate(shards, 1):
        for block in striped(ground.blocks, number, len(shards)):
            _take(shard.tally_file(block), run.dir.tally_file(block))
            _take(shard.records_file(block), run.dir.records_file(block))
    log.info("merged %s blocks of %d shards", f"{len(ground.blocks):,}", len(shards))
    finish(ground, counted(ground, None), ground.blocks)


# ---- of the whole table


COUNTED = ("survey", "plates")  # counted by all, in this order: a plate's shift is from its laboratory's median


def counted(ground: Ground, group: Group | None) -> Cohort:
    """What all ranks count together; `group` None: it was counted already."""
    known, model, controlled = ground.books, ground.model, _controls(ground)
    failed = [place for place, told in controlled.plates.items() if not told.ok] if controlled else []
    survey = _together(
        ground,
        group,
        "survey",
        lambda: Survey(known.dictionary, without=failed),
        lambda value: Survey.from_json(known.dictionary, value, without=failed),
    )
    own = survey.references()
    shifts = _together(
        ground, group, "plates", lambda: PlateShift(survey, own), lambda value: PlateShift.from_json(survey, own, value)
    )
    training = Survey.from_json(known.dictionary, model.survey, months=False)
    fits = fitness(training, survey, model.reads)
    by_place = {(fit.laboratory, fit.month): fit for fit in fits}
    verdicts, least = (controlled.plates, controlled.per_plate) if controlled else (None, 1)
    judge = Judge(known, model, own, by_place, shifts, verdicts, least)
    return Cohort(survey, judge, fits, controlled)


def markers(panel: Diseases) -> list[str]:
    """The channels that show any disease of the panel, each once."""
    return list(dict.fromkeys(marker for disease in panel.diseases for marker in disease.markers))


class Counts(Protocol):
    """Integer counts that commute."""

    def add(self, batch: Batch) -> None:
        """Counts a batch."""

    def merge(self, other: Any) -> None:
        """Adds what another counted."""

    def to_json(self) -> Any:
        """Equal counts give equal values."""


T = TypeVar("T", bound=Counts)


def _together(ground: Ground, group: Group | None, name: str, new: Callable[[], T], old: Callable[[Any], T]) -> T:
    """Each rank counts its blocks, the first adds them up, all read the sum. Nothing is counted twice, whatever was killed."""
    run, whole = ground.run, ground.run.dir.counted_file(name)
    if group:
        part = run.dir.counted_file(name, run.ranks.rank)
        if not whole.exists() and not part.exists():
            run.fence()
            rundir.write_json(part, _count(ground, new()).to_json())
        group.barrier()
        if group.first and not whole.exists():
            total = new()
            for rank in range(group.size):
                total.merge(old(rundir.read_json(run.dir.counted_file(name, rank))))
            run.fence()
            rundir.write_json(whole, total.to_json())
        group.barrier()
    return old(rundir.read_json(whole))


def _count(ground: Ground, counts: T) -> T:
    for _, batch in ground.table.batches(BLOCK, ground.own(ground.blocks).__contains__):
        counts.add(batch)
        ground.run.stop.check("stopped while it counted the table. The same command goes on.")
    return counts


def _controls(ground: Ground) -> Controlled | None:
    """None where the laboratory has no controls."""
    if ground.cfg.screening.controls is None:
        return None
    book = read("controls", ground.cfg.screening.control_rules, Controls, "screening.control_rules")
    path, digests = Path(ground.cfg.screening.controls), rundir.read_digests(ground.run.dir)
    table = read_controls(path, ground.books.dictionary, digests)
    return Controlled([*book.rejecting, *book.fatal], book.per_plate, judge_plates(table, book), levey_jennings(table, book))


# ---- block by block


def record(ground: Ground, cohort: Cohort) -> None:
    """Tally and records of each block of this rank that has no records yet."""
    run, own = ground.run, ground.own(ground.part)
    recorder = recorder_of(ground, cohort)
    if recorder.untried:
        log.warning("warning: %s, and these are said to be real: each record says so", UNTRIED)
    left = ground.table.batches(BLOCK, lambda block: block in own and not run.dir.records_file(block).exists())
    newborns = 0
    for done, (number, batch) in enumerate(left, 1):
        judged = cohort.judge(batch)
        tally = Tally(ground.books.panel, cohort.simulated)
        add(tally, ground.books.panel, judged)
        lines = recorder.lines(judged)
        run.fence()
        rundir.write_json(run.dir.tally_file(number), tally.to_json())
        rundir.write_bytes(run.dir.records_file(number), lines)
        newborns += len(batch)
        run.note("progress", step=newborns)
        if done % 10 == 0:
            log.info("screened %s of %s blocks", f"{done:,}", f"{len(own):,}")
        run.stop.check(STOPPED.format(done))


def recorder_of(ground: Ground, cohort: Cohort) -> Recorder:
    """Who writes this run's records."""
    shadow = ground.cfg.screening.mode == "shadow"
    untried = ground.model.simulated and not cohort.simulated
    return Recorder(ground.books, ground.digests, cohort.simulated, shadow, untried)


def add(tally: Tally, panel: Diseases, judged: Judged) -> None:
    """Counts a judged batch."""
    scores, heard_ND = judged.scores, judged.decisions.heard_ND
    called_ND = None if scores is None else np.where(heard_ND, scores.called_ND, -1).astype(np.int8)
    tally.add(judged.batch, judged.decisions, truth_of(panel, judged.batch), judged.rules, called_ND)


def truth_of(panel: Diseases, batch: Batch) -> Ints:
    """(n,) index into the panel by column `diagnosis`; UNAFFECTED; UNKNOWN: no such column, or no disease of the panel."""
    if "diagnosis" not in batch.text:
        return np.full(len(batch), UNKNOWN)
    names, at_N = np.unique(batch.text["diagnosis"], return_inverse=True)
    known = dict.fromkeys(HEALTHY, UNAFFECTED) | {name: d for d, name in enumerate(panel.names)}
    return np.array([known.get(str(name), UNKNOWN) for name in names], np.int64)[at_N]


def finish(ground: Ground, cohort: Cohort, blocks: range) -> None:
    """screening.json, out of the tallies of all blocks.

    Raises: RunError if a block has no records.
    """
    run, panel = ground.run, ground.books.panel
    if lost := [block for block in blocks if not run.dir.records_file(block).exists()]:
        raise RunError(f"records: {len(lost):,} of {len(blocks):,} blocks are missing. The same command goes on with them.")
    tally = Tally(panel, cohort.simulated)
    for block in blocks:
        tally.merge(Tally.from_json(rundir.read_json(run.dir.tally_file(block)), panel))
    value = screening(
        tally,
        kind="cohort",
        split="predict",
        books=ground.digests,
        mode="shadow" if ground.cfg.screening.mode == "shadow" else "decide",
        fitness=[fit.to_json() for fit in cohort.fits],
        plates=_plates(cohort),
        distributions=distributions(cohort.survey, markers(panel)),
        thresholds=ground.model.thresholds,
        taught_by_simulated=ground.model.simulated,
    )
    run.fence()
    rundir.write_json(run.dir.screening, value)
    run.note("progress", step=ground.newborns(blocks))


def _plates(cohort: Cohort) -> Json | None:
    """The verdicts and plots of plates, as the report shows them; no text of the table is written out raw."""
    if cohort.controlled is None:
        return None
    plates = [
        {
            "laboratory": safe_text(laboratory), "plate": safe_text(plate), "ok": told.ok, "n": told.n, "why": told.why,
            "broken": [asdict(broken) for broken in told.broken],
        }
        for (laboratory, plate), told in cohort.controlled.plates.items()
    ]  # fmt: skip
    return {"rules": cohort.controlled.rules, "plates": plates, "series": cohort.controlled.plots}


def distributions(survey: Survey, channels: Sequence[str]) -> list[Json]:
    """How many newborns of each laboratory have which values, in steps of half an octave."""
    step, places, units = BINS // 32, survey.dictionary.channels, len(survey.dictionary.analytes)
    found = []
    for c in (places.index(name) for name in channels):
        counts = {name: survey.total(name)[c, :BINS].reshape(-1, step).sum(1) for name in survey.laboratories}
        there = np.flatnonzero(sum(counts.values()))
        first, last = (int(there[0]), int(there[-1]) + 1) if len(there) else (0, 0)
        edges = np.exp(survey.edge_CB[c, ::step][first : last + 1])
        series = [{"name": safe_text(name), "counts": each[first:last].tolist()} for name, each in counts.items()]
        unit = "umol/L" if c < units else ""
        found.append({"channel": places[c], "unit": unit, "edges": significant(edges).tolist(), "series": series})
    return found


# ---- shards


def striped(blocks: range, shard: int | None, shards: int) -> range:
    """The blocks of a shard, from 1; None: all."""
    return blocks if shard is None else blocks[shard - 1 :: shards]


def _check_blocks(ground: Ground, first: RunDir, shard: RunDir, number: int, of: int) -> None:
    """Raises: DataError unless a shard has its blocks, no other, and counted the cohort as the first did."""
    named = f"predict.shard={number}/{of}: run {shard.path.name}"
    wanted = {shard.records_file(block).name for block in striped(ground.blocks, number, of)}
    there = {file.name for file in shard.records.glob("[0-9]*.jsonl")}
    if there != wanted:
        raise DataError(
            f"{named}: {len(wanted - there):,} of its {len(wanted):,} blocks have no records, "
            f"{len(there - wanted):,} are another's. {AGAIN}"
        )
    for name in COUNTED:
        if shard.counted_file(name).read_bytes() != first.counted_file(name).read_bytes():
            raise DataError(f"{named}: its {name}.json is another than shard 1's. {AGAIN}")


def _take(source: Path, target: Path) -> None:
    """The same file by another name, or a copy where that is not allowed; whole or not at all."""
    target.parent.mkdir(parents=True, exist_ok=True)
    beside = target.with_name(f".{target.name}.tmp")
    beside.unlink(missing_ok=True)
    try:
        os.link(source, beside)
    except OSError:  # another disk, or one without links
        shutil.copyfile(source, beside)
    beside.replace(target)
    beside.unlink(missing_ok=True)  # rename does nothing between two names of one file


def _sweep(run: RunDir) -> None:
    """What a kill left half-written. No rank of this life has written yet."""
    own = [run.path.glob(f".{name}.*.tmp") for name in (*COUNTED, "screening")]  # others write into the run's folder too
    for file in chain(run.records.glob(".*.tmp"), run.tallies.glob(".*.tmp"), *own):
        file.unlink(missing_ok=True)


def block_files(run: RunDir) -> Sequence[Path]:
    """All records of a run, in the table's order."""
    return sorted(run.records.glob("[0-9]*.jsonl"))
