"""explain.py, screening/told.py: one decision, rule by rule, and the dossier; only where nothing was changed since."""

from __future__ import annotations

import json
import re
import stat
from dataclasses import replace
from pathlib import Path

import cohort_kit as kit
import polars as pl
import pytest

from hpcai import explain
from hpcai.errors import ConfigError, Faults, PlanError, RunError
from hpcai.rundir import RunDir
from hpcai.screening import cohort
from hpcai.screening.told import WHOLE, Told, dossier, find, lines, told

HOSTILE = "<script>alert(1)</script>"
CHROMIUM = Path("/usr/bin/chromium")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """A finished cohort of 300 with two rows of one sample, and a laboratory's month that holds markup."""
    folder = tmp_path_factory.mktemp("explain")
    frame = kit.simulation(5, 0.004, laboratories=["A", "B"]).block(0).head(300)
    samples = [*frame["sample"].to_list()[:-1], frame["sample"][0]]
    frame = frame.with_columns(pl.Series("sample", samples), pl.lit(HOSTILE).alias("plate"))
    frame.write_csv(folder / "simulated.csv")
    cfg, context = kit.prepared(folder / "runs" / "p-1", kit.trained(folder / "fit"), folder / "simulated.csv")
    cohort.screen(cfg, context)
    return context.dir


@pytest.fixture(scope="module")
def urgent(run: RunDir) -> Told:
    """The first newborn that is referred."""
    record = next(r for r in kit.records(run) if r["decision"] == "refer")
    return told(run, f"row:{record['row']}")


# ---- finding


def test_a_newborn_is_found_by_its_sample_and_by_its_row(run: RunDir) -> None:
    record = kit.records(run)[5]
    assert find(run, record["sample"]) == find(run, "row:7") == (0, 5, record)


@pytest.mark.parametrize("case", ["row:1", "row:0", "row:302", "row:99999999999999", "row:", "row:-3", "secret", "", '"', "\n"])
def test_a_newborn_that_is_not_there_is_refused_without_repeating_its_id(run: RunDir, case: str) -> None:
    with pytest.raises(ConfigError, match="CASE") as e:
        find(run, case)
    assert "secret" not in str(e.value)


def test_two_rows_of_one_sample_are_named_by_their_rows(run: RunDir) -> None:
    sample = kit.records(run)[0]["sample"]
    with pytest.raises(ConfigError, match="Name row:2 or row:301") as e:
        find(run, sample)
    assert sample not in str(e.value)


# ---- telling


def test_every_rule_of_a_disease_is_told_comparison_by_comparison(urgent: Told) -> None:
    said = lines(urgent)
    assert said[0] == f"row {urgent.record['row']}: {urgent.record['line']}" and "; simulated" in said[1]
    part = urgent.urgent[0]
    text = "\n".join(part.lines)
    assert re.search(r"heidelberg2003: (positive|negative)|california: (positive|negative)", text)
    assert re.search(r"\d umol/L, asked (above|below) [\d.]+ umol/L: (yes|no)", text)
    assert re.search(r"model: (called|not called|undecided); probability", text) or "model: not heard" in text


def test_what_moved_a_model_and_what_would_have_changed_it_is_told(run: RunDir) -> None:
    record = next(r for r in kit.records(run) if any(d["called"] for d in r["diseases"].values()))
    name = next(name for name, d in record["diseases"].items() if d["called"])
    (part,) = [p for p in told(run, f"row:{record['row']}").parts if p.name == name]
    assert any(line.startswith("  moved by ") for line in part.lines)
    assert any(re.match(r"  would not be called with \S+ x [\d.]+", line) for line in part.lines)


def test_clear_diseases_are_told_where_everything_is_asked_for(urgent: Told) -> None:
    few, every = lines(urgent), lines(urgent, everything=True)
    assert len(every) > len(few)
    assert all(any(line.startswith(f"{part.name} (") for line in every) for part in urgent.parts)


def test_the_table_changed_since_is_no_longer_explained(run: RunDir) -> None:
    file = Path(json.loads(run.config.read_text())["data"]["path"])
    kept = file.read_bytes()
    try:
        file.write_bytes(kept.replace(b"simulated A", b"simulated B", 1))
        with pytest.raises(Exception, match="changed") as e:
            told(run, "row:2")
        assert "simulated A" not in str(e.value)
    finally:
        file.write_bytes(kept)


def test_records_that_other_rules_made_are_not_explained_by_these(run: RunDir) -> None:
    file = run.records_file(0)
    kept = file.read_bytes()
    try:
        lines_ = kept.splitlines(keepends=True)
        file.write_bytes(b"".join([re.sub(rb'"policy":"[0-9a-f]{4}', b'"policy":"0000', lines_[0]), *lines_[1:]]))
        with pytest.raises(PlanError, match="changed since"):
            told(run, "row:2")
    finally:
        file.write_bytes(kept)


def test_a_run_without_records_is_named(tmp_path: Path, run: RunDir) -> None:
    other = RunDir(tmp_path / "x-1")
    other.path.mkdir()
    other.config.write_bytes(run.config.read_bytes())
    with pytest.raises(PlanError, match="holds no records of newborns"):
        told(other, "row:2")


# ---- the dossier


def test_a_dossier_escapes_every_text_and_asks_for_nothing(urgent: Told) -> None:
    html = dossier(urgent)
    assert HOSTILE not in html and "&lt;script&gt;" in html
    assert "default-src 'none'" in html and not re.search(r"(?:src|href)=", html) and "<script" not in html
    assert urgent.record["sample"] in html and "Signature" in html and "simulated newborn" in html
    assert all(part.name in html for part in urgent.urgent) and all(part.lines[0] in html for part in urgent.urgent[:WHOLE])


def test_a_dossier_tells_the_most_urgent_diseases_in_full_and_names_the_others(urgent: Told) -> None:
    part = urgent.urgent[0]
    words = ("repeat", "refer", "reflex", "refer")
    many = [replace(part, name=f"D{k}", decision=word, lines=[f"why {k}"]) for k, word in enumerate(words)]
    html = dossier(replace(urgent, parts=many))
    assert "why 1" in html and "why 3" in html and "why 0" not in html and "why 2" not in html
    assert re.search(r"<p>reflex, [^<]*: D2</p>\n<p>repeat, [^<]*: D0</p>", html)


def test_a_dossier_of_a_clear_newborn_says_that_nobody_is_asked(run: RunDir) -> None:
    record = next(r for r in kit.records(run) if r["decision"] == "clear")
    assert "Nobody is asked to do anything" in dossier(told(run, f"row:{record['row']}"))


# ---- the verb


def test_the_verb_prints_writes_and_guards_its_file(
    run: RunDir, urgent: Told, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    words = [str(run.path), f"row:{urgent.record['row']}"]
    assert explain.main(words) == 0
    assert capsys.readouterr().out.splitlines() == [line for line in lines(urgent)]
    assert explain.main([*words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == urgent.record
    assert explain.main([*words, "--dossier"]) == 0
    file = tmp_path / f"dossier-row{urgent.record['row']}.html"
    assert file.read_text() == dossier(urgent) and stat.S_IMODE(file.stat().st_mode) == 0o600
    assert explain.main([*words, "--dossier"]) == 0  # one of ours is replaced
    other = tmp_path / "mine.html"
    other.write_text("mine")
    with pytest.raises(PlanError, match="is there already"):
        explain.main([*words, "-o", str(other)])
    assert other.read_text() == "mine"


@pytest.mark.parametrize("words", [[], ["p-1"], ["a", "b", "c"]])
def test_the_verb_wants_a_run_and_a_newborn(words: list[str]) -> None:
    with pytest.raises((ConfigError, Faults)):
        explain.main(words)


def test_a_damaged_record_is_the_runs_fault(run: RunDir) -> None:
    file = run.records_file(0)
    kept = file.read_bytes()
    try:
        file.write_bytes(b"{" + kept)
        with pytest.raises(RunError, match="damaged"):
            find(run, "row:2")
    finally:
        file.write_bytes(kept)


@pytest.mark.browser
def test_a_dossier_prints_on_one_page_whatever_is_urgent(urgent: Told, tmp_path: Path) -> None:
    from playwright import sync_api

    every = [replace(part, decision="reflex", reason="model undecided", urgent=True) for part in urgent.parts]
    file = tmp_path / "dossier.html"
    file.write_text(dossier(replace(urgent, parts=every, notes=["specimen: " + "transfused before sampling; " * 4] * 4)))
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox", "--disable-gpu"])
        page = chromium.new_page(viewport={"width": 390, "height": 800})
        page.goto(file.as_uri())
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        for paper in ("A4", "Letter"):
            assert len(re.findall(rb"/Type\s*/Page\b", page.pdf(format=paper))) == 1
        chromium.close()
