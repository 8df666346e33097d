"""tabular/: features fitted on training cases alone, calibrated probabilities, sets, reasons, and what the judged cases say."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.metrics import roc_curve

from hpcai.config.schema import Features
from hpcai.errors import DataError
from hpcai.models.estimators import Linear, Tree, Trees, softmax
from hpcai.tabular.features import Channels, fit_channels
from hpcai.tabular.judged import Outcome, at_sensitivity, by_class, numbers
from hpcai.tabular.model import Calibration, Conformal, Member, TableModel, calibrate, conform, explain, read_model

Floats = NDArray[np.float64]
NAN = float("nan")


def fitted(x: Any, label: Any = None, *, quiet: float = 0.0, **more: Any) -> Channels:
    x = np.array(x, float)
    names = [chr(97 + k) for k in range(x.shape[1])]
    return fit_channels(names, x, np.zeros(len(x), np.int64) if label is None else np.array(label), Features(**more), quiet)


# --- features


def test_values_are_scaled_cut_and_brought_nearer_to_normal() -> None:
    c = fitted([[1], [3]], clip=3, quiet=0.5, flags=False)  # mean 2, sd sqrt(2)
    root = np.sqrt(2)
    z = c.apply(["a"], np.array([[2 + root], [2 - 2 * root], [2 + 9 * root], [2 + 0.4 * root], [NAN]]))
    assert z.ravel().tolist() == pytest.approx([0.5, -1.5, 2.5, 0.0, 0.0])


def test_sides_part_high_from_low_and_flags_say_what_was_not_measured() -> None:
    c = fitted([[1, 5], [3, NAN], [2, 7]], sides=True)
    assert c.channels == ["a high", "b high", "a low", "b low", "b not measured"]
    root = np.sqrt(2)  # b: mean 6, sd sqrt(2); a: mean 2, sd 1
    z = c.apply(["a", "b"], np.array([[4, 6 - root], [0, NAN]]))
    assert z.tolist() == pytest.approx(np.array([[2, 0, 0, 1, 0], [0, 0, 2, 0, 1]], float))


def test_a_least_value_that_two_training_cases_hold_says_not_measured_there_and_elsewhere() -> None:
    c = fitted([[-3], [-3], [0], [2]], absent="minimum")
    assert c.floor == [-3.0] and c.channels == ["a", "a not measured"]
    z = c.apply(["a"], np.array([[-3], [-5], [1]]))  # mean 1 of 0 and 2
    assert z.tolist() == [[0.0, 1.0], [0.0, 1.0], [0.0, 0.0]]
    assert fitted([[-3], [-2], [0], [2]], absent="minimum").floor == [None]  # held by one alone
    assert fitted([[-3], [-3], [0], [2]]).floor == [None]


def test_a_monstrous_value_takes_its_feature_out_and_one_in_a_later_case_is_cut() -> None:
    c = fitted([[1, 0], [2, 2e15], [3, 0], [4, 1]], limit=1e3, clip=10)
    assert c.names == ["a"]
    assert abs(c.apply(["a", "b"], np.array([[2e15, 0.0]]))).max() == 10


def test_features_that_never_differ_or_were_never_measured_are_left_out() -> None:
    c = fitted([[1, 5, NAN, 0.1], [2, 5, NAN, 0.1], [3, 5, NAN, 0.1]])
    assert c.names == ["a"]
    with pytest.raises(DataError, match="no feature is left"):
        fitted([[5], [5]])


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.01, 100), st.floats(-100, 100))
def test_scaled_by_the_training_controls_the_units_of_a_table_do_not_matter(seed: int, factor: float, shift: float) -> None:
    """So z-scores made with all controls, those of a test fold too, teach nothing of them."""
    rng = np.random.default_rng(seed)
    x, label = rng.normal(size=(60, 3)), np.repeat([0, 1], 30)
    x[label == 1] *= 5
    first = fitted(x, label, scale="first", clip=10).apply(list("abc"), x)
    other = fitted(x * factor + shift, label, scale="first", clip=10).apply(list("abc"), x * factor + shift)
    np.testing.assert_allclose(first, other, atol=1e-6)
    assert first[label == 0].std(axis=0, ddof=1) == pytest.approx([1, 1, 1])


def test_too_few_measured_controls_leave_the_scale_to_all_cases() -> None:
    x = np.concatenate([np.linspace(0, 1, 19), np.linspace(0, 100, 30)])[:, None]
    few, label = fitted(x, [0] * 19 + [1] * 30, scale="first"), [0] * 20 + [1] * 29
    assert few.scale[0] == pytest.approx(x.std(ddof=1))
    assert fitted(x, label, scale="first").scale[0] == pytest.approx(x[:20].std(ddof=1))


def test_features_are_found_by_name_in_any_order_and_a_missing_one_is_named() -> None:
    c = fitted([[1, 10], [3, 30]])
    x = np.array([[2.0, 20.0, 7.0]])
    assert c.apply(["a", "b", "c"], x).tolist() == c.apply(["c", "b", "a"], x[:, ::-1]).tolist()
    with pytest.raises(DataError, match=r"^data\.path: lacks 1 of 2 features of the model, first `b`\. Did you mean bb\?$"):
        c.apply(["a", "bb"], x[:, :2])


# --- the model


def a_model(k: int = 3) -> TableModel:
    channels = Channels(names=["a", "b"], centre=[0.0, 0.0], scale=[1.0, 1.0], floor=[None, None], flagged=[])
    estimator = Linear(channels=2, intercept=[0.0, 0.0, -1.0][:k], weight=[[0.0, 0.0], [2.0, 0.0], [0.0, 3.0]][:k])
    return TableModel(
        labels=["healthy", "one", "two"][:k],
        channels=channels,
        members=[Member(quiet=0.0, slope=1.0, estimator=estimator)],
        calibration=Calibration(slope=0.5, prior=1.0, share=[0.5, 0.25, 0.25][:k]),
        conformal=Conformal(miscoverage=0.1, least=[0.3, 0.2, 0.2][:k]),
    )


def test_a_model_read_from_its_text_judges_alike_to_the_bit() -> None:
    model, x = a_model(), np.random.default_rng(0).normal(size=(50, 2))
    again = read_model(model.to_text().encode(), hashlib.sha256(model.to_text().encode()).hexdigest())
    for mine, theirs in zip(vars(model.judge(["a", "b"], x)).values(), vars(again.judge(["a", "b"], x)).values(), strict=True):
        np.testing.assert_array_equal(mine, theirs)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("labels",), ["a", "b"]), (("calibration", "slope"), -1.0), (("calibration", "share"), [1.0]), (("version",), 2),
        (("conformal", "least"), [0.1, 2.0, 0.1]), (("channels", "scale"), [1.0, 0.0]), (("channels", "flagged"), [2]),
        (("channels", "names"), ["a"]), (("members",), []), (("more",), 1),
    ],
)  # fmt: skip
def test_a_damaged_model_is_refused(path: tuple[str, ...], value: Any) -> None:
    whole: Any = json.loads(a_model().to_text())
    at = whole
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = value
    with pytest.raises(DataError, match=r"^table_model\.json: is damaged"):
        read_model(json.dumps(whole).encode())


def test_a_member_is_checked_like_an_estimator_alone() -> None:
    whole: Any = json.loads(a_model().to_text())
    for change in ({"kind": "pickle"}, {"channels": 3}, {"intercept": [0.0, 0.0]}):
        member = whole["members"][0] | {"estimator": whole["members"][0]["estimator"] | change}
        with pytest.raises(DataError, match=r"^table_model\.json: is damaged"):
            read_model(json.dumps(whole | {"members": [member]}).encode())


def test_the_mean_of_members_counts_each_by_its_slope_and_its_own_quiet() -> None:
    one = a_model(2)
    member = one.members[0]
    both = one.model_copy(update={"members": [member, member.model_copy(update={"quiet": 1.0, "slope": 3.0})]})
    views = both.views(["a", "b"], np.array([[1.5, 9.0]]))
    assert [v.tolist() for v in views] == [[[1.5, 9.0]], [[0.5, 8.0]]]
    assert both.logits(views).tolist() == [[0.0, (2 * 1.5 + 3 * 2 * 0.5) / 2]]
    told = explain(both, [v[0] for v in views])
    assert told["moved"][0] == {"channel": "a", "value": 1.5, "log_odds": 0.5 * 3.0}


def test_a_model_that_was_changed_is_refused_by_its_digest() -> None:
    with pytest.raises(DataError, match="is another one than model"):
        read_model(a_model().to_text().encode(), "0" * 64)


def test_calibration_finds_how_sure_the_logits_may_be() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(20_000, 3)) * 2
    label = np.array([rng.choice(3, p=p) for p in softmax(logits)])
    assert calibrate(4 * logits, label, weighted=False).slope == pytest.approx(0.25, rel=0.05)
    assert calibrate(logits, label, weighted=False).prior == 0


def test_calibration_of_equal_shares_brings_the_shares_back() -> None:
    rng = np.random.default_rng(1)
    share = np.array([0.8, 0.15, 0.05])
    logits = rng.normal(size=(30_000, 3)) * 1.5
    label = np.array([rng.choice(3, p=p) for p in softmax(logits + np.log(share))])
    found = calibrate(logits, label, weighted=True)
    p = found.probabilities(logits)
    assert p.mean(0) == pytest.approx(np.bincount(label) / len(label), abs=0.02)  # one number for three shares: near, not equal


def test_conformal_limits_are_the_kth_smallest_of_each_group() -> None:
    own = np.array([0.5, 0.1, 0.9, 0.7, 0.3, 0.2, 0.8, 0.6, 0.4])  # of 9 cases k = floor(0.2 * 10) = 2: 0.2
    p = np.stack([own, 1 - own], axis=1)
    few = conform(np.concatenate([p, p[:3, ::-1]]), np.array([0] * 9 + [1] * 3), 0.2)
    assert few.least == [0.2, 0.0]  # 3 cases: k = 0, in the set always


def test_conformal_sets_hold_the_right_class_as_often_as_promised() -> None:
    rng = np.random.default_rng(2)
    missed = []
    for _ in range(200):
        label = rng.integers(0, 3, 120)
        p = softmax(rng.normal(size=(120, 3)) + 1.5 * np.eye(3)[label])
        limits = conform(p[:60], label[:60], 0.1)
        held = limits.sets(p[60:])[np.arange(60), label[60:]]
        missed.append([1 - held[label[60:] == 0].mean(), 1 - held[label[60:] > 0].mean()])
    assert (np.mean(missed, axis=0) < 0.11).all() and (np.mean(missed, axis=0) > 0.03).all()


# --- reasons


def test_reasons_of_a_linear_estimator_are_weights_times_values_and_normal_ones_change_the_class() -> None:
    told = explain(a_model(), [np.array([3.0, 1.0])])
    # logits 0, 6, 2, with log shares: `one` leads. Against `two`: slope * (2 * 3) for a, slope * (-3 * 1) for b
    assert (told["likeliest"], told["second"]) == ("one", "two")
    assert [(m["channel"], m["value"], m["log_odds"]) for m in told["moved"]] == [("a", 3.0, 3.0), ("b", 1.0, -1.5)]
    # a normal: half of (0, 0, 2) and log shares: healthy log 0.5, two 1 + log 0.25: two
    assert (told["normal"], told["then"]) == (["a"], "two")


def test_a_case_with_nothing_out_of_the_ordinary_has_no_reasons() -> None:
    told = explain(a_model(), [np.zeros(2)])
    assert told["likeliest"] == "healthy" and told["moved"] == [] and told["normal"] == [] and told["then"] is None


def test_reasons_of_trees_say_what_a_normal_channel_would_have_changed() -> None:
    stump = Tree(channel=[1, -2, -2], threshold=[0.5, -2.0, -2.0], left=[1, -1, -1], right=[2, -1, -1], value=[0.0, -1.0, 1.0])
    model = a_model(2).model_copy(
        update={
            "members": [
                Member(quiet=0.0, slope=1.0, estimator=Trees(channels=2, initial=[0.0, 0.0], rate=4.0, stages=[[stump]]))
            ]
        }
    )
    told = explain(model, [np.array([5.0, 2.0])])  # logit 4 with b at 2, -4 with b at 0; slope 1/2
    assert told["moved"] == [{"channel": "b", "value": 2.0, "log_odds": 4.0}]
    assert (told["likeliest"], told["normal"], told["then"]) == ("one", ["b"], "healthy")


# --- what the judged cases say


def outcome(ranked: Any, label: Any, group: Any = None, in_set: Any = None, flagged: Any = None) -> Outcome:
    ranked, label = np.array(ranked, float), np.array(label)
    n = len(label)
    return Outcome(
        label=label,
        probability=ranked,
        ranked=ranked,
        in_set=ranked >= 0.3 if in_set is None else np.array(in_set),
        flagged=np.zeros(n, bool) if flagged is None else np.array(flagged),
        group=np.arange(n) if group is None else np.array(group),
        split="oof",
    )


def test_numbers_by_hand() -> None:
    o = outcome(
        [[0.6, 0.3, 0.05, 0.05], [0.1, 0.2, 0.3, 0.4], [0.2, 0.5, 0.2, 0.1], [0.35, 0.4, 0.2, 0.05], [0.5, 0.2, 0.2, 0.1]],
        [0, 1, 1, 2, 3],
        flagged=[False, True, True, True, False],
    )
    got = {e.name: e for e in numbers(o, 0.75)}
    assert got["top1"].value == 0.25 and got["top1"].n == 4  # the third case
    assert got["top3"].value == 0.75  # the last has its class fourth
    # 1 - P(first): patients .9 .8 .65 .5; three of four reach .65; the control has .4
    assert got["specificity_at_sensitivity"].value == 1.0 and got["specificity_at_sensitivity"].n == 1
    assert got["sensitivity_as_set"].value == 0.75 and got["specificity_as_set"].value == 1.0
    # sets of .3 and more: {0, 1} {2, 3} {1} {0, 1} {0}
    assert got["coverage_controls"].value == 1.0 and got["coverage_patients"].value == 0.25
    assert got["answered"].value == 0.4 and got["right_where_answered"].value == 0.5
    rows = by_class(o, ["a", "b", "c", "d"])
    assert [(r["label"], r["n"], r["top1"]["value"], r["set_size"]) for r in rows] == [
        ("a", 1, 1.0, 2.0), ("b", 2, 0.5, 1.5), ("c", 1, 0.0, 2.0), ("d", 1, 0.0, 1.0),
    ]  # fmt: skip


def test_intervals_count_near_duplicates_as_one() -> None:
    rng = np.random.default_rng(0)
    label = np.repeat([0, 1], 60)
    ranked = softmax(rng.normal(size=(120, 2)) + np.eye(2)[label])
    apart = {e.name: e for e in numbers(outcome(ranked, label), 0.9)}
    twice = np.concatenate([ranked, ranked])
    both = {e.name: e for e in numbers(outcome(twice, np.tile(label, 2), group=np.tile(np.arange(120), 2)), 0.9)}
    for name in ("top1", "specificity_at_sensitivity"):
        assert both[name].value == apart[name].value
        widths = [e[name].high - e[name].low for e in (apart, both)]  # type: ignore[operator]
        assert widths[1] == pytest.approx(widths[0], rel=0.25)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 6)), min_size=2, max_size=40), st.sampled_from([0.5, 0.8, 0.98, 1.0]))
def test_specificity_at_a_sensitivity_is_that_of_scikit_learns_roc(cases: list[tuple[bool, int]], level: float) -> None:
    positive, score = np.array([p for p, _ in cases]), np.array([s / 6 for _, s in cases])
    if positive.all() or not positive.any():
        return
    false, true, _ = roc_curve(positive, score, drop_intermediate=False)
    expected = 1 - false[np.flatnonzero(true >= level - 1e-9)[0]]
    weight = np.ones((1, len(cases)), np.int64)
    assert at_sensitivity(score, positive, level)(weight)[0] == pytest.approx(expected)
    doubled = np.concatenate([weight, 2 * weight])
    assert at_sensitivity(score, positive, level)(doubled).tolist() == pytest.approx([expected] * 2)
