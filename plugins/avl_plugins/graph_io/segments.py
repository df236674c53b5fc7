"""A decoder segment's inputs and outputs: names, shapes and types, by the kinds of its layers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from avl_plugins import schema
from avl_plugins.graph_io.kinds import (
    ACTIVE,
    CACHED,
    FULL,
    LAYER_KINDS,
    MADE,
    PARKED,
    SLIDING,
    LayerKind,
    named,
    shared,
)
from avl_plugins.graph_io.names import (
    ANSWERED,
    BATCH,
    DEEPSTACK,
    HIDDEN,
    LOGITS,
    LOGITS_FROM,
    NEW,
    POSITIONS,
    ROW_ENDS,
    ROW_POSITIONS,
    ROW_STANDING,
    STATE,
    TAP,
    UNLIKE,
    WEIGHTINGS,
    WEIGHTS,
)
from avl_plugins.schema import COMPUTED, ROW_OPS, STATE_OPS, DType, RowType

Size = int | str

_SCALES = {place.values: place.scales for place in (*CACHED, MADE)}


def _values(op: schema.Op) -> dict[str, schema.Value]:
    """Inputs and outputs of an op by their kinds in graphs."""
    # What an op makes is called otherwise where it is also given new rows as computed.
    made = {value.name.replace("_made", "_new"): value for value in op.outputs}
    return {value.name: value for value in op.inputs} | made


_OF_OP = {name: _values(op) for name, op in ROW_OPS.items()}
for _kept in _OF_OP.values():
    _kept |= {value.name: value for value in (*schema.STANDING, *schema.REACH)}
_OF_STATES = {name: value for op in STATE_OPS for name, value in _values(op).items()}


class States(Protocol):
    """Sizes of what layers with a state keep, alike in all of a decoder.

    A convolution sees `kernel` inputs of each of its `channels`. A delta rule has `heads` states
    [key_size, value_size]; all three are 0 where there is none.
    """

    @property
    def channels(self) -> int: ...

    @property
    def kernel(self) -> int: ...

    @property
    def heads(self) -> int: ...

    @property
    def key_size(self) -> int: ...

    @property
    def value_size(self) -> int: ...


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

    def head_size(self, layer: int) -> int: ...

    @property
    def vocab_size(self) -> int: ...

    @property
    def position_axes(self) -> int: ...

    @property
    def states(self) -> States | None: ...

    @property
    def layer_inputs(self) -> int: ...


def width(dims: Dims, first: int) -> int:
    """Columns of the rows that a graph whose first layer is `first` reads, or the one before makes.

    Behind the hidden state, layer by layer, lie those that this and each later layer reads beside
    it, `layer_inputs` each, so that they stay with their row whatever is dropped.
    """
    return dims.hidden_size + dims.layer_inputs * (dims.num_layers - first)


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
        restores: whether attention can be given RESTORE's bias.
    """

    dims: Dims
    first: int
    last: int
    deepstack: tuple[int, ...]
    ends: bool
    kinds: tuple[str, ...] | None = None
    kept: RowType = COMPUTED
    blocks: bool = False
    restores: bool = False

    @property
    def layers(self) -> range:
        return range(self.first, self.last)

    @property
    def row_layers(self) -> tuple[int, ...]:
        """Those of `layers` that keep rows."""
        return tuple(layer for layer in self.layers if self.kind(layer).has_rows)

    def states(self) -> tuple[tuple[Value, Value], ...]:
        """What layers keep beside rows: the input that reads it, and the output it becomes."""
        return tuple(
            (self._of_op(state.held, layer), self._of_op(state.made, layer))
            for layer in self.layers
            for state in self.kind(layer).states
        )

    @property
    def result(self) -> str:
        """The name of the first output."""
        return LOGITS if self.ends else STATE

    def kind(self, layer: int) -> LayerKind:
        """What kind of layer one of `layers` is."""
        return FULL if self.kinds is None else LAYER_KINDS[self.kinds[layer - self.first]]

    @property
    def reach(self) -> tuple[str, ...]:
        """Inputs that say what new rows see, where that is not all before them, and as what."""
        windows = any(self.kind(layer) is SLIDING for layer in self.layers)
        ends = (ROW_ENDS,) * (self.blocks or windows) + (ROW_POSITIONS,) * windows
        return ends + (ROW_STANDING,) * self.restores

    def inputs(self, layers: Sequence[int] | None = None) -> tuple[Value, ...]:
        """All inputs in their order, or those of some `layers` alone among what layers have."""
        axes = () if self.dims.position_axes == 1 else (self.dims.position_axes,)
        return (
            self._rows(HIDDEN, self.first),
            Value(POSITIONS, "int64", (*axes, BATCH, NEW)),
            self._of_op(WEIGHTS),
            *(self._of_op(name) for name in self.reach),
            *self._of_layers(layers, self._reads),
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

    def _reads(self, kind: LayerKind) -> tuple[str, ...]:
        standing = tuple(place.standing for place in CACHED)
        return kind.reads + standing * (self.restores and kind.has_rows)

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
        return self._rows(STATE, self.last)

    def _rows(self, name: str, first: int) -> Value:
        return Value(name, "T", (BATCH, NEW, width(self.dims, first)))

    def _states(self, name: str) -> Value:
        return Value(name, "T", (BATCH, NEW, self.dims.hidden_size))

    def _of_op(self, kind: str, layer: int | None = None) -> Value:
        """What the op's nodes of a layer, or of all, are given or give."""
        sizes: dict[str, Size] = {
            "B": BATCH,
            "S": NEW,
            "R": WEIGHTINGS,
            "Hkv": self.dims.num_kv_heads,
            "E": 1,
            "F": UNLIKE,
            "Z": self.dims.position_axes + 1,
        }
        if layer is not None:
            size = self.dims.head_size(layer)
            sizes |= {"A": ACTIVE.rows(layer), "P": PARKED.rows(layer), "D": size}
            sizes["W"] = size * (self.kept.parked_bits or 8) // 8
        value = _OF_OP[self.kept.name].get(kind) or _OF_STATES[kind]
        if kind in _OF_STATES:
            sizes |= _state_sizes(self.dims.states)
        name = kind if layer is None else named(kind, layer)
        return Value(name, value.dtype, tuple(sizes[size] for size in value.shape))


def _state_sizes(states: States | None) -> dict[str, Size]:
    """Sizes of the ops of layers with a state.

    Raises:
        ValueError: the decoder says none.
    """
    if states is None:
        raise ValueError("expected sizes of states for layers that keep one, found none")
    sizes: dict[str, Size] = {"C": states.channels, "J": states.kernel - 1, "Hv": states.heads}
    return sizes | {"Dk": states.key_size, "Dv": states.value_size}
