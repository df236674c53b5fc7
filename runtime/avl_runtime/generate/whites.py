"""What a decoder looks at in white pictures: what it looks at whatever is there (CAAC).

The paper's code (arXiv 2505.21472, WACV 2026) reads a prompt with a white picture, and takes the
attention of its last three rows. So it is here, once for each size of pictures.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from avl_plugins.errors import PolicyError, quoted
from avl_plugins.policies import ATTENTION, Action, Policy, Ranking, Tokens, View, When
from avl_plugins.policies.action import MOST_WEIGHT
from avl_runtime.generate import sequence as sequences
from avl_runtime.prompts.processor import Processor
from avl_runtime.prompts.prompt import Prompt

Doubles = NDArray[np.float64]
Floats = NDArray[np.float32]

QUERY = "default query"  # the paper's code has this one
ROWS = 3
KEPT = 8  # sizes of pictures whose attention is remembered


@dataclass(frozen=True)
class _Look(Action):
    """Keeps all rows of a prompt, and notes what its `back`-th last row gives them."""

    back: int
    views: list[View] = field(default_factory=list)

    when: ClassVar[frozenset[When]] = frozenset({When.PROMPT})
    tokens: ClassVar[Tokens] = Tokens.ANY

    @property
    def ranking(self) -> Ranking:
        return ATTENTION  # nobody asks for it

    @property
    def decides(self) -> str:
        return "nothing"

    def probes(self, positions: NDArray[np.int64], image: NDArray[np.bool_]) -> NDArray[np.int64]:
        return positions[len(positions) - self.back :][:1]

    def choose(self, view: View) -> NDArray[np.int8]:
        self.views.append(view)
        return np.zeros(view.positions.shape, np.int8)


@dataclass(frozen=True)
class _Looking(Policy):
    look: _Look

    name: ClassVar[str] = "looking"

    def actions(self) -> tuple[Action, ...]:
        return (self.look,)


class Whites:
    """Attention on white pictures, remembered by their sizes.

    Args:
        begin: a new conversation under a policy.
        read: reads a prompt of one.
    """

    def __init__(
        self,
        processor: Processor,
        begin: Callable[[Policy], sequences.Sequence],
        read: Callable[[sequences.Sequence, Prompt], Generator[None, None, object]],
    ) -> None:
        self._processor, self._begin, self._read = processor, begin, read
        self._known: OrderedDict[tuple[tuple[int, int], ...], Floats] = OrderedDict()

    def factors(
        self, actions: Sequence[Action], prompt: Prompt
    ) -> Generator[None, None, Doubles | None]:
        """[L, Hkv, N], as how many tokens each of a prompt's counts in the first L layers.

        None: as one, as no action says otherwise, or there is no picture.

        Raises:
            PolicyError: there is a video, or an action, which somebody else may have written, says
                what cannot be.
        """
        evening = [action for action in actions if action.evens]
        if not evening or not prompt.media:
            return None
        if any(one.kind != "image" for one in prompt.media):
            raise PolicyError(
                f"{type(evening[0]).__name__}: expected pictures, whose attention is compared with "
                "that on white ones, found a video; send frames as pictures, or use another policy"
            )
        attention = yield from self._attention(prompt)
        _, layers, heads, _ = attention.shape
        found, last = np.ones((layers, heads, len(prompt.input_ids))), 0
        begin = 0
        for media, at in prompt.places():
            seen = attention[..., begin : begin + media.tokens]
            begin += media.tokens
            for layer in range(layers):
                for action in evening:
                    counts = action.evened(seen[:, layer], layer)
                    if counts is not None:
                        found[layer][:, at] *= _checked(action, counts, seen.shape[2:])
                        last = max(last, layer + 1)
        return found[:last] if last else None

    def _attention(self, prompt: Prompt) -> Generator[None, None, Floats]:
        """[ROWS, layers, Hkv, image tokens], above 0, of a prompt with as many white pictures."""
        sizes = tuple(one.shown for one in prompt.media)
        if sizes not in self._known:
            whites = [Image.new("RGB", size, "white") for size in sizes]
            white = self._processor.encode(QUERY, whites)
            tokens = [one.tokens for one in white.media]
            if tokens != [one.tokens for one in prompt.media]:
                raise RuntimeError("expected white pictures to have as many tokens as others")
            image = white.image_mask
            found = []
            for back in range(1, ROWS + 1):
                look = _Look(back)
                yield from self._read(self._begin(_Looking(look)), white)
                found.append(np.stack([view.attention[0][:, image] for view in look.views]))
            self._known[sizes] = np.maximum(np.stack(found), np.finfo(np.float32).tiny)
            while len(self._known) > KEPT:
                self._known.popitem(last=False)
        self._known.move_to_end(sizes)
        return self._known[sizes]


def _checked(action: Action, counts: object, shape: tuple[int, ...]) -> Doubles:
    """What an action says each token counts as."""
    floats = isinstance(counts, np.ndarray) and counts.dtype.kind == "f"
    found: Doubles = np.asarray(counts if floats else np.nan, np.float64)
    fits = found.shape == shape
    if not fits or not ((found >= 1 / MOST_WEIGHT) & (found <= MOST_WEIGHT)).all():
        raise PolicyError(
            f"{type(action).__name__}: expected numbers {shape} from {1 / MOST_WEIGHT} to "
            f"{MOST_WEIGHT:.0f} from evened(), found {quoted(counts)}; mend the action"
        )
    return found
