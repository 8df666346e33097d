"""The files behind a config and their digests; whatever lies there, one line says it, and no file's name is in it."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import pytest

from hpcai import inputs
from hpcai.config.schema import Data
from hpcai.errors import DataError
from hpcai.inputs import Input, digest_file, fingerprint, list_files, locate


def data(path: Path, reader: Any = "npz", **more: Any) -> Data:
    return Data(path=str(path), labels=["no", "yes"], reader=reader, **more)


def sha(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


# --- where


def test_shipped_data_lies_in_the_package() -> None:
    path = locate("shipped:pneumoniamnist/pneumoniamnist.npz")
    assert path.is_file() and path.is_relative_to(inputs.SHIPPED)


@pytest.mark.parametrize("path", ["x.npz", "../errors.py", "pneumoniamnist/../../errors.py", "/etc/passwd", "a\nb", "p" * 5000])
def test_what_is_not_shipped_is_not_found_by_any_way(path: str) -> None:
    with pytest.raises(DataError, match=r"^data.path=shipped:.*: is not shipped\. .*shipped:pneumoniamnist/"):
        locate(f"shipped:{path}")


def test_a_link_that_leads_out_of_the_package_is_not_shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "shipped").mkdir()
    (tmp_path / "secret.npz").touch()
    (tmp_path / "shipped/out.npz").symlink_to(tmp_path / "secret.npz")
    monkeypatch.setattr(inputs, "SHIPPED", tmp_path / "shipped")
    with pytest.raises(DataError, match="is not shipped"):
        locate("shipped:out.npz")


def test_paths_become_absolute_and_the_home_may_be_written_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert locate("~/x.npz") == locate("x.npz") == locate("./x.npz") == tmp_path / "x.npz"
    assert locate("./~") == tmp_path / "~"
    assert locate("~nobody-here/x.npz") == tmp_path / "~nobody-here/x.npz"


# --- what


def test_a_file_s_digest_is_its_sha256(tmp_path: Path) -> None:
    for content in (b"", b"x", os.urandom(3 * 2**20 + 1)):
        (tmp_path / "x.npz").write_bytes(content)
        (found,) = fingerprint(data(tmp_path / "x.npz"))
        assert found == Input(str(tmp_path / "x.npz"), len(content), sha(tmp_path / "x.npz"))


def test_the_stated_digest_is_held_against_the_file(tmp_path: Path) -> None:
    file = tmp_path / "x.npz"
    file.write_bytes(b"right")
    assert fingerprint(data(file, sha256=sha(file)))
    stated = sha(file)
    file.write_bytes(b"wrong")
    with pytest.raises(
        DataError, match=rf"^data.sha256={stated[:12]}\.\.\.: the file has {sha(file)[:12]}\.\.\. Get the right"
    ):
        fingerprint(data(file, sha256=stated))


def test_images_are_all_png_and_jpeg_below_in_one_order(tmp_path: Path) -> None:
    names = ["b/x.png", "a/x.JPG", "a/y.jpeg", "a/deep/er/z.PNG", os.fsdecode(b"a/gr\xf6\xdfe.png"), "a/new\nline.png"]
    for name in [*names, "a/notes.txt", "png"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(os.fsencode(name))
    found = fingerprint(data(tmp_path, "images"))
    assert [f.path for f in found] == sorted(str(tmp_path / name) for name in names)
    assert [f.sha256 for f in found] == [sha(Path(f.path)) for f in found]


@pytest.mark.parametrize("sign", [",", ";"])
def test_a_listing_comes_first_then_what_it_lists_and_has(tmp_path: Path, sign: str) -> None:
    (tmp_path / "b.png").touch()
    (tmp_path / "a b.png").touch()
    rows = ["case,path,label", "1,b.png,no", "2,a b.png,yes", "3,gone.png,no", "4,b.png,no", "5,,no", "6"]
    (tmp_path / "list.csv").write_text("\ufeff" + "\n".join(rows).replace(",", sign))
    assert [f.name for f in list_files(data(tmp_path / "list.csv", "csv"))] == ["list.csv", "a b.png", "b.png"]


@pytest.mark.parametrize(
    "content", [b"", b"\n", b"path", b"\xff\xfe\x00", b"path\n\x00\n", b"path\n../../../etc\n", b"x,y\n1,2\n"]
)
def test_a_listing_of_anything_lists_itself(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "list.csv").write_bytes(content)
    assert [f.name for f in list_files(data(tmp_path / "list.csv", "csv"))] == ["list.csv"]


def test_a_field_without_end_is_told_by_its_line(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text('case,path\n1,"' + "secret-patient " * 10_000)
    said = r"^data: line \d+ of the listing cannot be read \(field larger than field limit \(131072\)\)\. Mend it\.$"
    with pytest.raises(DataError, match=said):
        list_files(data(tmp_path / "list.csv", "csv"))


# --- what is wrong


@pytest.mark.parametrize(("make", "reader", "said"), [
    (lambda p: None, "npz", "does not exist. Give the file or folder"),
    (lambda p: p.mkdir(), "npz", "is no plain file. data.reader=npz reads one."),
    (lambda p: os.mkfifo(p), "npz", "is no plain file."),
    (lambda p: os.mkfifo(p), "csv", "is no plain file."),
    (lambda p: p.symlink_to("/dev/zero"), "npz", "is no plain file."),
    (lambda p: p.symlink_to(p), "npz", "cannot be reached (Too many levels of symbolic links)."),
    (lambda p: p.symlink_to("gone"), "npz", "does not exist."),
    (lambda p: p.touch(), "images", "is no folder. data.reader=images reads a folder"),
    (lambda p: p.mkdir(), "images", "holds no image (.png, .jpg, .jpeg, .npz,"),
])  # fmt: skip
def test_what_cannot_be_read_is_told_by_its_path(tmp_path: Path, make: Any, reader: str, said: str) -> None:
    path = tmp_path / "in put"
    make(path)
    with pytest.raises(DataError) as caught:
        fingerprint(data(path, reader))
    assert str(caught.value).startswith(f"data.path={path}: {said}")


def test_a_path_longer_than_any_file_system_takes_is_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot be reached \(File name too long\)"):
        fingerprint(data(tmp_path / ("a" * 256)))


NO_FILES = [os.mkfifo, os.mkdir, lambda p: Path(p).symlink_to("/dev/zero"), lambda p: Path(p).symlink_to("gone")]


@pytest.mark.parametrize("make", NO_FILES)
def test_among_images_what_is_no_plain_file_is_refused_without_its_name(tmp_path: Path, make: Any) -> None:
    make(tmp_path / "secret-patient.png")
    with pytest.raises(DataError, match=r"^data.path: an input ") as caught:
        fingerprint(data(tmp_path, "images"))
    assert "secret-patient" not in str(caught.value)


def test_an_input_that_vanishes_meanwhile_is_a_data_error_without_its_name(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"^data.path: an input cannot be read \(No such file or directory\)"):
        digest_file(tmp_path / "secret-patient.png")
