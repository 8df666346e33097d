"""From a table's numbers to an estimator's.   x_nF, fitted on training cases alone -> x_nC, without a gap

    absent?  ->  (x - centre) / scale  ->  cut to +-clip  ->  nearer to 0 by quiet  ->  gaps are 0
    ->  one channel, or one above 0 and one below  ->  flags

Shape letters: n cases, F features of the table, C channels (of the features kept, then flags).
"""

from __future__ import annotations

from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from hpcai.config.schema import Features
from hpcai.config.words import Group
from hpcai.errors import DataError, near

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

ENOUGH = 20  # measured controls, below which a feature is scaled by all training cases: an sd of fewer is off by a sixth
TIED = 2  # cases at a feature's least value that make it `not measured` (features.absent=minimum)
Texts = list[Annotated[str, Field(max_length=10_000)]]


class Channels(Group):
    """How features become channels; what it was fitted to is in it.

    Attributes:
        names: features kept, in the table's order.
        centre: of each, in its own unit.
        scale: of each, positive.
        floor: at or below it a feature was not measured; None: an empty cell alone says so.
        flagged: places in `names` of the features with a flag.
        clip: in units of scale.
        quiet: in units of scale.
        sides: whether a feature has a channel above 0 and one below.
    """

    names: Texts = Field(min_length=1, max_length=1_000_000)
    centre: list[float]
    scale: list[Annotated[float, Field(gt=0)]]
    floor: list[float | None]
    flagged: list[int]
    clip: float | None = Field(default=None, gt=0)
    quiet: float = Field(default=0.0, ge=0)
    sides: bool = False

    @model_validator(mode="after")
    def _fits(self) -> Channels:
        f = len(self.names)
        if not (f == len(self.centre) == len(self.scale) == len(self.floor) and all(0 <= k < f for k in self.flagged)):
            raise ValueError("the columns of the features differ in length")
        return self

    @property
    def channels(self) -> list[str]:
        """C names: features, or `NAME high` of each, then `NAME low` of each; then `NAME not measured`."""
        sides = [f"{name} {side}" for side in ("high", "low") for name in self.names] if self.sides else self.names
        return [*sides, *(f"{self.names[k]} not measured" for k in self.flagged)]

    def apply(self, names: list[str], x_nF: Floats, quiet: float | None = None) -> Floats:
        """(n, C) channels of a table that has these features among its own, in any order; `quiet` in place of its own.

        Raises: DataError for features that the table lacks.
        """
        place = {name: k for k, name in enumerate(names)}
        if missing := [name for name in self.names if name not in place]:
            raise DataError(
                f"data.path: lacks {len(missing):,} of {len(self.names):,} features of the model, first `{missing[0]}`. "
                f"{near(missing[0], names[:1000])}"
            )
        x = x_nF[:, [place[name] for name in self.names]]
        floor = np.array([-np.inf if v is None else v for v in self.floor])
        absent = np.isnan(x) | (x <= floor)
        z = (x - np.array(self.centre)) / np.array(self.scale)
        z = z if self.clip is None else np.clip(z, -self.clip, self.clip)
        z = np.sign(z) * np.maximum(np.abs(z) - (self.quiet if quiet is None else quiet), 0.0)
        z[absent] = 0.0
        parts = [np.maximum(z, 0.0), np.maximum(-z, 0.0)] if self.sides else [z]
        return np.hstack([*parts, absent[:, self.flagged].astype(np.float64)])


def fit_channels(names: list[str], x_nF: Floats, label_n: Ints, cfg: Features, quiet: float = 0.0) -> Channels:
    """Fitted on training cases: which features stay, what says `not measured`, centre and scale.

    A feature goes where a magnitude is above features.limit, or where what was measured never differs.

    Raises: DataError if no feature is left.
    """
    least = np.where(np.isnan(x_nF).all(0), np.inf, np.nanmin(np.where(np.isnan(x_nF), np.inf, x_nF), axis=0))
    tied = (x_nF == least).sum(0) >= TIED
    floor = np.where(tied, least, -np.inf) if cfg.absent == "minimum" else np.full(x_nF.shape[1], -np.inf)
    measured = ~np.isnan(x_nF) & (x_nF > floor)
    centre, scale = _scaling(x_nF, measured, label_n, cfg.scale)
    kept = (_moments(x_nF, measured)[1] > 0) & np.isfinite(centre) & np.isfinite(scale) & (scale > 0)
    if cfg.limit is not None:
        kept &= ~(np.abs(np.where(measured, x_nF, 0.0)) > cfg.limit).any(0)
    if not kept.any():
        raise DataError("features: no feature is left of the training cases. Raise features.limit, or check the table.")
    at = np.flatnonzero(kept)
    some = ~measured[:, at].all(0)
    return Channels(
        names=[names[k] for k in at],
        centre=centre[at].tolist(),
        scale=scale[at].tolist(),
        floor=[None if np.isinf(v) else float(v) for v in floor[at]],
        flagged=np.flatnonzero(some).tolist() if cfg.flags else [],
        clip=cfg.clip,
        quiet=float(quiet),
        sides=cfg.sides,
    )


def _scaling(x_nF: Floats, measured: NDArray[np.bool_], label_n: Ints, by: str) -> tuple[Floats, Floats]:
    """Centre and scale, (F,) each; by the first class where enough of it were measured and differ, else by all cases."""
    f = x_nF.shape[1]
    if by == "none":
        return np.zeros(f), np.ones(f)
    centre, scale, _ = _moments(x_nF, measured)
    if by == "first":
        own, spread, count = _moments(x_nF[label_n == 0], measured[label_n == 0])
        use = (count >= ENOUGH) & (spread > 0)
        centre, scale = np.where(use, own, centre), np.where(use, spread, scale)
    return centre, scale


def _moments(x_nF: Floats, measured: NDArray[np.bool_]) -> tuple[Floats, Floats, Floats]:
    """Mean, standard deviation and count of what was measured, (F,) each; NaN or 0 where too little was."""
    count = measured.sum(0).astype(np.float64)
    x = np.where(measured, x_nF, 0.0)
    with np.errstate(all="ignore"):
        mean = x.sum(0) / count
        spread = np.sqrt((np.where(measured, x_nF - mean, 0.0) ** 2).sum(0) / np.maximum(count - 1, 1))
        spread = np.where(spread > 1e-9 * np.abs(mean), spread, 0.0)  # rounding is no spread
    return mean, spread, count
