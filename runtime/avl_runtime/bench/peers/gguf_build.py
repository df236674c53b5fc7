"""Write the text decoder of a checkpoint as GGUF, for llama.cpp, offline.

Arguments: CHECKPOINT FOLDER f16|q8_0|q4_0; writes FOLDER/model.gguf and FOLDER/config.json. The
file knows no words of the vocabulary: tokens go in and come out as numbers. It is written in fp16,
and llama.cpp's own function quantizes it, with its defaults (of q4_0 the output matrix is Q6_K).
"""

from __future__ import annotations

import ctypes
import json
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from avl_runtime.bench.peers.text_model import write_text_model

ARCHITECTURES = ("llama", "mistral")  # both are llama.cpp's llama
TOP = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
LAYER = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
FILE_TYPES = {"q4_0": 2, "q8_0": 7}  # of llama.h


def main(checkpoint: Path, folder: Path, kind: str) -> None:
    """Write the text model, then its GGUF, and remove it again."""
    from safetensors.torch import load_file

    text = folder / "text"
    write_text_model(checkpoint, text)
    config = json.loads((text / "config.json").read_text())
    made = folder / "model.gguf"
    plain = made if kind == "f16" else folder / "plain.gguf"
    tensors = load_file(text / "model.safetensors")
    write(plain, config, {key: value.float().numpy() for key, value in tensors.items()})
    if plain != made:
        quantize(plain, made, FILE_TYPES[kind])
        plain.unlink()
    shutil.copy(text / "config.json", folder / "config.json")
    shutil.rmtree(text)


def write(path: Path, config: Mapping[str, Any], tensors: Mapping[str, NDArray[Any]]) -> None:
    """A GGUF file: matrices in fp16, vectors in fp32."""
    import gguf

    theta = rope_theta(config)
    writer = gguf.GGUFWriter(path, "llama")
    heads = config["num_attention_heads"]
    size = config.get("head_dim") or config["hidden_size"] // heads
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config.get("num_key_value_heads", heads))
    writer.add_key_length(size)
    writer.add_value_length(size)
    writer.add_rope_dimension_count(size)
    writer.add_rope_freq_base(theta)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    writer.add_tokenizer_model("none")
    for name, tensor in renamed(config, tensors).items():
        writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def rope_theta(config: Mapping[str, Any]) -> float:
    """The base of plain RoPE; ends the process where the decoder has another kind or type."""
    kind = config["model_type"]
    if kind not in ARCHITECTURES:
        sys.exit(
            f"expected a decoder of {', '.join(ARCHITECTURES)}, found {kind}; leave llama.cpp out"
        )
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    scaling = rope.get("rope_type", rope.get("type", "default"))
    if scaling != "default":
        sys.exit(f"expected RoPE without scaling, found {scaling}; leave llama.cpp out")
    return float(config.get("rope_theta") or rope.get("rope_theta") or 10000.0)


def renamed(
    config: Mapping[str, Any], tensors: Mapping[str, NDArray[Any]]
) -> dict[str, NDArray[Any]]:
    """Tensors by llama.cpp's names, laid out as it reads them."""
    heads = config["num_attention_heads"]
    turned = {"attn_q": heads, "attn_k": config.get("num_key_value_heads", heads)}
    found = {}
    for key, tensor in tensors.items():
        base, values = key.removesuffix(".weight"), tensor
        if base in TOP:
            name = TOP[base]
        else:
            number, _, part = base.removeprefix("model.layers.").partition(".")
            if part not in LAYER:
                sys.exit(f"expected tensors of a plain Llama, found {key}; leave llama.cpp out")
            name = f"blk.{number}.{LAYER[part]}"
            if LAYER[part] in turned:
                values = neighbours(values, turned[LAYER[part]])
        dtype = np.float32 if values.ndim == 1 else np.float16
        found[f"{name}.weight"] = np.ascontiguousarray(values, dtype)
    return found


def neighbours(weight: NDArray[Any], heads: int) -> NDArray[Any]:
    """Rows of a projection [heads * size, n] for RoPE that turns neighbours, not halves."""
    rows, columns = weight.shape
    halves = weight.reshape(heads, 2, rows // heads // 2, columns)
    return halves.swapaxes(1, 2).reshape(rows, columns)


def quantize(plain: Path, made: Path, file_type: int) -> None:
    """llama.cpp's own quantization."""
    from llama_cpp import llama_cpp as library

    asked = library.llama_model_quantize_default_params()
    asked.ftype = file_type
    status = library.llama_model_quantize(
        str(plain).encode(), str(made).encode(), ctypes.byref(asked)
    )
    if status:
        sys.exit(f"llama_model_quantize failed with status {status}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
