"""Sizes of a decoder, as a package's manifest says them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from avl_plugins.errors import quoted


@dataclass(frozen=True, slots=True)
class States:
    """Sizes of what layers with a state keep; see `graph_io.States`. `layers` are these layers."""

    layers: tuple[int, ...]
    channels: int
    kernel: int
    heads: int = 0
    key_size: int = 0
    value_size: int = 0


@dataclass(frozen=True, slots=True)
class SharedRows:
    """Layers that have no rows of their own and read another's.

    Attributes:
        sources: each such layer, with the one whose rows it reads.
        intermediate_size: of their feed-forward parts.
    """

    sources: tuple[tuple[int, int], ...]
    intermediate_size: int


@dataclass(frozen=True, slots=True)
class Experts:
    """Layers whose feed-forward part is a mixture of experts.

    Attributes:
        count: experts of such a layer.
        chosen: of these, the ones that a token goes through.
        intermediate_size: of one.
    """

    layers: tuple[int, ...]
    count: int
    chosen: int
    intermediate_size: int


@dataclass(frozen=True, slots=True)
class Dims:
    """Sizes of the decoder.

    `position_axes` is 1 for RoPE over `position_ids` [B, S], 3 for M-RoPE over [3, B, S]. `states`
    is None where no layer keeps a state, `shared` where none reads another's rows. `layer_inputs`
    are numbers that each layer reads of a token beside the hidden state. `experts` is None where
    every token goes through all of each layer. `head_dims` are those of each layer where they
    differ, `head_dim` the largest; None: they are all `head_dim`, as in packages of before.
    """

    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    max_positions: int
    position_axes: Literal[1, 3]
    states: States | None = None
    shared: SharedRows | None = None
    layer_inputs: int = 0
    experts: Experts | None = None
    head_dims: tuple[int, ...] | None = None

    def head_size(self, layer: int) -> int:
        """Numbers in a head's key, and in its value, of a layer."""
        return self.head_dim if self.head_dims is None else self.head_dims[layer]

    @property
    def row_layers(self) -> list[int]:
        """Decoder layers that keep rows, ascending; others keep a state, or read those of one."""
        others = () if self.states is None else self.states.layers
        return [
            layer
            for layer in range(self.num_layers)
            if layer not in others and layer not in self.sources
        ]

    @property
    def sources(self) -> dict[int, int]:
        """Layers without rows of their own, each with the one whose rows it reads."""
        return {} if self.shared is None else dict(self.shared.sources)

    def width(self, layer: int) -> int:
        """The intermediate size of what a token goes through in a layer's feed-forward part."""
        if self.shared is not None and layer in self.sources:
            return self.shared.intermediate_size
        if self.experts is not None and layer in self.experts.layers:
            return self.experts.chosen * self.experts.intermediate_size
        return self.intermediate_size

    def mistake(self) -> str | None:
        """What of these sizes no decoder can have, as expected and found; None if nothing."""
        sizes = {
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_layers": self.num_layers,
            "num_heads": self.num_heads,
            "num_kv_heads": self.num_kv_heads,
            "head_dim": self.head_dim,
            "vocab_size": self.vocab_size,
            "max_positions": self.max_positions,
        }
        if self.shared is not None:
            sizes["shared.intermediate_size"] = self.shared.intermediate_size
        if self.experts is not None:
            sizes["experts.chosen"] = self.experts.chosen
            sizes["experts.intermediate_size"] = self.experts.intermediate_size
        for name, size in sizes.items():
            if size < 1:
                return f"{name}: expected at least 1, found {size}"
        if self.num_heads % self.num_kv_heads:
            return (
                f"num_heads: expected a multiple of the {self.num_kv_heads} KV heads, found "
                f"{self.num_heads}"
            )
        if self.head_dims is not None and (mistake := self._mistake_of_heads(self.head_dims)):
            return mistake
        return None if self.experts is None else self._mistake_of(self.experts)

    def _mistake_of_heads(self, sizes: tuple[int, ...]) -> str | None:
        if len(sizes) != self.num_layers or min(sizes) < 1 or max(sizes) != self.head_dim:
            return (
                f"head_dims: expected {self.num_layers} sizes of at least 1 and at most head_dim "
                f"{self.head_dim}, which one of them has, found {quoted(sizes, 80)}"
            )
        for layer, source in self.sources.items():
            if layer < len(sizes) and source < len(sizes) and sizes[layer] != sizes[source]:
                return (
                    f"head_dims: expected that of layer {layer} to be that of layer {source}, "
                    f"whose rows it reads, found {sizes[layer]} and {sizes[source]}"
                )
        return None

    def _mistake_of(self, experts: Experts) -> str | None:
        if experts.chosen > experts.count:
            return (
                f"experts.chosen: expected at most the {experts.count} that there are, found "
                f"{experts.chosen}"
            )
        layers = experts.layers
        ascending = bool(layers) and list(layers) == sorted(set(layers))
        if not ascending or layers[-1] >= self.num_layers:
            return (
                f"experts.layers: expected some of the {self.num_layers} layers, ascending, found "
                f"{quoted(layers, 80)}"
            )
        return None
