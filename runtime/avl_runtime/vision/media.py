"""A picture or a video made ready: what the encoder reads and what stands for it in the prompt."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from avl_plugins.graph_io import DEEPSTACK_FEATURES, FEATURES, PIXELS, VISION_ATTENTION

Kind = Literal["image", "video"]

# Left, top, right and bottom edge as shares of a picture's width and height; what lies below 0 or
# above 1 is outside of the picture: bars that the model's processor puts around it.
Box = tuple[float, float, float, float]
WHOLE: Final[Box] = (0.0, 0.0, 1.0, 1.0)

# Images, tiles or frames that one run of an encoder takes, and values of pixels in them, unless one
# has more. They do not look at each other, and a tower is faster where what it makes of hundreds of
# patches stays in a processor's caches.
IMAGES_PER_RUN, VALUES_PER_RUN = 4, 3 << 17


@dataclass(frozen=True, slots=True, eq=False)
class Block:
    """A run of adjacent visual tokens with positions of its own (M-RoPE, arXiv 2409.12191).

    positions: [3, tokens] int64, time, height and width, counted from where the run starts.
    advance: how much further the text behind it starts.
    """

    positions: NDArray[np.int64]
    advance: int


@dataclass(frozen=True, slots=True, eq=False)
class Cells:
    """Which part of a picture each of its tokens shows.

    grid: rows and columns of the cells into which the picture is divided.
    index: [tokens] int64, the cell of each token, row by row; -1 for tokens that show none (a line
        break) or all of them (an overview). Several tokens may share a cell (frames of a video).
    seen: the part of a picture that the grid lies on.
    overview: the first token of one, and its rows and columns; None where there is none. Each
        frame of a video has its own, of as many tokens, as far behind the frame's first token.
    """

    grid: tuple[int, int]
    index: NDArray[np.int64]
    seen: Box = WHOLE
    overview: tuple[int, int, int] | None = None

    @property
    def places(self) -> NDArray[np.int64]:
        """[3, tokens]: the raster in which each token lies, and its row and column there.

        Rasters are frames, in order, or the picture, and behind it its overview; -1 at tokens
        that lie in none. A frame's overview lies in the frame's raster, below its cells.
        """
        found = np.full((3, len(self.index)), -1, np.int64)
        shown = np.flatnonzero(self.index >= 0)
        cells = self.index[shown]
        order = cells.argsort(kind="stable")
        first = np.searchsorted(cells[order], cells[order])
        found[0, shown[order]] = np.arange(len(order)) - first  # which time its cell is shown
        found[1:, shown] = np.divmod(cells, self.grid[1])
        if self.overview is not None:
            begin, rows, columns = self.overview
            whole = np.indices((rows, columns)).reshape(2, -1)
            frames = int(found[0].max(initial=0)) + 1
            if frames == 1:
                raster = found[0].max(initial=-1) + 1
                found[:, begin : begin + rows * columns] = [np.full_like(whole[0], raster), *whole]
                return found
            whole[0] += self.grid[0] + 1  # a line apart: they are no neighbours
            each = found.reshape(3, frames, -1)[:, :, begin : begin + rows * columns]
            each[0], each[1:] = np.arange(frames)[:, None], whole[:, None]
        return found


@dataclass(frozen=True, slots=True, eq=False)
class Features:
    """What an encoder gives for one picture or video.

    rows: [tokens, C]; deepstack: [K, tokens, C], for K decoder layers (0 in most families).
    attention: [tokens, A] float32, what tokens receive in the encoder; A is 0 unless the package
        was exported to tell (`policies.Picture.attention`).
    """

    rows: NDArray[Any]
    deepstack: NDArray[Any]
    attention: NDArray[Any]

    @property
    def nbytes(self) -> int:
        return self.rows.nbytes + self.deepstack.nbytes + self.attention.nbytes


@dataclass(frozen=True, slots=True, eq=False)
class Blend:
    """Tokens made of an encoder's features, N of them each.

    The features of all its runs count on from each other; that of a line break, the last row of
    every run, comes behind them all.

    pack: [tokens, N] int64, which features.
    weights: [tokens, N] float32, how much of each.
    """

    pack: NDArray[np.int64]
    weights: NDArray[np.float32]

    def of(self, runs: Sequence[NDArray[Any]]) -> NDArray[Any]:
        """[tokens, C] from each run's features [rows, C]; computes in float32."""
        features = np.concatenate([*(run[:-1] for run in runs[:-1]), runs[-1]])
        blended = np.zeros((len(self.pack), features.shape[1]), np.float32)
        # One after the other: all at once would take N times the memory.
        for pack, weights in zip(self.pack.T, self.weights.T, strict=True):
            blended += features[pack] * weights[:, None]
        return blended.astype(features.dtype, copy=False)


@dataclass(frozen=True, slots=True, eq=False)
class Media:
    """One picture or video of a prompt.

    Attributes:
        kind: which encoder reads it.
        inputs: the encoder graph's inputs by name; float arrays are float32.
        replacement: the text that takes the placeholder's place.
        tokens: visual tokens in that text, as many as the encoder gives feature rows.
        digest: SHA-256 of what was seen: the same content gives the same features.
        cells: what each of the tokens shows.
        blocks: in prompt order, for decoders with positions on three axes; else empty.
        images_per_run: entries of pixel_values' first axis that one run of the graph takes at most.
        more: inputs of further runs, of tiles of another size, whose features come behind.
        blend: how the graph's features make the tokens, unless each is one, in order.
        shown: width and height of the picture that it was made of; (0, 0) of a video.
        numbers: what the prompt holds before and behind its number, counted from 0 among all of its
            kind in the conversation, in front of `replacement`; None: no number.
    """

    kind: Kind
    inputs: dict[str, NDArray[Any]]
    replacement: str
    tokens: int
    digest: str
    cells: Cells
    blocks: tuple[Block, ...] = field(default=())
    size: tuple[int, int] = (0, 0)
    images_per_run: int = IMAGES_PER_RUN
    blend: Blend | None = None
    more: tuple[dict[str, NDArray[Any]], ...] = ()
    numbers: tuple[str, str] | None = None
    shown: tuple[int, int] = (0, 0)

    def numbered(self, number: int) -> str:
        """The text that takes the place of the placeholder of the picture of that number."""
        if self.numbers is None:
            return self.replacement
        before, behind = self.numbers
        return f"{before}{number}{behind}{self.replacement}"

    def runs(self) -> Iterator[dict[str, NDArray[Any]]]:
        """The graph's inputs for each of its runs."""
        for inputs in (self.inputs, *self.more):
            values = inputs[PIXELS]
            count = min(self.images_per_run, max(1, VALUES_PER_RUN // max(1, values[:1].size)))
            for begin in range(0, len(values), count):
                yield {**inputs, PIXELS: values[begin : begin + count]}

    def features(
        self, runs: Sequence[Sequence[NDArray[Any]]], made: Sequence[str] = (FEATURES,)
    ) -> Features:
        """The tokens' features from the graph's outputs in each of `runs`.

        Args:
            made: what the outputs are (`Manifest.encoded`): features [..., C], for decoders that
                take them deepstack ones [K, tokens, C], and attention [..., A].
        """
        named = [dict(zip(made, run, strict=True)) for run in runs]
        rows = self._joined([run[FEATURES] for run in named])
        deepstack = np.zeros((0, *rows.shape), rows.dtype)
        if DEEPSTACK_FEATURES in made:
            stacks = zip(*(run[DEEPSTACK_FEATURES] for run in named), strict=True)
            deepstack = np.stack([self._joined(stack) for stack in stacks])
        attention = np.zeros((len(rows), 0), np.float32)
        if VISION_ATTENTION in made:
            attention = self._joined([run[VISION_ATTENTION] for run in named])
        return Features(rows, deepstack, attention)

    def _joined(self, runs: Sequence[NDArray[Any]]) -> NDArray[Any]:
        """[tokens, C] of what each run gives, [..., C]."""
        flat = [run.reshape(-1, run.shape[-1]) for run in runs]
        return np.concatenate(flat) if self.blend is None else self.blend.of(flat)


def image_hash(image: Image.Image) -> str:
    """SHA-256 of size and RGB bytes: the same picture, whatever file it came in."""
    digest = hashlib.sha256(f"{image.width}x{image.height}:".encode())
    digest.update(image.tobytes())
    return digest.hexdigest()
