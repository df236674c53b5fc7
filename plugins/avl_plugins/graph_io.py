"""What a package's graphs read and write: the names, shapes and types of their inputs and outputs.

Said once, for the exporter that traces the graphs and for everything that runs, builds or checks
them. What belongs to a layer is called `kind.layer`, as `k_active.3`; kinds, their types and shapes
are those of the op that keeps rows so (`schema.ROW_OPS`). A size that may change has a name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from avl_plugins import schema
from avl_plugins.schema import COMPUTED, ROW_OPS, DType, RowType

Size = int | str

# Of a decoder segment. Of its inputs, once:
HIDDEN = "hidden"  # states before its first layer
POSITIONS = "position_ids"
WEIGHTS = "row_weights"  # of new rows in each mass
# where rows see others than all before them:
ROW_ENDS = "row_ends"  # new rows that each new row sees
ROW_POSITIONS = "row_positions"  # of new rows in their conversation, where layers have a window
# and its first output:
STATE = "hidden_out"  # states after its last layer
LOGITS = "logits"  # in place of them, of the last rows, where the segment ends the decoder
# and an input of that segment which need not be given:
LOGITS_FROM = "logits_from"  # the first row that has logits, counted from the end; -1 is the last
# Of a layer:
DEEPSTACK = "deepstack"  # an input of some layers, added to what they put out
TAP = "layer_out"  # what a layer puts out, for checks alone: no output of a package's graphs

# Of an encoder. Its inputs are what the layout of the manifest prepares, some of these:
PIXELS = "pixel_values"  # [images | tiles | frames, ...]
PATCH_POSITIONS = "position_ids"  # [patches, 2], or [windows, patches, 2]: row and column
TABLE_ROWS = "places"  # [patches, 4]: position embeddings that a patch's is mixed from
TABLE_SHARES = "shares"  # [patches, 4]: how much of each
WINDOW_MASK = "mask"  # [patches], or [windows, patches]: which of the places hold a patch
ORDER = "order"  # [cells]: where each cell lies among all places for one
# and its outputs:
FEATURES = "image_features"  # [..., C], a row for each visual token
DEEPSTACK_FEATURES = "deepstack_features"  # [K, tokens, C]

# Sizes of a decoder graph that may change.
BATCH = "batch"
NEW = "seq"  # new rows
ANSWERED = "logit_rows"  # new rows that have logits: 1 where nobody says otherwise
WEIGHTINGS = "weightings"  # masses of a key; ONNX Runtime is given none where nobody reads them
MOST_WEIGHTINGS = 2  # the attention of the last query row, and that of all text rows


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

CACHE = tuple(kind for place in CACHED for kind in (place.keys, place.values, place.length))
CACHED_ROWS = tuple(kind for place in CACHED for kind in (place.keys, place.values))
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
    """

    name: str
    reads: tuple[str, ...]
    makes: tuple[str, ...]


FULL = LayerKind("full", CACHE, RESULTS)  # rows with positions, which policies move
# The same without those that the window has left behind; its graph is given their positions.
SLIDING = LayerKind("sliding", (*CACHE, ACTIVE.positions), RESULTS)
LAYER_KINDS = {kind.name: kind for kind in (FULL, SLIDING)}

_SCALES = {place.values: place.scales for place in (*CACHED, MADE)}


def _values(op: schema.Op) -> dict[str, schema.Value]:
    """Inputs and outputs of an op by their kinds in graphs."""
    # What an op makes is called otherwise where it is also given new rows as computed.
    made = {value.name.replace("_made", "_new"): value for value in op.outputs}
    return {value.name: value for value in op.inputs} | made


_OF_OP = {name: _values(op) for name, op in ROW_OPS.items()}
_OF_OP[COMPUTED.name] |= _values(schema.WINDOW_CACHE_ATTENTION)


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
    """Whether a tensor holds the keys or values of cached rows, [B, Hkv, rows, D]."""
    return kind_of(name) in CACHED_ROWS


def shared(size: str) -> str:
    """The name of a size without the layer: active rows of any layer are `active`."""
    for place in CACHED:
        if size.startswith(f"{place.name}_"):
            return place.name
    return size


def blocks(rows: str) -> str:
    """The name of how many blocks there are of rows, where cached rows come in blocks."""
    return f"{rows}_blocks"


def positions(axes: Any) -> Any:
    """Positions of new rows [axes, S] as a graph reads those of one sequence, [(axes,) 1, S]."""
    return axes[:, None] if len(axes) > 1 else axes


class Dims(Protocol):
    """Sizes of a decoder that its graphs have."""

    @property
    def hidden_size(self) -> int: ...

    @property
    def num_layers(self) -> int: ...

    @property
    def num_heads(self) -> int: ...

    @property
    def num_kv_heads(self) -> int: ...

    @property
    def head_dim(self) -> int: ...

    @property
    def vocab_size(self) -> int: ...

    @property
    def position_axes(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Value:
    """One input or output.

    Attributes:
        dtype: "T" is the type that the package computes in.
        shape: a size that may change has a name.
    """

    name: str
    dtype: DType
    shape: tuple[Size, ...]

    def sized(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
        """Its shape with these `sizes`, a layer's own ones by their own name or the shared one.

        Raises:
            KeyError: one is missing.
        """
        return tuple(
            size if isinstance(size, int) else sizes[size if size in sizes else shared(size)]
            for size in self.shape
        )


@dataclass(frozen=True, slots=True)
class Segment:
    """The decoder graph of layers `first` to `last` - 1.

    Attributes:
        deepstack: those of the layers that have an input of features.
        ends: whether it is the last one, which gives logits.
        kinds: names in `LAYER_KINDS`, one of each layer; None: all are `FULL`.
        kept: how cached rows are kept.
        blocks: whether new rows may see later ones, of their block.
    """

    dims: Dims
    first: int
    last: int
    deepstack: tuple[int, ...]
    ends: bool
    kinds: tuple[str, ...] | None = None
    kept: RowType = COMPUTED
    blocks: bool = False

    @property
    def layers(self) -> range:
        return range(self.first, self.last)

    @property
    def result(self) -> str:
        """The name of the first output."""
        return LOGITS if self.ends else STATE

    def kind(self, layer: int) -> LayerKind:
        """What kind of layer one of `layers` is."""
        return FULL if self.kinds is None else LAYER_KINDS[self.kinds[layer - self.first]]

    @property
    def reach(self) -> tuple[str, ...]:
        """Inputs that say what new rows see, where that is not all before them."""
        windows = any(self.kind(layer) is SLIDING for layer in self.layers)
        return (ROW_ENDS,) * (self.blocks or windows) + (ROW_POSITIONS,) * windows

    def inputs(self, layers: Sequence[int] | None = None) -> tuple[Value, ...]:
        """All inputs in their order, or those of some `layers` alone among what layers have."""
        axes = () if self.dims.position_axes == 1 else (self.dims.position_axes,)
        return (
            self._states(HIDDEN),
            Value(POSITIONS, "int64", (*axes, BATCH, NEW)),
            self._of_op(WEIGHTS),
            *(self._of_op(name) for name in self.reach),
            *self._of_layers(layers, lambda kind: kind.reads),
            *(self._states(named(DEEPSTACK, i)) for i in self.deepstack),
        )

    def outputs(self, layers: Sequence[int] | None = None) -> tuple[Value, ...]:
        """All outputs in their order, or those of some `layers` alone among what layers have."""
        return (
            self._result(),
            *self._of_layers(layers, lambda kind: kind.makes),
        )

    def defaulted(self) -> tuple[Value, ...]:
        """Inputs behind all others that need not be given; packages of before have none."""
        return (Value(LOGITS_FROM, "int64", (1,)),) if self.ends else ()

    def taps(self) -> tuple[Value, ...]:
        """What the layers put out where that is not the first output itself."""
        tapped = self.layers if self.ends else self.layers[:-1]
        return tuple(self._states(named(TAP, i)) for i in tapped)

    def sizes(self, shapes: Mapping[str, Sequence[int]]) -> dict[str, int]:
        """Sizes that may change, by name, from the shapes of all inputs that must be given."""
        return ({ANSWERED: 1} if self.ends else {}) | {
            name: size
            for value in self.inputs()
            for name, size in zip(value.shape, shapes[value.name], strict=True)
            if isinstance(name, str)
        }

    def _of_layers(
        self, layers: Sequence[int] | None, wanted: Callable[[LayerKind], tuple[str, ...]]
    ) -> Iterator[Value]:
        for layer in self.layers if layers is None else layers:
            for kind in wanted(self.kind(layer)):
                scales = _SCALES.get(kind, ()) if self.kept.scaled else ()
                for one in (kind, *scales):
                    yield self._of_op(one, layer)

    def _result(self) -> Value:
        if self.ends:
            return Value(LOGITS, "T", (BATCH, ANSWERED, self.dims.vocab_size))
        return self._states(STATE)

    def _states(self, name: str) -> Value:
        return Value(name, "T", (BATCH, NEW, self.dims.hidden_size))

    def _of_op(self, kind: str, layer: int | None = None) -> Value:
        """What the op's nodes of a layer, or of all, are given or give."""
        sizes: dict[str, Size] = {
            "B": BATCH,
            "S": NEW,
            "R": WEIGHTINGS,
            "Hkv": self.dims.num_kv_heads,
            "D": self.dims.head_dim,
            "E": 1,
            "W": self.dims.head_dim * (self.kept.parked_bits or 8) // 8,
        }
        if layer is not None:
            sizes |= {"A": ACTIVE.rows(layer), "P": PARKED.rows(layer)}
        value = _OF_OP[self.kept.name][kind]
        name = kind if layer is None else named(kind, layer)
        return Value(name, value.dtype, tuple(sizes[size] for size in value.shape))
