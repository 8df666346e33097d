"""From a run folder to its answer.   files of the run -> report.json (for programs), report.html (for people)

Reads files of the folder only, and no clock: the same files give the same bytes. Never shows the id of a case or patient.
"""

from __future__ import annotations

from hpcai import meter
from hpcai.rundir import RunDir, write_bytes, write_json


def write_report(run: RunDir) -> None:
    """Writes report.json and report.html of `run`; what the folder lacks is left out of them.

    Raises:
        RunError: a file of the folder is damaged.
    """
    from hpcai.report.folder import read_folder
    from hpcai.report.page import render
    from hpcai.report.summary import summarize

    meter.settle()
    folder = read_folder(run)
    report = summarize(folder)
    html = render(folder, report)
    write_json(run.report_json, report)
    write_bytes(run.report_html, html.encode())
