"""How often does each 95 % interval hold its truth? 1,000 simulated studies of each design, by the product's own functions.

    python benchmarks/coverage.py [--studies 1000] [--processes 2]

Designs: scores of two normal distributions, 40 % positive; one case a patient, the classes further apart, or three cases a
patient that resemble each other. The truth is that of four million cases. A study where a measure is not defined does not
count (the last line says how many). Exit 1 if an interval covers less than 93 % or more than 97 %.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from hpcai.metrics.binary import binary_estimates
from hpcai.metrics.calibration import calibration
from hpcai.metrics.logistic import expit
from hpcai.metrics.measures import MEASURES, measures
from hpcai.metrics.sample import Sample

PREVALENCE = 0.1  # of ppv_at and npv_at
THRESHOLD = 0.4
WITHIN = (0.93, 0.97)
SIZES = (100, 1000)


@dataclass(frozen=True)
class Design:
    """`apart`: the distance of the classes in standard deviations; `repeats`: cases a patient."""

    name: str
    apart: float
    repeats: int = 1


DESIGNS = [Design("one case a patient", 1.3), Design("well apart", 2.2), Design("three cases a patient", 1.3, 3)]


def study(design: Design, n: int, rng: np.random.Generator) -> Sample:
    """n cases; the score is a probability that is somewhat too extreme."""
    people = -(-n // design.repeats)
    who = np.repeat(np.arange(people), design.repeats)[:n]
    leaning = rng.normal(size=people) if design.repeats > 1 else np.zeros(people)
    label = rng.random(n) < expit(1.5 * leaning[who] - 0.5 if design.repeats > 1 else np.full(n, np.log(0.4 / 0.6)))
    own = rng.normal(size=people)[who] if design.repeats > 1 else 0.0
    share = 0.5 if design.repeats > 1 else 0.0
    x = np.sqrt(share) * own + np.sqrt(1 - share) * rng.normal(size=n) + design.apart * (label - 0.5)
    score = expit(1.2 * design.apart * x - 0.3)
    ids = [f"{i:08d}" for i in range(n)] if n < 100_000 else []
    return Sample(label, score, score >= THRESHOLD, "test", ids, [f"{w:08d}" for w in who] if ids else None)


def truth(design: Design) -> dict[str, float]:
    """Each measure of four million cases."""
    total: list[np.ndarray] = []
    for seed in range(4):
        s = study(design, 1_000_000, np.random.default_rng([seed, 99]))
        own = dict(zip(MEASURES, measures(s.label, s.score, s.called)(np.ones((1, len(s.label))))[0], strict=True))
        alone = Sample(s.label, s.score, s.called, "test", np.arange(len(s.label)).tolist())
        own |= {e.name: float(e.value or np.nan) for e in calibration(alone)}
        total.append(np.array(list(own.values())))
    found = dict(zip(own, np.mean(total, axis=0).tolist(), strict=True))
    sensitivity, specificity = found["sensitivity"], found["specificity"]
    odds = PREVALENCE / (1 - PREVALENCE)
    positive, negative = sensitivity / (1 - specificity), (1 - sensitivity) / specificity
    return found | {
        "lr_positive": positive, "lr_negative": negative,
        "ppv_at": odds * positive / (odds * positive + 1), "npv_at": 1 / (1 + odds * negative),
    }  # fmt: skip


def covered(design: Design, n: int, seeds: range, true: dict[str, float]) -> tuple[Counter[str], Counter[str]]:
    """How many studies held the truth, and how many were defined, of each measure."""
    hit: Counter[str] = Counter()
    defined: Counter[str] = Counter()
    for seed in seeds:
        for e in binary_estimates(study(design, n, np.random.default_rng([seed, n])), PREVALENCE):
            if e.value is not None and e.low is not None:
                defined[e.name] += 1
                hit[e.name] += e.low <= true[e.name] <= (np.inf if e.high is None else e.high)
    return hit, defined


def parts(studies: int, count: int) -> Iterator[range]:
    """`studies` seeds in `count` ranges."""
    edges = np.linspace(0, studies, count + 1).astype(int)
    return (range(a, b) for a, b in pairwise(edges))


def main() -> int:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--studies", type=int, default=1000)
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args()
    table: dict[str, list[float]] = {}
    left = 0
    with ProcessPoolExecutor(options.processes) as pool:
        for design in DESIGNS:
            true = truth(design)
            for n in SIZES:
                jobs = [
                    pool.submit(covered, design, n, seeds, true) for seeds in parts(options.studies, 10 * options.processes)
                ]
                hit, defined = (sum((job.result()[k] for job in jobs), Counter()) for k in (0, 1))
                left += sum(options.studies - defined[name] for name in defined)
                for name in defined:
                    table.setdefault(name, []).append(hit[name] / defined[name])
                print(f"# {design.name}, n={n}: done", file=sys.stderr, flush=True)
    heads = [f"n={n}" for _ in DESIGNS for n in SIZES]
    print(f"{options.studies:,} studies a design; true: share of 95 % intervals that hold the truth, in %")
    print(" " * 22 + "".join(f"{design.name:>24}" for design in DESIGNS))
    print(" " * 22 + "".join(f"{head:>12}" for head in heads))
    for name, values in table.items():
        print(f"{name:22s}" + "".join(f"{100 * v:11.1f}{' ' if WITHIN[0] <= v <= WITHIN[1] else '*'}" for v in values))
    print(f"not defined, and not counted: {left:,} estimates of all")
    return 0 if all(WITHIN[0] <= v <= WITHIN[1] for values in table.values() for v in values) else 1


if __name__ == "__main__":
    sys.exit(main())
