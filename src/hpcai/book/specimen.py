"""What the state of a specimen does to each disease's result."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from hpcai.config.words import Group, Text, key


class SpecimenRule(Group):
    """One condition of a specimen and its effect. The worst effect of all rules that hold counts."""

    column: Text = key(..., "a column of the dictionary: age_h, transfused, punch_quality ...")
    above: float | None = key(None, "holds if the value is greater")
    below: float | None = key(None, "holds if the value is less")
    is_: bool | None = Field(None, alias="is", description="holds if the answer is this one (yes_no columns)")
    unknown: bool = key(False, "holds if the value is missing")
    diseases: list[Text] | None = key(None, "diseases that it touches; null: all")
    effect: Literal["valid", "repeat", "not_assessable"] = key(..., "valid: only noted; repeat: a new sample is wanted")
    repeat_when: Text | None = key(
        None, "when the new sample is to be taken: `at 24 to 72 h of age`, `120 days after transfusion`"
    )
    reason: Text = key(..., "as a person reads it: transfused before sampling")
    source: Text = key(..., "source, or: assumed, because ...")


class SpecimenRules(Group):
    """All of them."""

    name: Text
    title: Text
    rules: Annotated[list[SpecimenRule], Field(min_length=1, max_length=200)]
