"""Cut-offs as data: a tree of comparisons a disease, read by one small engine (screening/rules.py)."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from hpcai.book.analytes import Dictionary, squeezed
from hpcai.config.words import Group, Text, key
from hpcai.errors import near, one_line


class Condition(Group):
    """A comparison of one quantity, or all/any of other conditions: just one of the three.

    `of`: an analyte (`Phe`), a ratio (`Phe/Tyr`), a sum (`C16+C18:1`) or a ratio of sums, all in umol/L. Where
    `above` and `below` are given, both must hold.
    """

    of: Text | None = None
    above: float | None = key(None, "true if the quantity is greater", unit="umol/L")
    below: float | None = key(None, "true if the quantity is less", unit="umol/L")
    all: list[Condition] | None = key(None, "true if every one is", min_length=1, max_length=50)
    any: list[Condition] | None = key(None, "true if one is", min_length=1, max_length=50)

    @model_validator(mode="after")
    def _one(self) -> Condition:
        if sum(part is not None for part in (self.of, self.all, self.any)) != 1:
            raise ValueError("give one of: of, all, any")
        if (self.of is not None) != (self.above is not None or self.below is not None):
            raise ValueError("of needs above or below, and they need of")
        return self


class Rule(Group):
    """When a disease is suspected."""

    disease: Text = key(..., "short name of the panel's disease")
    when: Condition
    source: Text = key(..., "where its numbers come from")


class Rules(Group):
    """A published or a laboratory's own set of cut-offs."""

    name: Text
    title: Text
    source: Text
    rules: Annotated[list[Rule], Field(min_length=1, max_length=500)]


def quantity(text: str, dictionary: Dictionary) -> tuple[list[int], list[int]]:
    """What `of` names, as places in the dictionary's analytes: those added above the line, and below it (none: no ratio).

    A whole name or synonym comes first: `Leu+Ile` is one analyte where the dictionary has it so.

    Raises:
        ValueError: a part is no analyte, or there is more than one `/`; the message is a fault's line without its file.
    """
    known = dictionary.places
    if (whole := known.get(squeezed(text))) is not None:
        return [whole], []
    ends = text.split("/")
    if len(ends) > 2:
        raise ValueError(f"of={one_line(text, 80)}: more than one ratio. Write top/bottom.")
    sides: list[list[int]] = [[], []]
    for side, end in zip(sides, ends):
        whole = known.get(squeezed(end))
        for word in [end] if whole is not None else end.split("+"):
            if (place := known.get(squeezed(word))) is None:
                names = [a.name for a in dictionary.analytes]
                raise ValueError(f"of={one_line(text, 80)}: {one_line(word, 80)} is no analyte. {near(word[:80], names)}")
            side.append(place)
    return sides[0], sides[1]
