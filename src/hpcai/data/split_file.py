"""The split is made once and lies in the run folder: who goes on, evaluates or audits reads the same cases.

Needs the run's context, which splits.py (pure) does not.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from hpcai import rundir
from hpcai.config.schema import Split
from hpcai.context import RunContext
from hpcai.data.cases import Cases
from hpcai.data.splits import Splits, from_json, make_splits, to_json

log = logging.getLogger("hpcai")


def split_once(run: RunContext, cases: Cases, cfg: Split) -> Splits:
    """The run's split: from split.json if it is there, else made on every rank alike and written by rank 0.

    Raises: DataError for a split that leaks or is empty, or a case that the data no longer has.
    """
    if run.dir.split.exists():
        return from_json(rundir.read_json(run.dir.split), cases)
    splits = make_splits(cases, cfg)
    if run.ranks.first:
        value = to_json(splits, cases)
        note_cases(run, cases, splits.parts())
        rundir.write_json(run.dir.split, value)
        for pair, n in value["duplicates"].items():
            if n:
                log.warning("warning: %d images stand in %s", n, pair.replace("/", " and "))
    return splits


def note_cases(run: RunContext, cases: Cases, parts: Mapping[str, NDArray[np.int64]]) -> None:
    """Writes cases.jsonl whole: what the data say of the cases of each part, which the report describes without the data.

    A line: `case`, `row` (as messages name it), `split`, `label` (a number), `patient` (or null), `groups`
    (text by name of data.group_cols, null where missing), `size` (pixels along each axis as stored, or null).
    """
    lines = [
        {
            "case": cases.ids[i],
            "row": cases.row(i).removeprefix("data: row "),
            "split": part,
            "label": int(cases.labels[i]),
            "patient": cases.patients[i] if cases.patients else None,
            "groups": {name: values[i] or None for name, values in cases.groups.items()},
            "size": cases.stored_size(i),
        }
        for part, indices in parts.items()
        for i in indices.tolist()
    ]
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    rundir.write_bytes(run.dir.cases, text.encode(errors="backslashreplace"))


def sentence(splits: Splits, cases: Cases) -> str:
    """`5,856 cases: train 4,708 (3,494 pneumonia), val ..., no patient ids`."""
    parts = [f"{name} {len(indices):,}" for name, indices in splits.parts().items()]
    people = f"{len(set(cases.patients)):,} patients" if cases.patients else "no patient ids"
    return f"{len(cases):,} cases, {people}: " + ", ".join(parts)
