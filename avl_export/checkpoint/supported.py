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
    "qianfan_ocr",
    "mistral3",
    "lighton_ocr",
    "idefics3",
    "smolvlm",
    "paddleocr_vl",
    "glm_ocr",
    "glm4v",
    "glm46v",
    "granite4_vision",
    "qwen2_vl",
    "qwen2_5_vl",
    "qwen3_vl",
    "qwen3_vl_moe",
    "qwen3_5",
    "gemma3",
    "gemma4",
    "paligemma",
    "lfm2_vl",
    "minicpmv4_6",
)

STATES = "layers that keep a state instead of rows"
EXPERTS = "a mixture of experts"
BOTH_WAYS = "attention among a picture's tokens in both directions"
ALTUP = "several states of a token"
UNSUPPORTED: Mapping[str, str] = {  # what their decoders have that no graph here computes
    **dict.fromkeys(("lfm3_vl", "nemotron_h_omni"), STATES),
    **dict.fromkeys(("minicpmv4_7", "minicpm_ocr"), STATES),
    **dict.fromkeys(("glm4v_moe", "deepseek_ocr2", "unlimited_ocr"), EXPERTS),
    **dict.fromkeys(("llama4", "kimi_k25", "qwen3_5_moe", "ernie4_5_vl_moe"), EXPERTS),
    **dict.fromkeys(("molmo2", "gemma4_unified"), BOTH_WAYS),
    "gemma3n": ALTUP,
    "mllama": "layers of cross attention",
}


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
    if isinstance(model_type, str) and model_type in UNSUPPORTED:
        raise FamilyError(
            f"{folder}: expected an architecture whose decoder attends to all tokens before, "
            f"found {quoted(model_type)}, which has {UNSUPPORTED[model_type]}; this version of avl "
            "cannot export it"
        )
    if model_type not in SUPPORTED:
        raise FamilyError(
            f"{folder}: expected an architecture of {', '.join(SUPPORTED)}, "
            f"found {'no model_type' if model_type is None else quoted(model_type)}; this version "
            "of avl cannot export it"
        )
    return str(model_type)
