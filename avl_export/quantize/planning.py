"""Decide how the weights of one export are stored; None where they stay in the checkpoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from torch import nn

from avl_export.checkpoint.adapters.adapter import Adapter
from avl_export.checkpoint.checkpoint import Checkpoint
from avl_export.checkpoint.packing_config import Packing
from avl_export.checkpoint.safetensors_header import CheckpointError
from avl_export.checkpoint.source import Source
from avl_export.checkpoint.weight_map import Placed, WeightMap
from avl_export.families import Family
from avl_export.options import Options, OptionsError
from avl_export.quantize.packed import PackedSource
from avl_export.quantize.selection import Selection, select
from avl_export.quantize.spec import Spec, spec_of
from avl_export.quantize.store import PLAIN, Store, Wanted, plan_plain, plan_store


def plan_quantization(
    options: Options,
    checkpoint: Checkpoint,
    family: Family,
    weights: WeightMap,
    modules: Sequence[nn.Module],
    dtype: str,
    adapter: Adapter | None = None,
) -> Store | None:
    """What the package stores, if not the checkpoint's own files; reads no weights but GPTQ's.

    Args:
        weights: of the checkpoint; its locations are the names of the shards.
        modules: what graphs are traced from.
        dtype: what they compute in.
        adapter: what is merged into the weights.

    Raises:
        OptionsError: the options do not fit this checkpoint or each other.
        CheckpointError: a weight is missing, or packed codes cannot be taken over.
    """
    spec = spec_of(options, dtype)
    if checkpoint.packing is not None and spec is not None:
        raise OptionsError(
            f"--quantize: expected none for a {checkpoint.packing.method} checkpoint, whose "
            f"weights are INT4 already, found {options.quantize}; leave --quantize out"
        )
    if checkpoint.packing is not None and adapter is not None:
        raise OptionsError(
            f"{adapter.folder}: expected a base in fp32, fp16 or bf16 for an adapter, found a "
            f"{checkpoint.packing.method} checkpoint; name the one it was made from, with "
            "--quantize int4"
        )
    names = {id(t): n for n, t in family.model.named_parameters()}
    shapes = {names[id(p)]: tuple(p.shape) for module in modules for p in module.parameters()}
    table = names[id(family.text_model.get_submodule("embed_tokens").get_parameter("weight"))]
    sources: dict[str, Source | PackedSource] = {}
    for name, shape in {**shapes, table: tuple(family.model.get_parameter(table).shape)}.items():
        if name in weights.packed and checkpoint.packing is not None:
            sources[name] = _packed(
                checkpoint, checkpoint.packing, weights.packed[name], name, shape
            )
        else:
            stored = _source(checkpoint, weights.place(name, shape))
            sources[name] = stored if adapter is None else adapter.source(name, stored)
    if spec is None and adapter is not None:
        return plan_plain(Wanted(shapes, sources, table))
    if spec is not None:
        return plan_store(spec, select(family, spec), Wanted(shapes, sources, table))
    if checkpoint.packing is None:
        return None
    packed = {n: s for n, s in sources.items() if isinstance(s, PackedSource)}
    if not packed:
        raise CheckpointError(
            f"{checkpoint.folder}: expected linears stored as qweight, qzeros and scales, as "
            "config.json says, found none; fetch the checkpoint again"
        )
    spec = Spec(
        method=checkpoint.packing.method,
        bits=4,
        block=min(source.block for source in packed.values()),
        parts=("decoder", "lm_head") if _head(family, names) in packed else ("decoder",),
        scale_dtype=dtype,
    )
    linears = {name: source.shape for name, source in packed.items()}
    return plan_store(spec, Selection(linears, False, {}), Wanted(shapes, sources, table))


def stored_weights(store: Store, weights: WeightMap) -> WeightMap:
    """Where graphs find their weights in the package of `store`."""
    places = {name: Placed(name, PLAIN, plain.record) for name, plain in store.plain.items()}
    return replace(weights, places=places, packed={}, linears=store.linears, rows=store.rows)


def _head(family: Family, names: Mapping[int, str]) -> str:
    return names[id(family.lm_head.get_parameter("weight"))]


def _source(checkpoint: Checkpoint, placed: Placed) -> Source:
    shard, record = checkpoint.tensors[placed.key]
    return Source(placed.key, checkpoint.shards[shard], record)


def _packed(
    checkpoint: Checkpoint,
    packing: Packing,
    tensors: Mapping[str, Placed],
    name: str,
    shape: tuple[int, ...],
) -> PackedSource:
    missing = [suffix for suffix in ("qweight", "qzeros", "scales") if suffix not in tensors]
    if missing or len(shape) != 2:
        raise CheckpointError(
            f"{checkpoint.folder}: {name}: expected qweight, qzeros and scales of a linear, found "
            f"no {', '.join(missing) or 'linear'}; fetch the checkpoint again"
        )
    found = {suffix: _source(checkpoint, placed) for suffix, placed in tensors.items()}
    return PackedSource(
        packing=packing,
        shape=(shape[0], shape[1]),
        codes=found["qweight"],
        zeros=found["qzeros"],
        scales=found["scales"],
        order=found.get("g_idx"),
    )
