"""Pictures that a client sends, decoded in another process, under limits on all of a request's."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Final

from PIL import Image

from avl_runtime.serve.asked.content import Picture
from avl_runtime.serve.decoding.checked import TooManyPixelsError
from avl_runtime.serve.decoding.processes import Decoders, DiedError, StartError, TooSlowError
from avl_runtime.serve.errors import ApiError, refused
from avl_runtime.serve.limits import Limits
from avl_runtime.vision.load.images import ImageError
from avl_runtime.vision.load.sources import SourceError, data_address

LOW_PIXELS: Final = 512  # of the longer side, where a client asks for low detail as OpenAI has it


def is_remote(picture: Picture) -> bool:
    """Whether a picture is somewhere else than in the request."""
    return picture.url[:5].lower() != "data:"


class Pictures:
    """Decodes the pictures of one request, one after the other.

    Args:
        decoders: the processes that do it.
        fetched: by address, what was fetched for this request.
    """

    def __init__(
        self, limits: Limits, decoders: Decoders, fetched: Mapping[str, bytes] | None = None
    ) -> None:
        self._limits, self._decoders, self._fetched = limits, decoders, fetched or {}
        self._pixels, self._seconds = limits.pixels, limits.decoding  # that are left

    def load(self, picture: Picture) -> Image.Image:
        """The picture as RGB, in the detail that was asked for.

        Raises:
            ApiError: it is not in the request, damaged, of another format, makes the request's
                pictures larger or slower than is allowed, or no process decodes it.
        """
        name, begun = picture.name, time.monotonic()
        try:
            data = self._bytes(picture)
            found = self._decoders.decode(data, self._pixels, self._seconds)
        except (SourceError, ImageError) as error:
            raise refused(f"{name}: {error}", name) from None
        except TooManyPixelsError:
            raise refused(
                f"{name}: expected pictures of at most {self._limits.pixels} pixels together, "
                "found more; scale them down first",
                name,
            ) from None
        except TooSlowError:
            raise refused(
                f"{name}: expected pictures that are decoded in {self._limits.decoding:g} s "
                "together, found slower ones; save them anew, or scale them down",
                name,
            ) from None
        except DiedError:
            raise refused(
                f"{name}: expected a picture that can be decoded, found one that ends its "
                "decoder; save it anew",
                name,
            ) from None
        except StartError:
            raise ApiError(
                503,
                "expected a process that decodes pictures, found none; try again later",
                code="no_decoder",
            ) from None
        self._pixels -= found.width * found.height
        self._seconds -= time.monotonic() - begun
        if picture.low:
            found.thumbnail((LOW_PIXELS, LOW_PIXELS), Image.Resampling.LANCZOS)
        return found

    def _bytes(self, picture: Picture) -> bytes:
        if not is_remote(picture):
            return data_address(picture.url, self._limits.body)
        if picture.url not in self._fetched:
            raise refused(
                f"{picture.name}: expected the picture itself, as data:image/png;base64,..., "
                "found a path or an address; send it so, as files are never read here, and nothing "
                "is fetched where --allow-url-host names no host",
                picture.name,
            )
        return self._fetched[picture.url]
