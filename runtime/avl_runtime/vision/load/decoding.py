"""The formats that pictures may have, and opening what looks like one of them."""

from __future__ import annotations

import importlib
import io
import logging
from typing import Any, Final

from PIL import Image

from avl_plugins.errors import shown
from avl_runtime.machine.installation import install_extra

# Formats that only hold pixels. Pillow's others may start outside programs (EPS) or draw commands.
FORMATS: Final[tuple[str, ...]] = (
    "PNG",
    "JPEG",
    "MPO",
    "WEBP",
    "AVIF",
    "GIF",
    "BMP",
    "TIFF",
    "PPM",
    "JPEG2000",
)
# Brands of HEIF files whose pictures are coded in HEVC, as telephones save them.
HEIC_BRANDS: Final = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs")
# What else people pass for a picture, by how it begins and where.
OTHERS: Final[tuple[tuple[int, bytes, str], ...]] = (
    (0, b"%PDF", "a PDF document; save the page as a picture"),
    (0, b"\xff\x0a", "a JPEG XL picture; save it as PNG"),
    (4, b"JXL ", "a JPEG XL picture; save it as PNG"),
    (8, b"AVI ", "a video; pass it as a video"),
    (0, b"\x1aE\xdf\xa3", "a video; pass it as a video"),
    (4, b"ftyp", "a video, or a picture in an unknown coding"),
    (0, b"II*\0", "a TIFF picture of a kind that Pillow cannot read; save it with 8 bits a sample"),
    (0, b"MM\0*", "a TIFF picture of a kind that Pillow cannot read; save it with 8 bits a sample"),
)
# What Pillow logs of damaged files would reach users as stray lines, unless someone listens.
logging.getLogger("PIL").addHandler(logging.NullHandler())


class DecodeError(Exception):
    """Bytes are no picture; says what was expected and found."""


def opened(data: bytes) -> Image.Image:
    """The picture in `data`, its header read and its pixels not yet.

    Raises:
        DecodeError: it is no picture, or one whose reader is not installed.
        Image.DecompressionBombError: its header promises too many pixels.
    """
    formats = _known()
    found = opened_as(data, formats)
    if found is not None:
        return found
    if is_heic(data):
        return _heic(data)
    raise DecodeError(f"expected an image ({', '.join((*formats, 'HEIC'))}), found {_kind(data)}")


def opened_as(data: bytes, formats: list[str] | tuple[str, ...]) -> Image.Image | None:
    """The picture in `data`, its header read, or None if it is of none of these formats.

    Args:
        formats: as Pillow calls them.

    Raises:
        Image.DecompressionBombError: its header promises too many pixels.
    """
    try:
        return Image.open(io.BytesIO(data), formats=formats)
    except Image.DecompressionBombError:
        raise
    except Exception:  # decoders raise whatever damaged headers lead them to
        return None


def starts_as_picture(data: bytes) -> bool:
    """Whether the first bytes of a file are those of a picture."""
    if len(data) < 16:
        return False
    accepted = (Image.OPEN[name][1] for name in _known())
    return is_heic(data) or any(accept is not None and accept(data[:16]) for accept in accepted)


def _known() -> list[str]:
    Image.init()
    return [name for name in FORMATS if name in Image.OPEN]


def is_heic(data: bytes) -> bool:
    """Whether the first bytes of a file are those of a HEIF file with pictures in HEVC."""
    if data[4:8] != b"ftyp":
        return False
    end = min(int.from_bytes(data[:4], "big"), 256)
    return any(data[at : at + 4] in HEIC_BRANDS for at in (8, *range(16, end, 4)))


def _heic(data: bytes) -> Image.Image:
    try:
        pillow_heif: Any = importlib.import_module("pillow_heif")
    except ImportError:
        raise DecodeError(
            "expected pillow-heif to read HEIC pictures, found none; run: "
            f"{install_extra('heic')}, or save the picture as JPEG"
        ) from None
    try:
        image = pillow_heif.HeifImageFile(io.BytesIO(data))
    except Exception as error:  # as above
        reason = shown(" ".join(str(error).split()), 80)
        raise DecodeError(f"expected a whole HEIC image, found a damaged one ({reason})") from None
    if not isinstance(image, Image.Image):
        raise TypeError("expected pillow-heif to give a PIL image")
    return image


def _kind(data: bytes) -> str:
    for at, start, kind in OTHERS:
        if data[at : at + len(start)] == start:
            return kind
    if b"<svg" in data[:1024]:
        return "an SVG drawing; save it as PNG"
    try:
        data[:512].decode("utf-8")
    except UnicodeDecodeError as error:
        if error.start < 500:
            return "other data"
    return "text"
