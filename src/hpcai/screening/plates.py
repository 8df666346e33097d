"""How far a plate lies off its laboratory.   second pass over the batches -> integer sums by plate -> a shrunk shift

Each value counts as its distance from the laboratory's median in robust sd, cut to plus and minus `CUT` (so that an affected
newborn moves its plate no more than another one at the edge), in whole thousandths: sums of any order and sharding are equal.
A plate's mean is drawn to its laboratory's by what the plates differ more than chance lets them: empirical Bayes.

Shape letters: n newborns, C channels, B bins, P plates.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from hpcai.errors import DataError
from hpcai.screening.batch import Batch, Floats, Ints, Texts
from hpcai.screening.survey import BINS, Reference, Survey, channels_of, groups, months_of

CUT = 3.0  # robust sd; assumed: 1 in 400 of a normal law is cut, and one affected newborn moves a plate of 80 by 0.04 sd
UNIT = 1000  # whole numbers in one sd
MOST_PLATES = 200_000  # of 84 newborns: 17 million; more are ids in a wrong column
LEAST_PLATES = 3  # fewer do not tell how plates of a laboratory differ: no shift


class PlateShift:
    """Shifts of plates, in robust sd; a laboratory without a reference has none.

    Memory grows with the plates, not with the newborns: 1.2 kB a plate of 75 channels.
    """

    def __init__(self, survey: Survey, references: Mapping[str, Reference]) -> None:
        """`survey` lends its bins, and the plates that it leaves out; `references` by laboratory."""
        self.survey, self.references = survey, references
        self.sums: dict[tuple[str, str], Ints] = {}  # (laboratory, plate) -> (2, C): summed thousandths, values
        self._shifts: dict[str, dict[str, Floats]] = {}
        middle_CB = (survey.edge_CB[:, :-1] + survey.edge_CB[:, 1:]) / 2
        self._score = {
            (name, month): _score(middle_CB, reference.at(month))
            for name, reference in references.items()
            for month in ("", *reference.months)
        }

    def add(self, batch: Batch) -> None:
        """Sum the rows of a batch.

        Raises:
            DataError: there are more than `MOST_PLATES`.
        """
        self._shifts.clear()
        x_NC = channels_of(self.survey.dictionary, batch.x_NA)
        counted_N = self.survey.counts_row(batch)
        where, at_N = groups(batch.text["laboratory"], months_of(batch))
        for g, (laboratory, month) in enumerate(where):
            here = (at_N == g) & counted_N
            if laboratory in self.references and here.any():
                score_CB = self._score[laboratory, self.references[laboratory].at(month).month]
                self._sum(laboratory, batch.text["plate"][here], self.survey.bins(x_NC[here]), score_CB)

    def _sum(self, laboratory: str, plate_N: Texts, bin_NC: Ints, score_CB: Ints) -> None:
        """Sum the rows of one laboratory by plate."""
        plates, at_N = groups(plate_N)
        channels = np.arange(len(score_CB))
        cell = (at_N[:, None] * len(channels) + channels).ravel()
        parts = (score_CB[channels, bin_NC], bin_NC < BINS)  # sums of whole numbers: exact in a double
        sums = [np.bincount(cell, p.ravel(), len(plates) * len(channels)).reshape(len(plates), -1) for p in parts]
        for (plate,), summed in zip(plates, np.stack(sums, 1).astype(np.int64), strict=True):
            self._more((laboratory, plate), summed)

    def _more(self, plate: tuple[str, str], summed: Ints) -> None:
        self.sums[plate] = self.sums[plate] + summed if plate in self.sums else summed
        if len(self.sums) > MOST_PLATES:
            raise DataError(f"plate: more than {MOST_PLATES} plates. Check that the column holds plates, no ids.")

    def merge(self, other: PlateShift) -> None:
        """Take in the sums of another pass by the same references."""
        self._shifts.clear()
        for plate, summed in other.sums.items():
            self._more(plate, summed)

    def shift(self, laboratory: str, plate: str) -> Floats:
        """(C,) robust sd by which the plate lies above its laboratory; 0 where that cannot be told."""
        if laboratory not in self._shifts:
            self._shifts[laboratory] = self._shrunk(laboratory)
        return self._shifts[laboratory].get(plate, np.zeros(len(self.survey.first_C)))

    def _shrunk(self, laboratory: str) -> dict[str, Floats]:
        """Every plate's shift, by DerSimonian and Laird's moments. Source: Control. Clin. Trials 1986, 7:177-188."""
        plates = [plate for name, plate in sorted(self.sums) if name == laboratory]
        if len(plates) < LEAST_PLATES:
            return {}
        sum_PC, n_PC = np.stack([self.sums[laboratory, plate] for plate in plates], 1)
        with np.errstate(invalid="ignore", divide="ignore"):
            mean_PC = sum_PC / (UNIT * n_PC)
            total_C = n_PC.sum(0)
            centre_C = sum_PC.sum(0) / (UNIT * total_C)
            heterogeneity_C = np.nansum(n_PC * (mean_PC - centre_C) ** 2, 0)  # a value's variance is 1: it is in sd
            spare_C = total_C - (n_PC**2).sum(0) / total_C
            between_C = np.maximum(0, (heterogeneity_C - ((n_PC > 0).sum(0) - 1)) / spare_C)
            shift_PC = (mean_PC - centre_C) * between_C / (between_C + 1 / n_PC)
        return dict(zip(plates, np.nan_to_num(shift_PC, posinf=0, neginf=0), strict=True))

    def to_json(self) -> list[list[Any]]:
        """[laboratory, plate, sums, counts] in one order whatever the order of adding."""
        return [[*plate, *summed.tolist()] for plate, summed in sorted(self.sums.items())]

    @classmethod
    def from_json(cls, survey: Survey, references: Mapping[str, Reference], value: list[list[Any]]) -> PlateShift:
        """What `to_json` wrote.

        Raises:
            DataError: it is of other channels, or damaged.
        """
        plates = cls(survey, references)
        try:
            for laboratory, plate, *sums in value:
                summed = np.array(sums, np.int64)
                if summed.shape != (2, len(survey.first_C)) or (np.abs(summed[0]) > CUT * UNIT * summed[1]).any():
                    raise ValueError
                plates._more((str(laboratory), str(plate)), summed)
        except (TypeError, ValueError, OverflowError):
            raise DataError("plates: damaged: sums of a plate do not fit the channels. Sum the table again.") from None
        return plates


def _score(middle_CB: Floats, reference: Reference) -> Ints:
    """(C, B + 1) whole thousandths of each bin; 0 for what is missing and for a channel without a median."""
    z_CB = (middle_CB - reference.median_C[:, None]) / reference.scale_C[:, None]
    score_CB = np.rint(np.clip(np.nan_to_num(z_CB), -CUT, CUT) * UNIT).astype(np.int64)
    return np.pad(score_CB, ((0, 0), (0, 1)))
