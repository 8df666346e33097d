"""job=fit on classes of cases, whole: every case judged once by an estimator that had not seen it or its like."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from report_schema import check_report
from training_kit import again, prepared, run_here

from hpcai import lease, rundir
from hpcai.config.check import load
from hpcai.config.schema import Config
from hpcai.context import RunContext, Stop
from hpcai.data.open import open_cases
from hpcai.data.table import TableCases
from hpcai.errors import ConfigError, DataError, OwnedError, Stopped
from hpcai.metrics.rows import read_rows
from hpcai.rundir import RunDir
from hpcai.tabular import apply
from hpcai.tabular import fit as fitting
from hpcai.tabular.choose import choose
from hpcai.tabular.model import read_model

LABELS = ["healthy", "one", "two"]
MILLER = Path(os.environ.get("HPCAI_DATA", "../shared/data")) / "iem_metabolomics_miller2015"
QUICK = ("estimator.penalty=[0.03,0.3]", "estimator.l1_ratio=[0.5]", "estimator.folds=3", "data.split.folds=3")


def write(path: Path, *, n: int = 90, features: int = 12, raised: float = 3.0, copies: int = 0, classes: int = 3) -> Path:
    """Class k raises feature k; the last `copies` cases are near-doubles of the first; a twentieth of the cells is empty."""
    rng = np.random.default_rng(0)
    label = np.arange(n) % classes
    x = rng.normal(size=(n, features))
    x[np.arange(n), label] += raised * (label > 0)
    gaps = rng.random(x.shape) < 0.05
    text = [
        [f"{v:.6g}" if not gap else "" for v, gap in zip(row, gone, strict=True)] for row, gone in zip(x, gaps, strict=True)
    ]
    for k in range(copies):
        text.append([f"{float(v) + 0.01 * rng.normal():.6g}" if v else "" for v in text[k]])
    label = np.concatenate([label, label[:copies]])
    part = ["train", "train", "train", "val", "test"]
    lines = ["case,label,part," + ",".join(f"f{k}" for k in range(features))]
    lines += [f"c{i},{LABELS[label[i]]},{part[(i // classes) % 5]},{','.join(row)}" for i, row in enumerate(text)]
    path.write_text("\n".join(lines) + "\n")
    return path


def words(path: Path, runs: Path, *more: str, classes: int = 3) -> list[str]:
    base = ["job=fit", "name=t", f"data.path={path}", "data.reader=table", f"data.labels=[{','.join(LABELS[:classes])}]",
            "data.identifiers=none", "data.split_col=part", f"runs_dir={runs}",
            "resources.cpus_per_task=1", *QUICK, *more]  # fmt: skip
    return list({word.partition("=")[0]: word for word in base}.values())


def rows(run: RunDir, split: str) -> list[dict[str, Any]]:
    return list(rundir.read_lines(run.rows_file(split, 0)))


@pytest.fixture(scope="module")
def nested(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, RunDir]:
    folder = tmp_path_factory.mktemp("nested")
    path = write(folder / "t.csv", copies=15)
    return path, run_here(words(path, folder, "data.split.by=nested", "data.near_duplicates=0.99"))


def test_nested_every_case_is_judged_once_and_doubles_together(nested: tuple[Path, RunDir]) -> None:
    _, run = nested
    judged = rows(run, "oof")
    assert sorted(r["case"] for r in judged) == sorted(f"c{i}" for i in range(105))
    fold = {r["case"]: r["fold"] for r in judged}
    assert {fold[f"c{90 + k}"] == fold[f"c{k}"] for k in range(15)} == {True}
    assert rundir.read_json(run.fit)["groups"] == {"cases": 30, "groups": 15}
    assert all(sum(r["scores"]) == pytest.approx(1) and r["called"] == int(np.argmax(r["scores"])) for r in judged)
    assert (read_rows(run, "oof").scores.argmax(1) == read_rows(run, "oof").label).mean() > 0.7
    assert not list(run.rows.glob(".*"))  # what was kept of single folds is gone


def test_the_report_tells_grouped_and_plain_folds_and_fits_its_schema(nested: tuple[Path, RunDir]) -> None:
    _, run = nested
    told = check_report(run)["fit"]
    value, plain = ({e["name"]: e["value"] for e in told[key]} for key in ("numbers", "ungrouped"))
    assert value.keys() == plain.keys() and value["top1"] > 0.6
    page = run.report_html.read_text("utf-8")
    assert "Plain folds" in page and "30 cases stand in 15 groups" in page
    for e in told["numbers"]:
        assert f'data-key="fit/{e["name"]}/value"' in page


def test_a_rows_reasons_name_the_feature_that_was_raised(nested: tuple[Path, RunDir]) -> None:
    _, run = nested
    sick = [r for r in rows(run, "oof") if r["label"] == r["called"] == 1]
    first = [r["why"]["moved"][0]["channel"] for r in sick]
    assert first.count("f1") > 0.8 * len(sick) and all(r["why"]["likeliest"] == "one" for r in sick)


@pytest.mark.parametrize("estimator", ["logistic", "boosting"])
def test_classes_that_features_do_not_tell_are_told_no_better_than_by_chance(tmp_path: Path, estimator: str) -> None:
    """Nothing of the judged cases gets into what judges them: not by scaling, the grid, calibration or a threshold."""
    path = write(tmp_path / "t.csv", n=120, features=60, raised=0.0, classes=2)
    more = (
        "data.split.by=nested",
        f"estimator.name={estimator}",
        "estimator.trees=[10]",
        "data.split_col=null",
        "data.group_cols=[part]",
    )
    run = run_here(words(path, tmp_path, *more, classes=2))
    auc = next(e for e in check_report(run)["estimates"] if e["name"] == "auc")
    assert 0.3 < auc["value"] < 0.65 and auc["low"] < 0.5


def config(path: Path, folder: Path, *more: str, classes: int = 3) -> Config:
    return load(words(path, folder, *more, classes=classes))


def test_what_is_held_out_does_not_change_what_is_chosen(tmp_path: Path) -> None:
    cfg = config(write(tmp_path / "t.csv"), tmp_path)
    cases = open_cases(cfg.data)
    assert isinstance(cases, TableCases)
    train = np.arange(60)
    first = choose(cases, train, cfg, Stop())
    cases.x_nF[60:] = np.random.default_rng(9).normal(size=cases.x_nF[60:].shape) * 1e6
    cases.labels[60:] = 0
    second = choose(cases, train, cfg, Stop())
    assert first.model.to_text() == second.model.to_text() and first.losses == second.losses


def test_the_mean_of_a_grid_has_each_point_as_a_member_and_explains_itself(tmp_path: Path) -> None:
    run = run_here(
        words(write(tmp_path / "t.csv"), tmp_path, "estimator.combine=mean", "features.quiet=[0,0.5]", "features.sides=true")
    )
    model = read_model(run.table_model.read_bytes())
    assert [m.quiet for m in model.members] == [0.0, 0.0, 0.5, 0.5]
    final = rundir.read_json(run.fit)["final"]
    assert final["chosen"] == {"mean_of": 4} and final["reads"][1]["channels"][0]["channel"] == "f1 high"
    assert check_report(run)["estimates"][0]["value"] > 0.8


def test_published_parts_teach_choose_and_judge(tmp_path: Path) -> None:
    run = run_here(words(write(tmp_path / "t.csv", classes=2), tmp_path, "task.threshold=sensitivity>=0.9", classes=2))
    assert {s: len(rows(run, s)) for s in ("val", "test")} == {"val": 18, "test": 18}
    threshold = rundir.read_json(run.threshold)
    val = rows(run, "val")
    found = [r["scores"][1] >= threshold["value"] for r in val if r["label"] == 1]
    assert np.mean(found) >= 0.9 and threshold["split"] == "val"
    assert all(r["called"] == (r["scores"][1] >= threshold["value"]) for r in val + rows(run, "test"))
    assert check_report(run)["estimates"][0]["split"] == "test"


def test_a_stopped_run_goes_on_with_the_fold_that_it_had_not_finished_to_the_same_bytes(
    nested: tuple[Path, RunDir], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, whole = nested
    cfg, context = prepared(words(path, tmp_path, "data.split.by=nested", "data.near_duplicates=0.99"))
    real, done = fitting._one_fold, []

    def then_stop(cfg: Config, run: RunContext, *more: Any) -> Any:
        done.append(more[-1])
        if len(done) == 2:
            run.stop.signum = signal.SIGTERM
        return real(cfg, run, *more)

    monkeypatch.setattr(fitting, "_one_fold", then_stop)
    with pytest.raises(Stopped, match="The same command goes on"):
        again(cfg, context)
    assert not context.dir.model.exists()
    context.stop.signum = None
    again(cfg, context)
    assert done[:2] + done[2:3] == [0, 1, 1]  # fold 0 was kept
    for name in ("rows/oof.rank0.jsonl", "table_model.json", "fit.json", "threshold.json", "split.json"):
        assert (context.dir.path / name).read_bytes() == (whole.path / name).read_bytes(), name


def test_a_life_that_is_no_longer_the_newest_leaves_no_fold(nested: tuple[Path, RunDir], tmp_path: Path) -> None:
    cfg, context = prepared(words(nested[0], tmp_path, "data.split.by=nested"))
    lease.life_dir(context.dir, context.life + 1).mkdir(parents=True)
    with pytest.raises(OwnedError):
        again(cfg, context)
    assert not list(context.dir.rows.glob(".grouped*"))


# --- on other tables


def applied(source: RunDir, path: Path, folder: Path, job: str, *more: str) -> tuple[Config, RunContext]:
    base = [f"job={job}", "name=e", f"from_run={source.path}", f"data.path={path}", "data.reader=table",
            "data.identifiers=none", f"runs_dir={folder}", "resources.cpus_per_task=1", *more]  # fmt: skip
    return prepared(list({word.partition("=")[0]: word for word in base}.values()))


@pytest.fixture(scope="module")
def parted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, RunDir]:
    folder = tmp_path_factory.mktemp("parted")
    path = write(folder / "t.csv")
    return path, run_here(words(path, folder))


def test_evaluate_gives_the_rows_of_the_runs_own_test_and_predict_the_same_scores(
    parted: tuple[Path, RunDir], tmp_path: Path
) -> None:
    path, source = parted
    cfg, context = applied(source, path, tmp_path, "evaluate", "data.split_col=part")
    apply.evaluate(cfg, context)
    assert context.dir.rows_file("test", 0).read_bytes() == source.rows_file("test", 0).read_bytes()
    cfg, context = applied(source, path, tmp_path, "predict")
    apply.predict(cfg, context)
    by_case = {r["case"]: r for r in rows(context.dir, "predict")}
    assert len(by_case) == 90 and all(r["label"] is None for r in by_case.values())
    for row in rows(source, "test"):
        assert by_case[row["case"]]["scores"] == row["scores"]


def test_several_runs_give_the_mean_of_their_probabilities(parted: tuple[Path, RunDir], tmp_path: Path) -> None:
    path, source = parted
    other = run_here(words(path, tmp_path, "estimator.penalty=[1.0]", "seed=1"))
    cfg, context = prepared(["job=predict", "name=e", f"from_run=[{source.path},{other.path}]", f"data.path={path}",
                             "data.reader=table", "data.identifiers=none", f"runs_dir={tmp_path}"])  # fmt: skip
    assert apply.predict(cfg, context) == 90
    found = {r["case"]: r for r in rows(context.dir, "predict")}
    alone = {r["case"]: r["scores"] for r in rows(source, "test")}
    for row, theirs in ((found[r["case"]], r["scores"]) for r in rows(other, "test")):
        assert row["scores"] == np.mean([alone[row["case"]], theirs], axis=0).tolist()
        assert sorted(map(tuple, row["members"])) == sorted(map(tuple, [alone[row["case"]], theirs]))


def test_a_prediction_that_was_cut_short_goes_on_and_has_each_case_once(parted: tuple[Path, RunDir], tmp_path: Path) -> None:
    path, source = parted
    cfg, context = applied(source, path, tmp_path, "predict")
    context.stop.signum = signal.SIGTERM
    with pytest.raises(Stopped, match="stopped after 64 cases"):
        apply.predict(cfg, context)
    context.stop.signum = None
    apply.predict(cfg, context)
    assert [r["case"] for r in rows(context.dir, "predict")] == [f"c{i}" for i in range(90)]


def test_the_data_of_a_nested_run_cannot_judge_its_final_model(nested: tuple[Path, RunDir], tmp_path: Path) -> None:
    path, source = nested
    for part in ("test", "all"):
        cfg, context = applied(source, path, tmp_path / part, "evaluate", "data.split_col=part", f"data.eval_split={part}")
        with pytest.raises(DataError, match=r"every case of these data taught its final model"):
            apply.evaluate(cfg, context)


def test_cases_that_chose_for_one_of_two_runs_do_not_judge_their_mean(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv")
    first, second = (
        run_here(words(path, tmp_path, "data.split.by=random", f"data.split.seed={seed}", "estimator.penalty=[0.1]"))
        for seed in (0, 1)
    )
    both, tests = f"from_run=[{first.path},{second.path}]", [{r["case"] for r in rows(run, "test")} for run in (first, second)]
    cfg, context = applied(first, path, tmp_path, "evaluate", both, "data.split_col=part", "data.eval_split=val")
    with pytest.raises(DataError, match="split these data differently"):
        apply.evaluate(cfg, context)
    cfg, context = applied(first, path, tmp_path, "evaluate", both, "data.split_col=part")
    apply.evaluate(cfg, context)
    assert {r["case"] for r in rows(context.dir, "test")} == tests[0] & tests[1] != set()


def test_a_table_without_a_feature_of_the_model_and_a_model_of_another_digest_are_refused(
    parted: tuple[Path, RunDir], tmp_path: Path
) -> None:
    path, source = parted
    other = tmp_path / "o.csv"
    other.write_text("\n".join(line.rpartition(",")[0] for line in path.read_text().splitlines()) + "\n")
    cfg, context = applied(source, other, tmp_path, "predict")
    with pytest.raises(DataError, match="lacks 1 of 12 features of the model, first `f11`"):
        apply.predict(cfg, context)
    text = source.table_model.read_bytes()
    with pytest.raises(DataError, match="is another one than"):
        read_model(text + b" ", rundir.read_json(source.model)["sha256"])


def test_images_are_refused(tmp_path: Path) -> None:
    cfg = config(write(tmp_path / "t.csv"), tmp_path)
    cfg = cfg.model_copy(update={"data": cfg.data.model_copy(update={"reader": "npz"})})
    with pytest.raises(ConfigError, match=r"^data\.reader=npz: job=fit reads tables"):
        fitting.open_table_cases(cfg, RunContext(RunDir(tmp_path)))


@pytest.mark.skipif(not MILLER.is_dir(), reason="shared data are not here")
def test_the_preset_on_real_patients_reads_169_of_them_in_13_classes() -> None:
    cfg = load(
        ["+experiment=iem_miller", f"data.path={MILLER / 'zscores.csv.gz'}", f"data.label_path={MILLER / 'diagnosis.csv'}"]
    )
    cases = open_cases(cfg.data)
    assert isinstance(cases, TableCases)
    assert (len(cases), cases.left_out, len(cases.names)) == (169, 17, 1203) and cases.left_out == sum(
        cfg.data.excluded.values()
    )
    assert np.bincount(cases.labels).tolist() == [68, 4, 4, 9, 6, 5, 8, 18, 9, 17, 8, 9, 4]
    assert cases.patients is not None
    sizes = np.unique(np.array(cases.patients), return_counts=True)[1]
    assert sorted(sizes[sizes > 1].tolist()) == [2, 2, 2, 2, 2, 2, 2, 3, 3, 5, 7]  # the twelfth pair is of a class left out
