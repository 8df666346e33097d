"""The page over many runs: what it says of each, whatever lies in a folder; in a browser it sorts, filters and draws."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from index_runs import config, make, make_many, sweep
from test_report_browser import ARGS, CHROMIUM

from hpcai import index, outfile, rundir, runs
from hpcai.cli import main
from hpcai.errors import PlanError
from hpcai.index import entries, keys, page
from hpcai.rundir import RunDir

GARBAGE: list[bytes] = [b"", b"{", b"[]", b"null", b"7", b'"x"', b"{}", b"\xff\xfe\x00", b"[" * 20_000, b'{"version": 1}']
HOSTILE = "</script><script>document.title='taken'</script><img src=x onerror=alert(1)>\u2028'\"&amp;"


def page_of(runs_dir: Path) -> str:
    """The page over a folder, as text."""
    index.write_index(runs_dir, runs_dir / "index.html")
    return (runs_dir / "index.html").read_text("utf-8")


def entry_of(run: RunDir) -> entries.Entry:
    """What the page says of one run."""
    found, _ = entries.read_all(run.path.parent)
    (entry,) = (e for e in found if e.name == run.path.name)
    return entry


# --- what it says of a run


def test_an_entry_has_the_reports_first_estimate_the_best_validation_and_the_cost(tmp_path: Path) -> None:
    run = make(tmp_path, "a-1", auc=0.9, lr=0.02)
    value = rundir.read_json(run.report_json)
    value["cost"]["slurm"] = {"nodes": 4, "shared_by": 2, "price": {"words": "at most 4 node-h"}}
    rundir.write_json(run.report_json, value | {"cost": value["cost"] | {"wall_s": 1800.0}})
    entry = entry_of(run)
    assert entry.score == entries.Score("auc", "test", 0.89, 0.875, 0.905, 624)
    assert entry.best is not None and (entry.best.name, entry.best.n) == ("auc", 524)
    assert (entry.wall_s, entry.node_h, entry.price, entry.warnings) == (1800.0, 1.0, "at most 4 node-h", 1)
    assert (entry.keys["trainer.lr"], entry.keys["seed"], entry.keys["trainer.augment"]) == (0.02, 0, "affine, intensity")
    assert {name: len(points) for name, points in entry.curves.items()} == {"auc": 20, "val_loss": 20, "train_loss": 60}


@pytest.mark.parametrize("version", [1, 2])
def test_reports_of_both_versions_are_read(tmp_path: Path, version: int) -> None:
    assert entry_of(make(tmp_path, "a-1", version=version)).score is not None


@pytest.mark.parametrize("version", [0, 3, "2", None, True, [1]])
def test_a_report_of_another_version_is_told_and_not_read(tmp_path: Path, version: Any) -> None:
    entry = entry_of(make(tmp_path, "a-1", version=version))
    assert entry.score is None and f"report of version {version}: not read." in entry.note
    assert f"report of version {version}" in page_of(tmp_path) or version == [1]


@pytest.mark.parametrize("state", ["new", "pending", "running", "stopped", "failed", "lost"])
def test_a_run_that_did_not_finish_is_a_row_with_its_state(tmp_path: Path, state: str) -> None:
    entry = entry_of(make(tmp_path, "a-1", state))
    assert (entry.state, entry.score) == (state, None)
    assert f'data-state="{state}"' in page_of(tmp_path)


@pytest.mark.parametrize("garbage", GARBAGE)
@pytest.mark.parametrize("file", ["report.json", "config.yaml", "metrics.jsonl", "plan.json", "lives/0001/rank0.jsonl"])
def test_a_damaged_file_costs_its_own_facts_alone(tmp_path: Path, file: str, garbage: bytes) -> None:
    run, other = make(tmp_path, "a-1"), make(tmp_path, "b-2")
    (run.path / file).write_bytes(garbage)
    found, _ = entries.read_all(tmp_path)
    assert [e.name for e in found] == ["a-1", "b-2"] and found[1] == entry_of(other)
    assert found[1].score is not None and "a-1" in page_of(tmp_path)
    if file == "report.json":
        assert "damaged" in found[0].note or "report of version" in found[0].note


@pytest.mark.parametrize("estimate", [
    {"value": "0.9"}, {"value": [1]}, {"value": True}, {"value": None}, {"name": {"a": 1}}, {"low": "x", "high": None},
    {"n": "9"},
    {"split": HOSTILE}, {"value": 10**400},
], ids=str)  # fmt: skip
def test_an_estimate_of_other_types_stops_nothing(tmp_path: Path, estimate: dict[str, Any]) -> None:
    run = make(tmp_path, "a-1")
    value = rundir.read_json(run.report_json)
    value["estimates"][0] |= estimate
    run.report_json.write_text(json.dumps(value))
    assert "<script>document" not in page_of(tmp_path)


def test_a_pipe_where_a_file_should_be_is_not_waited_for(tmp_path: Path) -> None:
    run = make(tmp_path, "a-1")
    for file in (run.report_json, run.config, run.metrics):
        file.unlink()
        os.mkfifo(file)
    entry = entries.read_entry(replace(_row(run), best=None))
    assert (entry.keys, entry.curves) == ({}, {}) and "damaged" in entry.note


def _row(run: RunDir) -> Any:
    from hpcai import status

    return status.Row(run, "train", runs.RunState("completed"))


def test_an_alias_bomb_in_a_config_is_not_unfolded(tmp_path: Path) -> None:
    run = make(tmp_path, "a-1")
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12)]
    run.config.write_text("\n".join(lines))
    assert entry_of(run).keys == {}


@given(st.lists(st.binary(max_size=40), max_size=400))
def test_curves_of_any_bytes_are_pairs_of_numbers_in_order(lines: list[bytes]) -> None:
    good = b'{"kind": "val", "step": 3, "loss": 0.5, "auc": null}'
    found = entries.curve(entries.thinned([*lines, good]), "val", "loss")
    assert [3.0, 0.5] in found and found == sorted(found) and len(found) <= entries.POINTS


def test_a_long_curve_is_thinned_and_keeps_both_ends(tmp_path: Path) -> None:
    points = entry_of(make(tmp_path, "a-1", epochs=300)).curves["val_loss"]
    assert len(points) == entries.POINTS and (points[0][0], points[-1][0]) == (74, 74 * 300)


# --- keys


def test_only_what_differs_is_a_key_and_one_that_lacks_it_counts() -> None:
    configs: list[dict[str, keys.Value]] = [{"a": 1, "b": 2, "c": True}, {"a": 1, "b": 3, "c": 1}, {"a": 1, "b": 2}]
    assert keys.varying(configs) == ["b", "c"] and keys.varying(configs[:1]) == [] and keys.varying([]) == []
    assert keys.varying([*configs[:1], {}]) == []  # a config that cannot be read says nothing


def test_paths_accounts_and_names_of_columns_are_no_keys() -> None:
    value = config("x") | {"from_run": "/home/somebody/runs/y-1", "depends_on": None}
    value["data"] |= {"patient_col": "Meier", "root": "/r"}
    value["model"]["init_from"] = "/home/somebody/x.pt"
    value["trainer"]["odd"] = "/home/somebody"
    text = json.dumps(keys.flat(value))
    assert "somebody" not in text and "p200000" not in text and "Meier" not in text and '"trainer.odd": "<path>"' in text


def test_a_sweep_of_two_keys_is_a_grid_of_means_over_seeds() -> None:
    members: list[keys.Scored] = [
        ({"lr": lr, "width": w, "seed": s}, "auc", 0.8 + lr + w / 100 + s / 1000)
        for lr in (0.1, 0.01)
        for w in (8, 4)
        for s in (0, 2)
    ]
    members.append(({"lr": 0.1, "width": 8, "seed": 3}, "", None))
    found = keys.table(members)
    assert (found.keys, found.rows, found.columns) == (["lr", "width"], [0.01, 0.1], [4, 8])
    best = found.grid[1][1]
    assert best is not None and best.mean == pytest.approx(0.981) and (best.n, best.of, best.share) == (2, 3, 1.0)
    assert found.grid[0][0] is not None and found.grid[0][0].share == 0.0


def test_a_sweep_of_one_key_is_ranked_and_a_loss_is_better_when_lower() -> None:
    members: list[keys.Scored] = [({"lr": lr}, "loss", loss) for lr, loss in ((0.1, 0.5), (0.2, 0.3), (0.3, None))]
    found = keys.table(members)
    assert [values for values, _ in found.lines] == [[0.2], [0.1], [0.3]] and found.lines[0][1].share == 1.0


# --- the file


def test_the_page_is_one_file_without_requests_paths_or_patients_data(tmp_path: Path) -> None:
    make_many(tmp_path / "runs", 12)
    text = page_of(tmp_path / "runs")
    assert (
        not re.search(r"(?:src|href)=\"(?!data:,|[\w-]+/report\.html\")", text) and "@import" not in text and "url(" not in text
    )
    assert str(tmp_path) not in text and "somebody" not in text and "scans.npz" not in text and "p200000" not in text
    assert "default-src 'none'" in text


def test_the_same_files_give_the_same_page(tmp_path: Path) -> None:
    make_many(tmp_path, 5)
    assert page_of(tmp_path) == page_of(tmp_path)


def test_reports_are_linked_where_they_lie_below_the_page_and_else_not(tmp_path: Path) -> None:
    make(tmp_path / "my runs", "a-1")
    for file, link in (
        (tmp_path / "index.html", "my%20runs/a-1/report.html"),
        (tmp_path / "my runs" / "x.html", "a-1/report.html"),
    ):
        index.write_index(tmp_path / "my runs", file)
        assert f'<a href="{link}">a-1</a>' in file.read_text("utf-8")
    (tmp_path / "elsewhere").mkdir()
    index.write_index(tmp_path / "my runs", tmp_path / "elsewhere" / "x.html")
    assert "<a " not in (tmp_path / "elsewhere" / "x.html").read_text("utf-8")


@given(st.text())
def test_no_text_ends_the_embedded_data(text: str) -> None:
    made = page.embedded({"name": text + HOSTILE})
    assert not set(made) & set("<>&\u2028\u2029") and json.loads(made) == {"name": text + HOSTILE}


def test_names_and_values_are_escaped(tmp_path: Path) -> None:
    make(tmp_path, "a-1"), make(tmp_path, "x" + HOSTILE.replace("/", "") + "-1")
    run = make(tmp_path, "b-2")
    value = config("b")
    value["trainer"]["augment"] = [HOSTILE]
    run.config.write_text(yaml.safe_dump(value))
    rundir.write_json(Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff-3")) / "plan.json", {"job": "train"})
    text = page_of(tmp_path)
    assert text.count("<script") == 2 and "<img" not in text and "?-3" in text


# --- the verb


def said(capsys: pytest.CaptureFixture[str], code: int, *words: str) -> tuple[str, str]:
    """What `hpcai report` prints."""
    assert main(["report", *words]) == code
    out, err = capsys.readouterr()
    return out.strip(), err.strip()


def test_the_verb_writes_the_page_and_says_what_is_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    make_many(tmp_path / "runs", 3)
    assert said(capsys, 0, "--all") == ("index.html: 3 runs, 1 sweep", "")
    assert said(capsys, 0, "--all", "runs", "-o", "x.html")[0] == "x.html: 3 runs, 1 sweep"
    assert json.loads(said(capsys, 0, "--all", "--runs-dir", "runs", "--json")[0])["runs"] == 3  # one of ours is replaced


def test_a_file_of_another_is_not_replaced_without_force(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    make(tmp_path / "runs", "a-1")
    (tmp_path / "index.html").write_text("<p>mine")
    line = "-o=index.html: is there already. --force replaces it; or name another file by -o."
    assert said(capsys, 3, "--all") == ("", line) and (tmp_path / "index.html").read_text() == "<p>mine"
    assert said(capsys, 0, "--all", "--force")[1] == "" and "a-1" in (tmp_path / "index.html").read_text()
    (tmp_path / "link").symlink_to("index.html")
    for name in ("link", "runs", "/dev/null"):
        assert said(capsys, 3, "--all", "--force", "-o", name)[1] == f"-o={name}: is no plain file. Name another by -o."
    assert said(capsys, 3, "--all", "-o", "no/where.html")[1].startswith("-o=no/where.html: No such file or directory.")
    assert said(capsys, 2, "--all", "nowhere")[1].startswith("--all=nowhere: is no folder.")
    assert said(capsys, 2)[1].startswith("hpcai report: names no run.")
    assert said(capsys, 2, "a", "-o", "x")[1].startswith("hpcai report: -o and --force")


def test_an_empty_folder_is_a_page_that_says_so(tmp_path: Path) -> None:
    assert "No run here yet." in page_of(tmp_path)


def test_what_is_private_is_its_owners_whatever_was_there(tmp_path: Path) -> None:
    file = tmp_path / "x"
    file.write_text("old")
    file.chmod(0o644)
    before = os.umask(0)
    try:
        outfile.write(file, b"new", private=True)
    finally:
        os.umask(before)
    assert (file.read_bytes(), file.stat().st_mode & 0o777) == (b"new", 0o600) and list(tmp_path.iterdir()) == [file]
    for name in ("", "a\0b", "x/y", "."):
        with pytest.raises(PlanError, match=r"^-o="):
            outfile.check(tmp_path / name)
            outfile.write(tmp_path / name, b"")


# --- in a browser


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=ARGS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page over two sweeps of 80 and 20 runs, some of which failed, one of a hostile name, one report of another version."""
    folder = tmp_path_factory.mktemp("runs of 'today' #1 ü")
    make_many(folder / "runs", 100)
    make(folder / "runs", "x" + HOSTILE.replace("/", "") + "-1", auc=0.999)
    make(folder / "runs", "other-2", "running", auc=0.5)
    make(folder / "runs", "other-3", version=9)
    index.write_index(folder / "runs", folder / "index.html")
    return folder / "index.html"


def visit(browser: Any, file: Path, width: int = 1280, **options: Any) -> tuple[Any, list[str], list[str]]:
    """The open page, what the console said, and the requests it made."""
    tab = browser.new_page(viewport={"width": width, "height": 900}, **options)
    said: list[str] = []
    asked: list[str] = []
    tab.on("console", lambda message: said.append(message.text))
    tab.on("pageerror", lambda error: said.append(str(error)))
    tab.on("request", lambda request: asked.append(request.url))
    tab.goto(file.as_uri())
    return tab, said, asked


def column(tab: Any, number: int) -> list[str]:
    """The texts of a column of the rows that are shown."""
    script = """n => [...document.querySelectorAll('#table tbody tr:not([hidden])')].map(r => r.cells[n].innerText.trim())"""
    found: list[str] = tab.evaluate(script, number)
    return found


@pytest.mark.browser
@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_the_console_is_silent_nothing_is_fetched_and_nothing_overflows(
    chromium: Any, file: Path, width: int, scheme: str
) -> None:
    tab, said, asked = visit(chromium, file, width, color_scheme=scheme)
    tab.wait_for_load_state("networkidle")
    assert said == [] and [url for url in asked if not url.startswith("data:")] == [file.as_uri()]
    assert tab.title() == "runs – hpcai runs" and tab.locator("img").count() == 0
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    tab.close()


@pytest.mark.browser
def test_any_column_sorts_both_ways_and_what_is_not_known_comes_last(chromium: Any, file: Path) -> None:
    tab, said, _ = visit(chromium, file)
    for name, place in (("Answer", 5), ("Validation", 4)):
        for rising in (False, True):
            tab.get_by_role("button", name=name, exact=True).click()
            values = [float(text.split()[0]) for text in column(tab, place) if text != "–"]
            assert values == sorted(values, reverse=not rising) and len(set(values)) > 5
            assert "–" not in column(tab, place)[: len(values)]
    order = "ascending"
    assert tab.locator("th[aria-sort]").get_attribute("aria-sort") == order
    tab.get_by_role("button", name="lr", exact=True).press("Enter")  # by keyboard
    rates = [float(text) for text in column(tab, 7)]
    assert rates == sorted(rates) and len(set(rates)) > 2 and said == []
    tab.close()


@pytest.mark.browser
def test_filters_narrow_the_table_together(chromium: Any, file: Path) -> None:
    tab, said, _ = visit(chromium, file)
    assert tab.inner_text("#count") == "103 of 103 shown"
    tab.select_option("#sweep", "grid1-00000001")
    assert len(column(tab, 1)) == 20 and tab.inner_text("#count") == "20 of 103 shown"
    tab.select_option("#state", "failed")
    assert set(column(tab, 3)) == {"failed epoch 20/20"}
    tab.click("#clear")
    tab.fill("#find", "OTHER running")
    assert column(tab, 1) == ["other-2"]
    tab.click("#clear")
    tab.select_option("#experiment", "other")
    assert len(column(tab, 1)) == 2
    tab.locator("button.only").first.click()
    assert len(column(tab, 1)) == 80 and tab.input_value("#experiment") == "" and said == []
    tab.close()


@pytest.mark.browser
def test_the_curves_of_chosen_runs_stand_side_by_side(chromium: Any, file: Path) -> None:
    tab, said, _ = visit(chromium, file)
    assert tab.locator("#charts figure").count() == 3 and tab.locator("#picked li").count() == page.SHOWN
    assert HOSTILE.replace("/", "")[:20] in tab.locator("#picked li").first.inner_text()  # the best on validation, as a text
    for box in tab.locator("#picked li").count() * [tab.locator("#table input:checked").first]:
        box.uncheck()
    assert tab.locator("#charts figure").count() == 0 and "Choose runs" in tab.inner_text("#told")
    boxes = tab.locator("#table input")
    for k in range(12):
        boxes.nth(k).check()
    assert tab.locator("#picked li").count() == 12 and tab.locator("#charts figure").first.locator("path").count() == 12
    boxes.nth(12).click()
    assert not boxes.nth(12).is_checked() and "12 runs at most" in tab.inner_text("#told")
    numbers = "[...document.querySelectorAll('#charts path')].every(p => !p.getAttribute('d').includes('NaN'))"
    assert tab.evaluate(numbers) and said == []
    tab.close()


@pytest.mark.browser
def test_without_a_script_it_is_a_plain_table(chromium: Any, file: Path) -> None:
    context = chromium.new_context(java_script_enabled=False)
    tab = context.new_page()
    tab.goto(file.as_uri())
    assert tab.locator("#table tbody tr").count() == 103 and not tab.locator("#filters").is_visible()
    assert tab.get_by_text("Without scripts this is a plain table").is_visible() and tab.locator(".heat td b").count() == 16
    context.close()


@pytest.mark.browser
def test_it_prints_whole(chromium: Any, file: Path) -> None:
    tab, _, _ = visit(chromium, file)
    assert tab.pdf(format="A4", landscape=True).startswith(b"%PDF")
    tab.emulate_media(media="print")
    assert (
        not tab.locator("#filters").is_visible()
        and tab.evaluate("getComputedStyle(document.querySelector('.scroll')).maxHeight") == "none"
    )
    tab.close()


def test_a_sweep_whose_members_are_gone_or_damaged_is_told(tmp_path: Path) -> None:
    members = [make(tmp_path, f"a-{k}", seed=k) for k in range(2)]
    sweep(tmp_path, "s-1", [*members, RunDir(tmp_path / "gone-3")], ["seed=0", "seed=1", "seed=2"])
    sweep(tmp_path, "t-2", members, ["seed=0", "seed=1"])
    (tmp_path / "sweeps" / "t-2" / "members.json").write_text("[")
    _, found = entries.read_all(tmp_path)
    assert [(g.places, g.gone) for g in found] == [([0, 1], 1), ([], 0)] and found[1].state == "unreadable"
    text = page_of(tmp_path)
    assert "1 not here" in text and "its members.json is damaged" in text
