"""Bootstrap intervals of eight measures against a loop over scikit-learn, and DeLong's interval against that loop for the AUC.

    python benchmarks/intervals.py [--cases 10000] [--resamples 2000] [--loop 40]

Both draw from one generator with one seed, so every resample is the same and the values are compared one by one. The loop's
time is that of its first `--loop` resamples, scaled; each side is the best of three rounds that take turns. Exit 1 unless
the eight measures are 40 times as fast and equal to 1e-9, and DeLong's interval is 2,000 times as fast as the loop for the AUC.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable

import numpy as np
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    balanced_accuracy_score,
    brier_score_loss,
    precision_score,
    recall_score,
    roc_auc_score,
)

from hpcai.metrics import intervals
from hpcai.metrics.measures import MEASURES, measures

ASKED = [name for name in MEASURES if name != "accuracy"]


def cases(n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels, scores with some ties, calls."""
    rng = np.random.default_rng(1)
    label = rng.random(n) < 0.4
    score = np.round(1 / (1 + np.exp(-rng.normal(size=n) - 1.5 * label + 0.9)), 4)
    return label, score, score >= 0.5


def loop(label: np.ndarray, score: np.ndarray, called: np.ndarray, resamples: int, auc_alone: bool) -> np.ndarray:
    """One resample after another, as one writes it with scikit-learn."""
    rng, n, found = np.random.Generator(np.random.PCG64(intervals.SEED)), len(label), []
    for _ in range(resamples):
        i = rng.integers(n, size=n)
        y, s, c = label[i], score[i], called[i]
        if auc_alone:
            found.append([roc_auc_score(y, s)])
            continue
        found.append([
            roc_auc_score(y, s), average_precision_score(y, s), accuracy_score(y, c), balanced_accuracy_score(y, c),
            recall_score(y, c), recall_score(y, c, pos_label=0), precision_score(y, c), precision_score(y, c, pos_label=0),
            brier_score_loss(y, s),
        ])  # fmt: skip
    return np.array(found)


def timed(function: Callable[[], object]) -> tuple[float, object]:
    """Seconds and result."""
    before = time.perf_counter()
    result = function()
    return time.perf_counter() - before, result


def main() -> int:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--resamples", type=int, default=2000)
    parser.add_argument("--loop", type=int, default=40)
    options = parser.parse_args()
    intervals.RESAMPLES = options.resamples
    label, score, called = cases(options.cases)
    groups, few = np.arange(options.cases), options.loop
    ours, theirs, alone, delong = [], [], [], []
    for _ in range(3):
        seconds, drawn = timed(lambda: intervals.resampled(measures(label, score, called), groups))
        ours.append(seconds)
        seconds, expected = timed(lambda: loop(label, score, called, few, False))
        theirs.append(seconds / few * options.resamples)
        alone.append(timed(lambda: loop(label, score, called, few, True))[0] / few * options.resamples)
        delong.append(min(timed(lambda: intervals.delong(label, score))[0] for _ in range(20)))
    gap = float(np.abs(np.asarray(drawn)[:few] - np.asarray(expected)).max())
    fast, faster = min(theirs) / min(ours), min(alone) / min(delong)
    print(f"{options.cases:,} cases, {options.resamples:,} resamples; the loop's first {few} scaled; best of 3 in turn")
    print(f"{', '.join(ASKED)} (and accuracy)")
    print(f"  {'scikit-learn in a loop':32s} {min(theirs):9.3f} s")
    print(f"  {'measures + resampled':32s} {min(ours):9.3f} s   {fast:9,.0f}x   largest difference {gap:.1e}")
    print("auc")
    print(f"  {'scikit-learn in a loop':32s} {min(alone):9.3f} s")
    print(f"  {'delong':32s} {min(delong):9.6f} s   {faster:9,.0f}x")
    return 0 if fast >= 40 and gap < 1e-9 and faster >= 2000 else 1


if __name__ == "__main__":
    sys.exit(main())
