"""A simulated cohort: what is promised of its numbers, by counting them; of its file, by reading it back; of hpcai simulate."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from pydantic import ValidationError

from hpcai import simulate
from hpcai.book import shelf
from hpcai.book.analytes import Dictionary
from hpcai.book.diseases import Diseases
from hpcai.book.simulation import Laboratory, SimulationBook
from hpcai.errors import ConfigError, Faults, PlanError
from hpcai.screening.rules import by_disease, verdicts
from hpcai.screening.simulate import Simulation, hashed, is_simulated, rounded
from hpcai.screening.simulated import HOSTILE, newborns, simulation_of

ROOT = Path(__file__).parent.parent
SHIPPED = ROOT / "src" / "hpcai" / "shipped" / "nbs_simulated"
PLAIN = Laboratory(
    name="plain", share=1, split="train", tail="lognormal", shift_ln=0, spread_ln=0, mixing=0, drift_ln=0
)  # as the book's distributions are


@pytest.fixture(scope="module")
def book() -> SimulationBook:
    return shelf.read("simulation", "nbs", SimulationBook)


@pytest.fixture(scope="module")
def quiet(book: SimulationBook) -> SimulationBook:
    """Without states, slopes and plates: only the distributions are left."""
    plates = book.plates.model_copy(update={"sd_ln": 0.0, "failed": 0.0})
    few = book.newborns.model_copy(update={"twin": 0.0, "missing": 0.0})
    return book.model_copy(update={"states": [], "slopes": [], "plates": plates, "newborns": few})


@pytest.fixture(scope="module")
def dictionary() -> Dictionary:
    return shelf.dictionary("nbs_msms")


@pytest.fixture(scope="module")
def panel() -> Diseases:
    return shelf.panel("nbs")


def blocks(simulation: Simulation, count: int) -> pl.DataFrame:
    return pl.concat([simulation.block(k) for k in range(count)])


def logs(frame: pl.DataFrame, name: str) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Natural logarithms of an analyte where it is there and above detection."""
    x = frame[name].drop_nulls().to_numpy().astype(np.float64)
    return np.log(x[x > 0])


# --- the book


def test_every_number_of_the_book_has_its_source_or_is_called_assumed(book: SimulationBook) -> None:
    sources = [part.source for part in (*book.healthy, *book.factors, *book.slopes, *book.states, *book.profiles)]
    sources += [book.tails.source, book.newborns.source, book.plates.source, book.profile_source, book.laboratory_source]
    told = [s for s in sources if not s.startswith("assumed")]
    assert len(told) == 6 and all("10.1007/8904_2017_45" in s for s in told)


def test_cited_distributions_are_those_of_the_shared_table(book: SimulationBook) -> None:
    file = Path(os.environ.get("HPCAI_DATA", ROOT.parent / "shared" / "data")) / "nbs_reference/lognormal_from_clir_zscores.csv"
    if not file.is_file():
        pytest.skip("the shared data are not here")
    table = {row["analyte"]: row for row in pl.read_csv(file).iter_rows(named=True)}
    told = {h.name: (h.median, h.sd_ln) for h in book.healthy if not h.source.startswith("assumed")}
    assert told == {name: (row["median_umol_L"], row["sd_ln"]) for name, row in table.items()}


def test_an_assumed_median_stands_where_its_reason_says(book: SimulationBook) -> None:
    said = re.compile(r"assumed, because ([\d.]+) of (Heidelberg|California) then lies ([\d.]+) sd above")
    limits = {  # the cut-offs that are named, as each rule set has them
        name: {(leaf.of, leaf.above) for rule in shelf.rules(file).rules for leaf in shelf.leaves(rule.when)}
        for name, file in (("Heidelberg", "heidelberg2003"), ("California", "california"))
    }
    reasons = {h.name: (h, found) for h in book.healthy if (found := said.fullmatch(h.source))}
    assert len(reasons) > 20
    for name, (h, found) in reasons.items():
        limit, whose, far = float(found[1]), found[2], float(found[3])
        assert np.log(limit / h.median) / h.sd_ln == pytest.approx(far, abs=0.051), name
        known = limits[whose] | {("C2", 85.0)}  # in California's table; no rule asks for it
        assert {(name, limit), (f"{name}+Ile", limit)} & known, name


def test_heidelbergs_rules_recall_some_six_in_a_thousand_of_laboratory_a(
    book: SimulationBook, dictionary: Dictionary, panel: Diseases
) -> None:
    frame = blocks(Simulation(book, dictionary, panel, 5, laboratories=["A"]), 10).filter(pl.col("diagnosis") == "")
    x = np.column_stack([frame[a.name].fill_null(np.nan).to_numpy().astype(float) for a in dictionary.analytes])
    found = by_disease(shelf.rules("heidelberg2003"), panel, verdicts(shelf.rules("heidelberg2003"), dictionary, x))
    assert 0.004 < (found == 1).any(axis=1).mean() < 0.008


def test_students_quartile_in_the_book_is_that_of_its_law(book: SimulationBook) -> None:
    from scipy.stats import t

    assert book.tails.student_quartile == pytest.approx(t.ppf(0.75, book.tails.student_df), abs=5e-6)


@pytest.mark.parametrize(("change", "said"), [
    (lambda b: b["healthy"].append(b["healthy"][0]), "analyte Ala stands twice"),
    (lambda b: b["profiles"].append(b["profiles"][0]), "disease HCY stands twice"),
    (lambda b: b["laboratories"].append(b["laboratories"][0]), "laboratory A stands twice"),
    (lambda b: b["profiles"][0]["markers"].update({"Xyz": [1.0, 2.0]}), "Xyz: no distribution"),
    (lambda b: b["factors"][1]["loadings"].update({"C0": 0.99}), "C0: the squares of its loadings sum to 1 or more"),
    (lambda b: b["months"].append("2026-13"), "months"),
    (lambda b: b["healthy"][0].update(median=-1.0), "median"),
])  # fmt: skip
def test_a_book_that_contradicts_itself_is_refused(book: SimulationBook, change: Any, said: str) -> None:
    values = book.model_dump(mode="json")
    change(values)
    with pytest.raises(ValidationError, match=said):
        SimulationBook.model_validate(values)


@pytest.mark.parametrize(("given", "said"), [
    ({"laboratories": ["Z"]}, "laboratories=Z"),
    ({"laboratories": []}, "none, or one twice"),
    ({"laboratories": ["A", "A"]}, "none, or one twice"),
    ({"tail": "lognorml"}, "Did you mean lognormal"),
    ({"enrich": 0.06}, "more cases than newborns"),  # 18 * .06 = 1.08 cases a row
])  # fmt: skip
def test_what_cannot_be_drawn_is_refused(
    book: SimulationBook, dictionary: Dictionary, panel: Diseases, given: Any, said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        Simulation(book, dictionary, panel, 1, **given)


def test_a_disease_without_a_profile_and_an_analyte_without_a_distribution_are_refused(
    book: SimulationBook, dictionary: Dictionary, panel: Diseases
) -> None:
    less = book.model_copy(update={"profiles": book.profiles[1:]})
    with pytest.raises(ConfigError, match="HCY: the book nbs has no profile"):
        Simulation(less, dictionary, panel, 1)
    more = dictionary.analytes[0].model_copy(update={"name": "Hyp", "required": True})
    with pytest.raises(ConfigError, match="Hyp: the book nbs has no distribution"):
        Simulation(book, dictionary.model_copy(update={"analytes": [*dictionary.analytes, more]}), panel, 1)


# --- the same for the same seed


def test_a_block_depends_on_seed_and_number_alone(book: SimulationBook, dictionary: Dictionary, panel: Diseases) -> None:
    one, other = (Simulation(book, dictionary, panel, 7, enrich=0.01) for _ in range(2))
    late = one.block(3)
    assert [one.block(k)["Phe"][0] for k in range(3)]  # what was drawn before does not matter
    assert late.equals(other.block(3), null_equal=True)
    assert not late["Phe"].equals(Simulation(book, dictionary, panel, 8, enrich=0.01).block(3)["Phe"])
    assert not late["Phe"].equals(one.block(2)["Phe"])


def test_a_laboratory_is_the_same_under_every_seed_and_beside_any_other(
    book: SimulationBook, dictionary: Dictionary, panel: Diseases
) -> None:
    def shift(seed: int, name: str, beside: list[str]) -> np.ndarray[Any, Any]:
        s = Simulation(book, dictionary, panel, seed, laboratories=[*beside, name])
        frame = blocks(s, 2).filter(pl.col("laboratory") == f"simulated {name}")
        return np.array([np.median(logs(frame, h.name)) - np.log(h.median) for h in book.healthy])

    first, second, other = shift(1, "E", []), shift(2, "E", ["A"]), shift(1, "F", [])
    assert np.corrcoef(first, second)[0, 1] > 0.95  # E shifts medians by .2, and a median of 4,000 is known to .006
    assert abs(np.corrcoef(first, other)[0, 1]) < 0.6


# --- distributions


def test_medians_and_spreads_of_a_plain_laboratory_are_the_books(
    quiet: SimulationBook, dictionary: Dictionary, panel: Diseases
) -> None:
    frame = blocks(Simulation(quiet, dictionary, panel, 3, laboratories=[PLAIN]), 5)
    for h in quiet.healthy:
        x = logs(frame, h.name)
        if len(x) < 0.999 * len(frame):
            continue  # below detection too often to be compared
        # 20,480 newborns: standard errors sd * 1.25 / 143 of a median, sd / 202 of an sd; 5 of them
        assert np.median(x) == pytest.approx(np.log(h.median), abs=5 * 1.25 * h.sd_ln / 143), h.name
        iqr = np.subtract(*np.percentile(x, [75, 25])) / 1.349
        assert iqr == pytest.approx(h.sd_ln, rel=5 * 1.65 / 202), h.name


@pytest.mark.parametrize(("one", "other", "expected"), [
    ("C8", "C10", 0.35**2 + 0.75 * 0.7),
    ("Leu", "Val", 0.35**2 + 0.75 * 0.7),
    ("Phe", "Gly", 0.35**2),  # the sample alone
    ("C12", "C14", 0.35**2 + 0.4 * 0.6),
])  # fmt: skip
def test_two_analytes_correlate_by_the_products_of_their_loadings(
    quiet: SimulationBook, dictionary: Dictionary, panel: Diseases, one: str, other: str, expected: float
) -> None:
    frame = blocks(Simulation(quiet, dictionary, panel, 3, laboratories=[PLAIN]), 5)
    assert np.corrcoef(logs(frame, one), logs(frame, other))[0, 1] == pytest.approx(expected, abs=5 / 143)


def test_the_three_laws_have_one_middle_and_three_tails(quiet: SimulationBook, dictionary: Dictionary, panel: Diseases) -> None:
    sd = {h.name: h.sd_ln for h in quiet.healthy}
    far, quartile = {}, {}
    for law in ("lognormal", "mixture", "student"):
        frame = blocks(Simulation(quiet, dictionary, panel, 3, laboratories=[PLAIN], tail=law), 5)  # type: ignore[arg-type]
        z = {name: (logs(frame, name) - np.median(logs(frame, name))) / sd[name] for name in ("Phe", "Leu", "C8", "C16", "Val")}
        far[law] = np.mean([np.mean(np.abs(v) > 4) for v in z.values()])
        quartile[law] = np.mean([np.percentile(v, 75) for v in z.values()])
    assert far["lognormal"] < 2e-4 < far["mixture"] < far["student"]  # normal: 6e-5; 3 % twice as wide: .0014
    assert max(quartile.values()) - min(quartile.values()) < 0.03  # .6745, and the mixture's .687


def test_outliers_come_together_in_a_mixture_and_alone_in_students_law(
    quiet: SimulationBook, dictionary: Dictionary, panel: Diseases
) -> None:
    def together(law: Any) -> float:
        frame = blocks(Simulation(quiet, dictionary, panel, 3, laboratories=[PLAIN], tail=law), 5)
        far = np.stack([np.abs(x - np.median(x)) / 0.28 > 3 for x in (logs(frame, n) for n in ("Met", "Val"))])
        return float(far.all(0).mean() / far[0].mean())

    alone = [h for h in quiet.factors if h.name not in ("sample", "branched")]  # they no longer correlate
    quiet = quiet.model_copy(update={"factors": alone})
    assert together("mixture") > 3 * together("student")


def test_laboratories_differ_in_spread_and_correlation(book: SimulationBook, dictionary: Dictionary, panel: Diseases) -> None:
    def matrix(name: str) -> np.ndarray[Any, Any]:
        frame = blocks(Simulation(book, dictionary, panel, 4, laboratories=[name], tail="lognormal"), 2)
        kept = frame.filter(pl.all_horizontal(pl.col("Phe", "C16", "C8", "C10", "C14", "Leu", "Val", "Tyr") > 0))
        x = np.log(kept.select("Phe", "C16", "C8", "C10", "C14", "Leu", "Val", "Tyr").to_numpy())
        return np.asarray(np.corrcoef(x.T))

    a, b, e = (matrix(name) for name in ("A", "B", "E"))
    assert np.abs(a - e).max() > 0.12  # a correlation of 8,192 is known to .011
    assert np.abs(a - e).mean() > np.abs(a - b).mean()


def test_a_disturbed_month_shifts_all_of_a_laboratory_or_splits_it_in_two(
    book: SimulationBook, dictionary: Dictionary, panel: Diseases
) -> None:
    names = ("Phe", "Leu", "Val", "Tyr", "Met", "C0", "C2", "C16", "C18", "C3", "Gly", "Ala", "Pro")

    def quartiles(name: str, month: str) -> np.ndarray[Any, Any]:
        s = Simulation(book, dictionary, panel, 5, laboratories=[name], months=[month], tail="lognormal")
        frame = blocks(s, 2)
        return np.array([np.percentile(logs(frame, n), [25, 50, 75]) for n in names])

    b, b_later = quartiles("B", "2027-01"), quartiles("B", "2027-02")
    assert np.std(b_later[:, 1] - b[:, 1]) > 0.2  # .35 over analytes
    assert (b_later[:, 2] - b_later[:, 0]) / (b[:, 2] - b[:, 0]) == pytest.approx(1, abs=0.1)
    g, g_later = quartiles("G", "2027-01"), quartiles("G", "2027-02")
    assert ((g_later[:, 2] - g_later[:, 0]) / (g[:, 2] - g[:, 0])).mean() > 1.1  # two populations are wider than one


# --- newborns and the affected


def test_incidences_are_the_panels(book: SimulationBook, dictionary: Dictionary, panel: Diseases) -> None:
    often = [d.model_copy(update={"incidence": d.incidence * 100}) for d in panel.diseases]
    frame = blocks(Simulation(book, dictionary, panel.model_copy(update={"diseases": often}), 1), 10)
    expected = 40_960 * sum(d.incidence for d in often)  # 311 in a million, 100-fold: 1,274
    affected = int((frame["diagnosis"] != "").sum())
    assert abs(affected - expected) < 5 * np.sqrt(expected)
    common = frame["diagnosis"].value_counts().sort("count", descending=True)["diagnosis"].to_list()
    assert common[:4] == ["", *(d.name for d in sorted(panel.diseases, key=lambda d: -d.incidence)[:1]), *common[2:4]]


@pytest.mark.parametrize(("count", "cases"), [(4000, 2), (5000, 40), (900, 50), (10_000, 1)])
def test_enrichment_gives_just_so_many_cases_of_each_disease(count: int, cases: int) -> None:
    asked = simulate.Asked(Path("x.csv"), count, 9, cases=cases)
    frame = pl.concat(list(newborns(simulation_of(asked), count)))
    assert len(frame) == count
    counts = dict(frame.filter(pl.col("diagnosis") != "")["diagnosis"].value_counts().iter_rows())
    assert set(counts.values()) == {cases} and len(counts) == 18


def test_cases_lie_beyond_the_healthy_and_the_late_ones_among_them(
    book: SimulationBook, dictionary: Dictionary, panel: Diseases
) -> None:
    s = Simulation(book, dictionary, panel, 2, laboratories=["A"], enrich=1 / 36)
    frame = blocks(s, 4)
    healthy = frame.filter(pl.col("diagnosis") == "")
    for profile in book.profiles:
        name, (_, most) = next(iter(profile.markers.items()))
        sick = logs(frame.filter(pl.col("diagnosis") == profile.disease), name)
        side = 1 if most > 1 else -1
        low, high = np.percentile(side * logs(healthy, name), [1, 99.5])
        assert np.median(side * sick) > high, profile.disease
        assert (side * sick).min() > low, profile.disease
    mild = logs(frame.filter(pl.col("diagnosis") == "MCAD"), "C8")
    assert (mild < np.percentile(logs(healthy, "C8"), 99.9)).any()  # no cut-off finds all without recalling the healthy


def test_donor_blood_hides_an_affected_profile(book: SimulationBook, dictionary: Dictionary, panel: Diseases) -> None:
    states = [s.model_copy(update={"share": 0.5}) if s.column == "transfused" else s for s in book.states]
    frame = blocks(Simulation(book.model_copy(update={"states": states}), dictionary, panel, 2, enrich=1 / 36), 4)
    pku = frame.filter(pl.col("diagnosis") == "PKU")
    given, none = (np.median(logs(pku.filter(pl.col("transfused") == t), "Phe")) for t in (1, 0))
    assert given < none - 0.5  # 60 % of ln(11) = 2.4 is lost


def test_twins_share_family_plate_and_gestation_and_resemble_each_other(
    book: SimulationBook, dictionary: Dictionary, panel: Diseases
) -> None:
    often = book.model_copy(update={"newborns": book.newborns.model_copy(update={"twin": 0.3, "unknown": 0.0})})
    frame = blocks(Simulation(often, dictionary, panel, 2, split=True), 3)
    pairs = frame.group_by("family", maintain_order=True).agg(pl.all()).filter(pl.col("sample").list.len() == 2)
    assert len(pairs) > 1000 and frame["family"].value_counts()["count"].max() == 2
    for name in ("plate", "gestation_weeks", "split", "laboratory", "month"):
        assert (pairs[name].list.n_unique() == 1).all(), name
    x = np.array(pairs["Gly"].to_list(), dtype=float)  # NaN where one is missing
    assert 0.3 < np.corrcoef(np.log(x[np.isfinite(x).all(1)]).T)[0, 1] < 0.8


def test_split_is_by_laboratory_and_family(book: SimulationBook, dictionary: Dictionary, panel: Diseases) -> None:
    frame = blocks(Simulation(book, dictionary, panel, 2, split=True), 2)
    by = {lab: set(part["split"]) for (lab,), part in frame.group_by("laboratory")}
    assert by["simulated A"] == {"train", "val"} and by["simulated E"] == {"test"}
    val = (frame.filter(pl.col("split") != "test")["split"] == "val").mean()
    assert val == pytest.approx(0.2, abs=0.03)
    assert "split" not in Simulation(book, dictionary, panel, 2).block(0, 10).columns


def test_a_laboratory_leaves_empty_what_it_does_not_measure(
    book: SimulationBook, dictionary: Dictionary, panel: Diseases
) -> None:
    blind = PLAIN.model_copy(update={"unmeasured": ["SUAC", "Asa"]})
    frame = blocks(Simulation(book, dictionary, panel, 2, laboratories=[blind, "A"]), 1)
    for (name,), part in frame.group_by("laboratory"):
        assert (part["SUAC"].null_count() == len(part)) is (name == "simulated plain")
        assert part["Phe"].null_count() < 20


def test_a_failed_plate_is_off_in_newborns_and_controls_alike(
    book: SimulationBook, dictionary: Dictionary, panel: Diseases
) -> None:
    none = book.model_copy(update={"plates": book.plates.model_copy(update={"failed": 0.0})})
    s = Simulation(none, dictionary, panel, 2, laboratories=[PLAIN], failed=[5])
    controls = s.controls(0)
    low = controls.filter(pl.col("material") == "low")
    off = {}
    for h in book.healthy:
        by = low.group_by("plate", maintain_order=True).agg(pl.col(h.name).log().mean())[h.name].to_numpy()
        assert np.median(by) == pytest.approx(np.log(1.5 * h.median), abs=0.06), h.name  # .054 / sqrt(49), rounding aside
        off[h.name] = by[5] - np.median(by)
    assert sum(v > 0.35 for v in off.values()) == 13 and len(off) == 39  # a third, by .6
    babies = s.block(0)
    here = babies.filter(pl.col("plate") == "plain-0000005")
    elsewhere = babies.filter(pl.col("plate") != "plain-0000005")
    moved = {n: np.median(logs(here, n)) - np.median(logs(elsewhere, n)) for n in off}
    assert np.corrcoef(list(moved.values()), list(off.values()))[0, 1] > 0.9


def test_every_plate_has_its_controls_once_whatever_the_blocks(
    book: SimulationBook, dictionary: Dictionary, panel: Diseases
) -> None:
    s = Simulation(book, dictionary, panel, 2)
    plates = set(blocks(s, 3)["plate"])
    controls = pl.concat([s.controls(k) for k in range(3)])
    assert set(controls["plate"]) == plates
    assert set(controls.group_by("plate", "material").len()["len"]) == {2}
    assert s.controls(2, 10).is_empty()  # rows 20 to 29 begin no plate


@pytest.mark.parametrize(("x", "expected"), [(0.123449, 0.1234), (12345.0, 12340.0), (1e-5, 1e-5), (99.996, 100.0)])
def test_concentrations_have_four_significant_digits(x: float, expected: float) -> None:
    assert rounded(np.array([x]))[0] == pytest.approx(expected, rel=1e-12)


def test_hashed_numbers_are_even_and_do_not_repeat_between_uses() -> None:
    u, v = hashed(1, 0, np.arange(100_000)), hashed(1, 1, np.arange(100_000))
    counts = np.histogram(u, 20, (0, 1))[0]
    assert ((counts - 5000) ** 2 / 5000).sum() < 45  # chi-square, 19 degrees of freedom: .0007 beyond
    assert abs(np.corrcoef(u, v)[0, 1]) < 0.02 and abs(np.corrcoef(u[1:], u[:-1])[0, 1]) < 0.02


# --- hpcai simulate


def made(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, int]:
    assert simulate.main([*words, "--json"]) == 0
    return dict(json.loads(capsys.readouterr().out))


def test_csv_and_parquet_hold_the_same_newborns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--newborns", "5000", "--seed", "4", "--cases-per-disease", "3", "--laboratories", "A,E"]
    told = made(capsys, str(tmp_path / "a.csv"), *words, "--controls", str(tmp_path / "c.parquet"))
    assert told == made(capsys, str(tmp_path / "a.parquet"), *words) | {"controls": told["controls"]}
    assert told == {"newborns": 5000, "affected": 54, "plates": 60, "controls": 240}
    parquet = pl.read_parquet(tmp_path / "a.parquet")
    csv = pl.read_csv(tmp_path / "a.csv", schema=parquet.schema).with_columns(pl.selectors.string().fill_null(""))
    assert len(csv) == 5000 and csv.equals(parquet, null_equal=True)
    assert len(pl.read_parquet(tmp_path / "c.parquet")) == 240
    assert sorted(f.name for f in tmp_path.iterdir()) == ["a.csv", "a.parquet", "c.parquet"]


def test_the_sentence_says_simulated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        simulate.main([str(tmp_path / "a.csv"), "--newborns", "100", "--seed", "1", "--controls", str(tmp_path / "c.csv")]) == 0
    )
    out = capsys.readouterr().out
    assert "100 simulated newborns, 0 of them affected, on 2 plates" in out and "8 controls" in out
    assert (pl.read_csv(tmp_path / "a.csv")["laboratory"].str.starts_with("simulated ")).all()


def test_months_are_shared_by_the_plates_in_order(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made(capsys, str(tmp_path / "a.csv"), "--newborns", "3000", "--seed", "1", "--months", "2027-01,2027-02,2027-03")
    months = pl.read_csv(tmp_path / "a.csv")["month"].to_list()
    assert months == sorted(months) and {months.count(m) > 900 for m in set(months)} == {True} and len(set(months)) == 3


def test_hostile_rows_are_hostile_each_in_its_way() -> None:
    asked = simulate.Asked(Path("x.csv"), 1000, 3, hostile=len(HOSTILE))
    whole = next(newborns(simulation_of(simulate.Asked(Path("x.csv"), 1000, 3)), 1000))
    spoilt = next(newborns(simulation_of(asked), 1000, asked.hostile))
    changed = [name for name in whole.columns if not whole[name].equals(spoilt[name], null_equal=True)]
    assert set(changed) == {"Phe", "C8", "C2", "C5", "C0", "age_h", "sample", "laboratory"}
    assert (spoilt["Phe"] < 0).sum() == 1 and spoilt["C8"].is_infinite().sum() == 1 and spoilt["C5"].is_nan().sum() == 1
    assert (spoilt["age_h"] < 0).sum() == 1 and (spoilt["sample"] == "=1+1").sum() == 1
    assert spoilt["sample"].n_unique() == 999 and (spoilt["laboratory"] == "simulated Z").sum() == 1


@pytest.mark.parametrize(("words", "said"), [
    (["--newborns", "5", "--seed", "1"], "0 names"),
    (["a.csv", "--seed", "1"], "--newborns: required"),
    (["a.csv", "--newborns", "0", "--seed", "1"], "nobody"),
    (["a.csv", "--newborns", "-5", "--seed", "1"], "newborns"),
    (["a.xlsx", "--newborns", "5", "--seed", "1"], "ends in none of .csv, .parquet"),
    (["a.csv", "--newborns", "5", "--seed", "1", "--controls", "a.csv"], "the same file"),
    (["a.csv", "--newborns", "5", "--seed", "1", "--tail", "students"], "Did you mean student"),
    (["a.csv", "--newborns", "5", "--seed", "1", "--months", "2026-1"], "no month"),
    (["a.csv", "--newborns", "5", "--seed", "1", "--failed-plates", "x"], "no whole number"),
    (["a.csv", "--newborns", "5", "--seed", "1", "--laboratories", "A,Z"], "laboratories=Z"),
    (["a.csv", "--newborns", "5", "--seed", "1", "--cases-per-disease", "1"], "more cases than newborns"),
    (["a.csv", "--newborns", "50", "--seed", "1", "--hostile", "40"], "too many"),
    (["a.csv", "--newborns", "5", "--seed", "1", "--simulation", "nbss"], "Did you mean nbs"),
    (["a.csv", "--newborns", "5", "--seed", "1", "--newborn", "5"], "--newborn"),
])  # fmt: skip
def test_wrong_words_are_told_and_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises((ConfigError, Faults)) as caught:
        simulate.main(words)
    assert caught.value.code == 2 and said in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_there_is_replaced_by_force_alone(tmp_path: Path) -> None:
    words = [str(tmp_path / "a.csv"), "--newborns", "5", "--seed", "1"]
    (tmp_path / "a.csv").write_text("mine")
    with pytest.raises(PlanError, match=r"^FILE=.*: is there already\. --force replaces it; or name another file\.$"):
        simulate.main(words)
    with pytest.raises(PlanError, match=r"^--controls=.*; or name another file by --controls\.$"):
        simulate.main([str(tmp_path / "b.csv"), *words[1:], "--controls", words[0]])
    assert (tmp_path / "a.csv").read_text() == "mine"
    assert simulate.main([*words, "--force"]) == 0
    assert (tmp_path / "a.csv").read_text().startswith("sample,laboratory")


def test_a_folder_that_is_not_there_is_told(tmp_path: Path) -> None:
    for name in ("a.csv", "a.parquet"):
        with pytest.raises(PlanError, match="Name another file"):
            simulate.main([str(tmp_path / "none" / name), "--newborns", "5", "--seed", "1"])


@pytest.mark.parametrize("end", ["csv", "parquet"])
def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: str) -> None:
    drawn = Simulation.block

    def failing(self: Simulation, number: int, size: int = 4096) -> pl.DataFrame:
        if number == 2:
            raise KeyboardInterrupt
        return drawn(self, number, size)

    monkeypatch.setattr(Simulation, "block", failing)
    with pytest.raises(KeyboardInterrupt):
        simulate.main([str(tmp_path / f"a.{end}"), "--newborns", "20000", "--seed", "1"])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("end", ["csv", "parquet"])
def test_a_full_disk_is_told_and_leaves_nothing(tmp_path: Path, end: str) -> None:
    code = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000));"  # a write beyond fails as on a full disk
        f"from hpcai import simulate; simulate.main([{str(tmp_path / f'a.{end}')!r}, '--newborns', '20000', '--seed', '1'])"
    )
    env = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)
    assert "PlanError" in done.stderr and "Name another file" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_memory_does_not_grow_with_the_cohort(tmp_path: Path) -> None:
    def peak_mb(count: int, end: str) -> float:
        code = (
            "import resource; from hpcai import simulate;"
            f"simulate.main([{str(tmp_path / f'{count}.{end}')!r}, '--newborns', '{count}', '--seed', '1']);"
            "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)"
        )
        env = os.environ | {"PYTHONPATH": str(ROOT / "src"), "POLARS_MAX_THREADS": "2", "OMP_NUM_THREADS": "1"}
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, check=True)
        return float(done.stdout.splitlines()[-1])

    for end in ("csv", "parquet"):
        # 50,000 rows more are 8 MB as numbers of 4 bytes, 16 MB as the file's text, and would be 100 MB if blocks were kept
        assert peak_mb(80_000, end) - peak_mb(30_000, end) < 60, end


# --- what is shipped


@pytest.mark.parametrize(("name", "words"), [
    ("teaching", "--newborns 15000 --seed 1 --laboratories A,B,C,D,E,F --cases-per-disease 56 --split"),
    ("cohort", "--newborns 4000 --seed 2 --laboratories B,G --months 2027-01,2027-02 --cases-per-disease 2"
               " --failed-plates 3,17 --hostile 9 --controls controls.csv"),
])  # fmt: skip
def test_shipped_files_are_what_their_readme_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, words: str
) -> None:
    readme = (SHIPPED / "README.md").read_text().replace("\\\n        ", "")
    assert f"hpcai simulate {name}.parquet {words}\n" in readme
    monkeypatch.chdir(tmp_path)
    assert simulate.main([f"{name}.parquet", *words.split()]) == 0
    old, new = (pl.read_parquet(folder / f"{name}.parquet") for folder in (SHIPPED, tmp_path))
    assert old.schema == new.schema
    for column, kind in old.schema.items():
        if kind == pl.Float32:  # another machine's exp may round the fourth digit elsewhere
            np.testing.assert_allclose(new[column].to_numpy(), old[column].to_numpy(), rtol=1.2e-3, err_msg=column)
        else:
            assert old[column].equals(new[column], null_equal=True), column
    if name == "cohort":
        assert (tmp_path / "controls.csv").read_text().splitlines()[0] == (SHIPPED / "controls.csv").read_text().splitlines()[0]


def test_shipped_files_are_small() -> None:
    assert sum(f.stat().st_size for f in SHIPPED.iterdir()) < 2_500_000


def test_the_teaching_table_is_read_without_a_fault(dictionary: Dictionary) -> None:
    table = pytest.importorskip("hpcai.screening.table").open_table(SHIPPED / "teaching.parquet", dictionary)
    assert table.rows == 15_000
    assert [fault for _, batch in table.batches() for fault in batch.faults] == []


def test_the_cohorts_hostile_rows_are_found_and_no_other(dictionary: Dictionary) -> None:
    table = pytest.importorskip("hpcai.screening.table").open_table(SHIPPED / "cohort.parquet", dictionary)
    found = sorted((fault.column, fault.why) for _, batch in table.batches() for fault in batch.faults)
    assert found == [
        ("", "two rows for one sample"), ("", "two rows for one sample"), ("C2", "implausible"), ("C5", "NaN"),
        ("C8", "infinite"), ("Phe", "negative"), ("age_h", "negative"), ("sample", "formula"),
    ]  # fmt: skip
    empty = sum(int(np.isnan(batch.x_NA[:, dictionary.channels.index("C0")]).sum()) for _, batch in table.batches())
    assert empty >= 1  # an empty cell is no fault; nor is a laboratory of one row


@pytest.mark.parametrize(
    ("laboratories", "said"), [(["simulated A"], True), (["simulated A", "A"], False), (["A"], False), ([], False)]
)
def test_newborns_are_called_simulated_only_where_all_laboratories_are(laboratories: list[str], said: bool) -> None:
    assert is_simulated(laboratories) is said
