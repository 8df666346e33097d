"""`hpcai simulate FILE --newborns N --seed S`: a simulated cohort in a file.   words -> Asked -> hpcai.screening, at use"""

from __future__ import annotations

import argparse
import importlib
import json
import re
from dataclasses import dataclass
from pathlib import Path

from hpcai import outfile
from hpcai.arguments import Words, whole_number
from hpcai.errors import ConfigError, Faults, HpcaiError, near, one_line

SIMULATE = """\
Draws newborns' blood spots from configs/simulation, block by block: any number in constant memory, the same for the same seed.
The truth stands in the column diagnosis, and every laboratory is called `simulated ...`. What it assumes is in that file.
Simulation proves a method, not a medicine."""
MONTH = re.compile(r"\d{4}-(0[1-9]|1[0-2])", re.ASCII)
LAWS = ("lognormal", "student", "mixture")
ENDS = (".csv", ".parquet")


@dataclass(frozen=True)
class Asked:
    """What the words ask for; None: as the book has it.

    Attributes:
        cases: cases of each disease; None: drawn at the panel's incidences.
        failed: numbers of plates that fail.
        hostile: rows that are made unusable, each in its way.
    """

    file: Path
    newborns: int
    seed: int
    controls: Path | None = None
    tail: str | None = None
    laboratories: tuple[str, ...] | None = None
    months: tuple[str, ...] | None = None
    cases: int | None = None
    failed: tuple[int, ...] = ()
    hostile: int = 0
    split: bool = False
    simulation: str = "nbs"
    analytes: str = "nbs_msms"
    diseases: str = "nbs"


def main(argv: list[str]) -> int:
    """`hpcai simulate`; returns the exit code.

    Raises: ConfigError or Faults for wrong words and books, PlanError for a file that is there or cannot be written.
    """
    words = Words("simulate", "FILE.parquet|FILE.csv --newborns N --seed S", SIMULATE)
    words.add_argument("--newborns", metavar="N", type=whole_number, help="rows")
    words.add_argument("--seed", metavar="S", type=whole_number, help="the same seed, the same rows")
    words.add_argument("--laboratories", metavar="A,B", help="laboratories of the book (all)")
    words.add_argument("--tail", metavar="LAW", help=f"one law for all laboratories: {', '.join(LAWS)} (each its own)")
    words.add_argument("--months", metavar="M,M", help="2026-11,2026-12: plates are spread over them in order (the book's)")
    words.add_argument("--cases-per-disease", metavar="K", type=whole_number, help="so many (drawn at the panel's incidences)")
    words.add_argument("--split", action="store_true", help="a column split: train and val by family, test by laboratory")
    words.add_argument("--failed-plates", metavar="P,P", default="", help="numbers of plates that fail, from 0")
    words.add_argument("--hostile", metavar="N", type=whole_number, default=0, help="rows made unusable, each in its way (0)")
    words.add_argument("--controls", metavar="FILE", type=Path, help="the plates' controls, as a second file")
    words.add_argument("--simulation", metavar="NAME", default="nbs", help="book of configs/simulation, or a .yaml (nbs)")
    words.add_argument("--analytes", metavar="NAME", default="nbs_msms", help="dictionary of configs/analytes (nbs_msms)")
    words.add_argument("--diseases", metavar="NAME", default="nbs", help="panel of configs/diseases (nbs)")
    words.add_argument("--force", action="store_true", help="replace FILE, whatever it is")
    options = words.read(argv)
    if options is None:
        return 0
    asked = _asked(options)
    for option, file in (("FILE", asked.file), ("--controls", asked.controls)):
        if file is not None:
            outfile.check(file, force=options.force, option=option)
    told = importlib.import_module("hpcai.screening.simulated").write(asked)
    print(json.dumps(told, indent=1) if options.json else _sentence(asked, told))
    return 0


def _sentence(asked: Asked, told: dict[str, int]) -> str:
    line = f"{one_line(str(asked.file), 200)}: {told['newborns']:,} simulated newborns, {told['affected']:,} of them affected"
    line += f", on {told['plates']:,} plates"
    return line if asked.controls is None else f"{line}\n{one_line(str(asked.controls), 200)}: {told['controls']:,} controls"


def _asked(options: argparse.Namespace) -> Asked:
    faults: list[HpcaiError] = []
    if len(options.names) != 1:
        faults.append(
            ConfigError(f"hpcai simulate: {len(options.names)} names. Give one file: hpcai simulate FILE.parquet ...")
        )
    for option in ("newborns", "seed"):
        if getattr(options, option) is None:
            faults.append(ConfigError(f"--{option}: required. See hpcai simulate --help."))
    if options.newborns == 0:
        faults.append(ConfigError("--newborns=0: nobody. Ask for 1 or more."))
    files = [Path(name) for name in options.names[:1]] + ([options.controls] if options.controls else [])
    for file in files:
        if file.suffix not in ENDS:
            faults.append(ConfigError(f"{one_line(str(file), 200)}: ends in none of {', '.join(ENDS)}. Name it so."))
    if len(set(files)) < len(files):
        faults.append(ConfigError("--controls: the same file. Name another."))
    if options.tail not in (None, *LAWS):
        faults.append(ConfigError(f"--tail={one_line(options.tail, 80)}: is no law. {near(options.tail[:80], LAWS)}"))
    months = _several(options.months)
    if any(not MONTH.fullmatch(month) for month in months or ()):
        faults.append(ConfigError("--months: one is no month. Write them as 2026-11,2026-12."))
    failed = _several(options.failed_plates) or ()
    if any(not (p.isascii() and p.isdigit() and len(p) < 10) for p in failed):
        faults.append(ConfigError("--failed-plates: one is no whole number from 0. Write them as 3,17."))
    if faults:
        raise faults[0] if len(faults) == 1 else Faults(faults)
    return Asked(
        files[0], options.newborns, options.seed, options.controls, options.tail, _several(options.laboratories), months,
        options.cases_per_disease, tuple(int(p) for p in failed), options.hostile, options.split,
        options.simulation, options.analytes, options.diseases,
    )  # fmt: skip


def _several(text: str | None) -> tuple[str, ...] | None:
    return tuple(dict.fromkeys(text.split(","))) if text else None
