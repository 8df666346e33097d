"""Numbers of a tally, each with its interval.   Tally -> screening.json, in the shape of report/schema.json: `screening`

found         affected whom a way flags for their own disease
missed        affected whose own disease it calls clear
unassessed    affected of whom it said nothing: not assessable, or a new sample first
sensitivity   found, of found and missed
ppv           affected, of all flagged whose truth is known
false_positive_rate     flagged, of the unaffected of whom it said anything: whom it passes over proves nothing
flag_rate, recall_rate  flagged, and referred, of all newborns: what a laboratory has to do
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict

import numpy as np
from numpy.typing import NDArray

from hpcai.metrics.estimate import Estimate
from hpcai.metrics.intervals import beta_share, clopper_pearson
from hpcai.screening.decisions import NAMES, REASONS
from hpcai.screening.tally import CLEARED, DECISION, FLAGGED, WORDS, Json, Tally

VERSION = 1  # of screening.json
RARE = 1e-3  # p under which a cohort has more affected than the panel's incidence explains: cases were added to it
EXACT = "Clopper-Pearson; newborns taken as independent"
NOBODY = "not told: the table names no affected newborn, so it is not known who of the flagged is one"
ADDED = "not told: affected newborns were added to this cohort, so its share of true alarms is no laboratory's"


def screening(
    tally: Tally,
    *,
    kind: str,
    split: str,
    books: Mapping[str, str],
    mode: str = "decide",
    fitness: Sequence[Json] = (),
    plates: Json | None = None,
    distributions: Sequence[Json] = (),
    thresholds: Sequence[Json] = (),
    conformal: Sequence[Json] = (),
    taught_by_simulated: bool = False,
) -> Json:
    """screening.json: the counts with their numbers, and what other parts have measured.

    Args:
        kind: `fit` (a model was trained and tested) or `cohort` (newborns were screened).
        split: whose newborns they are: test, predict.
        books: digests of dictionary, panel, rules, specimen, policy, model, threshold.
        mode: `decide`, or `shadow`: nothing of it may be released.
        fitness, plates, distributions, thresholds, conformal: as the schema has them.
        taught_by_simulated: whether no newborn that taught the model is real.
    """
    added = enriched(tally)
    untold = ADDED if added else None if _affected(tally) else NOBODY
    return {
        "version": VERSION,
        "kind": kind,
        "simulated": tally.simulated,
        "taught_by_simulated": taught_by_simulated,
        "mode": mode,
        "split": split,
        "n": tally.n,
        "affected": _affected(tally),
        "enriched": added,
        "books": dict(sorted(books.items())),
        "total": totals(tally, split, untold),
        "diseases": [_disease(tally, d, split, untold) for d in range(len(tally.panel.names))],
        "laboratories": _places(tally, 0, split, untold),
        "months": _places(tally, 1, split, untold),
        "recalls": _recalls(tally),
        "funnel": _funnel(tally),
        "faults": [{"column": column, "why": why, "n": n} for (column, why), n in sorted(tally.faults.items())],
        "own": [{"theirs": theirs, "ours": ours, "n": n} for (theirs, ours), n in sorted(tally.own.items())],
        "review": _review(tally),
        "fitness": list(fitness),
        "plates": plates,
        "distributions": list(distributions),
        "thresholds": list(thresholds),
        "conformal": list(conformal),
    }


def totals(tally: Tally, split: str, untold: str | None) -> list[Json]:
    """Each way over the diseases that it covers; where ways cover other diseases, also over those that all of them cover."""
    counts, silent, shared_D = tally.over(), tally.silent_over(), tally.shared
    all_same = all(tally.covered[way] == shared_D.tolist() for way in tally.ways)
    found = []
    for w, way in enumerate(tally.ways):
        own_D = np.array(tally.covered[way])
        scopes = {"own": own_D} if all_same else {"own": own_D, "shared": shared_D}
        for scope, scope_D in scopes.items():
            row = len(own_D) + (scope == "shared")
            if scope_D.any():
                told = judged(
                    way,
                    counts[w, row],
                    split,
                    untold,
                    own_DK3=counts[w, :-2][scope_D],
                    silent=int(silent[w, row - len(own_D), 0]),
                    incidence=_incidence(tally, scope_D),
                )
                found.append(told | {"scope": scope, "diseases": int(scope_D.sum())})
    return found


def judged(
    way: str,
    counts_K3: NDArray[np.int64],
    split: str,
    untold: str | None,
    *,
    own_DK3: NDArray[np.int64] | None = None,
    silent: int | None = None,
    incidence: float,
) -> Json:
    """What one way came to.

    Args:
        untold: why a PPV would mislead, if it would.
        own_DK3: the rows of several diseases: found and missed go by a newborn's own disease.
        silent: unaffected newborns of whom it said nothing; None: of one disease the counts tell.
    """
    all_K = counts_K3.sum(axis=1)
    own_K = counts_K3[:, 1] if own_DK3 is None else own_DK3[:, :, 1].sum(axis=0)
    found, missed = int(own_K[FLAGGED:].sum()), int(own_K[CLEARED])
    true, false = int(counts_K3[FLAGGED:, 1].sum()), int(counts_K3[FLAGGED:, 0].sum())
    n = int(all_K[1:].sum())
    heard = int(counts_K3[1:, 0].sum()) - silent if silent is not None else int(counts_K3[CLEARED, 0]) + false
    sensitivity = _share("sensitivity", split, found, found + missed)
    alarms = _share("false_positive_rate", split, false, heard)
    numbers = [
        sensitivity,
        _share("ppv", split, true, true + false),
        alarms,
        _share("flag_rate", split, int(all_K[FLAGGED:].sum()), n),
    ]
    if untold:
        numbers[1] = Estimate("ppv", split, None, None, None, true + false, untold)
    if untold == ADDED:
        numbers.insert(2, _expected(sensitivity, alarms, incidence))
    words = {"positive": int(all_K[FLAGGED:].sum()), **{word: int(all_K[k]) for k, word in enumerate(WORDS[1:FLAGGED], 1)}}
    if way == DECISION:
        words = {word: int(all_K[k]) for k, word in enumerate(WORDS) if k}
        numbers.append(_share("recall_rate", split, words["refer"], n))
    return {
        "way": way,
        "n": n,
        "words": words,
        "affected": int(own_K[1:].sum()),
        "found": found,
        "missed": missed,
        "unassessed": int(own_K[1:].sum()) - found - missed,
        "true": true,
        "false": false,
        "estimates": [asdict(e) for e in numbers],
    }


def enriched(tally: Tally) -> bool:
    """Whether there are more affected newborns than the panel's incidence explains (one-sided binomial, p < RARE)."""
    affected = _affected(tally)
    known = affected + (int(tally.over()[0, -2, :, 0].sum()) if tally.ways else 0)
    return (
        affected > 0
        and beta_share(_incidence(tally, np.ones(len(tally.panel.names), bool)), affected, known - affected + 1) < RARE
    )


def _affected(tally: Tally) -> int:
    """Newborns with a disease of the panel, as the table tells."""
    return int(tally.over()[0, :-2, :, 1].sum()) if tally.ways else 0


def _incidence(tally: Tally, scope_D: NDArray[np.bool_]) -> float:
    return sum(d.incidence for d, here in zip(tally.panel.diseases, scope_D.tolist(), strict=True) if here)


def _share(name: str, split: str, k: int, n: int) -> Estimate:
    if not n:
        return Estimate(name, split, None, None, None, 0, "not defined: no such newborn")
    return Estimate(name, split, k / n, *clopper_pearson(k, n), n, EXACT)


def _expected(sensitivity: Estimate, alarms: Estimate, incidence: float) -> Estimate:
    """The PPV that both rates give at the panel's incidence. Its ends take the worse and the better end of both intervals."""
    method = (
        f"from sensitivity and false-positive rate at an incidence of {incidence:.3g}; ends of both intervals: wider than 95 %"
    )
    if None in (sensitivity.value, alarms.value) or not (sensitivity.value or alarms.value):
        return Estimate(
            "ppv_at", sensitivity.split, None, None, None, sensitivity.n, "not defined: nobody of both kinds was flagged"
        )

    def ppv(found: float | None, false: float | None) -> float:
        assert found is not None and false is not None
        right, wrong = incidence * found, (1 - incidence) * false
        return right / (right + wrong) if right + wrong else 1.0

    ends = ppv(sensitivity.low, alarms.high), ppv(sensitivity.high, alarms.low)
    return Estimate("ppv_at", sensitivity.split, ppv(sensitivity.value, alarms.value), *ends, sensitivity.n, method)


def _disease(tally: Tally, d: int, split: str, untold: str | None) -> Json:
    disease, counts = tally.panel.diseases[d], tally.over()
    return {
        "name": disease.name,
        "title": disease.title,
        "day": tally.panel.critical_day if disease.time_critical else tally.panel.other_day,
        "second_tier": disease.second_tier,
        "ways": [
            judged(way, counts[w, d], split, untold, incidence=disease.incidence)
            for w, way in enumerate(tally.ways)
            if tally.covered[way][d]
        ],
    }


def _places(tally: Tally, part: int, split: str, untold: str | None) -> list[Json]:
    """Each way by laboratory (part 0) or by month (1)."""
    names = sorted({cell[part] for cell in tally.cells})
    found = []
    for name in names:
        place = {("laboratory", "month")[part]: name}
        counts, silent = tally.over(**place), tally.silent_over(**place)[:, 0, 0]
        ways = []
        for w, way in enumerate(tally.ways):
            own_D = np.array(tally.covered[way])
            if own_D.any():
                own = counts[w, :-2][own_D]
                incidence = _incidence(tally, own_D)
                told = judged(way, counts[w, -2], split, untold, own_DK3=own, silent=int(silent[w]), incidence=incidence)
                ways.append(told)
        found.append({"name": name, "n": int(counts[0, 0].sum()), "ways": ways})
    return found


def _recalls(tally: Tally) -> list[Json]:
    """Flagged newborns by disease and laboratory, of the decision; of the first way where nothing was decided."""
    if not tally.ways:
        return []
    w = tally.ways.index(DECISION) if DECISION in tally.ways else 0
    laboratories = {
        name: tally.over(laboratory=name)[w, :-2, FLAGGED:].sum(axis=(1, 2)) for name in sorted({c[0] for c in tally.cells})
    }
    return [
        {"disease": disease, "flagged": [{"laboratory": name, "n": int(n_D[d])} for name, n_D in laboratories.items()]}
        for d, disease in enumerate(tally.panel.names)
    ]


def _funnel(tally: Tally) -> Json | None:
    """From the table to each newborn's most urgent word; None where nothing was decided."""
    if DECISION not in tally.ways:
        return None
    order = ("refer", "reflex", "repeat", "new_sample", "partly", "clear")
    lines = [{"word": word, "n": tally.lines[word]} for word in order]
    out = [{"why": why, "n": tally.out[why]} for why in REASONS if tally.out[why]]
    return {"newborns": tally.n, "out": out, "assessed": tally.n - sum(tally.out.values()), "lines": lines}


def _review(tally: Tally) -> Json:
    """Who is to be looked at, by the day of life on which a result is wanted; by row number, never by a sample's id."""
    rows = [
        {
            "row": row, "day": day, "disease": tally.panel.names[d], "decision": NAMES[-code], "reason": REASONS[reason],
            "laboratory": laboratory, "plate": plate,
        }
        for day, code, row, d, reason, laboratory, plate in tally.review
    ]  # fmt: skip
    return {"n": tally.flagged, "rows": rows}
