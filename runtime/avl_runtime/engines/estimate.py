"""What a build and its engines will take, before anything is built.

The figures were fitted to engines of TensorRT-RTX 1.7; see the comments.
"""

from __future__ import annotations

from dataclasses import dataclass

from avl_runtime.package.dims import Dims
from avl_runtime.package.engine_sets import Limits
from avl_runtime.package.manifest import Manifest, Segment

ENGINE = 2 << 20  # bytes a profile beside what grows with layers
KERNELS = 900 << 10  # bytes a layer and profile: each kernel comes with 150 kB of source
BUILDER = 400 << 20  # bytes that the builder takes whatever it builds
COPIES = 2.5  # times the weights at the worst moment of a build, mapped files included
COPIES_OF_INT4 = 4.0
SCORE = 12  # bytes a score: float32 before and after the softmax, 16 bits, and padding


@dataclass(frozen=True, slots=True)
class Estimate:
    """Bytes: of the engine, on the GPU beside weights and cache, and in memory for the build."""

    engine: int
    scratch: int
    build: int


def estimate(
    manifest: Manifest, graph: str, weights: int, of_int4: int, limits: Limits
) -> Estimate:
    """What the engine of `graph` will take, at the largest shapes of its profiles.

    Args:
        weights: their bytes.
        of_int4: how many of them are codes of 4 bits.
    """
    segment = next((one for one in manifest.segments if one.file == graph), None)
    layers = 1 if segment is None else segment.last_layer - segment.first_layer
    profiles = 1 if segment is None else 2
    engine = weights + profiles * (ENGINE + layers * KERNELS)
    scratch = 0 if segment is None else _scratch(manifest.dims, segment, limits)
    build = BUILDER + round(COPIES * (weights - of_int4) + COPIES_OF_INT4 * of_int4)
    return Estimate(engine, scratch, build)


def cache_bytes(dims: Dims, limits: Limits, item: int) -> int:
    """Of full caches of all layers, active or parked, for the largest batch."""
    row = 2 * dims.num_kv_heads * dims.head_dim * item
    return limits.batch * limits.cache_rows * dims.num_layers * row


def _scratch(dims: Dims, segment: Segment, limits: Limits) -> int:
    """Of the scores of one layer, which dwarf everything else where there is no plugin."""
    passes = ((limits.prompt_rows, 1), (limits.decode_rows, limits.batch))
    scores = max(
        batch * dims.num_heads * rows * (2 * limits.cache_rows + rows) for rows, batch in passes
    )
    return SCORE * scores
