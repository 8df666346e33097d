"""No patient in what is mailed: identifiers planted wherever data can hold them, looked for in all that leaves a run."""

from __future__ import annotations

import base64
import io
import json
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from hpcai import rundir
from hpcai.rundir import RunDir

NAME, RARE = "Mustermann", "ZentrumKleinstadt"  # of every patient, case, folder and file; of a site with three cases
PLANTED = ("mustermann", "zentrumkleinstadt", "gehtkeinenan", "zz-19510412", "ordnerdavid")
CASES = {"train": 60, "val": 24, "test": 40}
LABELS = "data.labels=[nein,ja]"


def plant(folder: Path) -> Path:
    """A listing whose file names, folders, case ids, patient ids, a rare group and a foreign column name people."""
    rng = np.random.default_rng(5)
    images = folder / "OrdnerDavid"
    images.mkdir(parents=True)
    lines = ["case,path,label,patient,split,site,remark"]
    number = 0
    for split, count in CASES.items():
        for k in range(count):
            number += 1
            label = k % 2
            pixels = rng.integers(0, 200, (12, 12)) + (label * 40)  # not easy: some are called wrongly
            file = f"{NAME}_Anna_{number:03}.png"
            note = PngInfo()
            note.add_text("Patient", f"{NAME} gehtkeinenan")
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(images / file, pnginfo=note)
            site = RARE if number <= 3 else "Nord"
            of = f"{('nein', 'ja')[label]},ZZ-19510412-{number},{split},{site},gehtkeinenan"
            lines.append(f"{NAME}/{number:03},OrdnerDavid/{file},{of}")
    (folder / "liste.csv").write_text("\n".join(lines) + "\n", "utf-8")
    return folder / "liste.csv"


def hpcai(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([sys.executable, "-m", "hpcai.cli", *words], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done


def trained(folder: Path, *words: str) -> tuple[RunDir, str]:
    """A real run on planted data, and what it said."""
    listing = plant(folder / f"Klinik {NAME}")
    said = hpcai(
        folder, "run", "name=tiny", "data.reader=csv", "data.identifiers=identifying", f"data.path={listing}", LABELS,
        "data.patient_col=patient",
        "data.group_cols=[site]", "data.split.by=published", "data.split_col=split", "trainer.epochs=1",
        "trainer.batch_size=16", "model.width=8", "resources.cpus_per_task=1", *words,
    )  # fmt: skip
    (run,) = (RunDir(path) for path in (folder / "runs").glob("tiny-*"))
    return run, said.stdout + said.stderr


@pytest.fixture(scope="module")
def private(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunDir, str]:
    return trained(tmp_path_factory.mktemp("private"))


@pytest.fixture(scope="module")
def public(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunDir, str]:
    return trained(tmp_path_factory.mktemp("public"), "data.shareable=true")


def found_in(text: str) -> list[str]:
    """Which of the planted words a text holds, also behind escapes."""
    return [word for word in PLANTED if word in text.lower()]


def pngs(html: str) -> list[bytes]:
    return [base64.b64decode(text) for text in re.findall(r"data:image/png;base64,([A-Za-z0-9+/=]+)", html)]


def parts(file: Path) -> dict[str, str]:
    with zipfile.ZipFile(file) as z:
        return {name: z.read(name).decode() for name in z.namelist()}


@pytest.mark.slow
def test_the_plants_are_where_data_are_and_nowhere_else(private: tuple[RunDir, str]) -> None:
    run, said = private
    assert found_in(run.cases.read_text("utf-8")) and found_in(run.split.read_text("utf-8"))  # the test would find them
    assert found_in(said.replace(str(run.path), "")) == []
    for file in (run.report_json, run.log(0), run.metrics, run.threshold, run.model, *run.path.glob("lives/*/*.jsonl")):
        assert found_in(file.read_text("utf-8")) == [], file.name
    assert not run.pictures.exists()


@pytest.mark.slow
def test_the_mailed_report_has_rows_and_no_picture(private: tuple[RunDir, str]) -> None:
    run, _ = private
    html = run.report_html.read_text("utf-8")
    block = rundir.read_json(run.report_json)["mistakes"]
    assert block["shown"] == "rows" and block["false_positive"] + block["false_negative"]
    assert found_in(html) == [] and "liste.csv" not in html and str(run.path.parent) not in html and pngs(html) == []
    listing = (run.path.parent.parent / f"Klinik {NAME}" / "liste.csv").read_text("utf-8").splitlines()
    for entry in block["false_positive"]:
        assert ",nein," in listing[int(entry["row"]) - 1]  # the row as a person counts it: the header is row 1


@pytest.mark.slow
def test_the_export_holds_none_of_them_no_path_no_host_and_no_row(private: tuple[RunDir, str], tmp_path: Path) -> None:
    import socket

    run, _ = private
    said = hpcai(tmp_path, "export", str(run.path), "-o", "s.zip")
    files = parts(tmp_path / "s.zip")
    assert list(files)[:3] == ["README.txt", "report.html", "report.json"] and {"config.yaml", "metrics.jsonl"} < set(files)
    assert (tmp_path / "s.zip").stat().st_mode & 0o777 == 0o600 and "no rows" in said.stdout
    for name, text in files.items():
        assert found_in(text) == [] and str(run.path.parent) not in text and str(Path.home()) + "/" not in text, name
        assert socket.gethostname() not in text and "liste.csv" not in text and pngs(text) == [], name
    assert json.loads(files["report.json"])["estimates"] == rundir.read_json(run.report_json)["estimates"]
    hpcai(tmp_path, "export", str(run.path), "-o", "again.zip")
    assert (tmp_path / "again.zip").read_bytes() == (tmp_path / "s.zip").read_bytes()


@pytest.mark.slow
def test_a_support_bundle_holds_none_of_them(private: tuple[RunDir, str], tmp_path: Path) -> None:
    import tarfile

    run, _ = private
    hpcai(tmp_path, "report", "--internal", str(run.path), "--force")
    hpcai(tmp_path, "support", str(run.path), "-o", "s.tar.gz")
    with tarfile.open(tmp_path / "s.tar.gz") as tar:
        for member in tar.getmembers():
            file = tar.extractfile(member)
            assert file is not None and found_in(file.read().decode("utf-8", "replace")) == [], member.name
            assert "internal" not in member.name and "pictures" not in member.name


@pytest.mark.slow
def test_the_internal_page_has_them_is_its_owners_and_says_so_on_each_page(private: tuple[RunDir, str], tmp_path: Path) -> None:
    run, _ = private
    before = (run.report_html.read_bytes(), run.report_json.read_bytes())
    said = subprocess.run(
        ["sh", "-c", 'umask 000; exec "$@"', "sh", sys.executable, "-m", "hpcai.cli", "report", "--internal", str(run.path)],
        cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    assert said.returncode == 0 and "Do not mail it." in said.stdout, said.stderr
    assert run.report_internal.stat().st_mode & 0o777 == 0o600
    html = run.report_internal.read_text("utf-8")
    block = rundir.read_json(run.report_json)["mistakes"]
    wrong = len(block["false_positive"]) + len(block["false_negative"])
    assert "mustermann" in found_in(html) and len(pngs(html)) == wrong > 0
    assert html.count("Internal: holds patient data. Do not mail.") == 2  # first and last on the screen
    printed = "Internal\\3a \\20 holds\\20 patient\\20 data\\2e \\20 Do\\20 not\\20 mail"
    assert f'@bottom-left {{ content: "{printed}' in html  # on each sheet
    assert b"gehtkeinenan" not in b"".join(pngs(html)).lower()  # what stood in the file's own header
    assert (run.report_html.read_bytes(), run.report_json.read_bytes()) == before
    for name in ("report.html", "report.json", "config.yaml"):
        done = subprocess.run(
            [sys.executable, "-m", "hpcai.cli", "report", "--internal", str(run.path), "--force", "-o", str(run.path / name)],
            capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 3 and "lies in the run" in done.stderr
    assert (run.report_html.read_bytes(), run.report_json.read_bytes()) == before


@pytest.mark.slow
def test_what_is_stated_shareable_is_shown_and_exported(public: tuple[RunDir, str], tmp_path: Path) -> None:
    run, _ = public
    html, block = run.report_html.read_text("utf-8"), rundir.read_json(run.report_json)["mistakes"]
    cases = [entry["case"] for kind in ("false_positive", "false_negative") for entry in block[kind]]
    assert block["shown"] == "ids" and cases and len(pngs(html)) == len(cases) and all(case in html for case in cases)
    for png in pngs(html):
        with Image.open(io.BytesIO(png)) as picture:
            assert picture.size == (12, 12)
    hpcai(tmp_path, "export", str(run.path), "-o", "s.zip")
    files = parts(tmp_path / "s.zip")
    assert len(pngs(files["report.html"])) == len(cases) and json.loads(files["report.json"])["mistakes"] == block
    assert found_in(files["config.yaml"] + files["plan.json"] + files["metrics.jsonl"]) == []
    assert "zz-19510412" not in files["report.html"].lower()


@pytest.mark.slow
@pytest.mark.browser
def test_each_printed_page_says_that_it_is_internal(private: tuple[RunDir, str]) -> None:
    import zlib

    from playwright.sync_api import sync_playwright
    from test_report_browser import ARGS, CHROMIUM

    run, _ = private
    hpcai(run.path, "report", "--internal", str(run.path))
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=ARGS)
        tab = browser.new_page()
        said: list[str] = []
        tab.on("console", lambda message: said.append(message.text))
        tab.goto(run.report_internal.as_uri())
        tab.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
        pdf = tab.pdf(format="A4")
        browser.close()
    pages = len(re.findall(rb"/Type /Page\b", pdf))
    red = 0
    for stream in re.findall(rb"stream\r?\n(.*?)\r?\nendstream", pdf, re.DOTALL):
        try:
            red += zlib.decompress(stream).count(b".5608 .1137 .0784 rg")  # the words' own red, in the margin
        except zlib.error:
            continue
    assert said == [] and red == pages > 1
