"""Arithmetic of a request by formula: 4 n d² + 2 n² d + 3 n d m a layer (FastV, arXiv 2403.06764).

n rows, d hidden size, m the feed-forward width; grouped KV heads shrink the two KV projections. A
multiplication with its addition counts as one, as in the paper. A layer that keeps a state in place
of rows has its own projections, and a delta rule three products of a head's state for each row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from avl_plugins.errors import PolicyError, quoted
from avl_plugins.policies import Action, Placed, Tokens, When
from avl_runtime.package.dims import Dims
from avl_runtime.vision import Media


@dataclass(frozen=True, slots=True)
class Request:
    """How long a request is: prompt tokens, visual ones among them, and decode steps.

    `before` counts the text tokens before the first visual one, which no policy evicts. `media` are
    the pictures and videos that the visual tokens are of.
    """

    prompt: int
    visual: int
    steps: int
    before: int = 0
    media: tuple[Media, ...] = field(default=(), compare=False)

    @classmethod
    def of(cls, image_mask: NDArray[np.bool_], steps: int, media: Sequence[Media] = ()) -> Request:
        """As long as a prompt [N] whose visual tokens `image_mask` marks."""
        visual = int(image_mask.sum())
        before = int(image_mask.argmax()) if visual else len(image_mask)
        return cls(len(image_mask), visual, steps, before, tuple(media))

    def under(self, actions: Sequence[Action]) -> Request:
        """The request as the decoder is given it, where `actions` choose image tokens before.

        Raises:
            ValueError: it does not say what its visual tokens are of.
        """
        choosing = [action for action in actions if When.EMBEDDED in action.when]
        if not choosing:
            return self
        if sum(one.tokens for one in self.media) != self.visual:
            raise ValueError(f"expected the media of {self.visual} visual tokens, found others")
        read = 0
        for one in self.media:
            places = one.cells.places
            for action in choosing:
                places = places[:, : _given(action, places, one.kind == "video")]
            read += places.shape[1]
        return replace(self, prompt=self.prompt - self.visual + read, visual=read)


def placed_rows(dims: Dims, actions: Sequence[Action], visual: int) -> tuple[list[int], list[int]]:
    """Image rows that `actions` leave active and parked after prefill, [L] each.

    Of the L layers that keep rows.

    Args:
        visual: image tokens that the decoder is given, see `Request.under`.
    """
    active, parked = [], []
    for layer in dims.row_layers:
        rows = Placed(visual)
        for action in actions:
            rows = _placed(action, rows, layer, visual)
        active.append(rows.active)
        parked.append(rows.parked)
    return active, parked


def request_flops(
    dims: Dims,
    actions: Sequence[Action],
    request: Request,
    active: Sequence[float],
    parked: Sequence[float],
    left: Sequence[float] | None = None,
) -> tuple[float, list[float]]:
    """Arithmetic of a request: of its prefill, and of each decode step.

    Args:
        request: as the decoder is given it, see `Request.under`.
        active, parked: [L] image rows of each layer after prefill, as `placed_rows` gives.
        left: [L] active rows of all kinds then, where an action decides about them; None: as many
            as it says.
    """
    layers, text = range(len(active)), request.prompt - request.visual
    between = [action for action in actions if When.BETWEEN in action.when]
    rows = []
    for layer in range(dims.num_layers):
        entering = Placed(request.visual)
        for action in between:
            entering = _placed(action, entering, layer, request.visual)
        rows.append(text + entering.active)
    retaining = next((one for one in actions if one.tokens is Tokens.ANY), None)
    if retaining is not None and left is None:
        left = _left(retaining, [text + int(rows) for rows in active], request.prompt)
    steps = []
    for step in range(1, request.steps + 1):
        behind = text - request.before + step - 1
        held = behind
        if request.visual:  # text alone is never evicted
            held = min([behind, *(_text_rows(action, behind) for action in actions)])
        refresh = any(action.reads_parked and action.due(step) for action in actions)
        if retaining is not None and left is not None:
            steps.append(decode_flops(dims, [rows + step - 1 for rows in left]))
            continue
        read = [request.before + held + active[i] + (parked[i] if refresh else 0) for i in layers]
        steps.append(decode_flops(dims, read))
    return prefill_flops(dims, rows), steps


def _given(action: Action, places: NDArray[np.int64], moving: bool) -> int:
    """How many tokens of a picture an action, which somebody else may have written, lets go on.

    Raises:
        PolicyError: more than there are, or something else.
    """
    found, most = action.given(places, moving), places.shape[1]
    if not isinstance(found, int | np.integer) or not 0 <= found <= most:
        raise PolicyError(
            f"{type(action).__name__}: expected a whole number from 0 to {most} from given(), "
            f"which is how many tokens there are, found {quoted(found)}; mend the action"
        )
    return int(found)


def _placed(action: Action, rows: Placed, layer: int, visual: int) -> Placed:
    """What an action, which somebody else may have written, says that it leaves of `rows`.

    Raises:
        PolicyError: more than there are, or something else.
    """
    found, most = action.placed(rows, layer, visual), rows.active + rows.parked
    if not isinstance(found, Placed) or found.active + found.parked > most:
        raise PolicyError(
            f"{type(action).__name__}: expected Placed with at most {most} rows from placed(), "
            f"which is what layer {layer} has, found {quoted(found)}; mend the action"
        )
    return found


def _text_rows(action: Action, behind: int) -> int:
    """How many of `behind` text tokens an action says have a row.

    Raises:
        PolicyError: more than there are, or something else.
    """
    found = action.text_rows(behind)
    if not isinstance(found, int | np.integer) or not 0 <= found <= behind:
        raise PolicyError(
            f"{type(action).__name__}: expected a whole number from 0 to {behind} from "
            f"text_rows(), which is how many tokens there are, found {quoted(found)}; mend the "
            "action"
        )
    return int(found)


def _left(action: Action, rows: Sequence[int], total: int) -> list[int]:
    """How many of each layer's rows an action says that a prompt leaves.

    Raises:
        PolicyError: more than there are, or something else.
    """
    found = action.rows_left(rows, total)
    if len(found) != len(rows) or any(
        not isinstance(one, int | np.integer) or not 0 <= one <= most
        for one, most in zip(found, rows, strict=True)
    ):
        raise PolicyError(
            f"{type(action).__name__}: expected a whole number for each of {len(rows)} layers from "
            f"rows_left(), at most as many as it has, found {quoted(found)}; mend the action"
        )
    return [int(one) for one in found]


def prefill_flops(dims: Dims, rows: Sequence[int]) -> float:
    """Of reading a prompt; `rows` is how many rows each decoder layer computes."""
    others = () if dims.states is None else dims.states.layers
    return float(
        sum(
            _state_layer(dims, n) if layer in others else _layer(dims, layer, n, n * n)
            for layer, n in enumerate(rows)
        )
    )


def decode_flops(dims: Dims, read: Sequence[float]) -> float:
    """Of one decode step; `read` [L] is how many cached rows each layer with rows reads."""
    others = 0 if dims.states is None else len(dims.states.layers)
    by_layer = dict(zip(dims.row_layers, read, strict=True))
    found = sum(_layer(dims, layer, 1, n + 1) for layer, n in by_layer.items())
    found += sum(_layer(dims, n, 1, by_layer[of] + 1) for n, of in dims.sources.items())
    return float(found) + others * _state_layer(dims, 1)


def _layer(dims: Dims, layer: int, rows: int, pairs: float) -> float:
    """A layer of attention, of its own rows or another's, and the inputs it has of its own."""
    size = dims.head_size(layer)
    heads = dims.num_heads * size
    grouped = 0 if layer in dims.sources else dims.num_kv_heads * size
    projections = rows * dims.hidden_size * (2 * heads + 2 * grouped)
    feed_forward = 3 * rows * dims.hidden_size * dims.width(layer)
    beside = 3 * rows * dims.hidden_size * dims.layer_inputs  # made, gated and projected back
    return projections + 2 * pairs * heads + feed_forward + beside


def _state_layer(dims: Dims, rows: int) -> float:
    """A layer that keeps a state: of a convolution alone, or of a gated delta rule behind one."""
    states = dims.states
    if states is None:
        return 0
    values = states.heads * states.value_size
    # Queries, keys and values, gates, two numbers a head, and back; or two gates and what is mixed.
    made = states.channels + values + 2 * states.heads if values else 3 * states.channels
    back = values or states.channels
    each = dims.hidden_size * (made + back + 3 * dims.intermediate_size)
    return rows * (each + states.channels * states.kernel + 3 * values * states.key_size)
