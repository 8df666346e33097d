"""A simulated cohort in a file.   Asked -> Simulation -> blocks -> FILE beside, renamed when whole

Memory is that of a few blocks. Hostile rows stand in the first block, so that a small file has them all.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import polars as pl
from polars.io.plugins import register_io_source

from hpcai.book import shelf
from hpcai.book.simulation import Law, SimulationBook
from hpcai.errors import ConfigError, PlanError, one_line
from hpcai.screening.simulate import BLOCK, Simulation
from hpcai.simulate import Asked

LEVEL = 9  # of zstd: a higher one saves 2 % and takes most of the time
# What is wrong with a hostile row, in turn: column and value. None: an empty cell; `sample` None: that of the row before.
# No book has a laboratory Z.
HOSTILE: tuple[tuple[str, Any], ...] = (
    ("Phe", -1.0), ("C8", float("inf")), ("C2", 1e6), ("C5", float("nan")), ("C0", None), ("age_h", -5.0), ("sample", None),
    ("sample", "=1+1"), ("laboratory", "simulated Z"),
)  # fmt: skip


def write(asked: Asked) -> dict[str, int]:
    """Writes the file, and that of the controls; how many newborns, affected ones, plates and controls there are.

    Raises:
        ConfigError: a book, a laboratory or a law is wrong.
        PlanError: a file cannot be written.
    """
    simulation = simulation_of(asked)
    told = {
        "newborns": asked.newborns,
        "affected": 0,
        "plates": -(-asked.newborns // simulation.book.plates.size),
        "controls": 0,
    }
    _stream(asked.file, _counted(newborns(simulation, asked.newborns, asked.hostile), told))
    if asked.controls is not None:
        wells = simulation.book.plates.controls * len(simulation.book.plates.materials)
        told["controls"] = told["plates"] * wells
        _stream(asked.controls, _first(simulation.controls, asked.newborns, told["controls"]))
    return told


def simulation_of(asked: Asked) -> Simulation:
    """The books by name, checked, and what is drawn from them. Months share the plates evenly.

    Raises: ConfigError or Faults.
    """
    book = shelf.read("simulation", asked.simulation, SimulationBook)
    plates, months = -(-asked.newborns // book.plates.size), asked.months or book.months
    return Simulation(
        book, shelf.dictionary(asked.analytes), shelf.panel(asked.diseases), asked.seed,
        laboratories=asked.laboratories, tail=cast("Law | None", asked.tail), enrich=(asked.cases or 0) / asked.newborns,
        months=months, plates_a_month=-(-plates // len(months)), failed=asked.failed, split=asked.split,
    )  # fmt: skip


def newborns(simulation: Simulation, count: int, hostile: int = 0) -> Iterator[pl.DataFrame]:
    """Exactly `count` rows, in blocks; `hostile` of the first block's are unusable."""
    for k, frame in enumerate(_first(simulation.block, count, count)):
        yield made_hostile(frame, hostile, simulation.seed) if k == 0 and hostile else frame


def made_hostile(frame: pl.DataFrame, count: int, seed: int) -> pl.DataFrame:
    """Some rows of unaffected newborns, drawn by the seed, with one cell each that cannot be used.

    Raises: ConfigError if there are too few rows.
    """
    free = np.flatnonzero((frame["diagnosis"] == "").to_numpy())[1:]
    if 2 * count > len(free):
        raise ConfigError(f"--hostile={count}: too many for the first {len(frame)} rows. Ask for fewer.")
    rows = np.sort(np.random.default_rng([seed, count]).choice(free[::2], count, replace=False)).tolist()
    for k, row in enumerate(rows):
        name, value = HOSTILE[k % len(HOSTILE)]
        if name == "sample" and value is None:
            value = frame["sample"][row - 1]
        column = frame[name].to_list()
        column[row] = value
        frame = frame.with_columns(pl.Series(name, column, dtype=frame.schema[name], strict=False))
    return frame


def _first(block: Any, newborns: int, rows: int) -> Iterator[pl.DataFrame]:
    """The first `rows` rows of all blocks that hold the first `newborns`."""
    for number in range(-(-newborns // BLOCK)):
        frame = block(number, BLOCK).head(rows)
        rows -= len(frame)
        yield frame


def _counted(frames: Iterator[pl.DataFrame], told: dict[str, int]) -> Iterator[pl.DataFrame]:
    for frame in frames:
        told["affected"] += int((frame["diagnosis"] != "").sum())
        yield frame


def _stream(file: Path, frames: Iterator[pl.DataFrame]) -> None:
    """Writes it beside, syncs, renames. Raises: PlanError if it cannot be written."""
    beside = file.with_name(f".{secrets.token_hex(8)}.tmp")
    try:
        try:
            _csv(beside, frames) if file.suffix == ".csv" else _parquet(beside, frames)
            with beside.open("rb") as f:
                os.fsync(f.fileno())
            beside.replace(file)
        except BaseException:
            with contextlib.suppress(OSError):
                beside.unlink()
            raise
    except (OSError, pl.exceptions.PolarsError) as e:  # polars tells of a full disk in its own way
        why = getattr(e, "strerror", None) or "cannot be written (is the disk full?)"
        raise PlanError(f"{one_line(str(file), 200)}: {why}. Name another file.") from e


def _csv(file: Path, frames: Iterator[pl.DataFrame]) -> None:
    with file.open("xb") as f:
        for k, frame in enumerate(frames):
            frame.write_csv(f, include_header=k == 0)


def _parquet(file: Path, frames: Iterator[pl.DataFrame]) -> None:
    """Row groups as the frames come. polars streams from a source only, so the frames are made one."""
    first = next(frames)

    def source(with_columns: Any, predicate: Any, n_rows: Any, batch_size: Any) -> Iterator[pl.DataFrame]:
        yield first
        yield from frames

    register_io_source(source, schema=first.schema).sink_parquet(
        file, compression="zstd", compression_level=LEVEL, statistics=False
    )
