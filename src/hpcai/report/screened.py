"""Newborn screening on the page: the block `screening` of report.json -> its answer, cautions, tables and charts.

Nothing here measures. Rates of newborns are told per 100,000; where a cohort is simulated, each sentence about it says so.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from hpcai.report import charts
from hpcai.report.folder import Json
from hpcai.report.tables import one
from hpcai.report.words import number

METHOD = "Simulated newborns: this proves the method, not the medicine. No number here is a laboratory's performance."
SWEDEN = (
    "Not to be compared with the 47 % of true alarms that Sweden reached over a million newborns (Sörensen et al. 2020, "
    "doi 10.3390/ijns6020042): its table has no missed cases, so nobody knows at which sensitivity."
)
RATES = ("false_positive_rate", "flag_rate", "recall_rate")  # told per 100,000
WORDS = {
    "refer": "referred: call the clinic",
    "reflex": "second-tier test on the same spot",
    "repeat": "new sample, as a disease is suspected",
    "new_sample": "new sample, as the specimen's state asks",
    "partly": "clear as far as could be said",
    "clear": "clear of the whole panel",
}
VERDICTS = {"fits": "fits", "corrected": "corrected", "not_valid": "not valid here"}
LISTED = 100  # rows of the review list that a page shows
DRAWN = 6  # charts of a kind
CHANNELS = 12  # of the distributions
LEAST = 30  # newborns of a laboratory whose distribution is drawn


def main_way(block: Json) -> Json | None:
    """The way that the answer is about: the decision, else the model, else the first rule set; over its own diseases."""
    own = {told["way"]: told for told in block["total"] if told["scope"] == "own"}
    return next((own[way] for way in ("decision", "model") if way in own), next(iter(own.values()), None))


def question(block: Json, data: str, origin: str) -> str:
    """What a run of screening asks."""
    if block["kind"] == "fit":
        return f"Does a model trained on {data} find affected newborns with fewer false alarms than fixed cut-offs?"
    return f"Who of the newborns of {data} needs a second look, by {origin} and the rules?"


def answer(block: Json) -> str:
    """The answer as sentences."""
    way, kind = main_way(block), "simulated newborns" if block["simulated"] else "newborns"
    if way is None:
        return "No newborn was judged: the run did not come so far."
    told = [f"Of {block['n']:,} {kind} {_flagged(way)}."]
    sensitivity, alarms = one(way["estimates"], "sensitivity"), one(way["estimates"], "false_positive_rate")
    if way["affected"]:
        of = f"{way['found']:,} of {way['found'] + way['missed']:,} affected found"
        rate = "" if sensitivity["value"] is None else f" ({number(sensitivity['value'])}, 95 % interval {_ends(sensitivity)})"
        unsaid = f", {way['unassessed']:,} more could not be assessed" if way["unassessed"] else ""
        told.append(f"{of}{rate}, {way['missed']:,} missed{unsaid}.")
        told.append(f"False alarms: {per_100k(alarms['value'])} per 100,000 unaffected who were judged ({_ends(alarms)}).")
    else:
        told.append("Which of them are affected is not known: hpcai outcomes counts it when they are.")
    return " ".join(told + ([METHOD] if block["simulated"] else []))


def _flagged(way: Json) -> str:
    words = way["words"]
    if way["way"] != "decision":
        return f"{'the model' if way['way'] == 'model' else way['way']} flagged {words['positive']:,}"
    asked = words["repeat"] + words["new_sample"]
    return f"{words['refer']:,} are referred, {words['reflex']:,} get a second-tier test, {asked:,} a new sample"


def top(block: Json) -> list[Json] | None:
    """The first page's numbers, the big one first: `title`, `value`, `ends`, `n`; None if nobody is known to be affected."""
    way = main_way(block)
    if way is None:
        return None
    named = {e["name"]: e for e in way["estimates"] if e["value"] is not None}
    titles = {
        "sensitivity": f"Affected newborns found{' (simulated)' * block['simulated']}",
        "ppv": "True among the flagged",
        "ppv_at": "True among the flagged, at the panel's incidence",
        "false_positive_rate": "False alarms per 100,000 unaffected",
        "recall_rate": "Referred per 100,000",
        "flag_rate": "Flagged per 100,000",
    }
    cells = [
        {"title": title, "value": shown_value(named[name]), "ends": _ends(named[name]), "n": named[name]["n"], "name": name}
        for name, title in titles.items()
        if name in named and not (block["enriched"] and name in ("recall_rate", "flag_rate"))
    ]
    return cells if "sensitivity" in named else None


def shown_value(e: Json | None) -> str:
    """The value of an estimate: a rate per 100,000, a share by itself; a dash where it is not defined."""
    if e is None or e["value"] is None:
        return "–"
    return per_100k(e["value"]) if e["name"] in RATES else number(e["value"])


def interval(e: Json | None) -> str:
    """The value with its interval in brackets."""
    return f"{shown_value(e)} [{_ends(e)}]" if e is not None and e["value"] is not None else "–"


def _ends(e: Json) -> str:
    if e["low"] is None:
        return "–"
    words = per_100k if e["name"] in RATES else number
    return f"{words(e['low'])} to {words(e['high'])}"


def per_100k(x: float | None) -> str:
    """A rate per 100,000, with two significant digits below 10."""
    if x is None:
        return "–"
    rate = 100_000 * x
    return f"{rate:,.0f}" if rate >= 10 or rate == 0 else f"{rate:.1f}" if rate >= 0.95 else f"{rate:.2g}"


def whisker(e: Json | None, top: float) -> str:
    """The style that draws an interval on a line from 0 to `top`."""
    if e is None or e["value"] is None or e["low"] is None or top <= 0:
        return ""
    low, high, value = (min(1.0, e[key] / top) for key in ("low", "high", "value"))
    return f"--low: {low:.4f}; --high: {high:.4f}; --value: {value:.4f}"


def way_name(way: str) -> str:
    """A way of judging, as a table names it."""
    return {"decision": "Decision", "model": "Model alone"}.get(way, way.replace("rules: ", "Rules: "))


def cautions(block: Json) -> Iterator[str]:
    """What a reader must know before trusting the numbers."""
    if block["mode"] == "shadow":
        yield "Shadow mode: these decisions stand beside the laboratory's own. Nothing of them may be released."
    if block.get("taught_by_simulated") and not block["simulated"]:
        yield (
            "Simulated newborns alone taught the model: what it finds and misses among real ones is not known, whatever its "
            "thresholds say of the simulated."
        )
    if block["enriched"]:
        yield (
            f"{block['affected']:,} affected among {block['n']:,} newborns are more than the panel's incidence explains: cases "
            "were added. The share of true alarms is told at the panel's incidence instead."
        )
    lost = [f for f in block["fitness"] if f["verdict"] == "not_valid"]
    if lost:
        laboratories, months = (len([f for f in lost if (f["month"] != "") == month]) for month in (False, True))
        counts = [_count(laboratories, "laboratory", "laboratories")] * (laboratories > 0)
        counts += [_count(months, "month of a laboratory", "months of laboratories")] * (months > 0)
        yield (
            f"The model is not valid in {' and '.join(counts)}: newborns there are not like those that set its thresholds. "
            "Recalibrate there."
        )
    failed = [p for p in (block["plates"] or {"plates": []})["plates"] if not p["ok"]]
    if failed:
        count = "1 plate" if len(failed) == 1 else f"{len(failed)} plates"
        yield f"{count} failed the controls: newborns there are not assessable, and nothing of it is released."
    few = [c for c in block["conformal"] if c["coverage"]["high"] is not None and c["coverage"]["high"] < c["wanted"]]
    if few:
        who = ", ".join(dict.fromkeys(c["disease"] for c in few))
        yield f"The model's sets hold the truth less often than promised for {who}: do not rely on its abstention there."


def _count(n: int, one_of: str, many: str) -> str:
    return f"{n} {one_of if n == 1 else many}"


def shown(block: Json) -> Json:
    """The tables, ready to set."""
    way = main_way(block)
    name, own = way["way"] if way else "", block["own"]
    places = {part: _place_rows(block[part], name) for part in ("laboratories", "months")}
    columns = [told["laboratory"] for told in block["recalls"][0]["flagged"]] if block["recalls"] else []
    return {
        "way": name,
        "words": WORDS,
        "sweden": SWEDEN,
        "places": {part: rows for part, rows in places.items() if len(rows) > 1 or part == "laboratories"},
        "columns": columns,
        "own": {
            theirs: {pair["ours"]: pair["n"] for pair in own if pair["theirs"] == theirs}
            for theirs in dict.fromkeys(p["theirs"] for p in own)
        },
        "ours": sorted({pair["ours"] for pair in own}),
        "review": _by_day(block["review"]["rows"][:LISTED]),
        "failed": [p for p in (block["plates"] or {"plates": []})["plates"] if not p["ok"]],
    }


def _place_rows(places: list[Json], way: str) -> list[Json]:
    rows = [place | {"way": next((w for w in place["ways"] if w["way"] == way), None)} for place in places]
    rows = [row for row in rows if row["way"] is not None]
    rates = [one(row["way"]["estimates"], "flag_rate") for row in rows]
    top_rate = 1.5 * max((rate["value"] or 0.0 for rate in rates), default=0.0)  # ends of a few newborns' interval are cut
    return [row | {"rate": rate, "top": top_rate} for row, rate in zip(rows, rates, strict=True)]


def _by_day(rows: list[Json]) -> list[tuple[int, list[Json]]]:
    days = dict.fromkeys(row["day"] for row in rows)
    return [(day, [row for row in rows if row["day"] == day]) for day in days]


def figures(block: Json) -> list[Json]:
    """The charts. No name of a laboratory or channel is drawn: they stand beside, where they are escaped."""
    return [*_fits(block), *_distributions(block), *_plates(block)]


def _fits(block: Json) -> Iterator[Json]:
    """The most different channel of a laboratory or month, the worst verdicts first."""
    order = list(reversed(VERDICTS))
    judged = sorted((f for f in block["fitness"] if f["plot"]), key=lambda f: (order.index(f["verdict"]), f["month"] != ""))
    for told in judged[:DRAWN]:
        lines = told["plot"][0]
        curves = [(_array(lines["z"]), _array(lines[key])) for key in ("training", "before", "after")]
        key = [(0, "training"), (1, "here"), (2, "here, after median and spread are made equal")]
        title = f"{told['laboratory']} {told['month']}".strip() + f": {VERDICTS[told['verdict']]}"
        note = f"{lines['channel']}, the channel that differs most. {told['n']:,} newborns."
        yield {"title": title, "section": "places", "key": key, "svg": charts.shape_chart(curves), "note": note}


def _distributions(block: Json) -> Iterator[Json]:
    """Channels that differ from training somewhere, then others."""
    moved = {lines["channel"] for told in block["fitness"] if told["verdict"] != "fits" for lines in told["plot"]}
    for told in sorted(block["distributions"], key=lambda told: told["channel"] not in moved)[:CHANNELS]:
        drawn = [s for s in told["series"] if sum(s["counts"]) >= LEAST][: len(charts.SERIES)]
        series = [(s["name"], _array(s["counts"])) for s in drawn]
        if series:
            shares = [counts / counts.sum() for _, counts in series]
            svg = charts.distribution_chart(_array(told["edges"]), shares, told["unit"] == "umol/L")
            key = [(k, name or "not told") for k, (name, _) in enumerate(series)]
            yield {"title": told["channel"], "section": "distributions", "key": key, "svg": svg}


def _plates(block: Json) -> Iterator[Json]:
    """Controls of the analytes that made a plate fail, then others."""
    found = block["plates"] or {"plates": [], "series": []}
    broken = {(p["laboratory"], b["analyte"]) for p in found["plates"] if not p["ok"] for b in p["broken"]}
    series = sorted(found["series"], key=lambda s: (s["laboratory"], s["analyte"]) not in broken)
    for told in series[:DRAWN]:
        z = np.array([np.nan if v is None else v for v in told["z"]], float)
        out = ~np.array(told["ok"], bool)
        title = f"{told['analyte']}, {told['material']} control, {told['laboratory']}"
        key: list[Any] = [(0, "control"), ("ring", "plate failed"), ("dash", "3 sd")]
        yield {"title": title, "section": "plates", "key": key[: 3 if out.any() else 1], "svg": charts.control_chart(z, out)}


def _array(values: list[float]) -> Any:
    return np.array(values, float)
