"""The fingerprint in words: what `hpcai new` prints, and the notes that its page shows too."""

from __future__ import annotations

import shlex
import textwrap
from collections.abc import Iterator
from typing import Any

Json = dict[str, Any]
BAR = 24
WIDTH, COLUMNS = 12, 96


def tell(facts: Json, written: list[str], config_dir: str) -> list[str]:
    """The lines."""
    lines = [f"{facts['name']}: {counted(facts['cases'], 'case')}{_of_patients(facts)}", ""]
    for title, texts in _blocks(facts):
        wrapped = [line for text in texts for line in (textwrap.wrap(text, COLUMNS) if len(text) > COLUMNS else [text])]
        lines += [f"  {title if k == 0 else '':<{WIDTH}} {text}".rstrip() for k, text in enumerate(wrapped)]
    lines.append("")
    for note in notes(facts):
        lines += textwrap.wrap(f"note: {note}", COLUMNS + WIDTH, initial_indent="  ", subsequent_indent=" " * 8)
    persons = facts["identifiers"]
    coded = bool(persons and "patient ids" in persons["kinds"])
    state = "identifying" if persons and persons["direct"] else "pseudonymised" if coded else "none"
    lines += ["", *(f"  wrote {path}" for path in written), ""]
    lines += [f"  next: hpcai run +experiment={facts['name']} --config-dir {shlex.quote(config_dir)} data.identifiers={state}"]
    lines += ["        (none, pseudonymised or identifying: whom files and listing can name is yours to state)"]
    return lines


def _of_patients(facts: Json) -> str:
    people = facts["patients"]
    return f" of {counted(people['patients'], 'patient')}" if people else ", no patient ids"


def _blocks(facts: Json) -> Iterator[tuple[str, list[str]]]:
    left = sum(facts["excluded"].values())
    yield "found", [f"{counted(facts['images'], 'image')}, {counted(facts['rows'], 'row')}"]
    if left:
        widest = max(len(reason) for reason in facts["excluded"])
        yield "left out", [f"{reason:<{widest}}  {n:,}" for reason, n in facts["excluded"].items()]
    yield "columns", [_columns(facts["columns"])]
    yield "classes", list(_bars([(c["class"], c["cases"]) for c in facts["classes"]]))
    if people := facts["patients"]:
        yield (
            "patients",
            [f"{people['patients']:,}, with {people['median']:g} cases each in the middle, {people['most']:,} at most"],
        )
    if facts["splits"]:
        yield "splits", [", ".join(f"{name} {facts['splits'].get(name, 0):,}" for name in ("train", "val", "test"))]
    sizes = [f"{s['size'][0]} x {s['size'][1]}  {s['cases']:,}" for s in facts["sizes"][:4]]
    more = [f"and {facts['n_sizes'] - 4:,} more sizes"] if facts["n_sizes"] > 4 else []
    yield "sizes", [*sizes, *more]
    yield "files", [f"{f['format']}  {f['cases']:,}" for f in facts["formats"]]
    grey = facts["intensities"]
    yield (
        "intensities",
        [f"{spark(grey['histogram'])}  {grey['low']:.4g} to {grey['high']:.4g}, mean {grey['mean']:.3g}, sd {grey['sd']:.3g}"],
    )
    twice, near = facts["duplicates"]["equal"], facts["duplicates"]["near"]
    groups = f"{counted(twice['groups'], 'group')} of equal images ({twice['images']:,} images)"
    yield (
        "duplicates",
        [groups if twice["groups"] else "no two images are equal", f"{counted(near['groups'], 'pair')} nearly equal"],
    )
    for group in facts["groups"]:
        yield f"{group['name'][:WIDTH]}", [group_words(group)]
    if persons := facts["identifiers"]:
        kinds = ", ".join(f"{kind} {n:,}" for kind, n in persons["kinds"].items()) or "none of those looked for"
        yield "persons", [f"of {counted(persons['files'], 'DICOM header')}: {kinds}"]


def counted(n: int, what: str) -> str:
    """`1 case`, `1,200 cases`."""
    return f"{n:,} {what}{'s' * (n != 1)}"


def spark(counts: list[int]) -> str:
    """A histogram on one line."""
    pairs = [a + b for a, b in zip(counts[::2], counts[1::2])]
    most = max([*pairs, 1])
    return "".join(" ▁▂▃▄▅▆▇█"[min(8, -(-8 * n // most))] for n in pairs)


def _columns(columns: Json) -> str:
    guessed = columns["guessed"]
    return ", ".join(f"{role} = {name}{' (guessed)' * (role in guessed)}" for role, name in columns["named"].items())


def _bars(counts: list[tuple[str, int]]) -> Iterator[str]:
    """A line a class, of the first twenty."""
    shown = counts[:20]
    widest, most = max(len(name[:30]) for name, _ in shown), max(n for _, n in shown)
    for name, n in shown:
        mark = "  (the positive one)" if len(counts) == 2 and name == counts[-1][0] else ""
        yield f"{name[:30]:<{widest}}  {'█' * max(1, round(BAR * n / most)):<{BAR}}  {n:,}{mark}"
    if len(counts) > len(shown):
        yield f"and {len(counts) - len(shown)} more classes"


def group_words(group: Json) -> str:
    """What a column of --group-cols holds, in words: no level of few cases."""
    missing = f", {group['missing']:,} missing" if group["missing"] else ""
    if group["kind"] == "number":
        low, middle, high = group["quartiles"]
        return f"{middle:g} in the middle, half between {low:g} and {high:g}{missing}"
    named = ", ".join(f"{level['level']} {level['cases']:,}" for level in group["levels"])
    small = f"{counted(group['small'], 'level')} of under 10 cases" if group["small"] else ""
    return ", ".join(filter(None, (named, small))) + missing


def notes(facts: Json) -> Iterator[str]:
    """What to know before a run is believed."""
    people, least = facts["patients"], min(c["patients"] for c in facts["classes"])
    if people is None:
        yield "no patient column: cases are taken as independent, a patient may be on both sides of a split (--patient-col)."
    elif people["several_classes"]:
        yield f"{counted(people['several_classes'], 'patient')} of several classes: a split counts each by its rarest."
    yield from _twice(facts["duplicates"], known=people is not None)
    if facts["blank"]:
        yield f"{counted(facts['blank'], 'image')} of one grey value all over."
    if least < 30:
        yield f"the smallest class has {counted(least, 'patient' if people else 'case')}: intervals will be wide."
    if size := facts["takes"]["image_size"]:
        yield f"images are resized to {size[0]} x {size[1]}: the data file says so (image_size). More, if details are lost."
    if persons := facts["identifiers"]:
        unseen = "Pixels, names of files and the listing are not looked at for names."
        if persons["direct"]:
            yield f"headers name persons or places: this is data.identifiers=identifying, unless you take that out. {unseen}"
        else:
            yield f"no header names a person directly. {unseen}"
    if facts["links"]:
        yield f"{counted(facts['links'], 'linked folder')} not entered. Put the folders themselves there."


def _twice(duplicates: Json, known: bool) -> Iterator[str]:
    """What equal and nearly equal images mean. `known`: patients are."""
    for told, kind, what in ((duplicates["equal"], "equal", "group"), (duplicates["near"], "nearly equal", "pair")):
        if told["other_class"]:
            yield f"{counted(told['other_class'], what)} of {kind} images with different classes: look at them."
        if told["other_patient"]:
            yield f"{counted(told['other_patient'], what)} of {kind} images of different patients: a split may part them."
    if not known and (duplicates["equal"]["groups"] or duplicates["near"]["groups"]):
        yield "equal and nearly equal images may lie on both sides of a split: scores are then too good."
