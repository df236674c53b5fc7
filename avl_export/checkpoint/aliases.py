"""Short names of checkpoints, and what avl knows of each without having it.

`configs/ALIAS.json` holds the contents of the checkpoint's own JSON files as far as they decide
what an export does: a plan needs no more. An export reads the checkpoint's files, never these.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

BUNDLED = {"avl-tiny": Path(__file__).parents[1] / "models" / "avl-tiny"}
HUB_IDS: Mapping[str, str] = {
    "llava-7b": "llava-hf/llava-1.5-7b-hf",
    "llava-13b": "llava-hf/llava-1.5-13b-hf",
    "vip-llava-7b": "llava-hf/vip-llava-7b-hf",
    "vip-llava-13b": "llava-hf/vip-llava-13b-hf",
    "llava-next-7b": "llava-hf/llava-v1.6-vicuna-7b-hf",
    "llava-next-mistral-7b": "llava-hf/llava-v1.6-mistral-7b-hf",
    "llava-next-13b": "llava-hf/llava-v1.6-vicuna-13b-hf",
    "llava-next-video-7b": "llava-hf/LLaVA-NeXT-Video-7B-hf",
    "video-llava-7b": "LanguageBind/Video-LLaVA-7B-hf",
    "internvl3-2b": "OpenGVLab/InternVL3-2B-hf",
    "internvl3-8b": "OpenGVLab/InternVL3-8B-hf",
    "internvl3.5-1b": "OpenGVLab/InternVL3_5-1B-HF",
    "internvl3.5-2b": "OpenGVLab/InternVL3_5-2B-HF",
    "internvl3.5-4b": "OpenGVLab/InternVL3_5-4B-HF",
    "internvl3.5-8b": "OpenGVLab/InternVL3_5-8B-HF",
    "internvl3.5-14b": "OpenGVLab/InternVL3_5-14B-HF",
    "qianfan-ocr-4b": "baidu/Qianfan-OCR",
    "ministral-3-3b": "mistralai/Ministral-3-3B-Instruct-2512-BF16",
    "ministral-3-8b": "mistralai/Ministral-3-8B-Instruct-2512-BF16",
    "ministral-3-14b": "mistralai/Ministral-3-14B-Instruct-2512-BF16",
    "lighton-ocr-1b": "lightonai/LightOnOCR-2-1B",
    "paddleocr-vl-0.9b": "PaddlePaddle/PaddleOCR-VL",
    "glm-ocr-0.9b": "zai-org/GLM-OCR",
    "glm-4.6v-flash": "zai-org/GLM-4.6V-Flash",
    "granite-vision-4.1-4b": "ibm-granite/granite-vision-4.1-4b",
    "qwen2-vl-2b": "Qwen/Qwen2-VL-2B-Instruct",
    "qwen2-vl-7b": "Qwen/Qwen2-VL-7B-Instruct",
    "qwen2.5-vl-3b": "Qwen/Qwen2.5-VL-3B-Instruct",
    "qwen2.5-vl-7b": "Qwen/Qwen2.5-VL-7B-Instruct",
    "qwen3-vl-2b": "Qwen/Qwen3-VL-2B-Instruct",
    "qwen3-vl-8b": "Qwen/Qwen3-VL-8B-Instruct",
    "qwen3-vl-30b-a3b": "Qwen/Qwen3-VL-30B-A3B-Instruct",
    "qwen3.5-0.8b": "Qwen/Qwen3.5-0.8B",
    # 4B: its decoder as in pages about it, its tower as in the config of a model tuned from it.
    "qwen3.5-4b": "Qwen/Qwen3.5-4B",
    # Of 9B those that transformers 5.23 has by default (qwen3_5/configuration_qwen3_5.py).
    "qwen3.5-9b": "Qwen/Qwen3.5-9B",
    "gemma-3-4b": "google/gemma-3-4b-it",
    "paligemma-3b": "google/paligemma-3b-mix-224",
    "gemma-4-e2b": "google/gemma-4-E2B-it",
    "gemma-4-e4b": "google/gemma-4-E4B-it",
    "minicpm-v-4.6": "openbmb/MiniCPM-V-4.6",
    "lfm2.5-vl-450m": "LiquidAI/LFM2.5-VL-450M",
    "smolvlm-256m": "HuggingFaceTB/SmolVLM-256M-Instruct",
    "smolvlm-500m": "HuggingFaceTB/SmolVLM-500M-Instruct",
    "smolvlm2-256m": "HuggingFaceTB/SmolVLM2-256M-Video-Instruct",
    "smolvlm2-500m": "HuggingFaceTB/SmolVLM2-500M-Video-Instruct",
    "smolvlm2-2.2b": "HuggingFaceTB/SmolVLM2-2.2B-Instruct",
    "idefics3-8b": "HuggingFaceM4/Idefics3-8B-Llama3",
    "llava-onevision-0.5b": "llava-hf/llava-onevision-qwen2-0.5b-ov-hf",
    "llava-onevision-7b": "llava-hf/llava-onevision-qwen2-7b-ov-hf",
}
CONFIGS = Path(__file__).parent / "configs"

Files = Mapping[str, Mapping[str, Any]]


def names() -> str:
    """All aliases, for help texts and errors."""
    return ", ".join((*BUNDLED, *HUB_IDS))


def known_files(alias: str) -> Files:
    """File name -> JSON object, of the checkpoint that `alias` stands for."""
    files: Files = json.loads((CONFIGS / f"{alias}.json").read_text(encoding="utf-8"))
    return files


def stand_ins(config: Mapping[str, Any], missing: Sequence[str]) -> Files:
    """For small files among `missing`, what a known checkpoint of the same architecture has there.

    Tokens keep the ids that `config` gives them.
    """
    kind = config.get("model_type")
    known = (known_files(alias) for alias in HUB_IDS)
    files = next((f for f in known if f["config.json"]["model_type"] == kind), None)
    if files is None:
        return {}
    found: dict[str, Mapping[str, Any]] = {}
    if "preprocessor_config.json" in missing:
        known_config = files["config.json"]
        found = {
            name: _fitted(value, known_config, config)
            for name, value in files.items()
            if "processor_config" in name
        }
    if "tokenizer.json" in missing:
        texts = {token["id"]: token["content"] for token in files["tokenizer.json"]["added_tokens"]}
        theirs = _token_ids(files["config.json"])
        added = [
            {"id": token, "content": texts.get(theirs.get(name, -1), f"<{name}>")}
            for name, token in _token_ids(config).items()
        ]
        found["tokenizer.json"] = {"added_tokens": added}
        found |= {name: value for name, value in files.items() if name == "tokenizer_config.json"}
        found["tokenizer_config.json"] = files.get("tokenizer_config.json", {})
    return found


def _fitted(
    processor: Mapping[str, Any], known: Mapping[str, Any], config: Mapping[str, Any]
) -> dict[str, Any]:
    """A processor's settings, with what the configuration says about the sizes of pictures."""
    fitted = dict(processor)
    vision, theirs = config.get("vision_config"), known["vision_config"]
    if not isinstance(vision, Mapping):
        return fitted
    old, new = _side(theirs), _side(vision)
    for key in ("size", "crop_size", "max_image_size"):
        if isinstance(fitted.get(key), Mapping) and new is not None:
            fitted[key] = {n: new if value == old else value for n, value in fitted[key].items()}
    for key in ("patch_size", "temporal_patch_size", "merge_size"):
        name = f"spatial_{key}" if key == "merge_size" else key
        held, asked = theirs.get(name), vision.get(name)
        # PaddleOCR-VL's tower says 2 of time, and its processor 1.
        if key in fitted and isinstance(asked, int) and held in (None, fitted[key]):
            fitted[key] = asked
    if "image_seq_len" in fitted and new is not None:
        patch, factor = vision.get("patch_size"), config.get("scale_factor")
        if type(patch) is int and type(factor) is int and min(patch, factor) > 0:
            fitted["image_seq_len"] = (new // patch // factor) ** 2
    held, asked = _patches(theirs), _patches(vision)
    if None not in (held, asked) and fitted.get("image_seq_length") == held:  # a token a patch
        fitted["image_seq_length"] = asked
    if "image_grid_pinpoints" in fitted and "image_grid_pinpoints" in config:
        fitted["image_grid_pinpoints"] = config["image_grid_pinpoints"]
    return fitted


def _side(vision: Mapping[str, Any]) -> int | None:
    size = vision.get("image_size")
    size = size[0] if isinstance(size, list | tuple) and size else size
    return size if isinstance(size, int) else None


def _patches(vision: Mapping[str, Any]) -> int | None:
    """Of a picture as large as the tower takes it, where the configuration tells."""
    side, patch = _side(vision), vision.get("patch_size")
    patch = patch[0] if isinstance(patch, list | tuple) and patch else patch
    return (side // patch) ** 2 if side and type(patch) is int and patch > 0 else None


def _token_ids(config: Mapping[str, Any]) -> dict[str, int]:
    """image_token, eos_token, ... -> id, whether the config says _id or, as older ones, _index."""
    return {
        key.rpartition("_")[0]: value
        for key, value in config.items()
        if key.endswith(("_token_id", "_token_index")) and isinstance(value, int)
    }
