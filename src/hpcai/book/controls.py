"""Plate controls: what each control material should read, and by which rules a plate fails."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator, Field

from hpcai.config.words import Group, Text, key

RULE = re.compile(r"(?P<count>[1-9]\d?)_(?P<limit>\d(?:\.\d)?)s|R_(?P<range>\d(?:\.\d)?)s|(?P<side>[1-9]\d?)_x", re.ASCII)


def _rule(text: str) -> str:
    if not RULE.fullmatch(text):
        raise ValueError("is no Westgard rule. Write one like 1_3s, 2_2s, 4_1s, R_4s or 10_x.")
    return text


RuleName = Annotated[str, AfterValidator(_rule)]


class Target(Group):
    """What one analyte of a control material should read."""

    mean: float = key(..., "assigned mean", unit="umol/L", gt=0)
    sd: float = key(..., "standard deviation between plates", unit="umol/L", gt=0)


class Material(Group):
    """A control material: one level of concentrations."""

    name: Text = key(..., "as the column `material` of the controls table names it: low, high")
    source: Text = key(..., "who assigned its values, or: assumed, because ...")
    targets: dict[str, Target] = Field(min_length=1, max_length=500)


class Controls(Group):
    """Materials and rules. A rule reads `count_limit s` (1_3s, 2_2s, 4_1s), `R_range s` (R_4s) or `count_x` (10_x)."""

    name: Text
    title: Text
    source: Text
    materials: list[Material] = Field(min_length=1, max_length=20)
    warning: list[RuleName] = key(["1_2s"], "only noted")
    rejecting: list[RuleName] = key(
        ["1_3s", "2_2s", "R_4s", "4_1s", "10_x"], "reject an analyte; the plate fails when `fails_at` analytes are rejected"
    )
    fatal: list[RuleName] = key([], "fail the plate by one analyte alone")
    fails_at: int = key(..., "rejected analytes at which the whole plate fails", ge=1)
    fails_source: Text = key(..., "why so many, and why these fatal rules")
    per_plate: int = key(..., "control specimens that a plate must have at least", ge=1)
