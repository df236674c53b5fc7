"""Pictures from files, addresses, text, bytes and arrays, with limits that hostile ones run into.

Of an animation or a document of several pages the first frame is taken, unless `Frame` or
`#frame=N` behind the name says another. Pictures from files, bytes and addresses are turned upright
by their EXIF orientation, as viewers and Hugging Face's `load_image` do; a `PIL.Image` and an array
are taken as they are. Transparency is laid over white, as Hugging Face's image processors do.
Samples of more than 8 bits are scaled to 8 (`avl_runtime.vision.load.deep`).
"""

from __future__ import annotations

import os
import re
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from avl_plugins.errors import AvlError, quoted, shown
from avl_runtime.vision.load import sources
from avl_runtime.vision.load.decoding import FORMATS, DecodeError, opened, starts_as_picture
from avl_runtime.vision.load.deep import eight_bits, is_deep
from avl_runtime.vision.load.sources import SourceError

__all__ = ["FORMATS", "Frame", "ImageError", "ImageLike", "load_image"]

MAX_PIXELS: Final = 64_000_000
MAX_BYTES: Final = 128 << 20
MAX_SOUGHT: Final = 1 << 30  # pixels of all the frames that are decoded to reach one
APART: Final = ("TIFF", "MPO", "HEIF")  # formats whose frames do not need those before them
ORIENTATION: Final = 0x0112
_FRAME: Final = re.compile(r"(.+)#frame=(\d{1,9})", re.DOTALL)


class ImageError(AvlError):
    """A picture is missing, damaged, too large or no picture."""


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame of an animation, or one page of a document, from 0 on; None is the one in front.

    `source` is a path, an address, the bytes of a file or an open file, as `load_image` takes them.
    """

    source: str | os.PathLike[str] | bytes | bytearray | memoryview | IO[bytes]
    index: int | None


ImageLike = (
    str
    | os.PathLike[str]
    | bytes
    | bytearray
    | memoryview
    | IO[bytes]
    | Image.Image
    | NDArray[np.uint8]
    | Frame
)


def load_image(source: ImageLike) -> Image.Image:
    """Load a picture as RGB.

    Args:
        source: a path (also with `~`, or as a file: address), an http or https address, a `data:`
            address or base64 alone, the bytes of a file, a file open in binary mode (read from its
            beginning), a `Frame` of one of these, a PIL image, or an array of uint8, [height,
            width], [height, width, 1], [height, width, 3] or, with transparency, [height, width,
            4]. A text `NAME#frame=N` is frame N, from 0, unless there is a file of that name.

    Raises:
        ImageError: the source cannot be read as a picture within the limits.
    """
    if isinstance(source, Image.Image):
        return _from_pil(source)
    if isinstance(source, np.ndarray):
        return _from_array(source)
    inner = source.source if isinstance(source, Frame) else source
    name = shown(inner if isinstance(inner, (str, os.PathLike)) else "image bytes")
    try:
        frame = _framed(source)
        return _decode(_bytes_of(frame.source), name, frame.index)
    except SourceError as error:
        raise ImageError(f"{name}: {error}") from None


def check_size(size: tuple[int, int], name: str) -> None:
    """Refuse a picture without pixels or with too many; `size` is (width, height)."""
    width, height = size
    if width < 1 or height < 1:
        raise ImageError(f"{name}: expected an image with pixels, found {width} x {height}")
    if width * height > MAX_PIXELS:
        raise ImageError(
            f"{name}: expected at most {MAX_PIXELS // 1_000_000} megapixels, "
            f"found {width} x {height}; scale the image down first"
        )


def to_rgb(image: Image.Image) -> Image.Image:
    """RGB, with transparent parts over white."""
    if image.mode in ("La", "RGBa"):  # colours multiplied by their alpha
        image = image.convert(image.mode.upper())
    if "A" in image.getbands() or image.info.get("transparency") is not None:
        layer = image.convert("RGBA")
        background = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(background, layer).convert("RGB")
    return image.convert("RGB")


def _framed(source: Any) -> Frame:
    """A source and which of its frames; what a file is called comes before `#frame=N`."""
    if isinstance(source, str) and "#frame=" in source[-16:]:
        found = _FRAME.fullmatch(source)
        if found is not None and not sources.is_name(source):
            return Frame(found[1], int(found[2]))
    if not isinstance(source, Frame):
        return Frame(source, None)
    index: object = source.index
    if index is None:
        return source
    if not isinstance(index, (int, np.integer)) or isinstance(index, bool) or index < 0:
        raise SourceError(f"expected the number of a frame from 0 on, found {quoted(index)}")
    return Frame(source.source, int(index))


def _from_pil(image: Image.Image) -> Image.Image:
    check_size(image.size, "image")
    try:
        return to_rgb(eight_bits(image, "image") if is_deep(image) else image)
    except Exception as error:  # it may be read from its file only now
        raise ImageError(
            f"expected a PIL image that can be read, found one that cannot ({_reason(error)}); "
            "load it first"
        ) from None


def _from_array(array: NDArray[Any]) -> Image.Image:
    flat = array[..., 0] if array.ndim == 3 and array.shape[2] == 1 else array
    fits = flat.ndim == 2 or (flat.ndim == 3 and flat.shape[2] in (3, 4))
    if array.dtype != np.uint8 or not fits:
        raise ImageError(
            "expected an image array [height, width], or [height, width, 1, 3 or 4], of uint8, "
            f"found {shown(list(array.shape))} of {shown(array.dtype)}; bring it into that order, "
            "scale it to 0 to 255 and use .astype('uint8')"
        )
    check_size((array.shape[1], array.shape[0]), "image array")
    return to_rgb(Image.fromarray(np.ascontiguousarray(flat)))


def _bytes_of(source: object) -> bytes:
    if isinstance(source, (bytes, bytearray, memoryview)):
        sources.check_length(memoryview(source).nbytes, MAX_BYTES)
        return bytes(source)
    if isinstance(source, str):
        return _from_text(source)
    if isinstance(source, os.PathLike):
        return sources.read_file(sources.local_path(Path(source)), "an image", MAX_BYTES)
    if callable(getattr(source, "read", None)):
        return sources.read_stream(source, "an image", MAX_BYTES)
    raise ImageError(
        "expected an image as path, address, bytes, open file, PIL image or uint8 array, "
        f"found {type(source).__name__}"
    )


def _from_text(text: str) -> bytes:
    start = text[:128].lstrip().lower()
    # Some clients leave the scheme out: image/png;base64,… or base64,…
    bare = ";base64," in start or start.startswith("base64,")
    if start.startswith("data:") or (bare and not sources.is_name(text)):
        return sources.data_address(text, MAX_BYTES)
    if text[:6].lower() != "file:/" and sources.ADDRESS.match(text):
        return sources.download(text, MAX_BYTES)
    # What begins like a picture in base64 and is no file's name is a picture in base64.
    if not sources.is_name(text) and starts_as_picture(sources.base64_start(text)):
        return sources.from_base64(text, MAX_BYTES)
    return sources.read_file(sources.local_path(text), "an image", MAX_BYTES)


def _decode(data: bytes, name: str, index: int | None) -> Image.Image:
    if not data:
        raise ImageError(f"{name}: expected an image, found no bytes")
    # Pillow's warnings (damaged EXIF data, large sizes) would reach the user as stray lines.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            image = opened(data)
        except Image.DecompressionBombError:
            limit = MAX_PIXELS // 1_000_000
            raise ImageError(
                f"{name}: expected at most {limit} megapixels, found more than twice as many; "
                "scale the image down first"
            ) from None
        except DecodeError as error:
            raise ImageError(f"{name}: {error}") from None
        check_size(image.size, name)
        try:
            if index is not None:
                _seek(image, index, name)
            image.load()
            check_size(image.size, name)
            if is_deep(image):
                turn = image.getexif().get(ORIENTATION, 1)
                image = eight_bits(image, name)
                image.getexif()[ORIENTATION] = turn
            return to_rgb(ImageOps.exif_transpose(image))
        except ImageError:
            raise
        except MemoryError:
            raise ImageError(
                f"{name}: expected memory for {image.width} x {image.height} pixels, found too "
                "little; scale the image down first"
            ) from None
        except Exception as error:  # decoders raise whatever damaged pixels lead them to
            raise ImageError(
                f"{name}: expected a whole {image.format} image, found a damaged one "
                f"({_reason(error)}); save or fetch it again"
            ) from None


def _seek(image: Image.Image, index: int, name: str) -> None:
    count = int(getattr(image, "n_frames", 1))
    if index >= count:
        has = "one frame" if count == 1 else f"frames 0 to {count - 1}"
        raise ImageError(f"{name}: expected the number of a frame, found {index}; it has {has}")
    between = 1 if image.format in APART else index + 1
    if between * image.width * image.height > MAX_SOUGHT:
        raise ImageError(
            f"{name}: expected at most {MAX_SOUGHT // 1_000_000} megapixels in all frames up to "
            f"the one asked for, found {between} of {image.width} x {image.height}; scale it down"
        )
    image.seek(index)
    check_size(image.size, name)


def _reason(error: Exception) -> str:
    return shown(" ".join(str(error).split()), 120)
