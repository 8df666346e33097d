"""Cases and looks -> the fingerprint: counts, JSON-ready, no value of a patient."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hpcai.intake import alike
from hpcai.intake.columns import Columns
from hpcai.intake.faults import Notes
from hpcai.intake.files import Images
from hpcai.intake.identifiers import DIRECT
from hpcai.intake.join import Joined
from hpcai.intake.look import Look
from hpcai.intake.table import NUMBER
from hpcai.new import Asked

Json = dict[str, Any]
SMALL = 10  # groups with fewer cases are counted, not named
NEGATIVE = {"0", "no", "none", "normal", "negative", "neg", "healthy", "benign", "control", "false", "absent", "non", "nein",
            "gesund", "unauffällig", "n", "-"}  # fmt: skip
LARGEST = 256  # longest side that is taken as it is
USUAL = 224  # longest side of what is resized


@dataclass(frozen=True)
class Found:
    """All that was found; `labels` in the order of their numbers; `named`: the files that rows name, at fault or not."""

    asked: Asked
    columns: Columns
    images: Images
    cases: Sequence[Joined]
    looks: Sequence[Look]
    rows: int
    notes: Notes
    labels: list[str]
    named: set[str]

    @property
    def channels(self) -> int:
        """1 unless an image has colours."""
        return 3 if any(look.colour for look in self.looks) else 1

    @property
    def image_size(self) -> list[int] | None:
        """What the images are resized to; None if all have one size that is no larger than LARGEST."""
        sizes = Counter(look.size for look in self.looks)
        height, width = (float(np.median([look.size[axis] for look in self.looks])) for axis in (0, 1))
        if len(sizes) == 1 and max(height, width) <= LARGEST:
            return None
        scale = min(1.0, USUAL / max(height, width))
        return [max(8, round(side * scale / 8) * 8) for side in (height, width)]

    @property
    def excluded(self) -> dict[str, int]:
        """{reason: cases} of what was found and left out."""
        counts = self.notes.counts()
        if unnamed := len(set(self.images.files) - self.named):
            counts["image without a row"] = unnamed
        if self.images.outside:
            counts["link out of the folder"] = len(self.images.outside)
        return counts


def labels_of(cases: Sequence[Joined], positive: str | None) -> list[str]:
    """The classes in the order of their numbers: sorted, numbers as numbers; of two the one that is looked for last."""
    names = sorted(
        {case.label for case in cases}, key=lambda name: (not name.isdecimal(), int(name) if name.isdecimal() else 0, name)
    )
    if len(names) == 2:
        first = [name for name in names if name.casefold() in NEGATIVE]
        last = positive if positive in names else (next(n for n in names if n != first[0]) if len(first) == 1 else names[1])
        names.sort(key=lambda name: name == last)
    return names


def fingerprint(found: Found) -> Json:
    """The fingerprint."""
    cases, looks = found.cases, found.looks
    people = [case.patient for case in cases] if found.columns.patient else None
    sizes, depths = Counter(look.size for look in looks), Counter(f"{look.format}, {look.depth}" for look in looks)
    return {
        "name": found.asked.name,
        "cases": len(cases),
        "rows": found.rows,
        "images": len(found.images.files) + len(found.images.outside),
        "excluded": found.excluded,
        "columns": _columns(found.columns),
        "classes": [_class(label, cases) for label in found.labels],
        "patients": None if people is None else _patients([str(p) for p in people], cases),
        "sizes": [{"size": list(size), "cases": n} for size, n in sizes.most_common(8)],
        "n_sizes": len(sizes),
        "formats": [{"format": text, "cases": n} for text, n in depths.most_common()],
        "colour": sum(look.colour for look in looks),
        "blank": sum(look.blank for look in looks),
        "intensities": _intensities(looks),
        "duplicates": _duplicates(cases, looks, people),
        "groups": [_group(name, [case.groups[k] for case in cases]) for k, name in enumerate(found.columns.groups)],
        "splits": dict(Counter(case.split for case in cases)) if found.columns.split else None,
        "identifiers": _identifiers(looks),
        "takes": {"channels": found.channels, "image_size": found.image_size},
        "links": found.images.links,
    }


def _columns(columns: Columns) -> Json:
    named = {
        "image": columns.path,
        "case": columns.case,
        "class": columns.label,
        "patient": columns.patient,
        "split": columns.split,
    }
    called = {"path": "image", "label": "class", "patient": "patient"}
    return {"named": {k: v for k, v in named.items() if v}, "guessed": [called[g] for g in columns.guessed]}


def _class(label: str, cases: Sequence[Joined]) -> Json:
    mine = [case for case in cases if case.label == label]
    return {"class": label, "cases": len(mine), "patients": len({case.patient or case.case for case in mine})}


def _patients(people: list[str], cases: Sequence[Joined]) -> Json:
    each = Counter(people)
    counts = np.array(sorted(each.values()))
    classes: dict[str, set[str]] = defaultdict(set)
    for case, who in zip(cases, people):
        classes[who].add(case.label)
    often = Counter(min(n, 6) for n in each.values())
    return {
        "patients": len(each), "most": int(counts[-1]), "median": float(np.median(counts)),
        "several_classes": sum(len(c) > 1 for c in classes.values()),
        "cases_each": [{"cases": f"{n}" if n < 6 else "6 and more", "patients": often[n]} for n in sorted(often)],
    }  # fmt: skip


def _intensities(looks: Sequence[Look]) -> Json:
    pixels = np.concatenate([look.pixels for look in looks]).astype(np.float64)
    whole = all(look.whole for look in looks)
    low, high = (0.0, 255.0) if whole else (float(pixels.min()), float(pixels.max()))
    count, _ = np.histogram(pixels, bins=32, range=(low, high if high > low else low + 1))
    means = np.array([float(look.pixels.mean()) for look in looks])
    return {
        "low": low, "high": high, "mean": float(pixels.mean()), "sd": float(pixels.std()), "histogram": count.tolist(),
        "image_means": [float(v) for v in np.quantile(means, [0.05, 0.5, 0.95])],
    }  # fmt: skip


def _duplicates(cases: Sequence[Joined], looks: Sequence[Look], people: Sequence[str | None] | None) -> Json:
    equal = alike.same(look.digest for look in looks)
    pairs = alike.nearly([look.hash for look in looks], np.stack([look.sketch for look in looks]))
    near = [(a, b) for a, b in pairs if looks[a].digest != looks[b].digest]

    def over(groups: Sequence[Sequence[int]]) -> Json:
        several = [g for g in groups if people is not None and len({people[i] for i in g}) > 1]
        return {
            "groups": len(groups), "images": len({i for g in groups for i in g}),
            "other_class": sum(len({cases[i].label for i in g}) > 1 for g in groups),
            "other_patient": len(several) if people is not None else None,
        }  # fmt: skip

    return {"equal": over(equal), "near": over(near)}


def _group(name: str, values: list[str]) -> Json:
    """Numbers by their quartiles, texts by the levels that enough cases share."""
    filled = [v for v in values if v]
    missing = len(values) - len(filled)
    if filled and all(NUMBER.fullmatch(v) for v in filled) and len(set(filled)) > 8:
        quartiles = np.quantile(np.array([float(v) for v in filled]), [0.25, 0.5, 0.75])
        return {"name": name, "kind": "number", "missing": missing, "quartiles": [float(f"{q:.4g}") for q in quartiles]}
    count = Counter(filled)
    levels = [{"level": level, "cases": n} for level, n in count.most_common() if n >= SMALL][:12]
    return {"name": name, "kind": "text", "missing": missing, "levels": levels, "small": len(count) - len(levels)}


def _identifiers(looks: Sequence[Look]) -> Json | None:
    headers = [look.persons for look in looks if look.persons is not None]
    if not headers:
        return None
    count = Counter(kind for kinds in headers for kind in kinds)
    return {
        "files": len(headers),
        "kinds": dict(sorted(count.items(), key=lambda item: (-item[1], item[0]))),
        "direct": sum(count[kind] for kind in DIRECT) > 0,
    }
