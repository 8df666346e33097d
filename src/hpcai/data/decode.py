"""The bytes of one image file -> pixels, checked.   PNG, JPEG, npz; DICOM and NIfTI with the extra imaging

What a file is is told by its first bytes, never by its name. Nothing is unpacked before its size is known. PNG and JPEG give
uint8; DICOM, NIfTI and 16-bit PNG give float32 from 0 to 1 (data.window); npz what it holds.
"""

from __future__ import annotations

import importlib.util
import io
import warnings
import zipfile
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
from PIL import Image

from hpcai.config.schema import Data
from hpcai.data import dicom, nifti
from hpcai.data.cases import Pixels, resized
from hpcai.data.window import Refused, windowed
from hpcai.errors import ConfigError, DataError

MAX_PIXELS = Image.MAX_IMAGE_PIXELS or 89_478_485  # of one image in any format: Pillow's own limit
# over 89 megapixels Pillow warns, over twice that it refuses: for us both are one unreadable image
warnings.filterwarnings("error", category=Image.DecompressionBombWarning)
FORMATS = ("PNG", "JPEG", "npz", "DICOM", "NIfTI")
PACKAGES: Mapping[str, str] = {"DICOM": "pydicom", "NIfTI": "nibabel"}  # of the extra imaging


def format_of(head: bytes) -> str:
    """One of FORMATS, by the first 352 bytes; what is none of them is left to Pillow to refuse, as PNG.

    Source: DICOM PS3.10 section 7.1; NIfTI-1.1 header (magic at 344; sizeof_hdr 348, NIfTI-2: 540).
    """
    if head[128:132] == b"DICM":
        return "DICOM"
    if head[:2] == b"PK":
        return "npz"
    if head[:2] == b"\x1f\x8b" or head[344:347] in (b"n+1", b"ni1") or head[4:7] == b"n+2":
        return "NIfTI"
    return "JPEG" if head[:2] == b"\xff\xd8" else "PNG"


def decode(data: bytes, what: str, cfg: Data) -> Pixels:
    """The pixels of one image, (cfg.channels, height, width), resized to `cfg.image_size` if given.

    Raises: DataError beginning with `what`; ConfigError if the format needs an extra that is not installed.
    """
    kind = format_of(data[:352])
    if (package := PACKAGES.get(kind)) and importlib.util.find_spec(package) is None:
        raise ConfigError(f"data.reader={cfg.reader}: {kind} needs the extra imaging. Install hpcai[imaging].")
    try:
        x = DECODERS[kind](data, cfg)
    except Refused as fault:
        raise DataError(f"{what}: {fault}") from None
    except Exception as fault:  # damaged files raise OSError, ValueError, SyntaxError, struct.error, bomb errors ...
        named = "PNG or JPEG" if kind in ("PNG", "JPEG") else kind
        raise DataError(f"{what}: is no readable {named} ({type(fault).__name__}). Replace or remove it.") from None
    if x.dtype == np.float32 and not np.isfinite(x).all():
        raise DataError(f"{what}: holds NaN or infinite pixels. Mend or remove this case.")
    x = x[None] if x.ndim == 2 else np.moveaxis(x, -1, 0)
    x = _with_channels(x, cfg.channels)
    if cfg.image_size is not None and kind not in ("PNG", "JPEG"):
        x = resized(x, cfg.image_size)
    return np.ascontiguousarray(x)


def size_of(file: BinaryIO) -> tuple[int, int] | None:
    """(height, width) as stored, from the header alone; None if it cannot be told."""
    kind = format_of(file.read(352))
    file.seek(0)
    try:
        return SIZES[kind](file)
    except Exception:  # as in decode: whatever is wrong is told when the image is read
        return None


def check_size(height: int, width: int, samples: int = 1) -> None:
    """Raises ValueError over MAX_PIXELS, before anything is unpacked."""
    if not 0 < height * width * samples <= MAX_PIXELS * 3:
        raise ValueError("too large")


def _with_channels(x: Pixels, channels: int) -> Pixels:
    """(1 or 3, H, W) -> (channels, H, W): grey repeated, colour weighed to grey. Source: ITU-R BT.601 luma, as Pillow's L."""
    if len(x) == channels:
        return x
    if channels == 3:
        return np.repeat(x, 3, axis=0)
    grey = np.tensordot(np.array([0.299, 0.587, 0.114], np.float32), x.astype(np.float32), axes=1)
    return (np.rint(grey).astype(np.uint8) if x.dtype == np.uint8 else grey.astype(np.float32))[None]


# --- one function a format: bytes -> (H, W) or (H, W, 3), uint8 or float32


def _pillow(data: bytes, cfg: Data) -> Pixels:
    with Image.open(io.BytesIO(data), formats=("PNG", "JPEG")) as file:
        image: Image.Image = file
        if image.mode.startswith(("I", "F")):
            if cfg.window is None:
                raise Refused("has 16 bits a pixel. Choose data.window=[centre,width], or save 8 bits.")
            x = windowed(np.asarray(image).astype(np.float32), cfg.window)
            return x if cfg.image_size is None else resized(x, cfg.image_size)
        if "transparency" in image.info:  # Pillow loses its way from a palette with alpha straight to grey
            image = image.convert("RGBA")
        image = image.convert("L" if cfg.channels == 1 else "RGB")
        if (size := cfg.image_size) is not None:
            image = image.resize((size[1], size[0]), Image.Resampling.BILINEAR)
        return np.array(image)


def _npz(data: bytes, cfg: Data) -> Pixels:
    """`image`, or the only array; nothing is unpickled."""
    name, shape, dtype = npz_header(io.BytesIO(data))
    if dtype not in (np.uint8, np.float32):
        raise Refused(f"holds {dtype}. Save it as uint8 or float32.")
    if len(shape) not in (2, 3) or (len(shape) == 3 and shape[2] != 3):
        raise Refused("is an array of another shape than (H, W) or (H, W, 3). Save it so.")
    check_size(shape[0], shape[1], 3)
    with np.load(io.BytesIO(data), allow_pickle=False) as z:
        x: Pixels = z[name]
    return x


def npz_header(file: BinaryIO) -> tuple[str, tuple[int, ...], npt.DTypeLike]:
    """Name, shape and type of the array that is the image.

    Raises: Refused if there are several and none is called `image`; what zipfile and numpy raise.
    """
    with zipfile.ZipFile(file) as z:
        names = [n.removesuffix(".npy") for n in z.namelist() if n.endswith(".npy")]
        if "image" not in names and len(names) != 1:
            raise Refused(f"holds {len(names)} arrays. Keep one, or call it `image`.")
        name = "image" if "image" in names else names[0]
        with z.open(f"{name}.npy") as member:
            version = np.lib.format.read_magic(member)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, _, dtype = read(member)
    return name, shape, dtype


def _dicom(data: bytes, cfg: Data) -> Pixels:
    return dicom.pixels(data, cfg.window, check_size)


def _nifti(data: bytes, cfg: Data) -> Pixels:
    return nifti.pixels(data, cfg.window, check_size)


def _pillow_size(file: BinaryIO) -> tuple[int, int]:
    with Image.open(file, formats=("PNG", "JPEG")) as image:
        return image.height, image.width


def _npz_size(file: BinaryIO) -> tuple[int, int]:
    height, width = npz_header(file)[1][:2]
    return int(height), int(width)


DECODERS: Mapping[str, Callable[[bytes, Data], Pixels]] = {
    "PNG": _pillow, "JPEG": _pillow, "npz": _npz, "DICOM": _dicom, "NIfTI": _nifti,
}  # fmt: skip
SIZES: Mapping[str, Callable[[Any], tuple[int, int]]] = {
    "PNG": _pillow_size, "JPEG": _pillow_size, "npz": _npz_size, "DICOM": dicom.size, "NIfTI": nifti.size,
}  # fmt: skip
