"""Which checkpoints avl exports, as far as config.json tells."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from avl_export.checkpoint.original import original_layout
from avl_plugins.errors import AvlError, quoted

SUPPORTED = (  # values of model_type, each a module of avl_export.families
    "llava",
    "vipllava",
    "llava_next",
    "llava_next_video",
    "llava_onevision",
    "video_llava",
    "internvl",
    "mistral3",
    "lighton_ocr",
    "idefics3",
    "smolvlm",
    "qwen2_vl",
    "qwen2_5_vl",
    "qwen3_vl",
)


class FamilyError(AvlError):
    """A checkpoint's architecture, or a variant of it, is not supported."""


def check_supported(folder: Path, config: Mapping[str, Any]) -> str:
    """The model_type of the checkpoint in `folder`, which is the name of its family.

    Raises:
        FamilyError: no family exports it.
    """
    model_type = config.get("model_type")
    original = original_layout(config)
    if original is not None:
        raise FamilyError(
            f"{folder}: expected a checkpoint in transformers' layout, found {original}"
        )
    if model_type not in SUPPORTED:
        raise FamilyError(
            f"{folder}: expected an architecture of {', '.join(SUPPORTED)}, "
            f"found {'no model_type' if model_type is None else quoted(model_type)}; this version "
            "of avl cannot export it"
        )
    return str(model_type)
