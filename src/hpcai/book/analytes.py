"""The dictionary of a table: which columns there are, what they may be called, in which unit and range."""

from __future__ import annotations

import re
from functools import cached_property
from typing import Annotated, Literal

from pydantic import Field

from hpcai.config.words import Group, Text, key

Positive = Annotated[float, Field(gt=0)]


class Analyte(Group):
    """A concentration in dried blood, umol/L."""

    name: Text = key(..., "canonical name: Phe, C5:1, C14OH")
    title: Text = key(..., "full name")
    synonyms: list[Text] = key([], "other names of its column; case and spaces do not count")
    loinc: str | None = key(None, "LOINC code of the newborn dried-blood test, where known", pattern=r"^\d{1,7}-\d$")
    required: bool = key(True, "whether a table without it is refused")
    low: Positive = key(..., "a value below it is implausible", unit="umol/L")
    high: Positive = key(..., "a value above it is implausible", unit="umol/L")
    typical: Positive = key(
        ..., "order of magnitude in a healthy newborn: finds swapped columns and other units", unit="umol/L"
    )
    detection: Annotated[float, Field(ge=0)] = key(
        0.0, "limit of detection; a lower value or 0 counts as half of it", unit="umol/L"
    )
    source: Text = key(..., "where range and typical value come from, or: assumed, because ...")


class Ratio(Group):
    """Two analytes divided: a channel of its own, called `top/bottom`."""

    top: Text = key(..., "canonical name")
    bottom: Text = key(..., "canonical name")
    source: Text = key(..., "who uses it for what")

    @property
    def name(self) -> str:
        """`Phe/Tyr`."""
        return f"{self.top}/{self.bottom}"


class Column(Group):
    """A column that is no concentration: who, where, when, and in which state the specimen was taken."""

    name: Text = key(..., "canonical name, with its unit: age_h, gestation_weeks, weight_g, transfused, laboratory ...")
    kind: Literal["text", "number", "yes_no"] = key(..., "yes_no: 1, 0, yes, no, true, false, empty for unknown")
    synonyms: list[Text] = key([], "other names of the column; case and spaces do not count")
    required: bool = key(False, "whether a table without it is refused")
    low: float | None = key(None, "a value below it is implausible")
    high: float | None = key(None, "a value above it is implausible")
    typical: float | None = key(None, "median in a usual cohort: finds hours for days, kg for g")
    source: Text = key("", "where range and typical value come from, or: assumed, because ...")


class Dictionary(Group):
    """All columns that a laboratory's table may have."""

    name: Text
    title: Text
    analytes: list[Analyte] = Field(min_length=2, max_length=500)
    ratios: list[Ratio] = Field(max_length=500)
    columns: list[Column] = Field(max_length=50)

    @property
    def channels(self) -> list[str]:
        """Analytes, then ratios, in their order: the columns of features."""
        return [a.name for a in self.analytes] + [r.name for r in self.ratios]

    @cached_property
    def places(self) -> dict[str, int]:
        """The place of each analyte, by its squeezed name and synonyms."""
        return {squeezed(word): i for i, a in enumerate(self.analytes) for word in [a.name, *a.synonyms]}


def squeezed(name: str) -> str:
    """A name as names are compared: case, spaces and underscores do not count."""
    return re.sub(r"[\s_]", "", name).casefold()
