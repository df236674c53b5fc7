"""Which weights of a model are quantized, and which cannot be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from avl_export.families import Family
from avl_export.options import BLOCK_SIZES, OptionsError
from avl_export.quantize.places import Part
from avl_export.quantize.spec import Spec


@dataclass(frozen=True, slots=True)
class Selection:
    """What of a model is quantized.

    Attributes:
        linears: shapes [outputs, inputs] of the linears' weights, by their names in the model.
        embedding: whether the token embedding is.
        kept: why a weight of a part asked for stays as it is, by name.
    """

    linears: Mapping[str, tuple[int, int]]
    embedding: bool
    kept: Mapping[str, str]


def select(family: Family, spec: Spec) -> Selection:
    """Choose the weights that `spec` names.

    A weight outside the decoder's layers that does not fit the format stays as it is.

    Raises:
        OptionsError: the block does not fit the decoder's layers, or nothing of another part.
    """
    names = {id(t): n for n, t in family.model.named_parameters()}
    linears: dict[str, tuple[int, int]] = {}
    kept: dict[str, str] = {}
    for part in spec.parts:
        weights = _weights(family, part, names)
        # Rows of the embedding are looked up one by one: their number does not matter.
        misfits = {
            name: why
            for name, (outputs, inputs) in weights.items()
            if (why := _misfit(2 if part == "embedding" else outputs, inputs, spec))
        }
        if misfits and (part == "decoder" or len(misfits) == len(weights)):
            _refuse(part, spec, weights, misfits)
        kept |= misfits
        if part != "embedding":
            linears |= {name: shape for name, shape in weights.items() if name not in misfits}
    return Selection(linears, "embedding" in spec.parts, kept)


def _weights(family: Family, part: Part, names: Mapping[int, str]) -> dict[str, tuple[int, int]]:
    """Shapes of the weights that belong to `part`."""
    text: Any = family.text_model
    modules: Sequence[nn.Module]
    if part == "embedding":
        modules = [text.get_submodule("embed_tokens")]
    elif part == "decoder":
        modules = [text.get_submodule("layers")]
    elif part == "lm_head":
        modules = [family.lm_head]
    else:
        modules = [encoder.module for encoder in family.encoders()]
    found = {}
    for module in (m for root in modules for m in root.modules()):
        if isinstance(module, nn.Linear | nn.Embedding if part == "embedding" else nn.Linear):
            rows, columns = module.weight.shape
            found[names[id(module.weight)]] = (int(rows), int(columns))
    return found


def _misfit(outputs: int, inputs: int, spec: Spec) -> str | None:
    """Why a weight cannot be stored as `spec` says, None if it can."""
    if spec.block is not None and inputs % spec.block:
        return f"{inputs} inputs are no multiple of {spec.block}"
    if spec.bits == 4 and outputs % 2:
        return f"{outputs} outputs are an odd number"
    return None


def _refuse(
    part: Part, spec: Spec, weights: Mapping[str, tuple[int, int]], misfits: Mapping[str, str]
) -> None:
    name, why = next(iter(misfits.items()))
    fitting = [size for size in BLOCK_SIZES if all(n % size == 0 for _, n in weights.values())]
    if spec.block is not None and fitting:
        way_out = f"pass --block-size {fitting[-1]}"
    elif part == "decoder":
        way_out = "pass --quantize int8 without --block-size"
    else:
        way_out = f"leave {part} out of --quantize-also"
    option = "--block-size" if spec.block is not None else "--quantize"
    raise OptionsError(
        f"{option}: expected weights of the {part} that fit the format, found {name}: {why}; "
        f"{way_out}"
    )
