"""How sure a reply is of what it sees: VL-Calibration's measure (arXiv 2604.09529, ACL 2026).

The paper trains with it. Here it is a measurement alone: a reply is certain of a picture if it
would have been another without the picture, and if each of its tokens left little choice.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from avl_plugins.errors import AvlError
from avl_plugins.policies import Policy
from avl_runtime.evaluate.measure import divergences, forced_logits, log_softmax
from avl_runtime.generate.results import Result
from avl_runtime.model import LVLM
from avl_runtime.vision.load.images import ImageLike, load_image

MASKED = 0.8  # of a picture's cells, the paper's
LEAST = 1e-6  # nats, added to both where neither may be 0


class CertaintyError(AvlError):
    """There is nothing that a reply could be sure of."""


@dataclass(frozen=True, slots=True)
class Certainty:
    """Of a reply, means over its tokens, in nats.

    Attributes:
        divergence: KL(p || q) of the tokens' distributions with the pictures, and with masked ones.
        entropy: of those with the pictures.
    """

    divergence: float
    entropy: float

    @property
    def score(self) -> float:
        """ln(divergence) - ln(entropy): above 0 the pictures matter more than is left open."""
        return math.log(self.divergence + LEAST) - math.log(self.entropy + LEAST)

    @property
    def confidence(self) -> float:
        """The score's logistic function, from 0 to 1: divergence over divergence and entropy."""
        return (self.divergence + LEAST) / (self.divergence + self.entropy + 2 * LEAST)


def certainty(
    model: LVLM,
    prompt: str,
    images: Sequence[ImageLike],
    result: Result,
    policy: Policy,
    system: str | None = None,
    seed: int = 0,
) -> Certainty:
    """Read a reply once more behind masked pictures, under the policy that made it.

    Args:
        prompt, images, system: what was asked.
        result: the reply, with its logits, to a question with nothing before it.
        seed: of the cells that are masked.

    Raises:
        CertaintyError: there are no pictures, no logits, or the reply saw other pictures too.
        AvlError: a picture cannot be used.
    """
    if not images:
        raise CertaintyError(
            "certainty: expected a question about pictures, as it is told by masking them, found "
            "none; add one"
        )
    if result.logits is None:
        raise CertaintyError(
            "certainty: expected a result with logits, found none; generate with return_logits=True"
        )
    if len(result.visuals) != len(images):
        raise CertaintyError(
            f"certainty: expected all that the reply saw, {len(result.visuals)} pictures and "
            f"videos, found {len(images)} pictures; ask about these alone, in a conversation of "
            "its own"
        )
    shown = [load_image(image) for image in images]
    rng = np.random.default_rng(seed)
    hidden = [
        masked(image, cells.grid, rng) for image, cells in zip(shown, result.visuals, strict=True)
    ]
    asked = model.loaded.processor.encode(prompt, hidden, (), system)
    blind = forced_logits(model.loaded, asked, policy, result.token_ids)
    return certainty_of(result.logits, blind)


def certainty_of(seeing: NDArray[np.float32], blind: NDArray[np.float32]) -> Certainty:
    """By logits [T, V] of the same tokens behind pictures, and behind masked ones."""
    logs = log_softmax(seeing)
    entropy = -(np.exp(logs) * logs).sum(1)
    return Certainty(float(divergences(seeing, blind).mean()), float(entropy.mean()))


def masked(image: Image.Image, grid: tuple[int, int], rng: np.random.Generator) -> Image.Image:
    """A picture most of whose cells, drawn at random, have its mean colour.

    Args:
        grid: lines and columns of cells.
    """
    pixels = np.asarray(image.convert("RGB")).copy()
    mean = np.round(pixels.reshape(-1, 3).mean(0)).astype(np.uint8)
    lines, columns = grid
    rows, places = (
        np.round(np.linspace(0, size, count + 1)).astype(int)
        for size, count in zip(pixels.shape, grid, strict=False)
    )
    for cell in rng.permutation(lines * columns)[: round(MASKED * lines * columns)]:
        line, column = divmod(int(cell), columns)
        pixels[rows[line] : rows[line + 1], places[column] : places[column + 1]] = mean
    return Image.fromarray(pixels)
