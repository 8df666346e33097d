"""Numbers and names as people read them."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any


def number(x: float | None) -> str:
    """`x` in [0, 1] with three decimals, more where it would read as 0 or 1 and is not; a dash for None."""
    if x is None:
        return "–"
    for digits in (3, 4, 5, 6):
        if x in (0, 1) or 0 < float(f"{x:.{digits}f}") < 1:
            return f"{x:.{digits}f}"
    return "< 0.000001" if x < 0.5 else "> 0.999999"


SCALES = {"lr_positive", "lr_negative", "calibration_intercept", "calibration_slope"}  # numbers that may leave [0, 1]
NAMES = {
    "auc": "AUC",
    "macro_auc": "Macro AUC",
    "average_precision": "Average precision",
    "macro_average_precision": "Macro average precision",
    "ppv": "PPV",
    "npv": "NPV",
    "ppv_at": "PPV at the stated prevalence",
    "npv_at": "NPV at the stated prevalence",
    "lr_positive": "Positive likelihood ratio",
    "lr_negative": "Negative likelihood ratio",
    "brier": "Brier score",
    "ece": "Expected calibration error",
}


def figure(name: str, x: float | None) -> str:
    """The value, or an end of the interval, of the estimate `name`."""
    return decimal(x) if name in SCALES else number(x)


def decimal(x: float | None) -> str:
    """`x` on any scale with two decimals, more where it would read as 0 and is not; a dash for None."""
    if x is None:
        return "–"
    if abs(x) >= 100:
        return f"{x:,.0f}".replace("-", "−")
    digits = next((d for d in (2, 3, 4, 5, 6) if float(f"{x:.{d}f}")), 2)
    return f"{x:.{digits}f}".replace("-", "−") if float(f"{x:.{digits}f}") else f"{0:.{digits}f}"


def chance(p: float | None) -> str:
    """A p-value: `p = 0.21`, `p = 0.031`, `p = 0.0004`, `p < 0.0001`; a dash for None."""
    if p is None:
        return "–"
    digits = 2 if p >= 0.1 else 3 if p >= 0.001 else 4
    return "p < 0.0001" if p < 0.0001 else f"p = {p:.{digits}f}"


def signed(x: float | None) -> str:
    """A difference `x` in [-1, 1] with its sign and three decimals, more where it would read as 0 and is not."""
    if x is None:
        return "–"
    digits = next((d for d in (3, 4, 5, 6) if float(f"{x:.{d}f}")), 3)
    return f"{x:+.{digits}f}".replace("-", "−") if float(f"{x:.{digits}f}") else f"{0:.{digits}f}"


def percent(x: float) -> str:
    """`x` in [0, 1] as 74.2 %, with a space that does not break."""
    return f"{100 * x:.1f}\N{NO-BREAK SPACE}%"


def place(split: str) -> str:
    """The name of a split."""
    return {"val": "validation", "train": "training", "predict": "predicted", "oof": "out-of-fold"}.get(split, split)


def named(estimate: Mapping[str, Any], labels: list[str]) -> str:
    """The name of an estimate."""
    name = str(estimate["name"])
    if name.endswith("]"):
        measure, k = name[:-1].split("[")
        return f"{_titled(measure)}: {labels[int(k)]}"
    return _titled(name)


def _titled(measure: str) -> str:
    return NAMES.get(measure, measure.replace("_", " ").capitalize())


def duration(seconds: float) -> str:
    """`1 h 10 min`, `1 min 40 s`, `7.2 s`."""
    whole = round(seconds)
    if whole >= 3600:
        return f"{whole // 3600:,} h {whole % 3600 // 60} min"
    return f"{whole // 60} min {whole % 60} s" if whole >= 60 else f"{seconds:.1f} s"


def moment(time: float) -> str:
    """Seconds since 1970 as a date and time of day, UTC."""
    return datetime.fromtimestamp(time, UTC).strftime("%Y-%m-%d %H:%M UTC")


def size(n: int) -> str:
    """`n` bytes in the unit that fits, powers of 1000."""
    power = min(4, (len(str(n)) - 1) // 3)
    return f"{n / 1000**power:,.{min(1, power)}f} {('bytes', 'kB', 'MB', 'GB', 'TB')[power]}"
