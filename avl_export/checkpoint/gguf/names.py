"""Which weight of transformers' model each tensor of a GGUF file is, or is a part of.

llama.cpp's names: https://github.com/ggml-org/llama.cpp/tree/master/gguf-py/gguf, tensor_mapping.py
and constants.py; its converters say which tensors they cut apart.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

from avl_export.checkpoint.gguf.header import GgufFile
from avl_export.checkpoint.safetensors_header import CheckpointError
from avl_plugins.errors import shown

Table = Mapping[str, str]

TEXT = "model.language_model."
TEXTS: Table = dict.fromkeys(("idefics3", "smolvlm"), "model.text_model.")  # of families, else TEXT
LAYER: Table = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}

CLIP = "model.vision_tower."
LLAVA = (
    {
        "v.patch_embd": f"{CLIP}embeddings.patch_embedding",
        "v.position_embd": f"{CLIP}embeddings.position_embedding",
        "v.pre_ln": f"{CLIP}pre_layrnorm",
        "v.post_ln": f"{CLIP}post_layernorm",
        "mm.0": "model.multi_modal_projector.linear_1",
        "mm.2": "model.multi_modal_projector.linear_2",
    },
    f"{CLIP}encoder.layers.",
    {
        "ln1": "layer_norm1",
        "attn_q": "self_attn.q_proj",
        "attn_k": "self_attn.k_proj",
        "attn_v": "self_attn.v_proj",
        "attn_out": "self_attn.out_proj",
        "ln2": "layer_norm2",
        "ffn_up": "mlp.fc1",
        "ffn_down": "mlp.fc2",
    },
)
SIGLIP = "model.vision_model."
IDEFICS3 = (
    {
        "v.patch_embd": f"{SIGLIP}embeddings.patch_embedding",
        "v.position_embd": f"{SIGLIP}embeddings.position_embedding",
        "v.post_ln": f"{SIGLIP}post_layernorm",
        "mm.model.fc": "model.connector.modality_projection.proj",
    },
    f"{SIGLIP}encoder.layers.",
    LLAVA[2],
)
QWEN = "model.visual."
QWEN_BLOCK = {
    "ln1": "norm1",
    "attn_qkv": "attn.qkv",
    "attn_q": "attn.qkv",
    "attn_k": "attn.qkv",
    "attn_v": "attn.qkv",
    "attn_out": "attn.proj",
    "ln2": "norm2",
}
QWEN25 = (
    {
        "v.patch_embd": f"{QWEN}patch_embed.proj",
        "v.post_ln": f"{QWEN}merger.ln_q",
        "mm.0": f"{QWEN}merger.mlp.0",
        "mm.2": f"{QWEN}merger.mlp.2",
    },
    f"{QWEN}blocks.",
    {
        **QWEN_BLOCK,
        "ffn_gate": "mlp.gate_proj",
        "ffn_up": "mlp.up_proj",
        "ffn_down": "mlp.down_proj",
    },
)
QWEN3 = (
    {
        "v.patch_embd": f"{QWEN}patch_embed.proj",
        "v.position_embd": f"{QWEN}pos_embed",
        "v.post_ln": f"{QWEN}merger.norm",
        "mm.0": f"{QWEN}merger.linear_fc1",
        "mm.2": f"{QWEN}merger.linear_fc2",
    },
    f"{QWEN}blocks.",
    {**QWEN_BLOCK, "ffn_up": "mlp.linear_fc1", "ffn_down": "mlp.linear_fc2"},
)
DEEPSTACK: Table = {"norm": "norm", "fc1": "linear_fc1", "fc2": "linear_fc2"}
ENCODERS: Mapping[str, tuple[Table, str, Table]] = {
    "llava": LLAVA,
    "idefics3": IDEFICS3,
    "smolvlm": IDEFICS3,
    "qwen2_5_vl": QWEN25,
    "qwen3_vl": QWEN3,
}
ROPE = "rope_freqs.weight"  # factors that a configuration's rope_scaling makes anew


def text_names(file: GgufFile, family: str) -> dict[str, str]:
    """The names of a decoder's weights by those of its tensors.

    Raises:
        CheckpointError: a tensor that no weight of such a decoder is.
    """
    prefix = TEXTS.get(family, TEXT)
    top = {
        "token_embd": f"{prefix}embed_tokens",
        "output_norm": f"{prefix}norm",
        "output": "lm_head",
    }
    return _named(file, r"blk", (top, f"{prefix}layers.", LAYER), {})


def encoder_names(file: GgufFile, family: str) -> dict[str, str]:
    """The names of an encoder's and its projector's weights by those of their tensors.

    Several tensors may be one weight's parts; they then are in the order of its rows.

    Raises:
        CheckpointError: a tensor that no weight of such an encoder is.
    """
    top, blocks, block = ENCODERS[family]
    own: dict[str, str] = {}
    if family == "llava":
        own["v.class_embd"] = f"{CLIP}embeddings.class_embedding"
        if _is_swapped(file):
            block = {**block, "ffn_up": block["ffn_down"], "ffn_down": block["ffn_up"]}
    elif family.startswith("qwen"):  # a frame's half of a kernel over two frames
        own["v.patch_embd.weight.1"] = f"{QWEN}patch_embed.proj.weight"
    if family == "qwen3_vl":
        own |= _deepstack(file.tensors)
    return _named(file, r"v\.blk", (top, blocks, block), own)


def _named(
    file: GgufFile, blk: str, tables: tuple[Table, str, Table], own: Mapping[str, str]
) -> dict[str, str]:
    top, blocks, block = tables
    found: dict[str, str] = {}
    for name in file.tensors:
        stem, _, kind = name.rpartition(".")
        layer = re.fullmatch(rf"{blk}\.(\d{{1,4}})\.(\w+)", stem)
        if name in own:
            found[name] = own[name]
        elif kind in ("weight", "bias") and stem in top:
            found[name] = f"{top[stem]}.{kind}"
        elif kind in ("weight", "bias") and layer is not None and layer[2] in block:
            found[name] = f"{blocks}{int(layer[1])}.{block[layer[2]]}.{kind}"
        elif name != ROPE:
            raise CheckpointError(
                f"{file.path}: expected tensors of a model that avl can export, found "
                f"{shown(name, 80)}, which it does not know; use the checkpoint that the file was "
                "made from"
            )
    return dict(sorted(found.items(), key=lambda item: _order(item[0])))


def _order(name: str) -> tuple[str, int]:
    """Parts of a weight in the order of its rows: queries, keys, values."""
    stem, _, part = name.rpartition(".attn_")
    return (stem, "qkv".find(part[:1])) if stem else (name, 0)


def _is_swapped(file: GgufFile) -> bool:
    """Whether ffn_down is the first matrix, as in files of llama.cpp's older converter."""
    down = file.tensors.get("v.blk.0.ffn_down.weight")
    norm = file.tensors.get("v.blk.0.ln2.weight")
    if down is None or norm is None or len(down.sizes) != 2:
        return False
    outputs, inputs = down.sizes
    return inputs == norm.sizes[0] != outputs


def _deepstack(tensors: Collection[str]) -> dict[str, str]:
    """Names of the mergers, which llama.cpp counts by the blocks that they follow."""
    pattern = re.compile(r"v\.deepstack\.(\d{1,4})\.(\w+)\.(weight|bias)")
    found = [(name, pattern.fullmatch(name)) for name in tensors]
    parts = [(name, m) for name, m in found if m is not None and m[2] in DEEPSTACK]
    layers = sorted({int(m[1]) for _, m in parts})
    return {
        name: f"{QWEN}deepstack_merger_list.{layers.index(int(m[1]))}.{DEEPSTACK[m[2]]}.{m[3]}"
        for name, m in parts
    }
