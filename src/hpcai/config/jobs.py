"""The verbs that jobs/ holds, what each reads of the config, and its line of help. A test holds this equal to jobs/."""

from __future__ import annotations

from dataclasses import dataclass

PLACEHOLDER_LABELS = ["0", "1"]  # stand in for data.labels where the trained run gives them


@dataclass(frozen=True)
class Job:
    """One verb."""

    help: str
    reads: tuple[str, ...]  # the keys of Config that change its result: they make the run's identity
    needs_run: bool = False


JOBS: dict[str, Job] = {
    "train": Job(
        "fit a model, choose its threshold on validation, score the test split once",
        ("task", "data", "model", "trainer", "seed"),
    ),
    "evaluate": Job("score a trained run on a split of labelled data", ("from_run", "data"), needs_run=True),
    "predict": Job("one row of scores a case, for images without labels", ("from_run", "data"), needs_run=True),
    "gather": Job("pool the folds of a cross-validation: one report, every case judged once", ("from_run",), needs_run=True),
}
