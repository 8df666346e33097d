"""From a run folder to its answer.   files of the run -> report.json (for programs) -> the seal -> report.html (for people)

Reads files of the folder only, and no clock: the same files give the same bytes. Never shows the id of a case or patient, but
of data that may be shown (data.shareable); internal.py makes the page that does, for the owner's eyes.
"""

from __future__ import annotations

from dataclasses import replace

from hpcai import ledger, meter, proposal, seal
from hpcai.rundir import RunDir, read_json, write_bytes, write_json


def write_report(run: RunDir) -> None:
    """Writes what the ledger says, report.json, manifest.json and, with the seal on it, report.html.

    The ledger counts no predictions and no tries. What the folder lacks is left out. All that the seal covers must have been
    written before.

    Raises:
        RunError: a file of the folder is damaged.
    """
    from hpcai.report.folder import read_folder
    from hpcai.report.summary import summarize

    meter.settle()
    folder = read_folder(run)
    if folder.judged is not None and not proposal.is_try(folder.config.get("name")):
        told = ledger.note(run, folder.judged, folder.labelled[folder.judged].case)
        folder = replace(folder, ledger=told)
    write_json(run.report_json, summarize(folder))
    sealed = seal.write(run)
    write_bytes(run.report_html, rendered(run, sealed))


def rendered(run: RunDir, sealed: str) -> bytes:
    """report.html as it must be with the seal `sealed` on it, from report.json, which was sealed, and the curves' own files.

    Raises:
        RunError: a file of the folder is damaged.
    """
    from hpcai.report.folder import read_folder
    from hpcai.report.page import render

    return render(read_folder(run), read_json(run.report_json), seal=sealed).encode()
