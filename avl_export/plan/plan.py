"""What an export would write: the answer to --dry-run, and what export.py then carries out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from avl_export.checkpoint.adapters.adapter import Adapter, open_adapter
from avl_export.checkpoint.assumed import assume_weights
from avl_export.checkpoint.checkpoint import (
    TOKENIZER,
    Checkpoint,
    lacks_weights,
    open_weights,
    weights_root,
)
from avl_export.checkpoint.processor_files import processor_notes
from avl_export.checkpoint.source import OF_STORED
from avl_export.checkpoint.unread import Unread, unread_tensors
from avl_export.checkpoint.weight_map import WeightMap, map_weights
from avl_export.families import EncoderGraph, Family, load_family, runs_on_cpu_alone
from avl_export.graph.restored import check_restored
from avl_export.graph.trace import SegmentModule
from avl_export.graph.weights import embedding
from avl_export.options import Options, OptionsError
from avl_export.plan.segments import cut
from avl_export.plan.survey import survey
from avl_export.plan.texts import Texts, read_texts
from avl_export.quantize.planning import plan_quantization, stored_weights
from avl_export.quantize.report import notes as stored_notes
from avl_export.quantize.report import quantization_report
from avl_export.quantize.store import Store
from avl_plugins import graph_io
from avl_plugins.schema import RowType
from avl_runtime.package.manifest import LayerTable
from avl_runtime.package.package import Embedding, Segment

SMALL = 1 << 30  # bytes; what fp32 and a check by default are for
FOR_CPU = {
    "bf16": "; ONNX Runtime's CPU takes --dtype fp32 or --quantize",
    "fp16": "; for a CPU --dtype fp32 is faster, of the same weights",
}
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True, slots=True)
class Component:
    """One graph or matrix: its file, parameters, and bytes of weights that it reads."""

    name: str
    file: str
    tensors: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything decided before anything is written.

    `weights` is where graphs shall find their weights; `store` is set where the package holds
    quantized or changed ones, which then holds all others too.
    """

    checkpoint: Checkpoint
    family: Family
    weights: WeightMap
    store: Store | None
    adapter: Adapter | None
    unread: Unread
    options: Options
    dtype: Literal["fp32", "fp16", "bf16"]
    why_dtype: str
    segments: tuple[Segment, ...]
    embedding: Embedding
    layer_table: LayerTable | None
    locations: Mapping[str, str]
    components: tuple[Component, ...]
    weight_nbytes: int
    check: bool
    texts: Texts

    @property
    def notes(self) -> tuple[str, ...]:
        """Lines that people shall read: what of the checkpoint was left aside."""
        video = self.family.traits.video is not None
        return (
            *self.checkpoint.notes,
            *processor_notes(self.checkpoint, video),
            *self.unread.notes(self.family.model),
            *stored_notes(self.store),
            *self.texts.notes,
        )

    def report(self) -> dict[str, Any]:
        """The plan as one JSON object."""
        dims = self.family.decoder.dims
        return {
            "model": self.checkpoint.name,
            "checkpoint": str(self.checkpoint.folder),
            "config": self.checkpoint.config_is,
            "missing": list(self.checkpoint.missing),
            "download_bytes": self.download_nbytes,
            "family": self.family.name,
            "out": str(self.options.out),
            "dtype": self.dtype,
            "why_dtype": self.why_dtype,
            "split": [segment.first_layer for segment in self.segments[1:]],
            "layers": dims.num_layers,
            "image": self.family.traits.image.layout.kind,
            "video": video.layout.kind if (video := self.family.traits.video) else None,
            "default_policy": self.options.policy,
            "vision_attention": self.options.vision_attention,
            "restore": self.options.restore,
            "components": [
                {"name": c.name, "file": c.file, "tensors": c.tensors, "bytes": c.nbytes}
                for c in self.components
            ],
            "weight_bytes": self.weight_nbytes,
            "weights": "copied" if self.self_contained else str(weights_root(self.checkpoint)),
            "copied_bytes": self.copied_nbytes,
            "quantization": quantization_report(self.store),
            "adapter": None if self.adapter is None else str(self.adapter.folder),
            "check": self.check,
            "notes": list(self.notes),
            "unread_tensors": list(self.unread.names),
            "files": [
                *sorted({c.file for c in self.components if c.file.endswith(".onnx")}),
                *(file for segment in self.segments for _, file in segment.kept),
                TOKENIZER,
                "avl.json",
                *(sorted(self.locations.values()) if self.self_contained else ()),
            ],
        }

    def graph_of(self, segment: Segment, kept: RowType) -> graph_io.Segment:
        """What the graph of one of the segments reads and writes, that keeps rows in a way."""
        first, last, dims = segment.first_layer, segment.last_layer, self.family.decoder.dims
        ends = last == dims.num_layers
        blocks = self.family.traits.reach.blocks is not None
        restores = self.options.restore
        return graph_io.Segment(
            dims, first, last, segment.deepstack, ends, segment.kinds, kept, blocks, restores
        )

    @property
    def self_contained(self) -> bool:
        """Whether the package holds its own weights."""
        return self.options.copy or self.store is not None

    @property
    def download_nbytes(self) -> int:
        """Bytes of weights, by the config, that the hub would have to send first."""
        fetch = self.checkpoint.hub_id is not None and lacks_weights(self.checkpoint)
        return self.checkpoint.nbytes if fetch else 0

    @property
    def copied_nbytes(self) -> int:
        """Bytes of weights that the package holds."""
        if self.store is not None:
            return self.store.nbytes
        if not self.options.copy:
            return 0
        if lacks_weights(self.checkpoint):
            return self.checkpoint.nbytes
        return sum(path.stat().st_size for path in self.checkpoint.shards.values())


def make_plan(options: Options, checkpoint: Checkpoint | None = None) -> Plan:
    """Open the checkpoint and decide how to export it; reads no weights and writes no package.

    A hub id's files are fetched into the hub's cache unless they are there. A dry run fetches no
    weights: it goes by the config where they are missing.

    Args:
        checkpoint: what `survey` has found.

    Raises:
        AvlError: the checkpoint cannot be exported, or not with these options.
    """
    if checkpoint is None:
        checkpoint = survey(options)
    if lacks_weights(checkpoint):
        # Before gigabytes are fetched, see whether this variant can be exported at all.
        family = load_family(checkpoint, torch.float16)
        if not options.dry_run:
            checkpoint = open_weights(checkpoint)
        elif checkpoint.packing is None:
            checkpoint = assume_weights(checkpoint, family.model)
        else:
            raise OptionsError(
                f"--dry-run: expected the weights of a {checkpoint.packing.method} checkpoint on "
                f"this machine, found none in {checkpoint.folder}; fetch them first"
            )
    dtype, why = _dtype(options, checkpoint)
    family = load_family(checkpoint, DTYPES[dtype])
    if options.dtype == "auto" and dtype != "fp32" and runs_on_cpu_alone(family):
        dtype, why = "fp32", "for ONNX Runtime's CPU, which alone runs such a decoder"
        family = load_family(checkpoint, DTYPES[dtype])
    if options.restore:
        check_restored(family)
    texts = read_texts(checkpoint, family)
    adapter = None if checkpoint.adapter is None else open_adapter(checkpoint.adapter, family.model)
    root = weights_root(checkpoint)
    if options.copy:
        locations = {name: name for name in checkpoint.shards}
    else:
        locations = {n: p.relative_to(root).as_posix() for n, p in checkpoint.shards.items()}
    weights = map_weights(checkpoint, family.model, locations)
    segments = cut(options, family, dtype)
    graphs = _graphs(family, segments, options)
    modules = [module for _, _, module in graphs]
    unread = unread_tensors(checkpoint, weights, family.model, _read(family, modules))
    store = plan_quantization(options, checkpoint, family, weights, modules, dtype, adapter)
    if store is not None:
        weights = stored_weights(store, weights)
        locations = {file.name: file.name for file in store.files}
    matrix = embedding(weights, family.model, family.decoder.embed_tokens)
    layer_table = _layer_table(family, weights)
    components, nbytes = _components(family, weights, graphs, matrix, layer_table)
    # Layer by layer a check fits in any memory; the whole model still is one for small ones.
    check = None if options.layers else options.check
    if check is None:
        # Of quantized weights a check reads the floating-point ones that they stand for.
        halves = 2 * sum(p.numel() for p in family.model.parameters())
        quantized = store is not None and store.spec is not None
        check = (halves if quantized else nbytes) <= SMALL and dtype != "bf16"
    if (check or options.layers) and dtype == "bf16":
        raise OptionsError(
            "--check: expected fp32 or fp16, found bf16, which ONNX Runtime's CPU cannot run; "
            "pass --no-check, or --dtype fp32"
        )
    return Plan(
        checkpoint=checkpoint,
        family=family,
        weights=weights,
        store=store,
        adapter=adapter,
        unread=unread,
        options=options,
        dtype=dtype,
        why_dtype=why,
        segments=segments,
        embedding=matrix,
        layer_table=layer_table,
        locations=locations,
        components=components,
        weight_nbytes=nbytes,
        check=check,
        texts=texts,
    )


def _read(family: Family, modules: list[nn.Module]) -> set[str]:
    """Names of the parameters that graphs and the lookup of tokens read."""
    names = {id(t): n for n, t in family.model.named_parameters()}
    tables = family.decoder.tables
    return {names[id(p)] for module in (*modules, *tables) for p in module.parameters()}


def encoders_of(family: Family, options: Options) -> list[EncoderGraph]:
    """The encoders of a package, with the outputs that `options` ask for.

    Raises:
        OptionsError: the family has none that tell attention.
    """
    found = list(family.encoders())
    if not options.vision_attention:
        return found
    if any(encoder.attending is None for encoder in found):
        raise OptionsError(
            "--vision-attention: expected a model whose encoder avl can have tell it (LLaVA, "
            "LLaVA-NeXT, LLaVA-OneVision, Video-LLaVA, Qwen2.5-VL, Qwen3-VL), found "
            f"{family.name}; leave it out"
        )
    return [encoder.telling() for encoder in found]


def _graphs(
    family: Family, segments: tuple[Segment, ...], options: Options
) -> list[tuple[str, str, nn.Module]]:
    """Name, file and module of each graph."""
    graphs: list[tuple[str, str, nn.Module]] = [
        (encoder.file.removesuffix(".onnx"), encoder.file, encoder.module)
        for encoder in encoders_of(family, options)
    ]
    for number, segment in enumerate(segments):
        decoder = SegmentModule(family, segment.first_layer, segment.last_layer)
        graphs.append((f"decoder {number}", segment.file, decoder))
    return graphs


def _components(
    family: Family,
    weights: WeightMap,
    graphs: list[tuple[str, str, nn.Module]],
    matrix: Embedding,
    layer_table: LayerTable | None,
) -> tuple[tuple[Component, ...], int]:
    """The graphs and the embedding, and the bytes of all weights, each counted once."""
    names = {id(t): n for n, t in family.model.named_parameters()}
    table, *others = [one.get_parameter("weight") for one in family.decoder.tables]
    components, seen = [], {}
    for name, file, module in graphs:
        own = {names[id(p)]: tuple(p.shape) for p in module.parameters()}
        sizes = {weights.key(n): weights.nbytes(n, shape) for n, shape in own.items()}
        seen.update(sizes)
        components.append(Component(name, file, len(own), sum(sizes.values())))
    key, nbytes = weights.table(names[id(table)], tuple(table.shape))
    seen[key] = nbytes
    components.append(Component("embedding", matrix.file, 1, nbytes))
    if layer_table is not None:
        (other,) = others
        key, nbytes = weights.table(names[id(other)], tuple(other.shape))
        seen[key] = nbytes
        components.append(Component("inputs of layers", layer_table.table.file, 1, nbytes))
    return tuple(components), sum(seen.values())


def _layer_table(family: Family, weights: WeightMap) -> LayerTable | None:
    """Where the runtime reads what layers read beside states; None where they read nothing."""
    _, *tables = family.decoder.tables
    if not tables:
        return None
    visual = family.traits.beside_visual
    if visual is None:
        raise RuntimeError("a family whose layers read a table of tokens, and none for visual ones")
    (table,) = tables
    return LayerTable(embedding(weights, family.model, table), visual)


def _dtype(options: Options, checkpoint: Checkpoint) -> tuple[Literal["fp32", "fp16", "bf16"], str]:
    """The dtype that graphs compute in, and why."""
    if options.dtype != "auto":
        return options.dtype, "as asked"
    if options.quantize != "none" or checkpoint.packing is not None:
        return "fp32", "for ONNX Runtime's CPU; TensorRT takes --dtype fp16 or bf16"
    if checkpoint.nbytes <= SMALL:
        return "fp32", "at most 1 GiB of weights"
    held: dict[str, int] = {}
    for _, record in checkpoint.tensors.values():
        held[record.dtype] = held.get(record.dtype, 0) + record.nbytes
    dtype = OF_STORED.get(max(held, key=held.__getitem__), "fp32")
    return dtype, f"the checkpoint's own{FOR_CPU.get(dtype, '')}"
