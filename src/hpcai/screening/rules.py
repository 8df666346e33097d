"""The one engine that reads cut-offs.   rules, dictionary, x_NA -> yes, no or cannot be said, a rule and newborn

Three-valued logic: what a missing analyte leaves open stays open, unless the rest settles it (`any` with one yes is yes,
`all` with one no is no). Nothing of a rule is ever evaluated as code: it is a tree of comparisons.
Shape letters: n newborns, A analytes, R rules, D diseases.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from hpcai.book.analytes import Dictionary
from hpcai.book.diseases import Diseases
from hpcai.book.rules import Condition, Rule, Rules, quantity
from hpcai.screening.batch import Floats

Verdicts = NDArray[np.int8]
POSITIVE, NEGATIVE, OPEN, NO_RULE = 1, 0, -1, -2
BLOCK = 16_384  # rows whose columns stay in a core's cache
_NO, _OPEN, _YES = 0, 1, 2  # in the engine: so ordered, `all` is the least of its parts and `any` the greatest
_SAID = np.array([NEGATIVE, OPEN, POSITIVE], np.int8)


def verdicts(rules: Rules, dictionary: Dictionary, x_NA: Floats) -> Verdicts:
    """What each rule says of each newborn: (n, R) POSITIVE, NEGATIVE, or OPEN where a missing value leaves it so.

    Args:
        rules: of the dictionary's analytes (shelf.books has checked it).
        dictionary: whose analytes the columns are.
        x_NA: (n, A) umol/L, NaN where missing.
    """
    said_NR = np.empty((len(x_NA), len(rules.rules)), np.int8)
    for start in range(0, len(x_NA), BLOCK):
        block_AN = np.ascontiguousarray(x_NA[start : start + BLOCK].T)
        look = _looker(dictionary, block_AN)
        for r, rule in enumerate(rules.rules):
            said_NR[start : start + BLOCK, r] = _SAID[_state(rule.when, look)]
    return said_NR


def by_disease(rules: Rules, panel: Diseases, verdicts_NR: Verdicts) -> Verdicts:
    """(n, D) what the rules of each disease of the panel say together: of several, any; NO_RULE where there is none."""
    said_ND = np.full((len(verdicts_NR), len(panel.diseases)), NO_RULE, np.int8)
    for d, name in enumerate(panel.names):
        own_NR = verdicts_NR[:, [r for r, rule in enumerate(rules.rules) if rule.disease == name]]
        if own_NR.shape[1]:
            positive_N, open_N = (own_NR == POSITIVE).any(axis=1), (own_NR == OPEN).any(axis=1)
            said_ND[:, d] = np.where(positive_N, POSITIVE, np.where(open_N, OPEN, NEGATIVE))
    return said_ND


def told(rule: Rule, dictionary: Dictionary, x_A: Floats) -> list[str]:
    """How a rule reads one newborn, a line for each comparison: value, limit, yes, no or missing.

    Args:
        rule: of the dictionary's analytes.
        dictionary: whose analytes the values are.
        x_A: (A,) umol/L, NaN where missing.
    """
    return list(_told(rule.when, _looker(dictionary, x_A.reshape(-1, 1)), dictionary, ""))


def _looker(dictionary: Dictionary, x_AN: Floats) -> Callable[[str], Floats]:
    """Finds a quantity's values; each is computed once, however many rules ask for it."""
    found: dict[str, Floats] = {}

    def look(text: str) -> Floats:
        if text not in found:
            above, below = quantity(text, dictionary)
            with np.errstate(over="ignore", invalid="ignore"):  # neither is finite: open
                value_N = _sum(x_AN, above)
                if below:
                    bottom_N = _sum(x_AN, below)
                    value_N = np.divide(value_N, bottom_N, out=np.full_like(value_N, np.nan), where=bottom_N > 0)
            found[text] = value_N
        return found[text]

    return look


def _sum(x_AN: Floats, places: list[int]) -> Floats:
    total_N: Floats = x_AN[places[0]] if len(places) == 1 else x_AN[places].sum(axis=0)
    return total_N


def _state(condition: Condition, look: Callable[[str], Floats]) -> Verdicts:
    """(n,) _NO, _OPEN or _YES."""
    if condition.of is not None:
        value_N = look(condition.of)
        yes_N = np.isfinite(value_N)
        open_N = ~yes_N
        if condition.above is not None:
            yes_N &= value_N > condition.above
        if condition.below is not None:
            yes_N &= value_N < condition.below
        return yes_N.astype(np.int8) * np.int8(_YES) + open_N.astype(np.int8) * np.int8(_OPEN)
    joined = np.minimum if condition.all is not None else np.maximum
    first, *others = condition.all or condition.any or []
    state_N = _state(first, look)
    for part in others:
        joined(state_N, _state(part, look), out=state_N)
    return state_N


def _told(condition: Condition, look: Callable[[str], Floats], dictionary: Dictionary, indent: str) -> Iterator[str]:
    state = int(_state(condition, look)[0])
    if condition.of is not None:
        value = float(look(condition.of)[0])
        unit = "" if quantity(condition.of, dictionary)[1] else " umol/L"
        limits = [
            f"{word} {limit:g}" for word, limit in (("above", condition.above), ("below", condition.below)) if limit is not None
        ]
        shown = f"{value:.4g}{unit}" if np.isfinite(value) else "missing"
        answer = "" if not np.isfinite(value) else ": yes" if state == _YES else ": no"
        yield f"{indent}{condition.of} {shown}, asked {' and '.join(limits)}{unit}{answer}"
        return
    parts = condition.all or condition.any or []
    yield f"{indent}{'all' if condition.all is not None else 'any'} of {len(parts)}: {('no', 'cannot be said', 'yes')[state]}"
    for part in parts:
        yield from _told(part, look, dictionary, indent + "  ")
