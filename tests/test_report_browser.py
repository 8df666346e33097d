"""The report in a real browser: headless Chromium, wide and on a phone, light and dark, with and without much to show."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from report_runs import make_run
from test_report_together import gathered, together
from test_report_used import USED, ran

from hpcai import rundir
from hpcai.report import write_report
from hpcai.report.words import number
from hpcai.rundir import RunDir

pytestmark = pytest.mark.browser
CHROMIUM = Path("/usr/bin/chromium")
ARGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
]
ARGS += ["--disable-component-update", "--disable-sync"]
CLASSES = (
    "epithelium",
    "adipose tissue",
    "background",
    "debris",
    "lymphocytes",
    "mucus",
    "smooth muscle",
    "stroma",
)


def missing() -> str | None:
    """What these tests need and this machine lacks, or None."""
    if importlib.util.find_spec("playwright") is None:
        return "playwright is not installed (pip install hpcai[browser])"
    return None if CHROMIUM.exists() else f"{CHROMIUM} is missing (apt-get install chromium)"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=str(CHROMIUM), args=ARGS)
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, RunDir]:
    folder = tmp_path_factory.mktemp("runs of 'today' #1 ü")
    word = "W" * 60  # has no place to break
    made = {
        "train": make_run(folder / "train"),
        "evaluate": make_run(folder / "evaluate", job="evaluate", cases_a_patient=4),
        "predict": make_run(folder / "predict", job="predict"),
        "classes": make_run(folder / "classes", labels=CLASSES),
        "long": make_run(folder / "long", labels=(word, word + "2"), name=word),
    }
    made["together"] = make_run(folder / "together", job="evaluate", from_run=["/runs/a-1", f"/runs/{word}"])
    together(made["together"], ["a-1", word])
    made["used"] = ran(folder / "used", USED)
    made["gather"] = gathered(folder / "gather", name=word)
    for run in made.values():
        write_report(run)
    return made


KINDS = ["train", "evaluate", "predict", "classes", "long", "together", "gather", "used"]


def visit(browser: Any, run: RunDir, width: int, scheme: str = "light") -> tuple[Any, list[str], list[str]]:
    """The open page, what the console said, and the requests it made."""
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    said: list[str] = []
    asked: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(run.report_html.as_uri())
    return page, said, asked


@pytest.mark.parametrize("kind", KINDS)
def test_the_console_is_silent_and_nothing_is_fetched(browser: Any, runs: dict[str, RunDir], kind: str) -> None:
    page, said, asked = visit(browser, runs[kind], 1280)
    page.wait_for_load_state("networkidle")
    assert said == []
    assert [url for url in asked if not url.startswith("data:")] == [runs[kind].report_html.as_uri()]
    page.close()


@pytest.mark.parametrize("width", [320, 390, 768, 1280])
@pytest.mark.parametrize("kind", KINDS)
def test_nothing_overflows_sideways(browser: Any, runs: dict[str, RunDir], kind: str, width: int) -> None:
    page, _, _ = visit(browser, runs[kind], width)
    page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    # what is wider than the page scrolls in a frame of its own; all else lies within
    wide = page.evaluate(
        """w => [...document.querySelectorAll('main *')]
             .filter(e => !e.closest('.scroll, pre, svg, thead') && e.getBoundingClientRect().right > w + 1)
             .map(e => e.outerHTML.slice(0, 80))""",
        width,
    )
    assert wide == []
    page.close()


def test_the_numbers_on_the_page_are_those_of_report_json(browser: Any, runs: dict[str, RunDir]) -> None:
    for kind in ("train", "evaluate", "classes"):
        report = rundir.read_json(runs[kind].report_json)
        page, _, _ = visit(browser, runs[kind], 1280)
        shown = page.evaluate(
            "Object.fromEntries([...document.querySelectorAll('[data-key]')].map(e => [e.dataset.key, e.innerText]))"
        )
        assert page.title().startswith(report["name"])
        assert page.locator(".big").inner_text() == number(report["estimates"][0]["value"])
        for e in report["estimates"]:
            key = f"{e['split']}/{e['name']}"
            assert shown[f"{key}/value"] == number(e["value"])
            assert shown[f"{key}/interval"] == f"{number(e['low'])} to {number(e['high'])}"
            assert shown[f"{key}/n"] == f"{e['n']:,}"
        for split, matrix in report["confusion"].items():
            for i, row in enumerate(matrix):
                for j, count in enumerate(row):
                    assert shown[f"{split}/confusion/{i}/{j}"].split()[0] == f"{count:,}"
        assert page.locator("#warnings li").all_inner_texts() == report["warnings"]
        page.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_its_ground(browser: Any, runs: dict[str, RunDir], scheme: str) -> None:
    """WCAG 2.2 AA, success criterion 1.4.3: contrast of at least 4.5 for text."""
    page, _, _ = visit(browser, runs["train"], 1280, scheme)
    contrast = """selector => {
      const rgb = c => c.match(/[\\d.]+/g).slice(0, 3).map(Number);
      const light = c => rgb(c).map(v => v / 255).map(v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
        .reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
      const ground = e => { for (; e; e = e.parentElement) { const c = getComputedStyle(e).backgroundColor;
        if (!c.startsWith('rgba(0, 0, 0, 0')) return c; } };
      const e = document.querySelector(selector), s = getComputedStyle(e);
      const [a, b] = [light(e.closest('svg') ? s.fill : s.color), light(ground(e))].sort((x, y) => y - x);
      return (a + .05) / (b + .05);
    }"""
    for selector in (
        "h1",
        ".question",
        ".big",
        ".small",
        ".notes h2",
        ".notes li",
        "td.method",
        ".key li",
        "svg text",
        "pre",
    ):
        assert page.evaluate(contrast, selector) >= 4.5, selector
    page.close()


def test_charts_are_drawn_in_the_colors_of_the_page(browser: Any, runs: dict[str, RunDir]) -> None:
    colors = {}
    for scheme in ("light", "dark"):
        page, _, _ = visit(browser, runs["train"], 1280, scheme)
        assert page.locator("svg").count() == 3
        colors[scheme] = page.evaluate("getComputedStyle(document.querySelector('#roc svg text')).fill")
        assert page.evaluate("[...document.querySelectorAll('svg')].every(s => s.getBBox().height > 100)")
        page.close()
    assert colors["light"] != colors["dark"]


def test_no_two_texts_of_a_chart_overlap(browser: Any, runs: dict[str, RunDir]) -> None:
    for kind in ("train", "predict"):
        page, _, _ = visit(browser, runs[kind], 390)
        clashes = page.evaluate(
            """() => [...document.querySelectorAll('svg')].flatMap(svg => {
                 const boxes = [...svg.querySelectorAll('text')].map(t => [t.textContent, t.getBoundingClientRect()]);
                 const meet = (p, q) => p.left < q.right - 1 && q.left < p.right - 1
                   && p.top < q.bottom - 2 && q.top < p.bottom - 2;
                 return boxes.flatMap(([a, p], i) =>
                   boxes.slice(i + 1).filter(([_, q]) => meet(p, q)).map(([b]) => a + '/' + b));
               })"""
        )
        assert clashes == []
        page.close()


def test_it_prints(browser: Any, runs: dict[str, RunDir]) -> None:
    page, _, _ = visit(browser, runs["train"], 1280)
    pdf = page.pdf(format="A4", print_background=True)
    assert pdf.startswith(b"%PDF") and 2 <= pdf.count(b"/Type /Page\n") + pdf.count(b"/Type /Page ") <= 8
    page.close()
