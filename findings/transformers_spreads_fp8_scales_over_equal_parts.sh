#!/usr/bin/env bash
# transformers dequantizes FP8 checkpoints (quant_method fp8, weight_block_size) where there is no GPU.
# It takes a block's size from the shapes (rows / rows of scales) instead of weight_block_size, so that
# a matrix of 192 rows in blocks of 128, whose scales have two rows as FP8Linear lays them out (the
# last block a part of one), is read as two halves of 96 rows: rows 96 to 127 get the wrong scale.
# Nothing is said of it. Where the rows cannot be split into equal parts it raises an error instead.
#
# Guess before running: the scale of a row is that of row // 128.
# Found with transformers 5.23.0: that of row // 96.
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check transformers==5.23.0 torch==2.13.0 \
    accelerate==1.15.0
"$folder/venv/bin/python" - "$folder/model" 2>/dev/null <<'PYTHON'
import json
import sys
from pathlib import Path

import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.integrations.finegrained_fp8 import FP8Linear

folder = Path(sys.argv[1])
config = LlamaConfig(hidden_size=192, intermediate_size=192, num_hidden_layers=1, vocab_size=32,
                     num_attention_heads=2, num_key_value_heads=2)
LlamaForCausalLM(config).save_pretrained(folder)
tensors = load_file(folder / "model.safetensors")
names = [name for name, t in tensors.items() if ".layers." in name and t.dim() == 2]
for name in names:
    tensors[name] = torch.ones(192, 192).to(torch.float8_e4m3fn)
    tensors[f"{name}_scale_inv"] = torch.tensor([[1.0, 1.0], [2.0, 2.0]])
save_file(tensors, folder / "model.safetensors", {"format": "pt"})
told = json.loads((folder / "config.json").read_text())
told["quantization_config"] = {"quant_method": "fp8", "activation_scheme": "dynamic",
                               "weight_block_size": [128, 128],
                               "modules_to_not_convert": ["lm_head"]}
(folder / "config.json").write_text(json.dumps(told))
own = FP8Linear(192, 192, block_size=(128, 128))
model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
weight = model.model.layers[0].self_attn.q_proj.weight
print("transformers", transformers.__version__)
print("scales of FP8Linear", list(own.weight_scale_inv.shape))
print("rows of scale 2 begin at", int((weight[:, 0] == 2).nonzero()[0]), "of", len(weight))
assert own.weight_scale_inv.shape == (2, 2)
assert (weight[:96] == 1).all() and (weight[96:] == 2).all()
PYTHON
echo "as described"
