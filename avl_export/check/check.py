"""Compare a package, run by ONNX Runtime, with transformers in fp32.

The same picture, prompt and random tokens go through both: the package in two prefill chunks and
three decode steps, the last with half of its cache parked; transformers in one pass over all.
Attention is causal, so each row must come out the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from avl_export.check.session import Caches, Sessions
from avl_export.families import Family
from avl_plugins.errors import AvlError
from avl_runtime.package.package import Package
from avl_runtime.prompts.embedding import Embedding
from avl_runtime.prompts.processor import Processor, Prompt

# Rounding of fp32 sums of some thousand products over tens of layers stays below 1e-4 of the
# largest value, a wrong weight or op moves results by their own size: 1e-3 separates the two.
# For fp16 transformers itself differs from its fp32 results by about 1e-2.
TOLERANCE = {"fp32": 1e-3, "fp16": 5e-2}
DECODE = 3
QUESTION = "What is in the picture?"
PICTURE = (97, 140)  # height and width: no multiples of anything
FRAMES = 3
WAY_OUT = "report it with the checkpoint's name, or pass --no-check to keep the package"

Array = npt.NDArray[Any]


class CheckError(AvlError):
    """A package computes something else than its checkpoint."""


@dataclass(frozen=True, slots=True)
class Report:
    """Largest absolute differences from transformers, and the largest logit to judge them by.

    `quantization` is the largest logit difference that quantized weights make in transformers.
    """

    logits: float
    logit_scale: float
    features: float
    quantization: float | None = None

    def line(self) -> str:
        """The report for people."""
        return (
            f"check against transformers: largest logit difference {self.logits:.1e} "
            f"(largest logit {self.logit_scale:.1f}), image features {self.features:.1e}"
            + (
                f"; quantized weights themselves move logits by up to {self.quantization:.1e}"
                if self.quantization is not None
                else ""
            )
        )


@dataclass(frozen=True, slots=True)
class _Expected:
    """What transformers computes, float32; `layers` holds each decoder layer's output [N, C]."""

    features: Array  # [tokens, C]
    layers: list[Array]
    logits: Array  # [N, V]


@dataclass(frozen=True, slots=True)
class _Rows:
    """What the decoder reads: hidden [N, C], positions [axes, N], deepstack [K, N, C]."""

    hidden: Array
    positions: Array
    deepstack: Array

    def between(self, begin: int, end: int) -> tuple[Array, Array, Array]:
        """The rows from `begin` to `end` - 1."""
        rows = slice(begin, end)
        return self.hidden[rows], self.positions[:, rows], self.deepstack[:, rows]


def check_package(package: Package, family: Family, model: nn.Module | None = None) -> Report:
    """Run the comparison.

    Args:
        model: what to compare with, the checkpoint's `reference()` if None.

    Raises:
        CheckError: a difference above TOLERANCE; names the first layer that differs.
    """
    manifest = package.manifest
    tolerance = TOLERANCE[manifest.dtype]
    prompt = check_prompt(package)
    expected = _transformers(family, model or reference_model(family), prompt)

    sessions = Sessions(package)
    encoded = [sessions.encode(media) for media in prompt.media]
    features = np.concatenate([rows for rows, _ in encoded])
    feature_error = _difference(features, expected.features)
    if not feature_error <= tolerance * _scale(expected.features):
        raise CheckError(
            f"expected image features within {tolerance:.0e} of transformers', found a "
            f"difference of {feature_error:.1e}, so in the vision tower or projector; {WAY_OUT}"
        )
    mask = prompt.image_mask
    # Visual tokens may lie outside the vocabulary; their rows are replaced anyway.
    hidden = Embedding(package).lookup(np.where(mask, 0, prompt.input_ids))
    hidden[mask] = features
    stacked = np.concatenate([deepstack for _, deepstack in encoded], 1)
    deepstack = np.zeros((len(stacked), *hidden.shape), np.float32)
    deepstack[:, mask] = stacked
    rows = _Rows(hidden, prompt.positions, deepstack)
    logits = _all_logits(sessions, rows)
    error = max(_difference(found, expected.logits[row]) for row, found in logits.items())
    scale = _scale(expected.logits)
    if not error <= tolerance * scale:
        where = _first_difference(package, rows, expected.layers, tolerance)
        raise CheckError(
            f"expected logits within {tolerance * scale:.1e} of transformers', found a difference "
            f"of {error:.1e}, first in {where}; {WAY_OUT}"
        )
    return Report(error, scale, feature_error)


def reference_model(family: Family) -> nn.Module:
    """transformers' model with its weights.

    Raises:
        CheckError: transformers cannot read the checkpoint.
    """
    try:
        return family.reference()
    except Exception as error:  # transformers refuses a checkpoint with any kind of error
        line = " ".join(f"{type(error).__name__} {error}".split())[:200]
        raise CheckError(
            f"expected transformers to load the checkpoint, found {line}; fix the checkpoint, or "
            "pass --no-check to export without a comparison"
        ) from None


def check_prompt(package: Package) -> Prompt:
    """A question about a random picture and, where possible, video; random tokens of a reply."""
    manifest = package.manifest
    rng = np.random.default_rng(0)
    picture, *film = rng.integers(0, 256, (1 + FRAMES, *PICTURE, 3), np.uint8)
    videos = [] if manifest.video is None else [film]
    asked = Processor.from_package(package).encode(QUESTION, [picture], videos)
    visual = manifest.visual_tokens
    words = [n for n in range(min(visual[0], manifest.dims.vocab_size)) if n not in visual]
    ids = np.concatenate([asked.input_ids, rng.choice(words, DECODE)])
    return Prompt.of(ids, visual, asked.media, manifest.dims.position_axes)


def _all_logits(sessions: Sessions, rows: _Rows) -> dict[int, Array]:
    """Logits [V] by row, of the last row of every chunk and decode step."""
    total = len(rows.hidden)
    prompt = total - DECODE
    bounds = [0, prompt // 2, *range(prompt, total + 1)]
    caches: Caches = []
    logits = {}
    for begin, end in pairwise(bounds):
        parked = begin // 2 if end == total else 0
        out = sessions.run(*rows.between(begin, end), caches, parked)
        caches = out.append_to(caches)
        logits[end - 1] = out.logits
    return logits


def reference_logits(package: Package, family: Family, model: nn.Module) -> Array:
    """Logits [N, V] float32 of `model` for what a check reads."""
    return _transformers(family, model, check_prompt(package)).logits


def _transformers(family: Family, model: Any, prompt: Prompt) -> _Expected:
    layers: list[Array] = []

    def keep(into: list[Array]) -> Any:
        def hook(_module: Any, _inputs: Any, output: Any) -> None:
            state = output[0] if isinstance(output, tuple) else output
            into.append(state[0].float().numpy())

        return hook

    hooks = [layer.register_forward_hook(keep(layers)) for layer in family.layers_of(model)]
    inputs = family.reference_inputs(prompt)
    try:
        with torch.no_grad():
            features = family.reference_features(model, inputs)
            out = model(**inputs, use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return _Expected(features.float().numpy(), layers, out.logits[0].float().numpy())


def _first_difference(
    package: Package, rows: _Rows, expected: list[Array], tolerance: float
) -> str:
    """Where the decoder first departs from transformers, running all rows in one pass."""
    deepstack = [layer for part in package.manifest.segments for layer in part.deepstack]
    found = Sessions(package, taps=True).run(*rows.between(0, len(rows.hidden)), [], 0).layers
    added = dict(zip(deepstack, rows.deepstack, strict=True))
    for layer, output in enumerate(expected):
        state = output + added[layer] if layer in added else output
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
