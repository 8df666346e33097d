"""hpcai new: a folder and a listing as people have them, to an experiment that runs; and what is refused, by row."""

from __future__ import annotations

import csv
import io
import json
import stat
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Done
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from hpcai import cli
from hpcai.config.check import load
from hpcai.data.open import open_cases
from hpcai.errors import DataError, Faults
from hpcai.intake import alike
from hpcai.intake.columns import hostile
from hpcai.intake.faults import Notes
from hpcai.intake.summary import labels_of
from hpcai.intake.table import decimal_points, read_table, safe_cell
from hpcai.intake.write import _yaml
from hpcai.plan import make_plan

SECRET = "Mustermann"  # as if a cell or a file named a patient
HEAD = ["image", "patient", "finding", "site"]
Row = list[str]


def picture(path: Path, seed: int, bright: bool = False) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    x = np.random.default_rng(seed).integers(0, 120, (12, 12)) + 60 * bright
    Image.fromarray(x.astype(np.uint8)).save(path)
    return path


def ward(folder: Path, n: int = 40) -> list[Row]:
    """`n` images, two a patient, of two classes; the rows that belong to them."""
    rows = []
    for i in range(n):
        sick = i // 2 % 2 == 1
        picture(folder / "img" / f"scan{i:02d}.png", i, sick)
        rows.append([f"scan{i:02d}", f"{SECRET}{i // 2:02d}", "fracture" if sick else "no", "AB"[i % 2]])
    return rows


def listing(folder: Path, rows: list[Row], head: Row = HEAD, sep: str = ",", bom: bool = False) -> Path:
    path = folder / "labels.csv"
    buffer = io.StringIO()
    csv.writer(buffer, delimiter=sep, lineterminator="\n").writerows([head, *rows])
    path.write_text(buffer.getvalue(), "utf-8-sig" if bom else "utf-8")
    return path


@pytest.fixture
def new(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    """new("--label-col", "finding"): hpcai new ward, in a folder of this test."""
    monkeypatch.chdir(tmp_path)

    def call(*words: str, name: str = "ward") -> Done:
        code = cli.main(["new", name, "--images", "img", "--labels", "labels.csv", *words])
        said = capsys.readouterr()
        return Done(code, said.out, said.err)

    return call


def refused(done: Done, code: int, *said: str) -> None:
    """Ended with `code` and these words; nothing was written and no patient named."""
    assert done.rc == code, (done.out, done.err)
    for text in said:
        assert text in done.err, done.err
    assert SECRET not in done.out + done.err and not Path("mine").exists()


def written(name: str = "ward") -> list[Row]:
    return list(csv.reader(Path(f"mine/{name}.csv").open()))


# --- the whole way


def test_forty_files_of_twenty_patients_with_three_faults_go_from_new_to_a_report(tmp_path: Path, new: Any) -> None:
    rows = ward(tmp_path)
    (tmp_path / "img/scan07.png").write_bytes(b"\x89PNG not at all")  # an image that cannot be read
    rows.append(["scan99", f"{SECRET}99", "no", "A"])  # a label nobody has
    rows.append(["scan11.png", f"{SECRET}05", "no", "A"])  # two labels for one case: row 13 says fracture
    listing(tmp_path, rows)

    refused(new(), 4, "row 9: its image is no readable PNG", "row 42: no image of that name",
            "row 13: gives its case another label than row 43", "row 43: gives its case another label than row 13",
            "4 rows are at fault", "--skip-faults")  # fmt: skip

    done = new("--group-cols", "site", "--skip-faults")
    assert done.rc == 0, done.err
    assert SECRET not in done.out + done.err
    for text in ("38 cases of 20 patients", "image = image (guessed)", "class = finding (guessed)",
                 "patient = patient (guessed)",
                 "no such image", "two labels for one case", "image cannot be read", "site", "A 20, B 18",
                 "hpcai run +experiment=ward --config-dir mine data.identifiers=none"):  # fmt: skip
        assert text in done.out, done.out
    reasons = {"no such image": 1, "two labels for one case": 2, "image cannot be read": 1}
    assert json.loads(Path("mine/ward.excluded.json").read_text()) == reasons
    for file in ("ward.csv", "ward-fingerprint.html", "ward.excluded.json"):
        assert stat.S_IMODE(Path("mine", file).stat().st_mode) == 0o600
    page = Path("mine/ward-fingerprint.html").read_text("utf-8")
    assert SECRET not in page and "<script" not in page and "http" not in page.replace("http-equiv", "")
    for file in ("data/ward.yaml", "experiment/ward.yaml"):
        assert SECRET not in Path("mine", file).read_text("utf-8")

    words = ["+experiment=ward", "--config-dir", "mine", "trainer.epochs=1", "model.width=8", "resources.cpus_per_task=1"]
    assert cli.main(["run", *words]) == 2  # not stated yet
    assert cli.main(["run", *words, "data.identifiers=none"]) == 0
    (report,) = Path("runs").glob("ward-*/report.json")
    flow = json.loads(report.read_text())["flow"]
    assert flow["found"] == 42 and {out["why"]: out["n"] for out in flow["excluded"]} == reasons
    config = load([w for w in words if w not in ("--config-dir", "mine")] + ["data.identifiers=none"], Path("mine"))
    assert config.data.excluded == reasons and config.data.shareable is False
    assert config.data.labels == ["no", "fracture"]


def test_the_listing_written_gives_every_case_its_own_image_and_label(tmp_path: Path, new: Any) -> None:
    rows = ward(tmp_path, 12)
    listing(tmp_path, rows[::-1])
    assert new("--out", "else/where").rc == 0
    config = load(["+experiment=ward", "data.identifiers=none"], Path("else/where"))
    cases = open_cases(make_plan(config)[1].data)
    assert cases.ids == [row[0] for row in rows[::-1]] and cases.patients == [row[1] for row in rows[::-1]]
    assert [config.data.labels[y] for y in cases.labels] == [row[2] for row in rows[::-1]]
    assert (cases.read(0)[0] == np.asarray(Image.open("img/scan11.png"))).all()


def test_json_tells_the_fingerprint_to_programs(tmp_path: Path, new: Any) -> None:
    listing(tmp_path, ward(tmp_path, 12))
    facts = json.loads(new("--json").out)
    assert (facts["cases"], facts["patients"]["patients"], facts["patients"]["most"]) == (12, 6, 2)
    assert facts["sizes"] == [{"size": [12, 12], "cases": 12}]


# --- listings as people have them


@pytest.mark.parametrize(("sep", "bom"), [(",", True), (";", False), (";", True), ("\t", False)])
def test_byte_order_marks_semicolons_tabs_and_decimal_commas_are_taken(tmp_path: Path, new: Any, sep: str, bom: bool) -> None:
    rows = [[*row, f"{40 + i},{i % 10}"] for i, row in enumerate(ward(tmp_path, 20))]
    listing(tmp_path, rows, [*HEAD, "age"], sep, bom)
    done = new("--group-cols", "age")
    assert done.rc == 0, done.err
    assert "age" in done.out and written()[1][-1] == "40.0" and written()[2][-1] == "41.1"


def test_cells_may_be_names_paths_with_or_without_suffix_or_from_windows(tmp_path: Path, new: Any) -> None:
    rows = ward(tmp_path, 12)
    for k, text in enumerate(
        ["scan00.png", "./scan01.png", "img/scan02.png", str(tmp_path / "img/scan03.png"), "img\\scan04.png"]
    ):
        rows[k][0] = text
    listing(tmp_path, rows)
    assert new().rc == 0
    assert [row[1] for row in written()[1:6]] == [f"scan0{k}.png" for k in range(5)]


def test_images_that_no_row_names_are_counted_and_left_out(tmp_path: Path, new: Any) -> None:
    listing(tmp_path, ward(tmp_path, 16)[:14])
    done = new()
    assert done.rc == 0 and "image without a row  2" in done.out


@pytest.mark.parametrize(("change", "said"), [
    (lambda rows: rows.insert(3, list(HEAD)), "row 5: is the header again"),
    (lambda rows: rows[2].append("61"), "row 4: has 5 cells, the header 4"),
    (lambda rows: rows[2].pop(), "row 4: has 3 cells, the header 4"),
    (lambda rows: rows.__setitem__(5, [rows[5][0], rows[5][1], "", "A"]), "row 7: has no class"),
    (lambda rows: rows.__setitem__(5, [rows[5][0], "", "no", "A"]), "row 7: has no patient"),
    (lambda rows: rows.__setitem__(5, ["", *rows[5][1:]]), "row 7: names no image"),
    (lambda rows: rows.__setitem__(5, [f"../{SECRET}.png", *rows[5][1:]]), "row 7: the path leads out of --images"),
    (lambda rows: rows.__setitem__(5, [f"/etc/{SECRET}.png", *rows[5][1:]]), "row 7: the path leads out of --images"),
    (lambda rows: rows.__setitem__(5, [f"C:\\{SECRET}.png", *rows[5][1:]]), "row 7: the path leads out of --images"),
    (lambda rows: rows.__setitem__(5, [SECRET, *rows[5][1:]]), "row 7: no image of that name"),
    (lambda rows: rows.append(list(rows[5])), "row 14: names the same case as row 7"),
    (lambda rows: rows.append([rows[5][0], SECRET, *rows[5][2:]]), "row 14: gives its case another patient than row 7"),
    (lambda rows: rows.__setitem__(5, [*rows[5][:2], SECRET, "A"]), "row 7: its class has under 3 patients"),
    (lambda rows: rows.__setitem__(5, [*rows[5][:2], "${oc.env:HOME}", "A"]), "row 7: the class holds ${"),
    (lambda rows: rows.__setitem__(5, [*rows[5][:2], "${name}", "A"]), "row 7: the class holds ${"),
    (lambda rows: rows.__setitem__(5, [*rows[5][:2], "a\nb", "A"]), "row 7: the class holds ${, ??? or a control character"),
    (lambda rows: rows.__setitem__(5, [rows[5][0], f"{SECRET}\n", "no", "A"]), None),  # blanks around a cell are nothing
])  # fmt: skip
def test_a_row_at_fault_is_named_and_left_out_where_asked(tmp_path: Path, new: Any, change: Any, said: str | None) -> None:
    rows = ward(tmp_path, 12)
    change(rows)
    listing(tmp_path, rows)
    if said is None:
        assert new().rc == 0
        return
    refused(new(), 4, said, "Mend")
    done = new("--skip-faults")
    assert done.rc == 0, done.err
    assert SECRET not in done.out and "left out" in done.out
    assert sum(json.loads(Path("mine/ward.excluded.json").read_text()).values()) >= 1


def test_links_that_leave_the_folder_are_not_followed(tmp_path: Path, new: Any) -> None:
    rows = ward(tmp_path, 12)
    (tmp_path / "img/scan03.png").rename(tmp_path / f"{SECRET}.png")
    (tmp_path / "img/scan03.png").symlink_to(tmp_path / f"{SECRET}.png")
    listing(tmp_path, rows)
    refused(new(), 4, "row 5: the path leads out of --images")


@pytest.mark.parametrize(("text", "code", "said"), [
    ("", 4, "the listing is empty"),
    ("image,finding\n", 4, "a header and no row"),
    ("image,finding\n\xe9,x\n", 4, "row 2 is not UTF-8"),
    ('image,finding\n"a,no\n', 4, "row 2 is malformed"),
    (f"{SECRET},1\n{SECRET}2,0\n", 2, "see that the first row is a header"),
    ("image,finding,finding\nscan00,no,no\n", 4, "row 1: the column finding stands 2 times"),
    ("image,diagnosis,class\nscan00,no,no\n", 2, "--label-col: 2 columns could be it: diagnosis, class. Name one."),
    ("image,a,b\nscan00,no,no\n", 2, "--label-col: no column looks like it."),
    (f"image,finding\n{SECRET},no\n", 4, "row 1: no column holds names of files"),
])  # fmt: skip
def test_what_is_no_listing_is_refused(tmp_path: Path, new: Any, text: str, code: int, said: str) -> None:
    ward(tmp_path, 12)
    (tmp_path / "labels.csv").write_bytes(text.encode("latin-1"))
    refused(new(), code, said)


def test_a_column_that_is_not_there_is_told_with_the_nearest(tmp_path: Path, new: Any) -> None:
    listing(tmp_path, ward(tmp_path, 12))
    refused(new("--label-col", "findings"), 4, "row 1: has no column --label-col=findings. Did you mean finding?")
    refused(new("--group-cols", "sites"), 4, "row 1: has no column --group-cols=sites. Did you mean site?")


def test_one_class_alone_is_refused(tmp_path: Path, new: Any) -> None:
    listing(tmp_path, [[*row[:2], "no", row[3]] for row in ward(tmp_path, 12)])
    refused(new(), 4, "row 2 and 11 more: 1 class of at least 3 patients")
    refused(new("--skip-faults"), 4, "1 class of at least 3 patients")


def test_a_column_of_names_is_no_class(tmp_path: Path, new: Any) -> None:
    rows = ward(tmp_path, 240)
    listing(tmp_path, [[row[0], f"p{i}", f"{SECRET}{i}", "A"] for i, row in enumerate(rows)])
    refused(new(), 4, "the class column holds 240 values")


def test_a_patient_in_two_splits_is_refused_and_goes_whole_where_asked(tmp_path: Path, new: Any) -> None:
    rows = [[*row, ["train", "validation", "Test"][i // 2 % 3]] for i, row in enumerate(ward(tmp_path, 36))]
    rows[0][4] = "test"
    listing(tmp_path, rows, [*HEAD, "fold"])
    refused(new("--split-col", "fold"), 4, "row 2: its patient is in another split too", "row 3: its patient is in another")
    assert new("--split-col", "fold", "--skip-faults").rc == 0
    config = load(["+experiment=ward", "data.identifiers=none"], Path("mine"))
    assert (config.data.split.by, config.data.split_col) == ("published", "split")
    assert {row[4] for row in written()[1:]} == {"train", "val", "test"} and len(written()) == 35


# --- cells that a spreadsheet or a config would act on


def test_formulas_are_never_written_out_raw(tmp_path: Path, new: Any) -> None:
    rows = ward(tmp_path, 12)
    picture(tmp_path / "img/-scan.png", 77)
    rows[0][0] = "-scan"
    for row in rows:
        row[1] = f"=cmd|' /C calc'!{row[1]}"
        row[2] = {"no": "-no", "fracture": "@sum"}[row[2]]
        row[3] = "+1" if row[3] == "A" else "+1+cmd"
    listing(tmp_path, rows)
    assert new("--group-cols", "site").rc == 0
    cells = [cell for row in written() for cell in row]
    assert [cell for cell in cells if cell[:1] in tuple("=+-@\t\r") and cell != "+1"] == []
    config = load(["+experiment=ward", "data.identifiers=none"], Path("mine"))
    assert config.data.labels == ["'-no", "'@sum"]
    assert open_cases(make_plan(config)[1].data).read(0).shape == (1, 12, 12)


@pytest.mark.parametrize(
    "label", ["null", "1e-3", "yes", "no: x", '"q"', "it's", "größer, 5 %", "a\\b", "[x]", "{a: b}", "#x", "ß😀", "&a *b", "!t"]
)
def test_a_class_may_be_called_anything_that_one_line_holds(tmp_path: Path, new: Any, label: str) -> None:
    listing(tmp_path, [[*row[:2], label if row[2] == "fracture" else "normal", row[3]] for row in ward(tmp_path, 12)])
    assert new().rc == 0
    assert load(["+experiment=ward", "data.identifiers=none"], Path("mine")).data.labels == ["normal", label]


def test_columns_may_be_called_anything_too_but_a_reference(tmp_path: Path, new: Any) -> None:
    listing(tmp_path, ward(tmp_path, 12), [*HEAD[:3], 'ward "5": größe'])
    assert new("--group-cols", 'ward "5": größe').rc == 0
    assert load(["+experiment=ward", "data.identifiers=none"], Path("mine")).data.group_cols == ['ward "5": größe']
    listing(tmp_path, ward(tmp_path, 12), [*HEAD[:3], "${name}"])
    done = new("--group-cols", "${name}", name="other")
    assert done.rc == 4 and "row 1" in done.err and not Path("mine/other.csv").exists()


@given(st.binary(max_size=200))
def test_any_bytes_are_a_table_or_refused_by_row(data: bytes) -> None:
    notes = Notes()
    try:
        table = read_table(data, notes)
    except DataError as fault:
        assert str(fault).startswith("--labels: ") and "\n" not in str(fault)
        return
    assert all(len(cells) == len(table.header) for cells in table.rows.values())


CELL = st.text(st.characters(blacklist_categories=["Cs", "Cc"]), max_size=8).map(str.strip)


@given(st.lists(st.lists(CELL, min_size=3, max_size=3), min_size=1, max_size=8), st.sampled_from(",;\t"), st.booleans())
def test_what_a_csv_writer_writes_is_read_back(rows: list[Row], sep: str, bom: bool) -> None:
    buffer, notes = io.StringIO(), Notes()
    csv.writer(buffer, delimiter=sep).writerows([["a", "b", "c"], *rows])
    table = read_table(buffer.getvalue().encode("utf-8-sig" if bom else "utf-8"), notes) if any(map(any, rows)) else None
    if table is not None:
        kept = {n: row for n, row in enumerate(rows, 2) if any(row) and row != ["a", "b", "c"]}
        assert table.rows == kept


@given(st.text(max_size=20))
def test_a_cell_is_either_safe_or_made_so(text: str) -> None:
    safe = safe_cell(text)
    assert safe.lstrip("'") == text.lstrip("'") and (safe[:1] not in tuple("=@\t\r"))
    assert safe_cell(safe) == safe


@given(st.text(max_size=30))
def test_every_text_that_is_not_refused_stands_in_the_yaml_as_it_is(text: str) -> None:
    import yaml
    from omegaconf._utils import get_yaml_loader

    if not hostile(text):
        assert yaml.load(_yaml({"labels": [text, "x"]}), Loader=get_yaml_loader()) == {"labels": [text, "x"]}


def test_decimal_commas_become_points_only_in_a_column_of_numbers() -> None:
    assert decimal_points(["1,5", "", "-2", "3.25"]) == ["1.5", "", "-2", "3.25"]
    assert decimal_points(["1,5", "a,b"]) == ["1,5", "a,b"]


# --- images


def test_equal_and_nearly_equal_images_are_found_with_classes_that_contradict(tmp_path: Path, new: Any) -> None:
    rows = ward(tmp_path, 16)
    rng = np.random.default_rng(0)
    base = np.kron(rng.integers(0, 250, (8, 8)), np.ones((8, 8)))
    for k, x in ((0, base), (1, base + rng.normal(0, 2, base.shape))):
        Image.fromarray(np.clip(x, 0, 255).astype(np.uint8)).save(tmp_path / f"img/scan{k:02d}.png")
    (tmp_path / "img/scan06.png").write_bytes((tmp_path / "img/scan05.png").read_bytes())
    rows[6][2] = "fracture"  # scan05 is no patient of this one, and its class is another
    rows[5][2] = "no"
    listing(tmp_path, rows)
    facts = json.loads(new("--json").out)["duplicates"]
    assert facts["equal"] == {"groups": 1, "images": 2, "other_class": 1, "other_patient": 1}
    assert facts["near"] == {"groups": 1, "images": 2, "other_class": 0, "other_patient": 0}


def test_a_sketch_knows_an_image_that_was_scaled_and_brightened_and_no_other() -> None:
    rng = np.random.default_rng(1)
    base = [np.kron(rng.random((8, 8)), np.ones((12, 12))).astype(np.float32) for _ in range(60)]
    images = [*base, *(np.repeat(np.repeat(x, 2, 0), 2, 1) * 0.8 + 0.1 for x in base)]
    hashes, sketches = zip(*(alike.sketch(x) for x in images))
    found = set(alike.nearly(hashes, np.stack(sketches)))
    assert found == {(k, k + 60) for k in range(60)}


def test_blank_images_are_nobodys_neighbours() -> None:
    hashes, sketches = zip(*(alike.sketch(np.full((9, 9), k, np.uint8)) for k in range(5)))
    assert alike.nearly(hashes, np.stack(sketches)) == []


def test_images_of_several_sizes_get_one(tmp_path: Path, new: Any) -> None:
    rows = ward(tmp_path, 12)
    Image.fromarray(np.zeros((700, 900), np.uint8)).save(tmp_path / "img/scan00.png")
    listing(tmp_path, rows)
    done = new()
    assert done.rc == 0 and "resized to 16 x 16" in done.out
    assert load(["+experiment=ward", "data.identifiers=none"], Path("mine")).data.image_size == [16, 16]


def test_colour_is_seen_in_the_pixels_not_in_the_mode(tmp_path: Path, new: Any) -> None:
    rows = ward(tmp_path, 12)
    listing(tmp_path, rows)
    with Image.open(tmp_path / "img/scan00.png") as grey:
        grey.convert("RGB").save(tmp_path / "img/scan00.png")
    assert json.loads(new("--json").out)["takes"]["channels"] == 1
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (12, 12, 3)).astype(np.uint8)).save(tmp_path / "img/scan00.png")
    assert json.loads(new("--json", name="colour").out)["takes"]["channels"] == 3


@pytest.mark.parametrize(("names", "positive", "order"), [
    (["sick", "normal"], None, ["normal", "sick"]), (["abnormal", "normal"], None, ["normal", "abnormal"]),
    (["1", "0"], None, ["0", "1"]), (["b", "a"], None, ["a", "b"]), (["b", "a"], "a", ["b", "a"]),
    (["10", "9", "x", "1"], None, ["1", "9", "10", "x"]),
])  # fmt: skip
def test_classes_are_ordered_as_people_would(names: list[str], positive: str | None, order: list[str]) -> None:
    class Case:
        def __init__(self, label: str) -> None:
            self.label = label

    cases: Any = [Case(name) for name in names]
    assert labels_of(cases, positive) == order


# --- words, and what is there already


def test_nothing_that_is_there_is_overwritten(tmp_path: Path, new: Any) -> None:
    listing(tmp_path, ward(tmp_path, 12))
    assert new().rc == 0
    before = {f: f.read_bytes() for f in Path("mine").rglob("*") if f.is_file()}
    done = new()
    assert done.rc == 3 and "data/ward.yaml" in done.err and "Choose another NAME or --out, or remove them." in done.err
    assert {f: f.read_bytes() for f in Path("mine").rglob("*") if f.is_file()} == before
    assert new(name="ward2").rc == 0


@pytest.mark.parametrize(("words", "said"), [
    (["new"], "hpcai new: 0 names."),
    (["new", "a", "b"], "hpcai new: 2 names."),
    (["new", "a"], "--images: required."),
    (["new", "a", "--images", "x"], "--labels: required."),
    (["new", "../a", "--images", "x", "--labels", "y"], "NAME=../a: must begin"),
    (["new", "a/b", "--images", "x", "--labels", "y"], "NAME=a/b: must begin"),
    (["new", "pneumonia", "--images", "x", "--labels", "y"], "NAME=pneumonia: hpcai's own experiment is called so."),
    (["new", "a", "--image", "x"], "--image: unknown option. Did you mean --images?"),
    (["new", "a", "--images", "x", "--labels", "y", "--window", "5"], "window: 5 is not CENTRE,WIDTH"),
    (["new", "a", "--images", "x", "--labels", "y", "--group-cols", "b,b"], "--group-cols: names a column twice"),
])  # fmt: skip
def test_wrong_words_are_told(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(words) == 2
    assert said in capsys.readouterr().err


def test_a_folder_without_images_is_refused(tmp_path: Path, new: Any) -> None:
    listing(tmp_path, ward(tmp_path, 4))
    for file in Path("img").iterdir():
        file.unlink()
    (tmp_path / "img/DICOMDIR").write_bytes(b"\0" * 128 + b"DICM")
    refused(new(), 4, "--images=img: holds no image")
    refused(new("--images", "nowhere"), 4, "--images=nowhere: is no folder")


def test_a_positive_class_that_is_none_is_refused(tmp_path: Path, new: Any) -> None:
    listing(tmp_path, ward(tmp_path, 12))
    refused(new("--positive", "fractures"), 2, "--positive=fractures: is none of two classes. Did you mean fracture?")
    assert new("--positive", "no").rc == 0
    assert load(["+experiment=ward", "data.identifiers=none"], Path("mine")).data.labels == ["fracture", "no"]


def test_what_was_noted_is_raised_by_row_and_the_rest_counted() -> None:
    notes = Notes()
    for row in range(2, 60):
        notes.add("x", row, "is wrong.")
    with pytest.raises(Faults) as caught:
        notes.stop()
    assert caught.value.code == 4 and len(caught.value.lines) == 22
    assert caught.value.lines[-2:] == [
        "--labels: 38 more rows have faults.",
        "--labels: 58 rows are at fault. Mend what is wrong, or leave it out with --skip-faults.",
    ]
