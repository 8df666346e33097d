"""screening/teaching.py: a labelled table as cases: who is in, of which class, with whom, and in which row."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pytest

from hpcai.book.shelf import panel
from hpcai.config.schema import Split
from hpcai.data.splits import make_splits
from hpcai.errors import DataError, Faults
from hpcai.screening.batch import Batch, RowFault
from hpcai.screening.teaching import Newborns, joined, rows_of

NBS = panel("nbs")


def batch(diagnosis: list[str], first: int = 2, faults: list[RowFault] | None = None, **text: list[str]) -> Batch:
    n = len(diagnosis)
    row = np.arange(first, first + n)
    columns: dict[str, Any] = {"diagnosis": diagnosis, "laboratory": ["A"] * n, "plate": ["p"] * n, **text}
    return Batch(
        row=row,
        sample=np.array([f"s{r}" for r in row]),
        x_NA=row[:, None] * np.array([1.0, 10.0]),
        number={"age_h": row / 1.0},
        text={name: np.array(values) for name, values in columns.items()},
        faults=faults or [],
    )


def test_classes_are_unaffected_and_then_the_panels_diseases() -> None:
    newborns = Newborns(batch(["", "unaffected", NBS.names[0], NBS.names[-1]]), NBS)
    assert newborns.labels.tolist() == [0, 0, 1, len(NBS.names)]
    assert newborns.ids == ["s2", "s3", "s4", "s5"] and newborns.patients is None


def test_rows_that_cannot_be_used_and_diagnoses_beyond_the_panel_are_left_out_and_counted(
    caplog: pytest.LogCaptureFixture,
) -> None:
    faults = [RowFault(1, "", "two rows for one sample"), RowFault(3, "Phe", "negative")]
    with caplog.at_level(logging.WARNING, "hpcai"):
        newborns = Newborns(batch(["", "", "a rare one", NBS.names[1]], faults=faults), NBS)
    assert newborns.batch.row.tolist() == [2, 5] and newborns.labels.tolist() == [0, 2]
    assert newborns.batch.faults == [RowFault(1, "Phe", "negative")]  # by its place among those that are left
    assert "1 rows cannot be used" in caplog.text and "1 newborns have a diagnosis that the panel lacks" in caplog.text
    assert "a rare one" not in caplog.text


def test_kin_are_one_patient_and_stay_on_one_side_of_a_split() -> None:
    diagnosis = ["", NBS.names[0]] * 40
    family = [f"f{i // 4}" if i % 4 < 2 else "" for i in range(80)]
    newborns = Newborns(batch(diagnosis, family=family), NBS)
    assert newborns.patients is not None and newborns.patients[2] == "s4"  # no family: its own
    splits = make_splits(newborns, Split(by="random"))
    sides = [{newborns.patients[i] for i in part} for part in splits.parts().values()]
    assert not (sides[0] & sides[1]) and not (sides[0] & sides[2]) and not (sides[1] & sides[2])


def test_some_newborns_keep_all_that_is_known_of_them() -> None:
    newborns = Newborns(
        batch(["", NBS.names[0], ""], family=["a", "b", "b"], split=["train", "test", "val"]), NBS, ["laboratory"]
    )
    part = newborns.some(np.array([2, 0]))
    assert part.ids == ["s4", "s2"] and part.labels.tolist() == [0, 0] and part.patients == ["b", "a"]
    assert part.published == ["val", "train"] and part.groups == {"laboratory": ["A", "A"]}
    assert part.batch.x_NA.tolist() == [[4.0, 40.0], [2.0, 20.0]] and part.row(0) == "data: row 4"


def test_a_split_that_is_none_is_told_by_row_and_not_by_content() -> None:
    newborns = Newborns(batch(["", "", ""], split=["train", "secret", ""]), NBS)
    with pytest.raises(Faults) as fault:
        newborns.parted()
    assert [line.split(":")[1].split()[1] for line in fault.value.lines] == ["3", "4"] and "secret" not in str(fault.value)


def test_a_table_without_diagnoses_or_with_an_unknown_group_is_refused() -> None:
    plain = batch([""])
    del plain.text["diagnosis"]
    with pytest.raises(DataError, match=r"no column diagnosis\. Add it: a disease of the panel"):
        Newborns(plain, NBS)
    with pytest.raises(DataError, match=r"data\.group_cols=labratory: .* Did you mean laboratory"):
        Newborns(batch([""]), NBS, ["labratory"])


def test_joined_batches_keep_rows_columns_and_faults() -> None:
    whole = joined(
        [batch(["", ""], faults=[RowFault(1, "x", "negative")]), batch([""], first=4, faults=[RowFault(0, "", "why")])]
    )
    assert whole.row.tolist() == [2, 3, 4] and whole.number["age_h"].tolist() == [2, 3, 4] and len(whole.text["plate"]) == 3
    assert whole.faults == [RowFault(1, "x", "negative"), RowFault(2, "", "why")]


def test_a_table_without_a_row_is_refused() -> None:
    with pytest.raises(DataError, match="has no row"):
        joined([])


def test_rows_are_taken_in_the_order_that_was_asked_for() -> None:
    whole = batch(["", "", ""], faults=[RowFault(2, "x", "negative"), RowFault(1, "y", "negative")])
    part = rows_of(whole, np.array([2, 0]))
    assert part.row.tolist() == [4, 2] and part.faults == [RowFault(0, "x", "negative")]
