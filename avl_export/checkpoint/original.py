"""Checkpoints laid out as models were first published, which transformers cannot read."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class _Layout:
    """Whose layout it is, a repository of such models for transformers, and what converts them."""

    name: str
    repository: str
    model: str  # of transformers, whose sources have the script


LLAVA = _Layout("LLaVA", "llava-hf/llava-1.5-7b-hf", "llava")
NEXT = _Layout("LLaVA-NeXT", "llava-hf/llava-v1.6-mistral-7b-hf", "llava_next")
ONEVISION = _Layout("LLaVA-OneVision", "llava-hf/llava-onevision-qwen2-7b-ov-hf", "llava_onevision")
VIDEO = _Layout("Video-LLaVA", "LanguageBind/Video-LLaVA-7B-hf", "video_llava")
INTERNVL = _Layout("InternVL", "OpenGVLab/InternVL3-2B-hf", "internvl")
OF_TRANSFORMERS = {"llava_next", "llava_next_video", "llava_onevision"}


def original_layout(config: Mapping[str, Any]) -> str | None:
    """What to say of a config.json in an original layout, None for one of transformers.

    The words follow "expected a checkpoint in transformers' layout, found ".
    """
    layout = _layout(config)
    if layout is None:
        return None
    script = f"models/{layout.model}/convert_{layout.model}_weights_to_hf.py"
    return (
        f"the original one of {layout.name}; choose a repository whose name ends in -hf, as "
        f"{layout.repository}, or convert it with src/transformers/{script} of transformers' "
        "repository"
    )


def _layout(config: Mapping[str, Any]) -> _Layout | None:
    kind = str(config.get("model_type"))
    classes = config.get("architectures")
    own_class = isinstance(classes, list) and any(
        re.fullmatch(r"Llava\w*ForCausalLM", str(name)) for name in classes
    )
    if kind == "internvl_chat" or (isinstance(classes, list) and "InternVLChatModel" in classes):
        return INTERNVL
    if "vision_config" in config:
        return None
    has_tower = any(str(key).startswith("mm_") for key in config)
    is_llava = kind.startswith("llava") and kind not in {"llava", *OF_TRANSFORMERS}
    if not (own_class or has_tower or is_llava):
        return None
    return _llava_layout(config, kind)


def _llava_layout(config: Mapping[str, Any], kind: str) -> _Layout:
    if config.get("mm_video_tower") or config.get("mm_image_tower"):
        return VIDEO
    tiles = str(config.get("image_aspect_ratio"))
    if "anyres_max" in tiles or kind.startswith("llava_qwen"):
        return ONEVISION
    if "anyres" in tiles or "spatial" in str(config.get("mm_patch_merge_type")):
        return NEXT
    return LLAVA
