"""Checkpoints as models were first published: where the converted ones are, and what converts."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from avl_export.checkpoint import aliases
from avl_export.checkpoint.original import original_layout
from export.hub_server import serve, use

Refused = Callable[..., str]
LLAMA = {"hidden_size": 4096, "num_hidden_layers": 32, "vocab_size": 32000, "use_mm_proj": True}
TOWER = {"mm_vision_tower": "openai/clip-vit-large-patch14-336", "mm_vision_select_layer": -2}
# What tells the published config.json files apart.
CONFIGS: dict[str, tuple[dict[str, Any], str, str]] = {
    "llava-v1.5-7b": (
        {**LLAMA, **TOWER, "model_type": "llava", "architectures": ["LlavaLlamaForCausalLM"]},
        "llava-hf/llava-1.5-7b-hf",
        "models/llava/convert_llava_weights_to_hf.py",
    ),
    "llava_llama": (
        {**LLAMA, **TOWER, "model_type": "llava_llama", "image_aspect_ratio": "pad"},
        "llava-hf/llava-1.5-7b-hf",
        "convert_llava_weights_to_hf.py",
    ),
    "llava-v1.6-mistral-7b": (
        {
            **LLAMA,
            **TOWER,
            "model_type": "llava_mistral",
            "architectures": ["LlavaMistralForCausalLM"],
            "image_aspect_ratio": "anyres",
            "mm_patch_merge_type": "spatial_unpad",
        },
        "llava-hf/llava-v1.6-mistral-7b-hf",
        "convert_llava_next_weights_to_hf.py",
    ),
    "llava-onevision": (
        {
            **LLAMA,
            "model_type": "llava_qwen",
            "mm_vision_tower": "google/siglip-so400m-patch14-384",
            "image_aspect_ratio": "anyres_max_9",
        },
        "llava-hf/llava-onevision-qwen2-7b-ov-hf",
        "convert_llava_onevision_weights_to_hf.py",
    ),
    "Video-LLaVA-7B": (
        {**LLAMA, "model_type": "llava", "mm_video_tower": "LanguageBind/LanguageBind_Video_merge"},
        "LanguageBind/Video-LLaVA-7B-hf",
        "convert_video_llava_weights_to_hf.py",
    ),
    "InternVL3": (
        {
            "model_type": "internvl_chat",
            "architectures": ["InternVLChatModel"],
            "llm_config": {"model_type": "qwen2"},
            "vision_config": {"model_type": "intern_vit_6b"},
        },
        "OpenGVLab/InternVL3-2B-hf",
        "models/internvl/convert_internvl_weights_to_hf.py",
    ),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_original_layouts(name: str, tmp_path: Path, refused: Refused) -> None:
    config, repository, script = CONFIGS[name]
    folder = tmp_path / name
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "pytorch_model-00001-of-00002.bin").write_bytes(b"pickle")
    line = refused(folder)
    assert "expected a checkpoint in transformers' layout" in line
    assert repository in line
    assert script in line


@pytest.mark.parametrize("arguments", [(), ("--dry-run",)], ids=str)
def test_original_layouts_on_the_hub(
    arguments: tuple[str, ...], tmp_path: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That their weights are pickles matters to nobody."""
    folder, cache = tmp_path / "llava-v1.5-7b", tmp_path / "cache"
    folder.mkdir()
    cache.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIGS["llava-v1.5-7b"][0]))
    (folder / "pytorch_model-00001-of-00002.bin").write_bytes(b"pickle")
    (folder / "pytorch_model.bin.index.json").write_text("{}")
    with serve() as hub:
        use(hub, cache, monkeypatch)
        hub.add("liuhaotian/llava-v1.5-7b", folder)
        assert "llava-hf/llava-1.5-7b-hf" in refused("liuhaotian/llava-v1.5-7b", *arguments)


@pytest.mark.parametrize("alias", aliases.HUB_IDS)
def test_converted_ones_are_none(alias: str) -> None:
    assert original_layout(aliases.known_files(alias)["config.json"]) is None


@pytest.mark.parametrize("kind", ["qwen2_vl", "florence2", "llama", "llava_next_video", None])
def test_others_are_not_taken_for_one(kind: str | None) -> None:
    assert original_layout({"model_type": kind, "hidden_size": 64}) is None
