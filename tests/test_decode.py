"""Image files of every format -> pixels: made here by pydicom and nibabel, real ones where they lie, and hostile ones."""

from __future__ import annotations

import gzip
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from hpcai.config.schema import Data
from hpcai.data.cases import Pixels
from hpcai.data.decode import MAX_PIXELS, decode, format_of, size_of
from hpcai.data.open import open_cases
from hpcai.errors import ConfigError, DataError
from hpcai.inputs import fingerprint, is_image

REAL = Path(__file__).parent.parent.parent / "shared/data"
SECRET = "Mustermann"
imaging = pytest.mark.imaging


def cfg(**more: Any) -> Data:
    return Data(**{"path": "x", "reader": "csv", "labels": ["a", "b"]} | more)


def read(data: bytes, **more: Any) -> Pixels:
    return decode(data, "data: row 7", cfg(**more))


def refusal(data: bytes, **more: Any) -> str:
    with pytest.raises(DataError) as caught:
        read(data, **more)
    assert str(caught.value).startswith("data: row 7: ") and SECRET not in str(caught.value)
    return str(caught.value)


def dicom_bytes(x: Any = None, *, seed: int = 0, drop: tuple[str, ...] = (), **more: Any) -> bytes:
    """A CT slice of 6 x 5: 12 of 16 bits, intercept -1024, window 40, 400, as explicit little endian; with other values."""
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

    x = np.random.default_rng(seed).integers(0, 4095, (6, 5)).astype(np.uint16) if x is None else x
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = CTImageStorage, generate_uid(entropy_srcs=[str(seed)])
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    found = FileDataset("x", {}, file_meta=meta, preamble=b"\0" * 128)
    found.SOPClassUID, found.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    found.Rows, found.Columns, found.SamplesPerPixel = x.shape[0], x.shape[1], 1 if x.ndim == 2 else 3
    found.PhotometricInterpretation = "MONOCHROME2" if x.ndim == 2 else "RGB"
    found.BitsAllocated = x.dtype.itemsize * 8
    found.BitsStored, found.PixelRepresentation = (12 if x.dtype.itemsize == 2 else 8), int(x.dtype.kind == "i")
    found.HighBit = found.BitsStored - 1
    if x.ndim == 3:
        found.PlanarConfiguration = 0
    else:
        found.RescaleSlope, found.RescaleIntercept, found.WindowCenter, found.WindowWidth = 1, -1024, 40, 400
    found.PixelData = x.tobytes()
    for name, value in more.items():
        setattr(found, name, value)
    for name in drop:
        delattr(found, name)
    buffer = io.BytesIO()
    found.save_as(buffer, enforce_file_format=False)
    return buffer.getvalue()


def nifti_bytes(x: Any, affine: Any = None, packed: bool = False, kind: str = "Nifti1Image") -> bytes:
    import nibabel as nib

    data: bytes = getattr(nib, kind)(x, affine).to_bytes()
    return gzip.compress(data) if packed else data


def npz_bytes(**arrays: Any) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


# --- what a file is


@imaging
def test_the_format_is_told_by_the_content_and_the_size_by_the_header() -> None:
    png, jpeg = io.BytesIO(), io.BytesIO()
    Image.new("L", (5, 6)).save(png, "PNG")
    Image.new("L", (5, 6)).save(jpeg, "JPEG")
    files = {
        "PNG": png.getvalue(), "JPEG": jpeg.getvalue(), "npz": npz_bytes(image=np.zeros((6, 5), np.uint8)),
        "DICOM": dicom_bytes(), "NIfTI": nifti_bytes(np.zeros((5, 6), np.float32)),
    }  # fmt: skip
    for kind, data in files.items():
        assert format_of(data[:352]) == kind
        assert size_of(io.BytesIO(data)) == (6, 5), kind
        assert read(data).shape == (1, 6, 5) and read(data, channels=3).shape == (3, 6, 5)
        assert read(data, image_size=[3, 4]).shape == (1, 3, 4)
        assert size_of(io.BytesIO(data[:20])) is None
    assert size_of(io.BytesIO(nifti_bytes(np.zeros((5, 6), np.int16), packed=True))) == (6, 5)


@imaging
def test_a_folder_holds_images_with_suffixes_and_dicom_without(tmp_path: Path) -> None:
    named = {"a.dcm": b"", "b.nii.gz": b"", "c.NPZ": b"", "1.2.840.99": dicom_bytes(), "IM0001": dicom_bytes()}
    other = {"DICOMDIR": dicom_bytes(), "README": b"x", "x.txt": dicom_bytes(), ".hidden.png": b"", "short": b"\0" * 128}
    for name, data in (named | other).items():
        (tmp_path / name).write_bytes(data)
    found = {f.name for f in tmp_path.iterdir() if is_image(tmp_path, f.relative_to(tmp_path))}
    assert found == set(named)


@imaging
def test_a_folder_of_dicom_is_read_and_fingerprinted(tmp_path: Path) -> None:
    for i in range(4):
        (tmp_path / "ab"[i % 2]).mkdir(exist_ok=True)
        (tmp_path / "ab"[i % 2] / f"IM{i}").write_bytes(dicom_bytes(seed=i))
    data = cfg(path=str(tmp_path), reader="images")
    digests = {f.path: f.sha256 for f in fingerprint(data)}
    cases = open_cases(data, digests)
    assert cases.labels.tolist() == [0, 0, 1, 1] and cases.read(3).dtype == np.float32
    assert cases.stored_size(0) == (6, 5)


def test_a_listing_may_lie_elsewhere_than_its_images(tmp_path: Path) -> None:
    (tmp_path / "far/img").mkdir(parents=True)
    Image.new("L", (5, 6), 9).save(tmp_path / "far/img/a.png")
    (tmp_path / "list.csv").write_text("case,path,label\n1,img/a.png,a\n")
    data = cfg(path=str(tmp_path / "list.csv"), root=str(tmp_path / "far"))
    assert {Path(f.path).name for f in fingerprint(data)} == {"a.png", "list.csv"}
    assert int(open_cases(data).read(0).max()) == 9


def test_an_extra_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"DICOM needs the extra imaging. Install hpcai\[imaging\]."):
        read(b"\0" * 128 + b"DICM")
    with pytest.raises(ConfigError, match="NIfTI needs the extra imaging"):
        read(gzip.compress(b"x"))


# --- DICOM

RAMP = np.arange(0, 4080, 136, dtype=np.uint16).reshape(6, 5)


@imaging
def test_rescale_and_the_files_own_window_give_grey_from_0_to_1() -> None:
    x = read(dicom_bytes(RAMP))[0]
    hu = RAMP.astype(float) - 1024
    expected = np.clip((hu - 39.5) / 399 + 0.5, 0, 1)  # PS3.3 C.11.2.1.2: LINEAR
    assert x.dtype == np.float32 and np.allclose(x, expected, atol=1e-6)


@imaging
def test_data_window_stands_above_the_files() -> None:
    x = read(dicom_bytes(RAMP), window=[0.0, 1000.0])[0]
    assert np.allclose(x, np.clip((RAMP - 1024.0) / 1000 + 0.5, 0, 1), atol=1e-6)


@imaging
@pytest.mark.parametrize("drop", [("WindowCenter", "WindowWidth"), ("WindowWidth",)])
def test_without_a_window_the_least_value_is_0_and_the_greatest_1(drop: tuple[str, ...]) -> None:
    x = read(dicom_bytes(RAMP, drop=drop))[0]
    assert np.allclose(x, RAMP / RAMP.max(), atol=1e-6)


@imaging
def test_several_windows_mean_the_first_and_functions_are_followed() -> None:
    first = read(dicom_bytes(RAMP, WindowCenter=[40, 600], WindowWidth=[400, 2000]))
    assert (first == read(dicom_bytes(RAMP))).all()
    exact = read(dicom_bytes(RAMP, VOILUTFunction="LINEAR_EXACT"))[0]
    assert np.allclose(exact, np.clip((RAMP - 1024.0 - 40) / 400 + 0.5, 0, 1), atol=1e-6)
    sigmoid = read(dicom_bytes(RAMP, VOILUTFunction="SIGMOID"))[0]
    assert np.allclose(sigmoid, 1 / (1 + np.exp(-4 * (RAMP - 1064.0) / 400)), atol=1e-6)


@imaging
def test_monochrome1_is_turned_so_that_white_is_high() -> None:
    assert np.allclose(read(dicom_bytes(RAMP, PhotometricInterpretation="MONOCHROME1")), 1 - read(dicom_bytes(RAMP)))


@imaging
def test_signed_values_without_rescale_are_taken() -> None:
    x = (RAMP.astype(np.int16) - 2000).astype(np.int16)
    got = read(dicom_bytes(x, drop=("RescaleSlope", "RescaleIntercept"), BitsStored=16, HighBit=15), window=[0.0, 4000.0])[0]
    assert np.allclose(got, np.clip(x / 4000 + 0.5, 0, 1), atol=1e-6)


@imaging
def test_colour_stays_colour_and_becomes_grey_where_one_channel_is_asked_for() -> None:
    x = np.random.default_rng(0).integers(0, 255, (6, 5, 3)).astype(np.uint8)
    assert (read(dicom_bytes(x), channels=3) == np.moveaxis(x, -1, 0)).all()
    grey = read(dicom_bytes(x))
    assert grey.dtype == np.uint8 and abs(int(grey[0, 0, 0]) - float(x[0, 0] @ [0.299, 0.587, 0.114])) <= 1


@imaging
def test_what_is_no_single_image_is_refused() -> None:
    assert "has several frames" in refusal(dicom_bytes(RAMP, NumberOfFrames=2))
    assert "holds no image" in refusal(dicom_bytes(RAMP, drop=("PixelData",)))
    assert "neither grey nor RGB" in refusal(dicom_bytes(RAMP, PhotometricInterpretation="PALETTE COLOR"))


@imaging
def test_a_header_that_lies_about_its_size_is_refused_before_anything_is_unpacked() -> None:
    assert "no readable DICOM (ValueError)" in refusal(dicom_bytes(RAMP, Rows=60000, Columns=60000))
    assert MAX_PIXELS * 3 < 60000**2


@imaging
def test_a_damaged_file_is_refused_wherever_it_breaks_and_cites_nothing() -> None:
    whole = dicom_bytes(RAMP, PatientName=f"{SECRET}^Erika")
    rng = np.random.default_rng(0)
    for cut in (140, 200, 400, len(whole) - 10):
        refusal(whole[:cut])
    for _ in range(60):
        data = bytearray(whole)
        for at in rng.integers(132, len(data), 4):
            data[at] = rng.integers(0, 256)
        try:
            assert read(bytes(data)).dtype in (np.float32, np.uint8)
        except DataError as fault:
            assert SECRET not in str(fault)


# --- NIfTI


@imaging
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("kind", ["Nifti1Image", "Nifti2Image"])
@pytest.mark.parametrize("shape", [(5, 6), (5, 6, 1)])
def test_a_nifti_slice_gives_its_first_axis_as_columns(packed: bool, kind: str, shape: tuple[int, ...]) -> None:
    x = np.arange(30, dtype=np.int16).reshape(5, 6)
    got = read(nifti_bytes(x.reshape(shape), None, packed, kind))[0]
    assert got.shape == (6, 5) and np.allclose(got, x.T / 29, atol=1e-6)


@imaging
def test_a_nifti_slice_lies_as_dicom_has_it_whatever_its_axes() -> None:
    x = np.arange(30, dtype=np.float32).reshape(5, 6, 1)
    ras = read(nifti_bytes(x, np.diag([1.0, 1, 1, 1])))[0]
    lps = read(nifti_bytes(x[::-1, ::-1], np.diag([-1.0, -1, 1, 1])))[0]
    assert np.allclose(ras, lps) and np.allclose(lps, x[::-1, ::-1, 0].T / 29, atol=1e-6)


@imaging
def test_a_window_holds_for_nifti_too() -> None:
    x = np.array([[-1000.0, 0], [40, 400]], np.float32)
    assert np.allclose(read(nifti_bytes(x), window=[40.0, 400.0])[0], np.clip((x.T - 40) / 400 + 0.5, 0, 1))


@imaging
def test_volumes_bombs_and_damage_are_refused() -> None:
    assert "is no flat image" in refusal(nifti_bytes(np.zeros((4, 5, 6), np.int16)))
    packed = nifti_bytes(np.random.default_rng(0).integers(0, 999, (40, 50)).astype(np.int16), packed=True)
    assert "no readable NIfTI" in refusal(packed[:-30])
    flipped = bytearray(packed)
    flipped[len(flipped) // 2] ^= 1
    assert "no readable NIfTI" in refusal(bytes(flipped))  # by gzip's checksum, if by nothing else
    bomb = gzip.compress(nifti_bytes(np.zeros((4, 5), np.int16)) + bytes(50_000_000))
    assert "no readable NIfTI (ValueError)" in refusal(bomb)
    assert "NaN or infinite" in refusal(nifti_bytes(np.array([[np.nan, 1], [2, 3]], np.float32)))


# --- npz a case, and 16 bits


@pytest.mark.parametrize(("arrays", "shape"), [
    ({"image": np.zeros((6, 5), np.uint8)}, (1, 6, 5)), ({"x": np.zeros((6, 5), np.float32)}, (1, 6, 5)),
    ({"image": np.zeros((6, 5, 3), np.uint8), "mask": np.zeros(3)}, (1, 6, 5)),
])  # fmt: skip
def test_an_npz_is_its_image(arrays: dict[str, Any], shape: tuple[int, ...]) -> None:
    assert read(npz_bytes(**arrays)).shape == shape


@pytest.mark.parametrize(("arrays", "said"), [
    ({"a": np.zeros((2, 2)), "b": np.zeros((2, 2))}, "holds 2 arrays"), ({}, "holds 0 arrays"),
    ({"image": np.zeros((2, 2))}, "holds float64"), ({"image": np.zeros((2, 2, 2), np.uint8)}, "another shape"),
    ({"image": np.array([[np.nan, 1]], np.float32)}, "NaN or infinite"), ({"image": np.array([{}], object)}, "holds object"),
    ({"image": np.zeros((0, 4), np.uint8)}, "no readable npz"),
])  # fmt: skip
def test_an_npz_that_is_no_image_is_refused(arrays: dict[str, Any], said: str) -> None:
    assert said in refusal(npz_bytes(**arrays))


def test_sixteen_bits_want_a_window() -> None:
    buffer, x = io.BytesIO(), np.array([[0, 1000], [2000, 4000]], np.uint16)
    Image.fromarray(x).save(buffer, "PNG")
    assert "has 16 bits a pixel. Choose data.window" in refusal(buffer.getvalue())
    assert np.allclose(read(buffer.getvalue(), window=[2000.0, 4000.0])[0], x / 4000)
    assert read(buffer.getvalue(), window=[2000.0, 4000.0], image_size=[8, 8]).shape == (1, 8, 8)


@pytest.mark.parametrize("window", [[0.0, 0.0], [0.0, -1.0]])
def test_a_window_without_width_is_refused(window: list[float]) -> None:
    with pytest.raises(ValueError, match="the width must be greater than 0"):
        cfg(window=window)


def test_a_root_is_for_listings_alone() -> None:
    with pytest.raises(ValueError, match=r"is for data\.reader=csv alone"):
        cfg(reader="images", root="/x")


# --- real files


@imaging
@pytest.mark.skipif(not (REAL / "dicom").is_dir(), reason="no real DICOM here")
def test_real_slices_are_read_compressed_oblique_and_signed() -> None:
    files = sorted((REAL / "dicom").rglob("*"))
    read_, refused = 0, []
    for file in (f for f in files if f.is_file()):
        try:
            x = read(file.read_bytes())
            assert x.dtype == np.float32 and 0 <= x.min() <= x.max() <= 1
            read_ += 1
        except DataError as fault:
            refused.append(str(fault))
    assert read_ == 83 and len(refused) == 2 and all("holds no image" in text for text in refused)
