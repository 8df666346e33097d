"""Runs that differ in their seed alone: what chance in training does to a score, beside what chance in the cases does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

import numpy as np

from hpcai.metrics.classification import units
from hpcai.metrics.intervals import RESAMPLES, percentile, resampled
from hpcai.metrics.paired import Judged, mean_measure, names, value_of


@dataclass(frozen=True)
class Spread:
    """One measure over seeds.

    Attributes:
        name: of the measure.
        values: one a seed, in the order given; None where it is not defined.
        mean: over the seeds where it is defined; None if nowhere.
        sd: their standard deviation (n - 1); None for fewer than two.
        seeds: how many.
        low: lower end of the 95 % interval of the mean over cases: the same models, other cases. None where nothing varies.
        high: upper end.
        method: how the interval was made.
    """

    name: str
    values: tuple[float | None, ...]
    mean: float | None
    sd: float | None
    seeds: int
    low: float | None
    high: float | None
    method: str


def spreads(side: Sequence[Judged]) -> list[Spread]:
    """Every measure of runs on the same cases: its spread over seeds and, beside it, the interval over cases."""
    rows = side[0].rows
    wanted = names(rows.classes)
    measures = [mean_measure(side, name) for name in wanted]
    groups, unit = units(rows)
    drawn = resampled(lambda w: np.stack([m(w) for m in measures], 1), groups)
    found = []
    for i, name in enumerate(wanted):
        values = tuple(value_of(judged, name) for judged in side)
        known = [value for value in values if value is not None]
        interval = percentile(drawn[:, i]) if known else None
        method = f"bootstrap; {RESAMPLES} resamples of {unit}" if interval else "no interval: no resample differs"
        mean, sd = fmean(known) if known else None, stdev(known) if len(known) > 1 else None
        low, high = interval or (None, None)
        found.append(Spread(name, values, mean, sd, len(side), low, high, method))
    return found
