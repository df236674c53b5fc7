"""A picture or a video made ready: what the encoder reads and what stands for it in the prompt."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Kind = Literal["image", "video"]


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
    """

    grid: tuple[int, int]
    index: NDArray[np.int64]


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
        frames_per_run: entries of pixel_values' first axis that one run of the graph takes, where
            they do not look at each other and all at once would take much memory; None for all.
    """

    kind: Kind
    inputs: dict[str, NDArray[Any]]
    replacement: str
    tokens: int
    digest: str
    cells: Cells
    blocks: tuple[Block, ...] = field(default=())
    size: tuple[int, int] = (0, 0)
    frames_per_run: int | None = None

    def runs(self) -> Iterator[dict[str, NDArray[Any]]]:
        """The graph's inputs for each of its runs, whose features follow each other."""
        if self.frames_per_run is None:
            yield self.inputs
            return
        values = self.inputs["pixel_values"]
        for begin in range(0, len(values), self.frames_per_run):
            yield {**self.inputs, "pixel_values": values[begin : begin + self.frames_per_run]}


def image_hash(image: Image.Image) -> str:
    """SHA-256 of size and RGB bytes: the same picture, whatever file it came in."""
    digest = hashlib.sha256(f"{image.width}x{image.height}:".encode())
    digest.update(image.tobytes())
    return digest.hexdigest()
