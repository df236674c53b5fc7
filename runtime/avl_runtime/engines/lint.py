"""Looks at a parsed network for what a parser drops or changes without an error.

It works on a listing of the network's layers, which any version of either builder can give.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from avl_plugins import graph_io
from avl_runtime.engines.options import BuildError


@dataclass(frozen=True, slots=True)
class Attention:
    """A fused attention layer: its alignment of a causal mask, and whether it has key lengths.

    `lengths` are the sizes of queries and keys along the sequence, -1 where they may change.
    """

    causal: str  # NONE, UPPER_LEFT or LOWER_RIGHT
    has_lengths: bool
    lengths: tuple[int, int]


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer of a network and the names of the tensors it reads and makes."""

    name: str
    kind: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attention: Attention | None = None


@dataclass(frozen=True, slots=True)
class Listing:
    """A parsed network."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    layers: tuple[Layer, ...]


def lint(
    graph: str,
    listing: Listing,
    wanted: Sequence[str],
    plugins: Sequence[str] = (),
    lengths: Sequence[str] = (),
) -> None:
    """Fail on a network that does not compute what its graph says.

    Args:
        wanted: the graph's inputs.
        plugins: the nodes that shall have become plugins.
        lengths: standard attention nodes that are given lengths of keys.

    Raises:
        BuildError: with the first finding, and the node that it is about.
    """
    found = [layer.name for layer in listing.layers if layer.kind.startswith("PLUGIN")]
    if len(found) != len(plugins):  # first, as bodies in their place may have other findings
        first = next((name for name in plugins if name not in found), "none")
        raise BuildError(
            f"{graph}: expected {len(plugins)} plugin layers, found {len(found)}, without {first}; "
            "export the package anew, as older exports may name no plugin, or build with "
            "--no-plugins"
        )
    for finding in _findings(listing, wanted, lengths):
        raise BuildError(
            f"{graph}: {finding}; build with another version of the backend, and report this"
        )


def _findings(listing: Listing, wanted: Sequence[str], lengths: Sequence[str]) -> Iterator[str]:
    yield from _dropped_inputs(listing, wanted)
    yield from _missing_lengths(listing)
    yield from _attentions(listing, lengths)


def _dropped_inputs(listing: Listing, wanted: Sequence[str]) -> Iterator[str]:
    read = {name for layer in listing.layers for name in layer.inputs} | set(listing.outputs)
    for name in wanted:
        if name not in listing.inputs or name not in read:
            yield f"expected the input {name} to be read, found that the parser dropped it"


def _missing_lengths(listing: Listing) -> Iterator[str]:
    """Every mass on cached rows must depend on their number, and so must what the segment makes."""
    made_by = {output: layer for layer in listing.layers for output in layer.outputs}
    places = {place.mass: place for place in graph_io.CACHED}
    masses = [name for name in listing.outputs if graph_io.kind_of(name) in places]
    results = (graph_io.STATE, graph_io.LOGITS)
    result = next((name for name in listing.outputs if name in results), None)
    behind_result = _sources(result, made_by) if result is not None else frozenset()
    for mass in masses:
        place = places[graph_io.kind_of(mass)]
        length = graph_io.named(place.length, graph_io.layer_of(mass))
        for output, sources in ((mass, _sources(mass, made_by)), (result, behind_result)):
            if length not in sources:
                maker = made_by.get(str(output))
                where = maker.name if maker is not None else "no layer"
                yield f"expected {output} to depend on {length}, found no path to {where}"


def _sources(output: str, made_by: dict[str, Layer]) -> frozenset[str]:
    """All tensors that `output` depends on."""
    seen: set[str] = set()
    waiting = [output]
    while waiting:
        name = waiting.pop()
        if name not in seen:
            seen.add(name)
            waiting.extend(made_by[name].inputs if name in made_by else ())
    return frozenset(seen)


def _attentions(listing: Listing, lengths: Sequence[str]) -> Iterator[str]:
    found = [(layer, layer.attention) for layer in listing.layers if layer.attention is not None]
    for layer, attention in found:
        queries, keys = attention.lengths
        if attention.causal == "UPPER_LEFT" and (queries != keys or queries < 0):
            yield (
                "expected a causal mask aligned with the last key, found one aligned with the "
                f"first at {layer.name}, which is wrong where there are more keys than queries"
            )
    kept = sum(attention.has_lengths for _, attention in found)
    if kept < len(lengths):
        yield f"expected key lengths at {lengths[kept]}, found that the parser dropped them"
