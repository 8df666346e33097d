"""What a fit leaves, as one JSON file: detectors, calibration, thresholds, what healthy looks like.   features -> scores

A detector tells one disease from the unaffected. Its logit is calibrated and moved to the panel's incidence, so that
probabilities are those of a population, not of the enriched table that taught it.
Shape letters: n newborns, C channels, A analytes, D diseases.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol

import numpy as np
from pydantic import Field, ValidationError, model_validator

from hpcai.config.words import Group, Text
from hpcai.errors import DataError, near
from hpcai.metrics.estimate import Estimate
from hpcai.metrics.logistic import expit
from hpcai.screening.batch import Bools, Floats
from hpcai.screening.estimators import Estimator, Logistic
from hpcai.screening.features import CLIP

BYTES = 200_000_000  # of a model file; a boosted panel of 18 x 2000 trees stays below
FACTORS = np.exp(np.linspace(-np.log(32), np.log(32), 129))  # multiples of an analyte that a counterfactual tries
JUMP = 1e9  # logits; past all that a detector says, and unlike infinity a number times 0
TRIED = 6  # analytes that are tried in pairs, those that move the logit most

Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0)]


class Standardised(Protocol):
    """What a model reads of features."""

    @property
    def z_NC(self) -> Floats:
        """Standardised log channels; 0 where missing."""
        ...

    @property
    def missing_NC(self) -> Bools:
        """Which are."""
        ...


class Calibration(Group):
    """logit of the probability = intercept + slope x raw logit + shift. `shift`: from the table's prior to the incidence."""

    intercept: float
    slope: Annotated[float, Field(gt=0)]
    shift: float
    n_affected: Count
    n_unaffected: Count


class Threshold(Group):
    """A newborn with a logit of `value` or more is called. The interval is Clopper-Pearson's, 95 %."""

    value: float
    rule: Text
    sensitivity: Share
    low: Share
    high: Share
    n: Count


class Conformal(Group):
    """Class-conditional: meant to miss each class in at most `miscoverage` of its newborns.

    A logit below `affected` leaves `affected` out of the set, one above `unaffected` leaves `unaffected` out; null: too few
    newborns to ever leave the class out, so that nothing is told. A set of both is uncertain; an empty one is filled with the
    nearer class.
    """

    miscoverage: Annotated[float, Field(gt=0, lt=0.5)]
    affected: float | None
    unaffected: float | None
    n_affected: Count
    n_unaffected: Count

    @property
    def decides(self) -> bool:
        """Whether there were newborns enough for either limit."""
        return self.affected is not None and self.unaffected is not None

    @property
    def bounds(self) -> tuple[float, float]:
        """Lowest logit with `affected` in the set, highest with `unaffected`."""
        low, high = self.affected, self.unaffected
        return -np.inf if low is None else low, np.inf if high is None else high


class Detector(Group):
    """One disease."""

    disease: Text
    estimator: Estimator
    chosen: dict[Text, float]
    calibration: Calibration
    threshold: Threshold
    conformal: Conformal

    def calibrated(self, logit: Floats) -> Floats:
        """A calibrated logit from the estimator's."""
        c = self.calibration
        return c.intercept + c.shift + c.slope * logit

    def sets(self, logit: Floats) -> Bools:
        """(n, 2) whether `unaffected` and `affected` are in the conformal set of a calibrated logit; one of them always is."""
        low, high = self.conformal.bounds
        held = np.stack([logit <= high, logit >= low], axis=1)
        empty = ~held.any(axis=1)
        held[empty, (logit[empty] >= (low + high) / 2).astype(int)] = True
        return held


@dataclass(frozen=True)
class Scores:
    """What a model says of n newborns and D diseases.

    Attributes:
        logit_ND: with what is missing at the median of the healthy.
        called_ND: at or above the threshold all the same.
        uncertain_ND: the conformal set holds both classes.
        open_ND: neither, but what is missing could make it so: silence that clears nobody.
    """

    logit_ND: Floats
    called_ND: Bools
    uncertain_ND: Bools
    open_ND: Bools

    @cached_property
    def probability_ND(self) -> Floats:
        """At the panel's incidence, each disease against the unaffected."""
        return expit(self.logit_ND)


@dataclass(frozen=True)
class Change:
    """An analyte times `factor`, its ratios with it."""

    analyte: str
    factor: float


class ScreeningModel(Group):
    """Detectors of those diseases of a panel that had enough cases, and what they take for granted.

    `simulated`: no newborn that taught them is real.
    """

    format: Literal["hpcai screening model 1"] = "hpcai screening model 1"
    simulated: bool
    dictionary: Text
    dictionary_digest: Text
    panel: Text
    panel_digest: Text
    channels: Annotated[list[Text], Field(min_length=1, max_length=1000)]
    scale: Annotated[list[float], Field(min_length=1, max_length=1000)]  # (C,) natural-log units of one z in training
    adjustment: dict[str, Any]  # features.Adjustment, as it writes itself
    survey: dict[str, Any]  # survey.Survey of the unaffected that taught it, as it writes itself
    detectors: Annotated[list[Detector], Field(min_length=1, max_length=500)]

    @model_validator(mode="after")
    def _sound(self) -> ScreeningModel:
        if len(set(self.channels)) != len(self.channels) or len(set(self.diseases)) != len(self.detectors):
            raise ValueError("a channel or a disease stands twice")
        if len(self.scale) != len(self.channels) or min(self.scale) <= 0:
            raise ValueError("scale is not one positive number a channel")
        if any(d.estimator.width != len(self.channels) for d in self.detectors):
            raise ValueError("an estimator reads another number of channels")
        return self

    @property
    def diseases(self) -> list[str]:
        """Short names, in the order of columns."""
        return [d.disease for d in self.detectors]

    @property
    def reads(self) -> list[str]:
        """The channels that any detector reads: where one of them is not as it was in training, no threshold holds."""
        read_C = np.any([d.estimator.steepness > 0 for d in self.detectors], axis=0)
        return [name for name, read in zip(self.channels, read_C.tolist(), strict=True) if read]

    @property
    def thresholds(self) -> list[dict[str, Any]]:
        """The operating point of each disease, as screening.json has it."""
        told = "Clopper-Pearson; on the newborns that set the threshold, none of which the estimator had seen"
        found = []
        for detector in self.detectors:
            t = detector.threshold
            sensitivity = Estimate("sensitivity", "oof", t.sensitivity, t.low, t.high, t.n, told)
            found.append({"disease": detector.disease, "value": t.value, "rule": t.rule, "sensitivity": asdict(sensitivity)})
        return found

    @cached_property
    def thresholds_D(self) -> Floats:
        """Logits from which on a newborn is called."""
        return np.array([d.threshold.value for d in self.detectors])

    def to_json(self) -> str:
        """Canonical text: equal models give equal bytes."""
        return json.dumps(self.model_dump(), sort_keys=True, ensure_ascii=False, allow_nan=False, separators=(",", ":")) + "\n"

    @cached_property
    def digest(self) -> str:
        """sha256 of its text."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    # ---- scores

    def score(self, features: Standardised) -> Scores:
        """Logits, calls and doubts of n newborns."""
        logit_ND = self.logits(features.z_NC)
        low, high = np.array([d.conformal.bounds for d in self.detectors]).T
        called_ND = logit_ND >= self.thresholds_D
        uncertain_ND = self._decides_D & (logit_ND >= low) & (logit_ND <= high)
        open_ND = np.zeros_like(called_ND)
        gaps = np.flatnonzero(features.missing_NC.any(1))
        open_ND[gaps] = self._open(logit_ND[gaps], features.missing_NC[gaps])
        return Scores(logit_ND, called_ND, uncertain_ND, open_ND & ~called_ND & ~uncertain_ND)

    def blind(self, unmeasured_C: Bools) -> Bools:
        """(D,) which detectors cannot clear even a newborn at the median of all that a laboratory does measure."""
        median = self.logits(np.zeros((1, len(self.channels))))
        return np.asarray(self._open(median, unmeasured_C[None])[0])

    def _open(self, logit_ND: Floats, missing_NC: Bools) -> Bools:
        """(n, D) whether missing channels, were they as far out as `CLIP`, could bring a call or a doubt."""
        rise_ND = missing_NC @ self._rise_CD
        return np.asarray((rise_ND > 0) & (logit_ND + rise_ND >= self._silent_below_D))

    @cached_property
    def _decides_D(self) -> Bools:
        return np.array([d.conformal.decides for d in self.detectors])

    @cached_property
    def _silent_below_D(self) -> Floats:
        """Logits below which a detector neither calls nor doubts."""
        low, high = np.array([d.conformal.bounds for d in self.detectors]).T
        return np.asarray(np.minimum(self.thresholds_D, np.where(self._decides_D & (low <= high), low, np.inf)))

    @cached_property
    def _rise_CD(self) -> Floats:
        """How far each channel could lift each logit from where it stands when it is missing."""
        rise_DC = [d.calibration.slope * CLIP * d.estimator.steepness for d in self.detectors]
        return np.minimum(np.array(rise_DC).T, JUMP)

    def logits(self, z_NC: Floats) -> Floats:
        """(n, D) calibrated logits at the panel's incidence; all linear detectors in one product."""
        logit_ND = np.empty((len(z_NC), len(self.detectors)))
        if len(columns := self._linear[0]):
            logit_ND[:, columns] = z_NC @ self._linear[1] + self._linear[2]
        for k, detector in enumerate(self.detectors):
            if not isinstance(detector.estimator, Logistic):
                logit_ND[:, k] = detector.calibrated(detector.estimator.logits(z_NC))
        return logit_ND

    @cached_property
    def _linear(self) -> tuple[list[int], Floats, Floats]:
        """Columns of linear detectors, their coefficients (C, .) and intercepts, calibration put in."""
        linear = [(k, d, d.estimator) for k, d in enumerate(self.detectors) if isinstance(d.estimator, Logistic)]
        coef = [d.calibration.slope * np.array(e.coef) for _, d, e in linear]
        offset = [float(d.calibrated(np.array(e.intercept))) for _, d, e in linear]
        return [k for k, _, _ in linear], np.array(coef).T, np.array(offset)

    # ---- why

    def contributions(self, z_C: Floats, disease: str) -> list[tuple[str, float]]:
        """What the logit would lose if a channel lay at the median of healthy newborns, the greatest first, 0 left out.

        Of a linear detector they sum to the logit's distance from that of the median newborn.
        """
        k = self._place(disease)
        without_CC = np.repeat(z_C[None], len(z_C), 0)
        np.fill_diagonal(without_CC, 0.0)
        lost = self.logits(z_C[None])[0, k] - self.logits(without_CC)[:, k]
        order = np.argsort(-np.abs(lost), kind="stable")
        return [(self.channels[c], float(lost[c])) for c in order if abs(lost[c]) > 1e-9]

    def counterfactual(self, z_C: Floats, disease: str) -> list[Change]:
        """The smallest change of one analyte, else of two, that changes the call; [] if 32-fold changes do not.

        Ratios move with their analytes: by `scale`, which is exact in the laboratory whose spreads are the training's.
        """
        k = self._place(disease)
        called = bool(self.logits(z_C[None])[0, k] >= self.thresholds_D[k])
        step = np.log(FACTORS)
        moves = {a: self._moves(a) for a in self.channels if "/" not in a}

        def changed(shift_MC: Floats) -> Bools:
            return np.asarray((self.logits(z_C + shift_MC)[:, k] >= self.thresholds_D[k]) != called)

        alone = [(abs(s), [Change(a, float(np.exp(s)))]) for a, m in moves.items() for s in step[changed(step[:, None] * m)]]
        if alone:
            return min(alone, key=lambda found: found[0])[1]
        reach = {a: np.ptp(self.logits(z_C + step[[0, -1], None] * m)[:, k]) for a, m in moves.items()}
        best: tuple[float, list[Change]] = (np.inf, [])
        first, second = (grid.ravel() for grid in np.meshgrid(step, step, indexing="ij"))
        for a, b in combinations(sorted(reach, key=lambda a: -reach[a])[:TRIED], 2):
            size = np.where(
                changed(first[:, None] * moves[a] + second[:, None] * moves[b]), np.abs(first) + np.abs(second), np.inf
            )
            at = int(size.argmin())
            if size[at] < best[0]:
                best = float(size[at]), [Change(a, float(np.exp(first[at]))), Change(b, float(np.exp(second[at])))]
        return best[1]

    def _moves(self, analyte: str) -> Floats:
        """(C,) how far each channel moves when the log of `analyte` grows by 1."""
        sign = [1.0 if analyte in (c, c.split("/")[0]) else -1.0 if c.endswith(f"/{analyte}") else 0.0 for c in self.channels]
        return np.asarray(np.array(sign) / np.array(self.scale))

    def _place(self, disease: str) -> int:
        if disease not in self.diseases:
            raise DataError(f"disease={disease}: the model has no detector for it. {near(disease, self.diseases)}")
        return self.diseases.index(disease)


def read_model(path: Path, dictionary_digest: str | None = None) -> ScreeningModel:
    """The model in `path`, checked number by number; `dictionary_digest`: of the dictionary that a cohort's table is read by.

    Raises: DataError if it is damaged, too large, or of another dictionary of analytes.
    """
    try:
        if path.stat().st_size > BYTES:
            raise DataError(f"model={path.name}: greater than {BYTES:,} bytes. Fit again.")
        model = ScreeningModel.model_validate_json(path.read_bytes())
    except OSError as e:
        raise DataError(f"model={path.name}: cannot be read. Name a finished run of job=fit.") from e
    except (ValidationError, RecursionError) as e:
        where = ".".join(map(str, e.errors()[0]["loc"][:3])) if isinstance(e, ValidationError) else "its depth"
        raise DataError(f"model={path.name}: damaged at {where or 'its start'}. Restore the file, or fit again.") from e
    if dictionary_digest is not None and model.dictionary_digest != dictionary_digest:
        raise DataError(
            f"model={path.name}: fitted with another dictionary than screening.analytes "
            f"(digest {model.dictionary_digest[:8]}, now {dictionary_digest[:8]}). Name that dictionary, or fit again."
        )
    return model
