"""One decision a baby and disease.   rules, model, specimen, plate, fit -> the most urgent word, with its reason

Each source asks for one of five decisions; the most urgent one stands:

    rule       positive -> policy.rule_positive   cannot be said -> not assessable        negative -> clear
    model      called -> policy.model_positive    undecided -> policy.abstention          below    -> clear
               below, but what is missing could change that -> not assessable
    specimen   valid -> clear                     repeat -> repeat                        not assessable
    needs      a needed analyte is missing -> not assessable, and the model is not heard
    fit        a laboratory that the model does not fit: it is not heard, or (policy.shifted) not assessable

So nothing that is unknown hides a positive, and clear is said only where nobody objects. Two things stand above all sources: a
plate that failed, and a row that cannot be used. One may lower a word: where the policy allows it, a model under its threshold
softens a rule's refer on a valid specimen. Shape letters: n newborns, D diseases. Pure: reads no file.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from hpcai.book.analytes import Dictionary
from hpcai.book.diseases import Diseases
from hpcai.screening.batch import Batch, Bools

if TYPE_CHECKING:
    from hpcai.book.shelf import Books
    from hpcai.screening.model import Scores
    from hpcai.screening.specimen import Effects

Codes = NDArray[np.int8]

CLEAR, NOT_ASSESSABLE, REPEAT, REFLEX, REFER = range(5)
NAMES = ("clear", "not_assessable", "repeat", "reflex", "refer")  # by code, least urgent first
CODES = {name: code for code, name in enumerate(NAMES)}

PLATE_GOOD, PLATE_FAILED, PLATE_UNKNOWN = range(3)  # what a plate's controls say; unknown: too few controls, or none

REASONS = (
    "nothing found",
    "rule positive",
    "rule positive, softened by the model",
    "model positive",
    "rule and model positive",
    "model undecided",
    "specimen: new sample",
    "specimen",
    "needed analyte missing",
    "rule cannot be said: analyte missing",
    "laboratory does not fit the model",
    "neither a rule nor the model judges it",
    "plate failed its controls",
    "plate without enough controls",
    "row cannot be used",
    "model cannot be said: analyte missing",
)
(
    NOTHING, RULE, SOFTENED, MODEL, BOTH, UNDECIDED, SPECIMEN_REPEAT, SPECIMEN, MISSING, UNSAID, SHIFTED, NOBODY,
    PLATE, PLATE_UNTOLD, ROW, MODEL_UNSAID,
) = range(len(REASONS))  # fmt: skip


@dataclass(frozen=True)
class Decisions:
    """What is proposed for n newborns.

    Attributes:
        code_ND: index into NAMES.
        reason_ND: index into REASONS.
        softened_ND: whether a rule's refer was softened; the record shows both words.
        heard_ND: whether the model was heard: there is one, it fits the laboratory, nothing that the disease needs is missing,
            nor anything that could change its word.
    """

    code_ND: Codes
    reason_ND: Codes
    softened_ND: Bools
    heard_ND: Bools

    @property
    def worst_N(self) -> Codes:
        """(n,) the most urgent decision of each newborn."""
        return np.asarray(self.code_ND.max(axis=1), np.int8)


def decide(
    books: Books,
    batch: Batch,
    rules_ND: Codes,
    effects: Effects,
    scores: Scores | None,
    plates: Codes | None = None,
    fits: Bools | None = None,
) -> Decisions:
    """The decisions of a batch.

    Args:
        rules_ND: word of the policy's rule sets together (see `together`): 1, 0, -1 cannot be said, -2 no rule.
        scores: in the panel's order, logits NaN where the model has no detector; None: no model.
        plates: (n,) PLATE_GOOD, PLATE_FAILED or PLATE_UNKNOWN; None: plates have no controls.
        fits: (n,) or (n, D) whether the model may be used on this newborn's laboratory and month; None: it may.
    """
    policy, panel = books.policy, books.panel
    tiers_D = np.array([d.second_tier is not None for d in panel.diseases])
    soft_D = np.array([d.name in policy.model_may_soften for d in panel.diseases])
    missing_ND, valid_ND = lacking(books.dictionary, panel, batch), effects.code_ND == 0
    fits_ND = np.ones((len(batch), 1), bool) if fits is None else fits.reshape(len(batch), -1)
    asked_ND = np.zeros_like(missing_ND) if scores is None else ~missing_ND & fits_ND & np.isfinite(scores.logit_ND)
    open_ND = asked_ND & scores.open_ND if scores is not None else asked_ND
    heard_ND = asked_ND & ~open_ND
    called_ND = heard_ND & scores.called_ND if scores is not None else heard_ND
    unsure_ND = heard_ND & scores.uncertain_ND & ~called_ND if scores is not None else heard_ND

    now = _Proposal.clear(rules_ND.shape)
    now.raise_to(NOT_ASSESSABLE, NOBODY, (rules_ND == -2) & ~heard_ND)
    if policy.shifted == "not_assessable" and scores is not None:
        now.raise_to(NOT_ASSESSABLE, SHIFTED, np.broadcast_to(~fits_ND, rules_ND.shape))
    now.raise_to(NOT_ASSESSABLE, MODEL_UNSAID, open_ND)
    now.raise_to(NOT_ASSESSABLE, UNSAID, rules_ND == -1)
    now.raise_to(NOT_ASSESSABLE, MISSING, missing_ND)
    now.raise_to(NOT_ASSESSABLE, SPECIMEN, effects.code_ND == 2)
    now.raise_to(REPEAT, SPECIMEN_REPEAT, effects.code_ND == 1)
    now.raise_to(with_tier(policy.abstention, tiers_D), UNDECIDED, unsure_ND)
    now.raise_to(with_tier(policy.model_positive, tiers_D), MODEL, called_ND)

    positive_ND = rules_ND == 1
    asked_D = with_tier(policy.rule_positive, tiers_D)
    below_ND = heard_ND & valid_ND & ~called_ND & ~unsure_ND
    softened_ND = positive_ND & below_ND & soft_D & (asked_D == REFER)
    now.raise_to(asked_D, RULE, positive_ND & ~called_ND & ~softened_ND)
    now.raise_to(asked_D, BOTH, positive_ND & called_ND)
    now.raise_to(with_tier("reflex", tiers_D), SOFTENED, softened_ND)
    softened_ND &= _above_all(now, batch, plates)
    return Decisions(now.code_ND, now.reason_ND, softened_ND, heard_ND)


def together(sets: list[Codes]) -> Codes:
    """Several rule sets as one, (n, D): positive if one is; else unsaid if one is; else negative if one is; else no rule."""
    stack = np.stack(sets)
    said = np.where((stack == 0).any(axis=0), 0, -2)
    said = np.where((stack == -1).any(axis=0), -1, said)
    return np.where((stack == 1).any(axis=0), 1, said).astype(np.int8)


def lacking(dictionary: Dictionary, panel: Diseases, batch: Batch) -> Bools:
    """(n, D) whether an analyte that the disease needs is missing."""
    at = {analyte.name: a for a, analyte in enumerate(dictionary.analytes)}
    missing_NA = np.isnan(batch.x_NA)
    return np.stack([missing_NA[:, [at[a] for a in d.needs]].any(axis=1) for d in panel.diseases], axis=1)


def with_tier(word: str, tiers_D: Bools) -> Codes:
    """(D,) the code of a policy's word; reflex without a second-tier test is a new sample."""
    return np.where(tiers_D | (word != "reflex"), CODES[word], REPEAT).astype(np.int8)


@dataclass
class _Proposal:
    code_ND: Codes
    reason_ND: Codes

    @classmethod
    def clear(cls, shape: tuple[int, ...]) -> _Proposal:
        return cls(np.full(shape, CLEAR, np.int8), np.full(shape, NOTHING, np.int8))

    def raise_to(self, code: int | Codes, reason: int, where_ND: Bools) -> None:
        """Lifts what is less urgent; of two that are as urgent the later reason stands. Who asks for clear adds none."""
        asked = np.asarray(code, np.int8)
        lift_ND = (self.code_ND <= asked) & where_ND & (asked > CLEAR)
        np.copyto(self.code_ND, asked, where=lift_ND)
        np.copyto(self.reason_ND, np.int8(reason), where=lift_ND)

    def fix(self, reason: int, rows_N: Bools) -> None:
        """Not assessable, whatever anybody says."""
        self.code_ND[rows_N], self.reason_ND[rows_N] = NOT_ASSESSABLE, reason


def _above_all(now: _Proposal, batch: Batch, plates: Codes | None) -> Bools:
    """Plates and rows that allow no decision at all; (n, 1) whether the row is still one of the others."""
    whole_N = batch.unusable_N
    plates_N = np.zeros(len(batch), np.int8) if plates is None else plates
    now.fix(PLATE_UNTOLD, plates_N == PLATE_UNKNOWN)
    now.fix(PLATE, plates_N == PLATE_FAILED)
    now.fix(ROW, whole_N)
    return np.asarray(((plates_N == PLATE_GOOD) & ~whole_N)[:, None], bool)


def line(names: list[str], code_D: Codes, reason_D: Codes) -> str:
    """A baby's line: `refer: PKU; clear for 16 of 18; not assessable: MCAD (needed analyte missing)`.

    Args:
        names: the panel's, (D,).
    """
    parts = []
    for code in (REFER, REFLEX, REPEAT):
        if found := [name for name, c in zip(names, code_D, strict=True) if c == code]:
            parts.append(f"{NAMES[code]}: {', '.join(found)}")
    parts.append(f"clear for {int((code_D == CLEAR).sum())} of {len(names)}")
    if (code_D == NOT_ASSESSABLE).any():
        parts.append(f"not assessable: {_unassessed(names, code_D, reason_D)}")
    return "; ".join(parts)


def _unassessed(names: list[str], code_D: Codes, reason_D: Codes) -> str:
    """`all (plate failed its controls)`, or each reason after its diseases."""
    by_reason: dict[int, list[str]] = {}
    for name, code, reason in zip(names, code_D.tolist(), reason_D.tolist(), strict=True):
        if code == NOT_ASSESSABLE:
            by_reason.setdefault(reason, []).append(name)
    shown = {r: "all" if len(found) == len(names) else ", ".join(found) for r, found in by_reason.items()}
    return ", ".join(f"{found} ({REASONS[reason]})" for reason, found in shown.items())
