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
        return f"{measure.capitalize()}: {labels[int(k)]}"
    return {"auc": "AUC", "macro_auc": "Macro AUC"}.get(name, name.capitalize())


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
