#!/usr/bin/env bash
# onnxruntime-genai's model builder makes ONNX models of checkpoints. For LlamaForCausalLM it applies
# the RoPE scaling "llama3" and forgets every other: "linear" (Vicuna 1.5 16k has factor 4, the longer
# sibling of LLaVA-1.5's decoder) and "yarn". The model has the RoPE of a checkpoint without scaling,
# and other logits from the second token on, at every length. Nothing is said of it. For Qwen2 the
# same builder applies "linear" exactly, and kinds that it does not know it refuses.
#
# Guess before running: each scaling is applied, or refused.
# Found with onnxruntime-genai 0.18.0 beside transformers 5.23.0: "linear" and "yarn" of Llama are
# forgotten.
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check onnxruntime-genai==0.18.0 \
    onnxruntime==1.31.1 transformers==5.23.0 torch==2.13.0 onnx==1.23.2 onnx-ir==1.1.0 numpy==2.4.6
"$folder/venv/bin/python" - "$folder" 2>"$folder/said" <<'PYTHON'
import contextlib
import io
import sys
from pathlib import Path

import numpy as np
import onnxruntime_genai
import torch
import transformers
from onnxruntime_genai.models import builder
from tokenizers import Tokenizer, models
from transformers import (LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, Qwen2Config,
                          Qwen2ForCausalLM)

SMALL = dict(hidden_size=64, intermediate_size=64, num_hidden_layers=2, vocab_size=99,
             num_attention_heads=4, num_key_value_heads=2, initializer_range=0.2,
             max_position_embeddings=256, bos_token_id=1, eos_token_id=2, pad_token_id=0)
SCALINGS = {
    "none": dict(rope_type="default"),
    "llama3": dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
                   original_max_position_embeddings=16),
    "linear": dict(rope_type="linear", factor=4.0),
    "yarn": dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=64),
}
torch.manual_seed(0)
ids = torch.randint(3, 99, (1, 40))
words = Tokenizer(models.WordLevel({f"t{n}": n for n in range(99)}, unk_token="t0"))


def apart(name, model):
    """The largest difference of the built model's last logits from transformers'."""
    source, built = Path(sys.argv[1], name), Path(sys.argv[1], name + " built")
    model.eval().save_pretrained(source)
    PreTrainedTokenizerFast(tokenizer_object=words, bos_token="t1", eos_token="t2",
                            pad_token="t0").save_pretrained(source)
    to = ("", str(source), str(built), "fp32", "cpu", str(built) + " cache")
    with contextlib.redirect_stdout(io.StringIO()) as said:
        builder.create_model(*to, **builder.parse_extra_options(*to, None))
    loaded = onnxruntime_genai.Model(str(built))
    parameters = onnxruntime_genai.GeneratorParams(loaded)
    parameters.set_search_options(max_length=64)
    generator = onnxruntime_genai.Generator(loaded, parameters)
    generator.append_tokens(ids.numpy().astype(np.int32))
    found = np.array(generator.get_logits()).reshape(-1, 99)[-1]
    with torch.no_grad():
        right = model(ids).logits[0, -1].numpy()
    assert not any(word in said.getvalue().lower() for word in ("rope", "scal", "warn"))
    return float(np.abs(found - right).max())


print("onnxruntime-genai", onnxruntime_genai.__version__, "transformers", transformers.__version__)
for family, (kind, make) in {"Llama": (LlamaConfig, LlamaForCausalLM),
                             "Qwen2": (Qwen2Config, Qwen2ForCausalLM)}.items():
    for scaling, parameters in SCALINGS.items():
        if family == "Qwen2" and scaling in ("llama3", "yarn"):
            continue
        torch.manual_seed(1)
        model = make(kind(**SMALL, rope_parameters=parameters | {"rope_theta": 500.0}))
        difference = apart(f"{family} {scaling}", model)
        print(f"{family}, RoPE scaling {scaling}: logits {difference:.4f} apart")
        forgotten = family == "Llama" and scaling in ("linear", "yarn")
        assert difference > 1 if forgotten else difference < 1e-3
try:
    apart("Qwen2 dynamic", Qwen2ForCausalLM(Qwen2Config(
        **SMALL, rope_parameters=dict(rope_type="dynamic", factor=4.0, rope_theta=500.0))))
except NotImplementedError as error:
    print("Qwen2, RoPE scaling dynamic:", error)
else:
    raise AssertionError("not refused any more")
PYTHON
if grep -iE "rope|scaling" "$folder/said"; then exit 1; fi  # nothing is said of it
echo "as described"
