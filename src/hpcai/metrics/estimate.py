"""A number with what it needs to be read: its interval, its n and how both were made."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Estimate:
    """One measured number.

    Attributes:
        name: `auc`, `accuracy`, `sensitivity`, `specificity`, `macro_auc`, or `sensitivity[k]` of class k.
        split: the cases it was measured on.
        value: the number in [0, 1]; None where it is not defined (one class only).
        low: lower end of the 95 % interval; None with `value`.
        high: upper end of the 95 % interval.
        n: cases that count for it (sensitivity: the positive ones).
        method: how the interval was made and what it takes for granted, for the report.
    """

    name: str
    split: str
    value: float | None
    low: float | None
    high: float | None
    n: int
    method: str
