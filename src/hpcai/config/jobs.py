"""The verbs that jobs/ holds, what each reads of the config, and its line of help. A test holds this equal to jobs/."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hpcai.config.schema import Config

PLACEHOLDER_LABELS = ["0", "1"]  # stand in for data.labels where the trained run gives them


@dataclass(frozen=True)
class Job:
    """One verb."""

    help: str
    reads: tuple[str, ...]  # the keys of Config that change its result: they make the run's identity
    needs_run: bool = False
    teaches: bool = False  # leaves a model that jobs with needs_run take


JOBS: dict[str, Job] = {
    "train": Job(
        "fit a model, choose its threshold on validation, score the test split once",
        ("task", "data", "model", "trainer", "seed"),
        teaches=True,
    ),
    "fit": Job(
        "fit an estimator on a table, cross-validated; choose its threshold, judge it once",
        ("task", "data", "features", "estimator", "screening", "seed"),
        teaches=True,
    ),
    "evaluate": Job("score a trained run on a split of labelled data", ("from_run", "data"), needs_run=True),
    "predict": Job("one row of scores a case, for images without labels", ("from_run", "data"), needs_run=True),
    "gather": Job("pool the folds of a cross-validation: one report, every case judged once", ("from_run",), needs_run=True),
}


def teaches(job: str) -> bool:
    """Whether runs of `job` leave a model; False for a job that nobody knows."""
    return job in JOBS and JOBS[job].teaches


def misfit(config: Config, then: Config, runs: int) -> str:
    """Why a job cannot read a run of config `then`, one of so many; empty if it can."""
    screens = then.task.name == "screening"
    if config.job == "gather":
        return "screens newborns, whose folds are not pooled. Name runs of another task." if screens else ""
    if (then.job == "fit") != (config.data.reader == "table"):
        learnt, other = ("a table", "train") if then.job == "fit" else ("images", "fit")
        return f"learnt from {learnt}, and this is data.reader={config.data.reader}. Name a run of job={other}, or other data."
    if config.task.name == "screening" and not screens:
        return f"is of task.name={then.task.name}. Name a run of job=fit with task.name=screening."
    return f"screens newborns, whom one model judges: {runs} runs are named. Name one." if screens and runs > 1 else ""
