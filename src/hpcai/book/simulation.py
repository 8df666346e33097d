"""What the simulator assumes: distributions, correlations, newborns, laboratories, plates, affected profiles.   YAML -> checked

Incidences are the panel's (diseases.py), units the dictionary's. Every part has its source, or says: assumed, because ...
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Literal

from pydantic import Field, model_validator

from hpcai.config.words import Group, Name, Text, key

Share = Annotated[float, Field(ge=0, le=1)]
Spread = Annotated[float, Field(ge=0, le=3)]  # of natural logarithms
Multiple = Annotated[float, Field(gt=0, le=10_000)]
Span = Annotated[list[Multiple], Field(min_length=2, max_length=2)]
Month = Annotated[str, Field(pattern=r"^\d{4}-(0[1-9]|1[0-2])$")]
Law = Literal["lognormal", "student", "mixture"]


class Healthy(Group):
    """An analyte in unaffected newborns: log-normal, before tails, laboratories and states."""

    name: Text = key(..., "canonical name")
    median: Annotated[float, Field(gt=0)] = key(..., "median", unit="umol/L")
    sd_ln: Annotated[float, Field(gt=0, le=2)] = key(..., "standard deviation of the natural logarithm, within a laboratory")
    source: Text = key(..., "source, or: assumed, because ...")


class Factor(Group):
    """A hidden cause that analytes share: what makes them correlate. Two analytes' correlation: sum of loading products."""

    name: Text
    loadings: dict[str, Annotated[float, Field(ge=-1, le=1)]] = key({}, "by analyte; squares sum to less than 1 an analyte")
    everywhere: float = key(0.0, "loading of the analytes that are not named", ge=-1, le=1)
    source: Text


class Tails(Group):
    """The three laws of the logarithms' tails; the middle of all three is the same."""

    student_df: Annotated[float, Field(gt=2)] = key(..., "degrees of freedom, each analyte by itself: outliers come alone")
    student_quartile: Annotated[float, Field(gt=0.67, lt=0.82)] = key(..., "upper quartile of that law: it is scaled by it")
    mixture_share: Share = key(..., "newborns whose whole profile is wider: outliers come together")
    mixture_scale: Annotated[float, Field(ge=1, le=10)] = key(..., "times the usual standard deviation there")
    source: Text


class Newborns(Group):
    """Who is born and how the specimen is taken."""

    preterm: Share = key(..., "born before 37 weeks")
    twin: Share = key(..., "second of a pair; its family, gestation and plate are the first one's")
    twin_correlation: Share = key(..., "of the pair's logarithms")
    early: Share = key(..., "sampled before 36 h")
    late: Share = key(..., "sampled after 72 h")
    second: Share = key(..., "second specimen of a newborn")
    poor: Share = key(..., "punch of poor quality")
    unknown: Share = key(..., "cells of gestation and weight that are empty")
    missing: Share = key(..., "cells of analytes that are empty")
    source: Text


class Slope(Group):
    """A covariate's effect on the logarithm: `of` times (value - centre) / per, the fraction kept within low and high."""

    column: Literal["gestation_weeks", "weight_g", "age_h"]
    centre: float
    per: Annotated[float, Field(gt=0)]
    low: float
    high: float
    of: dict[str, Annotated[float, Field(ge=-2, le=2)]] = key(..., "change of the natural logarithm a step, by analyte")
    source: Text


class State(Group):
    """What moves an unaffected newborn's profile: treatment, feeding, carriers, immaturity."""

    name: Text
    column: Text | None = key(None, "yes_no column that tells of it; null: nobody knows")
    share: Share = key(..., "of term newborns")
    preterm: Share = key(..., "of preterm newborns")
    multiples: dict[str, Span] = key(..., "by analyte: least and greatest multiple, drawn evenly on the log scale")
    hides: Share = key(0.0, "part of an affected profile (of its logarithm) that is lost: donor blood dilutes it")
    source: Text


class Profile(Group):
    """An affected newborn: multiples of the median at severity 0 and at severity 1, log-linear between."""

    disease: Text
    markers: dict[str, Span] = key(..., "by analyte: [mildest, most severe]; below 1 where it falls", min_length=1)
    mild: Share = key(..., "share of late-onset cases; they overlap the healthy")
    source: Text


class Disturbance(Group):
    """A month in which a laboratory's measurement differs."""

    month: Month
    shift_ln: Spread = key(..., "standard deviation over analytes of the shift of the logarithm")
    spread: Annotated[float, Field(gt=0, le=5)] = key(1.0, "times the usual spread")
    share: Share = key(1.0, "specimens that it touches: between 0 and 1 it changes the shape, which no shift corrects")


class Laboratory(Group):
    """A laboratory. Its shifts are drawn by its name alone: A is the same in every table, whatever the seed."""

    name: Name
    share: Annotated[float, Field(gt=0)] = key(..., "of plates, relative to the others")
    split: Literal["train", "test"] = key(..., "test: a model never sees it")
    tail: Law
    common_ln: float = key(0.0, "shift of every logarithm: punch, extraction", ge=-1, le=1)
    shift_ln: Spread = key(..., "standard deviation over analytes of its shift of the logarithm")
    spread_ln: Spread = key(..., "standard deviation over analytes of the logarithm of its spread's factor")
    mixing: Spread = key(..., "how far its correlations are from the book's: 0 is the same")
    drift_ln: Spread = key(..., "standard deviation over analytes of a month's shift")
    unmeasured: list[Text] = key([], "analytes that it does not measure")
    disturbed: list[Disturbance] = key([], "months that differ")


class Material(Group):
    """A control material: assigned values as multiples of the healthy medians."""

    name: Text
    multiple: Multiple


class Plates(Group):
    """Plates and their controls."""

    size: Annotated[int, Field(ge=1, le=1536)] = key(..., "newborns a plate")
    a_month: Annotated[int, Field(ge=1)] = key(..., "plates a month, of all laboratories")
    sd_ln: Spread = key(..., "standard deviation of a plate's shift, each analyte")
    failed: Share = key(..., "plates that fail")
    failed_ln: float = key(..., "shift of the logarithm of a third of the analytes on a failed plate", ge=-3, le=3)
    materials: list[Material] = Field(min_length=1, max_length=10)
    controls: Annotated[int, Field(ge=1, le=20)] = key(..., "wells of each material a plate")
    control_sd_ln: Spread = key(..., "standard deviation of a control well within its plate")
    source: Text


class SimulationBook(Group):
    """Everything that the simulator draws from."""

    name: Text
    title: Text
    months: list[Month] = Field(min_length=1, max_length=120)
    healthy: list[Healthy] = Field(min_length=2, max_length=500)
    factors: list[Factor] = Field(max_length=50)
    tails: Tails
    newborns: Newborns
    slopes: list[Slope] = Field(max_length=50)
    states: list[State] = Field(max_length=100)
    profiles: list[Profile] = Field(min_length=1, max_length=500)
    profile_sd_ln: Spread = key(..., "scatter of an affected newborn's marker about its severity's multiple")
    profile_source: Text
    laboratories: list[Laboratory] = Field(min_length=1, max_length=100)
    laboratory_source: Text
    plates: Plates

    @model_validator(mode="after")
    def _whole(self) -> SimulationBook:
        names = [h.name for h in self.healthy]
        for kind, given in (
            ("analyte", names),
            ("laboratory", [lab.name for lab in self.laboratories]),
            ("disease", [p.disease for p in self.profiles]),
        ):
            if twice := sorted({n for n in given if given.count(n) > 1}):
                raise ValueError(f"{kind} {', '.join(twice)} stands twice")
        parts: list[Iterable[str]] = [f.loadings for f in self.factors]
        parts += [*(s.of for s in self.slopes), *(s.multiples for s in self.states), *(p.markers for p in self.profiles)]
        if unknown := sorted({a for part in parts for a in part} - set(names)):
            raise ValueError(f"{', '.join(unknown)}: no distribution under healthy")
        for name in names:
            if sum(f.loadings.get(name, f.everywhere) ** 2 for f in self.factors) >= 1:
                raise ValueError(f"{name}: the squares of its loadings sum to 1 or more")
        return self
