"""`hpcai explain RUN CASE`: one newborn's decision, rule by rule; its recall dossier.   run, case -> words | FILE.html"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from hpcai import outfile
from hpcai.arguments import Words
from hpcai.errors import ConfigError, one_line
from hpcai.screening.told import dossier, lines, told
from hpcai.status import found
from hpcai.verbs import refuse_sweep

MARK = b"hpcai dossier"
HELP = """\
Says of one newborn what was decided for each disease and why: every comparison of every rule, the model's probability, what
moved it and what would have changed it, the state of the specimen and of its plate. CASE is the sample's id, or row:17, the row
of the table as a person counts it (its first newborn is row:2). --dossier writes one page that prints and can be signed; it
holds the sample's id and is readable by you alone."""


def main(argv: list[str]) -> int:
    """`hpcai explain RUN CASE [--all] [--dossier] [-o FILE.html] [--force]`; returns the exit code.

    Raises: ConfigError for an unknown run or case, PlanError for a run without records, or whose facts were changed since.
    """
    words = Words("explain", "RUN CASE", HELP)
    words.add_argument("--all", action="store_true", help="the clear diseases too")
    words.add_argument("--dossier", action="store_true", help="write the recall dossier")
    words.add_argument("--output", "-o", metavar="FILE", type=Path, help="write the dossier there (dossier-rowN.html)")
    words.add_argument("--force", action="store_true", help="replace FILE, whatever it is")
    options = words.read(argv, least=1, most=2)
    if options is None:
        return 0
    if len(options.names) < 2:
        raise ConfigError("hpcai explain: names no newborn. Give RUN CASE: a sample's id, or row:17.")
    (run,) = found(options.names[:1], options.runs_dir)
    refuse_sweep(run)
    case = told(run, options.names[1])
    if options.dossier or options.output:
        file = options.output or Path(f"dossier-row{case.record['row']}.html")
        outfile.check(file, mark=MARK, force=options.force)
        outfile.write(file, dossier(case).encode(errors="backslashreplace"), private=True)
        print(json.dumps({"file": str(file.absolute())}) if options.json else one_line(str(file), 200))
    elif options.json:
        json.dump(case.record, sys.stdout, ensure_ascii=False, indent=1)
        print()
    else:
        print("\n".join(one_line(line, 400) for line in lines(case, everything=options.all)))
    return 0
