"""RoPE of decoders as transformers turns it: over one axis or three, whole or partial."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch

from avl_export.checkpoint.supported import FamilyError
from avl_export.families.decoders.rope import Turns, observe_rope, spread, turn

NONE: Any = "not given"
CONTEXT = 2048
# Of a kind: transformers' module, and in it the configuration, the RoPE and the attention.
KINDS = {
    "llama": ("llama", "LlamaConfig", "LlamaRotaryEmbedding", "LlamaAttention"),
    "ernie4_5": ("ernie4_5", "Ernie4_5Config", "Ernie4_5RotaryEmbedding", "Ernie4_5Attention"),
    "phi": ("phi", "PhiConfig", "PhiRotaryEmbedding", "PhiAttention"),
    "cohere": ("cohere", "CohereConfig", "CohereRotaryEmbedding", "CohereAttention"),
    "glm4v": ("glm4v", "Glm4vTextConfig", "Glm4vTextRotaryEmbedding", "Glm4vTextAttention"),
    "paddleocr_vl": (
        "paddleocr_vl",
        "PaddleOCRTextConfig",
        "PaddleOCRRotaryEmbedding",
        "PaddleOCRAttention",
    ),
    "qwen2_5_vl": (
        "qwen2_5_vl",
        "Qwen2_5_VLTextConfig",
        "Qwen2_5_VLRotaryEmbedding",
        "Qwen2_5_VLAttention",
    ),
    "qwen3_vl": (
        "qwen3_vl",
        "Qwen3VLTextConfig",
        "Qwen3VLTextRotaryEmbedding",
        "Qwen3VLTextAttention",
    ),
}


def made(kind: str, head_dim: int, rope: dict[str, Any]) -> tuple[Any, Any]:
    """transformers' RoPE and one attention module of a kind."""
    name, *classes = KINDS[kind]
    modeling = importlib.import_module(f"transformers.models.{name}.modeling_{name}")
    configuration = importlib.import_module(f"transformers.models.{name}.configuration_{name}")
    config_class = getattr(configuration, classes[0])
    sizes = {"hidden_size": 2 * head_dim, "num_attention_heads": 2, "num_key_value_heads": 1}
    if hasattr(config_class, "head_dim"):
        sizes["head_dim"] = head_dim
    parameters = {"rope_type": "default", "rope_theta": 1e4, **rope}
    config = config_class(**sizes, rope_parameters=parameters)
    rotary, attention = (getattr(modeling, one) for one in classes[1:])
    return rotary(config), attention(config, layer_idx=0)


@pytest.mark.parametrize(
    ("kind", "head_dim", "rope"),
    [
        ("llama", 16, {}),
        ("llama", 16, {"rope_type": "linear", "factor": 4.0}),
        ("llama", 16, {"rope_type": "dynamic", "factor": 4.0}),  # up to the context
        ("ernie4_5", 16, {}),
        ("cohere", 16, {}),
        ("phi", 16, {"partial_rotary_factor": 0.5}),
        ("paddleocr_vl", 16, {"mrope_section": [2, 3, 3]}),
        ("glm4v", 16, {"mrope_section": [1, 1, 2], "partial_rotary_factor": 0.5}),
        ("glm4v", 16, {"mrope_section": [2, 3, 3]}),
        ("qwen3_vl", 128, {"mrope_section": [24, 20, 20]}),
        ("qwen3_vl", 32, {"mrope_section": [24, 20, 20]}),  # wider than the head
        ("qwen3_vl", 16, {}),  # transformers' default, wider too
        ("qwen3_vl", 32, {"mrope_section": [1, 2, 3]}),  # narrower: time has the rest
        ("qwen3_vl", 32, {"mrope_section": [0, 9, 0]}),
        ("qwen3_vl", 32, {"mrope_section": [6, 5, 5], "mrope_interleaved": False}),  # not looked at
        ("qwen2_5_vl", 128, {"mrope_section": [16, 24, 24]}),
        ("qwen2_5_vl", 128, {}),
        ("qwen2_5_vl", 32, {"mrope_section": [6, 5, 5], "mrope_interleaved": True}),  # nor here
        ("qwen2_5_vl", 32, {"mrope_section": [2, 3, 3, 2, 3, 3]}),
    ],
    ids=str,
)
def test_turns_are_those_of_transformers(kind: str, head_dim: int, rope: dict[str, Any]) -> None:
    rotary, attention = made(kind, head_dim, rope)
    observed = observe_rope(rotary, attention, head_dim, CONTEXT, "config.json")
    assert observed.axes == (3 if hasattr(rotary, "mrope_section") else 1)
    assert observed.turned is not None
    generator = torch.Generator().manual_seed(1)
    shape = (2, 50) if observed.axes == 1 else (3, 2, 50)
    positions = torch.randint(0, CONTEXT, shape, generator=generator)
    hidden = torch.zeros(2, 50, 2 * head_dim)
    turns = Turns(observed)
    for name, value in Turns.constants(observed).items():
        setattr(turns, name, value)
    cos, sin = turns(hidden, positions)
    theirs = rotary(hidden, positions)
    for found, expected in zip((cos, sin), theirs, strict=True):
        torch.testing.assert_close(spread(found, observed.tables), expected, atol=1e-6, rtol=0)
    # Phi's attention takes what is turned itself.
    width = theirs[0].shape[-1] if kind == "phi" else head_dim
    query, key = (torch.randn(2, heads, 50, width, generator=generator) for heads in (2, 1))
    modeling = importlib.import_module(type(attention).__module__)
    expected = modeling.apply_rotary_pos_emb(query, key, *theirs)
    for found, wanted in zip((query, key), expected, strict=True):
        torch.testing.assert_close(turn(found, cos, sin, observed.turned), wanted)


def test_what_is_no_op_is_left_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    rotary, attention = made("llama", 16, {})
    modeling = importlib.import_module(type(attention).__module__)
    monkeypatch.setattr(modeling, "apply_rotary_pos_emb", lambda q, k, cos, sin: (q * cos, k * sin))
    observed = observe_rope(rotary, attention, 16, CONTEXT, "config.json")
    assert observed.turned is None
    turns = Turns(observed)
    turns.inv_freq = observed.inv_freq
    positions = torch.arange(5)[None]
    for found, expected in zip(
        turns(torch.zeros(1), positions), rotary(torch.zeros(1), positions), strict=True
    ):
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("kind", "sections"),
    [
        ("qwen3_vl", None),
        ("qwen3_vl", []),
        ("qwen3_vl", [24, 20]),
        ("qwen3_vl", [24, -20, 20]),
        ("qwen3_vl", [24, 20.5, 20]),
        ("qwen3_vl", "24,20,20"),
        ("qwen2_5_vl", [16, 24, 24]),
        ("qwen2_5_vl", [18, -1, -1]),
        ("glm4v", [6, 5, 4]),
    ],
    ids=str,
)
def test_sections_that_are_none(kind: str, sections: Any) -> None:
    rotary, attention = made(kind, 32, {"mrope_section": [6, 5, 5]})
    rotary.mrope_section = sections
    with pytest.raises(FamilyError, match="mrope_section of three numbers with the sum 16"):
        observe_rope(rotary, attention, 32, CONTEXT, "config.json")
