"""Pictures that a client sends, decoded under limits that are looked at before memory is taken."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from typing import Final

from PIL import Image

from avl_runtime.serve.asked.content import Picture
from avl_runtime.serve.errors import ApiError, refused
from avl_runtime.serve.limits import Limits
from avl_runtime.vision.load.decoding import opened_as
from avl_runtime.vision.load.images import ImageError, load_image
from avl_runtime.vision.load.sources import SourceError, data_address

# Those of OpenAI's protocol: each further decoder is one more that hostile bytes can be sent to.
FORMATS: Final = ("PNG", "JPEG", "WEBP", "GIF")
# A progressive JPEG takes as long as all pixels once for each scan; cameras write about ten.
MOST_SCANS: Final = 100
MOST_SEGMENTS: Final = 10_000
# Neither bytes of a scan (0xFF00, restarts) nor what has no length behind it.
_SEGMENT: Final = re.compile(rb"\xff([^\x00\x01\xd0-\xd8\xff])")


def is_remote(picture: Picture) -> bool:
    """Whether a picture is somewhere else than in the request."""
    return picture.url[:5].lower() != "data:"


class Pictures:
    """Decodes the pictures of one request, one after the other.

    Args:
        fetched: by address, what was fetched for this request.
    """

    def __init__(self, limits: Limits, fetched: Mapping[str, bytes] | None = None) -> None:
        self._limits, self._fetched = limits, fetched or {}
        self._pixels = 0

    def load(self, picture: Picture) -> Image.Image:
        """The picture as RGB.

        Raises:
            ApiError: it is not in the request, damaged, of another format, or makes the request's
                pictures larger than is allowed.
        """
        try:
            data = self._bytes(picture)
            self._check(data, picture.name)
            return load_image(data)
        except (SourceError, ImageError) as error:
            raise refused(f"{picture.name}: {error}", picture.name) from None

    def _bytes(self, picture: Picture) -> bytes:
        if not is_remote(picture):
            return data_address(picture.url, self._limits.body)
        if picture.url not in self._fetched:
            raise refused(
                f"{picture.name}: expected a data: address, found another kind; nothing is "
                "fetched where --allow-url-host names no host, send the picture itself",
                picture.name,
            )
        return self._fetched[picture.url]

    def _check(self, data: bytes, name: str) -> None:
        """Look at a picture's header."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                image = opened_as(data, FORMATS)
            except Image.DecompressionBombError:
                raise self._too_large(name) from None
        if image is None:
            raise refused(
                f"{name}: expected a picture as {', '.join(FORMATS)}, found other or damaged "
                "data; save it as one of them",
                name,
            )
        if image.format in ("JPEG", "MPO") and not _few_scans(data):
            raise refused(
                f"{name}: expected a JPEG of at most {MOST_SCANS} scans and {MOST_SEGMENTS} "
                "segments, found more; save it anew",
                name,
            )
        self._pixels += image.width * image.height
        if self._pixels > self._limits.pixels:
            raise self._too_large(name)

    def _too_large(self, name: str) -> ApiError:
        return refused(
            f"{name}: expected pictures of at most {self._limits.pixels} pixels together, found "
            "more; scale them down first",
            name,
        )


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
