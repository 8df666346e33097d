"""`hpcai new NAME --images DIR --labels FILE`: own images looked at, and the files of an experiment written.

words -> Asked -> hpcai.intake (heavy: it reads images), imported at use
"""

from __future__ import annotations

import argparse
import importlib
from dataclasses import dataclass
from pathlib import Path

from hpcai.arguments import Words
from hpcai.config.folder import shipped
from hpcai.config.userfile import NAME
from hpcai.errors import ConfigError, one_line

NEW = """\
Joins a folder of images (PNG, JPEG, npz; flat DICOM and NIfTI with the extra imaging) with a listing (CSV), shows what there
is, and writes an experiment that runs as it stands, once data.identifiers is stated. Columns that are not named are guessed,
and the guess is told. Nothing is written where something is wrong; the rows at fault are named."""


@dataclass(frozen=True)
class Asked:
    """What the words ask for. Columns that are None are guessed."""

    name: str
    images: Path
    labels: Path
    out: Path
    case_col: str | None = None
    path_col: str | None = None
    label_col: str | None = None
    patient_col: str | None = None
    split_col: str | None = None
    group_cols: tuple[str, ...] = ()
    positive: str | None = None
    window: tuple[float, float] | None = None
    skip_faults: bool = False
    json: bool = False


def main(argv: list[str]) -> int:
    """`hpcai new`; returns the exit code.

    Raises: ConfigError for wrong words, PlanError for files that exist, DataError (or Faults) for the data.
    """
    words = Words("new", "NAME --images DIR --labels FILE", NEW)
    words.add_argument("--images", metavar="DIR", type=Path, help="folder of image files, at any depth")
    words.add_argument("--labels", metavar="FILE", type=Path, help="listing: a header, then a row a case (, or ; or tab)")
    words.add_argument("--path-col", metavar="COL", help="column with an image's name or path (guessed)")
    words.add_argument("--case-col", metavar="COL", help="column with the case's id (that of the image)")
    words.add_argument("--label-col", metavar="COL", help="column with the class (guessed)")
    words.add_argument("--patient-col", metavar="COL", help="column with the patient's id (guessed; none: each case is one)")
    words.add_argument("--split-col", metavar="COL", help="column with train, val or test (a random split by patient)")
    words.add_argument("--group-cols", metavar="A,B", help="columns that describe a case: site, scanner, age, sex")
    words.add_argument("--positive", metavar="CLASS", help="of two classes the one that is looked for (guessed)")
    words.add_argument("--window", metavar="C,W", type=_window, help="DICOM, NIfTI, 16-bit PNG: centre and width")
    words.add_argument("--out", metavar="DIR", type=Path, default=Path("mine"), help="where the experiment is written (mine)")
    words.add_argument("--skip-faults", action="store_true", help="leave the rows at fault out, counted, and go on")
    options = words.read(argv)
    if options is None:
        return 0
    asked = _asked(options)
    return int(importlib.import_module("hpcai.intake.flow").take_in(asked))


def _asked(options: argparse.Namespace) -> Asked:
    if len(options.names) != 1:
        raise ConfigError(
            f"hpcai new: {len(options.names)} names. Give one for the experiment: hpcai new NAME --images DIR ..."
        )
    for option in ("images", "labels"):
        if getattr(options, option) is None:
            raise ConfigError(f"--{option}: required. See hpcai new --help.")
    name: str = options.names[0]
    if not NAME.fullmatch(name) or "/" in name or not name[0].isalnum():
        raise ConfigError(
            f"NAME={one_line(name, 80)}: must begin with a letter or digit and hold at most 64 of A-Z a-z 0-9 . _ -"
        )
    if taken := [group for group in ("data", "experiment") if name in shipped()[group]]:
        raise ConfigError(f"NAME={name}: hpcai's own {' and '.join(taken)} is called so. Choose another name.")
    given = {
        k: getattr(options, k) for k in ("case_col", "path_col", "label_col", "patient_col", "split_col", "positive", "window")
    }
    groups = tuple(filter(None, (options.group_cols or "").split(",")))
    if len(set(groups)) < len(groups) or len(groups) > 20:
        raise ConfigError("--group-cols: names a column twice, or more than 20. Name each once.")
    return Asked(
        name, options.images, options.labels, options.out, **given,
        group_cols=groups, skip_faults=options.skip_faults, json=options.json,
    )  # fmt: skip


def _window(text: str) -> tuple[float, float]:
    try:
        centre, width = (float(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{one_line(text, 80)} is not CENTRE,WIDTH") from None
    if not (abs(centre) < 1e9 and 0 < width < 1e9):
        raise argparse.ArgumentTypeError(f"{one_line(text, 80)}: the width must be greater than 0")
    return centre, width
