"""A small dictionary and newborns drawn for it: for the tests of screening."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

import hpcai
from hpcai.book.analytes import Analyte, Column, Dictionary, Ratio
from hpcai.book.shelf import dictionary as read_dictionary
from hpcai.screening.batch import Batch, Floats
from hpcai.screening.table import open_table

SHIPPED = Path(hpcai.__file__).parent / "shipped" / "nbs_simulated"
TYPICAL = {"Phe": 50.0, "Tyr": 80.0, "C0": 20.0, "C8": 0.05}


def dictionary(**changed: Any) -> Dictionary:
    """Four analytes, two ratios: channels Phe Tyr C0 C8 Phe/Tyr C8/C0."""
    analytes = [
        Analyte(name=name, title=name, low=typical / 1e4, high=typical * 1e4, typical=typical, source="assumed: a test")
        for name, typical in TYPICAL.items()
    ]
    ratios = [Ratio(top="Phe", bottom="Tyr", source="a test"), Ratio(top="C8", bottom="C0", source="a test")]
    columns = [Column(name="gestation_weeks", kind="number", typical=39.0)]
    return Dictionary(
        **{"name": "small", "title": "small", "analytes": analytes, "ratios": ratios, "columns": columns, **changed}
    )


def batch(
    x_NA: Any, laboratory: Any = "A", plate: Any = "p1", month: Any = None, number: dict[str, Floats] | None = None
) -> Batch:
    """Rows of given concentrations; a text stands for all rows."""
    x_NA = np.array(x_NA, np.float64).reshape(-1, len(TYPICAL))
    n = len(x_NA)
    text = {"laboratory": np.broadcast_to(np.array(laboratory), n), "plate": np.broadcast_to(np.array(plate), n)}
    if month is not None:
        text["month"] = np.broadcast_to(np.array(month), n)
    return Batch(np.arange(n) + 2, np.char.mod("s%d", np.arange(n)), x_NA, number or {}, text)


def drawn(n: int, seed: int, shift: float = 0.0, scale: float = 0.35, df: float | None = None, together: float = 0.4) -> Floats:
    """(n, A) concentrations: logs normal or Student's t, correlated, `shift` and `scale` in natural log."""
    rng = np.random.Generator(np.random.PCG64(seed))
    size = (n, len(TYPICAL))
    noise = rng.standard_normal(size) if df is None else rng.standard_t(df, size)
    noise = np.sqrt(together) * noise[:, :1] + np.sqrt(1 - together) * noise
    return np.array(list(TYPICAL.values())) * np.exp(shift + scale * noise)


def shipped(name: str) -> tuple[Dictionary, Batch]:
    """A simulated table that is shipped, in one piece, and its dictionary."""
    whole = read_dictionary("nbs_msms")
    table = open_table(SHIPPED / name, whole)
    ((_, rows),) = table.batches(table.rows)
    return whole, rows
