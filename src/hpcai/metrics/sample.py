"""Cases of two classes, one against the rest: labels, scores, calls, and what is drawn again for an interval."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from hpcai.metrics.intervals import RESAMPLES, resampled
from hpcai.metrics.measures import MEASURES, areas, measures
from hpcai.metrics.rows import Bools, Floats, Rows


@dataclass(frozen=True)
class Sample:
    """n cases with their labels known.

    Attributes:
        label: (n,) True is positive.
        score: (n,) the probability of it.
        called: (n,) True is called positive.
        split: their name.
        case: n ids.
        patient: n ids, or None where no patients are known.
    """

    label: Bools
    score: Floats
    called: Bools
    split: str
    case: list[str]
    patient: list[str] | None = None

    @cached_property
    def repeats(self) -> bool:
        """Whether a patient has several cases: then patients are drawn again, else cases count as independent."""
        return self.patient is not None and len(set(self.patient)) < len(self.patient)

    @property
    def unit(self) -> str:
        """What is drawn again."""
        return "patients" if self.repeats else "cases"

    @property
    def note(self) -> str:
        """What every interval takes for granted."""
        return independence(self.patient)

    def drawn_note(self) -> str:
        """How often what was drawn."""
        return f"{RESAMPLES} resamples of {self.unit}" + ("" if self.repeats else f"; {self.note}")

    @cached_property
    def units(self) -> NDArray[np.intp]:
        """(n,) the number of each case's unit, by the order of ids."""
        ids = self.patient if self.repeats and self.patient is not None else self.case
        return np.unique(np.array(ids), return_inverse=True)[1]

    @cached_property
    def drawn(self) -> dict[str, Floats]:
        """Each of MEASURES in every resample of units, (RESAMPLES,); made when first asked for."""
        values = resampled(measures(self.label, self.score, self.called), self.units)
        return {name: values[:, k] for k, name in enumerate(MEASURES)}

    @cached_property
    def drawn_areas(self) -> Floats:
        """AUC and average precision in every resample, (RESAMPLES, 2): as in `drawn`, for less where no more is wanted."""
        if "drawn" in self.__dict__:
            return np.stack([self.drawn["auc"], self.drawn["average_precision"]], axis=1)
        return resampled(areas(self.label, self.score), self.units)

    def count(self, among: Bools) -> int:
        """The units among some cases (n,)."""
        return len(np.unique(self.units[among]))


def independence(patient: list[str] | None) -> str:
    """What an interval takes for granted about patients."""
    if patient is None:
        return "cases taken as independent: too narrow if patients repeat"
    return "patients repeat" if len(set(patient)) < len(patient) else "one case a patient"


def sample_of(rows: Rows, called: NDArray[np.int64], split: str, k: int = 1) -> Sample:
    """Class `k` against the rest, of labelled rows; `called`: (n,) the class that each was called."""
    return Sample(rows.label == k, rows.scores[:, k], called == k, split, rows.case, rows.patient)
