"""A page over many runs.   runs_dir -> [Entry], [Table] -> one self-contained index.html

    entries.py   each run's own files -> Entry; a damaged or unfinished run is an entry too
    keys.py      which config keys tell runs apart; a sweep by its keys
    page.py      entries and sweeps -> HTML, with index.css, charts.js and index.js inside

Reads names, config values, scores and curves; never rows, cases, splits or the data. Light: neither torch nor numpy.
"""

from __future__ import annotations

from pathlib import Path

from hpcai import outfile

MARK = b'<meta name="generator" content="hpcai report --all">'


def write_index(runs_dir: Path, file: Path, *, force: bool = False) -> tuple[int, int]:
    """Writes the page over all runs below `runs_dir` to `file`; returns how many runs and sweeps it shows.

    Raises: PlanError if `file` is another's and not `force`, or cannot be written.
    """
    outfile.check(file, mark=MARK, force=force)
    from hpcai.index.entries import read_all
    from hpcai.index.page import render

    entries, sweeps = read_all(runs_dir)
    html = render(runs_dir, entries, sweeps, file.absolute().parent)
    outfile.write(file, html.encode("utf-8", "backslashreplace"))
    return len(entries), len(sweeps)
