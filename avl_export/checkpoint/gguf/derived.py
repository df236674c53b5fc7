"""config.json and the files beside it, as far as two GGUF files tell what would be in them.

What they do not tell is a family's own and is the same in all its checkpoints that avl knows: how
pictures are resized, and constants of an encoder. A decoder with anything else than these files
can say is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from avl_export.checkpoint.aliases import Files, stand_ins
from avl_export.checkpoint.gguf.config import ASK, Told, text_values
from avl_export.checkpoint.gguf.header import GgufFile
from avl_export.checkpoint.gguf.names import ROPE
from avl_export.checkpoint.gguf.vocabulary import Vocabulary, read_vocabulary
from avl_export.checkpoint.safetensors_header import CheckpointError
from avl_plugins.errors import quoted, shown

PREPROCESSOR = "preprocessor_config.json"
TEXT_TYPES = {"llava": "llama", "qwen2_5_vl": "qwen2_5_vl_text", "qwen3_vl": "qwen3_vl_text"}
IMAGE = ("<image>", "<unk>")  # what stands for a picture, the first that there is
QWEN_TOKENS = {
    "image_token_id": "<|image_pad|>",
    "video_token_id": "<|video_pad|>",
    "vision_start_token_id": "<|vision_start|>",
    "vision_end_token_id": "<|vision_end|>",
}
WINDOW = 112  # pixels of Qwen2.5-VL's windows
TOKENS_PER_SECOND = 2
GELU = "gelu_pytorch_tanh"


def derived_files(text: GgufFile, encoder: GgufFile, family: str) -> Files:
    """JSON files by their names, as a checkpoint of `family` would have them.

    Raises:
        CheckpointError: the files do not tell enough, or something that no such file can say.
    """
    if family not in _ENCODERS:
        raise CheckpointError(
            f"{encoder.path}: expected --config, as files of {family} do not tell whether they are "
            f"an Idefics3's or a SmolVLM's, nor all of how pictures are cut, found none; {ASK}"
        )
    words = read_vocabulary(text)
    tokens = {
        "bos_token_id": words.bos,
        "eos_token_id": list(words.ends),
        "pad_token_id": words.pad,
    }
    config: dict[str, Any] = {
        "model_type": family,
        "dtype": "float16",
        "text_config": _text(text, family) | tokens,
        "tie_word_embeddings": "output.weight" not in text.tensors,
        **_ENCODERS[family](encoder, words),
    }
    files = dict(stand_ins(config, (PREPROCESSOR,)))
    for name in [name for name in files if name != "processor_config.json"]:
        files[name] = {**files[name], **_shades(encoder)}
    files[PREPROCESSOR] = {**files[PREPROCESSOR], **_limits(encoder)}
    template = text.values.get("tokenizer.chat_template")
    settings = dict(words.settings)
    if isinstance(template, str) and template:
        settings["chat_template"] = template
    return {
        **files,
        "config.json": config,
        "generation_config.json": tokens,
        "tokenizer_config.json": settings,
        "tokenizer.json": words.tokenizer,
    }


def _shades(file: GgufFile) -> dict[str, Any]:
    """What pictures are normalized with."""
    told, found = _tower(file), {}
    for name in ("image_mean", "image_std"):
        values = told.get(name, None)
        if values is not None:
            if not isinstance(values, np.ndarray) or values.shape != (3,):
                raise told.unfit(name, "three numbers", values)
            found[name] = [float(str(one)) for one in values]
    return found


def _limits(file: GgufFile) -> dict[str, Any]:
    """The fewest and most pixels of a picture, where the file tells."""
    told = _tower(file)
    names = ("min_pixels", "max_pixels")
    return {n: told.number(f"image_{n}") for n in names if told.get(f"image_{n}", None)}


def _text(file: GgufFile, family: str) -> dict[str, Any]:
    """The decoder's part of config.json."""
    values = text_values(file)
    told = Told(file, str(file.values["general.architecture"]))
    theta = values.pop("rope_theta")
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": theta}
    scaling = told.get("rope.scaling.type", "none")
    if scaling == "linear":
        rope |= {"rope_type": "linear", "factor": told.real("rope.scaling.factor")}
    elif scaling != "none" or ROPE in file.tensors:
        raise CheckpointError(
            f"{file.path}: expected RoPE without factors of its own, found {quoted(scaling, 40)}; "
            f"{ASK}"
        )
    size = values["head_dim"]
    if told.number("rope.dimension_count", size) != size:
        raise told.unfit("rope.dimension_count", f"{size} as heads have", "another")
    for name in ("expert_count", "attention.sliding_window"):
        if told.get(name, 0):
            raise told.unfit(name, "0", told.get(name, 0))
    sections = told.numbers("rope.dimension_sections")
    if family != "llava":
        rope["mrope_section"] = sections[:3]
    if family == "qwen3_vl":
        rope["mrope_interleaved"] = True
    table = file.tensors.get("token_embd.weight")
    if table is None:
        raise CheckpointError(
            f"{file.path}: expected token_embd.weight, found no such tensor; use another file"
        )
    own = {"attention_bias": "blk.0.attn_q.bias" in file.tensors} if family != "qwen2_5_vl" else {}
    return {
        "model_type": TEXT_TYPES[family],
        "hidden_act": "silu",
        "max_position_embeddings": told.number("context_length"),
        "vocab_size": table.sizes[0],
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "rope_parameters": rope,
        **values,
        **own,
    }


def _llava(file: GgufFile, words: Vocabulary) -> dict[str, Any]:
    told = _tower(file)
    if file.values.get("clip.vision.mm_patch_merge_type", "flat") != "flat" or any(
        "newline" in name for name in file.tensors
    ):
        raise CheckpointError(
            f"{file.path}: expected the encoder of a LLaVA-1.5, found that of a LLaVA-NeXT; use "
            "the checkpoint that the file was made from"
        )
    if "v.class_embd" not in file.tensors:
        raise CheckpointError(f"{file.path}: expected a CLIP tower, found no v.class_embd; {ASK}")
    image = next((words.ids[one] for one in IMAGE if one in words.ids), None)
    if image is None:
        raise CheckpointError(
            f"{file.path}: expected a token {' or '.join(IMAGE)} in the decoder's file, which "
            f"stands for a picture, found none; {ASK}"
        )
    blocks = told.number("block_count")
    layers = told.numbers("feature_layer")
    gelu, silu = (bool(file.values.get(f"clip.use_{name}")) for name in ("gelu", "silu"))
    return {
        "image_token_index": image,
        "projector_hidden_act": "gelu",
        "vision_feature_select_strategy": "default",
        # The converter leaves the layers out whose states are not read.
        "vision_feature_layer": layers or -1,
        "vision_config": {
            "model_type": "clip_vision_model",
            "hidden_act": "gelu" if gelu else "silu" if silu else "quick_gelu",
            "hidden_size": told.number("embedding_length"),
            "image_size": told.number("image_size"),
            "intermediate_size": told.number("feed_forward_length"),
            "layer_norm_eps": told.real("attention.layer_norm_epsilon", 1e-5),
            "num_attention_heads": told.number("attention.head_count"),
            "num_hidden_layers": blocks,
            "patch_size": told.number("patch_size"),
        },
    }


def _qwen25(file: GgufFile, words: Vocabulary) -> dict[str, Any]:
    told = _tower(file)
    vision = _qwen(told)
    every = told.number("n_wa_pattern")
    full = [n for n in range(vision["depth"]) if (n + 1) % every == 0]
    return {
        **_tokens(file, words),
        "vision_config": {
            **vision,
            "model_type": "qwen2_5_vl",
            "hidden_act": "silu",
            "fullatt_block_indexes": full,
            "window_size": told.number("window_size", WINDOW),
            "tokens_per_second": TOKENS_PER_SECOND,
        },
    }


def _qwen3(file: GgufFile, words: Vocabulary) -> dict[str, Any]:
    told = _tower(file)
    table = file.tensors.get("v.position_embd.weight")
    if table is None:
        raise CheckpointError(f"{file.path}: expected v.position_embd.weight, found none; {ASK}")
    taps = told.numbers("is_deepstack_layers")
    return {
        **_tokens(file, words),
        "vision_config": {
            **_qwen(told),
            "model_type": "qwen3_vl",
            "hidden_act": GELU,
            "num_position_embeddings": table.sizes[0],
            "deepstack_visual_indexes": [n for n, tapped in enumerate(taps) if tapped],
        },
    }


_ENCODERS = {"llava": _llava, "qwen2_5_vl": _qwen25, "qwen3_vl": _qwen3}


def _qwen(told: Told) -> dict[str, Any]:
    """What both of Qwen's encoders say, the sizes of cells by the projector's matrices."""
    width = told.number("embedding_length")
    first = told.file.tensors.get("mm.0.weight")
    last = told.file.tensors.get("mm.2.weight")
    if first is None or last is None or len(first.sizes) != 2 or len(last.sizes) != 2:
        raise CheckpointError(
            f"{told.file.path}: expected mm.0.weight and mm.2.weight, found another projector; "
            f"{ASK}"
        )
    merge = round((first.sizes[1] / width) ** 0.5)
    return {
        "depth": told.number("block_count"),
        "hidden_size": width,
        "intermediate_size": told.number("feed_forward_length"),
        "num_heads": told.number("attention.head_count"),
        "in_channels": 3,
        "out_hidden_size": last.sizes[0],
        "patch_size": told.number("patch_size"),
        "spatial_merge_size": told.number("spatial_merge_size", merge),
        "temporal_patch_size": 2 if "v.patch_embd.weight.1" in told.file.tensors else 1,
    }


def _tokens(file: GgufFile, words: Vocabulary) -> Mapping[str, int]:
    missing = [text for text in QWEN_TOKENS.values() if text not in words.ids]
    if missing:
        raise CheckpointError(
            f"{file.path}: expected a token {shown(missing[0])} in the decoder's file, found none; "
            f"{ASK}"
        )
    return {name: words.ids[text] for name, text in QWEN_TOKENS.items()}


def _tower(file: GgufFile) -> Told:
    return Told(file, "clip.vision")
