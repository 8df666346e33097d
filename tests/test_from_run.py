"""from_run names one run or several: the words, what they mean, and whole flows from the command line."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from conftest import Launcher

from hpcai import rundir
from hpcai.config.check import load
from hpcai.config.jobs import JOBS, misfit
from hpcai.config.schema import Config
from hpcai.errors import HpcaiError
from hpcai.rundir import RunDir

BASE = ("name=new", "data.path=images", "data.reader=images", "data.identifiers=none")
ONCE = ("trainer.epochs=1", "trainer.max_steps=2")


# --- words


@pytest.mark.parametrize("job", [name for name, job in JOBS.items() if job.needs_run])
@pytest.mark.parametrize(("word", "value"), [("a", "a"), ("[a]", ["a"]), ("[a,b]", ["a", "b"]), ("['/x y',b]", ["/x y", "b"])])
def test_one_run_or_a_list_is_taken_as_it_stands_and_labels_need_not_be_named(job: str, word: str, value: Any) -> None:
    config = load([*BASE, f"job={job}", f"from_run={word}"])
    assert config.from_run == value and len(config.data.labels) == 2
    assert Config.model_validate(config.model_dump()) == config  # as config.yaml gives it back


WRONG = [
    ("5", "must be text or a list of 1 to 100 texts"),
    ("true", "must be text or a list of 1 to 100 texts"),
    ("[]", "must be text or a list of 1 to 100 texts"),
    ("[a,5]", "must be text or a list of 1 to 100 texts"),
    ("[a,null]", "must be text or a list of 1 to 100 texts"),
    ("[[a],b]", "must be text or a list of 1 to 100 texts"),
    ("{a: b}", "must be text or a list of 1 to 100 texts"),
    ("''", "must be text or a list of 1 to 100 texts"),
    (f"[{','.join(f'm{k}' for k in range(101))}]", "must be text or a list of 1 to 100 texts"),
    ("[a,b,a]", "must be a list that names each run once"),
    ("'a\0b'", "holds no NUL"),
]


@pytest.mark.parametrize(("word", "why"), WRONG, ids=range(len(WRONG)))
def test_what_names_no_runs_is_one_fault_beside_the_others(word: str, why: str) -> None:
    with pytest.raises(HpcaiError) as caught:
        load([*BASE, "job=predict", f"from_run={word}", "trainer.lr=0"])
    told = [line for line in caught.value.lines if line.startswith("from_run=")]
    assert len(told) == 1 and why in told[0] and any(line.startswith("trainer.lr=0") for line in caught.value.lines)


IMAGES = load([*BASE, "data.labels=[a,b]"])
CLASSES = load([*BASE[:2], "data.reader=table", "data.identifiers=none", "job=fit", "data.labels=[a,b]"])
NEWBORNS = load(["+experiment=nbs_msms"])


@pytest.mark.parametrize(
    ("then", "runs", "words", "why"),
    [
        (IMAGES, 1, [], ""),
        (IMAGES, 3, ["job=gather"], ""),
        (CLASSES, 2, ["data.reader=table"], ""),
        (NEWBORNS, 1, ["data.reader=table"], ""),
        (IMAGES, 1, ["data.reader=table"], "learnt from images, and this is data.reader=table. Name a run of job=fit,"),
        (NEWBORNS, 1, [], "learnt from a table, and this is data.reader=images. Name a run of job=train,"),
        (
            CLASSES,
            1,
            ["data.reader=table", "task.name=screening"],
            "is of task.name=classification. Name a run of job=fit with",
        ),
        (NEWBORNS, 2, ["data.reader=table"], "screens newborns, whom one model judges: 2 runs are named. Name one."),
        (NEWBORNS, 5, ["job=gather"], "screens newborns, whose folds are not pooled."),
    ],
)
def test_a_run_that_a_job_cannot_read_is_told_before_it_starts(then: Config, runs: int, words: list[str], why: str) -> None:
    told = misfit(load([*BASE, "job=predict", "from_run=x", *words]), then, runs)
    assert told.startswith(why) and bool(told) == bool(why)


def test_a_name_that_is_no_utf_8_is_refused() -> None:
    raw = load([*BASE, "job=predict", "from_run=a"]).model_dump() | {"from_run": ["a", "b\udcff"]}
    with pytest.raises(ValueError, match="string_unicode"):
        Config.model_validate(raw)


@pytest.mark.parametrize("job", [name for name, job in JOBS.items() if job.needs_run])
def test_a_job_that_reads_a_run_says_so_and_train_takes_none(job: str) -> None:
    with pytest.raises(HpcaiError, match=f"^job={job}: reads a trained run"):
        load([*BASE, f"job={job}"])
    with pytest.raises(HpcaiError, match=r"^from_run=\[a,b\]: job=train starts anew"):
        load([*BASE, "data.labels=[x,y]", "from_run=[a,b]"])


# --- whole flows


@pytest.mark.slow
def test_two_seeds_are_trained_and_judged_together(train: Launcher) -> None:
    for seed in ("0", "1"):
        done = train(f"seed={seed}", f"name=s{seed}", *ONCE)
        assert done.rc == 0, done.err
    twice = train("name=both", "job=evaluate", "from_run=[s0,s0-]")
    assert twice.rc == 2 and "is named twice" in twice.err
    dry = train("name=both", "job=evaluate", "from_run=[s1,s0]", "--dry-run")
    assert dry.rc == 0, dry.err
    done = train("name=both", "job=evaluate", "from_run=[s1,s0]")
    assert done.rc == 0, done.err
    run = train.run_dir("both")
    (row, *_), members = list(rundir.read_lines(run.rows_file("test", 0))), rundir.read_json(run.together)["members"]
    for own, name in zip(row["members"], ("s0", "s1"), strict=True):
        then = {r["case"]: r["scores"] for r in rundir.read_lines(train.run_dir(name).rows_file("test", 0))}
        assert own == then[row["case"]]
    assert row["scores"] == np.mean(row["members"], axis=0).tolist()
    assert [m["run_id"].split("-")[0] for m in members] == ["s0", "s1"]
    assert "test AUC" in done.out and "report: " in done.out
    again = train("name=both", "job=evaluate", "from_run=[s0,s1]")
    assert again.rc == 0 and len(list(train.runs.glob("both-*"))) == 1


@pytest.mark.slow
def test_three_folds_are_trained_and_gathered(train: Launcher) -> None:
    fold = ("data.split.by=kfold", "data.split.folds=3", *ONCE)
    for k in range(3):
        done = train(*fold, f"data.split.fold={k}", f"name=f{k}")
        assert done.rc == 0, done.err
    missing = train("name=cv", "job=gather", "from_run=[f0,f2]")
    assert missing.rc == 3 and "of 3 folds 1 is missing" in missing.err
    done = train("name=whole", "job=gather", "from_run=[f2,f1,f0]")
    assert done.rc == 0, done.err
    run: RunDir = train.run_dir("whole")
    assert sorted(row["fold"] for row in rundir.read_lines(run.rows_file("oof", 0))) == [0] * 32 + [1] * 32 + [2] * 32
    assert "oof AUC" in done.out and "n=96" in done.out
