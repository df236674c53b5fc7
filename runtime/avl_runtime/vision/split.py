"""Pictures split into tiles that the prompt names by row and column, and videos as dated frames.

Idefics3 (arXiv 2408.12637) and SmolVLM (arXiv 2504.05299), as in transformers. Every tile becomes
the same number of tokens. A picture of several tiles comes with the whole of it, in the size of a
tile, behind them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import timedelta
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from avl_plugins.errors import FormatError
from avl_plugins.graph_io import PIXELS
from avl_runtime.vision.frame_steps import frame_values
from avl_runtime.vision.frames import frames_hash
from avl_runtime.vision.load.images import check_size
from avl_runtime.vision.load.videos import Video, VideoError
from avl_runtime.vision.media import Cells, Media, image_hash
from avl_runtime.vision.number_words import in_words
from avl_runtime.vision.resample import resize
from avl_runtime.vision.steps import MAX_SIDE, ImageProcessing, pixel_values
from avl_runtime.vision.tiles import tile_cells

UNKNOWN_FPS: Final = 24.0  # what transformers takes where nobody says
SKIPPED: Final = 1  # seconds at either end of a long video
MAX_PIXELS: Final = 1 << 27  # of a video's tiles; their values take 1.6 GB
MAX_SECONDS: Final = 10**9  # thirty years


@dataclass(frozen=True, slots=True)
class TileText:
    """What the prompt says around the tokens of tiles.

    border: in front of every tile, and behind the last one.
    whole: in front of the tokens that show a whole picture or frame.
    """

    border: str
    whole: str

    def of(self, rows: int, columns: int, tokens: str) -> str:
        """A picture of rows x columns tiles; `tokens` are those of a tile."""
        last = f"{self.border}{self.whole}{tokens}{self.border}"
        if rows * columns == 1:
            return last
        lines = [
            "".join(
                f"{self.border}<row_{row}_col_{column}>{tokens}" for column in range(1, columns + 1)
            )
            for row in range(1, rows + 1)
        ]
        return "\n".join([*lines, "", last])


@dataclass(frozen=True, slots=True)
class SplitImage:
    """Graph: pixel_values [tiles, 3, S, S] -> features [tiles, rows x columns of `grid`, C].

    Attributes:
        tile: side of a tile in pixels, S.
        longest: to how many pixels a picture's longer edge is brought first; None leaves it.
        splits: whether pictures are split; otherwise each is one tile.
        grid: rows and columns of a tile's tokens.

    Raises:
        FormatError: no picture can be brought to these sizes.
    """

    kind: Literal["split"]
    processing: ImageProcessing
    tile: int
    longest: int | None
    splits: bool
    grid: tuple[int, int]
    text: TileText

    def __post_init__(self) -> None:
        _check_sides(self.tile, self.longest)

    def prepare(self, image: Image.Image, token: str) -> Media:
        """Make an RGB picture ready; `token` is the text of an image token.

        Raises:
            ImageError: the picture is so long and narrow that its tiles take too many pixels.
        """
        whole, side = self.view(image), self.tile
        rows, columns = whole.height // side, whole.width // side
        split = np.asarray(whole).reshape(rows, side, columns, side, 3).swapaxes(1, 2)
        tiles = list(split.reshape(-1, side, side, 3))
        if len(tiles) > 1:
            tiles.append(np.asarray(self._resized(whole, (side, side))))
        cells = tile_cells(rows, columns, self.grid)
        each = self.grid[0] * self.grid[1]
        index = np.full(len(tiles) * each, -1, np.int64)  # the last tile shows everything
        index[: cells.size] = cells
        return Media(
            kind="image",
            inputs={PIXELS: np.stack([pixel_values(tile, self.processing) for tile in tiles])},
            replacement=self.text.of(rows, columns, token * each),
            tokens=index.size,
            digest=image_hash(image),
            cells=Cells(
                (rows * self.grid[0], columns * self.grid[1]),
                index,
                overview=(cells.size, *self.grid) if index.size > cells.size else None,
            ),
        )

    def view(self, image: Image.Image) -> Image.Image:
        """The whole picture, stretched over its tiles as the model sees it."""
        if self.longest is not None:
            image = self._resized(image, scaled(image.size, self.longest))
        return self._resized(image, self._tiled(image.size))

    def _tiled(self, size: tuple[int, int]) -> tuple[int, int]:
        """Width and height of whole tiles that a picture of `size` is stretched over."""
        if not self.splits:
            return self.tile, self.tile
        width, height = size
        ratio = width / height
        if width >= height:
            width = self._up(width)
            return width, self._up(int(width / ratio))
        height = self._up(height)
        return self._up(int(height * ratio)), height

    def _up(self, pixels: int) -> int:
        return math.ceil(pixels / self.tile) * self.tile

    def _resized(self, image: Image.Image, size: tuple[int, int]) -> Image.Image:
        check_size(size, f"image of {image.width} x {image.height}, resized")
        return image.resize(size, Image.Resampling(self.processing.resample))


@dataclass(frozen=True, slots=True)
class DatedFrames:
    """Graph: pixel_values [frames, 3, S, S] -> features [frames, rows x columns of `grid`, C].

    Of a video whose rate is known, `fps` frames a second are taken, spread evenly and `frames` at
    most; None takes all, as of a list of frames. Each is one tile, behind its time.

    Attributes:
        longest: to how many pixels a frame's longer edge is brought before it becomes a tile.

    Raises:
        FormatError: no frame can be brought to these sizes.
    """

    kind: Literal["dated_frames"]
    processing: ImageProcessing
    tile: int
    longest: int
    frames: int | None
    fps: float | None
    grid: tuple[int, int]
    text: TileText

    def __post_init__(self) -> None:
        _check_sides(self.tile, self.longest)

    def prepare(self, video: Video, token: str) -> Media:
        """Make a video ready; `token` is the text of an image token.

        Raises:
            VideoError: a file is damaged, is too long, or its frames are too many or too large.
            ImageError: a frame is so long and narrow that resizing it takes too many pixels.
        """
        taken = self._taken(video)
        most = MAX_PIXELS // self.tile**2
        if len(taken) > most:
            raise VideoError(
                f"expected a video of at most {most} frames, found {len(taken)}; shorten it, or "
                "take fewer of its frames"
            )
        picked = video.pick(taken)
        values = [frame_values(self._fit(frame), self.processing) for frame in picked]
        each = self.grid[0] * self.grid[1]
        seconds = [int(video.second(index, UNKNOWN_FPS)) for index in taken]
        length = seconds[-1] if video.fps is None else int(video.count / video.fps)
        if max(length, seconds[-1]) > MAX_SECONDS:
            raise VideoError(
                f"expected a video of at most {MAX_SECONDS} seconds, found {length}; give its "
                "frames as a list"
            )
        seen = self.text.of(1, 1, token * each)
        frames = [f"\nFrame from {second // 60:02d}:{second % 60:02d}:{seen}" for second in seconds]
        front = (
            f"You are provided the following series of {in_words(len(taken))} frames from a "
            f"{timedelta(seconds=length)} [H:MM:SS] video.\n"
        )
        return Media(
            kind="video",
            inputs={PIXELS: np.stack(values)},
            replacement="".join([front, *frames, "\n\n"]),
            tokens=len(picked) * each,
            digest=f"{seconds} {frames_hash(picked)}",
            cells=Cells(self.grid, np.tile(np.arange(each), len(picked))),
        )

    def view(self, video: Video) -> Image.Image:
        """The middle one of the frames that are taken, as the model sees it."""
        taken = self._taken(video)
        (frame,) = video.pick([taken[len(taken) // 2]])
        return Image.fromarray(self._fit(frame))

    def _fit(self, frame: Image.Image) -> NDArray[np.uint8]:
        width, height = scaled(frame.size, self.longest)
        check_size((width, height), f"frame of {frame.width} x {frame.height}, resized")
        larger = resize(np.asarray(frame, np.uint8), height, width, self.processing.resample)
        return resize(larger, self.tile, self.tile, self.processing.resample)

    def _taken(self, video: Video) -> list[int]:
        """As transformers' SmolVLMVideoProcessor.sample_frames.

        Where the rate varies, those that are on screen at times evenly apart.
        """
        if video.fps is None or self.fps is None or self.frames is None:
            return list(range(video.count))
        length = video.count / video.fps
        wanted = max(1, min(round(self.fps * length), self.frames))
        first, last = 0, video.count - 1
        if length - 2 * SKIPPED > self.frames * self.fps:  # frames times frames a second
            skipped = int(SKIPPED * video.fps), int(video.count - SKIPPED * video.fps)
            if skipped[0] < min(skipped[1], last):
                first, last = skipped[0], min(skipped[1], last)
        places = np.linspace(first, last, wanted)
        if video.seconds is not None:
            places = video.places(places / video.fps)
        return [int(place) for place in np.unique(places.astype(np.int64))]


def scaled(size: tuple[int, int], longest: int) -> tuple[int, int]:
    """Width and height with `longest` pixels along the longer edge, an even number along the other.

    At least one pixel; `longest` itself may be odd.
    """
    width, height = size
    ratio = width / height
    if width >= height:
        other = int(longest / ratio)
        return longest, max(other + other % 2, 1)
    other = int(longest * ratio)
    return max(other + other % 2, 1), longest


def _check_sides(*sides: int | None) -> None:
    for side in sides:
        if side is not None and not 0 < side <= MAX_SIDE:
            raise FormatError(
                f"picture layout: expected sides of 1 to {MAX_SIDE} pixels, found {side}"
            )
