"""Tiny checkpoints of every family, in every layout that files of it come in."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText

from avl_export.checkpoint.checkpoint import weights_root
from avl_export.plan.plan import Plan
from export.checkpoints import make_config, write_extras

NUMPY = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2")}
Renaming = tuple[tuple[str, str], ...]
PARTS: Renaming = (
    (r"^model\.language_model\.", "language_model.model."),
    (r"^lm_head\.", "language_model.lm_head."),
)
# How transformers has named the same weights over time: what it has now, and what it had.
LLAVA: Mapping[str, Renaming] = {
    "now": (),
    "4.52": ((r"^model\.vision_tower\.", "model.vision_tower.vision_model."),),
    "4.36": (
        *PARTS,
        (r"^model\.vision_tower\.", "vision_tower.vision_model."),
        (r"^model\.", ""),
    ),
}


@dataclass(frozen=True, slots=True)
class Case:
    """A family: a tiny configuration, and its historical layouts as renamings of keys."""

    config: Callable[..., Any]
    layouts: Mapping[str, Renaming]


FAMILIES = {
    "llava": Case(make_config, LLAVA),
}
CASES = [(name, layout) for name, case in FAMILIES.items() for layout in case.layouts]


def write_layout(folder: Path, family: str, layout: str, **config: Any) -> Path:
    """A random checkpoint of `family` whose one file has the keys of `layout`."""
    case = FAMILIES[family]
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_config(case.config(**config))
    model.save_pretrained(folder, save_original_format=False)
    write_extras(folder)
    path = folder / "model.safetensors"
    save_file({rename(key, case.layouts[layout]): t for key, t in load_file(path).items()}, path)
    return folder


def rename(key: str, renaming: Renaming) -> str:
    """`key` after every renaming in turn."""
    for pattern, replacement in renaming:
        key = re.sub(pattern, replacement, key)
    return key


def split_shards(folder: Path, count: int = 3) -> None:
    """Spread the one file of `folder` over `count` shards with an index."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    weight_map = {}
    for number in range(count):
        name = f"model-{number + 1:05d}-of-{count:05d}.safetensors"
        part = {key: tensors[key] for key in list(tensors)[number::count]}
        save_file(part, folder / name)
        weight_map |= dict.fromkeys(part, name)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def as_hub_cache(folder: Path, root: Path) -> Path:
    """The same checkpoint as the hub's cache holds it: links to files named by their hash."""
    snapshot = root / "models--some--model" / "snapshots" / ("1" * 40)
    blobs = root / "models--some--model" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for number, path in enumerate(sorted(folder.iterdir())):
        blob = blobs / f"{number:064x}"
        path.rename(blob)
        (snapshot / path.name).symlink_to(Path("../../blobs") / blob.name)
    return snapshot


def assert_reads_as_transformers(plan: Plan) -> None:
    """The bytes that graphs would be bound to are the parameters that transformers loads."""
    root = weights_root(plan.checkpoint)
    reference: Any = plan.family.reference()
    used = dict(plan.family.model.named_parameters())
    loaded = dict(reference.named_parameters(remove_duplicate=False))
    assert used.keys() <= loaded.keys()
    for name, parameter in used.items():
        placed = plan.weights.place(name, tuple(parameter.shape))
        record = placed.record
        with (root / placed.location).open("rb") as file:
            file.seek(record.offset)
            raw = file.read(record.nbytes)
        stored = np.frombuffer(raw, NUMPY[record.dtype]).reshape(record.shape)
        np.testing.assert_array_equal(stored, loaded[name].detach().numpy(), name)
