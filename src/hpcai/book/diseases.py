"""What is screened for: markers, needs, second tier, urgency, incidence."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from hpcai.config.words import Group, Text, key


class Disease(Group):
    """One disease of the panel."""

    name: Text = key(..., "short name: PKU, MCAD")
    title: Text = key(..., "full name")
    markers: list[Text] = key(..., "channels (analytes, ratios) that show it", min_length=1)
    needs: list[Text] = key(..., "analytes without which it cannot be assessed", min_length=1)
    second_tier: Text | None = key(..., "test on the same spot that settles a doubt; null: there is none")
    second_tier_source: Text = key(..., "source")
    time_critical: bool = key(..., "whether a result is wanted by day 5 of life, else by day 7")
    time_source: Text = key(..., "source of the time class")
    incidence: Annotated[float, Field(gt=0, lt=0.01)] = key(..., "affected newborns among all")
    incidence_source: Text = key(..., "source")


class Diseases(Group):
    """The panel, in the order in which results are told."""

    name: Text
    title: Text
    diseases: list[Disease] = Field(min_length=1, max_length=500)
    critical_day: int = key(5, "day of life by which a time-critical result is wanted", ge=1)
    other_day: int = key(7, "day of life by which every other result is wanted", ge=1)
    day_source: Text

    @property
    def names(self) -> list[str]:
        """Short names, in order."""
        return [d.name for d in self.diseases]
