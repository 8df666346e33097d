"""Readers: real files in, and hostile ones; no message may hold what a file's name or cell says."""

from __future__ import annotations

import hashlib
import io
import os
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from hpcai.config.schema import Data
from hpcai.data.cases import Cases, resized
from hpcai.data.listing import read_listing
from hpcai.data.open import open_cases
from hpcai.errors import DataError, Faults
from hpcai.inputs import SHIPPED, fingerprint
from hpcai.testing import check_data

SECRET = "Erika Mustermann"  # as if a file, folder or cell were named after a patient
LABELS = ["normal", "sick"]


def data(path: Path, reader: str = "npz", **more: Any) -> Data:
    return Data(**{"path": str(path), "reader": reader, "labels": LABELS} | more)


def save(path: Path, **arrays: Any) -> Path:
    np.savez(path, **arrays)
    return path


def png(path: Path, pixels: Any = None, mode: str | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(np.full((6, 5), 7, np.uint8) if pixels is None else np.asarray(pixels))
    (image if mode is None else image.convert(mode)).save(path)
    return path


def refusal(cfg: Data, *, labelled: bool = True, read: int | None = None, digests: dict[str, str] | None = None) -> str:
    """The message with which opening (or reading case `read`) is refused; it never holds the secret."""
    with pytest.raises((DataError, Faults)) as caught:
        cases = open_cases(cfg, digests, labelled=labelled)
        if read is not None:
            cases.read(read)
    assert caught.value.code == 4
    assert SECRET not in str(caught.value) and "\n" not in str(caught.value)
    return str(caught.value)


# ---- npz


def test_medmnist_layout_gives_published_splits_and_readable_ids(tmp_path: Path) -> None:
    x = {f"{s}_images": np.full((n, 4, 5), n, np.uint8) for s, n in (("train", 3), ("val", 2), ("test", 1))}
    y = {f"{s}_labels": np.arange(n)[:, None] % 2 for s, n in (("train", 3), ("val", 2), ("test", 1))}
    cases = open_cases(data(save(tmp_path / "d.npz", **x, **y)))
    assert cases.ids == ["train/0", "train/1", "train/2", "val/0", "val/1", "test/0"]
    assert cases.published == ["train"] * 3 + ["val"] * 2 + ["test"]
    assert cases.labels.tolist() == [0, 1, 0, 0, 1, 0] and cases.labels.dtype == np.int64
    assert cases.read(4).shape == (1, 4, 5) and cases.read(4)[0, 0, 0] == 2


def test_the_shipped_data_keeps_the_contract() -> None:
    cases = open_cases(data(SHIPPED / "pneumoniamnist" / "pneumoniamnist.npz"))
    assert len(cases) == 5856
    check_data(cases)


@pytest.mark.parametrize(
    ("shape", "channels", "read"),
    [
        ((4, 6, 7), 1, (1, 6, 7)),  # grey
        ((4, 6, 7), 3, (3, 6, 7)),  # grey where the model takes colour: repeated
        ((4, 6, 7, 3), 3, (3, 6, 7)),  # colour
        ((4, 5, 6, 7), 1, (1, 5, 6, 7)),  # a volume
        ((4, 5, 6, 7), 3, (3, 5, 6, 7)),
    ],
)
@pytest.mark.parametrize("kind", [np.uint8, np.float32])
def test_npz_shape_says_flat_colour_or_volume(tmp_path: Path, shape: Any, channels: int, read: Any, kind: Any) -> None:
    x = np.random.default_rng(0).integers(0, 255, shape).astype(kind)
    cases = open_cases(data(save(tmp_path / "d.npz", images=x, labels=np.array([0, 1, 0, 1])), channels=channels))
    assert cases.read(2).shape == read and cases.read(2).dtype == kind
    assert cases.published is None and cases.ids == ["0", "1", "2", "3"]
    expected = np.moveaxis(x[2], -1, 0) if shape[-1] == 3 else np.stack([x[2]] * channels)
    assert np.array_equal(cases.read(2), expected)
    check_data(cases)


def test_colour_arrays_are_not_taken_for_volumes_three_pixels_wide(tmp_path: Path) -> None:
    path = save(tmp_path / "d.npz", images=np.zeros((2, 6, 7, 3), np.uint8), labels=np.array([0, 1]))
    assert refusal(data(path)).startswith("data.channels=1: the images are (n, H, W, 3)")


@pytest.mark.parametrize("size", [[5], [3, 9], [12, 5], [4, 7]])
def test_npz_is_resized_as_pillow_resizes(size: list[int]) -> None:
    if len(size) == 1:
        size = size * 2
    x = np.random.default_rng(0).integers(0, 256, (8, 7), dtype=np.uint8)
    pillow = np.asarray(Image.fromarray(x).resize((size[1], size[0]), Image.Resampling.BILINEAR))
    assert np.abs(resized(x, size).astype(int) - pillow).max() <= 1  # Pillow computes in 8-bit fixed point


def test_volumes_are_resized_along_every_axis(tmp_path: Path) -> None:
    ramp = np.broadcast_to(np.arange(8, dtype=np.float32)[:, None, None], (8, 4, 4))
    path = save(tmp_path / "d.npz", images=np.stack([ramp, ramp]), labels=np.array([0, 1]))
    x = open_cases(data(path, image_size=[4, 2, 8])).read(0)
    assert x.shape == (1, 4, 2, 8) and x.dtype == np.float32
    assert np.all(np.diff(x[0, :, 0, 0]) > 1) and np.allclose(x[0, :, :1, :1], x[0])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_pixels_that_are_no_numbers_are_refused_by_row_and_do_not_stop_the_others(tmp_path: Path, bad: float) -> None:
    x = np.zeros((3, 4, 4), np.float32)
    x[1, 2, 3] = bad
    path = save(
        tmp_path / "d.npz", val_images=x, val_labels=np.array([0, 1, 0]), train_images=x[:1], train_labels=np.array([0])
    )
    cases = open_cases(data(path))
    assert np.isfinite(cases.read(1)).all() and np.isfinite(cases.read(3)).all()
    with pytest.raises(DataError, match="row 1 of `val_images`: holds NaN"):
        cases.read_many([0, 1, 2])


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        ({}, "neither `images` nor"),
        ({"images": np.zeros((2, 4, 4), np.uint8)}, "has no `labels`"),
        ({"images": np.zeros((2, 4, 4), np.uint8), "labels": np.array([0, 2])}, "row 1 of `labels` and 0 more lie outside"),
        ({"images": np.zeros((2, 4, 4), np.uint8), "labels": np.array([0, -1])}, "outside 0..1"),
        ({"images": np.zeros((2, 4, 4), np.uint8), "labels": np.array([0.0, 1.0])}, "is float64 (2,)"),
        ({"images": np.zeros((2, 4, 4), np.uint8), "labels": np.array([0])}, "one whole number for each of 2"),
        ({"images": np.zeros((2, 4, 4), np.uint8), "labels": np.zeros((2, 14), int)}, "is int64 (2, 14)"),
        ({"images": np.zeros((2, 4, 4), np.float64), "labels": np.array([0, 1])}, "type float64"),
        ({"images": np.zeros((2, 4, 4), np.int32), "labels": np.array([0, 1])}, "type int32"),
        ({"images": np.zeros((2, 4), np.uint8), "labels": np.array([0, 1])}, "shape (n, 4)"),
        ({"images": np.zeros((2, 4, 0), np.uint8), "labels": np.array([0, 1])}, "shape (n, 4, 0)"),
        ({"images": np.zeros((), np.uint8), "labels": np.array([0, 1])}, "shape (n, )"),
        ({"images": np.zeros((2, 4, 4, 4, 3), np.uint8), "labels": np.array([0, 1])}, "shape (n, 4, 4, 4, 3)"),
        ({"images": np.zeros((0, 4, 4), np.uint8), "labels": np.zeros(0, int)}, "holds no case"),
        ({"images": np.zeros((2, 4, 4), np.uint8), "labels": np.array([0, 1]), "patients": np.array(["a"])}, "`patients` is"),
        ({"images": np.zeros((2, 4, 4), np.uint8), "labels": np.array([0, 1]), "patients": np.array(["a", ""])}, "not empty"),
        ({"train_images": np.zeros((2, 4, 4), np.uint8), "train_labels": np.array([0, 1]), "train_patients": np.arange(2),
          "test_images": np.zeros((2, 4, 4), np.uint8), "test_labels": np.array([0, 1])}, "`test_patients` is missing"),
        ({"train_images": np.zeros((2, 4, 4), np.uint8), "train_labels": np.array([0, 1]),
          "test_images": np.zeros((2, 5, 4), np.uint8), "test_labels": np.array([0, 1])}, "sizes (4, 4), (5, 4)"),
    ],
)  # fmt: skip
def test_npz_of_another_make_is_refused_with_what_it_lacks(tmp_path: Path, arrays: dict[str, Any], says: str) -> None:
    assert says in refusal(data(save(tmp_path / f"{SECRET}.npz", **arrays)))


def test_npz_without_labels_is_enough_to_predict(tmp_path: Path) -> None:
    path = save(tmp_path / "d.npz", images=np.zeros((2, 4, 4), np.uint8), patients=np.array([7, 8]))
    cases = open_cases(data(path), labelled=False)
    assert cases.labels.tolist() == [-1, -1] and cases.patients == ["7", "8"]


class Bomb:
    def __reduce__(self) -> Any:
        return os.mkdir, ("exploded",)


def test_npz_that_holds_code_is_refused_and_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    save(tmp_path / "d.npz", images=np.array([Bomb()], dtype=object), labels=np.array([0]))
    assert "no readable .npz of plain arrays" in refusal(data(tmp_path / "d.npz"))
    assert not Path("exploded").exists()


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"\x93NUMPY", b"not an archive " * 99])
def test_what_is_no_npz_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "d.npz").write_bytes(content)
    assert "no readable .npz" in refusal(data(tmp_path / "d.npz"))


def test_truncated_or_flipped_npz_is_refused(tmp_path: Path) -> None:
    x = np.random.default_rng(0).integers(0, 255, (20, 8, 8)).astype(np.uint8)
    whole = save(tmp_path / "d.npz", images=x, labels=np.zeros(20, int)).read_bytes()
    for damaged in (whole[: len(whole) // 2], whole[:200] + bytes([whole[200] ^ 1]) + whole[201:]):
        (tmp_path / "d.npz").write_bytes(damaged)
        assert "no readable .npz" in refusal(data(tmp_path / "d.npz"))


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 999), st.integers(0, 255)), min_size=1, max_size=4))
def test_an_npz_with_any_bytes_changed_is_read_or_refused(changes: list[tuple[int, int]]) -> None:
    file = io.BytesIO()
    np.savez(file, images=np.arange(32, dtype=np.uint8).reshape(2, 4, 4), labels=np.array([0, 1]))
    raw = bytearray(file.getvalue())
    for place, value in changes:
        raw[place % len(raw)] = value
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "d.npz"
        path.write_bytes(raw)
        try:
            cases = open_cases(data(path))
        except DataError:
            return
        assert np.isfinite(cases.read(0)).all() and set(cases.labels.tolist()) <= {0, 1}


def test_npz_that_would_not_fit_into_memory_is_not_unpacked(tmp_path: Path) -> None:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": (2**20, 2**14, 2**10)})
    with zipfile.ZipFile(tmp_path / "d.npz", "w") as z:
        z.writestr("images.npy", header.getvalue())
    raw = bytearray((tmp_path / "d.npz").read_bytes())
    at = raw.rfind(b"PK\x01\x02")  # the directory's entry: its uncompressed size, then the end record
    with zipfile.ZipFile(tmp_path / "d.npz") as z:
        size = z.infolist()[0].file_size
    assert raw[at + 24 : at + 28] == size.to_bytes(4, "little")
    raw[at + 24 : at + 28] = (2**32 - 2).to_bytes(4, "little")
    (tmp_path / "d.npz").write_bytes(bytes(raw))
    os_sysconf = os.sysconf
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "sysconf", lambda name: 2**10 if name == "SC_PHYS_PAGES" else os_sysconf(name))
        assert "unpacks to 4 GB" in refusal(data(tmp_path / "d.npz"))


# ---- files


def test_a_pipe_or_folder_in_a_files_place_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.npz")
    (tmp_path / "folder.npz").mkdir()
    for name in ("pipe.npz", "folder.npz"):
        assert "no plain file" in refusal(data(tmp_path / name))
        assert "no plain file" in refusal(data(tmp_path / name, "csv"))
    assert "No such file" in refusal(data(tmp_path / "absent.npz"))
    assert "No such file" in refusal(data(tmp_path / "absent", "images"))
    assert "Not a directory" in refusal(data(png(tmp_path / "x.png"), "images"))


def test_a_file_that_changed_since_submission_is_refused_when_read(tmp_path: Path) -> None:
    path = save(tmp_path / "d.npz", images=np.zeros((2, 4, 4), np.uint8), labels=np.array([0, 1]))
    digests = {str(path): hashlib.sha256(path.read_bytes()).hexdigest()}
    assert len(open_cases(data(path), digests)) == 2
    save(path, images=np.ones((2, 4, 4), np.uint8), labels=np.array([0, 1]))
    assert "changed since submission" in refusal(data(path), digests=digests)
    assert "not there at submission" in refusal(data(path), digests={})


def test_images_are_checked_one_by_one_against_the_submitters_digests(tmp_path: Path) -> None:
    for i in range(3):
        png(tmp_path / "sick" / f"{i} {SECRET}.png", np.full((4, 4), i, np.uint8))
    png(tmp_path / "normal" / "x.png", np.full((4, 4), 9, np.uint8))
    png(tmp_path / ".thumbnails" / "x.png")
    png(tmp_path / "normal" / "._x.png")
    cfg = data(tmp_path, "images")
    digests = {i.path: i.sha256 for i in fingerprint(cfg)}
    cases = open_cases(cfg, digests)
    png(tmp_path / "sick" / f"1 {SECRET}.png", np.full((4, 4), 77, np.uint8))
    assert cases.read(1)[0, 0, 0] == 0
    with pytest.raises(DataError, match="row 3: changed since submission") as caught:
        cases.read_many(range(4))
    assert SECRET not in str(caught.value)
    png(tmp_path / "sick" / "new.png")
    (tmp_path / "normal" / "x.png").unlink()
    assert "1 images are new since submission and 1 are gone" in refusal(cfg, digests=digests)


# ---- images


def test_a_folders_label_is_its_first_subfolder_and_the_order_is_the_paths(tmp_path: Path) -> None:
    for name in ("sick/b.png", "sick/deep/er/a.PNG", "normal/z.jpg", "normal/.hidden.png", "sick/notes.txt", ".cache/x.png"):
        png(tmp_path / name) if not name.endswith("txt") else (tmp_path / name).write_text("no image")
    cases = open_cases(data(tmp_path, "images"))
    assert cases.ids == ["normal/z.jpg", "sick/b.png", "sick/deep/er/a.PNG"]
    assert cases.labels.tolist() == [0, 1, 1] and cases.published is None
    check_data(cases)


def test_a_published_split_is_the_first_level(tmp_path: Path) -> None:
    for name in ("train/sick/1.png", "train/normal/2.png", "test/sick/3.png"):
        png(tmp_path / name)
    cases = open_cases(data(tmp_path, "images"))
    assert cases.published == ["test", "train", "train"] and cases.labels.tolist() == [1, 0, 1]
    png(tmp_path / SECRET / "sick" / "4.png")
    assert "1 images (first: row 1) lie outside train, val, test" in refusal(data(tmp_path, "images"))


def test_without_labels_images_lie_at_any_depth_and_in_any_size(tmp_path: Path) -> None:
    png(tmp_path / "a.png")
    png(tmp_path / "x" / "y" / "b.png", np.zeros((9, 9), np.uint8))
    cases = open_cases(data(tmp_path, "images"), labelled=False)
    assert cases.ids == ["a.png", "x/y/b.png"] and cases.labels.tolist() == [-1, -1]
    assert cases.read(0).shape == (1, 6, 5) and cases.read(1).shape == (1, 9, 9)
    with pytest.raises(DataError, match=r"row 2: is uint8 \(1, 9, 9\), others uint8 \(1, 6, 5\). Set data.image_size"):
        cases.read_many([0, 1])


def test_a_folder_that_names_no_class_is_refused_without_its_name(tmp_path: Path) -> None:
    png(tmp_path / "sick" / "1.png")
    png(tmp_path / SECRET / "2.png")
    assert "1 images (first: row 1 of the sorted files)" in refusal(data(tmp_path, "images"))
    png(tmp_path / "3.png")
    assert "2 images (first: row 1" in refusal(data(tmp_path, "images"))


def test_no_image_at_all_is_refused(tmp_path: Path) -> None:
    (tmp_path / "sick").mkdir()
    assert "holds no case" in refusal(data(tmp_path, "images"))


def test_images_of_several_sizes_ask_for_one(tmp_path: Path) -> None:
    for i in range(3):
        png(tmp_path / "sick" / f"{i}.png")
    png(tmp_path / "normal" / "x.png", np.zeros((8, 9), np.uint8))
    message = refusal(data(tmp_path, "images"))
    assert "2 sizes, 6x5 (3), 8x9 (1)" in message and "data.image_size=[6,5]" in message
    cases = open_cases(data(tmp_path, "images", image_size=[6, 5]))
    assert cases.read_many([0, 1, 2, 3]).shape == (4, 1, 6, 5)
    assert "are flat" in refusal(data(tmp_path, "images", image_size=[6, 5, 4]))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
@pytest.mark.parametrize("channels", [1, 3])
def test_every_kind_of_8_bit_image_becomes_grey_or_colour(tmp_path: Path, mode: str, channels: int) -> None:
    red = np.zeros((4, 4, 3), np.uint8)
    red[..., 0] = 255
    png(tmp_path / "sick" / "x.png", red, mode)
    x = open_cases(data(tmp_path, "images", channels=channels)).read(0)
    assert x.shape == (channels, 4, 4) and x.dtype == np.uint8
    if mode in ("P", "RGB", "RGBA"):
        assert x[:, 0, 0].tolist() == ([76] if channels == 1 else [255, 0, 0])  # 0.299 of 255: ITU-R 601


def test_a_palette_with_transparency_is_read(tmp_path: Path) -> None:
    image = Image.new("P", (4, 4))
    image.putpalette([10, 10, 10, 200, 200, 200])
    (tmp_path / "sick").mkdir()
    image.save(tmp_path / "sick" / "x.png", transparency=bytes([0, 128]))
    assert open_cases(data(tmp_path, "images")).read(0)[0, 0, 0] == 10


def test_16_bit_images_are_refused_not_clipped_to_white(tmp_path: Path) -> None:
    png(tmp_path / "sick" / f"{SECRET}.png", np.full((4, 4), 40000, np.uint16))
    assert "row 1: has 16 bits a pixel" in refusal(data(tmp_path, "images"), read=0)


def test_an_unreadable_image_is_its_rows_error_and_no_others(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (40, 40), dtype=np.uint8)
    whole = png(tmp_path / "sick" / f"0 {SECRET}.png", noise).read_bytes()
    damaged = {
        "1 cut.png": whole[: len(whole) // 2],
        "2 empty.png": b"",
        "3 text.png": b"no image at all",
        "4 flipped.png": whole[:60] + bytes([whole[60] ^ 255]) + whole[61:],
        "5 gif.png": b"GIF89a" + whole,
    }
    for name, content in damaged.items():
        (tmp_path / "sick" / f"{name[0]} {SECRET} {name[2:]}").write_bytes(content)
    os.mkfifo(tmp_path / "sick" / f"6 {SECRET}.png")
    cases = open_cases(data(tmp_path, "images"))
    assert cases.read(0).shape == (1, 40, 40)
    for index in range(1, 7):
        with pytest.raises(DataError, match=f"row {index + 1}: ") as caught:
            cases.read(index)
        assert SECRET not in str(caught.value)
    with pytest.raises(DataError, match="row 2: "):
        cases.read_many([0, 1, 2])


def test_an_image_that_unpacks_to_gigapixels_is_unreadable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    png(tmp_path / "sick" / "x.png", np.zeros((50, 50), np.uint8))
    cases = open_cases(data(tmp_path, "images"))
    for limit in (2000, 1000):  # over the limit Pillow warns, over twice the limit it raises
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        with pytest.raises(DataError, match="row 1: is no readable PNG or JPEG"):
            cases.read(0)


def test_links_out_of_the_folder_are_refused_and_links_within_are_read(tmp_path: Path) -> None:
    outside = png(tmp_path / "outside" / "secret.png")
    png(tmp_path / "in" / "sick" / "a.png")
    (tmp_path / "in" / "sick" / "b.png").symlink_to("a.png")
    (tmp_path / "in" / "sick" / "c.png").symlink_to(outside)
    cases = open_cases(data(tmp_path / "in", "images"))
    assert np.array_equal(cases.read(0), cases.read(1))
    with pytest.raises(DataError, match="row 3: a link leads out of the folder"):
        cases.read(2)
    (tmp_path / "in" / "sick" / "folder").symlink_to(tmp_path / "outside")
    assert "holds a link to a folder" in refusal(data(tmp_path / "in", "images"))


@pytest.mark.parametrize("name", ["with space", "quo\"te's", "new\nline", "ünïcödé", "$(touch x)", "-rf", "a" * 200])
def test_hostile_file_and_folder_names_are_read(tmp_path: Path, name: str) -> None:
    folder = tmp_path / name
    png(folder / "sick" / f"{name}.png")
    cases = open_cases(data(folder, "images"))
    assert cases.ids == [f"sick/{name}.png"] and cases.read(0).shape == (1, 6, 5)


def test_a_file_name_that_is_no_utf8_is_refused(tmp_path: Path) -> None:
    png(tmp_path / "sick" / "x.png").rename(os.fsdecode(os.fsencode(tmp_path) + b"/sick/\xff.png"))
    assert "row 1: the file's name is not UTF-8" in refusal(data(tmp_path, "images"))


# ---- csv


def listing(folder: Path, text: str | bytes, images: tuple[str, ...] = ("a.png", "sub/b.png")) -> Path:
    for name in images:
        png(folder / name)
    path = folder / "list.csv"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


ROWS = "case,path,label,who,part\n1,a.png,normal,p1,train\n2,sub/b.png,sick,p2,test\n"


@pytest.mark.parametrize(
    "text",
    [
        ROWS,
        ROWS.replace(",", ";"),
        "\ufeff" + ROWS,
        ROWS.replace("\n", "\r\n"),
        ROWS + "\n\n",
        ROWS.replace("a.png", '"a.png"'),
    ],
)
def test_a_listing_is_read_with_comma_or_semicolon_with_or_without_mark(tmp_path: Path, text: str) -> None:
    cases = open_cases(data(listing(tmp_path, text), "csv", patient_col="who", split_col="part"))
    assert cases.ids == ["1", "2"] and cases.labels.tolist() == [0, 1]
    assert cases.patients == ["p1", "p2"] and cases.published == ["train", "test"]
    check_data(cases)


def test_columns_that_describe_cases_are_read_and_may_be_empty(tmp_path: Path) -> None:
    text = "case,path,label,site,age\n1,a.png,normal, A ,71\n2,sub/b.png,sick,,\n"
    cases = open_cases(data(listing(tmp_path, text), "csv", group_cols=["site", "age"]))
    assert dict(cases.groups) == {"site": ["A", ""], "age": ["71", ""]}
    assert cases.stored_size(0) == (6, 5)
    unlabelled = open_cases(data(tmp_path / "list.csv", "csv", group_cols=["site"]), labelled=False)
    assert dict(unlabelled.groups) == {}


def test_a_column_that_is_not_there_is_named_as_its_key(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"data\.group_cols\[0\]=scanner: the listing has no such column"):
        open_cases(data(listing(tmp_path, ROWS), "csv", group_cols=["scanner"]))


def test_arrays_that_describe_cases_are_read_from_an_npz(tmp_path: Path) -> None:
    arrays = {"images": np.zeros((3, 4, 6), np.uint8), "labels": np.arange(3) % 2}
    path = save(tmp_path / "a.npz", **arrays, age=np.array([1.5, np.nan, 3]), site=np.array(["A", "", "B "]))
    cases = open_cases(data(path, group_cols=["age", "site"]))
    assert dict(cases.groups) == {"age": ["1.5", "", "3.0"], "site": ["A", "", "B"]} and cases.stored_size(2) == (4, 6)
    with pytest.raises(DataError, match="`sex` is missing"):
        open_cases(data(path, group_cols=["sex"]))
    save(path, **arrays, age=np.zeros((3, 2)))
    with pytest.raises(DataError, match=r"`age` is float64 \(3, 2\)"):
        open_cases(data(path, group_cols=["age"]))


def test_a_listing_without_labels_is_enough_to_predict(tmp_path: Path) -> None:
    cases = open_cases(data(listing(tmp_path, "case,path\n1,a.png\n2,sub/b.png\n"), "csv"), labelled=False)
    assert cases.labels.tolist() == [-1, -1] and cases.read(1).shape == (1, 6, 5)


def test_a_quoted_cell_may_hold_delimiter_and_newline(tmp_path: Path) -> None:
    path = listing(tmp_path, 'case,path,label\n"1,\n""x""","a, b.png",sick\n', ("a, b.png",))
    assert open_cases(data(path, "csv")).ids == ['1,\n"x"']


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "the listing is empty"),
        ("\ufeff", "the listing is empty"),
        ("case,path,label\n", "holds no case"),
        ("case,path,labels\n1,a.png,sick\n", "data.label_col=label: the listing has no such column. Did you mean labels?"),
        ("case,path,label,path\n1,a.png,sick,b\n", "data.path_col=path: the listing has this column 2 times"),
        (f"{SECRET},a.png,sick\n", "the first row names none of case, path, label"),
        ("case,path,label\n1,a.png,sick\n2,a.png\n", "row 3 has 2 columns, the header 3"),
        ("case,path,label\n1,a.png,sick,x\n", "row 2 has 4 columns"),
        ("case,path,label\n\n1,a.png,sick\n", "row 2 has 0 columns"),
        (f"case,path,label\n1,a.png,{SECRET}\n", "row 2: the class is none of normal, sick"),
        (f"case,path,label\n{SECRET},a.png,sick\n{SECRET},b.png,sick\n", "row 3 names the same case as row 2"),
        ("case,path,label\n,a.png,sick\n", "row 2 has nothing in the column of data.case_col"),
        ("case,path,label\n1,,sick\n", "row 2 has nothing in the column of data.path_col"),
        (f"case,path,label\n1,/etc/{SECRET}.png,sick\n", "row 2: the path leaves"),
        ("case,path,label\n1,../a.png,sick\n", "row 2: the path leaves"),
        ("case,path,label\n1,x/../../a.png,sick\n", "row 2: the path leaves"),
        ('case,path,label\n1,"a.png,sick\n', "row 2 of the listing is malformed"),
        (b"case,path,label\n1,\xff.png,sick\n", "line 2 of the listing is not UTF-8"),
        ("case,path,label\n1," + "x" * 200_000 + ",sick\n", "row 2 of the listing is malformed"),
    ],
)  # fmt: skip
def test_a_malformed_listing_is_refused_by_row(tmp_path: Path, text: str | bytes, says: str) -> None:
    assert says in refusal(data(listing(tmp_path, text), "csv"))


def test_all_faults_of_a_listing_are_told_at_once_and_many_are_counted(tmp_path: Path) -> None:
    rows = "".join(f"{i % 40},../a.png,wrong\n" for i in range(50))
    with pytest.raises(Faults) as caught:
        open_cases(data(listing(tmp_path, "case,path,label\n" + rows), "csv"))
    assert len(caught.value.lines) == 21 and "90 more rows have faults" in caught.value.lines[-1]


def test_a_missing_or_linked_out_image_is_its_rows_error(tmp_path: Path) -> None:
    path = listing(
        tmp_path / "in", "case,path,label\n1,a.png,sick\n2,gone.png,sick\n3,out.png,normal\n4,sub,sick\n5,sub/../a.png,sick\n"
    )
    (tmp_path / "in" / "out.png").symlink_to(png(tmp_path / "outside.png"))
    cfg = data(path, "csv")
    cases = open_cases(cfg, {i.path: i.sha256 for i in fingerprint(cfg)})
    for index, says in ((1, "row 3: cannot be read"), (2, "row 4: a link leads out"), (3, "row 5: is no plain file")):
        with pytest.raises(DataError, match=says):
            cases.read(index)
    assert np.array_equal(cases.read(0), cases.read(4))


@given(st.binary(max_size=200))
def test_any_bytes_are_a_listing_or_a_refusal(content: bytes) -> None:
    try:
        rows = read_listing(content, {"case_col": "case", "path_col": "path"})
    except (DataError, Faults):
        return
    assert all(set(row) == {"case_col", "path_col"} and all(row.values()) for row in rows)


cells = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=9)


@given(st.lists(st.tuples(cells, cells), max_size=9), st.sampled_from(",;"), st.booleans())
def test_what_csv_writes_a_listing_reads(table: list[tuple[str, str]], delimiter: str, mark: bool) -> None:
    import csv

    text = io.StringIO(newline="")
    csv.writer(text, delimiter=delimiter).writerows([("case", "path"), *table])
    content = text.getvalue().encode("utf-8-sig" if mark else "utf-8")
    rows = read_listing(content, {"case_col": "case", "path_col": "path"})
    assert [(r["case_col"], r["path_col"]) for r in rows] == table


def test_check_data_sees_a_reader_that_breaks_the_contract() -> None:
    class Broken(Cases):
        ids, labels = ["1", "2"], np.array([0, 1])

        def read(self, index: int) -> Any:
            return np.zeros((1, 4, 4 + index), np.uint8)

    with pytest.raises(AssertionError, match="differ in shape"):
        check_data(Broken())
    Broken.ids = ["1", "1"]
    with pytest.raises(AssertionError, match="not unique"):
        check_data(Broken())
