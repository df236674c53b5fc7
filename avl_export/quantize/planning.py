"""Decide how the weights of one export are stored; None where they stay in the checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import nn

from avl_export.checkpoint.adapters.adapter import Adapter
from avl_export.checkpoint.checkpoint import Checkpoint
from avl_export.checkpoint.packings.packing import Packing
from avl_export.checkpoint.safetensors_header import CheckpointError
from avl_export.checkpoint.source import Source, SwappedSource
from avl_export.checkpoint.weight_map import Placed, WeightMap
from avl_export.families import Family
from avl_export.options import Options, OptionsError
from avl_export.quantize.codes import Dequantized, StoredCodes
from avl_export.quantize.gguf import APART, as_floats
from avl_export.quantize.selection import Selection, linears_of, select
from avl_export.quantize.spec import Spec, spec_of
from avl_export.quantize.store import PLAIN, Store, Wanted, plan_plain, plan_store
from avl_export.quantize.stored import stored_source

LEFT = "codes the checkpoint does not hold"  # of weights


def plan_quantization(
    options: Options,
    checkpoint: Checkpoint,
    family: Family,
    weights: WeightMap,
    modules: Sequence[nn.Module],
    dtype: str,
    adapter: Adapter | None = None,
) -> Store | None:
    """What the package stores, if not the checkpoint's own files.

    Of weights no more is read than which codes stand for 0, and which inputs share a scale.

    Args:
        weights: of the checkpoint; its locations are the names of the shards.
        modules: what graphs are traced from.
        dtype: what they compute in.
        adapter: what is merged into the weights.

    Raises:
        OptionsError: the options do not fit this checkpoint or each other.
        CheckpointError: a weight is missing, or stored codes cannot be taken over.
    """
    spec, packing = spec_of(options, dtype), checkpoint.packing
    if packing is not None and adapter is not None:
        raise OptionsError(
            f"{adapter.folder}: expected a base in fp32, fp16 or bf16 for an adapter, found a "
            f"{packing.method} checkpoint; name the one it was made from, with "
            "--quantize int4"
        )
    names = {id(t): n for n, t in family.model.named_parameters()}
    shapes = {names[id(p)]: tuple(p.shape) for module in modules for p in module.parameters()}
    table, *tables = [names[id(one.get_parameter("weight"))] for one in family.decoder.tables]
    sources: dict[str, Source | StoredCodes] = {}
    linears = {name for part in linears_of(family).values() for name in part}
    rows = {name: tuple(family.model.get_parameter(name).shape) for name in (table, *tables)}
    for name, shape in {**shapes, **rows}.items():
        floats = name in rows or name not in linears
        stored = stored_source(checkpoint, weights, name, shape, floats=floats)
        if adapter is not None and isinstance(stored, Source):
            stored = adapter.source(name, stored)
        sources[name] = stored
    wanted = Wanted(shapes, sources, table, tuple(tables))
    held = any(isinstance(source, StoredCodes) for source in sources.values())
    if spec is not None and packing is not None and packing.layout == "gguf":
        selection, wanted = _smaller(select(family, spec), spec, wanted)
        held = all(isinstance(wanted.sources[name], StoredCodes) for name in selection.linears)
        if not held:
            return plan_store(spec, selection, wanted)
    if spec is not None and packing is not None and held:
        raise OptionsError(
            f"--quantize: expected none for a {packing.method} checkpoint, whose "
            f"weights are quantized already, found {options.quantize}; leave --quantize out"
        )
    if spec is not None:
        selection = select(family, spec)
        return plan_store(spec, selection, _straight(selection, weights, wanted))
    if packing is not None:
        return _taken_over(options, packing, family, wanted, dtype)
    return None if adapter is None else plan_plain(wanted)


def _straight(selection: Selection, weights: WeightMap, wanted: Wanted) -> Wanted:
    """`wanted` with outputs before inputs in stacks that are quantized."""
    sources = {
        name: SwappedSource.of(source)
        for name in selection.stacks
        if isinstance(source := wanted.sources[name], Source) and weights.places[name].swapped
    }
    return replace(wanted, sources={**wanted.sources, **sources})


def _smaller(selection: Selection, spec: Spec, wanted: Wanted) -> tuple[Selection, Wanted]:
    """What is quantized of a GGUF file, whose codes stay where they have no more bits than asked.

    Codes of parts that nobody asked for stay too.
    """
    sources = {
        name: as_floats(source)
        if isinstance(source, StoredCodes) and name in selection.linears and source.bits > spec.bits
        else source
        for name, source in wanted.sources.items()
    }
    codes = {n: s.shape for n, s in sources.items() if isinstance(s, StoredCodes)}
    kept = {name: why for name, why in selection.kept.items() if name not in codes}
    return (
        replace(selection, linears={**selection.linears, **codes}, kept=kept),
        replace(wanted, sources=sources),
    )


def _taken_over(
    options: Options, packing: Packing, family: Family, wanted: Wanted, dtype: str
) -> Store:
    """What is stored of a quantized checkpoint: its codes, where a package holds such."""
    codes = {n: s for n, s in wanted.sources.items() if isinstance(s, StoredCodes)}
    floats = {n: s for n, s in wanted.sources.items() if isinstance(s, Dequantized)}
    if not codes and not floats and packing.layout != "gguf":
        raise CheckpointError(
            f"{options.model}: expected weights quantized with {packing.method}, as config.json "
            "says, found none; fetch the checkpoint again"
        )
    # A file of floating-point weights may have some in another order, which is no loss.
    kept = {name: source.why for name, source in floats.items() if source.why != APART}
    if not codes:
        return plan_plain(wanted, kept)
    parts = linears_of(family)
    linears = {name for part in parts.values() for name in part}
    kept |= {name: LEFT for name in wanted.shapes if name in linears - codes.keys() - kept.keys()}
    blocks = [source.block for source in codes.values() if source.block is not None]
    spec = Spec(
        method=packing.method,
        bits=min(source.bits for source in codes.values()),
        block=min(blocks, default=None),
        parts=tuple(part for part, own in parts.items() if own.keys() & codes.keys()),
        scale_dtype=dtype,
    )
    shapes = {name: source.shape for name, source in codes.items()}
    return plan_store(spec, Selection(shapes, (), kept), wanted)


def stored_weights(store: Store, weights: WeightMap) -> WeightMap:
    """Where graphs find their weights in the package of `store`."""
    swapped = {name for name, placed in weights.places.items() if placed.swapped}
    places = {
        name: Placed(name, PLAIN, plain.record, name in swapped)
        for name, plain in store.plain.items()
    }
    return replace(weights, places=places, packed={}, linears=store.linears, rows=store.rows)
