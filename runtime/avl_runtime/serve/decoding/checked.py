"""Decoding a picture under limits that are looked at before memory is taken."""

from __future__ import annotations

import re
import warnings
from typing import Final

from PIL import Image

from avl_runtime.vision.load.decoding import opened_as
from avl_runtime.vision.load.images import ImageError, load_image

# Those of OpenAI's protocol: each further decoder is one more that hostile bytes can be sent to.
FORMATS: Final = ("PNG", "JPEG", "WEBP", "GIF")
# A progressive JPEG takes as long as all pixels once for each scan; cameras write about ten.
MOST_SCANS: Final = 100
MOST_SEGMENTS: Final = 10_000
# Neither bytes of a scan (0xFF00, restarts) nor what has no length behind it.
_SEGMENT: Final = re.compile(rb"\xff([^\x00\x01\xd0-\xd8\xff])")


class TooManyPixelsError(Exception):
    """A picture's header promises more pixels than are allowed."""


def decoded(data: bytes, pixels: int) -> Image.Image:
    """The picture as RGB.

    Args:
        pixels: that it may have.

    Raises:
        ImageError: it is damaged, or of another format.
        TooManyPixelsError: it has more pixels.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            image = opened_as(data, FORMATS)
        except Image.DecompressionBombError:
            raise TooManyPixelsError from None
    if image is None:
        raise ImageError(
            f"expected a picture as {', '.join(FORMATS)}, found other or damaged data; save it as "
            "one of them"
        )
    if image.format in ("JPEG", "MPO") and not _few_scans(data):
        raise ImageError(
            f"expected a JPEG of at most {MOST_SCANS} scans and {MOST_SEGMENTS} segments, found "
            "more; save it anew"
        )
    if image.width * image.height > pixels:
        raise TooManyPixelsError
    return load_image(data)


def _few_scans(jpeg: bytes) -> bool:
    """Whether a JPEG has so few scans and segments that it can be decoded; nothing is decoded.

    Source: ITU-T T.81, annex B; where a length is damaged, libjpeg's way on.
    """
    if jpeg.count(b"\xff\xda") <= MOST_SCANS:
        return True
    at = scans = 0
    for _ in range(MOST_SEGMENTS):
        found = _SEGMENT.search(jpeg, at)
        if found is None or found[1] == b"\xd9":  # the picture's end, whatever is behind it
            return True
        scans += found[1] == b"\xda"
        if scans > MOST_SCANS:
            return False
        at = found.end() + max(2, int.from_bytes(jpeg[found.end() : found.end() + 2], "big"))
    return False
