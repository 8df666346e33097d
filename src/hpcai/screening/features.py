"""What a model reads of a newborn.   batch, references, adjustment, plates -> standardised log multiples of the median

    z = (log(value) - median - what gestation, weight and age do - shift of the plate) / scale

Median and scale are of the newborn's own laboratory, found without a label; the adjustment is fitted on unaffected training
rows alone.

Shape letters: n newborns, A analytes, C channels (analytes, then ratios), G groups, K columns of the splines.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np

from hpcai.book.analytes import Dictionary
from hpcai.errors import DataError
from hpcai.screening.batch import Batch, Bools, Floats
from hpcai.screening.plates import PlateShift
from hpcai.screening.survey import MINIMUM, Reference, groups, months_of

CLIP = 10.0  # robust sd; assumed: 20-fold at a usual spread, past which a value says `far` and no more
HUBER = 1.345  # sd past which a residual counts as its edge. Source: Huber 1981, Robust Statistics: 95 % efficient if normal
RIDGE = 1e-3  # of a case, on columns of unit sd; assumed: settles columns that say the same, and moves no other
MOST_ROWS = 50_000  # an adjustment has some 15 numbers a channel: more rows than that change nothing that matters
KNOTS = {  # assumed: borders that clinics use (extremely, very, late preterm, term; low weights; day of life)
    "gestation_weeks": (26.0, 30.0, 34.0, 37.0, 39.0, 41.0),
    "weight_g": (800.0, 1500.0, 2500.0, 3300.0, 4200.0),
    "age_h": (24.0, 36.0, 48.0, 72.0, 120.0, 168.0),
}


@dataclass(frozen=True)
class Features:
    """What is known of n newborns, by channel.

    Attributes:
        z_NC: (n, C) standardised log multiples within plus and minus `CLIP`; 0, the middle, where missing.
        missing_NC: (n, C) no value, or no reference for it.
        log_multiple_NC: (n, C) natural log of the adjusted multiples of the median; NaN where missing.
        known_N: (n,) whether the laboratory has a reference at all; where not, all of the row is missing.
    """

    z_NC: Floats
    missing_NC: Bools
    log_multiple_NC: Floats
    known_N: Bools

    @property
    def multiple_NC(self) -> Floats:
        """(n, C) multiples of the median, adjusted; NaN where missing."""
        return np.exp(self.log_multiple_NC)


def log_channels(dictionary: Dictionary, x_NA: Floats) -> Floats:
    """(n, C) natural logs of the analytes, then of their ratios; NaN where a value is missing or not positive."""
    n, analytes = x_NA.shape
    place = {a.name: i for i, a in enumerate(dictionary.analytes)}
    log_NC = np.empty((n, analytes + len(dictionary.ratios)))
    log_NC[:, :analytes] = np.where((x_NA > 0) & (x_NA < np.inf), x_NA, np.nan)
    np.log(log_NC[:, :analytes], out=log_NC[:, :analytes])
    for c, ratio in enumerate(dictionary.ratios, analytes):
        np.subtract(log_NC[:, place[ratio.top]], log_NC[:, place[ratio.bottom]], out=log_NC[:, c])
    return log_NC


def features(
    dictionary: Dictionary,
    batch: Batch,
    references: Mapping[str, Reference],
    adjustment: Adjustment | None = None,
    plates: PlateShift | None = None,
) -> Features:
    """Features of a batch; without an adjustment they are what `Adjustment.fit` reads, without plates none is moved."""
    median_NC, scale_NC, known_N = _references(batch, references, len(dictionary.channels))
    log_NC = log_channels(dictionary, batch.x_NA)
    log_NC -= median_NC
    if adjustment is not None:
        adjustment.subtract(log_NC, batch.number)
    if plates is not None:
        names, at_N = groups(batch.text["laboratory"], batch.text["plate"])
        log_NC -= np.array([plates.shift(*name) for name in names]).reshape(-1, log_NC.shape[1])[at_N] * scale_NC
    missing_NC = np.isnan(log_NC)
    z_NC = log_NC / scale_NC
    np.clip(z_NC, -CLIP, CLIP, out=z_NC)
    z_NC[missing_NC] = 0
    return Features(z_NC, missing_NC, log_NC, known_N)


def _references(batch: Batch, references: Mapping[str, Reference], channels: int) -> tuple[Floats, Floats, Bools]:
    """(n, C) median and scale of each row's laboratory and month, NaN without a reference; (n,) whether it has one."""
    names, at_N = groups(batch.text["laboratory"], months_of(batch))
    median_GC, scale_GC = np.full((2, len(names), channels), np.nan)
    known_G = np.zeros(len(names), bool)
    for g, (laboratory, month) in enumerate(names):
        if laboratory in references:
            reference = references[laboratory].at(month)
            median_GC[g], scale_GC[g], known_G[g] = reference.median_C, reference.scale_C, True
    return median_GC[at_N], scale_GC[at_N], known_G[at_N]


@dataclass(frozen=True)
class Spline:
    """A restricted cubic spline of one covariate: straight outside its knots, level outside what training has seen.

    Source: Harrell 2015, Regression Modeling Strategies, 2nd ed., 2.4.5 (its basis of truncated powers).

    Attributes:
        name: column of the dictionary.
        knots: at least 3, rising.
        low: least value that training has seen (1 in 1000 lies below it); a lower one counts as this.
        high: the same above.
        mean: of each of the knots - 1 columns in training: there a newborn of unknown covariate stands.
        sd: of each column in training.
    """

    name: str
    knots: tuple[float, ...]
    low: float
    high: float
    mean: list[float] = field(default_factory=list)
    sd: list[float] = field(default_factory=list)

    def raw(self, value_N: Floats) -> Floats:
        """(n, K) columns; NaN where the covariate is unknown."""
        span = self.knots[-1] - self.knots[0]
        x_N = np.clip(value_N, self.low, self.high) / span
        *inner, before, last = (k / span for k in self.knots)
        past = {k: np.maximum(x_N - k, 0) for k in (*inner, before, last)}
        cubes = {k: past_N * past_N * past_N for k, past_N in past.items()}
        bends = [
            cubes[k] - cubes[before] * (last - k) / (last - before) + cubes[last] * (before - k) / (last - before)
            for k in inner
        ]
        return np.stack([x_N, *bends], 1)

    def of(self, value_N: Floats) -> Floats:
        """(n, K) standardised columns; 0 where the covariate is unknown."""
        return np.nan_to_num((self.raw(value_N) - self.mean) / self.sd, copy=False)

    @classmethod
    def fit(cls, name: str, value_N: Floats) -> Spline | None:
        """On training values; None where too few are known or hardly two differ."""
        known = value_N[np.isfinite(value_N)]
        if len(known) < MINIMUM:
            return None
        low, high = np.quantile(known, [0.001, 0.999]).tolist()
        if low == high:
            return None
        raw_NK = cls(name, KNOTS[name], low, high).raw(known)
        sd_K = raw_NK.std(0)
        flat = np.where(sd_K > 1e-9, sd_K, np.inf)  # a bend past all that training has seen: its column is 0
        return cls(name, KNOTS[name], low, high, raw_NK.mean(0).tolist(), flat.tolist())


@dataclass(frozen=True)
class Adjustment:
    """What gestation, weight and age do to the log multiples of unaffected newborns: a sum of splines a channel.

    Attributes:
        splines: of the covariates that training knows.
        intercept_C: (C,) natural log.
        slope_KC: (K, C) natural log a standardised column of the splines, in their order.
        n: newborns that it was fitted on.
    """

    splines: list[Spline]
    intercept_C: Floats
    slope_KC: Floats
    n: int

    @classmethod
    def fit(cls, log_multiple_NC: Floats, number: Mapping[str, Floats]) -> Adjustment:
        """By Huber's regression on rows of unaffected training newborns; `number` as a batch has it."""
        n = len(log_multiple_NC)
        rows = np.linspace(0, n - 1, min(n, MOST_ROWS)).astype(np.int64)  # evenly: a function of the table alone
        found = [Spline.fit(name, number[name][rows]) for name in KNOTS if name in number]
        splines = [spline for spline in found if spline]
        columns = [spline.of(number[spline.name][rows]) for spline in splines]
        design_NK = np.concatenate([np.ones((len(rows), 1)), *columns], 1)
        weight_KC = _huber(design_NK, log_multiple_NC[rows])
        return cls(splines, weight_KC[0], weight_KC[1:], len(rows))

    def subtract(self, log_multiple_NC: Floats, number: Mapping[str, Floats]) -> None:
        """Take it off (n, C), in place; a newborn of unknown covariate counts as the average one."""
        log_multiple_NC -= self.intercept_C
        known = [
            s.of(number[s.name]) if s.name in number else np.zeros((len(log_multiple_NC), len(s.mean))) for s in self.splines
        ]
        if known:
            log_multiple_NC -= np.einsum(
                "nk,kc->nc", np.concatenate(known, 1), self.slope_KC
            )  # no row sees another: not so in BLAS

    def to_json(self) -> dict[str, Any]:
        """Plain numbers."""
        splines = [{**vars(spline), "knots": list(spline.knots)} for spline in self.splines]
        sds = [{**s, "sd": [None if v == np.inf else v for v in s["sd"]]} for s in splines]
        return {"splines": sds, "intercept": self.intercept_C.tolist(), "slope": self.slope_KC.tolist(), "n": self.n}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Adjustment:
        """What `to_json` wrote.

        Raises:
            DataError: its parts do not fit together, or a number is none.
        """
        try:
            splines = [_spline(part) for part in value["splines"]]
            intercept_C, n = np.array(value["intercept"], np.float64), int(value["n"])
            slope_KC = np.array(value["slope"], np.float64).reshape(-1, len(intercept_C))
            if len(slope_KC) != sum(len(s.mean) for s in splines) or not np.isfinite([*intercept_C, *slope_KC.ravel()]).all():
                raise ValueError
        except (KeyError, TypeError, ValueError, OverflowError):
            raise DataError("adjustment: damaged: its splines and slopes do not fit together. Fit the model again.") from None
        return cls(splines, intercept_C, slope_KC, n)


def _spline(value: dict[str, Any]) -> Spline:
    knots, (low, high) = tuple(map(float, value["knots"])), (float(value["low"]), float(value["high"]))
    mean, sd = [float(v) for v in value["mean"]], [np.inf if v is None else float(v) for v in value["sd"]]
    rising = all(a < b for a, b in pairwise(knots)) and low < high
    sound = np.isfinite([*knots, low, high, *mean]).all() and min(sd) > 0
    if value["name"] not in KNOTS or len(knots) < 3 or not len(mean) == len(sd) == len(knots) - 1 or not (rising and sound):
        raise ValueError
    return Spline(value["name"], knots, low, high, mean, sd)


def _huber(design_NK: Floats, y_NC: Floats) -> Floats:
    """(K, C) of Huber's regression of every column of `y` (NaN: left out), a light ridge on all but the intercept.

    Each step regresses the residuals, cut at `HUBER` sd, on the design: one factor for all channels. It nears the solution by
    the share of residuals that are cut or missing. Source: Huber 1981, Robust Statistics (modified residuals; from memory).
    """
    n, k = design_NK.shape
    penalty = RIDGE * n * np.diag([0.0] + [1.0] * (k - 1))
    inverse = np.linalg.inv(design_NK.T @ design_NK + penalty)
    missing_NC = np.isnan(y_NC)
    weight_KC = np.zeros((k, y_NC.shape[1]))
    for _ in range(4):
        residual_NC = y_NC - design_NK @ weight_KC
        edge_C = HUBER * _spread(residual_NC)
        for _ in range(12):
            residual_NC = np.clip(y_NC - design_NK @ weight_KC, -edge_C, edge_C)
            residual_NC[missing_NC] = 0
            weight_KC += inverse @ (design_NK.T @ residual_NC - penalty @ weight_KC)
    return weight_KC


def _spread(residual_NC: Floats) -> Floats:
    """(C,) median absolute residual, as the sd of a normal law; 0 for a channel without a value, so that its slopes stay 0."""
    spread = [np.median(np.abs(r[~np.isnan(r)])) if (~np.isnan(r)).any() else 0.0 for r in residual_NC.T]
    return np.array(spread) * 1.4826
