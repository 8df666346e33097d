"""A finished run that screened six newborns, with the files that release and outcomes read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from run_folders import make_run

from hpcai import rundir, seal
from hpcai.rundir import RunDir

Json = dict[str, Any]
RULE, PLATE, SPECIMEN, NOTHING = "rule positive", "plate failed its controls", "specimen: new sample", "nothing found"


def record(sample: str, row: int, decision: str, month: str = "2026-11", **diseases: tuple[str, str]) -> Json:
    """One record; diseases that are not named are clear."""
    told = {name: diseases.get(name, ("clear", NOTHING)) for name in ("PKU", "MCAD")}
    words = {name: {"decision": word, "reason": reason} for name, (word, reason) in told.items()}
    facts = {"laboratory": "A", "plate": "p1", "month": month, "status": "proposed", "simulated": True}
    return {"sample": sample, "row": row, "decision": decision, "diseases": words, **facts}


RECORDS = [
    record("s1", 2, "refer", PKU=("refer", RULE)),
    record("s2", 3, "reflex", MCAD=("reflex", "model positive")),
    record("s3", 4, "clear"),
    record("s4", 5, "clear", "2026-10"),
    record("s5", 6, "repeat", PKU=("repeat", SPECIMEN), MCAD=("repeat", SPECIMEN)),
    record("'=s6", 7, "not_assessable", PKU=("not_assessable", PLATE), MCAD=("not_assessable", PLATE)),
]


def screened(folder: Path, state: str = "completed", mode: str = "decide", records: list[Json] | None = None) -> RunDir:
    """The run, sealed."""
    run = make_run(folder, state, job="predict")
    told = RECORDS if records is None else records
    for block, part in enumerate((told[:4], told[4:])):
        lines = "".join(json.dumps(each, ensure_ascii=False) + "\n" for each in part)
        rundir.write_bytes(run.records_file(block), lines.encode())
    rundir.write_json(run.screening, {"mode": mode, "simulated": True})
    seal.write(run)
    return run
