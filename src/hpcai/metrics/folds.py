"""The folds of a cross-validation: run folders -> one run a fold, alike but for it -> rows, every case judged once.

Reads files of the folds' folders. No message names a case or a patient.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from hpcai import rundir
from hpcai.errors import DataError, PlanError, RunError
from hpcai.metrics.classification import Threshold, predicted
from hpcai.metrics.rows import rows_then
from hpcai.plan import decisive, flat, read_config
from hpcai.rundir import RunDir

Json = dict[str, Any]


def by_fold(runs: list[RunDir]) -> dict[int, RunDir]:
    """{fold: its run}, every fold once, in their order.

    Raises: PlanError if a run is no fold, or a fold is missing or there twice.
    """
    folds: dict[int, RunDir] = {}
    for run in runs:
        split = read_config(run).data.split
        if split.by != "kfold":
            raise PlanError(f"from_run={run.path.name}: has data.split.by={split.by}. Name runs of data.split.by=kfold.")
        if other := folds.get(split.fold):
            raise PlanError(f"from_run={other.path.name},{run.path.name}: are both fold {split.fold}. Name one run a fold.")
        folds[split.fold] = run
    wanted = read_config(runs[0]).data.split.folds
    if missing := [fold for fold in range(wanted) if fold not in folds]:
        shown = ", ".join(map(str, missing[:10]))
        raise PlanError(f"from_run={runs[0].path.name},...: of {wanted} folds {shown} is missing. "
                        f"Train with data.split.fold={missing[0]}, and name its run too.")  # fmt: skip
    return dict(sorted(folds.items()))


def check_alike(runs: list[RunDir], gather: RunDir) -> None:
    """Folds of one cross-validation: the same config but for the fold, the same data, which are those of this run.

    Raises: PlanError, DataError.
    """
    first, same = runs[0], dict(flat(decisive(read_config(runs[0]))))
    for run in runs[1:]:
        other = dict(flat(decisive(read_config(run))))
        keys = [key for key in same | other if key != "data.split.fold" and same.get(key) != other.get(key)]
        if keys:
            raise PlanError(f"from_run={first.path.name},{run.path.name}: differ in {', '.join(keys[:5])}. "
                            "Folds of one cross-validation differ in data.split.fold alone.")  # fmt: skip
    digests = {run.path: sorted(rundir.read_digests(run).values()) for run in (*runs, gather)}
    for run in runs[1:]:
        if digests[run.path] != digests[first.path]:
            raise DataError(f"from_run={first.path.name},{run.path.name}: were trained on different data. Train one anew.")
    if digests[gather.path] != digests[first.path]:
        raise DataError(f"data: are not those that {first.path.name} was trained on. Give the same data.path.")


def read(run: RunDir, file: Path) -> Json:
    """A JSON file of a fold.

    Raises: RunError if it is damaged or gone.
    """
    try:
        value = rundir.read_json(file)
        if not isinstance(value, dict):
            raise ValueError
    except (OSError, ValueError) as e:
        raise RunError(f"run={run.path.name}: its {file.name} is damaged. Train it anew.") from e
    return value


def judged(fold: int, run: RunDir, split: Json) -> list[Json]:
    """The rows of a fold's test by case, with `fold` and the class `called` by its own threshold.

    Raises: DataError if they are not the cases of its split; RunError if a file is damaged.
    """
    if (table := rows_then(run, "test")) is None:
        raise DataError(f"run={run.path.name}: has no rows/test. Train it anew.")
    threshold = read(run, run.threshold)
    try:
        called = predicted(table, Threshold(**threshold)).tolist()
        theirs = [{str(case) for case in split[part]} for part in ("train", "val", "test")][-1]
    except (TypeError, KeyError) as e:
        raise RunError(f"run={run.path.name}: its threshold.json or split.json is damaged. Train it anew.") from e
    if theirs != set(table.case):
        raise DataError(f"run={run.path.name}: rows/test and split.json hold other cases. Train it anew.")
    first = {row["case"]: row for file in reversed(run.row_files("test")) for row in reversed(list(rundir.read_lines(file)))}
    return [first[case] | {"fold": fold, "called": c} for case, c in zip(table.case, called, strict=True)]


def check_whole(rows: list[Json], folds: dict[int, RunDir], splits: dict[int, Json]) -> None:
    """Every case of the data is judged once, and by a fold that knew neither it nor its patient.

    Raises: DataError.
    """
    names = {fold: run.path.name for fold, run in folds.items()}
    judge = {row["case"]: row["fold"] for row in rows}
    if twice := [case for case, n in Counter(row["case"] for row in rows).items() if n > 1]:
        both = sorted({row["fold"] for row in rows if row["case"] == twice[0]})
        pair = ",".join(names[fold] for fold in both[:2])
        raise DataError(f"from_run={pair}: both judge {len(twice):,} of the cases. Their splits are of different making.")
    patient = {row["case"]: row.get("patient") or f"\0{row['case']}" for row in rows}
    for fold, split in splits.items():
        learnt = {str(case) for part in ("train", "val") for case in split[part]}
        if lost := len((learnt | {str(case) for case in split["test"]}) ^ judge.keys()):
            raise DataError(f"from_run={names[fold]}: {lost:,} of its cases are judged by no fold, or by others alone. "
                            "Its split is of different making.")  # fmt: skip
        knew = {patient[case] for case in learnt}
        if known := len({patient[case] for case, f in judge.items() if f == fold} & knew):
            raise DataError(f"from_run={names[fold]}: learnt from {known:,} patients that it judges. Train it anew.")


def pooled_cases(folds: dict[int, RunDir], gather: RunDir) -> None:
    """cases.jsonl: each fold's lines of the cases that it judged, as `oof`."""
    lines = [
        line | {"split": "oof"} for run in folds.values() for line in rundir.read_lines(run.cases) if line["split"] == "test"
    ]
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    rundir.write_bytes(gather.cases, text.encode(errors="backslashreplace"))


def pooled_split(rows: list[Json], folds: dict[int, RunDir], splits: dict[int, Json]) -> Json:
    """split.json: the folds with their runs, counts and case ids. Duplicates: images that a fold judged and had seen."""
    first = read_config(folds[min(folds)]).data.split
    people = {row["patient"] for row in rows if row.get("patient") is not None}
    seen: Counter[str] = Counter()
    for split in splits.values():
        seen.update({pair: n for pair, n in (split.get("duplicates") or {}).items() if pair.endswith("/test")})
    classes = Counter(str(row["label"]) for row in rows)
    return {
        "by": "kfold",
        "seed": first.seed,
        "folds": first.folds,
        "counts": {"oof": len(rows)},
        "classes": {"oof": dict(sorted(classes.items(), key=lambda item: int(item[0])))},
        "patients": {"oof": len(people)} if people else None,
        "duplicates": dict(seen),
        "runs": [
            {"fold": fold, "run_id": run.path.name, "threshold": read(run, run.threshold).get("value")}
            for fold, run in folds.items()
        ],
        "test": {str(fold): split["test"] for fold, split in splits.items()},
    }
