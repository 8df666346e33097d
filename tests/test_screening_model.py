"""screening/model.py: scores, reasons, counterfactuals, and a file that is checked before it is believed."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from hpcai.errors import DataError
from hpcai.metrics.logistic import expit
from hpcai.screening.estimators import Logistic, fit_boosting
from hpcai.screening.model import Calibration, Change, Conformal, Detector, ScreeningModel, Threshold, read_model

CHANNELS = ["Phe", "Tyr", "C8", "Phe/Tyr"]
SCALE = [0.25, 0.4, 0.3, 0.5]  # natural-log units of one z


@dataclass
class Seen:
    """What a model reads of features."""

    z_NC: NDArray[np.float64]
    gone: tuple[int, ...] = ()  # channels that are missing in all rows

    @property
    def missing_NC(self) -> NDArray[np.bool_]:
        """(n, C)."""
        return np.tile(np.isin(np.arange(self.z_NC.shape[1]), self.gone), (len(self.z_NC), 1))


def detector(disease: str, estimator: Any, **changed: Any) -> Detector:
    parts: dict[str, Any] = {
        "calibration": Calibration(intercept=0.5, slope=2.0, shift=-4.0, n_affected=50, n_unaffected=950),
        "threshold": Threshold(value=1.0, rule="sensitivity>=0.9", sensitivity=0.9, low=0.8, high=0.97, n=50),
        "conformal": Conformal(miscoverage=0.1, affected=0.0, unaffected=2.0, n_affected=50, n_unaffected=950),
    }
    return Detector(disease=disease, estimator=estimator, chosen={"penalty": 0.1}, **(parts | changed))


def model(*detectors: Detector, **changed: Any) -> ScreeningModel:
    facts: dict[str, Any] = {
        "simulated": True, "dictionary": "d", "dictionary_digest": "0" * 64, "panel": "p", "panel_digest": "1" * 64,
        "channels": CHANNELS, "scale": SCALE, "adjustment": {}, "survey": {}, "detectors": list(detectors) or [PKU],
    }  # fmt: skip
    return ScreeningModel(**(facts | changed))


PKU = detector("PKU", Logistic(intercept=-1.0, coef=[0.8, -0.2, 0.0, 0.6]))
MCAD = detector("MCAD", Logistic(intercept=-2.0, coef=[0.0, 0.0, 1.5, 0.0]))


def boosted() -> Detector:
    rng = np.random.default_rng(0)
    z = rng.normal(size=(400, 4))
    return detector("VLCAD", fit_boosting(z, z[:, 2] + z[:, 3] > 2, trees=15, depth=3, rate=0.2, seed=0))


def test_a_logit_is_calibrated_and_moved_to_the_incidence() -> None:
    z = np.array([[1.0, 2.0, 0.0, 3.0]])
    # raw: -1 + .8 - .4 + 1.8 = 1.2; calibrated: .5 + 2 x 1.2 - 4 = -1.1
    scores = model().score(Seen(z))
    assert scores.logit_ND[0, 0] == pytest.approx(-1.1)
    assert scores.probability_ND[0, 0] == pytest.approx(expit(np.array(-1.1)))
    assert not scores.called_ND[0, 0] and not scores.uncertain_ND[0, 0]


def test_linear_and_boosted_detectors_keep_the_order_of_diseases() -> None:
    z = np.random.default_rng(1).normal(size=(200, 4))
    tree = boosted()
    mixed, alone = model(PKU, tree, MCAD), [model(d) for d in (PKU, tree, MCAD)]
    assert np.allclose(mixed.logits(z), np.hstack([m.logits(z) for m in alone]), atol=1e-12)
    assert mixed.diseases == ["PKU", "VLCAD", "MCAD"]


def test_at_the_threshold_a_newborn_is_called_and_between_the_limits_it_is_uncertain() -> None:
    flat = detector("X", Logistic(intercept=0.0, coef=[1.0, 0.0, 0.0, 0.0]),
                    calibration=Calibration(intercept=0.0, slope=1.0, shift=0.0, n_affected=1, n_unaffected=1))  # fmt: skip
    z = np.zeros((5, 4))
    z[:, 0] = [-0.5, 0.0, 1.0, 2.0, 2.5]
    scores = model(flat).score(Seen(z))
    assert scores.called_ND[:, 0].tolist() == [False, False, True, True, True]
    assert scores.uncertain_ND[:, 0].tolist() == [False, True, True, True, False]
    assert flat.sets(z[:, 0]).tolist() == [[True, False], [True, True], [True, True], [True, True], [False, True]]


def test_an_empty_set_is_filled_with_the_nearer_class() -> None:
    apart = detector("X", PKU.estimator, conformal=Conformal(miscoverage=0.1, affected=4.0, unaffected=0.0, n_affected=9,
                                                             n_unaffected=99))  # fmt: skip
    assert apart.sets(np.array([0.0, 1.9, 2.1, 4.0])).tolist() == [[True, False], [True, False], [False, True], [False, True]]


def test_too_few_newborns_for_a_limit_make_nobody_uncertain() -> None:
    few = detector("X", PKU.estimator, conformal=Conformal(miscoverage=0.1, affected=None, unaffected=5.0, n_affected=3,
                                                           n_unaffected=99))  # fmt: skip
    assert not model(few).score(Seen(np.random.default_rng(0).normal(size=(50, 4)))).uncertain_ND.any()


def test_silence_is_open_where_what_is_missing_could_bring_a_call_and_settled_where_it_could_not() -> None:
    """A median newborn: .5 + 2 x -1 - 4 = -5.5; it is no longer silent from 0 on, where the conformal set holds both.

    Ten sd of Phe and Phe/Tyr lift it by 2 x 10 x (.8 + .6) = 28, of Tyr by 2 x 10 x .2 = 4, of C8 by nothing.
    """
    median, found = np.zeros((1, 4)), {}
    for gone in ((), (0, 3), (1,), (2,)):
        scores = model().score(Seen(median, gone))
        assert scores.logit_ND[0, 0] == pytest.approx(-5.5) and not scores.called_ND[0, 0]
        found[gone] = bool(scores.open_ND[0, 0])
    assert found == {(): False, (0, 3): True, (1,): False, (2,): False}
    nearer = np.array([[1.0, 0.0, 0.0, 0.0]])  # -5.5 + 2 x .8 = -3.9: Tyr could bring it to .1
    assert model().score(Seen(nearer, (1,))).open_ND[0, 0]
    far = np.array([[6.0, 0.0, 0.0, 0.0]])  # 4.1 is called, whatever is missing
    assert model().score(Seen(far, (1, 3))).called_ND[0, 0] and not model().score(Seen(far, (1, 3))).open_ND[0, 0]
    assert model().blind(np.array([True, False, False, True])).tolist() == [True]
    assert model().blind(np.array([False, True, True, False])).tolist() == [False]


def test_a_model_reads_the_channels_of_all_its_detectors_and_no_other() -> None:
    assert model().reads == ["Phe", "Tyr", "Phe/Tyr"] and model(PKU, MCAD).reads == CHANNELS
    assert set(model(boosted()).reads) >= {"C8", "Phe/Tyr"}  # the two that make its label


def test_a_tree_without_a_channel_that_it_reads_settles_nothing() -> None:
    tree = model(boosted())
    low = np.full((1, 4), -3.0)
    assert not tree.score(Seen(low)).open_ND[0, 0]
    assert tree.score(Seen(np.where(np.arange(4) == 2, 0.0, low), (2,))).open_ND[0, 0]


# ---- why


@given(z=st.lists(st.floats(-8, 8), min_size=4, max_size=4))
def test_contributions_of_a_linear_detector_sum_to_what_it_says(z: list[float]) -> None:
    it, row = model(), np.array(z)
    found = it.contributions(row, "PKU")
    assert sum(c for _, c in found) == pytest.approx(it.logits(row[None])[0, 0] - it.logits(np.zeros((1, 4)))[0, 0], abs=1e-6)
    assert [abs(c) for _, c in found] == sorted((abs(c) for _, c in found), reverse=True)


def test_a_contribution_of_trees_is_what_the_logit_would_lose() -> None:
    it, row = model(boosted()), np.array([0.3, 0.0, 2.5, 1.5])
    for name, lost in it.contributions(row, "VLCAD"):
        without = row.copy()
        without[CHANNELS.index(name)] = 0
        assert lost == pytest.approx(float(it.logits(row[None])[0, 0] - it.logits(without[None])[0, 0]))


def moved(row: NDArray[np.float64], changes: list[Change], by: float = 1.0) -> NDArray[np.float64]:
    """`row` with analytes times their factors (to the power `by`), ratios with them: in logs, over the channel's scale."""
    log = {change.analyte: by * np.log(change.factor) for change in changes}
    phe, tyr, c8 = (log.get(name, 0.0) for name in CHANNELS[:3])
    return row + np.array([phe, tyr, c8, phe - tyr]) / SCALE


@settings(max_examples=40, deadline=None)
@given(z=st.lists(st.floats(-6, 6), min_size=4, max_size=4), disease=st.sampled_from(["PKU", "MCAD"]))
def test_a_counterfactual_changes_the_call_and_half_of_it_less(z: list[float], disease: str) -> None:
    it, row = model(PKU, MCAD), np.array(z)
    k = it.diseases.index(disease)
    called = it.score(Seen(row[None])).called_ND[0, k]
    changes = it.counterfactual(row, disease)
    assert 1 <= len(changes) <= 2
    assert it.score(Seen(moved(row, changes)[None])).called_ND[0, k] != called
    step = np.log(32) / 64  # of the grid: one step less does not change it
    less = [Change(c.analyte, float(np.exp(np.log(c.factor) - np.sign(np.log(c.factor)) * step))) for c in changes]
    assert it.score(Seen(moved(row, less)[None])).called_ND[0, k] == called


def test_the_smallest_change_of_one_analyte_is_told() -> None:
    # Phe moves z of Phe by 4 and of Phe/Tyr by 2 a natural log: raw .8 x 4 + .6 x 2 = 4.4, logit 8.8. At 0 the logit is -5.5,
    # the threshold 1: 6.5 / 8.8 = .739, so 2.09 times Phe; the grid's next factor is exp(14 x ln 32 / 64) = 2.134
    (change,) = model().counterfactual(np.zeros(4), "PKU")
    assert change.analyte == "Phe" and change.factor == pytest.approx(np.exp(14 * np.log(32) / 64))


def test_where_one_analyte_is_not_enough_two_are_told() -> None:
    weak = detector("X", Logistic(intercept=0.0, coef=[0.1, 0.0, 0.1, 0.0]),
                    calibration=Calibration(intercept=0.0, slope=1.0, shift=-2.0, n_affected=1, n_unaffected=1))  # fmt: skip
    # It needs 3. ln 32 = 3.47 gives Phe .1 x 4 x 3.47 = 1.39, C8 .1 x 3.33 x 3.47 = 1.16: 2.54; from z = 5 it needs 2.5
    row = np.array([5.0, 0.0, 0.0, 0.0])
    found = model(weak).counterfactual(row, "X")
    assert [c.analyte for c in found] == ["Phe", "C8"]
    assert model(weak).counterfactual(np.zeros(4), "X") == []


def test_an_unknown_disease_is_named_with_its_nearest() -> None:
    with pytest.raises(DataError, match="Did you mean PKU"):
        model().contributions(np.zeros(4), "PKUU")


# ---- the file


def test_equal_models_give_equal_bytes_and_come_back_as_they_were(tmp_path: Path) -> None:
    it = model(PKU, boosted())
    (tmp_path / "m.json").write_text(it.to_json())
    again = read_model(tmp_path / "m.json", "0" * 64)
    assert again.to_json() == it.to_json() and again.digest == it.digest
    z = np.random.default_rng(0).normal(size=(50, 4))
    assert np.array_equal(again.logits(z), it.logits(z))


def test_a_model_of_another_dictionary_is_refused(tmp_path: Path) -> None:
    (tmp_path / "m.json").write_text(model().to_json())
    with pytest.raises(DataError, match=r"another dictionary than screening\.analytes") as fault:
        read_model(tmp_path / "m.json", "f" * 64)
    assert fault.value.code == 4


def test_no_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"model=m\.json: cannot be read"):
        read_model(tmp_path / "m.json")


HOSTILE: list[tuple[str, Any]] = [
    ("channels", ["Phe", "Tyr", "C8", "Phe"]), ("channels", ["Phe"]), ("scale", [1.0, 1.0, 1.0, 0.0]), ("scale", [1.0]),
    ("scale", [1.0, 1.0, 1.0, float("nan")]), ("detectors", []), ("format", "hpcai screening model 2"), ("code", "import os"),
    ("simulated", "yes"), ("dictionary", "a\nb"),
]  # fmt: skip


@pytest.mark.parametrize(("key", "value"), HOSTILE)
def test_a_damaged_model_is_refused_without_citing_it(tmp_path: Path, key: str, value: Any) -> None:
    whole = json.loads(model().to_json())
    (tmp_path / "m.json").write_text(json.dumps(whole | {key: value}))
    with pytest.raises(DataError, match="damaged at") as fault:
        read_model(tmp_path / "m.json")
    assert "import os" not in str(fault.value)


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, "null", '{"format": 1}', "\x00\x01", model().to_json()[:-40]])
def test_bytes_that_are_no_model_are_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "m.json").write_text(text)
    with pytest.raises(DataError, match="damaged at"):
        read_model(tmp_path / "m.json")


def test_a_disease_twice_or_an_estimator_of_other_channels_is_refused() -> None:
    with pytest.raises(ValueError, match="stands twice"):
        model(PKU, PKU)
    with pytest.raises(ValueError, match="another number of channels"):
        model(detector("X", Logistic(intercept=0.0, coef=[1.0])))


def test_thresholds_are_told_with_the_interval_of_their_sensitivity() -> None:
    (told,) = model().thresholds
    assert (told["disease"], told["value"], told["rule"]) == ("PKU", 1.0, "sensitivity>=0.9")
    assert {k: told["sensitivity"][k] for k in ("value", "low", "high", "n")} == {
        "value": 0.9,
        "low": 0.8,
        "high": 0.97,
        "n": 50,
    }
