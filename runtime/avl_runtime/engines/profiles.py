"""Optimisation profiles: between which shapes an engine works, and for which it is best."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from avl_plugins.graph_io import ACTIVE, BATCH, CACHED, NEW, PARKED, UNLIKE, blocks, windowed
from avl_runtime.engines.options import BuildError
from avl_runtime.package.engine_sets import Limits

DECODE, PROMPT, ENCODER = "decode", "prompt", "encoder"
TYPICAL_PROMPT = 512  # new rows
TYPICAL_CACHE = 1024  # active rows at decode

Shape = tuple[int, ...]
Shapes = Mapping[str, tuple[int | str, ...]]


@dataclass(frozen=True, slots=True)
class Range:
    """Sizes of one dimension: smallest, best, largest."""

    least: int
    best: int
    most: int


@dataclass(frozen=True, slots=True)
class Profile:
    """Shapes of all inputs of one profile: smallest, best, largest."""

    name: str
    shapes: Mapping[str, tuple[Shape, Shape, Shape]]


def segment_profiles(
    inputs: Shapes, limits: Limits, row_block: int, kv_heads: int
) -> tuple[Profile, Profile]:
    """Profile 0 for decode and refresh steps, profile 1 for prompts; see `Limits`."""
    most = limits.cache_rows // row_block
    rows = Range(1, min(limits.cache_rows, TYPICAL_CACHE), limits.cache_rows)
    few_rows = Range(1, min(limits.cache_rows, 8), limits.cache_rows)
    in_blocks = Range(1, min(most, TYPICAL_CACHE // row_block), most)
    few_blocks = Range(1, 1, most)
    decode = {
        BATCH: Range(1, 1, limits.batch),
        NEW: Range(1, 1, limits.decode_rows),
        ACTIVE.name: rows,
        PARKED.name: few_rows,  # ordinary steps read none
        blocks(ACTIVE.name): in_blocks,
        blocks(PARKED.name): few_blocks,
        UNLIKE: Range(1, 1, kv_heads),
    }
    prompt = {
        **decode,
        BATCH: Range(1, 1, 1),
        NEW: Range(1, min(limits.prompt_rows, TYPICAL_PROMPT), limits.prompt_rows),
        ACTIVE.name: few_rows,  # a first prompt finds an empty cache
        blocks(ACTIVE.name): few_blocks,
    }
    for sizes in (decode, prompt):
        for name in (place.name for place in CACHED):
            sizes |= {windowed(rows): sizes[rows] for rows in (name, blocks(name))}
    return _profile(DECODE, inputs, decode), _profile(PROMPT, inputs, prompt)


def encoder_profile(
    inputs: Shapes, ranges: Mapping[str, Mapping[int, Range]], graph: str
) -> Profile:
    """The one profile of an encoder.

    Args:
        ranges: of the axes of each input that may change.

    Raises:
        BuildError: a dimension may change of which nothing is known.
    """
    named = {}
    for name, shape in inputs.items():
        for axis, size in enumerate(shape):
            if isinstance(size, str):
                found = ranges.get(name, {}).get(axis)
                if found is None:
                    raise BuildError(
                        f"{graph}: expected {name} {list(shape)} to be an input that this version "
                        "of avl knows the sizes of, found another; export again"
                    )
                named[name, axis] = found
    shapes = {
        name: _three([named.get((name, axis), size) for axis, size in enumerate(shape)])
        for name, shape in inputs.items()
    }
    return Profile(ENCODER, shapes)


def _profile(name: str, inputs: Shapes, sizes: Mapping[str, Range]) -> Profile:
    shapes = {
        key: _three([sizes[size] if isinstance(size, str) else size for size in shape])
        for key, shape in inputs.items()
    }
    return Profile(name, shapes)


def _three(dims: list[Range | int | str]) -> tuple[Shape, Shape, Shape]:
    ranges = [
        dim if isinstance(dim, Range) else Range(int(dim), int(dim), int(dim)) for dim in dims
    ]
    return (
        tuple(one.least for one in ranges),
        tuple(one.best for one in ranges),
        tuple(one.most for one in ranges),
    )
