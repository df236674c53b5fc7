"""What an export would write: the answer to --dry-run, and what export.py then carries out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import nn

from avl_export.checkpoint import Checkpoint, open_checkpoint, weights_root
from avl_export.families import Family, check_supported, load_family
from avl_export.options import DtypeOption, Options, OptionsError
from avl_export.trace import SegmentModule
from avl_export.weights import WeightMap, embedding, map_weights
from avl_runtime.package import Embedding, Segment

SMALL = 1 << 30  # bytes; what fp32 and a check by default are for
DTYPES: Mapping[str, torch.dtype] = {
    "fp32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
}
OF_STORED: Mapping[str, Literal["fp32", "fp16", "bf16"]] = {
    "F32": "fp32",
    "F16": "fp16",
    "BF16": "bf16",
}
TOKENIZER = "tokenizer.json"
VISION = "vision.onnx"


@dataclass(frozen=True, slots=True)
class Component:
    """One graph or matrix: its file, parameters, and bytes of weights that it reads."""

    name: str
    file: str
    tensors: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything decided before anything is written."""

    checkpoint: Checkpoint
    family: Family
    weights: WeightMap
    options: Options
    dtype: Literal["fp32", "fp16", "bf16"]
    why_dtype: str
    segments: tuple[Segment, ...]
    embedding: Embedding
    locations: Mapping[str, str]
    components: tuple[Component, ...]
    weight_nbytes: int
    check: bool

    def report(self) -> dict[str, Any]:
        """The plan as one JSON object."""
        dims = self.family.traits.dims
        return {
            "model": self.checkpoint.name,
            "checkpoint": str(self.checkpoint.folder),
            "family": self.family.name,
            "out": str(self.options.out),
            "dtype": self.dtype,
            "why_dtype": self.why_dtype,
            "split": [segment.first_layer for segment in self.segments[1:]],
            "layers": dims.num_layers,
            "tokens_per_image": self.family.traits.tokens_per_image,
            "default_policy": self.options.policy,
            "components": [
                {"name": c.name, "file": c.file, "tensors": c.tensors, "bytes": c.nbytes}
                for c in self.components
            ],
            "weight_bytes": self.weight_nbytes,
            "weights": "copied" if self.options.copy else str(weights_root(self.checkpoint)),
            "copied_bytes": self.copied_nbytes,
            "check": self.check,
            "files": [
                *sorted({c.file for c in self.components if c.file.endswith(".onnx")}),
                TOKENIZER,
                "avl.json",
                *(sorted(self.locations.values()) if self.options.copy else ()),
            ],
        }

    @property
    def copied_nbytes(self) -> int:
        """Bytes that --copy adds to the package."""
        if not self.options.copy:
            return 0
        return sum(path.stat().st_size for path in self.checkpoint.shards.values())


def make_plan(options: Options) -> Plan:
    """Open the checkpoint and decide how to export it; reads no weights and writes nothing.

    Raises:
        AvlError: the checkpoint cannot be exported, or not with these options.
    """
    checkpoint = open_checkpoint(options.model)
    check_supported(checkpoint)
    dtype, why = _dtype(options.dtype, checkpoint)
    family = load_family(checkpoint, DTYPES[dtype])
    if not (checkpoint.folder / TOKENIZER).is_file():
        raise OptionsError(
            f"{checkpoint.folder}: expected {TOKENIZER}, found none; convert with transformers: "
            "AutoTokenizer.from_pretrained(folder).save_pretrained(folder)"
        )
    root = weights_root(checkpoint)
    if options.copy:
        locations = {name: name for name in checkpoint.shards}
    else:
        locations = {n: p.relative_to(root).as_posix() for n, p in checkpoint.shards.items()}
    weights = map_weights(checkpoint, family.model, locations)
    segments = _segments(options.split, family.traits.dims.num_layers)
    matrix = embedding(weights, family.model, family.text_model.get_submodule("embed_tokens"))
    names = {id(t): n for n, t in family.model.named_parameters()}
    parts: list[tuple[str, str, nn.Module]] = [("vision", VISION, family.vision_module())]
    for number, segment in enumerate(segments):
        decoder = SegmentModule(family, segment.first_layer, segment.last_layer)
        parts.append((f"decoder {number}", segment.file, decoder))
    parts.append(("embedding", matrix.file, family.text_model.get_submodule("embed_tokens")))
    components, seen = [], {}
    for name, file, module in parts:
        placed = [weights.place(names[id(p)], tuple(p.shape)) for p in module.parameters()]
        seen.update({p.key: p.record.nbytes for p in placed})
        components.append(Component(name, file, len(placed), sum(p.record.nbytes for p in placed)))
    nbytes = sum(seen.values())
    check = nbytes <= SMALL and dtype != "bf16" if options.check is None else options.check
    if check and dtype == "bf16":
        raise OptionsError(
            "--check: expected fp32 or fp16, found bf16, which ONNX Runtime's CPU cannot run; "
            "pass --no-check"
        )
    return Plan(
        checkpoint=checkpoint,
        family=family,
        weights=weights,
        options=options,
        dtype=dtype,
        why_dtype=why,
        segments=segments,
        embedding=matrix,
        locations=locations,
        components=tuple(components),
        weight_nbytes=nbytes,
        check=check,
    )


def _dtype(
    asked: DtypeOption, checkpoint: Checkpoint
) -> tuple[Literal["fp32", "fp16", "bf16"], str]:
    """The dtype that graphs compute in, and why."""
    if asked != "auto":
        return asked, "as asked"
    if checkpoint.nbytes <= SMALL:
        return "fp32", "at most 1 GiB of weights"
    held: dict[str, int] = {}
    for _, record in checkpoint.tensors.values():
        held[record.dtype] = held.get(record.dtype, 0) + record.nbytes
    return OF_STORED.get(max(held, key=lambda d: held[d]), "fp32"), "the checkpoint's own"


def _segments(split: tuple[int, ...], layers: int) -> tuple[Segment, ...]:
    if split and not all(1 <= after < layers for after in split):
        raise OptionsError(
            f"--split: expected layers from 1 to {layers - 1} for a model of {layers} layers, "
            f"found {','.join(map(str, split))}; choose others"
        )
    bounds = (0, *split, layers)
    return tuple(
        Segment(f"decoder.{number}.onnx", first, last)
        for number, (first, last) in enumerate(pairwise(bounds))
    )
