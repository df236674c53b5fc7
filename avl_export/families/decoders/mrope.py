"""RoPE over three axes (M-RoPE, arXiv 2409.12191): each frequency turns by one of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from avl_export.checkpoint.supported import FamilyError
from avl_plugins.errors import quoted

# The sections that transformers' modules take where a config has none.
DEFAULTS = {
    "qwen2_vl_text": (16, 24, 24),
    "qwen2_5_vl_text": (16, 24, 24),
    "qwen3_vl_text": (24, 20, 20),
}


class AxisRotary(nn.Module):
    """In place of transformers' module, which joins slices of three tables: one gather instead.

    Args:
        rotary: transformers' module, on the meta device.
    """

    def __init__(self, rotary: Any) -> None:
        super().__init__()
        self.inv_freq = nn.Buffer(rotary.inv_freq, persistent=False)
        axes = torch.empty(rotary.inv_freq.shape, dtype=torch.int64, device="meta")
        self.axes = nn.Buffer(axes, persistent=False)
        self.scaling = float(rotary.attention_scaling)

    def forward(
        self, hidden: torch.Tensor, position_ids: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """cos and sin [B, S, D] in the dtype of `hidden`, for positions [3, B, S]."""
        turned = position_ids.index_select(0, self.axes).permute(1, 2, 0)
        angles = turned.float() * self.inv_freq.float()
        angles = torch.cat([angles, angles], dim=-1)
        cos, sin = angles.cos() * self.scaling, angles.sin() * self.scaling
        return cos.to(hidden.dtype), sin.to(hidden.dtype)


def mrope_constants(text: Any, rotary_class: Any, name: str) -> dict[str, torch.Tensor]:
    """Values of the buffers of an `AxisRotary` called `name`, for the decoder `text` configures."""
    rotary = rotary_class(text)
    axes = section_axes(rotary.mrope_section, len(rotary.inv_freq), _interleaves(text))
    return {f"{name}.inv_freq": rotary.inv_freq, f"{name}.axes": torch.tensor(axes)}


def section_axes(sections: Sequence[int], count: int, interleaved: bool) -> list[int]:
    """Which axis (0 time, 1 height, 2 width) each of `count` frequencies turns by.

    In Qwen2-VL's order sections lie behind each other; interleaved (Qwen3-VL), every third
    frequency is height's and every third width's until their sections are used up.
    """
    if not interleaved:
        return [number % 3 for number, size in enumerate(sections) for _ in range(size)]
    axes = [0] * count
    for axis in (1, 2):
        for place in range(axis, min(3 * sections[axis], count), 3):
            axes[place] = axis
    return axes


def check_sections(text: Any, head_dim: int, where: str) -> None:
    """Refuse sections that do not cover the frequencies of a head.

    Interleaved ones cover any: what is beyond the head is left out, and time has the rest.

    Raises:
        FamilyError: mrope_section is no list of numbers, or has another sum.
    """
    sections = (text.rope_parameters or {}).get("mrope_section", DEFAULTS.get(text.model_type))
    known = sections if isinstance(sections, list | tuple) else ()
    are_sizes = all(isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in known)
    fits = len(known) == 3 if _interleaves(text) else sum(known) == head_dim // 2
    if not known or not are_sizes or not fits:
        raise FamilyError(
            f"{where}: expected an mrope_section of three numbers with the sum {head_dim // 2}, "
            f"found {quoted(sections, 60)}; fix config.json"
        )


def _interleaves(text: Any) -> bool:
    """Whether transformers' decoder interleaves sections: by its kind, whatever its config says."""
    return str(text.model_type).startswith("qwen3_vl")
