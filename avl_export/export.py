"""Carry out a plan: write a package, whole or not at all."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import onnx_ir as ir

from avl_export.check.compare import Report, check_package
from avl_export.check.layers import check_layers
from avl_export.check.reference import checkpoint_loader, codes_loader, read_reference
from avl_export.check.streaming import Load
from avl_export.check.table import Row, ignore
from avl_export.checkpoint.checkpoint import TOKENIZER, weights_root
from avl_export.checkpoint.shards import copy_shards, link_shards
from avl_export.graph.graph import finish
from avl_export.graph.restored import nearness, restore
from avl_export.graph.rows import keep_rows
from avl_export.graph.trace import Traced, trace_encoder, trace_segment
from avl_export.graph.weights import bind
from avl_export.plan.place import ExportError, Found, check_place, staged
from avl_export.plan.plan import Plan, encoders_of
from avl_export.progress import Progress
from avl_export.quantize.report import manifest_entry
from avl_export.quantize.writer import write_store
from avl_plugins.schema import COMPUTED, ROW_TYPES
from avl_runtime.package.package import (
    FORMAT_VERSION,
    MANIFEST,
    FileEntry,
    Manifest,
    Package,
    Segment,
    Shard,
    Weights,
)

SLACK = 64 << 20  # bytes left free beside copied weights, for graphs and everyone else


@dataclass(frozen=True, slots=True)
class Result:
    """A written package; `report` is None and `layers` empty where no such check ran.

    `removed` names what else lay in the folder, as --force had it removed.
    """

    folder: Path
    nbytes: int
    report: Report | None
    layers: tuple[Row, ...] = ()
    removed: tuple[str, ...] = ()


def export(
    plan: Plan,
    tell: Callable[[Row], None] = ignore,
    say: Callable[[str], None] = lambda _: None,
) -> Result:
    """Write the package that `plan` describes.

    It is written beside its place and moved there when complete and checked: whatever fails, no
    part of it is left behind, and a package already there stays as it was. What else lies there is
    removed only where the options say `force`.

    Args:
        tell: hears of each row of a check by layers.
        say: is given the plan's notes when it is begun.

    Raises:
        ExportError: the place is taken, or the disk is full or not writable.
        AvlError: the checkpoint is damaged, or the check failed.
    """
    out = plan.options.out
    _check_place(plan)
    for note in plan.notes:
        say(note)
    progress = Progress(2 + plan.family.decoder.dims.num_layers + 2 * int(plan.check))
    replaced: list[Found] = []
    try:
        with staged(out, plan.options.force, replaced.append) as folder:
            manifest = _write(plan, folder, progress)
            package, report, layers = Package(folder, manifest), None, list[Row]()
            if plan.check:
                progress.step("checking against transformers", 2)
                reference = read_reference(package, plan.family, plan.checkpoint, plan.adapter)
                report = check_package(package, reference)
            if plan.options.layers:
                progress.close()
                layers = check_layers(package, plan.family, _loader(plan, package), tell)
            nbytes = sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())
    except OSError as error:
        raise ExportError(
            f"{out}: expected to write the package there, found {error.strerror or error}; "
            "free some space or choose another --out"
        ) from None
    finally:
        progress.close()
    return Result(out, nbytes, report, tuple(layers), replaced[0].others)


def _loader(plan: Plan, package: Package) -> Load:
    """What transformers shall compute with: the checkpoint's weights, or what codes stand for."""
    load = checkpoint_loader(plan.checkpoint, plan.family.model, plan.adapter)
    if package.manifest.quantization is None:
        return load
    return codes_loader(package, plan.family, load)


def _check_place(plan: Plan) -> None:
    out = plan.options.out
    sources = [plan.checkpoint.folder, *plan.checkpoint.shards.values()]
    if plan.adapter is not None:
        sources.append(plan.adapter.folder)
    check_place(out, plan.options.force, sources)
    if plan.self_contained:
        above = next(p for p in (out.absolute(), *out.absolute().parents) if p.exists())
        free = shutil.disk_usage(above).free
        if free < plan.copied_nbytes + SLACK:
            raise ExportError(
                f"{out}: expected {plan.copied_nbytes + SLACK} free bytes for {_what(plan)}, "
                f"found {free}; free some space, choose another --out"
                + (" or leave --copy out" if plan.store is None else "")
            )


def _what(plan: Plan) -> str:
    if plan.store is None:
        return "--copy"
    return "merged weights" if plan.store.spec is None else "quantized weights"


def _write(plan: Plan, folder: Path, progress: Progress) -> Manifest:
    family, root, texts = plan.family, weights_root(plan.checkpoint), plan.texts
    if texts.tokenizer is None:
        raise ExportError(f"{plan.options.out}: expected a plan to carry out, found a dry run's")
    constants = family.constants()
    table = nearness(family) if plan.options.restore else None

    def save(traced: Traced, name: str, segment: Segment | None = None) -> None:
        bind(traced, plan.weights, constants, root)
        model = finish(traced)
        if segment is not None and table is not None and traced.heads is not None:
            restore(model, plan.graph_of(segment, COMPUTED), table, traced.heads)
        ir.save(model, folder / name)
        if segment is not None:
            for kept, file in segment.kept:
                model = ir.load(folder / name)
                keep_rows(model, plan.graph_of(segment, ROW_TYPES[kept]))
                ir.save(model, folder / file)

    progress.step("tracing vision tower", 0)
    encoders = encoders_of(family, plan.options)
    for encoder in encoders:
        save(trace_encoder(family, encoder), encoder.file)
    progress.step("tracing vision tower", 2)
    for segment in plan.segments:
        first, last = segment.first_layer, segment.last_layer
        progress.step(f"tracing layers {first} to {last - 1}", 0)
        save(trace_segment(family, first, last), segment.file, segment)
        progress.step(f"tracing layers {first} to {last - 1}", last - first)
    (folder / TOKENIZER).write_bytes(texts.tokenizer.data)
    names = [encoder.file for encoder in encoders]
    for segment in plan.segments:
        names += [segment.file, *(file for _, file in segment.kept)]
    names.append(TOKENIZER)
    shards = _shards(plan, folder)
    traits = family.traits
    manifest = Manifest(
        format_version=FORMAT_VERSION,
        producer=f"avl {_version()}",
        family=family.name,
        model=plan.checkpoint.name,
        dtype=plan.dtype,
        dims=plan.family.decoder.dims,
        image=traits.image,
        video=traits.video,
        segments=plan.segments,
        embedding=plan.embedding,
        quantization=manifest_entry(plan.store),
        tokens=texts.tokens,
        chat_template=traits.chat_template,
        default_policy=plan.options.policy,
        weights=Weights(None if plan.self_contained else str(root), shards),
        files=tuple(_entry(folder, name) for name in names),
        engines=(),
        generation=texts.generation,
        reach=traits.reach,
        layer_table=plan.layer_table,
        adapter=None if plan.adapter is None else plan.adapter.folder.resolve().name,
        vision_attention=plan.options.vision_attention,
        restores=plan.options.restore,
    )
    (folder / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")
    return manifest


def _shards(plan: Plan, folder: Path) -> tuple[Shard, ...]:
    """Write the weights that the package holds, or name those that it links to."""
    if plan.store is not None:
        progress = Progress(plan.store.nbytes)
        try:
            return write_store(plan.store, folder, progress.step)
        finally:
            progress.close()
    files = {plan.locations[name]: path for name, path in plan.checkpoint.shards.items()}
    if plan.options.copy:
        return copy_shards(files, folder)
    return link_shards(files, plan.options.hash_weights)


def _entry(folder: Path, name: str) -> FileEntry:
    data = (folder / name).read_bytes()
    return FileEntry(name, len(data), hashlib.sha256(data).hexdigest())


def _version() -> str:
    try:
        return version("avl")
    except PackageNotFoundError:
        return "source tree"
