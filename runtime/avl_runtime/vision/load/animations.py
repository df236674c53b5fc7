"""Frames of animated pictures (WebP, AVIF, APNG) through Pillow, transparent parts over white.

Their decoders go through a file frame by frame, and only while they do so are all of them told when
a frame is shown. A first pass notes that; picking frames is a second one.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from typing import Final

from PIL import Image

from avl_plugins.errors import AvlError, shown
from avl_runtime.vision.load.frame_times import FrameTimes, frame_times
from avl_runtime.vision.load.images import check_size, to_rgb
from avl_runtime.vision.load.video_source import VideoError, VideoFile

FORMATS: Final = ("PNG", "WEBP", "AVIF")
MAX_DECODED: Final = 1 << 32  # pixels of all frames together
MAX_FRAMES: Final = 1 << 17
TICK: Final = Fraction(1, 1_000_000)  # seconds; files count in thousandths or finer
UNSAID: Final = 0.1  # seconds that a frame is shown whose duration is 0, as browsers have it
AVIF_BRANDS: Final = (b"avif", b"avis")


@dataclass(frozen=True, slots=True, eq=False)
class AnimationFrames:
    """The frames of an animated picture.

    Attributes:
        size: width and height.
        first: the number, for Pillow, of the first frame: 1 behind a PNG's stand-in for viewers
            that cannot show animations.
    """

    file: VideoFile
    size: tuple[int, int]
    first: int
    count: int

    def __len__(self) -> int:
        return self.count

    def pick(self, indices: Sequence[int]) -> list[Image.Image]:
        """The frames at `indices`, decoded.

        Raises:
            VideoError: the file is damaged, or has been removed.
        """
        found: dict[int, Image.Image] = {}
        with _opened(self.file) as image:
            for index in sorted(set(indices)):
                image.seek(self.first + index)
                image.load()
                found[index] = to_rgb(image)
        return [found[index] for index in indices]


def is_animation(head: bytes) -> bool:
    """Whether a file that begins so may be an animated picture that Pillow reads."""
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return True
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return True
    end = min(int.from_bytes(head[:4], "big"), len(head))
    brands = {head[at : at + 4] for at in (8, *range(16, end, 4))}
    Image.init()
    return head[4:8] == b"ftyp" and not brands.isdisjoint(AVIF_BRANDS) and "AVIF" in Image.OPEN


def open_animation(file: VideoFile) -> tuple[AnimationFrames, FrameTimes]:
    """An animated picture's frames and when they are shown.

    Raises:
        VideoError: it is a still picture, damaged, or too large.
    """
    with _opened(file) as image:
        check_size(image.size, file.name)
        first = int(bool(getattr(image, "default_image", False)))
        count = int(getattr(image, "n_frames", 1)) - first
        if count < 2:
            raise VideoError(
                f"{file.name}: expected a video, found a still picture; pass it as an image"
            )
        if count * image.width * image.height > MAX_DECODED or count > MAX_FRAMES:
            raise VideoError(
                f"{file.name}: expected at most {MAX_FRAMES} frames, {MAX_DECODED // 1_000_000} "
                f"megapixels in all, found {count} of {image.width} x {image.height}; cut it or "
                "scale it down"
            )
        frames = AnimationFrames(file, image.size, first, count)
        begins = [Fraction(0)]
        for index in range(count):
            image.seek(first + index)
            image.load()
            lasts = image.info.get("duration", 0) / 1000 or UNSAID
            begins.append(begins[-1] + Fraction(lasts).limit_denominator(1_000_000))
    ticks = [int(begin / TICK) for begin in begins]
    announced = count / begins[-1]
    return frames, frame_times(ticks[:-1], TICK, ticks[-1] - ticks[-2], announced)


@contextmanager
def _opened(file: VideoFile) -> Iterator[Image.Image]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of damaged metadata; they would reach the user
        try:
            with file.open() as opened, Image.open(opened, formats=FORMATS) as image:
                yield image
        except AvlError:
            raise
        except Image.DecompressionBombError:
            raise VideoError(
                f"{file.name}: expected frames of fewer megapixels; scale the video down first"
            ) from None
        except Exception as error:  # decoders raise whatever damaged files lead them to
            raise VideoError(
                f"{file.name}: expected a whole animated picture, found a damaged one "
                f"({shown(' '.join(str(error).split()))}); save or fetch it again"
            ) from None
