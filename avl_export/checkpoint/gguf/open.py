"""A decoder's GGUF file and its mmproj file as one checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path

from avl_export.checkpoint.checkpoint import Checkpoint, find_checkpoint
from avl_export.checkpoint.gguf.config import text_values
from avl_export.checkpoint.gguf.derived import derived_files
from avl_export.checkpoint.gguf.header import GgufFile, read_gguf
from avl_export.checkpoint.gguf.names import encoder_names, text_names
from avl_export.checkpoint.model_names import expanded, is_file
from avl_export.checkpoint.packings.packing import Packing
from avl_export.checkpoint.safetensors_header import CheckpointError, TensorRecord
from avl_export.checkpoint.supported import check_supported
from avl_plugins.errors import quoted, shown

SUFFIX = ".gguf"
ARCHITECTURE = "general.architecture"
# Decoders by llama.cpp's names, and the families that have such.
FAMILIES: Mapping[str, tuple[str, ...]] = {
    "llama": ("llava", "idefics3", "smolvlm"),
    "qwen2vl": ("qwen2_5_vl",),
    "qwen3vl": ("qwen3_vl",),
}
PROJECTORS: Mapping[str, tuple[str, ...]] = {
    "mlp": ("llava",),
    "idefics3": ("idefics3", "smolvlm"),
    "qwen2.5vl_merger": ("qwen2_5_vl",),
    "qwen3vl_merger": ("qwen3_vl",),
}
TURNED = ("llama",)  # architectures whose queries and keys have their rows in pairs


def names_gguf(model: str) -> bool:
    """Whether MODEL is a GGUF file that is there."""
    return model.lower().endswith(SUFFIX) and is_file(expanded(model))


def open_gguf(
    model: str, mmproj: Path | None, config: str | None = None, dry_run: bool = False
) -> Checkpoint:
    """The checkpoint that a decoder's file and that of its encoder and projector make.

    Args:
        config: a folder or hub id whose configuration, tokenizer and processor count; None for what
            the files themselves tell.
        dry_run: as `find_checkpoint`, of `config`.

    Raises:
        CheckpointError: one is missing, damaged, or of a kind that is not read.
    """
    path = _file(model)
    text = read_gguf(path)
    if mmproj is None:
        raise CheckpointError(
            f"{path}: expected --mmproj with the file of the encoder and projector, found none; "
            f"{_advice(path)}"
        )
    encoder = read_gguf(_file(str(mmproj)))
    families = _families(text, encoder)
    if config is None:
        base = _derived(text, encoder, families[0])
    else:
        base = find_checkpoint(config, None, dry_run)
    family = check_supported(base.folder, base.config)
    if family not in families:
        raise CheckpointError(
            f"{base.folder / 'config.json'}: expected the configuration of a "
            f"{' or '.join(families)} as the GGUF files hold, found that of a {family}; pass "
            "another --config"
        )
    parts = [(text, text_names(text, family)), (encoder, encoder_names(encoder, family))]
    shards, tensors = _tensors(parts)
    names = {name: weight for _, own in parts for name, weight in own.items()}
    return replace(
        base,
        name=path.stem,
        shards=shards,
        tensors=tensors,
        hub_id=None,
        missing=tuple(one for one in base.missing if not one.endswith(".safetensors")),
        packing=Packing("gguf", "gguf", (4, 8), names=names),
        told=text_values(text),
    )


def _derived(text: GgufFile, encoder: GgufFile, family: str) -> Checkpoint:
    files = derived_files(text, encoder, family)
    note = (
        "configuration and tokenizer are made from what the GGUF files say, and pictures are "
        f"resized as for the {family} checkpoints that avl knows; where the model's own differ, "
        "pass them with --config"
    )
    return Checkpoint(
        name=text.path.stem,
        folder=text.path,
        config=dict(files["config.json"]),
        built_in=True,
        stand_ins=files,
        notes=(note,),
    )


def _tensors(
    parts: list[tuple[GgufFile, dict[str, str]]],
) -> tuple[dict[str, Path], dict[str, tuple[str, TensorRecord]]]:
    """Files by their names, and the tensors of all, in the order of weights' parts."""
    shards: dict[str, Path] = {}
    tensors: dict[str, tuple[str, TensorRecord]] = {}
    for file, names in parts:
        shard = file.path.name if file.path.name not in shards else f"mmproj/{file.path.name}"
        shards[shard] = file.path.resolve()
        heads = _heads(file)
        for name in names:
            record = file.tensors[name]
            turned = next((count for end, count in heads.items() if name.endswith(end)), None)
            tensors[name] = (shard, replace(record, heads=turned))
    return shards, tensors


def _heads(file: GgufFile) -> dict[str, int]:
    """Heads of the matrices whose rows are turned, by how their names end."""
    architecture = file.values.get(ARCHITECTURE)
    if architecture not in TURNED:
        return {}
    shape = text_values(file)
    counts = {"q": shape["num_attention_heads"], "k": shape["num_key_value_heads"]}
    return {
        f".attn_{part}.{kind}": count
        for part, count in counts.items()
        for kind in ("weight", "bias")
    }


def _families(text: GgufFile, encoder: GgufFile) -> tuple[str, ...]:
    """The families that both files may be of."""
    for file in (text, encoder):
        if file.values.get("split.count", 1) != 1:
            raise CheckpointError(
                f"{file.path}: expected a whole file, found one of several; join them with "
                "llama.cpp's llama-gguf-split --merge"
            )
    architecture = text.values.get(ARCHITECTURE)
    if architecture == "clip":
        raise CheckpointError(
            f"{text.path}: expected a decoder's file as --model, found that of an encoder; pass it "
            "with --mmproj"
        )
    families = FAMILIES.get(architecture) if isinstance(architecture, str) else None
    if families is None:
        raise CheckpointError(
            f"{text.path}: expected a decoder of {', '.join(FAMILIES)}, found "
            f"{quoted(architecture, 40)}; use the checkpoint that the file was made from"
        )
    if encoder.values.get(ARCHITECTURE) != "clip":
        raise CheckpointError(
            f"{encoder.path}: expected an encoder's file as --mmproj, found that of a "
            f"{shown(encoder.values.get(ARCHITECTURE), 40)}; pass the mmproj file of the model"
        )
    kind = encoder.values.get(
        "clip.projector_type", encoder.values.get("clip.vision.projector_type")
    )
    kind = "mlp" if kind is None and encoder.values.get("clip.has_llava_projector") else kind
    known = PROJECTORS.get(kind, ()) if isinstance(kind, str) else ()
    found = tuple(family for family in known if family in families)
    if not found:
        held = ", ".join(name for name, of in PROJECTORS.items() if set(of) & set(families))
        raise CheckpointError(
            f"{encoder.path}: expected a projector of {held} for a decoder of {architecture}, "
            f"found {quoted(kind, 40)}; use the checkpoint that the files were made from"
        )
    return found


def _file(model: str) -> Path:
    path = expanded(model)
    if not is_file(path):
        raise CheckpointError(
            f"{shown(model)}: expected a GGUF file, found no such file; check the path"
        )
    return path


def _advice(path: Path) -> str:
    """The file that --mmproj may mean, by its name."""
    near = sorted(
        one.name for one in path.parent.iterdir() if fnmatchcase(one.name.lower(), "*mmproj*.gguf")
    )
    if not near:
        return "fetch the mmproj file from the page of the model's GGUF files"
    return f"is it {shown(path.parent / near[0])}?"
