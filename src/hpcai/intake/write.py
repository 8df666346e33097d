"""The files of an experiment: all of them, or none; what is there already stays.

OUT/data/NAME.yaml, OUT/experiment/NAME.yaml   for a repository: no case, no patient
OUT/NAME.csv, OUT/NAME-fingerprint.html, OUT/NAME.excluded.json   for the user alone (mode 0600)
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

import yaml

from hpcai.errors import PlanError, RunError, one_line
from hpcai.intake.page import render
from hpcai.intake.summary import Found
from hpcai.intake.table import safe_cell

Json = dict[str, Any]
PRIVATE, SHARED = 0o600, 0o644


class Targets:
    """Where the files go."""

    def __init__(self, out: Path, name: str) -> None:
        self.out, self.name = out.absolute(), name
        self.data, self.experiment = self.out / "data" / f"{name}.yaml", self.out / "experiment" / f"{name}.yaml"
        self.listing, self.page = self.out / f"{name}.csv", self.out / f"{name}-fingerprint.html"
        self.excluded = self.out / f"{name}.excluded.json"

    @property
    def all(self) -> Sequence[Path]:
        """Each of them."""
        return self.data, self.experiment, self.listing, self.page, self.excluded

    def check(self) -> None:
        """Raises: PlanError for a file that is there, or a folder that may not be written."""
        there = [str(path.relative_to(self.out)) for path in self.all if os.path.lexists(path)]
        shown = f"--out={one_line(str(self.out), 120)}"
        if there:
            raise PlanError(f"{shown}: {', '.join(there)} exist already. Choose another NAME or --out, or remove them.")
        folder = next(f for f in (self.out, *self.out.parents) if os.path.lexists(f))
        if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
            raise PlanError(f"{shown}: may not be written. Choose another folder.")

    def write(self, found: Found, facts: Json) -> list[Path]:
        """Writes all; if one cannot be written, those before it are taken back.

        Raises: RunError.
        """
        content = {
            self.data: (_data(found, self.listing), SHARED),
            self.experiment: (_experiment(found), SHARED),
            self.listing: (_listing(found), PRIVATE),
            self.page: (render(facts), PRIVATE),
            self.excluded: (json.dumps(found.excluded, indent=1) + "\n", PRIVATE),
        }
        if not found.excluded:
            del content[self.excluded]
        done: list[Path] = []
        try:
            for path, (text, mode) in content.items():
                path.parent.mkdir(parents=True, exist_ok=True)
                fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
                done.append(path)
                with os.fdopen(fd, "w", encoding="utf-8", newline="") as f:
                    f.write(text)
        except OSError as e:
            for path in done:
                path.unlink(missing_ok=True)
            raise RunError(
                f"--out={one_line(str(self.out), 120)}: cannot be written ({e.strerror}). Mend the disk or its rights."
            ) from e
        return done


def _listing(found: Found) -> str:
    """case, path, label[, patient][, split][, groups]: no cell that a spreadsheet would run."""
    columns = found.columns
    head = ["case", "path", "label", *["patient"] * (columns.patient is not None), *["split"] * (columns.split is not None)]
    buffer = io.StringIO()
    out = csv.writer(buffer, lineterminator="\n")
    out.writerow([*head, *columns.groups])
    for case in found.cases:
        path = case.file if safe_cell(case.file) == case.file else f"./{case.file}"
        optional = [text for text in (case.patient, case.split) if text is not None]
        out.writerow([safe_cell(case.case), path, *map(safe_cell, (case.label, *optional, *case.groups))])
    return buffer.getvalue()


def _data(found: Found, listing: Path) -> str:
    asked, columns = found.asked, found.columns
    values: Json = {
        "name": asked.name,
        "reader": "csv",
        "path": str(listing),
        "root": str(asked.images.absolute()),
        "labels": [safe_cell(label) for label in found.labels],
        "channels": found.channels,
        "image_size": found.image_size,
        "patient_col": "patient" if columns.patient else None,
        "group_cols": list(columns.groups),
        "split_col": "split" if columns.split else None,
        "split": {"by": "published" if columns.split else "random"},
        "shareable": False,
        "excluded": found.excluded,
    }
    if asked.window:
        values["window"] = list(asked.window)
    head = [
        f"# {asked.name}: {len(found.cases):,} cases, taken in by hpcai new on {date.today().isoformat()}. Yours to change.",
        "# State here, or on each command, whom files and listing can name: identifiers: none, pseudonymised or identifying.",
        "identifiers: null",
        *(["# of two classes the second is the positive one"] if len(found.labels) == 2 else []),
    ]
    return "\n".join(head) + "\n" + _yaml(values)


def _experiment(found: Found) -> str:
    name = found.asked.name
    values: Json = {
        "name": name,
        "trainer": {
            "epochs": 20,
            "batch_size": 16 if len(found.cases) < 500 else 64,
            "augment": ["affine", "intensity"],
            "label_smoothing": 0.1,
        },
    }
    head = [
        "# @package _global_",
        f"# {name}: written by hpcai new, to begin with. Data: data/{name}.yaml.",
        f"# Run: hpcai run +experiment={name} --config-dir {found.asked.out} data.identifiers=none",
        "defaults:",
        f'  - override /data: "{name}"',
        "  - override /model: resnet_small",
        "  - _self_",
    ]
    return "\n".join(head) + "\n" + _yaml(values)


class _Text(str):
    """A value that is text for any reader of YAML, in double quotes: `no`, `1e-3` and `null` too."""


DUMPER: Any = type("Dumper", (yaml.SafeDumper,), {})
DUMPER.add_representer(_Text, lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", str(text), style='"'))


def _yaml(values: Json) -> str:
    text: str = yaml.dump(
        _quoted(values), Dumper=DUMPER, sort_keys=False, allow_unicode=True, width=10_000, default_flow_style=None
    )
    return text


def _quoted(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _quoted(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_quoted(inner) for inner in value]
    return _Text(value) if isinstance(value, str) else value
