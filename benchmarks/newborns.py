"""False alarms of the model and of Heidelberg's rules in simulated laboratories that the model never saw, at equal sensitivity.

    python benchmarks/newborns.py [--cases 100] [--healthy 40000] [--cohort 200000] [--json FILE]

Taught by laboratories whose split is `train`, judged in those whose split is `test`, three times: once with each law of tails.
Over the diseases that both Heidelberg's table and the panel have. Two answers for each law:

matched      the model's threshold of each disease is moved to the sensitivity that the rules have on the same cases
as it came   thresholds as training set them for the sensitivity that the rules have *there*; both sensitivities are told

and twice: among all newborns, and among those whose specimen is valid for the disease (a drip of amino acids alarms any rule,
and asks for a new sample anyway). The model judges laboratories that `fitness` may call not valid: that is the question here.

Simulation proves a method, not a medicine. Shape letters: n newborns, D diseases.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpcai.book import shelf
from hpcai.book.simulation import Law, SimulationBook
from hpcai.config.schema import Estimator
from hpcai.config.schema import Screening as ScreeningConfig
from hpcai.screening import rules
from hpcai.screening.batch import Batch, Floats
from hpcai.screening.features import Adjustment, features
from hpcai.screening.fit import plate_shifts, taught, valid_specimens
from hpcai.screening.model import ScreeningModel
from hpcai.screening.simulate import Simulation
from hpcai.screening.survey import Survey
from hpcai.screening.teaching import Newborns, joined, rows_of

LAWS: tuple[Law, ...] = ("lognormal", "student", "mixture")
RULES = "heidelberg2003"
SHARE = 0.1  # of newborns in a table of cases that are affected: the others keep plates as they are
DRAWS = 1000  # of the bootstrap
BLOCK = 20_000


@dataclass(frozen=True)
class Judged:
    """Logits, what the rules say, whether the specimen is valid (n, D), of unaffected newborns or of cases of `label_N`."""

    logit_ND: Floats
    rules_ND: NDArray[np.bool_]
    valid_ND: NDArray[np.bool_]
    label_N: NDArray[np.int64]

    def valid(self) -> Judged:
        """The same, but that an invalid specimen alarms nobody; cases with one are left out."""
        cases = self.label_N >= 0
        keep = ~cases | self.valid_ND[np.arange(len(cases)), np.maximum(self.label_N, 0)]
        logit_ND = np.where(self.valid_ND, self.logit_ND, -np.inf)[keep]
        return Judged(logit_ND, (self.rules_ND & self.valid_ND)[keep], self.valid_ND[keep], self.label_N[keep])


def batch_of(frame: Any, dictionary: Any) -> Batch:
    """A simulated frame as a batch, without the way through a file."""
    there = set(frame.columns)
    columns = [frame[a.name].to_numpy() if a.name in there else np.full(len(frame), np.nan) for a in dictionary.analytes]
    text = {c.name: frame[c.name].fill_null("").to_numpy().astype(str)
            for c in dictionary.columns if c.kind == "text" and c.name in there}  # fmt: skip
    number = {c.name: frame[c.name].cast(float).to_numpy() for c in dictionary.columns if c.kind != "text" and c.name in there}
    x_NA = np.stack(columns, 1).astype(np.float64)
    return Batch(np.arange(len(frame)) + 2, text.pop("sample"), x_NA, number, text)


def drawn(simulation: Simulation, newborns: int) -> Iterator[Batch]:
    """Blocks of a simulated table of about so many newborns."""
    for number in range(-(-newborns // BLOCK)):
        yield batch_of(simulation.block(number, BLOCK), simulation.dictionary)


def teach(known: shelf.Books, book: SimulationBook, laboratories: list[str], cases: int, healthy: int) -> ScreeningModel:
    """The model of one simulated teaching table, fitted as job=fit does."""
    diseases = len(known.panel.names)
    enrich = cases / (healthy + cases * diseases)
    simulation = Simulation(book, known.dictionary, known.panel, 1, laboratories, enrich=enrich, split=True)
    newborns = Newborns(joined(drawn(simulation, healthy + cases * diseases)), known.panel)
    part = np.array(newborns.published)
    train, val = (np.flatnonzero(part == name) for name in ("train", "val"))
    return taught(known, newborns, train, val, Estimator(), "sensitivity>=0.9", 0)


def judge(known: shelf.Books, book: SimulationBook, model: ScreeningModel, laboratories: list[str], law: Law | None,
          cohort: int, cases: int) -> tuple[Judged, Judged]:  # fmt: skip
    """Unaffected newborns of a cohort at the panel's incidence, and cases of a table with more of them, same laboratories."""
    natural = Simulation(book, known.dictionary, known.panel, 2, laboratories, tail=law)
    survey = Survey(known.dictionary)
    for batch in drawn(natural, cohort):
        survey.add(batch)  # no label is looked at
    references, adjustment = survey.references(), Adjustment.from_json(model.adjustment)
    diseases = known.panel.names
    enriched = replace(natural, seed=3, enrich=SHARE / len(diseases))
    found = []
    for simulation, newborns, affected in ((natural, cohort, False), (enriched, int(cases * len(diseases) / SHARE), True)):
        plates = plate_shifts(known, references, rows_of(batch, np.zeros(len(batch), bool)))
        for part in drawn(simulation, newborns):
            plates.add(part)
        parts = []
        for part in drawn(simulation, newborns):
            place = {"": -1} | {name: d for d, name in enumerate(diseases)}
            label = np.array([place[word] for word in part.text["diagnosis"].tolist()])
            wanted = (label >= 0) == affected
            part, label = rows_of(part, wanted), label[wanted]
            seen = features(known.dictionary, part, references, adjustment, plates)
            said = rules.by_disease(known.rules[0], known.panel, rules.verdicts(known.rules[0], known.dictionary, part.x_NA))
            parts.append(Judged(model.logits(seen.z_NC), said == 1, valid_specimens(known, part), label))
        names = ("logit_ND", "rules_ND", "valid_ND", "label_N")
        found.append(Judged(*(np.concatenate([getattr(p, name) for p in parts]) for name in names)))
    return found[0], found[1]


def compared(healthy: Judged, cases: Judged, shared: list[int], set_D: Floats) -> dict[str, Any]:
    """Both answers, with the bootstrap's 95 % interval of the share of false alarms that the model spares."""
    own = [cases.label_N == d for d in shared]
    logit = [cases.logit_ND[mine, d] for mine, d in zip(own, shared, strict=True)]
    ruled = [cases.rules_ND[mine, d] for mine, d in zip(own, shared, strict=True)]
    rules_N = np.asarray(healthy.rules_ND[:, shared].any(1))
    matched = np.array([_at(lo, hit.mean()) for lo, hit in zip(logit, ruled, strict=True)])
    model_N = (healthy.logit_ND[:, shared] >= matched).any(1)
    as_came = (healthy.logit_ND[:, shared] >= set_D[shared]).any(1)
    rng = np.random.default_rng(0)
    spared = []
    for _ in range(DRAWS):
        limits = np.empty(len(shared))
        for k, (lo, hit) in enumerate(zip(logit, ruled, strict=True)):
            i = rng.integers(len(lo), size=len(lo))
            limits[k] = _at(lo[i], hit[i].mean())
        called = np.asarray((healthy.logit_ND[:, shared] >= limits).any(1))
        both, only_model, only_rules = (called & rules_N).sum(), (called & ~rules_N).sum(), (rules_N & ~called).sum()
        b, m, r = rng.poisson([both, only_model, only_rules])  # whom another cohort of this size would hold
        spared.append(1 - (b + m) / max(1, b + r))
    n = len(rules_N)
    return {
        "healthy": n,
        "rules_false": int(rules_N.sum()),
        "matched_false": int(model_N.sum()),
        "matched_spared": 1 - model_N.sum() / rules_N.sum(),
        "interval": np.quantile(spared, [0.025, 0.975]).tolist(),
        "as_came_false": int(as_came.sum()),
        "as_came_spared": 1 - as_came.sum() / rules_N.sum(),
        "diseases": [
            {
                "cases": len(lo),
                "rules_sensitivity": float(hit.mean()),
                "rules_false": int(healthy.rules_ND[:, d].sum()),
                "matched_false": int((healthy.logit_ND[:, d] >= t).sum()),
                "as_came_sensitivity": float((lo >= set_D[d]).mean()),
                "as_came_false": int((healthy.logit_ND[:, d] >= set_D[d]).sum()),
            }
            for lo, hit, d, t in zip(logit, ruled, shared, matched, strict=True)
        ],
    }


def _at(logit: Floats, sensitivity: float) -> float:
    """The highest limit at which so many cases are called."""
    k = int(np.ceil(sensitivity * len(logit) - 1e-9))
    return float(np.sort(logit)[len(logit) - k]) if k else np.inf


def sentence(title: str, found: dict[str, Any], names: list[str]) -> str:
    """A law's line, and one a disease."""
    low, high = found["interval"]
    lines = [
        f"{title:16} false alarms of {found['healthy']:,}: rules {found['rules_false']}; matched {found['matched_false']}, "
        f"{found['matched_spared']:.1%} fewer ({low:.1%} to {high:.1%}); as it came {found['as_came_false']}, "
        f"{found['as_came_spared']:.1%} fewer"
    ]
    for name, one in zip(names, found["diseases"], strict=True):
        lines.append(
            f"    {name:6} rules {one['rules_false']:6} at {one['rules_sensitivity']:.3f}   matched {one['matched_false']:6}   "
            f"as it came {one['as_came_false']:6} at {one['as_came_sensitivity']:.3f}   {one['cases']} cases"
        )
    return "\n".join(lines)


def main() -> None:
    """Prints a line a law and disease."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("cases", 100), ("healthy", 40_000), ("cohort", 200_000), ("test-cases", 300)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    known = shelf.books(ScreeningConfig())
    known = replace(known, rules=[r for r in known.rules if r.name == RULES])
    book = shelf.read("simulation", "nbs", SimulationBook)
    train, test = ([lab.name for lab in book.laboratories if lab.split == part] for part in ("train", "test"))
    ruled = {rule.disease for rule in known.rules[0].rules}
    shared = [d for d, name in enumerate(known.panel.names) if name in ruled]
    begun = time.perf_counter()
    model = teach(known, book, train, asked.cases, asked.healthy)
    assert model.diseases == known.panel.names
    print(f"taught in {time.perf_counter() - begun:.0f} s by {', '.join(train)}; judged in {', '.join(test)}; "
          f"{len(shared)} diseases", flush=True)  # fmt: skip
    # thresholds as training sets them, for the sensitivity that the rules have in the laboratories that taught
    _, seen = judge(known, book, model, train, None, 20_000, asked.test_cases)
    set_D = np.full(len(known.panel.names), np.inf)
    for d in shared:
        mine = seen.label_N == d
        set_D[d] = _at(seen.logit_ND[mine, d], float(seen.rules_ND[mine, d].mean()))
    told: dict[str, Any] = {}
    for law in LAWS:
        both = judge(known, book, model, test, law, asked.cohort, asked.test_cases)
        for whom, (healthy, cases) in {"all": both, "valid": (both[0].valid(), both[1].valid())}.items():
            told[f"{law}, {whom}"] = found = compared(healthy, cases, shared, set_D)
            print(sentence(f"{law}, {whom}", found, [known.panel.names[d] for d in shared]), flush=True)
    if asked.json:
        asked.json.write_text(json.dumps(told, indent=1) + "\n")


if __name__ == "__main__":
    main()
