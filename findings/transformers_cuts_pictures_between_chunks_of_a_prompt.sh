#!/usr/bin/env bash
# In Gemma 3 the tokens of a picture see each other in both directions. transformers reads a prompt in
# parts where generate is told prefill_chunk_size, and takes no account of pictures: where a border
# lies within one, its earlier tokens do not see the later ones. Nothing is said of it, and logits
# depend on the size of the parts; in parts of one token they are those of a model that is causal
# throughout.
#
# Guess before running: prefill_chunk_size saves memory and changes nothing, or is refused.
# Found with transformers 5.23.0: the same logits where every picture lies in one part, others where
# not.
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check transformers==5.23.0 torch==2.13.0 pillow==13.0.0
"$folder/venv/bin/python" - 2>/dev/null <<'PYTHON'
import torch
import transformers
from transformers import Gemma3Config, Gemma3ForConditionalGeneration

IMAGE = 290
torch.manual_seed(0)
config = Gemma3Config(
    text_config=dict(hidden_size=64, intermediate_size=64, num_hidden_layers=3, vocab_size=300,
                     num_attention_heads=4, num_key_value_heads=2, head_dim=16,
                     layer_types=["full_attention"] * 3, initializer_range=0.3),
    vision_config=dict(hidden_size=32, intermediate_size=32, num_hidden_layers=1,
                       num_attention_heads=2, image_size=28, patch_size=7),
    mm_tokens_per_image=4, image_token_index=IMAGE, boi_token_index=291, eoi_token_index=292,
    initializer_range=0.3,
)
model = Gemma3ForConditionalGeneration(config).eval()
# The picture's tokens are 9 to 12.
ids = torch.tensor([[5, 6, 7, 8, 9, 10, 11, 12, 291] + [IMAGE] * 4 + [292, 13, 14]])
marks = (ids == IMAGE).long()
picture = torch.randn(1, 3, 28, 28)


@torch.no_grad()
def first_logits(marks, **more):
    return model.generate(
        input_ids=ids, token_type_ids=marks, pixel_values=picture, max_new_tokens=1, do_sample=False,
        attention_mask=torch.ones_like(ids), return_dict_in_generate=True, output_logits=True, **more
    ).logits[0]


whole, causal = first_logits(marks), first_logits(torch.zeros_like(marks))
print("transformers", transformers.__version__)
print(f"one part: {float((whole - causal).abs().max()):.3f} from a causal model's logits")
apart = {}
for size in (8, 9, 13, 4, 1):
    found = first_logits(marks, prefill_chunk_size=size)
    apart[size] = [float((found - other).abs().max()) for other in (whole, causal)]
    print(f"parts of {size}: {apart[size][0]:.3f} from one part, {apart[size][1]:.3f} from causal")
assert max(apart[size][0] for size in (8, 9, 13)) < 1e-4
assert apart[4][0] > 1e-3 and apart[1][0] > 1e-3 and apart[1][1] < 1e-4
PYTHON
echo "as described"
