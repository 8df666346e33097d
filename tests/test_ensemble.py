"""Several trained runs as one: the mean of their probabilities, its threshold, and what it gained."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from report_schema import check_report
from training_kit import again, finish, prepared, run_here, run_in, words, write_npz

from hpcai import rundir
from hpcai.errors import DataError, HpcaiError, RunError
from hpcai.infer import averaged
from hpcai.metrics.binary import auc
from hpcai.metrics.classification import choose_threshold
from hpcai.metrics.rows import Rows, read_rows
from hpcai.metrics.together import gains, mean_of, threshold_of_mean
from hpcai.rundir import RunDir
from hpcai.watch import answer

SIZES = {"train": 60, "val": 40, "test": 40}
Trio = tuple[Path, list[RunDir]]


@pytest.fixture(scope="module")
def trio(tmp_path_factory: pytest.TempPathFactory) -> Trio:
    """(data, three seeds of one training of one epoch, by run_id); leave them as they are."""
    folder = tmp_path_factory.mktemp("trio")
    data = write_npz(folder / "d.npz", SIZES)
    runs = [run_here(words(data, folder / "runs", "trainer.epochs=1", f"seed={seed}")) for seed in range(3)]
    return data, sorted(runs, key=lambda run: run.path.name)


def asked(job: str, runs: list[RunDir], data: Path, to: Path, *more: str) -> list[str]:
    named = f"from_run=[{','.join(repr(str(run.path)) for run in runs)}]"
    return [
        f"job={job}",
        "name=e",
        named,
        f"data.path={data}",
        f"runs_dir={to}",
        "data.identifiers=none",
        "resources.cpus_per_task=1",
        *more,
    ]


def lines(run: RunDir, split: str) -> list[dict[str, Any]]:
    return [row for file in run.row_files(split) for row in rundir.read_lines(file)]


def simulated(seed: int, n: int = 60, classes: int = 2, patients: bool = False) -> Rows:
    rng = np.random.default_rng(seed)
    label = np.arange(n) % classes
    scores = np.random.default_rng(9).dirichlet(np.ones(classes), n) + rng.dirichlet(np.ones(classes), n)
    scores += 0.4 * np.eye(classes)[label]
    patient = [f"p{i // 3}" for i in range(n)] if patients else None
    return Rows([f"c{i:03d}" for i in range(n)], patient, label, scores / scores.sum(1, keepdims=True))


# --- the mean


def test_scores_are_the_mean_of_the_members_probabilities_case_by_case(trio: Trio, tmp_path: Path) -> None:
    data, members = trio
    run = run_here(asked("evaluate", members, data, tmp_path))
    then = [{row["case"]: row["scores"] for row in lines(member, "test")} for member in members]
    for row in lines(run, "test"):
        own = np.array([scores[row["case"]] for scores in then])
        assert row["members"] == own.tolist()
        assert row["scores"] == ((own[0] + own[1] + own[2]) / 3).tolist()
    assert len(lines(run, "test")) == len(then[0])


def test_predict_gives_the_mean_too_in_blocks(trio: Trio, tmp_path: Path) -> None:
    data, members = trio
    with np.load(data) as arrays:
        images = np.concatenate([arrays["test_images"]] * 3)[:100]  # more than one block
    np.savez(tmp_path / "new.npz", images=images)
    run = run_here(asked("predict", members, tmp_path / "new.npz", tmp_path / "runs"))
    then = np.mean([[row["scores"] for row in lines(member, "test")] for member in members], axis=0)
    rows = lines(run, "predict")
    assert np.array([row["scores"] for row in rows]) == pytest.approx(np.concatenate([then] * 3)[:100], abs=1e-6)
    assert all(row["scores"] == np.mean(row["members"], axis=0).tolist() and row["label"] is None for row in rows)


def test_the_order_of_words_gives_the_same_run_and_a_single_one_no_members(trio: Trio, tmp_path: Path) -> None:
    data, members = trio
    run = run_here(asked("evaluate", members[::-1], data, tmp_path / "a"))
    other = run_here(asked("evaluate", members, data, tmp_path / "b"))
    assert run.path.name == other.path.name
    assert run.rows_file("test", 0).read_bytes() == other.rows_file("test", 0).read_bytes()
    one = run_here(asked("evaluate", members[:1], data, tmp_path / "c"))
    assert one.rows_file("test", 0).read_bytes() == members[0].rows_file("test", 0).read_bytes()
    assert not one.together.exists() and "together" not in rundir.read_json(one.report_json)


def test_each_member_scales_its_own_input(tmp_path: Path) -> None:
    dark = write_npz(tmp_path / "a.npz", SIZES, seed=1)
    with np.load(dark) as arrays:
        np.savez(tmp_path / "b.npz", **{k: v // 3 if k.endswith("images") else v for k, v in arrays.items()})
    runs = [run_here(words(tmp_path / f"{n}.npz", tmp_path / "runs", "trainer.epochs=1")) for n in "ab"]
    alone = [run_here(asked("evaluate", [run], dark, tmp_path / "e", "data.eval_split=all")) for run in runs]
    run = run_here(asked("evaluate", runs, dark, tmp_path / "e", "data.eval_split=all"))
    means = [read_rows(each, "all").scores for each in alone]
    assert np.array_equal(read_rows(run, "all").scores, np.mean(means, axis=0))


def test_the_mean_of_rows_by_hand() -> None:
    a = [{"case": "x", "patient": "p", "label": 1, "scores": [0.25, 0.75]}]
    b = [{"case": "x", "patient": "p", "label": 1, "scores": [0.75, 0.25]}]
    assert averaged([a]) is a and averaged([[], []]) == []
    assert averaged([a, b]) == [a[0] | {"scores": [0.5, 0.5], "members": [[0.25, 0.75], [0.75, 0.25]]}]


# --- threshold


def test_the_threshold_is_that_of_the_mean_on_the_common_validation(trio: Trio, tmp_path: Path) -> None:
    data, members = trio
    run = run_here(asked("evaluate", members, data, tmp_path))
    val = [read_rows(member, "val") for member in members]
    mean = Rows(val[0].case, None, val[0].label, np.mean([rows.scores for rows in val], axis=0))
    assert rundir.read_json(run.threshold) == asdict(choose_threshold(mean, "sensitivity>=0.95"))


def test_without_common_cases_or_a_common_rule_no_threshold_is_made_up() -> None:
    a, b = simulated(1), simulated(2)
    other = Rows(["x", *b.case[1:]], None, b.label, b.scores)
    flipped = Rows(b.case, None, 1 - b.label, b.scores)
    for validation in ([a, other], [a, flipped], [a, None], [a, simulated(3, n=59)], [None, None]):
        found = threshold_of_mean(validation, ["youden", "youden"])
        assert found.value is None and found.rule == "no common validation cases: no threshold"
    found = threshold_of_mean([a, b], ["youden", "0.5"])
    assert found.value is None and found.rule == "the runs have different rules: no threshold"
    assert threshold_of_mean([a, b], ["0.3", "0.3"]).value == 0.3


# --- gain


def brute(members: list[Rows], of: Callable[[np.ndarray, list[np.ndarray]], float], draws: np.ndarray) -> list[float]:
    """The gain in each resample, the resample written out."""
    label = members[0].label == 1
    score = [rows.scores[:, 1] for rows in members]
    mean = np.mean(score, axis=0)
    found = []
    for i in draws:
        if 0 < label[i].sum() < len(i):
            found.append(auc(label[i], mean[i]) - of(i, [np.array(auc(label[i], s[i])) for s in score]))
    return found


def test_the_gain_s_interval_is_the_paired_bootstrap_written_out() -> None:
    members = [simulated(seed) for seed in range(3)]
    draws = np.random.Generator(np.random.PCG64(0)).integers(60, size=(2000, 60))
    over_mean, over_best = gains(members, "test", best=1)
    for gain, of in ((over_mean, lambda i, own: float(np.mean(own))), (over_best, lambda i, own: float(own[1]))):
        low, high = np.quantile(brute(members, of, draws), [0.025, 0.975])
        assert (gain.low, gain.high) == pytest.approx((low, high), abs=1e-12)
        assert gain.value == pytest.approx(brute(members, of, np.arange(60)[None])[0], abs=1e-12)
        assert (gain.name, gain.n, gain.split) == ("auc", 60, "test") and "2000 resamples of cases" in gain.method
    assert (over_mean.over, over_best.over) == ("mean", "best")


def test_patients_are_drawn_whole_where_they_repeat() -> None:
    members = [simulated(seed, patients=True) for seed in range(2)]
    patients = sorted({p for p in members[0].patient or []})
    cases = {p: [i for i, q in enumerate(members[0].patient or []) if q == p] for p in patients}
    drawn = np.random.Generator(np.random.PCG64(0)).integers(20, size=(2000, 20))
    draws = np.array([[i for k in row for i in cases[patients[k]]] for row in drawn])
    (gain,) = gains(members, "test", best=None)
    low, high = np.quantile(brute(members, lambda i, own: float(np.mean(own)), draws), [0.025, 0.975])
    assert (gain.low, gain.high) == pytest.approx((low, high), abs=1e-12) and "of patients" in gain.method


def test_twins_gain_nothing_and_say_that_no_resample_differs() -> None:
    for gain in gains([simulated(1), simulated(1)], "test", best=0):
        assert (gain.value, gain.low, gain.high) == (0.0, None, None) and gain.method.endswith("none differs")


def test_more_classes_gain_in_macro_auc_also_where_one_never_occurs() -> None:
    members = [simulated(seed, classes=3) for seed in range(2)]
    assert [gain.name for gain in gains(members, "test", best=0)] == ["macro_auc", "macro_auc"]
    rare = [Rows(m.case, None, np.minimum(m.label, 1), m.scores) for m in members]
    (gain,) = gains(rare, "test", best=None)
    assert gain.low is not None and gain.low <= gain.value


def test_one_class_alone_gains_nothing_that_could_be_told() -> None:
    assert gains([Rows(m.case, None, m.label * 0, m.scores) for m in (simulated(1), simulated(2))], "test", best=None) == []


def test_a_hundred_members_are_a_matter_of_seconds() -> None:
    members = [simulated(seed, n=600) for seed in range(100)]
    mean = mean_of(members)
    assert mean is not None and np.allclose(mean.scores, sum(m.scores for m in members) / 100)
    over_mean, _ = gains(members, "test", best=99)
    assert over_mean.low is not None and over_mean.low <= over_mean.value


# --- the report


def test_the_report_names_the_members_and_tells_the_gain(trio: Trio, tmp_path: Path) -> None:
    data, members = trio
    run = run_here(asked("evaluate", members, data, tmp_path))
    report, page = check_report(run), run.report_html.read_text("utf-8")
    told = report["together"]
    assert [m["run_id"] for m in told["members"]] == [member.path.name for member in members]
    for member, m in zip(members, told["members"], strict=True):
        then = rundir.read_json(member.report_json)["estimates"]
        (test, val) = (next(e for e in then if e["split"] == split and e["name"] == "auc") for split in ("test", "val"))
        assert m["estimate"] == test and m["validation"] == val
        assert member.path.name in page
    best = max(m["validation"]["value"] for m in told["members"])
    assert [m["validation"]["value"] for m in told["members"] if m["best"]] == [best]
    assert [gain["over"] for gain in told["gain"]] == ["mean", "best"]
    assert "the mean of 3 runs" in report["question"] and "Against one run the mean gained" in report["answer"]
    assert "What the mean of 3 runs gained" in page and answer(report).startswith("test AUC")
    assert report["provenance"]["from_run"] == [member.path.name for member in members]


def test_a_prediction_tells_the_gain_on_the_cases_that_tested_the_runs(trio: Trio, tmp_path: Path) -> None:
    data, members = trio
    run = run_here(asked("predict", members, data, tmp_path / "p"))
    there = run_here(asked("evaluate", members, data, tmp_path / "e"))
    found = rundir.read_json(run.report_json)["together"]
    assert found == rundir.read_json(there.report_json)["together"]
    assert answer(rundir.read_json(run.report_json)).startswith("140 cases scored. Against one run")


def test_no_threshold_is_said_with_its_reason(trio: Trio, tmp_path: Path) -> None:
    data, members = trio
    copies = [RunDir(Path(shutil.copytree(m.path, tmp_path / m.path.name))) for m in members[:2]]
    copies[0].rows_file("val", 0).unlink()
    report = rundir.read_json(run_here(asked("evaluate", copies, data, tmp_path / "e")).report_json)
    assert report["threshold"]["value"] is None and [g["over"] for g in report["together"]["gain"]] == ["mean"]
    assert "No threshold was chosen (no common validation cases): a case is called by its higher score." in report["warnings"]
    assert answer(report).startswith("test AUC") and "rule" not in answer(report)


# --- what may judge


def test_what_taught_any_member_judges_none(tmp_path: Path) -> None:
    data = write_npz(tmp_path / "d.npz", SIZES)
    random = ("trainer.epochs=1", "data.split.by=random", "data.split.test_fraction=0.5", "trainer.max_steps=2")
    runs = [run_here(words(data, tmp_path / "runs", *random, f"data.split.seed={seed}")) for seed in (1, 2)]
    run = run_here(asked("evaluate", runs, data, tmp_path / "e"))
    tests = [set(rundir.read_json(source.split)["test"]) for source in runs]
    assert {row["case"] for row in lines(run, "test")} == tests[0] & tests[1] < tests[0]
    with pytest.raises(
        DataError, match=r"^data\.eval_split=val: .* split these data differently\. Ask for test, or other data"
    ):
        run_here(asked("evaluate", runs, data, tmp_path / "v", "data.eval_split=val"))
    assert len(lines(run_here(asked("evaluate", runs, data, tmp_path / "a", "data.eval_split=all")), "all")) == 140


# --- hostile


def test_a_member_whose_model_changed_after_submission_is_named(trio: Trio, tmp_path: Path) -> None:
    data, members = trio
    copies = [RunDir(Path(shutil.copytree(m.path, tmp_path / m.path.name))) for m in members]
    cfg, context = prepared(asked("evaluate", copies, data, tmp_path / "e"))
    rundir.write_json(copies[1].model, {**rundir.read_json(copies[1].model), "sha256": "0" * 64})
    with pytest.raises(RunError, match=f"^from_run={copies[1].path.name}: its model is another one than at submission"):
        again(cfg, context)
    copies[1].model.write_text("{")
    with pytest.raises(HpcaiError, match=rf"^run={copies[1].path.name}: its model\.json is damaged"):
        again(cfg, context)


def test_a_member_whose_rows_are_damaged_is_named_without_its_cases(trio: Trio, tmp_path: Path) -> None:
    data, members = trio
    copies = [RunDir(Path(shutil.copytree(m.path, tmp_path / m.path.name))) for m in members]
    copies[2].rows_file("val", 0).write_text('{"case": "mueller_anna", "label": "x"}\n')
    with pytest.raises(RunError, match=rf"^run={copies[2].path.name}: rows/val\.rank0\.jsonl: row 0 is damaged") as caught:
        run_here(asked("evaluate", copies, data, tmp_path / "e"))
    assert "mueller" not in str(caught.value)


@pytest.mark.slow
def test_an_ensemble_from_the_command_line_on_two_ranks(trio: Trio, tmp_path: Path) -> None:
    data, members = trio
    one = run_here(asked("evaluate", members, data, tmp_path / "one"))
    done = finish(asked("evaluate", members, data, tmp_path / "two", "resources.tasks_per_node=2"))
    run = run_in(tmp_path / "two", "e")
    assert run.rows_file("test", 0).read_bytes() == one.rows_file("test", 0).read_bytes()
    assert run.threshold.read_bytes() == one.threshold.read_bytes() and run.together.read_bytes() == one.together.read_bytes()
    assert "test AUC" in done.stdout
    assert json.loads(run.plan.read_text())["from_run"] == [
        {"run_id": m.path.name, "sha256": rundir.read_json(m.model)["sha256"]} for m in members
    ]
