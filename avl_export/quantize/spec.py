"""How the weights of one export are quantized."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from avl_export.checkpoint.places import PARTS, Part
from avl_export.options import Options
from avl_export.quantize.blocks import BEST

BITS: dict[str, Literal[4, 8]] = {"int4": 4, "int8": 8}
# 64 because TensorRT, unlike ONNX Runtime and TensorRT-RTX, takes only 64 and 128.
DEFAULT_BLOCK = 64


@dataclass(frozen=True, slots=True)
class Spec:
    """What to quantize and how.

    Attributes:
        method: one of `blocks.METHODS`, or the checkpoint's own for codes taken from it.
        bits: of codes taken from a checkpoint, the fewest that one has.
        block: inputs that share a scale, None for one scale an output; of codes taken from a
            checkpoint, the fewest inputs.
        parts: in the order of `places.PARTS`; always with the decoder.
        scale_dtype: the dtype that graphs compute in: fp32, fp16 or bf16.
    """

    method: str
    bits: Literal[4, 8]
    block: int | None
    parts: tuple[Part, ...]
    scale_dtype: str


def spec_of(options: Options, dtype: str) -> Spec | None:
    """What `options` ask for; None without --quantize."""
    if options.quantize == "none":
        return None
    bits = BITS[options.quantize]
    return Spec(
        method=options.quantize_method or BEST[bits],
        bits=bits,
        block=options.block_size or (DEFAULT_BLOCK if bits == 4 else None),
        parts=tuple(p for p in PARTS if p == "decoder" or p in options.quantize_also),
        scale_dtype=dtype,
    )
