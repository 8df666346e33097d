"""Which cases teach (train), which choose (val), which judge (test).   cases -> Splits -> split.json

Patients stay whole: without patients each case is its own. What the seed decides depends on digests of patients, never on the
order of the table. Classes are spread evenly; the share of a split is met within each class.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import numpy as np
import numpy.typing as npt

from hpcai.config.schema import Data, Split
from hpcai.data.cases import SPLITS, Cases, raise_faults
from hpcai.errors import DataError

Indices = npt.NDArray[np.int64]
Strata = list[list[list[int]]]  # classes -> patients -> cases

_OURS = {"counts", "classes", "duplicates", "patients", *SPLITS}  # what split.json holds beside the note


@dataclass(frozen=True)
class Splits:
    """Indices of cases, each ascending, disjoint and together all; `note` says how they came about."""

    train: Indices
    val: Indices
    test: Indices
    note: dict[str, Any] = field(default_factory=dict)

    def parts(self) -> dict[str, Indices]:
        """{"train": ..., "val": ..., "test": ...}."""
        return {"train": self.train, "val": self.val, "test": self.test}


def make_splits(cases: Cases, cfg: Split) -> Splits:
    """Parts `cases` as `cfg` says. Published data without val gets it from train, by `cfg.val_fraction`.

    Raises: DataError for a split that the data does not state, patients on both sides, an empty or one-class part.
    """
    note: dict[str, Any] = {"by": cfg.by, "seed": cfg.seed}
    if cfg.by == "published":
        train, val, test = _published(cases)
        if not val:
            val, train = _cut(_strata(cases, train), cfg.val_fraction, 1, [cfg.seed, 1])
            note["val"] = f"{cfg.val_fraction} of the published train"
    elif cfg.by == "random":
        everything = _strata(cases, range(len(cases)))
        test, rest = _cut(everything, cfg.test_fraction, 2, [cfg.seed, 0])
        share = cfg.val_fraction / (1 - cfg.test_fraction)
        val, train = _cut(_strata(cases, rest), share, 1, [cfg.seed, 1])
    else:
        note |= {"folds": cfg.folds, "fold": cfg.fold}
        test, rest = _fold(_strata(cases, range(len(cases))), cfg.folds, cfg.fold, [cfg.seed, 0])
        val, train = _cut(_strata(cases, rest), cfg.val_fraction, 1, [cfg.seed, 1, cfg.fold])
    splits = Splits(_ascending(train), _ascending(val), _ascending(test), note)
    _check(splits, cases)
    return splits


def fold_numbers(cases: Cases, indices: Indices, folds: int, seed: list[int]) -> Indices:
    """(n,) for each of `indices` the fold, from 0, that it is dealt to: patients whole, classes spread."""
    strata = _strata(cases, indices)
    number = np.full(len(cases), -1, dtype=np.int64)
    for fold in range(folds):
        number[_fold(strata, folds, fold, seed)[0]] = fold
    return number[indices]


def eval_indices(cases: Cases, cfg: Data) -> Indices:
    """The cases that job=evaluate scores: `cfg.eval_split` of `cases`; data may publish that part alone.

    Raises: DataError if there is none.
    """
    if cfg.eval_split == "all":
        return np.arange(len(cases))
    if cfg.split.by != "published":
        return make_splits(cases, cfg.split).parts()[cfg.eval_split]
    chosen = np.array([i for i, s in enumerate(cases.published or []) if s == cfg.eval_split], dtype=np.int64)
    if not len(chosen):
        raise DataError(f"data.eval_split={cfg.eval_split}: the data publishes no such part. Ask for all, or another.")
    return chosen


def _published(cases: Cases) -> tuple[list[int], list[int], list[int]]:
    """What the data says.

    Raises: DataError if it says nothing, or parts a patient.
    """
    if cases.published is None:
        raise DataError("data.split.by=published: the data states no split. Ask for random or kfold.")
    parts = {s: [i for i, p in enumerate(cases.published) if p == s] for s in SPLITS}
    if cases.patients is not None:
        of = {s: {cases.patients[i] for i in part} for s, part in parts.items()}
        both = {f"{a}/{b}": len(of[a] & of[b]) for a, b in combinations(SPLITS, 2)}
        if any(both.values()):
            counts = ", ".join(f"{n} in {pair}" for pair, n in both.items())
            raise DataError(f"data.split.by=published: patients on both sides of the split ({counts}). "
                            "Ask for data.split.by=random, which keeps patients whole.")  # fmt: skip
    return parts["train"], parts["val"], parts["test"]


def _strata(cases: Cases, indices: Iterable[int]) -> Strata:
    """The patients of some cases by class, in the order of their digests; one of several classes counts as its rarest."""
    names = cases.patients or cases.ids
    of: dict[str, list[int]] = {}
    for i in indices:
        of.setdefault(names[i], []).append(int(i))
    patients = [of[name] for name in sorted(of, key=lambda n: hashlib.sha256(n.encode("utf-8", "replace")).digest())]
    classes = [{int(cases.labels[i]) for i in patient} for patient in patients]
    count = Counter(c for each in classes for c in each)
    strata: dict[int, list[list[int]]] = {c: [] for c in sorted(count)}
    for patient, each in zip(patients, classes):
        strata[min(each, key=lambda c: (count[c], c))].append(patient)
    return [s for s in strata.values() if s]


def _cut(strata: Strata, share: float, leave: int, seed: list[int]) -> tuple[list[int], list[int]]:
    """Cases of a `share` of each class's patients, at least one, and the rest, at least `leave` (which goes before)."""
    taken: list[int] = []
    rest: list[int] = []
    for number, patients in enumerate(strata):
        n = min(max(1, round(share * len(patients))), max(0, len(patients) - leave))
        for place, p in enumerate(_order(len(patients), [*seed, number])):
            (taken if place < n else rest).extend(patients[p])
    return taken, rest


def _fold(strata: Strata, folds: int, fold: int, seed: list[int]) -> tuple[list[int], list[int]]:
    """Cases of fold `fold`, and the rest: each class's patients are dealt in turn, going on where the last class ended."""
    taken: list[int] = []
    rest: list[int] = []
    dealt = 0
    for number, patients in enumerate(strata):
        for p in _order(len(patients), [*seed, number]):
            (taken if dealt % folds == fold else rest).extend(patients[p])
            dealt += 1
    return taken, rest


def _order(n: int, seed: list[int]) -> Indices:
    return np.random.Generator(np.random.PCG64(seed)).permutation(n)


def _check(splits: Splits, cases: Cases) -> None:
    faults = []
    for name, part in splits.parts().items():
        classes = len(np.unique(cases.labels[part]))
        if classes < 2:
            what = "has no case" if not len(part) else f"has {len(part)} cases of one class only"
            faults.append(f"data.split.by={splits.note['by']}: {name} {what}. Take other shares or folds, or more data.")
    raise_faults(faults)


def duplicates(cases: Cases, splits: Splits) -> dict[str, int]:
    """How many contents (equal pixels) lie on both sides of each two parts; reads every case once.

    Raises: DataError for a case that cannot be read.
    """
    contents = {name: {_content(cases, int(i)) for i in part} for name, part in splits.parts().items()}
    return {f"{a}/{b}": len(contents[a] & contents[b]) for a, b in combinations(SPLITS, 2)}


def _content(cases: Cases, index: int) -> bytes:
    x = cases.read(index)
    return hashlib.sha256(f"{x.dtype} {x.shape}".encode() + x.tobytes()).digest()


def to_json(splits: Splits, cases: Cases) -> dict[str, Any]:
    """What split.json holds: how, how many, of which class (by number), duplicates, and the case ids; reads every case once."""
    parts = splits.parts()
    labels = {name: Counter(cases.labels[part].tolist()) for name, part in parts.items()}
    patients = cases.patients
    return splits.note | {
        "counts": {name: len(part) for name, part in parts.items()},
        "classes": {name: {str(c): n for c, n in sorted(count.items())} for name, count in labels.items()},
        "duplicates": duplicates(cases, splits),
        "patients": None if patients is None else {name: len({patients[i] for i in part}) for name, part in parts.items()},
        **{name: [cases.ids[i] for i in part] for name, part in parts.items()},
    }


def from_json(value: dict[str, Any], cases: Cases) -> Splits:
    """The splits that split.json states, for the same cases in any order.

    Raises: DataError if it is damaged, or the data has lost or won cases since.
    """
    try:
        named = {name: [str(case) for case in value[name]] for name in SPLITS}
    except (KeyError, TypeError):
        raise DataError("split.json: is damaged. Start another run.") from None
    place = {case: i for i, case in enumerate(cases.ids)}
    every = {case for part in named.values() for case in part}
    if len(every) != sum(map(len, named.values())):
        raise DataError("split.json: holds a case twice. Start another run.")
    lost, new = len(every - place.keys()), len(place.keys() - every)
    if lost or new:
        raise DataError(f"split.json: {lost} of its cases are gone from the data, {new} are new. "
                        "Restore the data, or start another run.")  # fmt: skip
    train, val, test = (_ascending(place[case] for case in named[name]) for name in SPLITS)
    return Splits(train, val, test, {k: v for k, v in value.items() if k not in _OURS})


def _ascending(indices: Iterable[int]) -> Indices:
    return np.array(sorted(indices), dtype=np.int64)
