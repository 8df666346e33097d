"""data.reader=table: CSV, CSV.gz and Parquet become cases of numbers; a fault is told by row and column, never by cell."""

from __future__ import annotations

import gzip
import os
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpcai.config.schema import Data
from hpcai.data.open import open_cases
from hpcai.data.table import TableCases, kin
from hpcai.errors import DataError, Faults

ROWS = "case,label,a,b\nx1,no,1.5,\nx2,yes,2,NA\nx3,no,-3e1,4\n"
COLUMNS = "metabolite,s1,s2,s3\na,1.5,2,-30\nb,,NA,4\n"
MILLER = Path(os.environ.get("HPCAI_DATA", "../shared/data")) / "iem_metabolomics_miller2015"


def data(path: Path, **more: Any) -> Data:
    return Data(**{"path": str(path), "reader": "table", "labels": ["no", "yes"]} | more)


def table(tmp_path: Path, text: str | bytes = ROWS, name: str = "t.csv", *, labelled: bool = True, **more: Any) -> TableCases:
    path = tmp_path / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    cases = open_cases(data(path, **more), labelled=labelled)
    assert isinstance(cases, TableCases)
    return cases


def refusal(tmp_path: Path, text: str | bytes, name: str = "t.csv", **more: Any) -> list[str]:
    with pytest.raises((DataError, Faults)) as e:
        table(tmp_path, text, name, **more)
    assert e.value.code == 4
    return list(e.value.lines)


def check(cases: TableCases) -> None:
    assert cases.names == ["a", "b"] and len(cases) == 3
    np.testing.assert_array_equal(cases.x_nF, [[1.5, np.nan], [2, np.nan], [-30, 4]])
    assert cases.read(2).tolist() == [[-30.0, 4.0]]


@pytest.mark.parametrize("mark", [",", ";", "\t"])
@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"])
def test_a_case_a_row_in_any_spreadsheets_csv(tmp_path: Path, mark: str, bom: bytes) -> None:
    cases = table(tmp_path, bom + ROWS.replace(",", mark).replace("\n", "\r\n").encode())
    check(cases)
    assert cases.ids == ["x1", "x2", "x3"] and cases.labels.tolist() == [0, 1, 0] and cases.row(0) == "data: row 2"


def test_a_case_a_column_with_classes_beside(tmp_path: Path) -> None:
    (tmp_path / "l.csv").write_text("case,label\ns3,no\ns1,yes\ns2,no\n")
    cases = table(
        tmp_path, gzip.compress(COLUMNS.encode()), "t.csv.gz", samples_in="columns", label_path=str(tmp_path / "l.csv")
    )
    check(cases)
    assert cases.ids == ["s1", "s2", "s3"] and cases.labels.tolist() == [1, 0, 0] and cases.row(0) == "data: column 2"


def test_parquet_gives_the_same_as_csv(tmp_path: Path) -> None:
    frame = pl.DataFrame({"case": ["x1", "x2", "x3"], "label": ["no", "yes", "no"], "a": [1.5, 2, -30], "b": [None, None, 4]})
    frame.write_parquet(tmp_path / "t.parquet")
    check(table(tmp_path, (tmp_path / "t.parquet").read_bytes(), "t.parquet"))


def test_columns_that_the_config_names_are_no_features(tmp_path: Path) -> None:
    text = "case,who,site,part,label,a\n1,p,A,train,no,1\n2,p,,test,yes,2\n"
    cases = table(tmp_path, text, patient_col="who", group_cols=["site"], split_col="part")
    assert cases.names == ["a"] and cases.patients == ["p", "p"] and cases.groups == {"site": ["A", ""]}
    assert cases.published == ["train", "test"]
    alone = table(tmp_path, "case,a\n1,2\n", labelled=False)
    assert alone.labels.tolist() == [-1] and alone.names == ["a"]


def test_a_text_that_nobody_named_is_no_feature_where_there_are_no_labels(tmp_path: Path) -> None:
    assert table(tmp_path, "case,ward,a\n1,x,1\n2,y,2\n", labelled=False).names == ["a"]
    with pytest.raises(DataError, match="holds no column of numbers"):
        table(tmp_path, "case,ward\n1,x\n", labelled=False)


def test_classes_without_a_name_in_labels_are_refused_or_left_out(tmp_path: Path) -> None:
    text = "case,label,a\n1,no,1\n2,rare,2\n3,yes,3\n"
    (line,) = refusal(tmp_path, text)
    assert line.startswith("data: row 3: the class is none of no, yes") and "rare" not in line
    cases = table(tmp_path, text, unlisted="leave_out")
    assert (
        cases.ids == ["1", "3"] and cases.left_out == 1 and cases.row(1) == "data: row 4" and cases.x_nF.tolist() == [[1], [3]]
    )


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "data.path: the table is empty. Give a header and at least one row."),
        ("case,label,a\n", "data.path: the table is empty. Give a header and at least one row."),
        ("case,label,a\n1,no\n", "data: row 2 has 2 cells, the header 3."),
        ("case,label,a\n1,no,secret\n2,no,1\n", "data: row 2 and 0 more of column `a` are no finite number."),
        ("case,label,a\n1,no,=cmd()\n2,no,1\n", "data: row 2 and 0 more of column `a` are no finite number."),
        ("case,label,a\n1,no,1\n2,no,inf\n", "data: row 3 and 0 more of column `a` are no finite number."),
        ("case;label;a\n1;no;1,5\n2;yes;1\n", "data: row 2 and 0 more of column `a` are no finite number."),
        ("case,label,a\n1,no,x\n2,no,y\n", "data: column `a` holds no number. Leave it out, or name it in data.group_cols."),
        ("case,label,a\n1,no,1\n1,yes,2\n", "data: row 3: has the id of a case before it. Keep one."),
        ("case,label,a\n,no,1\n", "data: row 2: has no id in data.case_col."),
        ("case,label,a,a\n1,no,1,1\n", "data: column 4 has the name of column 3. Name each column once."),
        ("case,label,\n1,no,1\n", "data: column 3 has no name. Name each column once."),
        ("id,label,a\n1,no,1\n", "data.case_col=case: the table has no such column."),
        ("case,class,a\n1,no,1\n", "data: column `class` holds no number."),
        ("case,label\n1,no\n", "data.path: holds no feature beside the columns that data names."),
        (b"case,label,a\n1,no,\xff\n", "data.path: line 2 is not UTF-8."),
        (b"case,label,a\n1,no,1\0\n", "data.path: holds a NUL"),
        ("case,label,a\n1,no,\"" + "9" * 10_000_000 + "\"\n", "data: row 2 is malformed"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_told_by_row_and_column_and_never_by_cell(tmp_path: Path, text: str | bytes, says: str) -> None:
    lines = refusal(tmp_path, text)
    assert lines[0].startswith(says), lines
    assert not any(word in line for line in lines for word in ("secret", "cmd", "9999"))


def test_a_column_that_is_a_case_is_told_by_its_number(tmp_path: Path) -> None:
    (tmp_path / "l.csv").write_text("case,label\nAnna,no\nBo,yes\n")
    more: dict[str, Any] = {"samples_in": "columns", "label_path": str(tmp_path / "l.csv")}
    (line,) = refusal(tmp_path, "m,Anna,Bo\na,1,?\nb,1,2\n", **more)
    assert line.startswith("data: row 2 and 0 more of column 3 are no finite number.") and "Bo" not in line
    (line,) = refusal(tmp_path, "m,Anna,Anna\na,1,2\n", **more)
    assert line == "data: column 3 has the name of column 2. Name each column once."
    (line,) = refusal(tmp_path, "m,Anna,Bo\na,1,2\na,1,2\n", **more)
    assert line == "data: row 3 has the feature of a row before it. Keep one."
    (line,) = refusal(tmp_path, "m,Anna,Cy\na,1,2\n", **more)
    assert line.startswith(
        "data.label_path: 1 cases of the table are not in it (first: column 3), 1 of its are not in the table."
    )
    (line,) = refusal(tmp_path, "m,Anna,Bo\na,1,2\n", samples_in="columns")
    assert line.startswith("data.label_path=null: a table of cases in columns has no classes.")


@pytest.mark.parametrize(
    ("name", "says"), [("t.parquet", "data.path: is no readable Parquet"), ("t.csv.gz", "data.path: is no whole gzip")]
)
def test_a_torn_file_is_refused(tmp_path: Path, name: str, says: str) -> None:
    whole = gzip.compress(ROWS.encode() * 50)
    for content in (b"", b"PAR1", whole[:40], ROWS.encode()):
        if name.endswith(".gz") and content == b"":
            continue
        assert refusal(tmp_path, content, name)[0].startswith(says)
    assert refusal(tmp_path, b"", "t.csv.gz")[0].startswith("data.path: the table is empty")


WORDS = [b"case", b"label", b"a", b",", b"\n", b'"', b"no", b"yes", b"1", b"x", b"\t", b";"]
CONTENT = st.binary(max_size=60) | st.lists(st.sampled_from(WORDS), max_size=40).map(b"".join)


@settings(max_examples=150, deadline=None)
@given(CONTENT, st.sampled_from(["t.csv", "t.csv.gz", "t.parquet"]), st.sampled_from(["rows", "columns"]))
def test_any_bytes_are_a_table_or_a_data_error(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, name: str, samples: str
) -> None:
    path = tmp_path_factory.mktemp("any") / name
    path.write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    for labelled in (True, False):
        try:
            cases = open_cases(data(path, samples_in=samples), labelled=labelled)
        except (DataError, Faults) as e:
            assert e.code == 4
        else:
            assert isinstance(cases, TableCases) and cases.x_nF.shape == (len(cases), len(cases.names))
            assert not np.isinf(cases.x_nF).any()


def of(x: Any, labels: list[int], patients: list[str] | None = None) -> TableCases:
    cases = TableCases([str(k) for k in range(np.shape(x)[1])], np.array(x, float), 2, "row")
    cases.ids, cases.labels, cases.patients = [f"c{i}" for i in range(len(x))], np.array(labels), patients
    return cases


def test_near_duplicates_of_one_class_and_a_patients_samples_belong_together() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(6, 40))
    x[3], x[4] = x[0] + 0.1 * rng.normal(size=40), x[1] + 0.1 * rng.normal(size=40)
    assert kin(of(x, [0, 0, 0, 0, 1, 1]), 0.6) == ["c0", "c1", "c2", "c0", "c4", "c5"]  # 1 and 4: another class
    people = kin(of(x, [0, 0, 0, 0, 1, 1], ["p", "q", "r", "s", "t", "r"]), 0.6)
    assert people == ["c0", "c1", "c2", "c0", "c4", "c2"]


def test_one_monstrous_value_makes_no_pair_and_a_constant_feature_counts_for_nothing() -> None:
    x = np.random.default_rng(1).normal(size=(8, 400))
    x[0, 7] = x[1, 7] = 2e15
    x[:, 8] = 3.0
    x[:, 9] = np.nan
    assert len(set(kin(of(x, [0] * 8), 0.6))) == 8


def test_likeness_is_measured_in_the_spread_of_the_first_class_where_it_has_enough_cases() -> None:
    x = np.random.default_rng(3).normal(size=(26, 200))
    x[20:22, :2], x[20:22, 2:4] = 500, -500  # cut to +-10 they are 400 of about 600 squares of these two cases
    labels = [0] * 20 + [1] * 6
    assert kin(of(x, labels), 0.6)[20:] == ["c20", "c20", "c22", "c23", "c24", "c25"]
    # 14 controls are too few: in the spread of all 20 cases, two of which have them, they are about 3 each
    assert kin(of(x[6:], [0] * 14 + [1] * 6), 0.6)[14:16] == ["c14", "c15"]


@pytest.mark.skipif(not MILLER.is_dir(), reason="shared data are not here")
def test_the_real_tables_near_duplicates_are_found() -> None:
    cfg = data(MILLER / "zscores.csv.gz", samples_in="columns", label_path=str(MILLER / "diagnosis.csv"), case_col="sample",
               label_col="diagnosis", labels=["No biochemical genetic diagnosis", "Argininemia"],
               unlisted="leave_out")  # fmt: skip
    cases = open_cases(cfg)
    assert isinstance(cases, TableCases)
    assert cases.x_nF.shape == (68 + 4, 1203) and cases.left_out == 186 - 72 and not np.isnan(cases.x_nF).any()
