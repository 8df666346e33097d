"""Entries and sweeps -> index.html: one file, no request. Every text is escaped; only our script runs, by its digest."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

from hpcai.config.jobs import teaches
from hpcai.errors import one_line
from hpcai.index import keys
from hpcai.index.entries import Entry, Group, Score

HERE = Path(__file__).parent
COLUMNS = 24  # keys that are columns at most
FIRST = ("seed", "trainer.", "model.", "data.split.", "task.", "data.", "predict.", "resources.", "cluster.")
SHOWN = 3  # runs whose curves are drawn when the page opens
NAMES = {"auc": "AUC", "macro_auc": "macro AUC"}
PLACES = {"val": "validation", "train": "training", "oof": "out-of-fold"}


def render(runs_dir: Path, entries: Sequence[Entry], sweeps: Sequence[Group], beside: Path) -> str:
    """The page. `beside`: the folder that it will lie in; reports below it are linked."""
    import jinja2
    from markupsafe import Markup

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {"number": number, "duration": duration, "brief": brief, "named": named, "measure": measure}
    varied = sorted(keys.varying(entry.keys for entry in entries), key=_weight)
    script = "".join((HERE / name).read_text("utf-8") for name in ("charts.js", "index.js"))
    return environment.get_template("index.html.j2").render(
        title=one_line(runs_dir.absolute().name, 120),
        css=Markup((HERE / "index.css").read_text("utf-8")),
        script=Markup(script),
        digest=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        data=Markup(embedded(_data(entries))),
        entries=entries,
        links=[_link(entry, beside) for entry in entries],
        columns=varied[:COLUMNS],
        more=max(0, len(varied) - COLUMNS),
        priced=any(entry.node_h is not None for entry in entries),
        experiments=sorted({entry.experiment for entry in entries}),
        states=_counted(entry.state for entry in entries),
        sweeps=[(group, _table(group, entries)) for group in sweeps],
        costs=_costs(entries),
        newest=_newest(entries),
        missing=keys.MISSING,
    )


def embedded(value: Any) -> str:
    """JSON that ends no <script> and begins no comment, whatever a name holds."""
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _data(entries: Sequence[Entry]) -> dict[str, Any]:
    """What the charts draw, and which runs first: those that validation ranks first."""
    curved = [k for k, entry in enumerate(entries) if entry.curves]
    first = sorted(curved, key=lambda k: _rank(entries[k].best))[:SHOWN]
    return {"runs": [{"name": entry.name, "curves": entry.curves} for entry in entries], "first": first}


def _rank(best: Score | None) -> tuple[int, float]:
    if best is None:
        return 2, 0.0
    return (1, best.value) if best.name == "loss" else (0, -best.value)


def _link(entry: Entry, beside: Path) -> str:
    """The report's address as seen from the page; nothing where it lies elsewhere: no path of this machine is told."""
    try:
        path = entry.run.report_html.absolute().relative_to(beside)
    except ValueError:
        return ""
    return quote(os.fsencode(path)) if entry.has_page else ""


def _weight(key: str) -> int:
    return next((k for k, start in enumerate(FIRST) if key.startswith(start)), len(FIRST))


def _table(group: Group, entries: Sequence[Entry]) -> keys.Table | None:
    """A sweep's trainings by their keys; None where none is left."""
    members = [entries[k] for k in group.places if teaches(entries[k].job)]
    scored = [(m.keys, m.best.name if m.best else "", m.best.value if m.best else None) for m in members]
    return keys.table(scored) if scored else None


def _costs(entries: Sequence[Entry]) -> list[dict[str, Any]]:
    """By experiment: runs, those that completed, time and node-hours; then all of them."""
    found = [_cost(name, [e for e in entries if e.experiment == name]) for name in sorted({e.experiment for e in entries})]
    return [*found, _cost("all", entries)] if len(found) > 1 else found


def _cost(name: str, some: Sequence[Entry]) -> dict[str, Any]:
    walls, nodes = [e.wall_s for e in some if e.wall_s is not None], [e.node_h for e in some if e.node_h is not None]
    return {
        "name": name,
        "runs": len(some),
        "completed": sum(e.state == "completed" for e in some),
        "wall_s": math.fsum(walls) if walls else None,
        "counted": len(walls),
        "node_h": math.fsum(nodes) if nodes else None,
    }


def _counted(words: Iterable[str]) -> Mapping[str, int]:
    listed = list(words)
    return {word: listed.count(word) for word in sorted(set(listed))}


def _newest(entries: Sequence[Entry]) -> str:
    """When a run last said a word: the page has no other clock, so the same files give the same page."""
    told = max((e.told for e in entries if e.told is not None), default=None)
    try:
        return "" if told is None else datetime.fromtimestamp(told, UTC).strftime("%Y-%m-%d %H:%M UTC")
    except (ValueError, OverflowError, OSError):
        return ""


# ---- words


def number(x: float | None) -> str:
    """Three decimals of a score, four digits of anything else; a dash for None."""
    if x is None:
        return keys.MISSING
    return f"{x:.3f}" if 0.1 <= abs(x) < 10 or x == 0 else f"{x:.4g}"


def brief(value: keys.Value) -> str:
    """A config value in a cell: four digits of a float."""
    return f"{value:.4g}" if isinstance(value, float) else keys.shown(value)


def named(score: Score) -> str:
    """`AUC, test`."""
    return f"{measure(score.name)}, {PLACES.get(score.split, score.split)}"


def measure(name: str) -> str:
    """The name of a score."""
    return NAMES.get(name, name.replace("_", " "))


def duration(seconds: float | None) -> str:
    """`1 h 10 min`, `1 min 40 s`, `7.2 s`; a dash for None."""
    if seconds is None:
        return keys.MISSING
    whole = round(seconds)
    if whole >= 3600:
        return f"{whole // 3600:,} h {whole % 3600 // 60} min"
    return f"{whole // 60} min {whole % 60} s" if whole >= 60 else f"{seconds:.1f} s"
