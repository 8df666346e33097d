"""judge.py: a batch is judged by itself, by what was counted of the whole cohort."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import cohort_kit as kit
import numpy as np
import pytest

from hpcai.book import shelf
from hpcai.config.schema import Screening
from hpcai.screening.batch import Batch
from hpcai.screening.controls import Broken, PlateVerdict
from hpcai.screening.decisions import CLEAR, NOT_ASSESSABLE, PLATE_FAILED, PLATE_GOOD, PLATE_UNKNOWN, REASONS
from hpcai.screening.judge import Judge
from hpcai.screening.model import ScreeningModel
from hpcai.screening.plates import PlateShift
from hpcai.screening.survey import Survey
from hpcai.screening.teaching import rows_of


@pytest.fixture(scope="module")
def batch() -> Batch:
    return kit.batch_of(kit.simulation(5, 0.004, laboratories=["A", "B"]).block(0).head(1200))


@pytest.fixture(scope="module")
def judge(batch: Batch) -> Judge:
    known = shelf.books(Screening())
    survey = Survey(known.dictionary)
    survey.add(batch)
    shifts = PlateShift(survey, survey.references())
    shifts.add(batch)
    return Judge(known, kit.model(), survey.references(), {}, shifts)


def places(*laboratories: str, plates: tuple[str, ...] = (), months: tuple[str, ...] = ()) -> Batch:
    n = len(laboratories)
    text = {"laboratory": np.array(laboratories), "plate": np.array(plates or ("p",) * n)}
    text |= {"month": np.array(months)} if months else {}
    return Batch(np.arange(n) + 2, np.array(["s"] * n), np.full((n, 39), np.nan), text=text)


def verdict(word: str) -> Any:
    return SimpleNamespace(verdict=word)


def test_a_row_is_judged_the_same_whoever_stands_beside_it(judge: Judge, batch: Batch) -> None:
    whole = judge(batch)
    for part in (np.arange(0, 1200, 7), np.array([3]), np.arange(600, 700)):
        alone = judge(rows_of(batch, part))
        assert np.array_equal(alone.decisions.code_ND, whole.decisions.code_ND[part])
        assert np.array_equal(alone.decisions.reason_ND, whole.decisions.reason_ND[part])
        assert alone.scores and whole.scores
        np.testing.assert_allclose(alone.scores.logit_ND, whole.scores.logit_ND[part], rtol=0, atol=1e-10)
        np.testing.assert_array_equal(alone.multiple_NC, whole.multiple_NC[part])


def test_most_affected_newborns_are_not_called_clear(judge: Judge, batch: Batch) -> None:
    names, made = judge.books.panel.names, judge(batch).decisions
    own = [(i, names.index(d)) for i, d in enumerate(batch.text["diagnosis"].tolist()) if d]
    codes = np.array([made.code_ND[i, d] for i, d in own])
    assert len(own) > 50 and (codes != CLEAR).mean() > 0.8


def test_a_laboratory_or_a_month_that_does_not_fit_silences_the_model(judge: Judge) -> None:
    fits = {("A", ""): verdict("fits"), ("A", "2026-02"): verdict("not_valid"), ("B", ""): verdict("not_valid"),
            ("B", "2026-01"): verdict("fits"), ("C", ""): verdict("corrected")}  # fmt: skip
    some = places("A", "A", "B", "C", "D", months=("2026-01", "2026-02", "2026-01", "2026-01", "2026-01"))
    found = replace(judge, fits=fits)
    assert found.fits_N(some).tolist() == [True, False, False, True, True]
    assert set(found.notes) == {("A", "2026-02"), ("B", ""), ("C", "")}
    assert found.fits_N(places("A", "B")).tolist() == [True, False]  # a table without months


def test_a_newborn_without_a_marker_is_not_cleared_by_a_model_that_lives_on_it(judge: Judge, batch: Batch) -> None:
    """No rule set has CACT/CPT2. C0 is none of what it `needs`, but half of its cases are found by C0/C16 and C0/C18."""
    names = judge.books.panel.names
    d, a = names.index("CACT/CPT2"), [x.name for x in judge.books.dictionary.analytes].index("C0")
    some = rows_of(batch, np.arange(300))
    whole = judge(some)
    some.x_NA[:, a] = np.nan
    made = judge(some).decisions
    clear = whole.decisions.code_ND[:, d] == CLEAR
    unsaid = clear & (made.code_ND[:, d] == NOT_ASSESSABLE)  # few lie so far below that C0 could not lift them
    assert clear.sum() > 200 and unsaid.sum() > 0.95 * clear.sum()
    assert {REASONS[r] for r in made.reason_ND[unsaid, d]} == {"model cannot be said: analyte missing"}
    assert not made.heard_ND[unsaid, d].any()
    other = names.index("TYR1")  # which lives on none of carnitine's
    assert np.array_equal(made.code_ND[:, other], whole.decisions.code_ND[:, other])


def test_where_a_laboratory_has_no_median_of_a_marker_the_model_is_not_heard(judge: Judge, batch: Batch) -> None:
    """SUAC was measured in too few newborns for a median: each has a value, and the model would see a middling one."""
    names = judge.books.panel.names
    a = [c for c, name in enumerate(judge.books.dictionary.channels) if "SUAC" in name]
    few = {
        name: replace(r, median_C=r.median_C.copy(), scale_C=r.scale_C.copy(), months={})
        for name, r in judge.references.items()
    }
    for reference in few.values():
        reference.median_C[a] = reference.scale_C[a] = np.nan
    here = replace(judge, references=few)
    made = here(rows_of(batch, np.arange(300))).decisions
    assert not made.heard_ND[:, names.index("TYR1")].any() and made.heard_ND[:, names.index("MCAD")].any()
    assert (made.code_ND[:, names.index("TYR1")] == CLEAR).any()  # Heidelberg's rule still reads the value


def test_rules_alone_decide_where_the_model_is_not_heard(judge: Judge, batch: Batch) -> None:
    some = rows_of(batch, np.arange(200))
    fits = {(name, ""): verdict("not_valid") for name in judge.references}
    made, bare = replace(judge, fits=fits)(some), replace(judge, model=None)(some)
    assert not made.decisions.heard_ND.any() and bare.scores is None
    assert np.array_equal(made.decisions.code_ND, bare.decisions.code_ND)
    assert "neither a rule nor the model judges it" in {REASONS[r] for r in np.unique(bare.decisions.reason_ND)}


def test_a_plate_is_judged_by_its_laboratorys_controls_and_unknown_without_any(judge: Judge) -> None:
    controls = {
        ("A", "p1"): PlateVerdict(True, [Broken("Phe", "low", "1_2s")], 4),
        ("A", "p2"): PlateVerdict(False, [Broken("Phe", "low", "1_3s")], 4, "rejected"),
        ("B", "p1"): PlateVerdict(False, [Broken("Phe", "low", "1_2s")], 1, "too few controls"),
    }
    some = places("A", "A", "B", "B", plates=("p1", "p2", "p1", "p2"))
    careful = replace(judge, plates=controls, per_plate=4)
    found = careful.plates_N(some)
    assert careful.plate_notes == {("A", "p2"): "rejected", ("B", "p1"): "too few controls"}
    assert found is not None and found.tolist() == [PLATE_GOOD, PLATE_FAILED, PLATE_UNKNOWN, PLATE_UNKNOWN]
    assert judge.plates_N(some) is None


def test_nothing_of_a_failed_plate_is_assessable(judge: Judge, batch: Batch) -> None:
    laboratory, plate = batch.text["laboratory"], batch.text["plate"]
    names = set(zip(laboratory.tolist(), plate.tolist(), strict=True))
    failed = sorted(names)[0]
    controls = {
        name: PlateVerdict(name != failed, [Broken("C8", "low", "1_3s")] if name == failed else [], 4) for name in names
    }
    made = replace(judge, plates=controls)(batch).decisions
    here = (laboratory == failed[0]) & (plate == failed[1])
    assert (made.code_ND[here] == NOT_ASSESSABLE).all() and (made.code_ND[~here].max(axis=1) > NOT_ASSESSABLE).any()
    assert {REASONS[r] for r in np.unique(made.reason_ND[here])} == {"plate failed its controls"}


def test_a_model_of_fewer_diseases_is_read_in_the_panels_order(judge: Judge, batch: Batch) -> None:
    some = rows_of(batch, np.arange(50))
    whole = judge(some)
    fewer = ScreeningModel.model_validate(
        kit.model().model_dump() | {"detectors": kit.model().model_dump()["detectors"][8:3:-1]}
    )
    part = replace(judge, model=fewer)(some)
    assert part.scores and whole.scores
    np.testing.assert_allclose(part.scores.logit_ND[:, 4:9], whole.scores.logit_ND[:, 4:9], rtol=0, atol=1e-12)
    outside = np.delete(np.arange(18), np.arange(4, 9))
    assert np.isnan(part.scores.logit_ND[:, outside]).all() and not part.scores.called_ND[:, outside].any()
    assert not part.decisions.heard_ND[:, outside].any()


def test_a_classical_pattern_is_referred_by_rule(judge: Judge, batch: Batch) -> None:
    healthy = next(i for i in range(len(batch)) if not judge(rows_of(batch, np.array([i]))).decisions.code_ND.any())
    one = rows_of(batch, np.array([healthy, healthy]))
    at = {a.name: k for k, a in enumerate(judge.books.dictionary.analytes)}
    one.x_NA[1, [at["C8"], at["C6"]]] *= 60  # medium-chain acyl-CoA dehydrogenase deficiency shows in C8
    made, names = judge(one).decisions, judge.books.panel.names
    assert not made.code_ND[0].any()
    assert REASONS[made.reason_ND[1, names.index("MCAD")]] in ("rule positive", "rule and model positive")
