"""How a quantized checkpoint packs its weights."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from avl_export.checkpoint.foreign import describe
from avl_export.checkpoint.safetensors_header import CheckpointError

Layout = Literal["gptq", "awq", "compressed", "fp8", "torchao", "hqq", "gguf"]

# What the tensors of a quantized weight are called, behind the name of its module.
PARTS: Mapping[Layout, tuple[str, ...]] = {
    "gptq": ("qweight", "qzeros", "scales", "g_idx"),
    "awq": ("qweight", "qzeros", "scales"),
    "compressed": (
        "weight_packed",
        "weight",
        "weight_scale",
        "weight_zero_point",
        "weight_shape",
        "weight_g_idx",
    ),
    "fp8": ("weight", "weight_scale_inv", "weight_scale"),
    "torchao": ("_weight_qdata", "_weight_scale", "_weight_zero_point", "_weight_act_pre_scale"),
    "hqq": (
        "W_q",
        "scale",
        "zero",
        "nbits",
        "group_size",
        "shape",
        "axis",
        "packing",
        "unpack_view_dtype",
        "view_as_float",
        "quant_scale",
        "quant_zero",
        "compute_dtype",
        "offload_meta",
        "encoded_state_dict",
        "stores_quant_config",
        "channel_wise",
        "optimize",
        "round_zero",
    ),
    "gguf": (),
}
CODES = "W_q"  # of hqq
WEIGHT = "weight"  # codes may be called what floating-point weights are called
SCALES = ("weight_scale", "weight_scale_inv")  # codes are so called only beside one of these
WAY_OUT = "export the checkpoint it was made from with --quantize int4"
HELD = "gptq, awq, auto-round, compressed-tensors, torchao or hqq to 4 or 8 bits, or to FP8 (e4m3)"


@dataclass(frozen=True, slots=True)
class Packing:
    """How a checkpoint's quantized weights are stored.

    Attributes:
        method: what quantization_config calls it.
        layout: gptq (several inputs a word), awq (eight outputs a word, interleaved), compressed
            (several inputs a word, rows of outputs), fp8 or torchao (a value is a byte), hqq
            (groups cut without regard to rows), gguf (blocks with scales among them).
        bits: of a code, by what weights may have.
        group: inputs that share a scale, None for all inputs; of gptq and awq, where `bits` are
            those of all weights.
        block: outputs and inputs that share a scale, of FP8; None: all inputs of an output do, or
            the whole weight, as the scales' shape tells.
        zero_offset: what was subtracted from the codes of 0 before they were packed.
        also: of codes of so many bits, parts without which a weight would be read as another, by
            what config.json says.
        notes: lines that people shall read.
        names: of gguf, the weight that each tensor is a part of.
    """

    method: str
    layout: Layout
    bits: tuple[int, ...]
    group: int | None = None
    block: tuple[int, int] | None = None
    zero_offset: int = 0
    also: Mapping[int, tuple[str, ...]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    names: Mapping[str, str] = field(default_factory=dict)

    def part_of(self, key: str, tensors: Collection[str]) -> tuple[str, str] | None:
        """The weight that the tensor `key`, among all `tensors`, is a part of, and which part.

        None for a tensor that is a weight by itself.
        """
        if key in self.names:
            return self.names[key], key
        stem, _, part = key.rpartition(".")
        weight = f"{stem}.{WEIGHT}", part
        if self.layout == "hqq" and f"{stem}.{CODES}" not in tensors:
            return None  # some of its names are what others call weights
        if part != WEIGHT:
            return weight if part in PARTS[self.layout] else None
        scaled = any(f"{stem}.{name}" in tensors for name in SCALES)
        return weight if WEIGHT in PARTS[self.layout] and scaled else None


def refuse(where: Path, found: Mapping[str, Any]) -> CheckpointError:
    """A method, or bits, that no layout holds."""
    return CheckpointError(
        f"{where}: expected weights in fp32, fp16 or bf16, or quantized with {HELD}, found them "
        f"quantized with {describe(dict(found))}; {WAY_OUT}"
    )


def is_size(value: Any) -> bool:
    """Whether `value` is a whole number above 0."""
    return isinstance(value, int) and not isinstance(value, bool) and value > 0
