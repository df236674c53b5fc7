"""Which weights of a model are quantized, and which cannot be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from torch import nn

from avl_export.checkpoint.places import PARTS, Part
from avl_export.families import Family
from avl_export.families.decoders.experts import stacks
from avl_export.options import BLOCK_SIZES, OptionsError
from avl_export.quantize.blocks import SPAN
from avl_export.quantize.spec import Spec


@dataclass(frozen=True, slots=True)
class Selection:
    """What of a model is quantized.

    Attributes:
        linears: shapes [outputs, inputs] of the linears' weights, by their names in the model.
        stacks: those [experts, outputs, inputs] of experts' weights.
        tables: names of what is looked up row by row: the token embedding, and with it the table
            of layers' inputs.
        kept: why a weight of a part asked for stays as it is, by name.
        fitting: inputs a block in which they would be quantized too, None if there is no such size.
    """

    linears: Mapping[str, tuple[int, int]]
    tables: tuple[str, ...]
    kept: Mapping[str, str]
    fitting: int | None = None
    stacks: Mapping[str, tuple[int, ...]] = field(default_factory=dict)


def select(family: Family, spec: Spec) -> Selection:
    """Choose the weights that `spec` names.

    A weight that does not fit the format stays as it is.

    Raises:
        OptionsError: no weight of the decoder's layers fits.
    """
    names = {id(t): n for n, t in family.model.named_parameters()}
    linears: dict[str, tuple[int, int]] = {}
    kept: dict[str, str] = {}
    asked: dict[str, tuple[int, int]] = {}
    mixed: dict[str, tuple[int, ...]] = {}
    tables: tuple[str, ...] = ()
    for part in spec.parts:
        weights = _weights(family, part, names)
        if part == "embedding":  # its rows are looked up one by one: their number does not matter
            weights = {name: (2, inputs) for name, (_, inputs) in weights.items()}
        misfits = {n: why for n, shape in weights.items() if (why := _misfit(*shape, spec))}
        if part == "decoder" and misfits and len(misfits) == len(weights):
            _refuse(spec, weights, misfits)
        kept |= misfits
        if part == "decoder":
            for pair in _stacks(family, names):
                whys = filter(None, (_stack_misfit(shape[-1], spec) for shape in pair.values()))
                why = next(whys, None)  # of one matrix: a node reads both in one form
                if why is None:
                    mixed |= pair
                else:
                    kept |= dict.fromkeys(pair, f"experts' {why}")
                    asked |= {name: (2, shape[-1]) for name, shape in pair.items()}
        asked |= {name: weights[name] for name in misfits}
        if part == "embedding":
            tables = tuple(name for name in weights if name not in misfits)
        else:
            linears |= {name: shape for name, shape in weights.items() if name not in misfits}
    fitting = _fitting(spec, asked) if asked else None
    return Selection(linears, tables, kept, fitting, mixed)


def linears_of(family: Family) -> Mapping[Part, Mapping[str, tuple[int, int]]]:
    """Shapes [outputs, inputs] of each part's linears, by their weights' names in the model."""
    names = {id(t): n for n, t in family.model.named_parameters()}
    return {part: _weights(family, part, names) for part in PARTS if part != "embedding"}


def _weights(family: Family, part: Part, names: Mapping[int, str]) -> dict[str, tuple[int, int]]:
    """Shapes of the weights that belong to `part`."""
    modules: Sequence[nn.Module]
    if part == "embedding":
        modules = family.decoder.tables
    elif part == "decoder":
        modules = family.decoder.layers
    elif part == "lm_head":
        modules = [family.decoder.head]
    else:
        modules = [encoder.module for encoder in family.encoders()]
    found = {}
    for module in (m for root in modules for m in root.modules()):
        if isinstance(module, nn.Linear | nn.Embedding if part == "embedding" else nn.Linear):
            rows, columns = module.weight.shape
            found[names[id(module.weight)]] = (int(rows), int(columns))
    return found


def _stacks(family: Family, names: Mapping[int, str]) -> list[dict[str, tuple[int, ...]]]:
    """Shapes [experts, outputs, inputs] of the two weights of each mixture of experts, by name."""
    found = (pair for layer in family.decoder.layers for pair in stacks(layer))
    return [{names[id(weight)]: tuple(weight.shape) for weight in pair} for pair in found]


def _stack_misfit(inputs: int, spec: Spec) -> str | None:
    """`_misfit` of experts, whose outputs do not share bytes, and that kernels take or nothing."""
    multiple = spec.block or SPAN
    return f"{inputs} inputs are no multiple of {multiple}" if inputs % multiple else None


def _misfit(outputs: int, inputs: int, spec: Spec) -> str | None:
    """Why a weight cannot be stored as `spec` says, None if it can."""
    if spec.block is not None and inputs % spec.block:
        return f"{inputs} inputs are no multiple of {spec.block}"
    if spec.bits == 4 and outputs % 2:
        return f"{outputs} outputs are an odd number"
    return None


def _fitting(spec: Spec, weights: Mapping[str, tuple[int, int]]) -> int | None:
    """The largest block that all `weights` can be stored in, None if there is no such size."""
    if spec.block is None:
        return None
    sizes = (replace(spec, block=size) for size in reversed(BLOCK_SIZES))
    shapes = weights.values()
    return next((one.block for one in sizes if not any(_misfit(*s, one) for s in shapes)), None)


def _refuse(spec: Spec, weights: Mapping[str, tuple[int, int]], misfits: Mapping[str, str]) -> None:
    name, why = next(iter(misfits.items()))
    fitting = _fitting(spec, weights)
    way_out = (
        "pass --quantize int8 without --block-size"
        if fitting is None
        else f"pass --block-size {fitting}"
    )
    option = "--block-size" if spec.block is not None else "--quantize"
    raise OptionsError(
        f"{option}: expected weights of the decoder that fit the format, found {name}: {why}; "
        f"{way_out}"
    )
