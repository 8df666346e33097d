"""The report in a real browser: headless Chromium, wide and on a phone, light and dark, with and without much to show."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from report_blocks import blocks, shortcut
from report_runs import make_run
from screening_cohort import tallied
from test_report import HOSTILE
from test_report_together import gathered, together
from test_report_used import USED, ran

from hpcai import rundir
from hpcai.config.schema import Study
from hpcai.report import summary, write_report
from hpcai.report.words import figure
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
    made["screening"] = make_run(folder / "screening", job="predict")
    rundir.write_json(made["screening"].screening, tallied())
    made["screening long"] = make_run(folder / "screening long")
    rundir.write_json(made["screening long"].screening, tallied(names=(word, word + "2"), kind="fit"))
    for run in made.values():
        write_report(run)
    return made | measured(folder)


def measured(folder: Path) -> dict[str, RunDir]:
    """Runs with all that can be measured of one, named plainly, by long words, by markup and from right to left."""
    made = {}
    stated = {name: f"What is stated of {name}, in a sentence that has to be broken into lines." for name in Study.model_fields}
    rtl = "\u05e9\u05dc\u05d5\u05dd \u05e2\u05d5\u05dc\u05dd"
    for kind, text in {"full": "", "unbroken": "W" * 80, "markup": HOSTILE, "rtl": rtl + " \U0001fac1"}.items():
        told = blocks(0.1, columns=(text or "sex", f"{text}2" if text else "age"))
        if text:
            told["subgroups"][0]["groups"][0]["name"] = text
            told["characteristics"]["columns"][0]["splits"]["val"]["levels"] = {text: 500}
            told["shortcut"] = shortcut((text,))
        words: dict[str, Any] = {"study": dict.fromkeys(Study.model_fields, text) if text else stated}
        words |= {"labels": (text, f"{text}2"), "name": text} if text else {}
        made[kind] = make_run(folder / kind, report={"prevalence": 0.1}, **words)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(summary, "measured", lambda _, told=told: told)
            write_report(made[kind])
    return made


KINDS = ["train", "evaluate", "predict", "classes", "long", "together", "gather", "used", "full", "unbroken", "markup", "rtl"]
KINDS += ["screening", "screening long"]


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
    for kind in ("train", "evaluate", "classes", "full"):
        report = rundir.read_json(runs[kind].report_json)
        page, _, _ = visit(browser, runs[kind], 1280)
        shown = page.evaluate(
            "Object.fromEntries([...document.querySelectorAll('[data-key]')].map(e => [e.dataset.key, e.innerText]))"
        )
        assert page.title().startswith(report["name"])
        assert page.locator(".big").inner_text() == figure("auc", report["estimates"][0]["value"])
        for e in report["estimates"]:
            key = f"{e['split']}/{e['name']}"
            assert shown[f"{key}/value"] == figure(e["name"], e["value"])
            ends = "–" if e["low"] is None else f"{figure(e['name'], e['low'])} to {figure(e['name'], e['high'])}"
            assert shown[f"{key}/interval"] == ends
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
    page, _, _ = visit(browser, runs["full"], 1280, scheme)
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
        *(".research", ".methods li", ".numbers td.i", ".box .small", ".items td", ".items a", ".absent", "summary .small"),
        *("td.method", ".key li", "svg text", "pre"),
    ):
        assert page.evaluate(contrast, selector) >= 4.5, selector
    page.close()


def test_charts_are_drawn_in_the_colors_of_the_page(browser: Any, runs: dict[str, RunDir]) -> None:
    colors = {}
    for scheme in ("light", "dark"):
        page, _, _ = visit(browser, runs["full"], 1280, scheme)
        assert page.locator("svg").count() == 6
        colors[scheme] = page.evaluate("getComputedStyle(document.querySelector('#discrimination svg text')).fill")
        assert page.evaluate("[...document.querySelectorAll('svg')].every(s => s.getBBox().height > 100)")
        page.close()
    assert colors["light"] != colors["dark"]


def test_no_two_texts_of_a_chart_overlap(browser: Any, runs: dict[str, RunDir]) -> None:
    for kind in ("full", "predict"):
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
    page, _, _ = visit(browser, runs["full"], 1280)
    pdf = page.pdf(format="A4", print_background=True)
    assert pdf.startswith(b"%PDF") and 6 <= pdf.count(b"/Type /Page\n") + pdf.count(b"/Type /Page ") <= 16
    page.close()


@pytest.mark.parametrize("kind", KINDS)
def test_in_print_nothing_is_folded_or_cut(browser: Any, runs: dict[str, RunDir], kind: str) -> None:
    """A4 less its margins is 688 pixels of CSS wide. Nothing can be scrolled or unfolded on paper."""
    page, _, _ = visit(browser, runs[kind], 688)
    page.emulate_media(media="print")
    assert page.evaluate("document.documentElement.scrollWidth") <= 688
    cut = """() => [...document.querySelectorAll('main *')].filter(e => !e.closest('svg, summary')).filter(e => {
      const box = e.getBoundingClientRect(), style = getComputedStyle(e);
      const hides = style.overflowX != 'visible' && e.scrollWidth > e.clientWidth + 1;
      return style.display != 'none' && (box.right > 689 || box.left < -1 || hides);
    }).map(e => e.outerHTML.slice(0, 80))"""
    assert page.evaluate(cut) == []
    folded = """() => [...document.querySelectorAll('details > *:not(summary)')]
      .filter(e => !e.checkVisibility() || !e.offsetHeight).length"""
    assert page.evaluate(folded) == 0
    page.close()


def test_dark_mode_does_not_reach_the_paper(browser: Any, runs: dict[str, RunDir]) -> None:
    page, _, _ = visit(browser, runs["full"], 1280, "dark")
    page.emulate_media(media="print", color_scheme="dark")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert page.evaluate("getComputedStyle(document.querySelector('.question')).color") == "rgb(20, 24, 28)"
    page.close()


def test_markup_of_a_users_is_shown_as_text(browser: Any, runs: dict[str, RunDir]) -> None:
    page, said, _ = visit(browser, runs["markup"], 1280)
    assert page.evaluate("document.scripts.length") == 0 and said == []
    assert page.locator("h1").inner_text() == " ".join(HOSTILE.split())
    page.close()


def test_each_link_of_the_page_leads_to_one_of_its_sections(browser: Any, runs: dict[str, RunDir]) -> None:
    for kind in KINDS:
        page, _, _ = visit(browser, runs[kind], 1280)
        lost = (
            "[...document.querySelectorAll('a')].filter(a => !document.getElementById(a.getAttribute('href').slice(1))).length"
        )
        assert page.evaluate(lost) == 0
        page.close()
