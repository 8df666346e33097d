"""`hpcai outcomes RUN FILE`: what became of the newborns whom a run flagged.   records, CSV of outcomes -> PPV, recalls, misses

    confirmed        has the disease: a true alarm, or, where the run called it clear, a miss
    false_positive   was flagged and does not have it
    lost             nobody knows

By disease and by month, with exact intervals. Who was flagged and has no line is open. Text of the file is never printed: a
message cites its row, and what is printed of a newborn comes from the run. Standard library; the interval's formula at use.
"""

from __future__ import annotations

import csv
import importlib
import io
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from hpcai import runs
from hpcai.arguments import Words
from hpcai.errors import ConfigError, DataError, Faults, HpcaiError, PlanError, RunError, near, one_line
from hpcai.release import read_records
from hpcai.rundir import RunDir
from hpcai.runs import DAMAGED
from hpcai.status import print_table

HELP = """\
Counts what became of the newborns whom a screening run flagged. FILE is a CSV (comma, semicolon or tab) with the columns
sample, disease, outcome (confirmed, false_positive or lost) and, if you like, date (2026-11-29): a line a newborn and disease.
Name also the affected whom the run had called clear, as confirmed: they are its misses.

flagged: refer, reflex, or a new sample on suspicion. PPV: confirmed of those whose outcome is known. Found: confirmed who were
flagged, of all confirmed who could be assessed: a miss that nobody reported is not in it. 95 % intervals: Clopper-Pearson."""
OUTCOMES = ("confirmed", "false_positive", "lost")
COLUMNS = ("sample", "disease", "outcome")
FLAGGED = ("refer", "reflex", "repeat")
SPECIMEN = "specimen: new sample"  # the reason of a repeat that suspects nothing (screening/decisions.py)
MOST = 50 * 2**20  # bytes of FILE: an outcome a flagged newborn, some 50 bytes each
FAULTS = 20  # told at once
Key = tuple[str, str]  # sample, disease
Json = dict[str, Any]


def main(argv: list[str]) -> int:
    """`hpcai outcomes RUN FILE [--json]`; returns the exit code.

    Raises:
        PlanError: the run has no records.
        DataError, Faults: FILE is no such table, or a row of it cannot be used.
    """
    words = Words("outcomes", "RUN FILE", HELP)
    options = words.read(argv, least=1, most=2)
    if options is None:
        return 0
    if len(options.names) != 2:
        raise ConfigError("hpcai outcomes: takes a run and a file. Name both.")
    run = runs.find(options.names[0], options.runs_dir)
    told = count(run, read_outcomes(Path(options.names[1])))
    if options.json:
        print(json.dumps(told, indent=1, ensure_ascii=False))
    else:
        _show(told)
    return 0


# ---- the file


def read_outcomes(path: Path) -> dict[Key, tuple[str, int]]:
    """Outcome and row number (the header is row 1) by sample and disease.

    Raises: DataError, or Faults for several rows.
    """
    text = _text(path)
    head = text.partition("\n")[0]
    delimiter = max(",;\t", key=head.count)
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    found: dict[Key, tuple[str, int]] = {}
    faults: list[HpcaiError] = []
    number = 1
    try:
        at = _columns(next(rows, []))
        for number, row in enumerate(rows, 2):
            if any(cell.strip() for cell in row):
                faults += [DataError(f"row={number}: {why}") for why in _add(found, row, at, number)]
    except csv.Error as e:
        raise DataError(
            f"row={number + 1}: is no CSV (a quote is not closed, or a cell is too long). Write the file anew."
        ) from e
    if faults:
        more = [DataError(f"FILE: {len(faults) - FAULTS:,} more rows cannot be used. Mend these first.")] * (
            len(faults) > FAULTS
        )
        raise Faults([*faults[:FAULTS], *more])
    if not found:
        raise DataError("FILE: has no outcome. Write a line for each newborn and disease.")
    return found


def _text(path: Path) -> str:
    """Raises: DataError."""
    try:
        if not path.is_file():
            raise DataError("FILE: is no plain file. Name a CSV of outcomes.")
        if path.stat().st_size > MOST:
            raise DataError(
                f"FILE: has {path.stat().st_size:,} bytes, at most {MOST:,} are read. Leave out who was not flagged."
            )
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as e:
        raise DataError("FILE: is not UTF-8. Save it as CSV UTF-8.") from e
    except (OSError, ValueError) as e:
        raise DataError("FILE: cannot be read. Name a CSV of outcomes.") from e


def _columns(head: list[str]) -> dict[str, int]:
    """Where each column stands.

    Raises: DataError, Faults.
    """
    names = [re.sub(r"[\s_]", "", cell).lower() for cell in head]
    faults: list[HpcaiError] = []
    for column in (*COLUMNS, "date"):
        if names.count(column) > 1:
            faults.append(DataError(f"column={column}: stands twice in the header. Leave one."))
        if column in COLUMNS and column not in names:
            faults.append(DataError(f"column={column}: is missing. The header must have {', '.join(COLUMNS)}."))
    if faults:
        raise faults[0] if len(faults) == 1 else Faults(faults)
    return {column: names.index(column) for column in (*COLUMNS, "date") if column in names}


def _add(found: dict[Key, tuple[str, int]], row: list[str], at: dict[str, int], number: int) -> Iterator[str]:
    """Notes a row; tells what is wrong with it, never what stands in it."""
    cells = {column: row[i].strip() if i < len(row) else "" for column, i in at.items()}
    outcome = re.sub(r"[\s-]", "_", cells["outcome"].lower())
    if len(row) > max(at.values()) + 1 + 50:
        yield "has far more cells than the header. Check the separator."
    if not cells["sample"] or not cells["disease"]:
        yield "has no sample or no disease. Fill it in."
    elif outcome not in OUTCOMES:
        yield f"its outcome is none of {', '.join(OUTCOMES)}. Write one of them."
    elif not re.fullmatch(r"(\d{4}-\d{2}-\d{2})?", cells.get("date", "")):
        yield "its date is not written as 2026-11-29. Write it so."
    elif (key := (cells["sample"], cells["disease"].casefold())) in found:
        yield f"is of the same newborn and disease as row {found[key][1]}. Leave one."
    else:
        found[key] = (outcome, number)


# ---- counting


def count(run: RunDir, outcomes: dict[Key, tuple[str, int]]) -> Json:
    """PPV, recalls and misses in all, by disease and by month.

    Raises: PlanError, RunError, Faults.
    """
    safe: Callable[[str], str] = importlib.import_module("hpcai.screening.cells").safe_text  # as records write a sample
    given = {(safe(sample), disease): told for (sample, disease), told in outcomes.items()}
    samples = {sample for sample, _ in given}
    simulated, counts, left = False, Counter[tuple[str, str, str]](), dict(given)
    newborns, flagged = Counter[str](), Counter[str]()
    names: list[str] = []
    faults: list[HpcaiError] = []
    for record in read_records(run):
        try:
            month, sample = str(record.get("month", "")), record["sample"] if record["sample"] in samples else None
            simulated, names = bool(record["simulated"]), list(record["diseases"]) or names
            newborns[month] += 1
            flagged[month] += any(_word(told) == "flagged" for told in record["diseases"].values())
            for disease, told in record["diseases"].items():
                word = _word(told)
                outcome, row = left.pop((sample, disease.casefold()), (None, 0)) if sample is not None else (None, 0)
                if outcome == "false_positive" and word != "flagged":
                    faults.append(
                        DataError(f"row={row}: is false_positive of a newborn who was not flagged for this. Check it.")
                    )
                counts[disease, month, word if outcome is None else f"{word} {outcome}"] += 1
        except DAMAGED as e:
            raise RunError("records: one of them is damaged. hpcai verify names what was changed.") from e
    if not newborns:
        raise PlanError(f"run={one_line(run.path.name, 120)}: holds no records. Name the run that screened the cohort.")
    faults += [_unknown(row, disease, names) for (_, disease), (_, row) in left.items()]
    if faults:
        raise Faults(sorted(faults, key=lambda fault: int(str(fault).partition(":")[0].removeprefix("row=")))[:FAULTS])
    return _told(counts, newborns, flagged, names, simulated)


def _word(told: Json) -> str:
    """`flagged`, `clear`, or `unassessed`: nothing was said of the disease yet."""
    if told["decision"] in FLAGGED and told["reason"] != SPECIMEN:
        return "flagged"
    return "clear" if told["decision"] == "clear" else "unassessed"


def _unknown(row: int, disease: str, names: list[str]) -> DataError:
    """The file's own word is not shown: it may name a person."""
    known = disease in {name.casefold() for name in names}
    what = "its sample is not in this run" if known else "its disease is not of this run's panel"
    return DataError(f"row={row}: {what}. {'Name the run that screened it.' if known else near('', names)}")


def _told(
    counts: Counter[tuple[str, str, str]], newborns: Counter[str], flagged: Counter[str], names: list[str], simulated: bool
) -> Json:
    n, months = newborns.total(), sorted(newborns)
    return {
        "simulated": simulated,
        "newborns": n,
        "total": _row("all", [(c, k) for (_, _, c), k in counts.items()], n, flagged.total()),
        "diseases": [_row(name, [(c, k) for (d, _, c), k in counts.items() if d == name], n) for name in names],
        "months": [
            _row(m, [(c, k) for (_, month, c), k in counts.items() if month == m], newborns[m], flagged[m]) for m in months
        ],
    }


def _row(name: str, pairs: list[tuple[str, int]], n: int, newborns: int | None = None) -> Json:
    """One line of the table: counts of newborns and diseases, and shares as [value, low, high].

    `newborns`: who is flagged for any disease; None: for this one, so that each flag is a newborn.
    """
    by = Counter[str]()
    for word, k in pairs:
        by[word] += k
    true, false, lost = (by[f"flagged {outcome}"] for outcome in OUTCOMES)
    missed, flagged = by["clear confirmed"], by["flagged"] + true + false + lost
    return {
        "name": name,
        "newborns": n,
        "flagged": flagged,
        "flagged_newborns": flagged if newborns is None else newborns,
        "confirmed": true,
        "false_positive": false,
        "lost": lost,
        "open": by["flagged"],
        "missed": missed,
        "unassessed_confirmed": by["unassessed confirmed"],
        "ppv": _share(true, true + false),
        "found": _share(true, true + missed),
        "flagged_rate": _share(flagged if newborns is None else newborns, n),
    }


def _share(k: int, n: int) -> list[float] | None:
    """Value and ends of k/n; None if there is nobody. Heavy, so by its name."""
    if not n:
        return None
    low, high = importlib.import_module("hpcai.metrics.intervals").clopper_pearson(k, n)
    return [k / n, low, high]


# ---- in words


def _show(told: Json) -> None:
    if told["simulated"]:
        print("Simulated newborns: this proves the method, not the medicine.")
    total = told["total"]
    print(
        f"{told['newborns']:,} newborns, {total['flagged_newborns']:,} flagged. "
        f"Of {total['flagged']:,} flags: {total['confirmed']:,} confirmed, "
        f"{total['false_positive']:,} false, {total['lost']:,} lost, {total['open']:,} open; {total['missed']:,} missed."
    )
    head = ("flags", "confirmed", "false", "lost", "open", "missed", "PPV", "found", "newborns flagged per 100,000")
    for title, rows in (("disease", [*told["diseases"], total]), ("month", told["months"])):
        print_table([(title, *head), *(_cells(row) for row in rows)], None, gap=True)


def _cells(row: Json) -> tuple[str, ...]:
    keys = ("flagged", "confirmed", "false_positive", "lost", "open", "missed")
    name = one_line(row["name"] or "not told", 40)
    return (
        name,
        *(f"{row[key]:,}" for key in keys),
        _words(row["ppv"]),
        _words(row["found"]),
        _words(row["flagged_rate"], 1e5),
    )


def _words(share: list[float] | None, scale: float = 1.0) -> str:
    if share is None:
        return "-"
    value, low, high = (f"{x * scale:,.0f}" if scale > 1 else f"{x:.3f}" for x in share)
    return f"{value} [{low} to {high}]"
