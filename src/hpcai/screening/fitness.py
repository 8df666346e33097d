"""Does a population still fit the one that set the thresholds?   two surveys -> a verdict by laboratory and month

Two questions, of every channel that matters:

    before   do the values lie as they lay?                     all do: `fits`
    after    do they, once median and spread are the same?      all do: `corrected`; else `not_valid`: recalibrate

`As they lay`: as in the same laboratory where training had it, else as in all of training. A channel differs where chance is
a poor reason (p, for all tests together) *and* the difference matters (an effect above what is allowed): among 100,000
newborns p alone finds a difference everywhere, among 200 the effect alone does. Not seen here: how channels go together
(but each ratio is a channel), and differences in tails that are rarer than `TAIL`.

Shape letters: C channels, B bins, Z points of a standardised scale.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

import numpy as np

from hpcai.errors import DataError
from hpcai.metrics.shift import SIGNIFICANT, kolmogorov
from hpcai.screening.batch import Floats, Ints
from hpcai.screening.survey import BINS, DISTANCE, MINIMUM, TENTHS, Survey, lies_elsewhere

Verdict = Literal["fits", "corrected", "not_valid"]

TAIL = 2.5  # robust sd: one newborn in 160 if normal. Further out the affected would be taken for a shift of the healthy
FACTOR = 2.0  # of the share beyond `TAIL`; assumed: twice, or half, as many recalls are another test
COARSE = 0.1  # share of values in one bin, from which on a tail is a matter of rounding and is not compared
POINTS = np.linspace(-6, 6, 121)  # Z
VERIFIED = 20  # newborns that can confirm a reference which others have made. Source: CLSI EP28-A3c, to verify one
TOLD = 8  # tests kept of a verdict, those that differ first
PLOTTED = 4


@dataclass(frozen=True)
class Tested:
    """One channel, one question.

    Attributes:
        channel: its name.
        question: `before`: place and spread as they are; `shape`, `low tail`, `high tail`: after the correction.
        training: largest distance: None; tails: share of newborns beyond.
        cohort: the same.
        effect: distance of the distribution functions; tails: how many times as many, or as few.
        allowed: the largest effect that does not matter.
        p: times the number of tests of the question, at most 1.
    """

    channel: str
    question: Literal["before", "shape", "low tail", "high tail"]
    training: float | None
    cohort: float | None
    effect: float
    allowed: float
    p: float

    @property
    def differs(self) -> bool:
        """Not by chance, and so that it matters."""
        return self.p < SIGNIFICANT and self.effect > self.allowed


@dataclass(frozen=True)
class Fitness:
    """A laboratory, or one of its months.

    Attributes:
        laboratory: its name.
        month: "" for all of its months.
        n: newborns that were counted.
        verdict: `fits`, `corrected` (by median and spread: what features do), `not_valid` (the model must not be used here).
        sentence: the verdict with its reason.
        tests: those that differ, then the nearest to it, at most `TOLD`.
        rejected: channels whose shape differs after the correction.
        plot: of the channels that differ most: shares of newborns by `z`, in `training`, `before` and `after`.
    """

    laboratory: str
    month: str
    n: int
    verdict: Verdict
    sentence: str
    tests: list[Tested] = field(default_factory=list)
    rejected: list[str] = field(default_factory=list)
    plot: list[dict[str, Any]] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Plain data; each test with `differs`."""
        return {**asdict(self), "tests": [{**asdict(t), "differs": t.differs} for t in self.tests]}


@dataclass(frozen=True)
class Shape:
    """How the channels of some newborns are distributed, as they are and on a scale by their own median and spread.

    Attributes:
        count_CB: (C, B) as in the survey, without what is missing; none for a channel with fewer than `MINIMUM`.
        n_C: values that are counted.
        median_C: natural log.
        scale_C: robust sd of the logs.
        below_CZ: share below each of `POINTS` on that scale.
    """

    count_CB: Ints
    n_C: Ints
    median_C: Floats
    scale_C: Floats
    below_CZ: Floats

    @classmethod
    def of(cls, survey: Survey, laboratory: str, months: Sequence[str]) -> Shape:
        """Of some months of a laboratory; those that lie elsewhere than the others stand on a scale of their own."""
        reference = survey.reference(laboratory) if len(months) > 1 else None
        own = [month for month in months if reference and month in reference.months]
        parts = [[month] for month in own] + [[month for month in months if month not in own]]
        return cls.pooled(
            [cls._of(survey, np.sum([survey.counts[laboratory, m] for m in part], axis=0)) for part in parts if part]
        )

    @classmethod
    def _of(cls, survey: Survey, count_CB: Ints) -> Shape:
        median_C, scale_C = survey.middle(count_CB)
        count_CB = np.where(np.isnan(median_C)[:, None], 0, count_CB[:, :BINS])
        return cls(count_CB, count_CB.sum(1), median_C, scale_C, below(survey, count_CB, median_C, scale_C))

    @classmethod
    def pooled(cls, shapes: list[Shape]) -> Shape:
        """Of several laboratories or months: each on its own scale, weighted by its values."""
        n_LC = np.array([s.n_C for s in shapes])
        share_LC = n_LC / np.maximum(n_LC.sum(0), 1)
        median_C = np.nansum(share_LC * [s.median_C for s in shapes], 0)
        scale_C = np.nansum(share_LC * [s.scale_C for s in shapes], 0)
        below_CZ = np.nansum(share_LC[..., None] * [s.below_CZ for s in shapes], 0)
        return cls(np.sum([s.count_CB for s in shapes], 0), n_LC.sum(0), median_C, scale_C, below_CZ)


def below(survey: Survey, count_CB: Ints, median_C: Floats, scale_C: Floats) -> Floats:
    """(C, Z) share of counts (C, B) below `POINTS` on a scale; straight within a bin; 0 for a channel without a value."""
    end_CB = np.pad(np.cumsum(count_CB, axis=1), ((0, 0), (1, 0)))
    at_CZ = np.nan_to_num(median_C[:, None] + scale_C[:, None] * POINTS)
    rows = [np.interp(at, edge, end) for at, edge, end in zip(at_CZ, survey.edge_CB, end_CB, strict=True)]
    return np.array(rows) / np.maximum(end_CB[:, -1:], 1)


def fitness(training: Survey, cohort: Survey, channels: Sequence[str] | None = None) -> list[Fitness]:
    """Every laboratory of the cohort (month ""), then each of its months.

    Args:
        training: unaffected newborns that the model was fitted on.
        cohort: all newborns, whose diseases nobody knows yet.
        channels: those that matter (that the model reads); None: all of the dictionary.

    Raises:
        DataError: no laboratory of `training` has the newborns that a comparison needs.
    """
    chosen = [c for c, name in enumerate(training.dictionary.channels) if channels is None or name in channels]
    shapes = {
        name: Shape.of(training, name, training.months(name)) for name in training.laboratories if training.n(name) >= MINIMUM
    }
    if not shapes:
        raise DataError(
            f"training: no laboratory has {MINIMUM} unaffected newborns: nothing can be compared. Use a larger table."
        )
    pooled = Shape.pooled(list(shapes.values()))
    return [
        fit
        for laboratory in cohort.laboratories
        for fit in _laboratory(laboratory, cohort, shapes.get(laboratory, pooled), chosen)
    ]


def _laboratory(laboratory: str, cohort: Survey, standard: Shape, chosen: list[int]) -> list[Fitness]:
    """The verdict on a laboratory without the months that fail by themselves; then those on its months.

    A month is not valid by itself, or because its laboratory is not (a small month alone sees little). Two months that fail and
    hold most of the newborns fail their laboratory.
    """
    months = cohort.months(laboratory)
    alone = {month: _judged(laboratory, [month], cohort, standard, chosen) for month in months}
    failed = [fit for fit in alone.values() if fit.n >= MINIMUM and fit.verdict == "not_valid"]
    n, of_failed = cohort.n(laboratory), sum(fit.n for fit in failed)
    others = [month for month in months if alone[month] not in failed]
    strays = [month for month in others if alone[month].n < MINIMUM and _stray(month, others, laboratory, cohort)]
    judged = [month for month in others if month not in strays]
    whole = _judged(laboratory, judged, cohort, standard, chosen) if len(judged) > 1 else alone[[*judged, *others, *months][0]]
    if len(failed) > 1 and 2 * of_failed > n:
        rejected = [c for c in cohort.dictionary.channels if any(c in fit.rejected for fit in failed)]
        named = ", ".join(fit.month for fit in failed)
        said = f"Not valid here, recalibrate: {of_failed} of {n} newborns are of months that differ in shape ({named})."
        whole = replace(failed[0], sentence=said, rejected=rejected)
    whole = replace(whole, month="", n=n)
    return [whole, *(_month(fit, whole, month in judged) for month, fit in alone.items() if month)]


def _stray(month: str, others: list[str], laboratory: str, cohort: Survey) -> bool:
    """Whether a month that is too small for a verdict lies elsewhere than the others together."""
    rest = [cohort.counts[laboratory, other] for other in others if other != month]
    return bool(rest) and lies_elsewhere(cohort.counts[laboratory, month], np.sum(rest, axis=0), VERIFIED)


def _month(fit: Fitness, whole: Fitness, judged: bool) -> Fitness:
    """A month's verdict, once its laboratory's is known; `judged`: whether the month is part of that one."""
    if judged and whole.verdict == "not_valid" != fit.verdict:
        said = "Not valid here, recalibrate: so it is for the laboratory, whose other months tell more than this one."
        return replace(fit, verdict="not_valid", sentence=said, rejected=whole.rejected)
    if judged and VERIFIED <= fit.n < MINIMUM:
        said = f"As the laboratory: {fit.n} newborns are too few for a verdict of their own; they lie where its others do."
        return replace(fit, verdict=whole.verdict, sentence=said)
    return fit


def _judged(laboratory: str, months: list[str], cohort: Survey, standard: Shape, chosen: list[int]) -> Fitness:
    """A verdict on some months by themselves; `standard`: how the values lay in training."""
    n, month = sum(cohort.n(laboratory, m) for m in months), months[0] if len(months) == 1 else ""
    if n < MINIMUM:
        said = f"Not valid here: {n} of the {MINIMUM} newborns without whom a comparison sees nothing."
        return Fitness(laboratory, month, n, "not_valid", said)
    shape = Shape.of(cohort, laboratory, months)
    names = cohort.dictionary.channels
    both = [c for c in chosen if min(shape.n_C[c], standard.n_C[c]) >= MINIMUM]
    before = [_distance(names[c], "before", standard, shape, c, len(both)) for c in both]
    after = [_distance(names[c], "shape", standard, shape, c, 3 * len(both)) for c in both]
    after += [tail for c in both for tail in _tails(names[c], standard, shape, c, 3 * len(both))]
    rejected = [names[c] for c in both if any(t.differs and t.channel == names[c] for t in after)]
    moved = any(t.differs for t in before)
    verdict: Verdict = "not_valid" if rejected or not both else "corrected" if moved else "fits"
    asked = before if verdict == "fits" else after
    first = sorted(asked, key=_urgency)
    told = sorted([*before, *after], key=_urgency)[:TOLD]
    plot = [
        _lines(cohort, names.index(name), standard, shape) for name in list(dict.fromkeys(t.channel for t in first))[:PLOTTED]
    ]
    said = _sentence(verdict, first, rejected, len(both))
    return Fitness(laboratory, month, n, verdict, said, told, rejected, plot)


def _urgency(test: Tested) -> tuple[bool, float]:
    return not test.differs, -test.effect / test.allowed


def _distance(name: str, question: Literal["before", "shape"], standard: Shape, shape: Shape, c: int, tests: int) -> Tested:
    """Kolmogorov and Smirnov's test; on scales by own median and spread it is conservative (Lilliefors 1967, JASA 62:399).

    What is allowed is at least the largest share of values in one bin: values that are rounded lie on other steps of a scale.
    """
    parts = (standard, shape)
    if question == "before":
        low, high = (np.cumsum(s.count_CB[c]) / s.n_C[c] for s in parts)
    else:
        low, high = (s.below_CZ[c] for s in parts)
    distance = float(np.abs(low - high).max())
    p = kolmogorov(distance, int(standard.n_C[c]), int(shape.n_C[c]))
    allowed = DISTANCE if question == "before" else max(DISTANCE, *(_atom(s, c) for s in parts))
    return Tested(name, question, None, None, distance, allowed, min(1.0, p * tests))


def _atom(shape: Shape, c: int) -> float:
    return float(shape.count_CB[c].max() / shape.n_C[c])


def _tails(name: str, standard: Shape, shape: Shape, c: int, tests: int) -> list[Tested]:
    """Shares beyond `TAIL` to both sides: the larger p of a test that knows how small counts vary and one that knows that the
    scale is estimated too."""
    if max(_atom(standard, c), _atom(shape, c)) > COARSE:
        return []
    n, m = int(shape.n_C[c]), int(standard.n_C[c])
    both_Z = (m * standard.below_CZ[c] + n * shape.below_CZ[c]) / (n + m)  # their best guess if they are the same
    found: list[Tested] = []
    tails: list[tuple[Literal["low tail", "high tail"], float]] = [("low tail", -TAIL), ("high tail", TAIL)]
    for question, at in tails:
        first, second = (_beyond(s.below_CZ[c], at) for s in (standard, shape))
        counts = round(first * m), round(second * n)
        ratio = ((counts[1] + 0.5) / (n + 1)) / ((counts[0] + 0.5) / (m + 1))
        variance = max(_variance(below_Z, at) for below_Z in (standard.below_CZ[c], both_Z))
        error = math.sqrt(variance * (1 / n + 1 / m))
        p = math.erfc(abs(first - second) / error / math.sqrt(2)) if error else 1.0
        p = max(p, binomial(counts[1], sum(counts), n / (n + m)))
        found.append(Tested(name, question, first, second, max(ratio, 1 / ratio), FACTOR, min(1.0, p * tests)))
    return found


def _beyond(below_Z: Floats, at: float) -> float:
    share = float(np.interp(at, POINTS, below_Z))
    return share if at < 0 else 1 - share


def _variance(below_Z: Floats, at: float) -> float:
    """n times the variance of the share beyond `at` on a scale by own median and deciles.

    By influence functions: a value counts for itself, and moves the median and both deciles, and so the edge of the tail.
    Source: Hampel et al. 1986, Robust Statistics (of a quantile).
    """
    step = POINTS[1] - POINTS[0]
    middle = np.concatenate([[POINTS[0] - step], (POINTS[1:] + POINTS[:-1]) / 2, [POINTS[-1] + step]])
    mass = np.diff(below_Z, prepend=0, append=1)
    low, high = np.interp([0.1, 0.9], below_Z, POINTS)
    quantile = {z: (q - (middle < z)) / max(_density(below_Z, z), 1e-3) for q, z in ((0.1, low), (0.5, 0.0), (0.9, high))}
    edge = quantile[0.0] + at * (quantile[high] - quantile[low]) / TENTHS
    outside = (middle < at) if at < 0 else (middle > at)
    influence = outside + math.copysign(1, -at) * _density(below_Z, at) * edge
    return float(mass @ influence**2 - (mass @ influence) ** 2)


def _density(below_Z: Floats, at: float) -> float:
    width = 0.4
    low, high = np.interp([at - width / 2, at + width / 2], POINTS, below_Z)
    return float(high - low) / width


def binomial(k: int, n: int, share: float) -> float:
    """Twice the smaller tail at `k` of `n` draws, k itself included; at most 1."""
    factorial = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, n + 1)))])
    i = np.arange(n + 1)
    mass = np.exp(factorial[n] - factorial - factorial[::-1] + i * math.log(share) + (n - i) * math.log1p(-share))
    return min(1.0, 2 * min(float(mass[: k + 1].sum()), float(mass[k:].sum())))


def _sentence(verdict: Verdict, first: list[Tested], rejected: list[str], channels: int) -> str:
    """The verdict with its reason."""
    if not channels:
        return f"Not valid here: no channel has the {MINIMUM} values that a comparison needs."
    most = _said(first[0])
    if verdict == "not_valid":
        many = f"{', '.join(rejected[:5])}{' and others' if len(rejected) > 5 else ''}"
        return f"Not valid here, recalibrate: of {channels} channels {len(rejected)} differ in shape ({many}; most: {most})."
    if verdict == "corrected":
        return (
            f"Corrected: medians or spreads moved; with them set right, no shape of {channels} channels differs (most: {most})."
        )
    return f"Fits: {channels} channels lie as they lay in training (most: {most})."


def _said(test: Tested) -> str:
    if test.training is None or test.cohort is None:
        return f"{test.channel}, distance {test.effect:.3f}, allowed {test.allowed:.3f}"
    return f"{test.channel}, {test.question} {test.cohort:.2%} against {test.training:.2%}"


def _lines(cohort: Survey, c: int, standard: Shape, shape: Shape) -> dict[str, Any]:
    """Shares of newborns in steps of half an sd of training: in training, and of this laboratory before and after."""
    before_CZ = below(cohort, shape.count_CB, standard.median_C, standard.scale_C)
    shares = [np.diff(part[c][::5]).round(5).tolist() for part in (standard.below_CZ, before_CZ, shape.below_CZ)]
    z = ((POINTS[::5][1:] + POINTS[::5][:-1]) / 2).round(3).tolist()
    return {"channel": cohort.dictionary.channels[c], "z": z, **dict(zip(("training", "before", "after"), shares, strict=True))}
