"""GGUF files of small checkpoints, written by gguf-py as llama.cpp's converters lay them out.

Names are those of gguf-py's own tables, types are quantized and read back by gguf-py. What is
turned, cut apart and called otherwise is as in llama.cpp's conversion/llama.py, qwenvl.py and
qwen3vl.py, smolvlm.py, and in tools/mtmd/legacy-models/convert_image_encoder_to_gguf.py for LLaVA.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Type

ARCHITECTURES = {
    "llava": gguf.MODEL_ARCH.LLAMA,
    "idefics3": gguf.MODEL_ARCH.LLAMA,
    "smolvlm": gguf.MODEL_ARCH.LLAMA,
    "qwen2_5_vl": gguf.MODEL_ARCH.QWEN2VL,
    "qwen3_vl": gguf.MODEL_ARCH.QWEN3VL,
}
PROJECTORS = {
    "qwen2_5_vl": gguf.VisionProjectorType.QWEN25VL,
    "qwen3_vl": gguf.VisionProjectorType.QWEN3VL,
}
VISION = ("vision_tower", "visual", "multi_modal_projector", "vision_model", "connector")
TypeOf = Callable[[str, tuple[int, ...]], Type]


def all_of(kind: Type, output: Type | None = None) -> TypeOf:
    """Matrices of one type, but for the output's."""
    return lambda name, _: output if output is not None and name == "output.weight" else kind


@dataclass
class Written:
    """Two files, and what their tensors mean by the names of transformers' parameters."""

    model: Path
    mmproj: Path
    meant: dict[str, torch.Tensor] = field(default_factory=dict)


@dataclass
class _Writer:
    """Adds tensors to a file, and notes what they mean."""

    file: gguf.GGUFWriter
    type_of: TypeOf
    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))

    def add(self, name: str, values: np.ndarray) -> np.ndarray:
        """Store `values` as the type that the name calls for; returns what is stored."""
        kind = Type.F32 if values.ndim == 1 else self.type_of(name, values.shape)
        values = np.ascontiguousarray(values, np.float32)
        if kind in (Type.Q4_K, Type.Q6_K):  # gguf-py reads these, and does not write them
            data = random_blocks(self.rng, kind, values.shape)
        else:
            data = gguf.quants.quantize(values, kind)
        self.file.add_tensor(name, data, raw_dtype=kind)
        return gguf.quants.dequantize(data, kind).reshape(values.shape).astype(np.float32)

    def close(self) -> None:
        self.file.write_header_to_file()
        self.file.write_kv_data_to_file()
        self.file.write_tensors_to_file()
        self.file.close()


def random_blocks(rng: np.random.Generator, kind: Type, shape: tuple[int, ...]) -> np.ndarray:
    """Random codes and scales of a type, of the size of small weights."""
    values, nbytes = gguf.GGML_QUANT_SIZES[kind]
    blocks = rng.integers(0, 256, (*shape[:-1], shape[-1] // values, nbytes), dtype=np.uint8)
    places = {Type.Q4_K: (0, 2), Type.Q6_K: (208,), Type.Q4_0: (0,), Type.Q8_0: (0,)}[kind]
    largest = {Type.Q4_K: 63 * 15, Type.Q6_K: 127 * 32, Type.Q4_0: 8, Type.Q8_0: 127}[kind]
    for place in places:
        scale = rng.uniform(-0.4, 0.4, blocks.shape[:-1]) / largest
        blocks[..., place : place + 2] = scale.astype(np.float16)[..., None].view(np.uint8)
    return blocks.reshape(*shape[:-1], -1)


def write_files(
    model: Any,
    folder: Path,
    types: TypeOf,
    mmproj: TypeOf | None = None,
    words: Callable[[gguf.GGUFWriter], None] | None = None,
    swapped: bool = True,
) -> Written:
    """The files of `model` (transformers', in fp32) in `folder`.

    Args:
        types: of the decoder's matrices; `mmproj` of the encoder's, all in F16 by default.
        words: writes the tokenizer.
        swapped: LLaVA's ffn_down and ffn_up as its old converter calls them.
    """
    family = model.config.model_type
    written = Written(folder / "model.gguf", folder / "mmproj-model.gguf")
    state = {name: tensor.float().numpy() for name, tensor in model.state_dict().items()}
    tied = set(getattr(model, "all_tied_weights_keys", None) or {})
    text = gguf.GGUFWriter(written.model, gguf.MODEL_ARCH_NAMES[ARCHITECTURES[family]])
    _text_values(text, model.config)
    if words is not None:
        words(text)
    _write_text(_Writer(text, types), model.config, state, tied, written)
    encoder = gguf.GGUFWriter(written.mmproj, "clip")
    writer = _Writer(encoder, mmproj or all_of(Type.F16))
    if family == "llava":
        _llava_values(encoder, model.config)
        _write_llava(writer, model.config, state, written, swapped)
    elif family in ("idefics3", "smolvlm"):
        _idefics3_values(encoder, model.config)
        _write_idefics3(writer, model.config, state, written)
    else:
        _qwen_values(encoder, model.config)
        _write_qwen(writer, model.config, state, written)
    return written


def _text_values(file: gguf.GGUFWriter, config: Any) -> None:
    text = config.text_config
    file.add_context_length(text.max_position_embeddings)
    file.add_embedding_length(text.hidden_size)
    file.add_block_count(text.num_hidden_layers)
    file.add_feed_forward_length(text.intermediate_size)
    file.add_head_count(text.num_attention_heads)
    file.add_head_count_kv(text.num_key_value_heads)
    size = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    if getattr(text, "head_dim", None):
        file.add_key_length(size)
        file.add_value_length(size)
    rope = text.rope_parameters
    file.add_rope_freq_base(rope["rope_theta"])
    if "mrope_section" in rope:
        file.add_rope_dimension_sections([*rope["mrope_section"], 0])
    else:
        file.add_vocab_size(text.vocab_size)
        file.add_rope_dimension_count(size)
    file.add_layer_norm_rms_eps(text.rms_norm_eps)
    if config.model_type == "qwen3_vl":
        file.add_num_deepstack_layers(len(config.vision_config.deepstack_visual_indexes))


def qwen_words(tokenizer: Any, template: str, size: int) -> Callable[[gguf.GGUFWriter], None]:
    """Writes a byte-level tokenizer as _set_vocab_gpt2 does, filled up to `size`."""
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    texts = {number: text for text, number in tokenizer.get_vocab().items()}
    special = {one["id"]: one["special"] for one in state["added_tokens"]}
    kinds = {True: gguf.TokenType.CONTROL, False: gguf.TokenType.USER_DEFINED}

    def write(file: gguf.GGUFWriter) -> None:
        file.add_tokenizer_model("gpt2")
        file.add_tokenizer_pre("qwen2")
        file.add_token_list([texts.get(number, f"[PAD{number}]") for number in range(size)])
        file.add_token_types(
            [
                gguf.TokenType.UNUSED
                if number not in texts
                else kinds[special[number]]
                if number in special
                else gguf.TokenType.NORMAL
                for number in range(size)
            ]
        )
        file.add_token_merges([" ".join(pair) for pair in state["model"]["merges"]])
        file.add_eos_token_id(tokenizer.eos_token_id)
        file.add_pad_token_id(tokenizer.pad_token_id)
        file.add_add_bos_token(False)
        file.add_chat_template(template)

    return write


def llama_words(pieces: Mapping[str, float]) -> Callable[[gguf.GGUFWriter], None]:
    """Writes pieces, of which the first are <unk>, <s>, </s>, as _set_vocab_sentencepiece does."""
    kinds = {"<unk>": gguf.TokenType.UNKNOWN, "<s>": gguf.TokenType.CONTROL}
    kinds["</s>"] = gguf.TokenType.CONTROL
    byte = re.compile("<0x[0-9A-F]{2}>")

    def write(file: gguf.GGUFWriter) -> None:
        file.add_tokenizer_model("llama")
        file.add_tokenizer_pre("default")
        file.add_token_list(list(pieces))
        file.add_token_scores(list(pieces.values()))
        other = {True: gguf.TokenType.BYTE, False: gguf.TokenType.NORMAL}
        file.add_token_types(
            [kinds.get(piece, other[byte.fullmatch(piece) is not None]) for piece in pieces]
        )
        file.add_unk_token_id(0)
        file.add_bos_token_id(1)
        file.add_eos_token_id(2)

    return write


def _write_text(
    writer: _Writer, config: Any, state: Mapping[str, np.ndarray], tied: set[str], written: Written
) -> None:
    text = config.text_config
    names = gguf.get_tensor_name_map(ARCHITECTURES[config.model_type], text.num_hidden_layers)
    heads = {"q_proj": text.num_attention_heads, "k_proj": text.num_key_value_heads}
    for key, values in state.items():
        if any(part in key for part in VISION) or key in tied:
            continue
        theirs = re.sub(r"^model\.(language|text)_model\.", "model.", key)
        name = names.get_name(theirs, try_suffixes=(".weight", ".bias"))
        assert name is not None, key
        llama = ARCHITECTURES[config.model_type] == gguf.MODEL_ARCH.LLAMA
        turned = heads.get(key.split(".")[-2]) if llama else None
        if turned is None:
            meant = writer.add(name, values)
        else:
            meant = permute_back(writer.add(name, permute(values, turned)), turned)
        written.meant[key] = torch.from_numpy(meant)
    writer.close()


def permute(weights: np.ndarray, heads: int) -> np.ndarray:
    """As LlamaModel.permute does."""
    halves = weights.reshape(heads, 2, weights.shape[0] // heads // 2, *weights.shape[1:])
    return halves.swapaxes(1, 2).reshape(weights.shape)


def permute_back(weights: np.ndarray, heads: int) -> np.ndarray:
    """The inverse of `permute`."""
    pairs = weights.reshape(heads, weights.shape[0] // heads // 2, 2, *weights.shape[1:])
    return pairs.swapaxes(1, 2).reshape(weights.shape)


def _llava_values(file: gguf.GGUFWriter, config: Any) -> None:
    vision = config.vision_config
    file.add_bool("clip.has_text_encoder", False)
    file.add_bool("clip.has_vision_encoder", True)
    file.add_bool("clip.has_llava_projector", True)
    file.add_string("clip.projector_type", "mlp")
    file.add_uint32("clip.vision.image_size", vision.image_size)
    file.add_uint32("clip.vision.patch_size", vision.patch_size)
    file.add_uint32("clip.vision.embedding_length", vision.hidden_size)
    file.add_uint32("clip.vision.feed_forward_length", vision.intermediate_size)
    file.add_uint32("clip.vision.projection_dim", vision.projection_dim)
    file.add_uint32("clip.vision.attention.head_count", vision.num_attention_heads)
    file.add_float32("clip.vision.attention.layer_norm_epsilon", vision.layer_norm_eps)
    file.add_uint32("clip.vision.block_count", vision.num_hidden_layers - 1)
    file.add_array("clip.vision.image_mean", [0.48145466, 0.4578275, 0.40821073])
    file.add_array("clip.vision.image_std", [0.26862954, 0.26130258, 0.27577711])
    file.add_bool("clip.use_gelu", vision.hidden_act == "gelu")


def _write_llava(
    writer: _Writer,
    config: Any,
    state: Mapping[str, np.ndarray],
    written: Written,
    swapped: bool,
) -> None:
    layers = config.vision_config.num_hidden_layers
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.MMPROJ, layers)
    other = {"ffn_up": "ffn_down", "ffn_down": "ffn_up"} if swapped else {}
    for key, values in state.items():
        # The last layer, whose state is not read, and what comes behind it are left out.
        left = (f"layers.{layers - 1}.", "post_layernorm")
        if "vision_tower" in key and not any(part in key for part in left):
            theirs = key.replace("model.vision_tower.", "vision_tower.vision_model.")
            name = str(names.get_name(theirs, try_suffixes=(".weight", ".bias")))
            *before, part, kind = name.split(".")
            name = ".".join([*before, other.get(part, part), kind])
        elif "multi_modal_projector" in key:
            _, number = key.rsplit(".", 1)[0].rsplit("_", 1)
            name = f"mm.{2 * int(number) - 2}.{key.rsplit('.', 1)[1]}"
        else:
            continue
        written.meant[key] = torch.from_numpy(writer.add(name, values))
    writer.close()


def _qwen_values(file: gguf.GGUFWriter, config: Any) -> None:
    vision, family = config.vision_config, config.model_type
    file.add_clip_projector_type(PROJECTORS[family])
    file.add_clip_has_vision_encoder(True)
    file.add_vision_projection_dim(config.text_config.hidden_size)
    side = 560
    if family == "qwen3_vl":
        side = int(vision.num_position_embeddings**0.5) * vision.patch_size
        file.add_vision_use_gelu(True)
        file.add_vision_spatial_merge_size(vision.spatial_merge_size)
        taps = vision.deepstack_visual_indexes
        file.add_vision_is_deepstack_layers([n in taps for n in range(vision.depth)])
    else:
        file.add_vision_use_silu(True)
        file.add_vision_n_wa_pattern(vision.fullatt_block_indexes[0] + 1)
    file.add_vision_image_size(side)
    file.add_vision_patch_size(vision.patch_size)
    file.add_vision_embedding_length(vision.hidden_size)
    file.add_vision_feed_forward_length(vision.intermediate_size)
    file.add_vision_block_count(vision.depth)
    file.add_vision_head_count(vision.num_heads)
    file.add_vision_attention_layernorm_eps(1e-6)
    file.add_vision_image_mean([0.48145466, 0.4578275, 0.40821073])
    file.add_vision_image_std([0.26862954, 0.26130258, 0.27577711])


def _write_qwen(
    writer: _Writer, config: Any, state: Mapping[str, np.ndarray], written: Written
) -> None:
    vision = config.vision_config
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.MMPROJ, vision.depth)

    def named(key: str) -> str:
        name = names.get_name(key, try_suffixes=(".weight", ".bias"))
        assert name is not None, key
        return name

    for key, values in state.items():
        if "visual" not in key:
            continue
        theirs = key.removeprefix("model.")
        if "deepstack_merger_list" in theirs:
            _, _, number, part, kind = theirs.split(".")
            layer = vision.deepstack_visual_indexes[int(number)]
            parts = {f"v.deepstack.{layer}.{part.removeprefix('linear_')}.{kind}": values}
        elif "qkv" in theirs and config.model_type == "qwen2_5_vl":
            cut = np.split(values, 3)
            parts = {named(theirs.replace("qkv", p)): v for p, v in zip("qkv", cut, strict=True)}
        elif "patch_embed.proj.weight" in theirs:
            first = named(theirs)
            parts = {first: values[:, :, 0], f"{first}.1": values[:, :, 1]}
        elif "merger.norm" in theirs:
            parts = {f"v.post_ln.{theirs.rsplit('.', 1)[1]}": values}
        elif "merger.linear_fc" in theirs:
            number, kind = theirs.split("linear_fc")[1].split(".")
            parts = {f"mm.{2 * int(number) - 2}.{kind}": values}
        else:
            parts = {named(theirs): values}
        found = [writer.add(name, part) for name, part in parts.items()]
        whole = np.stack(found, 2) if values.ndim == 5 else np.concatenate(found)
        written.meant[key] = torch.from_numpy(whole)
    writer.close()


def _idefics3_values(file: gguf.GGUFWriter, config: Any) -> None:
    vision = config.vision_config
    file.add_clip_projector_type(gguf.VisionProjectorType.IDEFICS3)
    file.add_clip_has_vision_encoder(True)
    file.add_vision_projection_dim(config.text_config.hidden_size)
    file.add_vision_image_size(vision.image_size)
    file.add_vision_patch_size(vision.patch_size)
    file.add_vision_embedding_length(vision.hidden_size)
    file.add_vision_feed_forward_length(vision.intermediate_size)
    file.add_vision_block_count(vision.num_hidden_layers)
    file.add_vision_head_count(vision.num_attention_heads)
    file.add_vision_attention_layernorm_eps(vision.layer_norm_eps)
    file.add_vision_projector_scale_factor(config.scale_factor)
    file.add_vision_use_gelu(True)
    file.add_vision_image_mean([0.5, 0.5, 0.5])
    file.add_vision_image_std([0.5, 0.5, 0.5])


def _write_idefics3(
    writer: _Writer, config: Any, state: Mapping[str, np.ndarray], written: Written
) -> None:
    layers = config.vision_config.num_hidden_layers
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.MMPROJ, layers)
    for key, values in state.items():
        if "vision_model" in key or "connector" in key:
            name = names.get_name(key, try_suffixes=(".weight", ".bias"))
            assert name is not None, key
            written.meant[key] = torch.from_numpy(writer.add(name, values))
    writer.close()
