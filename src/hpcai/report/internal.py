"""The report with pictures and ids of the most wrong cases, for who may see the data.   run folder + data -> a file, 0600

Marked on each page, on the screen and in print. It never is report.html, and nothing that is sent takes it in.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from hpcai import outfile, plan, rundir
from hpcai.data.open import open_cases
from hpcai.errors import PlanError, one_line
from hpcai.report.folder import read_folder
from hpcai.report.mistakes import mistakes
from hpcai.report.page import render
from hpcai.report.pictures import pictures
from hpcai.report.summary import summarize
from hpcai.rundir import RunDir

WORDS = "Internal: holds patient data. Do not mail."
GENERATOR = '<meta name="generator" content="hpcai report --internal">'


def write_internal(run: RunDir, file: Path | None, *, force: bool = False) -> Path:
    """Writes it to `file` (RUN/report.internal.html), readable by its owner alone; returns where.

    Raises:
        PlanError: the file is another's and not `force`, or is a part of the run; or the run is of newborns.
        DataError: the data are gone, or not what they were at submission.
        RunError: a file of the folder is damaged.
    """
    file = run.report_internal if file is None else file
    inside = file.absolute().resolve().parent.is_relative_to(run.path.resolve())
    if inside and file.name != run.report_internal.name:
        raise PlanError(f"-o={one_line(str(file), 200)}: lies in the run, whose other files are mailed. Name another place.")
    outfile.check(file, mark=GENERATOR.encode(), force=force)
    config = plan.read_config(run)
    if config.task.name == "screening":
        raise PlanError(
            f"run={one_line(run.path.name, 120)}: is of newborns, who have no pictures. hpcai explain RUN CASE tells one."
        )
    cases = open_cases(config.data, rundir.read_digests(run), labelled=False)
    folder = read_folder(run)
    folder = replace(folder, pictures=pictures(folder, cases))
    report = summarize(folder) | {"mistakes": mistakes(folder, ids=True) or {}}
    page = render(folder, report, mark=WORDS).replace("<head>", f"<head>\n{GENERATOR}", 1)
    outfile.write(file, page.encode(), private=True)
    return file
