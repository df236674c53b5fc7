#!/usr/bin/env bash
# GGUF files of Llama 3.1 and later keep the scaling of RoPE as a tensor, rope_freqs.weight, by which
# llama.cpp divides the frequencies; those of Gemma 3 from 4B (the decoder of a vision-language model)
# as rope.scaling.type and rope.scaling.factor. transformers' from_pretrained(gguf_file=...) reads
# neither: the model has RoPE without scaling, and other logits at every length. Nothing is said of
# it. The same files without scaling are read exactly.
#
# Guess before running: the scaling is applied, or the file is refused.
# Found with transformers 5.23.0 and gguf 0.19.0: rope_type "default" for both, and other logits.
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check transformers==5.23.0 torch==2.13.0 \
    gguf==0.19.0 accelerate==1.15.0
"$folder/venv/bin/python" - "$folder" 2>"$folder/said" <<'PYTHON'
import sys
from importlib.metadata import version

import gguf
import torch
from transformers import (AutoModelForCausalLM, Gemma3ForCausalLM, Gemma3TextConfig, LlamaConfig,
                          LlamaForCausalLM)

torch.manual_seed(0)
shared = dict(hidden_size=64, intermediate_size=64, num_hidden_layers=6, vocab_size=99, head_dim=16,
              num_attention_heads=4, num_key_value_heads=2, initializer_range=0.1,
              max_position_embeddings=512)
none = {"rope_type": "default", "rope_theta": 500000.0}
llama3 = {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0,
          "high_freq_factor": 4.0, "original_max_position_embeddings": 64}
linear = {"rope_type": "linear", "rope_theta": 500000.0, "factor": 8.0}


def written(model, arch, scaling):
    """As llama.cpp's converter writes the model."""
    config = model.config
    writer = gguf.GGUFWriter(f"{sys.argv[1]}/model.gguf", arch)
    writer.add_name("small")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_rope_freq_base(500000.0)
    if arch == "gemma3":
        writer.add_sliding_window(config.sliding_window)
    if scaling is linear:
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(scaling["factor"])
    if scaling is llama3:
        bare = 500000.0 ** -(torch.arange(0, config.head_dim, 2) / config.head_dim)
        writer.add_tensor("rope_freqs.weight", (bare / model.model.rotary_emb.inv_freq).numpy())
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[arch.upper()], config.num_hidden_layers)
    for name, tensor in model.state_dict().items():
        if arch == "llama" and name.endswith(("q_proj.weight", "k_proj.weight")):
            halves = tensor.view(-1, 2, config.head_dim // 2, tensor.shape[1])
            tensor = halves.transpose(1, 2).reshape(tensor.shape)
        if arch == "gemma3" and name.endswith("norm.weight"):
            tensor = tensor + 1
        if arch != "gemma3" or name != "lm_head.weight":
            writer.add_tensor(names.get_name(name, (".weight",)), tensor.contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@torch.no_grad()
def logits(model, length):
    return model(torch.arange(length)[None] % 99).logits[0, -1]


print("transformers", version("transformers"), "gguf", version("gguf"))
for arch, scaling in (("llama", none), ("llama", llama3), ("gemma3", none), ("gemma3", linear)):
    if arch == "llama":
        config = LlamaConfig(**shared, rope_parameters=scaling)
        model = LlamaForCausalLM(config).eval()
    else:
        parameters = {"full_attention": scaling, "sliding_attention": none | {"rope_theta": 10000.0}}
        config = Gemma3TextConfig(**shared, rope_parameters=parameters, sliding_window=64)
        model = Gemma3ForCausalLM(config).eval()
    written(model, arch, scaling)
    read = AutoModelForCausalLM.from_pretrained(
        sys.argv[1], gguf_file="model.gguf", dtype=torch.float32)
    found = read.config.rope_parameters
    found = found.get("full_attention", found)["rope_type"]
    apart = [float((logits(model, n) - logits(read, n)).abs().max()) for n in (8, 200)]
    print(f"{arch}, written with RoPE {scaling['rope_type']}, read with {found}: logits up to "
          f"{float(logits(model, 200).abs().max()):.2f} are {apart[0]:.3f} (8 tokens) and "
          f"{apart[1]:.3f} (200 tokens) apart")
    assert found == "default"
    assert max(apart) < 1e-4 if scaling is none else min(apart) > 1e-2, apart
PYTHON
if grep -i -E "rope|rotary|scaling|freqs" "$folder/said"; then
    echo "the above is said of it now" >&2
    exit 1
fi
echo "as described"
