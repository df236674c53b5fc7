"""The types of tensors in GGUF files: how the blocks of each lie, and the names of the others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from avl_export.checkpoint.safetensors_header import CheckpointError
from avl_plugins.errors import shown


@dataclass(frozen=True, slots=True)
class Layout:
    """A type of tensors.

    Attributes:
        values, nbytes: of a block; a row is cut into blocks.
        dtype: of floating-point values, None for codes.
    """

    name: str
    values: int
    nbytes: int
    dtype: str | None = None


# By ggml's numbers: https://github.com/ggml-org/ggml/blob/master/include/ggml.h.
LAYOUTS: Mapping[int, Layout] = {
    0: Layout("F32", 1, 4, "F32"),
    1: Layout("F16", 1, 2, "F16"),
    30: Layout("BF16", 1, 2, "BF16"),
    2: Layout("Q4_0", 32, 18),
    8: Layout("Q8_0", 32, 34),
    12: Layout("Q4_K", 256, 144),
    14: Layout("Q6_K", 256, 210),
}
OTHERS: Mapping[int, str] = {
    3: "Q4_1",
    6: "Q5_0",
    7: "Q5_1",
    9: "Q8_1",
    10: "Q2_K",
    11: "Q3_K",
    13: "Q5_K",
    15: "Q8_K",
    16: "IQ2_XXS",
    17: "IQ2_XS",
    18: "IQ3_XXS",
    19: "IQ1_S",
    20: "IQ4_NL",
    21: "IQ3_S",
    22: "IQ2_S",
    23: "IQ4_XS",
    24: "I8",
    25: "I16",
    26: "I32",
    27: "I64",
    28: "F64",
    29: "IQ1_M",
    34: "TQ1_0",
    35: "TQ2_0",
    39: "MXFP4",
    40: "NVFP4",
}


def refuse_type(path: Path, name: str, kind: int) -> CheckpointError:
    """A tensor `name` of a type that is not read."""
    held = ", ".join(layout.name for layout in LAYOUTS.values())
    return CheckpointError(
        f"{path}: {shown(name, 80)}: expected a type of {held}, found "
        f"{OTHERS.get(kind, f'type {kind}')}; choose the file of this model in one of those, such "
        "as Q4_0 or Q8_0"
    )
