"""screening/fit.py on a real part of the simulated teaching table: what a fit leaves, and what must not move it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from training_kit import run_here

from hpcai import rundir
from hpcai.book.shelf import dictionary, digest, panel
from hpcai.config.check import examine
from hpcai.config.schema import Config
from hpcai.context import RunContext, alone
from hpcai.errors import ConfigError, DataError
from hpcai.rundir import RunDir
from hpcai.screening import fit as jobs
from hpcai.screening.model import read_model
from hpcai.screening.teaching import open_newborns

SHIPPED = Path(__file__).parents[1] / "src" / "hpcai" / "shipped" / "nbs_simulated" / "teaching.parquet"
KEPT = ("PKU", "MCAD", "CIT")
LABORATORIES = ("simulated A", "simulated B", "simulated C", "simulated E")


@pytest.fixture(scope="session")
def teaching() -> pl.DataFrame:
    """Three diseases in four laboratories, the last of which a model never sees; of the healthy every other one."""
    whole = pl.read_parquet(SHIPPED).filter(pl.col("laboratory").is_in(LABORATORIES)).with_row_index("i")
    healthy = pl.col("diagnosis").fill_null("") == ""
    return whole.filter(pl.col("diagnosis").is_in(KEPT) | (healthy & (pl.col("i") % 2 == 0))).drop("i")


def config(path: Path, *more: str) -> Config:
    words = ["name=t", "job=fit", "task.name=screening", "task.threshold=sensitivity>=0.9", "estimator.penalty=[0.1]",
             "estimator.folds=3", "data.reader=table", f"data.path={path}", "data.labels=['0','1']",
             "data.identifiers=none"]  # fmt: skip
    cfg, found = examine([*words, *more])
    assert cfg is not None and not found, found
    return cfg


def started(path: Path, table: Path) -> RunContext:
    run = alone(path)
    (run.dir.lives / "0001").mkdir(parents=True)
    sha256 = hashlib.sha256(table.read_bytes()).hexdigest()
    rundir.write_json(run.dir.data, {"files": [{"path": str(table), "sha256": sha256}]})
    return run


def fitted(folder: Path, table: pl.DataFrame, *more: str) -> RunContext:
    folder.mkdir(exist_ok=True)
    path = folder / "teaching.parquet"
    table.write_parquet(path)
    run = started(folder / "run", path)
    jobs.fit(config(path, *more), run)
    return run


@pytest.fixture(scope="session")
def done(tmp_path_factory: pytest.TempPathFactory, teaching: pl.DataFrame) -> RunContext:
    return fitted(tmp_path_factory.mktemp("fit"), teaching)


def rows(run: RunContext, split: str) -> list[dict[str, Any]]:
    return list(rundir.read_lines(run.dir.rows_file(split, 0)))


def test_a_fit_leaves_a_model_that_other_jobs_find(done: RunContext) -> None:
    model = read_model(done.dir.screening_model, digest(dictionary("nbs_msms")))
    facts = rundir.read_json(done.dir.model)
    assert facts["sha256"] == model.digest == hashlib.sha256(done.dir.screening_model.read_bytes()).hexdigest()
    assert facts["labels"] == ["unaffected", *panel("nbs").names] and facts["input"] is None
    assert sorted(model.diseases) == sorted(KEPT) and model.simulated
    assert rundir.read_json(done.dir.threshold)["rule"] == "sensitivity>=0.9 for each disease"


def test_rows_are_probabilities_of_all_classes_and_tell_the_diseases_apart(done: RunContext) -> None:
    classes = 1 + len(panel("nbs").names)
    for split in ("val", "test"):
        found = rows(done, split)
        scores, label = np.array([r["scores"] for r in found]), np.array([r["label"] for r in found])
        assert scores.shape[1] == classes and np.abs(scores.sum(1) - 1).max() < 1e-9 and scores.min() >= 0
        hit = scores.argmax(1) == label
        assert hit[label == 0].mean() > 0.97 and hit[label > 0].mean() > 0.6, (hit[label == 0].mean(), hit[label > 0].mean())
    untaught = [1 + k for k, name in enumerate(panel("nbs").names) if name not in KEPT]
    assert not scores[:, untaught].any()


def test_screening_json_counts_the_test_newborns_by_disease_and_way(done: RunContext, teaching: pl.DataFrame) -> None:
    value = rundir.read_json(done.dir.screening)
    test = teaching.filter(pl.col("split") == "test")
    assert value["kind"] == "fit" and value["split"] == "test" and value["simulated"] is True
    assert value["n"] == len(test) == len(rows(done, "test"))
    for disease in value["diseases"]:
        for way in disease["ways"]:
            assert way["found"] + way["missed"] + way["unassessed"] == (test["diagnosis"] == disease["name"]).sum()
    assert {t["disease"] for t in value["thresholds"]} == set(KEPT)
    assert [c["group"] for c in value["conformal"]] == ["affected", "unaffected"] * 3
    assert set(value["books"]) >= {"model", "dictionary"} or set(value["books"]) >= {"model", "analytes"}


def test_it_finds_nearly_all_in_a_laboratory_that_it_never_saw(done: RunContext) -> None:
    for told in rundir.read_json(done.dir.screening)["conformal"]:
        assert told["coverage"]["n"] > 0 and told["coverage"]["value"] > 0.6  # .9 wanted; some 15 cases of a disease


def test_the_same_table_gives_the_same_bytes(done: RunContext, teaching: pl.DataFrame, tmp_path: Path) -> None:
    again = fitted(tmp_path, teaching)
    for name in ("screening_model.json", "screening.json", "model.json", "threshold.json", "rows/test.rank0.jsonl"):
        assert (again.dir.path / name).read_bytes() == (done.dir.path / name).read_bytes(), name


def test_what_judges_does_not_teach(done: RunContext, teaching: pl.DataFrame, tmp_path: Path) -> None:
    judges = pl.col("split") == "test"
    worse = teaching.with_columns(pl.when(judges).then(pl.col("Phe") * 1.3).otherwise(pl.col("Phe")).alias("Phe"))
    again = fitted(tmp_path, worse)
    assert again.dir.screening_model.read_bytes() == done.dir.screening_model.read_bytes()
    assert again.dir.rows_file("test", 0).read_bytes() != done.dir.rows_file("test", 0).read_bytes()


def test_newborns_on_the_same_plates_that_choose_or_judge_move_no_feature_that_teaches(
    teaching: pl.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Plates hold newborns of several parts, so a plate's shift is of those that may be known: train; then train and val."""
    parts: list[Any] = []
    monkeypatch.setattr(jobs, "learn", lambda panel, cfg, rule, train, folds, val, seed: parts.append((train, val)) or [])
    monkeypatch.setattr(jobs, "ScreeningModel", lambda **_: None)
    learner, test = teaching.filter(pl.col("split") != "test"), pl.col("sample").hash(0) % 5 == 0
    some = learner.with_columns(
        pl.when(test & (pl.col("split") == "val")).then(pl.lit("test")).otherwise("split").alias("split")
    )
    for moved in ((), ("test",), ("test", "val")):
        off = pl.when(pl.col("split").is_in(moved)).then(pl.col("Phe") * 1.3).otherwise(pl.col("Phe"))
        path = tmp_path / f"{len(moved)}.parquet"
        some.with_columns(off.alias("Phe")).write_parquet(path)
        cfg = config(path)
        newborns = open_newborns(cfg.data, started(tmp_path / f"run{len(moved)}", path), known := jobs.books(cfg.screening))
        train, val = (np.flatnonzero(np.array(newborns.published) == name) for name in ("train", "val"))
        jobs.taught(known, newborns, train, val, cfg.estimator, "youden", 0)
    (first, first_val), (second, second_val), (third, third_val) = parts
    assert np.array_equal(first.z_NC, second.z_NC) and np.array_equal(first.z_NC, third.z_NC)
    assert np.array_equal(first_val.z_NC, second_val.z_NC) and not np.array_equal(first_val.z_NC, third_val.z_NC)


def test_an_inner_folds_newborns_set_none_of_its_features(teaching: pl.DataFrame, tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    teaching.write_parquet(path)
    cfg, run = config(path), started(tmp_path / "run", path)
    known = jobs.books(cfg.screening)
    newborns = open_newborns(cfg.data, run, known)
    train = np.flatnonzero(np.array(newborns.published) == "train")
    batch, label = jobs.rows_of(newborns.batch, train), newborns.labels[train]
    held = jobs._held(newborns, train, 3, 0)
    assert sorted(np.concatenate(held).tolist()) == list(range(len(train)))
    first = jobs._fold(known, batch, label, held[0])
    batch.x_NA[held[0]] *= 2.0
    second = jobs._fold(known, batch, label, held[0])
    assert np.array_equal(first.taught.z_NC, second.taught.z_NC)
    assert not np.array_equal(first.z_held_NC, second.z_held_NC)


def test_a_laboratory_that_a_fold_leaves_too_few_of_has_none_that_judge_in_it(teaching: pl.DataFrame, tmp_path: Path) -> None:
    """130 unaffected of laboratory C: a reference in all of training, none in two thirds. Without one all are middling."""
    here, well = pl.col("laboratory") == "simulated C", pl.col("diagnosis").fill_null("") == ""
    trains = teaching.filter(pl.col("split") == "train")
    few = pl.concat([trains.filter(~here | ~well), trains.filter(here & well).head(130)])
    few.write_parquet(tmp_path / "t.parquet")
    cfg, run = config(tmp_path / "t.parquet"), started(tmp_path / "run", tmp_path / "t.parquet")
    known = jobs.books(cfg.screening)
    newborns = open_newborns(cfg.data, run, known)
    train = np.arange(len(newborns))
    laboratory = newborns.batch.text["laboratory"]
    held = jobs._held(newborns, train, 3, 0)
    assert "simulated C" in laboratory[held[0]]
    fold = jobs._fold(known, newborns.batch, newborns.labels, held[0])
    assert len(fold.held) == len(fold.z_held_NC) > 100 and "simulated C" not in laboratory[fold.held]


def test_kin_are_never_on_both_sides_of_an_inner_fold(teaching: pl.DataFrame, tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    teaching.write_parquet(path)
    cfg, run = config(path), started(tmp_path / "run", path)
    newborns = open_newborns(cfg.data, run, jobs.books(cfg.screening))
    train = np.flatnonzero(np.array(newborns.published) == "train")
    assert newborns.patients is not None
    kin = [{newborns.patients[train[i]] for i in part} for part in jobs._held(newborns, train, 3, 0)]
    assert len(set.union(*kin)) == sum(map(len, kin)) < len(train)  # some families have two


def test_cases_of_a_laboratory_whose_medians_are_not_known_teach_nothing(
    done: RunContext, teaching: pl.DataFrame, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    other = pl.read_parquet(SHIPPED).filter((pl.col("laboratory") == "simulated D") & pl.col("diagnosis").is_in(KEPT))
    more = pl.concat([teaching, other.with_columns(split=pl.lit("train"), laboratory=pl.lit("D"))])
    again = fitted(tmp_path, more)
    first, second = (read_model(r.dir.screening_model) for r in (done, again))
    assert "1 laboratories have too few unaffected newborns" in caplog.text
    assert [d.calibration.n_affected for d in first.detectors] == [d.calibration.n_affected for d in second.detectors]
    assert first.simulated and not second.simulated  # its newborns may be real


def evaluated(done: RunContext, folder: Path, table: Path, patch: pytest.MonkeyPatch, *more: str) -> RunContext:
    """job=evaluate by the run `done`, as if a plan had named it."""
    patch.setattr(jobs, "sources", lambda cfg, run: [done.dir])
    run = started(folder / "evaluated", table)
    jobs.evaluate(config(table, *more), run)
    return run


def test_on_the_same_table_evaluate_gives_the_rows_and_numbers_of_the_fit(
    done: RunContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = evaluated(done, tmp_path, done.dir.path.parent / "teaching.parquet", monkeypatch)
    for name in ("rows/test.rank0.jsonl", "threshold.json", "screening.json"):
        assert (run.dir.path / name).read_bytes() == (done.dir.path / name).read_bytes(), name
    assert rundir.read_json(run.dir.split)["counts"] == {"test": len(rows(done, "test"))}
    assert {line["split"] for line in rundir.read_lines(run.dir.cases)} == {"test"}


@pytest.mark.parametrize("part", ["all", "train"])
def test_newborns_that_taught_a_model_do_not_judge_it(
    done: RunContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    with pytest.raises(DataError, match=f"^data.eval_split={part}: newborns of it taught the model"):
        evaluated(done, tmp_path, done.dir.path.parent / "teaching.parquet", monkeypatch, f"data.eval_split={part}")


def test_real_newborns_who_are_all_affected_are_not_called_simulated(
    done: RunContext, teaching: pl.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ill = teaching.filter(pl.col("diagnosis") == "PKU").with_columns(pl.lit("Umea").alias("laboratory")).drop("split")
    ill.write_parquet(tmp_path / "ill.parquet")
    run = evaluated(done, tmp_path, tmp_path / "ill.parquet", monkeypatch, "data.eval_split=all")
    value = rundir.read_json(run.dir.screening)
    assert (value["simulated"], value["taught_by_simulated"], value["n"]) == (False, True, len(ill))


def test_another_book_of_rules_does_not_make_the_teaching_table_another(
    done: RunContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run reads one file more; a split of another seed would let newborns that taught judge."""
    monkeypatch.setattr(jobs, "sources", lambda cfg, run: [done.dir])
    table = done.dir.path.parent / "teaching.parquet"
    run = started(tmp_path / "evaluated", table)
    files = rundir.read_json(run.dir.data)["files"]
    rundir.write_json(run.dir.data, {"files": [*files, {"path": "own_rules.yaml", "sha256": "0" * 64}]})
    jobs.evaluate(config(table, "data.split.by=random", "data.split.seed=7"), run)
    assert [r["case"] for r in rows(run, "test")] == [r["case"] for r in rows(done, "test")]


def test_another_table_is_judged_by_medians_of_its_own(
    done: RunContext, teaching: pl.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = teaching.filter(pl.col("split") == "test").with_columns(pl.col("Phe", "C8") * 1.2)
    there.drop("split").write_parquet(tmp_path / "new.parquet")
    run = evaluated(done, tmp_path, tmp_path / "new.parquet", monkeypatch, "data.eval_split=all")
    scores = {r["case"]: np.array(r["scores"]) for r in rows(run, "all")}
    before = {r["case"]: np.array(r["scores"]) for r in rows(done, "test")}
    called = [scores[case].argmax() == before[case].argmax() for case in before]
    assert np.mean(called) > 0.98  # another calibration of the machine changes next to nothing


def test_a_model_of_another_dictionary_judges_nothing(
    done: RunContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = json.loads(done.dir.screening_model.read_text()) | {"dictionary_digest": "f" * 64}
    other = RunDir(tmp_path / "other")
    rundir.write_json(other.screening_model, whole)
    monkeypatch.setattr(jobs, "sources", lambda cfg, run: [other])
    table = done.dir.path.parent / "teaching.parquet"
    with pytest.raises(DataError, match="another dictionary"):
        jobs.evaluate(config(table), started(tmp_path / "evaluated", table))


def test_several_models_judge_nothing_together(done: RunContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "sources", lambda cfg, run: [done.dir, done.dir])
    table = done.dir.path.parent / "teaching.parquet"
    with pytest.raises(ConfigError, match="from_run: 2 runs"):
        jobs.evaluate(config(table), started(tmp_path / "evaluated", table))


def test_labels_of_another_panel_are_refused(teaching: pl.DataFrame, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"data\.labels: the panel nbs has other classes"):
        fitted(tmp_path, teaching, "data.labels=[healthy,ill]")


def test_a_table_changed_since_the_plan_is_refused(teaching: pl.DataFrame, tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    teaching.write_parquet(path)
    run = started(tmp_path / "run", path)
    teaching.head(500).write_parquet(path)
    with pytest.raises(DataError):
        jobs.fit(config(path), run)
    assert not run.dir.screening_model.exists()


def test_a_csv_teaches_as_parquet_does(done: RunContext, teaching: pl.DataFrame, tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    teaching.with_columns(pl.selectors.float().cast(pl.Float64)).write_csv(path)
    run = started(tmp_path / "run", path)
    jobs.fit(config(path), run)
    first, second = (json.loads(r.dir.screening_model.read_text()) for r in (done, run))
    for a, b in zip(first["detectors"], second["detectors"], strict=True):
        assert np.allclose(a["estimator"]["coef"], b["estimator"]["coef"], atol=1e-6)


@pytest.mark.slow
def test_a_fit_started_as_users_start_it_is_found_by_evaluate(teaching: pl.DataFrame, tmp_path: Path) -> None:
    table = tmp_path / "teaching.parquet"
    teaching.write_parquet(table)
    common = [f"data.path={table}", f"runs_dir={tmp_path / 'runs'}", "data.reader=table", "data.identifiers=none",
              "task.name=screening", "resources.cpus_per_task=1"]  # fmt: skip
    labels = json.dumps(["unaffected", *panel("nbs").names])
    source = run_here(["job=fit", "name=f", f"data.labels={labels}", "estimator.penalty=[0.1]", "estimator.folds=3", *common])
    judged = run_here(["job=evaluate", "name=e", f"from_run={source.path}", *common])
    assert judged.rows_file("test", 0).read_bytes() == source.rows_file("test", 0).read_bytes()
