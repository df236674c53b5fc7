"""Decoders of many kinds through the one adapter, against transformers' own forward pass.

What the exporter traces is run here as it is, by torch, with the
reference in place of the attention op; two chunks, the second on the rows that the first made.
"""

from __future__ import annotations

import importlib
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import MODEL_MAPPING, AutoConfig

from avl_export.checkpoint.supported import FamilyError
from avl_export.families.decoders.decoder import Decoder, adapt, check_text
from avl_export.families.decoders.observe import implementation
from avl_export.graph import attention
from avl_export.graph.compact import compact
from avl_export.graph.trace import SegmentModule
from avl_plugins import reference
from avl_runtime.package.manifest import CAUSAL

LAYERS, ROWS, FIRST = 3, 9, 5
SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 40,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
}
TURNING = {"rope_type": "default", "rope_theta": 1e4}
KINDS: dict[str, dict[str, Any]] = {
    "llama": {"attention_bias": True},
    "qwen2": {},
    "qwen3": {"head_dim": 16},
    "mistral": {"sliding_window": None},
    "ministral3": {
        "head_dim": 8,
        # Queries of rows behind the fourth are scaled.
        "rope_parameters": {
            **TURNING,
            "llama_4_scaling_beta": 0.5,
            "original_max_position_embeddings": 4,
        },
    },
    "ernie4_5": {"head_dim": 8, "use_bias": True},
    "granite": {
        "embedding_multiplier": 12.0,
        "attention_multiplier": 0.1,
        "residual_multiplier": 0.22,
        "logits_scaling": 8.0,
    },
    "smollm3": {"no_rope_layers": [1, 0, 1]},
    "olmo2": {},
    "cohere": {"use_qk_norm": True},
    "glm4": {"head_dim": 8},
    "gemma": {"head_dim": 8},
    "gemma3_text": {
        "head_dim": 8,
        "query_pre_attn_scalar": 5,
        "attn_logit_softcapping": 3.0,  # which has no effect
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        "rope_parameters": {
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
            "sliding_attention": TURNING,
        },
    },
    "phi3": {},
    "starcoder2": {},
    "helium": {"head_dim": 8},
    "hunyuan_v1_dense": {"head_dim": 8},
    "seed_oss": {"head_dim": 8},
    "glm4v_text": {
        "rope_parameters": {**TURNING, "mrope_section": [1, 0, 1], "partial_rotary_factor": 0.5}
    },
    "glm_ocr_text": {"rope_parameters": {**TURNING, "mrope_section": [2, 1, 1]}},
    "paddleocr_vl_text": {
        "head_dim": 8,
        "rope_parameters": {**TURNING, "mrope_section": [2, 1, 1]},
    },
    "granite4_vision_text": {
        "embedding_multiplier": 12.0,
        "attention_multiplier": 0.1,
        "residual_multiplier": 0.22,
    },
    "qwen2_vl_text": {"rope_parameters": {**TURNING, "mrope_section": [2, 1, 1]}},
    "qwen3_vl_text": {"head_dim": 8, "rope_parameters": {**TURNING, "mrope_section": [2, 1, 1]}},
}

# Decoders that transformers builds for their own models alone.
APART = {
    "granite4_vision_text": (
        "granite4_vision.modeling_granite4_vision",
        "Granite4VisionTextModel",
    ),
    "paddleocr_vl_text": ("paddleocr_vl.modeling_paddleocr_vl", "PaddleOCRTextModel"),
}
DIVISOR = 8.0  # of logits


def text_config(kind: str, **changes: Any) -> Any:
    found = AutoConfig.for_model(kind, **{**SIZES, **KINDS.get(kind, {}), **changes})
    found.tie_word_embeddings = False  # which some leave to the model around them
    return found


class Inner(nn.Module):
    def forward(self, **given: Any) -> Any:
        return self.language_model(**given)


class Carrier(nn.Module):
    """A decoder and its output matrix, as models have them."""

    def __init__(self, text: Any) -> None:
        super().__init__()
        self.model = Inner()
        self.model.language_model = text_class(text)(text)
        self.lm_head = nn.Linear(text.hidden_size, text.vocab_size, bias=False)

    def forward(self, **given: Any) -> Any:
        return SimpleNamespace(logits=self.lm_head(self.model(**given).last_hidden_state) / DIVISOR)


def text_class(text: Any) -> Any:
    if text.model_type in APART:
        module, name = APART[text.model_type]
        return getattr(importlib.import_module(f"transformers.models.{module}"), name)
    return MODEL_MAPPING[type(text)]


def adapted(text: Any) -> tuple[Any, Decoder]:
    """The model without weights, and its decoder."""
    check_text(text, "config.json")
    with torch.device("meta"):
        model = Carrier(text).eval()
    return model, adapt(model, "config.json")


@torch.library.impl("avl::split_cache_attention", "CPU")
def _attention(*inputs: Any) -> tuple[Tensor, ...]:
    *tensors, scale = inputs
    found = reference.split_cache_attention(*(x.numpy() for x in tensors), scale=scale)
    return tuple(map(torch.from_numpy, found))


@pytest.mark.parametrize("kind", KINDS)
def test_logits_are_those_of_transformers(kind: str) -> None:
    torch.manual_seed(0)
    text = text_config(kind)
    text._attn_implementation = "eager"
    theirs = Carrier(text).eval()
    with torch.no_grad():
        for weight in theirs.parameters():
            noise = torch.randn_like(weight)
            weight.copy_(1 + 0.3 * noise if weight.dim() == 1 else noise / weight[0].numel() ** 0.5)
    model, decoder = adapted(text_config(kind))
    assert decoder.dims.num_layers == LAYERS
    assert decoder.logit_scale == 1 / DIVISOR
    model.load_state_dict(theirs.state_dict(), assign=True)
    for name, value in decoder.constants().items():
        owner, _, own = name.rpartition(".")
        setattr(model.get_submodule(owner), own, value)
    axes = () if decoder.rope.axes == 1 else (3,)
    # What the model multiplies tokens with comes back in the graphs.
    embeds = torch.randn(1, ROWS, SIZES["hidden_size"])
    positions = torch.arange(ROWS).expand(*axes, 1, -1).clone()
    if axes:  # three rows of a picture
        positions[1, 0, 2:5], positions[2, 0, 2:5] = 2, torch.tensor([2, 3, 4])
    found = run(model, decoder, embeds / decoder.token_scale, positions)
    with torch.no_grad():
        wanted = theirs(inputs_embeds=embeds, position_ids=positions, use_cache=False).logits
    np.testing.assert_allclose(found, wanted[0, [FIRST - 1, ROWS - 1]].numpy(), atol=1e-4, rtol=0)


def run(model: Any, decoder: Decoder, embeds: Tensor, positions: Tensor) -> Any:
    """Logits [2, V] of the last rows of two chunks, each through two segments."""
    family: Any = SimpleNamespace(
        decoder=decoder, model=model, traits=SimpleNamespace(deepstack=(), reach=CAUSAL)
    )
    segments = [SegmentModule(family, *ends).eval() for ends in ((0, 1), (1, LAYERS))]
    kept: dict[int, tuple[Tensor, Tensor]] = {}
    empty = torch.zeros(1, decoder.dims.num_kv_heads, 1, decoder.dims.head_dim)
    logits = []
    for rows in (slice(0, FIRST), slice(FIRST, ROWS)):
        state = embeds[:, rows]
        count = state.shape[1]
        for segment in segments:
            # Every layer is run here, also those that an export copies.
            segment.traced = tuple(range(segment.first, segment.first + len(segment.layers)))
            caches = [
                (
                    *kept.get(layer, (empty, empty)),
                    torch.tensor([FIRST if layer in kept else 0]),
                    empty,
                    empty,
                    torch.tensor([0]),
                )
                for layer in segment.traced
            ]
            config: Any = decoder.text_model.config
            with (
                implementation(config, attention.IMPLEMENTATION),
                compact(decoder, segment),
                torch.no_grad(),
            ):
                state, results, _ = segment(
                    state, positions[..., rows], torch.ones(1, 1, count), [], caches, []
                )
            kept |= {n: (k, v) for n, (k, v, *_) in zip(segment.traced, results, strict=True)}
        logits.append(state[0, -1].numpy())
    return np.stack(logits)


LONG = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0], "long_factor": [2.0]}
SMALL = {"kv_lora_rank": 16, "q_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8}


@pytest.mark.parametrize(
    ("kind", "changes", "said"),
    [
        ("gemma2", {}, "attention with softcap of 50.0 in layer 0"),
        ("qwen3_moe", {}, "a mixture of experts, found num_experts"),
        ("mixtral", {}, "a mixture of experts, found num_experts of 8"),
        ("deepseek_v3", SMALL, "a mixture of experts, found num_local_experts"),
        ("qwen3_5_text", {"layer_types": ["linear_attention"] * LAYERS}, "a layer of attention"),
        ("gemma3_text", {"use_bidirectional_attention": True}, "attention to later tokens"),
        ("granite_swa", {}, "attention with s_aux in layer 0"),
        ("gemma3n_text", {}, "several states of a token, found altup_num_inputs"),
        ("gemma4_text", {"enable_moe_block": True}, "experts, found enable_moe_block"),
        ("mllama_text_model", {}, "layers of cross attention, found cross_attention_layers"),
        ("minicpm3", SMALL, "in layer 0 (MiniCPM3DecoderLayer)"),
        ("phi", {}, "'phi' without norm"),
        ("nemotron", {}, "in layer 0 (NemotronDecoderLayer)"),
        ("gpt2", {}, "'gpt2' without"),
        ("mamba", {}, "'mamba' without embed_tokens"),
        ("longcat_flash", {}, "a mixture of experts"),
        ("llama", {"rope_parameters": LONG}, "found 'longrope'"),
    ],
    ids=str,
)
def test_what_no_graph_computes_is_refused(kind: str, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(FamilyError) as refused:
        adapted(text_config(kind, **changes))
    line = str(refused.value)
    assert said in line
    assert line.startswith("config.json: expected ")
    assert line.endswith("this version of avl cannot export it")
