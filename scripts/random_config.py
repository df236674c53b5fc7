"""The JSON files of a checkpoint of any family and size, which `make_random.py` writes weights for.

What a shape does not say is as in the family's smallest known model, the vision tower aside, which
is small.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from typing import Any

from avl_export.checkpoint.aliases import known_files
from export_size import special_tokens

FAMILIES = {
    "llava": "llava-7b",
    "vipllava": "vip-llava-7b",
    "llava_next": "llava-next-7b",
    "llava_next_video": "llava-next-video-7b",
    "llava_onevision": "llava-onevision-0.5b",
    "video_llava": "video-llava-7b",
    "internvl": "internvl3-2b",
    "qianfan_ocr": "qianfan-ocr-4b",
    "mistral3": "ministral-3-3b",
    "lighton_ocr": "lighton-ocr-1b",
    "idefics3": "smolvlm-256m",
    "smolvlm": "smolvlm2-256m",
    "paddleocr_vl": "paddleocr-vl-0.9b",
    "glm_ocr": "glm-ocr-0.9b",
    "glm4v": "glm-4.6v-flash",
    "granite4_vision": "granite-vision-4.1-4b",
    "qwen2_vl": "qwen2-vl-2b",
    "qwen2_5_vl": "qwen2.5-vl-3b",
    "qwen3_vl": "qwen3-vl-2b",
    "qwen3_vl_moe": "qwen3-vl-30b-a3b",
    "qwen3_5": "qwen3.5-0.8b",
    "gemma3": "gemma-3-4b",
    "paligemma": "paligemma-3b",
    "gemma4": "gemma-4-e2b",
    "lfm2_vl": "lfm2.5-vl-450m",
    "minicpmv4_6": "minicpm-v-4.6",
}
DTYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
CHOSEN = ("llava", "llava_next")  # families whose pictures have as many tokens as is asked for
PATCH = 14  # pixels, of their towers


@dataclasses.dataclass(frozen=True, slots=True)
class Shape:
    """What a checkpoint shall look like.

    Attributes:
        hidden, intermediate, layers, heads, kv_heads, vocabulary, context: of the decoder.
        image_tokens: of one picture or tile, a square number; None for the family's own.
        vision_hidden, vision_layers: of the tower, heads of 64.
        dtype: fp32, fp16 or bf16, as stored.
    """

    family: str = "llava"
    hidden: int = 1024
    intermediate: int = 2816
    layers: int = 8
    heads: int = 16
    kv_heads: int = 16
    vocabulary: int = 32064
    context: int = 8192
    image_tokens: int | None = None
    vision_hidden: int = 256
    vision_layers: int = 2
    dtype: str = "fp32"


class ShapeError(SystemExit):
    """A shape that its family cannot have."""


def files_of(shape: Shape) -> dict[str, Any]:
    """The checkpoint's JSON files.

    Raises:
        ShapeError: with the reason.
    """
    if shape.hidden % shape.heads or shape.heads % shape.kv_heads or shape.vision_hidden % 64:
        raise ShapeError(
            f"expected whole multiples: hidden {shape.hidden} of heads {shape.heads}, heads of KV "
            f"heads {shape.kv_heads}, vision hidden {shape.vision_hidden} of 64"
        )
    files: dict[str, Any] = json.loads(json.dumps(known_files(FAMILIES[shape.family])))
    config = files["config.json"]
    text = config.get("text_config", config)
    text |= {
        "hidden_size": shape.hidden,
        "intermediate_size": shape.intermediate,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "vocab_size": shape.vocabulary,
        "max_position_embeddings": shape.context,
        "tie_word_embeddings": False,
    }
    text.pop("rope_scaling" if shape.family == "internvl" else "", None)
    if "full_attention_interval" in text:  # two layers of attention at least
        most = max(1, shape.layers // 2)
        text["full_attention_interval"] = min(text["full_attention_interval"], most)
    if "layer_types" in text:
        text["layer_types"] = _kinds(text["layer_types"], shape.layers)
    if "num_kv_shared_layers" in text:  # the first two, one of each type, keep rows of their own
        most = max(0, shape.layers - 2)
        text["num_kv_shared_layers"] = min(text["num_kv_shared_layers"], most)
    if "vocab_size_per_layer_input" in text:
        text["vocab_size_per_layer_input"] = shape.vocabulary
    if "num_experts" in text:  # a token goes through as much as in a dense layer
        text["num_experts"] = 4 * text["num_experts_per_tok"]
        text["moe_intermediate_size"] = shape.intermediate // text["num_experts_per_tok"]
    if "head_dim" in text:
        text["head_dim"] = shape.hidden // shape.heads
    for rope in (text.get("rope_scaling"), text.get("rope_parameters")):
        if rope is not None and "mrope_section" in rope:
            turned = rope.get("partial_rotary_factor", text.get("partial_rotary_factor", 1.0))
            half = int(shape.hidden // shape.heads * turned) // 2
            rope["mrope_section"] = _sections(rope["mrope_section"], half)
    config["tie_word_embeddings"] = False
    config["dtype"] = text["dtype"] = DTYPES[shape.dtype]
    config["vision_config"] |= _vision(shape, config["vision_config"])
    if "audio_config" in config:  # nothing reads it
        config["audio_config"] |= {"hidden_size": 64, "num_hidden_layers": 1}
    config |= _features(shape, config)
    if shape.image_tokens is not None:
        _resize(files, shape)
    return _renumber(files, shape.vocabulary)


def _vision(shape: Shape, known: Mapping[str, Any]) -> dict[str, Any]:
    """Changes to a tower of any kind."""
    wide, deep = shape.vision_hidden, shape.vision_layers
    sizes: dict[str, Any] = {"hidden_size": wide, "intermediate_size": 4 * wide}
    if "depth" not in known:
        sizes |= {"num_hidden_layers": deep, "num_attention_heads": wide // 64}
        if "num_key_value_heads" in known:
            sizes["num_key_value_heads"] = wide // 64
        return sizes
    sizes |= {"depth": deep, "num_heads": wide // 64, "out_hidden_size": shape.hidden}
    if "fullatt_block_indexes" in known:
        sizes["fullatt_block_indexes"] = [deep - 1]
    if "deepstack_visual_indexes" in known:
        sizes["deepstack_visual_indexes"] = [0]
    return sizes


def _features(shape: Shape, known: Mapping[str, Any]) -> dict[str, Any]:
    """Where the tower's features come from and go to, with other numbers of layers."""
    deep, last = shape.vision_layers, shape.layers - 1
    found: dict[str, Any] = {}
    if isinstance(known.get("vision_feature_layer"), list):
        asked = known["vision_feature_layer"]
        found["vision_feature_layer"] = [min(max(n, -deep - 1), deep) for n in asked]
    if "insert_layer_id" in known:
        found["insert_layer_id"] = min(known["insert_layer_id"], deep - 1)
    if "deepstack_layer_map" in known:
        found["deepstack_layer_map"] = [
            [max(state, -deep - 1), min(layer, last)]
            for state, layer in known["deepstack_layer_map"]
        ]
        found["spatial_target_layers"] = [min(n, last) for n in known["spatial_target_layers"]]
    return found


def _kinds(known: list[str], layers: int) -> list[str]:
    """Types of layers, attention in every other one if there are fewer than known."""
    if layers == len(known):
        return known
    others = next((kind for kind in known if kind != "full_attention"), "full_attention")
    return ["full_attention" if n % 2 else others for n in range(layers)]


def _sections(known: list[int], half: int) -> list[int]:
    """M-RoPE's share of each axis, for heads of 2 x `half`."""
    scaled = [part * half // sum(known) for part in known]
    return [half - sum(scaled[1:]), *scaled[1:]]


def _resize(files: dict[str, Any], shape: Shape) -> None:
    """Give pictures and tiles as many tokens as asked for."""
    side = math.isqrt(shape.image_tokens or 0)
    if shape.family not in CHOSEN:
        raise ShapeError(
            f"expected a family of {', '.join(CHOSEN)} for pictures of {shape.image_tokens} tokens "
            f"(--image-tokens, or the preset's), found {shape.family}; choose one, or leave "
            "these out for the family's own"
        )
    if side < 1 or side**2 != shape.image_tokens:
        raise ShapeError(
            f"--image-tokens: expected a square number, found {shape.image_tokens}; choose "
            f"{max(1, side) ** 2} or {(side + 1) ** 2}"
        )
    config, pictures = files["config.json"], files["preprocessor_config.json"]
    before, pixels = config["vision_config"]["image_size"], side * PATCH
    config["vision_config"]["image_size"] = pixels
    config["image_seq_length"] = shape.image_tokens
    pictures["size"] = {"shortest_edge": pixels}
    pictures["crop_size"] = {"height": pixels, "width": pixels}
    for part in (config, pictures):
        if "image_grid_pinpoints" in part:
            part["image_grid_pinpoints"] = [
                [edge // before * pixels for edge in size] for size in part["image_grid_pinpoints"]
            ]


def _renumber(files: dict[str, Any], vocabulary: int) -> dict[str, Any]:
    """Move special tokens to the end of a vocabulary that is too small for their ids."""
    used = set(special_tokens(files))
    _tokens(files["config.json"], used.add)
    if max(used) < vocabulary:
        return files
    if vocabulary < len(used) + 8:
        raise ShapeError(f"--vocab: expected at least {len(used) + 8}, found {vocabulary}")
    ids = {old: vocabulary - len(used) + rank for rank, old in enumerate(sorted(used))}
    _tokens(files["config.json"], ids.__getitem__)
    _tokens(files.get("generation_config.json", {}), ids.__getitem__)
    for token in files["tokenizer.json"]["added_tokens"]:
        token["id"] = ids[token["id"]]
    return files


def _tokens(config: dict[str, Any], change: Any) -> None:
    """Call `change` with every token id; where it returns one, that takes its place."""
    for key, value in config.items():
        if isinstance(value, dict):
            _tokens(value, change)
        elif key.endswith(("_token_id", "_token_index")):
            many = isinstance(value, list)
            new = [change(token) for token in (value if many else [value])]
            if None not in new:
                config[key] = new if many else new[0]
