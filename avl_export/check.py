"""Compare a package, run by ONNX Runtime, with transformers in fp32.

The same random image and tokens go through both: the package in two prefill chunks and three
decode steps, the last with half of its cache parked; transformers in one pass over all tokens.
Attention is causal, so each row must come out the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from avl_export.families import Family
from avl_export.session import Caches, Sessions, read_embedding
from avl_plugins.errors import AvlError
from avl_runtime.package import Package

# Rounding of fp32 sums of some thousand products over tens of layers stays below 1e-4 of the
# largest value, a wrong weight or op moves results by their own size: 1e-3 separates the two.
# For fp16 transformers itself differs from its fp32 results by about 1e-2.
TOLERANCE = {"fp32": 1e-3, "fp16": 5e-2}
TEXT_BEFORE, TEXT_AFTER, DECODE = 5, 7, 3
WAY_OUT = "report it with the checkpoint's name, or pass --no-check to keep the package"

Array = npt.NDArray[Any]


class CheckError(AvlError):
    """A package computes something else than its checkpoint."""


@dataclass(frozen=True, slots=True)
class Report:
    """Largest absolute differences from transformers, and the largest logit to judge them by."""

    logits: float
    logit_scale: float
    features: float

    def line(self) -> str:
        """The report for people."""
        return (
            f"check against transformers: largest logit difference {self.logits:.1e} "
            f"(largest logit {self.logit_scale:.1f}), image features {self.features:.1e}"
        )


@dataclass(frozen=True, slots=True)
class _Expected:
    """What transformers computes, float32; `layers` holds each decoder layer's output [N, C]."""

    features: Array  # [tokens, C]
    layers: list[Array]
    logits: Array  # [N, V]


def check_package(package: Package, family: Family) -> Report:
    """Run the comparison.

    Raises:
        CheckError: a difference above TOLERANCE; names the first layer that differs.
    """
    manifest = package.manifest
    tolerance = TOLERANCE[manifest.dtype]
    rng = np.random.default_rng(0)
    pixels = rng.standard_normal((1, *family.traits.image_shape)).astype(np.float32)
    text = rng.integers(0, manifest.dims.vocab_size, TEXT_BEFORE + TEXT_AFTER + DECODE)
    text[text == manifest.tokens.image] = (manifest.tokens.image + 1) % manifest.dims.vocab_size
    image = np.full(manifest.vision.tokens_per_image, manifest.tokens.image)
    ids = np.concatenate([text[:TEXT_BEFORE], image, text[TEXT_BEFORE:]])
    expected = _transformers(family, ids, pixels)

    sessions = Sessions(package)
    features = sessions.vision(pixels)[0]
    feature_error = _difference(features, expected.features)
    if not feature_error <= tolerance * _scale(expected.features):
        raise CheckError(
            f"expected image features within {tolerance:.0e} of transformers', found a "
            f"difference of {feature_error:.1e}, so in the vision tower or projector; {WAY_OUT}"
        )
    # Image tokens may lie outside the vocabulary; their rows are replaced anyway.
    hidden = read_embedding(package, np.where(ids == manifest.tokens.image, 0, ids))
    hidden[TEXT_BEFORE : TEXT_BEFORE + len(image)] = features
    logits = _all_logits(sessions, hidden)
    error = max(_difference(found, expected.logits[row]) for row, found in logits.items())
    scale = _scale(expected.logits)
    if not error <= tolerance * scale:
        where = _first_difference(package, hidden, expected.layers, tolerance)
        raise CheckError(
            f"expected logits within {tolerance * scale:.1e} of transformers', found a difference "
            f"of {error:.1e}, first in {where}; {WAY_OUT}"
        )
    return Report(error, scale, feature_error)


def _all_logits(sessions: Sessions, hidden: Array) -> dict[int, Array]:
    """Logits [V] by row, of the last row of every chunk and decode step."""
    total = len(hidden)
    prompt = total - DECODE
    bounds = [0, prompt // 2, *range(prompt, total + 1)]
    caches: Caches = []
    logits = {}
    for begin, end in pairwise(bounds):
        parked = begin // 2 if end == total else 0
        out = sessions.run(hidden[begin:end], begin, caches, parked)
        caches = out.append_to(caches)
        logits[end - 1] = out.logits
    return logits


def _transformers(family: Family, ids: npt.NDArray[np.int64], pixels: Array) -> _Expected:
    model: Any = family.reference()
    layers: list[Array] = []
    features: list[Array] = []

    def keep(into: list[Array]) -> Any:
        def hook(_module: Any, _inputs: Any, output: Any) -> None:
            state = output[0] if isinstance(output, tuple) else output
            into.append(state[0].float().numpy())

        return hook

    for layer in family.layers_of(model):
        layer.register_forward_hook(keep(layers))
    family.projector_of(model).register_forward_hook(keep(features))
    with torch.no_grad():
        out = model(
            input_ids=torch.from_numpy(ids)[None],
            pixel_values=torch.from_numpy(pixels),
            use_cache=False,
        )
    return _Expected(features[0], layers, out.logits[0].float().numpy())


def _first_difference(
    package: Package, hidden: Array, expected: list[Array], tolerance: float
) -> str:
    """Where the decoder first departs from transformers, running all rows in one pass."""
    found = Sessions(package, taps=True).run(hidden, 0, [], 0).layers
    for layer, state in enumerate(expected):
        if layer in found and _difference(found[layer], state) > tolerance * _scale(state):
            return f"decoder layer {layer}"
    return "the final norm, the output matrix or the reading of caches"


def _difference(found: Array, expected: Array) -> float:
    """Largest absolute difference; infinite where anything is not finite."""
    if found.shape != expected.shape or not np.isfinite(found).all():
        return float("inf")
    return float(np.abs(found - expected).max())


def _scale(values: Array) -> float:
    return float(np.abs(values).max())
