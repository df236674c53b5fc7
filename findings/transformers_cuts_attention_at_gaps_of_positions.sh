#!/usr/bin/env bash
# Methods that drop tokens keep the positions of those that stay, so that position_ids have gaps. Where
# a transformers model is given them without an attention mask and without a cache (use_cache=False, as
# in training and in scoring), each gap is taken for the border between two packed sequences: a token
# sees nothing before the last gap. Nothing is said of it, and a mask that is all ones, or an empty
# cache, which both mean "nothing is hidden", give other logits.
#
# Guess before running: position_ids turn queries and keys, and a mask of ones changes nothing.
# Found with transformers 5.23.0: logits are those of the tokens behind the last gap alone.
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check transformers==5.23.0 torch==2.13.0
"$folder/venv/bin/python" - 2>/dev/null <<'PYTHON'
import torch
import transformers
from transformers import LlamaConfig, LlamaForCausalLM

torch.manual_seed(0)
config = LlamaConfig(hidden_size=64, intermediate_size=64, num_hidden_layers=2, vocab_size=99,
                     num_attention_heads=4, num_key_value_heads=2, initializer_range=0.3)
ids = torch.randint(0, 99, (1, 12))
positions = torch.tensor([[0, 1, 2, 3, 7, 8, 12, 13, 14, 20, 21, 22]])
print("transformers", transformers.__version__)
for attention in ("eager", "sdpa"):
    config._attn_implementation = attention
    model = LlamaForCausalLM(config).eval()

    @torch.no_grad()
    def logits(first=0, **more):
        return model(ids[:, first:], position_ids=positions[:, first:], **more).logits[0, -3:]

    bare = logits(use_cache=False)
    cached = logits(use_cache=True)
    masked = logits(use_cache=False, attention_mask=torch.ones_like(ids))
    tail = logits(9, use_cache=False)
    apart = [float((bare - other).abs().max()) for other in (masked, cached, tail)]
    print(f"{attention}: without a mask, logits (up to {float(masked.abs().max()):.1f}) are "
          f"{apart[0]:.2f} from those with ones, {apart[1]:.2f} from those with a cache and "
          f"{apart[2]:.0e} from those of the last three tokens alone")
    assert (masked - cached).abs().max() < 1e-4 * masked.abs().max()
    assert apart[0] > 0.1 * masked.abs().max() and apart[2] < 1e-4 * masked.abs().max()
PYTHON
echo "as described"
