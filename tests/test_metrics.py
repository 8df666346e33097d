"""Rows -> numbers: each against a hand-made answer, scikit-learn, or its own definition."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from report_runs import auc_interval
from scipy.stats import chi2_contingency, norm
from sklearn.metrics import confusion_matrix, roc_auc_score, roc_curve

from hpcai.errors import ConfigError, DataError, RunError
from hpcai.metrics.binary import auc
from hpcai.metrics.classification import (
    Threshold,
    choose_threshold,
    confusion,
    estimates,
    predicted,
    roc,
)
from hpcai.metrics.intervals import delong, newcombe, resampled, two_proportions, wilson
from hpcai.metrics.measures import areas
from hpcai.metrics.rows import Rows, read_rows
from hpcai.rundir import RunDir, append_lines

HALF = Threshold(0.5, "0.5", "val", 1)


def binary(label: list[int], score: list[float], patient: list[str] | None = None) -> Rows:
    s = np.array(score, float)
    case = [f"c{i}" for i in range(len(label))]
    return Rows(case, patient, np.array(label, np.int64), np.stack([1 - s, s], 1))


def cases(n: int, shift: float = 1.5, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    label = rng.random(n) < 0.4
    return label, 1 / (1 + np.exp(-rng.normal(size=n) - shift * label))


two_classes = st.lists(
    st.tuples(st.booleans(), st.sampled_from([0.0, 0.1, 0.25, 0.3, 0.5, 0.75, 0.9, 1.0]) | st.floats(0, 1)),
    min_size=2,
    max_size=80,
).filter(lambda rows: len({label for label, _ in rows}) == 2)


# --- AUC


@given(two_classes)
def test_auc_equals_scikit_learn_with_ties(rows: list[tuple[bool, float]]) -> None:
    label, score = np.array([r[0] for r in rows]), np.array([r[1] for r in rows])
    assert abs(auc(label, score) - roc_auc_score(label, score)) < 1e-12


@given(two_classes, st.randoms(use_true_random=False))
def test_weighted_auc_equals_auc_of_the_repeated_rows(rows: list[tuple[bool, float]], random: object) -> None:
    label, score = np.array([r[0] for r in rows]), np.array([r[1] for r in rows])
    weight = np.random.default_rng(random.randrange(2**32)).integers(0, 3, (4, len(rows)))  # type: ignore[attr-defined]
    for w, found in zip(weight, areas(label, score)(weight)[:, 0]):
        expected = auc(np.repeat(label, w), np.repeat(score, w))
        assert np.isnan(found) if np.isnan(expected) else abs(found - expected) < 1e-12


@given(two_classes)
def test_roc_equals_scikit_learn_and_its_area_is_the_auc(rows: list[tuple[bool, float]]) -> None:
    label, score = np.array([r[0] for r in rows]), np.array([r[1] for r in rows])
    fpr, tpr = roc(label, score)
    theirs = roc_curve(label, score, drop_intermediate=False)
    assert np.allclose(fpr, theirs[0]) and np.allclose(tpr, theirs[1])
    assert abs(np.trapezoid(tpr, fpr) - auc(label, score)) < 1e-9


def test_delong_variance_is_the_variance_of_placements_by_hand() -> None:
    # positives 3, 1; negatives 2, 0.  placements: 3 -> 1, 1 -> 0.5; 2 -> 0.5, 0 -> 1.  AUC 0.75
    # var = 0.125 / 2 + 0.125 / 2 = 0.125; on the logit scale se = sqrt(0.125) / (0.75 * 0.25)
    label, score = np.array([True, False, True, False]), np.array([3.0, 2.0, 1.0, 0.0])
    interval = delong(label, score)
    assert interval is not None
    half = norm.ppf(0.975) * 0.125**0.5 / (0.75 * 0.25)
    middle = np.log(3)
    assert np.allclose(interval, [1 / (1 + np.exp(half - middle)), 1 / (1 + np.exp(-half - middle))])


@given(two_classes)
def test_auc_interval_holds_its_value_and_stays_within_0_and_1(rows: list[tuple[bool, float]]) -> None:
    label, score = np.array([r[0] for r in rows]), np.array([r[1] for r in rows])
    e = auc_interval(label, score, "test")
    assert e.value is not None and e.low is not None and e.high is not None
    assert 0 <= e.low <= e.value <= e.high <= 1
    assert e.high - e.low > 0.005  # eighty cases never give a point


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_perfect_scores_still_have_an_interval_that_narrows_with_n(value: float) -> None:
    widths = []
    for n in (5, 50, 500):
        label = np.arange(2 * n) < n
        score = np.where(label, value, 1 - value)
        e = auc_interval(label, score, "test")
        assert e.value == value and "Newcombe" in e.method and value in (e.low, e.high)
        widths.append(e.high - e.low)
    assert 0.5 > widths[0] > widths[1] > widths[2] > 0


def test_newcombe_solves_its_own_equation() -> None:
    m, n, a = 40, 60, 0.9
    for t in newcombe(a, m, n):
        v = t * (1 - t) * (1 + ((m + n) / 2 - 1) * ((1 - t) / (2 - t) + t / (1 + t))) / (m * n)
        assert abs(abs(t - a) - norm.ppf(0.975) * v**0.5) < 1e-9


@pytest.mark.parametrize("patients", [False, True])
def test_auc_interval_holds_the_truth_about_95_times_of_100(patients: bool) -> None:
    truth = norm.cdf(1.5 / 2**0.5)
    rng = np.random.default_rng(1)
    runs, hits, blind = (150, 0, 0) if patients else (600, 0, 0)
    for _ in range(runs):
        label = np.repeat(rng.random(60) < 0.5, 3)
        person = np.repeat(rng.normal(size=60), 3) if patients else 0.0
        score = (rng.normal(size=180) if not patients else 0.4 * rng.normal(size=180)) + person + 1.5 * label
        if patients:
            truth = norm.cdf(1.5 / (2 * 1.16) ** 0.5)
        e = auc_interval(label, score, "test", [str(i // 3) for i in range(180)] if patients else None)
        hits += e.low <= truth <= e.high
        cases_alone = delong(label, score)
        blind += cases_alone[0] <= truth <= cases_alone[1]
    assert 0.91 <= hits / runs <= 0.985
    if patients:  # and cases taken as independent would have claimed too much
        assert blind / runs < 0.85


def test_one_class_gives_no_auc_but_says_why() -> None:
    e = auc_interval(np.ones(4, bool), np.arange(4.0), "test")
    assert (e.value, e.low, e.high, e.n) == (None, None, None, 4) and "one class" in e.method


# --- proportions


@pytest.mark.parametrize(
    ("k", "n", "low", "high"),
    [(0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605)],
)  # Newcombe 1998, doi 10.1002/(SICI)1097-0258(19980430)17:8<857::AID-SIM777>3.0.CO;2-E, table I, method 3
def test_wilson_equals_the_published_table(k: int, n: int, low: float, high: float) -> None:
    assert np.allclose(wilson(k, n), [low, high], atol=6e-5)


@given(st.integers(1, 10**6), st.data())
def test_wilson_holds_the_proportion_and_stays_within_0_and_1(n: int, data: st.DataObject) -> None:
    k = data.draw(st.integers(0, n))
    low, high = wilson(k, n)
    assert 0 <= low <= k / n <= high <= 1 and low < high


def test_two_proportions_of_pneumoniamnist_differ_and_equal_ones_do_not() -> None:
    theirs = chi2_contingency([[389, 524 - 389], [390, 624 - 390]], correction=False).pvalue
    assert two_proportions(389, 524, 390, 624) == pytest.approx(theirs) and theirs < 1e-4
    assert two_proportions(50, 100, 50, 100) == 1 and two_proportions(0, 9, 0, 7) == 1


# --- thresholds


@pytest.mark.parametrize("x", [0.0, 0.05, 0.5, 0.55, 0.8, 0.95, 1.0])
@given(rows=two_classes)
@settings(max_examples=30)
def test_sensitivity_rule_gives_the_highest_threshold_that_reaches_it(x: float, rows: list[tuple[bool, float]]) -> None:
    label, score = np.array([r[0] for r in rows]), np.array([r[1] for r in rows])
    t = choose_threshold(binary(label.tolist(), score.tolist()), f"sensitivity>={x}").value
    positives = score[label]
    assert (positives >= t).mean() >= x
    higher = (positives >= np.nextafter(t, 2)).mean()
    assert higher < x or higher == 0  # at least one positive is called so


@pytest.mark.parametrize("x", [0.0, 0.05, 0.5, 0.55, 0.8, 0.95, 1.0])
@given(rows=two_classes)
@settings(max_examples=30)
def test_specificity_rule_gives_the_lowest_threshold_that_reaches_it(x: float, rows: list[tuple[bool, float]]) -> None:
    label, score = np.array([r[0] for r in rows]), np.array([r[1] for r in rows])
    t = choose_threshold(binary(label.tolist(), score.tolist()), f"specificity>={x}").value
    negatives = score[~label]
    assert (negatives < t).mean() >= x
    lower = (negatives < np.nextafter(t, -1)).mean()
    assert lower < x or lower == 0


@given(two_classes)
def test_youden_is_the_best_of_all_thresholds(rows: list[tuple[bool, float]]) -> None:
    label, score = np.array([r[0] for r in rows]), np.array([r[1] for r in rows])
    t = choose_threshold(binary(label.tolist(), score.tolist()), "youden").value
    j = {s: (score[label] >= s).mean() + (score[~label] < s).mean() for s in sorted(set(score))}
    assert j[t] > max(j.values()) - 1e-12


def test_55_of_100_reaches_a_sensitivity_of_0_55() -> None:
    label, score = [1] * 100 + [0], [*np.linspace(0.99, 0.0, 100), 0.5]
    assert choose_threshold(binary(label, score), "sensitivity>=0.55").value == sorted(score[:100])[45]


def test_a_plain_number_is_the_threshold_and_a_score_at_it_is_positive() -> None:
    rows = binary([0, 1, 1], [0.49, 0.5, 0.51])
    t = choose_threshold(rows, "0.5")
    assert t == Threshold(0.5, "0.5", "val", 3)
    assert predicted(rows, t).tolist() == [0, 1, 1]


@pytest.mark.parametrize("rule", ["f1", "sensitivity>=high", "1.5", "nan", "-1", "", "youden>", "sensitivity>=2"])
def test_unknown_rule_is_a_config_error(rule: str) -> None:
    with pytest.raises(ConfigError, match=r"^task\.threshold="):
        choose_threshold(binary([0, 1], [0.1, 0.9]), rule)


@pytest.mark.parametrize(("label", "rule"), [(0, "sensitivity>=0.9"), (1, "specificity>=0.9"), (0, "youden"), (1, "youden")])
def test_a_rule_without_its_class_is_a_data_error(label: int, rule: str) -> None:
    with pytest.raises(DataError, match="holds no case of class"):
        choose_threshold(binary([label] * 3, [0.1, 0.2, 0.3]), rule)


# --- the table of estimates


def test_four_estimates_of_two_classes_by_hand() -> None:
    rows = binary([1, 1, 1, 0, 0], [0.9, 0.6, 0.2, 0.7, 0.1])  # called 1 1 0 1 0
    found = {e.name: e for e in estimates(rows, "test", HALF)}
    assert found["accuracy"].value == 3 / 5 and found["accuracy"].n == 5
    assert found["sensitivity"].value == 2 / 3 and found["sensitivity"].n == 3
    assert found["specificity"].value == 1 / 2 and found["specificity"].n == 2
    assert found["auc"].value == 4 / 6
    assert (found["sensitivity"].low, found["sensitivity"].high) == wilson(2, 3)
    assert (
        found["ppv"].value == 2 / 3 and found["npv"].value == 1 / 2 and found["balanced_accuracy"].value == (2 / 3 + 1 / 2) / 2
    )
    assert found["lr_positive"].value == pytest.approx((2 / 3) / (1 / 2)) and found["brier"].value == pytest.approx(1.31 / 5)
    noted = [e for e in found.values() if e.low is not None]
    assert all("cases taken as independent: too narrow if patients repeat" in e.method for e in noted) and len(noted) >= 10
    assert confusion(rows, HALF).tolist() == [[1, 1], [1, 2]]


def three_classes(n: int = 300) -> Rows:
    rng = np.random.default_rng(3)
    label = rng.integers(0, 3, n)
    score = rng.dirichlet([1, 1, 1], n) + 0.8 * np.eye(3)[label]
    return Rows([str(i) for i in range(n)], None, label, score / score.sum(1, keepdims=True))


def test_more_classes_equal_scikit_learn() -> None:
    rows = three_classes()
    found = {e.name: e for e in estimates(rows, "test", choose_threshold(rows, "sensitivity>=0.95"))}
    assert abs(found["macro_auc"].value - roc_auc_score(rows.label, rows.scores, multi_class="ovr")) < 1e-12
    assert found["macro_auc"].low < found["macro_auc"].value < found["macro_auc"].high
    matrix = confusion_matrix(rows.label, rows.scores.argmax(1))
    assert (confusion(rows, None) == matrix).all()
    assert found["sensitivity[2]"].value == matrix[2, 2] / matrix[2].sum()
    assert found["sensitivity[2]"].n == matrix[2].sum()
    assert "2000 resamples of cases" in found["macro_auc"].method


def test_a_class_that_never_occurs_is_left_out_and_told() -> None:
    rows = three_classes()
    keep = np.flatnonzero(rows.label < 2)
    few = Rows([rows.case[i] for i in keep], None, rows.label[keep], rows.scores[keep])
    found = {e.name: e for e in estimates(few, "test", None)}
    assert "2 of 3 classes occur" in found["macro_auc"].method
    assert found["sensitivity[2]"].value is None and found["sensitivity[2]"].n == 0


def test_more_classes_all_apart_still_have_an_interval() -> None:
    label = np.arange(30) % 3
    e = estimates(Rows([str(i) for i in range(30)], None, label, np.eye(3)[label]), "test", None)[0]
    assert e.value == 1 and e.low < 0.95 and e.high == 1


def test_repeated_patients_widen_every_interval_and_are_named() -> None:
    label, score = cases(60)
    label, score = np.repeat(label, 5), np.repeat(score, 5)
    alone = estimates(binary(label.tolist(), score.tolist()), "test", HALF)
    grouped = estimates(binary(label.tolist(), score.tolist(), [f"p{i // 5}" for i in range(300)]), "test", HALF)
    for a, g in zip(alone, grouped):
        assert a.value == pytest.approx(g.value)
        if a.name != "ece":
            assert "patients" in g.method and "independent" in a.method
            assert g.high - g.low > 1.5 * (a.high - a.low)


def test_repeated_patients_that_are_all_right_count_once_each() -> None:
    rows = binary([1] * 50 + [0] * 50, [0.9] * 50 + [0.1] * 50, [f"p{i // 10}" for i in range(100)])
    found = {e.name: e for e in estimates(rows, "test", HALF)}
    assert (found["sensitivity"].low, found["sensitivity"].high) == wilson(5, 5)
    assert found["auc"].low == newcombe(1.0, 5, 5)[0]


def test_patients_with_one_case_each_are_the_same_as_independent_cases() -> None:
    label, score = cases(80)
    lone = estimates(binary(label.tolist(), score.tolist()), "t", HALF)
    own = estimates(binary(label.tolist(), score.tolist(), [f"p{i}" for i in range(80)]), "t", HALF)
    for a, b in zip(lone, own):
        assert (a.low, a.high) == (b.low, b.high) and ("one case a patient" in b.method or b.name == "ece")


@pytest.mark.parametrize("name", ["patients", "classes"])
def test_the_order_of_the_rows_changes_no_number(name: str) -> None:
    label, score = cases(90)
    rows = (
        binary(label.tolist(), score.tolist(), [f"p{i % 30}" for i in range(90)]) if name == "patients" else three_classes(90)
    )
    order = np.random.default_rng(5).permutation(90)
    patient = rows.patient and [rows.patient[i] for i in order]
    other = Rows([rows.case[i] for i in order], patient, rows.label[order], rows.scores[order])
    assert estimates(rows, "t", HALF) == estimates(other, "t", HALF)


def test_one_class_only_gives_none_where_undefined_and_numbers_elsewhere() -> None:
    found = {e.name: e for e in estimates(binary([1, 1, 1], [0.2, 0.7, 0.8]), "test", HALF)}
    assert found["auc"].value is None and found["specificity"].value is None
    assert found["sensitivity"].value == found["accuracy"].value == 2 / 3


def test_unlabelled_rows_do_not_count() -> None:
    with_unknown = estimates(binary([1, -1, 0], [0.9, 0.3, 0.1]), "t", HALF)
    assert with_unknown == estimates(binary([1, 0], [0.9, 0.1]), "t", HALF)


def test_bootstrap_in_blocks_has_the_shape_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    label, score = cases(50)
    groups = np.array([str(i // 2) for i in range(50)])
    monkeypatch.setattr("hpcai.metrics.intervals.BLOCK", 50 * 7)
    seen: list[int] = []

    def statistic(weight: np.ndarray) -> np.ndarray:
        assert (weight.sum(1) == 50).all() and (weight[:, 0::2] == weight[:, 1::2]).all()  # patients stay whole
        seen.append(len(weight))
        return areas(label, score)(weight)

    assert resampled(statistic, groups).shape == (2000, 2)
    assert sum(seen) == 2000 and max(seen) == 7


# --- hostile rows


def test_no_rows_is_a_data_error() -> None:
    with pytest.raises(DataError, match="no case to score"):
        binary([], [])
    with pytest.raises(DataError, match="no case to score"):
        binary([-1, -1], [0.1, 0.2]).labelled()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_nan_scores_are_a_run_error_that_names_the_row_only(bad: float) -> None:
    with pytest.raises(RunError, match="1 of 3 rows hold NaN or infinity, the first is row 1") as e:
        binary([0, 1, 0], [0.1, bad, 0.2])
    assert "c1" not in str(e.value)


@pytest.mark.parametrize("label", [-2, 2])
def test_a_label_that_is_no_class_is_a_run_error(label: int) -> None:
    with pytest.raises(RunError, match="outside the 2 classes"):
        binary([0, label], [0.1, 0.2])


def test_columns_of_different_length_are_a_run_error() -> None:
    with pytest.raises(RunError, match="differ in length"):
        Rows(["a", "b"], None, np.zeros(1, np.int64), np.ones((2, 2)))


# --- shards


def row(case: str, score: float = 0.5, label: int | None = 1, patient: str | None = None) -> dict[str, object]:
    return {"case": case, "patient": patient, "label": label, "scores": [1 - score, score]}


def test_shards_merge_by_case_first_wins_in_the_order_of_cases(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "a 'quoted'\nrün")
    append_lines(run.rows_file("val", 10), [row("b", 0.9)])
    append_lines(run.rows_file("val", 2), [row("c"), row("b", 0.2), row("b", 0.3), row("a", label=None)])
    append_lines(run.rows_file("test", 0), [row("z")])
    rows = read_rows(run, "val")
    assert rows.case == ["a", "b", "c"] and rows.patient is None
    assert rows.scores[1].tolist() == [0.8, 0.2] and rows.label.tolist() == [-1, 1, 1]


def test_a_torn_last_line_does_not_count(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    append_lines(run.rows_file("val", 0), [row("a")])
    with run.rows_file("val", 0).open("a") as f:
        f.write('{"case": "b", "pat')
    assert read_rows(run, "val").case == ["a"]


def test_a_case_without_patient_stands_for_itself(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    append_lines(run.rows_file("val", 0), [row("a", patient="p"), row("b", patient="p"), row("c"), row("d")])
    patient = read_rows(run, "val").patient
    assert patient is not None and len(set(patient)) == 3


@pytest.mark.parametrize(
    "line",
    ["not json", "[]", "{}", '{"case": 5, "patient": null, "label": 0, "scores": [1, 0]}']
    + [json.dumps(row("secret") | change) for change in ({"scores": []}, {"scores": ["1"]}, {"label": "1"})]
    + [json.dumps(row("secret") | change) for change in ({"scores": None}, {"patient": 7}, {"label": True})],
)
def test_a_damaged_row_is_a_run_error_that_names_file_and_row_only(tmp_path: Path, line: str) -> None:
    run = RunDir(tmp_path)
    append_lines(run.rows_file("val", 0), [row("a")])
    with run.rows_file("val", 0).open("a") as f:
        f.write(line + "\n")
    with pytest.raises(RunError, match=r"^rows/val\.rank0\.jsonl: row 1 is damaged") as e:
        read_rows(run, "val")
    assert "secret" not in str(e.value)


def test_a_nan_in_a_shard_and_a_row_of_other_width_are_run_errors(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    run.rows.mkdir()
    run.rows_file("val", 0).write_text('{"case": "a", "patient": null, "label": 0, "scores": [NaN, 0.5]}\n')
    append_lines(run.rows_file("test", 0), [row("a"), row("b") | {"scores": [0.2, 0.3, 0.5]}])
    with pytest.raises(RunError, match="NaN"):
        read_rows(run, "val")
    with pytest.raises(RunError, match="number of scores"):
        read_rows(run, "test")


def test_a_split_without_rows_is_a_data_error(tmp_path: Path) -> None:
    with pytest.raises(DataError):
        read_rows(RunDir(tmp_path), "test")


def test_metrics_need_neither_torch_nor_scipy() -> None:
    code = (
        "import sys, hpcai.metrics.classification, hpcai.metrics.rows\n"
        "assert not {'torch', 'scipy', 'sklearn', 'matplotlib'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
