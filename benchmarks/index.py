"""How long does a page over 500 runs take to be made, and to open in headless Chromium? Exit 1 where that takes more than 2 s.

The folders are synthetic, each file of its real format (tests/index_runs.py): 20 epochs of metrics, a report, sweeps by three
keys, some runs failed or lost. Opened: from the request to the end of two frames after `load`, each time in a fresh browser
context; built: the whole command, as a process.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from index_runs import make_many

RUNS = 500
ROUNDS = 7
ASKED_S = 2.0
CHROMIUM = "/usr/bin/chromium"
DRAWN = "() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => done())))"


def main() -> int:
    """Prints the table; returns the exit code."""
    with tempfile.TemporaryDirectory() as folder:
        runs, page = Path(folder, "runs"), Path(folder, "index.html")
        make_many(runs, RUNS)
        built = [build(runs, page) for _ in range(3)]
        opened = open_many(page)
        print(f"{RUNS} runs, {page.stat().st_size / 1e6:.1f} MB")
        print(f"{'':<10}{'median s':>10}{'max s':>8}")
        print(f"{'built':<10}{statistics.median(built):>10.2f}{max(built):>8.2f}   ({len(built)} rounds)")
        print(f"{'opened':<10}{statistics.median(opened):>10.2f}{max(opened):>8.2f}   ({ROUNDS} rounds; asked: {ASKED_S:g} s)")
        return int(statistics.median(opened) > ASKED_S)


def build(runs: Path, page: Path) -> float:
    """Seconds of the whole command."""
    before = time.perf_counter()
    words = [sys.executable, "-m", "hpcai.cli", "report", "--all", str(runs), "-o", str(page)]
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - before


def open_many(page: Path) -> list[float]:
    """Seconds until it is drawn, of each round."""
    from playwright.sync_api import sync_playwright

    seen = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        for _ in range(ROUNDS):
            context = browser.new_context(viewport={"width": 1280, "height": 900})
            tab = context.new_page()
            before = time.perf_counter()
            tab.goto(page.as_uri(), wait_until="load")
            tab.evaluate(DRAWN)
            seen.append(time.perf_counter() - before)
            assert f"{RUNS} of {RUNS} shown" in tab.inner_text("#count")
            context.close()
        browser.close()
    return seen


if __name__ == "__main__":
    sys.exit(main())
