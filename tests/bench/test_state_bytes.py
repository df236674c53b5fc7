"""What a step reads of Qwen3.5-0.8B's decoder, beside transformers' own modules."""

from __future__ import annotations

import json

import torch
from transformers import AutoModelForImageTextToText
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from avl_export.checkpoint.aliases import known_files
from documents import record
from state_bytes import HEAD_BITS, step_bytes


def test_bytes_are_those_of_the_models_own_tensors() -> None:
    report = record("bench-qwen3.5")
    config = json.loads(json.dumps(known_files("qwen3.5-0.8b")["config.json"]))
    with torch.device("meta"):
        built = CONFIG_MAPPING["qwen3_5"].from_dict(config)
        model = AutoModelForImageTextToText.from_config(built)
    text = model.model.language_model
    linears = [one for one in text.modules() if isinstance(one, torch.nn.Linear)]
    found = step_bytes(report, 16, HEAD_BITS)
    assert found["weights"] == 2 * sum(one.weight.numel() for one in linears)
    assert found["head"] == model.get_input_embeddings().weight.numel()
    attentions = [layer.self_attn for layer in text.layers if hasattr(layer, "self_attn")]
    width = sum(one.k_proj.out_features + one.v_proj.out_features for one in attentions)
    tokens = report["workload"]["text_tokens"] + report["workload"]["new_tokens"] / 2
    assert found["rows"] == 4 * width * tokens
