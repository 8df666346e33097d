"""All that is said of a batch.   batch -> rules, specimen, features, model, plate, fit -> decisions

Holds what was learnt of the whole cohort (references, fits, plates), so that a batch is judged by itself, in any order. Reads
and writes no file. Shape letters: n newborns, C channels, D diseases.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from hpcai.screening import rules, specimen
from hpcai.screening.batch import Batch, Bools
from hpcai.screening.decisions import PLATE_FAILED, PLATE_GOOD, PLATE_UNKNOWN, Codes, decide, together
from hpcai.screening.features import Adjustment, Features, features
from hpcai.screening.model import Scores, ScreeningModel
from hpcai.screening.records import Judged
from hpcai.screening.survey import groups, months_of

if TYPE_CHECKING:
    from hpcai.book.shelf import Books
    from hpcai.screening.controls import PlateVerdict
    from hpcai.screening.fitness import Fitness
    from hpcai.screening.plates import PlateShift
    from hpcai.screening.survey import Reference

Place = tuple[str, str]  # laboratory, month; "" for all months


@dataclass(frozen=True)
class Judge:
    """Judges batches of one cohort.

    Attributes:
        model: None: rules alone.
        references: median and scale of each laboratory of this cohort.
        fits: what was found of each laboratory and month (see fitness.py); none: the model is taken to fit.
        shifts: of plates within their laboratory.
        plates: what the controls of each (laboratory, plate) say; None: plates have none.
        per_plate: controls without which nothing is known of a plate.
    """

    books: Books
    model: ScreeningModel | None
    references: Mapping[str, Reference]
    fits: Mapping[Place, Fitness] = field(default_factory=dict)
    shifts: PlateShift | None = None
    plates: Mapping[Place, PlateVerdict] | None = None
    per_plate: int = 1

    def __call__(self, batch: Batch) -> Judged:
        """Every source's word, and the decision."""
        books = self.books
        said = {
            each.name: rules.by_disease(each, books.panel, rules.verdicts(each, books.dictionary, batch.x_NA))
            for each in books.rules
        }
        seen = self.features(batch)
        scores = _on_panel(self.model, books.panel.names, seen) if self.model else None
        effects = specimen.effects(books.specimen, books.panel, batch)
        fits_ND = (seen.known_N & self.fits_N(batch))[:, None] & self.sees_ND(batch) if self.model else None
        asked = together([said[name] for name in books.policy.rule_sets])
        made = decide(books, batch, asked, effects, scores, self.plates_N(batch), fits_ND)
        return Judged(batch, made, said, scores, seen.multiple_NC, effects.holds_NS, self.notes, self.plate_notes)

    def features(self, batch: Batch) -> Features:
        """What the model reads of a batch."""
        return features(self.books.dictionary, batch, self.references, self._adjustment, self.shifts)

    def fits_N(self, batch: Batch) -> Bools:
        """(n,) whether nothing was found against using the model: neither for the laboratory, nor for its month."""
        found, at_N = _places(batch)
        return np.take(np.array([self._fits(place) for place in found], bool), at_N)

    def sees_ND(self, batch: Batch) -> Bools:
        """(n, D) whether the laboratory (its month, where that has medians of its own) measures what the detector lives on."""
        found, at_N = _places(batch)
        sees = np.array([self._sees(place) for place in found], bool)
        return np.asarray(sees.reshape(len(found), -1)[at_N])

    def _sees(self, place: Place) -> Bools:
        names, reference = self.books.panel.names, self.references.get(place[0])
        if self.model is None or reference is None:
            return np.ones(len(names), bool)
        blind = self.model.blind(np.isnan(reference.at(place[1]).median_C))
        return ~np.isin(names, [name for name, dark in zip(self.model.diseases, blind, strict=True) if dark])

    def _fits(self, place: Place) -> bool:
        both = (self.fits.get((place[0], "")), self.fits.get(place))
        return all(fit is None or fit.verdict != "not_valid" for fit in both)

    @cached_property
    def _adjustment(self) -> Adjustment | None:
        return Adjustment.from_json(self.model.adjustment) if self.model else None

    @cached_property
    def notes(self) -> dict[Place, str]:
        """What a record says of its laboratory and month, where that is more than `fits`."""
        said = {"corrected": "laboratory corrected to the model's", "not_valid": "laboratory does not fit the model"}
        return {place: said[fit.verdict] for place, fit in self.fits.items() if fit.verdict in said}

    @cached_property
    def plate_notes(self) -> dict[Place, str]:
        """Why a plate is not good."""
        return {place: told.why for place, told in (self.plates or {}).items() if not told.ok}

    def plates_N(self, batch: Batch) -> Codes | None:
        """(n,) PLATE_GOOD, PLATE_FAILED or PLATE_UNKNOWN; None where plates have no controls at all."""
        if self.plates is None:
            return None
        found, at_N = groups(batch.text["laboratory"], batch.text["plate"])
        return np.array([self._plate((laboratory, plate)) for laboratory, plate in found], np.int8)[at_N]

    def _plate(self, plate: Place) -> int:
        verdict = self.plates.get(plate) if self.plates else None
        if verdict is None or verdict.n < self.per_plate:
            return PLATE_UNKNOWN
        return PLATE_GOOD if verdict.ok else PLATE_FAILED


def _on_panel(model: ScreeningModel, names: list[str], seen: Features) -> Scores:
    """The model's word in the panel's order; NaN, and no call, for a disease that it has no detector for."""
    said, at = model.score(seen), {disease: k for k, disease in enumerate(model.diseases)}
    if model.diseases == names:
        return said
    there = [at.get(name, -1) for name in names]
    has_D = np.array(there) >= 0
    words = (said.called_ND, said.uncertain_ND, said.open_ND)
    return Scores(np.where(has_D, said.logit_ND[:, there], np.nan), *(word_ND[:, there] & has_D for word_ND in words))


def _places(batch: Batch) -> tuple[list[Place], np.ndarray]:
    """The distinct (laboratory, month) of a batch, and which of them each row has; a table without months has ''."""
    found, at_N = groups(batch.text["laboratory"], months_of(batch))
    return [(name, month) for name, month in found], at_N
