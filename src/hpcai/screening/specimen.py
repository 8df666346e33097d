"""What the state of a specimen does to each disease's result.   specimen rules, panel, batch -> effect a newborn and disease

Shape letters: n newborns, S specimen rules, D diseases.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hpcai.book.diseases import Diseases
from hpcai.book.specimen import SpecimenRule, SpecimenRules
from hpcai.screening.batch import Batch, Bools

VALID, REPEAT, NOT_ASSESSABLE = 0, 1, 2  # so ordered, the worst effect is the greatest
EFFECTS = ("valid", "repeat", "not_assessable")


@dataclass(frozen=True)
class Effects:
    """What n specimens' states do.

    Attributes:
        code_ND: (n, D) VALID, REPEAT or NOT_ASSESSABLE: the worst effect of all rules that hold and touch the disease.
        holds_NS: (n, S) whether each rule holds.
    """

    code_ND: NDArray[np.int8]
    holds_NS: Bools


@dataclass(frozen=True)
class Reason:
    """A rule that holds for one newborn.

    Attributes:
        effect: valid, repeat or not_assessable.
        text: the rule's reason.
        repeat_when: when a new sample is to be taken, if the rule says so.
        diseases: of the panel, that it touches.
    """

    effect: str
    text: str
    repeat_when: str | None
    diseases: tuple[str, ...]


def effects(rules: SpecimenRules, panel: Diseases, batch: Batch) -> Effects:
    """The effects of a batch's specimens; a column that the table does not have is unknown in every row."""
    code_ND = np.zeros((len(batch), len(panel.diseases)), np.int8)
    holds_NS = np.zeros((len(batch), len(rules.rules)), np.bool_)
    for s, rule in enumerate(rules.rules):
        holds_NS[:, s] = _holds(rule, batch)
        touched = [d for d, name in enumerate(panel.names) if rule.diseases is None or name in rule.diseases]
        rows = np.flatnonzero(holds_NS[:, s])
        place = np.ix_(rows, np.array(touched, np.intp))
        code_ND[place] = np.maximum(code_ND[place], EFFECTS.index(rule.effect))
    return Effects(code_ND, holds_NS)


def _holds(rule: SpecimenRule, batch: Batch) -> Bools:
    value_N = batch.number.get(rule.column, np.full(len(batch), np.nan))
    if rule.unknown:
        return np.isnan(value_N)
    if rule.is_ is not None:
        return np.asarray(value_N == float(rule.is_))
    held_N = ~np.isnan(value_N)
    if rule.above is not None:
        held_N &= value_N > rule.above
    if rule.below is not None:
        held_N &= value_N < rule.below
    return held_N


def reasons(rules: SpecimenRules, panel: Diseases, found: Effects, index: int) -> list[Reason]:
    """Why the specimen at `index` of its batch is repeated or not assessable, or what is only noted: the worst first."""
    held = [rule for rule, holds in zip(rules.rules, found.holds_NS[index]) if holds]
    held.sort(key=lambda rule: -EFFECTS.index(rule.effect))
    touched = (tuple(n for n in panel.names if rule.diseases is None or n in rule.diseases) for rule in held)
    return [Reason(rule.effect, rule.reason, rule.repeat_when, names) for rule, names in zip(held, touched)]
