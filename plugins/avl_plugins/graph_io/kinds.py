"""What layers of a kind keep from run to run, and the kinds of tensors that they have for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from avl_plugins.schema import RowType


@dataclass(frozen=True, slots=True)
class Place:
    """Kinds of what a graph reads of the cached rows in one place, or makes of new rows."""

    name: str
    length: str = ""  # new rows are all in use

    @property
    def keys(self) -> str:
        return f"k_{self.name}"

    @property
    def values(self) -> str:
        return f"v_{self.name}"

    @property
    def mass(self) -> str:
        return f"mass_{self.name}"

    @property
    def positions(self) -> str:
        return f"{self.name}_positions"

    @property
    def standing(self) -> str:
        return f"{self.name}_standing"

    @property
    def scales(self) -> tuple[str, str]:
        """Of keys and of values that are codes."""
        return f"{self.keys}_scale", f"{self.values}_scale"

    def planes(self, kept: RowType) -> tuple[str, ...]:
        """Kinds of what a row has, in the order of `RowType.planes`."""
        return (self.keys, self.values, *(self.scales if kept.scaled else ()))

    def rows(self, layer: int) -> str:
        """The name of how many rows of the place a layer is given."""
        return f"{self.name}_{layer}"


ACTIVE = Place("active", "active_len")
PARKED = Place("parked", "parked_len")
MADE = Place("new")
CACHED = (ACTIVE, PARKED)


@dataclass(frozen=True, slots=True)
class State:
    """Kinds of an array that a layer keeps, ordered in time, and of the one that it becomes."""

    name: str

    @property
    def held(self) -> str:
        return f"{self.name}_state"

    @property
    def made(self) -> str:
        return f"{self.name}_new"


CONVOLUTION = State("conv")  # the last inputs of a short convolution
DELTA = State("delta")  # what a delta rule has written

CACHE = tuple(kind for place in CACHED for kind in (place.keys, place.values, place.length))
CACHED_ROWS = tuple(kind for place in CACHED for kind in (place.keys, place.values, place.standing))
MASSES = tuple(place.mass for place in (*CACHED, MADE))
RESULTS = (MADE.keys, MADE.values, *MASSES)


@dataclass(frozen=True, slots=True)
class LayerKind:
    """What decoder layers of a kind keep from one run of their graph to the next.

    Attributes:
        name: as manifests say it.
        reads: kinds of tensors that a layer is given of what it keeps, in the graph's order, where
            rows are kept as computed; the scales of codes are behind their values.
        makes: kinds of those that it gives back.
        states: what it keeps beside rows, or in place of them.
    """

    name: str
    reads: tuple[str, ...]
    makes: tuple[str, ...]
    states: tuple[State, ...] = ()

    @property
    def has_rows(self) -> bool:
        """Whether it keeps rows with positions."""
        return ACTIVE.keys in self.reads


def _of_states(name: str, *states: State) -> LayerKind:
    held, made = tuple(one.held for one in states), tuple(one.made for one in states)
    return LayerKind(name, held, made, states)


FULL = LayerKind("full", CACHE, RESULTS)  # rows with positions, which policies move
# The same without those that the window has left behind; its graph is given their positions.
SLIDING = LayerKind("sliding", (*CACHE, ACTIVE.positions), RESULTS)
SHORT_CONVOLUTION = _of_states("convolution", CONVOLUTION)
GATED_DELTA = _of_states("gated_delta", CONVOLUTION, DELTA)
SHARED = LayerKind("shared", (), ())  # reads the rows of an earlier layer of its graph
LAYER_KINDS = {kind.name: kind for kind in (FULL, SLIDING, SHORT_CONVOLUTION, GATED_DELTA, SHARED)}


def named(kind: str, layer: int) -> str:
    """The name of a layer's tensor of a kind."""
    return f"{kind}.{layer}"


def kind_of(name: str) -> str:
    """The kind of a tensor, its name without the layer."""
    return name.partition(".")[0]


def layer_of(name: str) -> int:
    """The layer that a tensor belongs to.

    Raises:
        ValueError: it belongs to none.
    """
    return int(name.partition(".")[2])


def is_cached_rows(name: str) -> bool:
    """Whether a tensor holds keys or values of cached rows, or where they stand.

    All are [B, heads, rows, width], and come in blocks where cached rows do.
    """
    return kind_of(name) in CACHED_ROWS


def shared(size: str) -> str:
    """The name of a size without the layer: active rows of any layer are `active`."""
    for place in CACHED:
        if size.startswith(f"{place.name}_"):
            return place.name
    return size


def windowed(rows: str) -> str:
    """The name of how many rows all layers with a window have, where `rows` is of the others."""
    return f"windowed_{rows}"


def blocks(rows: str) -> str:
    """The name of how many blocks there are of rows, where cached rows come in blocks."""
    return f"{rows}_blocks"


def positions(axes: Any) -> Any:
    """Positions of new rows [axes, S] as a graph reads those of one sequence, [(axes,) 1, S]."""
    return axes[:, None] if len(axes) > 1 else axes
