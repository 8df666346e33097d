"""`hpcai new`, step by step: listing and folder -> joined -> looked at -> fingerprint -> files and words."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from hpcai.data.cases import read_file
from hpcai.errors import ConfigError, DataError, near, one_line
from hpcai.intake import write
from hpcai.intake.columns import choose
from hpcai.intake.faults import Notes
from hpcai.intake.files import find_images
from hpcai.intake.join import join, without_rare
from hpcai.intake.look import look_at
from hpcai.intake.summary import Found, fingerprint, labels_of
from hpcai.intake.table import read_table
from hpcai.intake.tell import tell
from hpcai.new import Asked


def take_in(asked: Asked) -> int:
    """Everything that `asked` asks for; returns the exit code. Writes nothing where it raises.

    Raises: ConfigError for a question that the words leave open, PlanError for files that are there, DataError, Faults.
    """
    targets = write.Targets(asked.out, asked.name)
    targets.check()
    found = _find(asked)
    facts = fingerprint(found)
    written = targets.write(found, facts)
    if asked.json:
        print(json.dumps(facts, indent=1, ensure_ascii=False))
    else:
        print("\n".join(tell(facts, [_near(path) for path in written], _near(targets.out))))
    return 0


def _near(path: Path) -> str:
    """`path` from the current folder, where it lies below."""
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


def _find(asked: Asked) -> Found:
    notes = Notes()
    images = find_images(asked.images)
    table = read_table(read_file(asked.labels, f"--labels={one_line(str(asked.labels), 120)}"), notes)
    columns = choose(table, asked, lambda cell: images.means(cell)[0] is not None)
    cells = table.column(columns.path).values()
    named = {images.files[at] for cell in cells if (at := images.means(cell)[0]) is not None}
    cases = join(table, columns, images, notes)
    if cases and not (asked.skip_faults or notes.found):
        cases = without_rare(cases, notes)  # before images are read, so that a wrong column costs no hour
    cases, looks = look_at(asked.images, cases, asked.window, notes, _progress)
    if not notes.found or asked.skip_faults:
        kept = without_rare(cases, notes)
        rows = {case.row for case in kept}
        looks = [look for case, look in zip(cases, looks) if case.row in rows]
        cases = kept
    if not asked.skip_faults:
        notes.stop()
    labels = labels_of(cases, asked.positive)
    if asked.positive is not None and (len(labels) != 2 or asked.positive not in labels):
        raise ConfigError(f"--positive={one_line(asked.positive, 80)}: is none of two classes. {near(asked.positive, labels)}")
    if not cases:
        raise DataError("--labels: row 2: no row names an image that can be read. Check --images and the listing.")
    return Found(asked, columns, images, cases, looks, len(table.rows), notes, labels, named)


def _progress(n: int) -> None:
    """A line that grows, where somebody watches."""
    if n % 1000 == 0 and sys.stderr.isatty():
        print(f"\r{n:,} images read", end="", file=sys.stderr, flush=True)
