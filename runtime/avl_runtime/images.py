"""Pictures from files, addresses, bytes and arrays, with limits that hostile ones run into.

A file holds one picture: of an animation or a document of several pages, the first frame counts.
Pictures from files, bytes and addresses are turned upright by their EXIF orientation, as viewers
and Hugging Face's `load_image` do; a `PIL.Image` and an array are taken as they are. Transparency
is laid over white, as Hugging Face's image processors do.
"""

from __future__ import annotations

import io
import time
import urllib.error
import urllib.request
import warnings
from http.client import HTTPException
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from avl_plugins.errors import AvlError

ImageLike = str | Path | bytes | Image.Image | NDArray[np.uint8]

MAX_PIXELS: Final = 64_000_000
MAX_BYTES: Final = 128 << 20
CONNECT_SECONDS: Final = 15.0
DOWNLOAD_SECONDS: Final = 60.0
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


class ImageError(AvlError):
    """A picture is missing, damaged, too large or no picture."""


def load_image(source: ImageLike) -> Image.Image:
    """Load a picture as RGB.

    Args:
        source: a path, an http or https address, the bytes of a file, a PIL image, or an array
            [height, width, 3] of uint8.

    Raises:
        ImageError: the source cannot be read as a picture within the limits.
    """
    if isinstance(source, Image.Image):
        check_size(source.size, "image")
        return to_rgb(source)
    if isinstance(source, np.ndarray):
        return _from_array(source)
    if isinstance(source, (bytes, bytearray, memoryview)):
        return _decode(bytes(source), "image bytes")
    if isinstance(source, str) and "://" in source:
        return _decode(_download(source), source)
    if isinstance(source, (str, Path)):
        return _decode(_read(Path(source)), str(source))
    raise ImageError(
        "expected an image as path, address, bytes, PIL image or uint8 array, "
        f"found {type(source).__name__}"
    )


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
    if "A" in image.getbands() or image.info.get("transparency") is not None:
        layer = image.convert("RGBA")
        background = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(background, layer).convert("RGB")
    return image.convert("RGB")


def _from_array(array: NDArray[Any]) -> Image.Image:
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3:
        raise ImageError(
            "expected an image array [height, width, 3] of uint8, "
            f"found {list(array.shape)} of {array.dtype}"
        )
    check_size((array.shape[1], array.shape[0]), "image array")
    return Image.fromarray(np.ascontiguousarray(array))


def _read(path: Path) -> bytes:
    try:
        if path.is_dir():
            raise ImageError(f"{path}: expected an image file, found a folder; name a file in it")
        if not path.exists():
            raise ImageError(f"{path}: expected an image file, found nothing; check the path")
        if not path.is_file():
            raise ImageError(f"{path}: expected an image file, found a device or a pipe")
        if path.stat().st_size > MAX_BYTES:
            raise ImageError(
                f"{path}: expected at most {MAX_BYTES >> 20} MiB, "
                f"found {path.stat().st_size >> 20} MiB; scale the image down first"
            )
        return path.read_bytes()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        name = ascii(str(path))[1:-1]
        raise ImageError(f"{name}: expected a readable image file, found: {reason}") from None


def _decode(data: bytes, name: str) -> Image.Image:
    if not data:
        raise ImageError(f"{name}: expected an image, found no bytes")
    Image.init()
    formats = [known for known in FORMATS if known in Image.OPEN]
    # Pillow's warnings (damaged EXIF data, large sizes) would reach the user as stray lines.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            image = Image.open(io.BytesIO(data), formats=formats)
        except Image.DecompressionBombError:
            limit = MAX_PIXELS // 1_000_000
            raise ImageError(
                f"{name}: expected at most {limit} megapixels, found more than twice as many; "
                "scale the image down first"
            ) from None
        except Exception:  # decoders raise whatever damaged headers lead them to
            raise ImageError(
                f"{name}: expected an image ({', '.join(formats)}), found {_kind(data)}"
            ) from None
        check_size(image.size, name)
        try:
            image.load()
            check_size(image.size, name)
            return to_rgb(ImageOps.exif_transpose(image))
        except ImageError:
            raise
        except Exception as error:  # as above, for damaged pixels
            reason = " ".join(str(error).split())[:120]
            raise ImageError(
                f"{name}: expected a whole {image.format} image, found a damaged one ({reason}); "
                "save or fetch it again"
            ) from None


def _kind(data: bytes) -> str:
    try:
        data[:512].decode("utf-8")
    except UnicodeDecodeError as error:
        if error.start < 500:
            return "other data"
    return "text"


def _download(address: str) -> bytes:
    scheme = address.split("://", 1)[0].lower()
    if scheme not in ("http", "https"):
        raise ImageError(f"{address}: expected a path or an http or https address")
    # An opener with these handlers alone follows no redirect to a file: or ftp: address.
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
        urllib.request.HTTPRedirectHandler(),
    ):
        opener.add_handler(handler)
    opener.addheaders = [("User-Agent", "avl"), ("Accept", "image/*")]
    deadline = time.monotonic() + DOWNLOAD_SECONDS
    try:
        with opener.open(address, timeout=CONNECT_SECONDS) as response:
            data = bytearray()
            while chunk := response.read1(1 << 16):
                data += chunk
                if len(data) > MAX_BYTES:
                    raise ImageError(f"{address}: expected at most {MAX_BYTES >> 20} MiB")
                if time.monotonic() > deadline:
                    raise ImageError(f"{address}: expected an answer in {DOWNLOAD_SECONDS:.0f} s")
            return bytes(data)
    except urllib.error.HTTPError as error:
        raise ImageError(
            f"{address}: expected an image, found HTTP status {error.code}; check the address"
        ) from None
    except (OSError, HTTPException, ValueError) as error:
        reason = " ".join(str(getattr(error, "reason", error)).split())
        raise ImageError(
            f"{address}: expected an answer, found: {reason}; check the address and the network"
        ) from None
