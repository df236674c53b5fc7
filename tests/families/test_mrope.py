"""M-RoPE's sections as transformers reads them: of any sum where they are interleaved."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLTextConfig
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLRotaryEmbedding
from transformers.models.qwen3_vl.configuration_qwen3_vl import Qwen3VLTextConfig
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLTextRotaryEmbedding

from avl_export.checkpoint.supported import FamilyError
from avl_export.families.decoders.mrope import AxisRotary, check_sections, mrope_constants

NONE: Any = "not given"
KINDS: dict[str, tuple[Any, Any]] = {
    "qwen2_5_vl": (Qwen2_5_VLTextConfig, Qwen2_5_VLRotaryEmbedding),
    "qwen3_vl": (Qwen3VLTextConfig, Qwen3VLTextRotaryEmbedding),
}


def text_config(kind: str, head_dim: int, sections: Any, **rope: Any) -> Any:
    given = {} if sections is NONE else {"mrope_section": sections}
    parameters = {"rope_type": "default", "rope_theta": 1e4, **given, **rope}
    sizes: dict[str, Any] = {"hidden_size": 2 * head_dim, "num_attention_heads": 2}
    if kind == "qwen3_vl":
        sizes["head_dim"] = head_dim
    return KINDS[kind][0](**sizes, rope_parameters=parameters)


@pytest.mark.parametrize(
    ("kind", "head_dim", "sections", "rope"),
    [
        ("qwen3_vl", 128, [24, 20, 20], {"mrope_interleaved": True}),
        ("qwen3_vl", 32, [24, 20, 20], {"mrope_interleaved": True}),  # wider than the head
        ("qwen3_vl", 16, NONE, {"mrope_interleaved": True}),  # transformers' default, wider too
        ("qwen3_vl", 32, [1, 2, 3], {"mrope_interleaved": True}),  # narrower: time has the rest
        ("qwen3_vl", 32, [0, 9, 0], {"mrope_interleaved": True}),
        ("qwen3_vl", 32, [6, 5, 5], {"mrope_interleaved": False}),  # transformers does not look
        ("qwen3_vl", 32, [6, 5, 5], {}),
        ("qwen2_5_vl", 128, [16, 24, 24], {}),
        ("qwen2_5_vl", 128, NONE, {}),
        ("qwen2_5_vl", 32, [6, 5, 5], {"mrope_interleaved": True}),  # nor here
        ("qwen2_5_vl", 32, [2, 3, 3, 2, 3, 3], {}),
    ],
    ids=str,
)
def test_turns_are_those_of_transformers(
    kind: str, head_dim: int, sections: Any, rope: dict[str, Any]
) -> None:
    text = text_config(kind, head_dim, sections, **rope)
    check_sections(text, head_dim, "config.json")
    rotary_class = KINDS[kind][1]
    with torch.device("meta"):
        ours = AxisRotary(rotary_class(text))
    constants = mrope_constants(text, rotary_class, "rotary")
    ours.inv_freq, ours.axes = constants["rotary.inv_freq"], constants["rotary.axes"]
    positions = torch.randint(0, 30_000, (3, 2, 50), generator=torch.Generator().manual_seed(0))
    hidden = torch.zeros(2, 50, 2 * head_dim)
    expected = rotary_class(text)(hidden, positions)
    for found, theirs in zip(ours(hidden, positions), expected, strict=True):
        assert torch.equal(found, theirs)


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
    ],
    ids=str,
)
def test_sections_that_are_none(kind: str, sections: Any) -> None:
    text = text_config(kind, 32, [6, 5, 5])
    text.rope_parameters["mrope_section"] = sections
    with pytest.raises(FamilyError, match="mrope_section of three numbers with the sum 16"):
        check_sections(text, 32, "config.json")
