"""RoPE of any decoder, as it is observed: what turns by which position, and how pairs lie.

Each of F frequencies turns a pair of a head's numbers. Over several axes (M-RoPE, arXiv
2409.12191) each frequency goes by one of them. Pairs lie half a head apart ("halves") or side by
side ("pairs"); what is beyond them is not turned.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import nn

from avl_export.checkpoint.supported import FamilyError
from avl_export.families.decoders.observe import attempt
from avl_plugins.errors import quoted

STATIC = ("default", "linear", "llama3", "yarn", "dynamic", "proportional")
Layout = Literal["halves", "pairs"]
LAYOUTS: tuple[Layout, ...] = ("halves", "pairs")
APPLY = "apply_rotary_pos_emb"  # what modules of transformers call the function that turns
MANY = 30_000  # positions that are tried


@dataclass(frozen=True, slots=True, eq=False)
class Rope:
    """What transformers' module makes of positions.

    Attributes:
        axes: of positions, 1 or 3.
        inv_freq: float32 [F].
        axis_of: int64 [F], by which axis each frequency goes.
        scaling: of cos and sin.
        tables: how pairs lie in transformers' cos and sin, which have 2 F numbers.
        turned: how pairs lie in a head, where attention turns as ONNX's RotaryEmbedding does, which
            takes cos and sin of F numbers. None: attention is traced as it is, with `tables`.
    """

    axes: Literal[1, 3]
    inv_freq: torch.Tensor
    axis_of: torch.Tensor
    scaling: float
    tables: Layout
    turned: Layout | None


class Turns(nn.Module):
    """cos and sin for the layers of a decoder, in place of transformers' module."""

    def __init__(self, rope: Rope) -> None:
        super().__init__()
        self.inv_freq = nn.Buffer(rope.inv_freq.to("meta"), persistent=False)
        if rope.axes > 1:
            self.axes = nn.Buffer(rope.axis_of.to("meta"), persistent=False)
        self.several = rope.axes > 1
        self.scaling = rope.scaling
        self.tables = None if rope.turned is not None else rope.tables

    def forward(
        self, hidden: torch.Tensor, position_ids: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """cos and sin [B, S, F or 2 F] in the dtype of `hidden`, for positions [(3,) B, S]."""
        if self.several:
            turned = position_ids.index_select(0, self.axes).permute(1, 2, 0)
        else:
            turned = position_ids[..., None]
        angles = turned.float() * self.inv_freq.float()
        if self.tables is not None:
            angles = spread(angles, self.tables)
        cos, sin = angles.cos() * self.scaling, angles.sin() * self.scaling
        return cos.to(hidden.dtype), sin.to(hidden.dtype)

    @staticmethod
    def constants(rope: Rope) -> dict[str, torch.Tensor]:
        """Values of the buffers."""
        axes = {"axes": rope.axis_of} if rope.axes > 1 else {}
        return {"inv_freq": rope.inv_freq, **axes}


def spread(angles: torch.Tensor, layout: Layout) -> torch.Tensor:
    """[..., F] -> [..., 2 F]: both numbers of a pair turn by the same angle."""
    if layout == "halves":
        return torch.cat([angles, angles], dim=-1)
    return angles.repeat_interleave(2, dim=-1)


def check_rope(text: Any, where: str) -> None:
    """Refuse RoPE whose frequencies change.

    Raises:
        FamilyError: they do.
    """
    parameters = getattr(text, "rope_parameters", None) or {}
    of_types = [parameters.get(name) for name in getattr(text, "layer_types", None) or ()]
    for each in (parameters, *(one for one in of_types if isinstance(one, dict))):
        kind = each.get("rope_type", "default")
        if kind not in STATIC:
            raise FamilyError(
                f"{where}: expected a rope_type of {', '.join(STATIC)}, found {quoted(kind)}, "
                "whose frequencies change with the length; this version of avl cannot export it"
            )


def observe_ropes(
    rotary: Any,
    attention: nn.Module,
    head_dims: Mapping[str, int],
    context: int,
    types: Sequence[str],
    where: str,
) -> dict[str, Rope]:
    """What `rotary` does for each of the types of layers; under "" where it knows no types.

    Args:
        rotary, attention, context: as `observe_rope` takes them.
        head_dims: of each type with attention.
        types: transformers' names, of each layer.

    Raises:
        FamilyError: as `observe_rope`; or types differ in more than frequencies.
    """
    if not all(hasattr(rotary, f"{name}_inv_freq") for name in types):
        head_dim = max(head_dims.values())
        return {"": observe_rope(rotary, attention, head_dim, context, where)}
    ropes = {
        name: observe_rope(_OfType(rotary, name), attention, head_dim, context, where)
        for name, head_dim in head_dims.items()
    }
    kinds = {(rope.axes, rope.tables, rope.turned) for rope in ropes.values()}
    if len(kinds) > 1:
        raise FamilyError(
            f"{where}: expected RoPE that pairs numbers of a head alike in all layers, found "
            f"{type(rotary).__name__}; this version of avl cannot export it"
        )
    return ropes


class _OfType:
    """A module that is told which type of layer it turns for, as one that is not."""

    def __init__(self, rotary: Any, name: str) -> None:
        self._rotary, self._name = rotary, name
        self.inv_freq = getattr(rotary, f"{name}_inv_freq")
        self.attention_scaling = getattr(rotary, f"{name}_attention_scaling")

    def __call__(self, hidden: torch.Tensor, positions: torch.Tensor) -> Any:
        return self._rotary(hidden, positions, self._name)


def observe_rope(
    rotary: Any, attention: nn.Module, head_dim: int, context: int, where: str
) -> Rope:
    """What `rotary`, a module of transformers, does, and how `attention` turns by it.

    Args:
        rotary: on the CPU.
        context: positions that a package has. Behind them frequencies may change.

    Raises:
        FamilyError: it is none that `Turns` can stand for.
    """
    wants = f"{where}: expected RoPE of one or three axes"
    frequencies = getattr(rotary, "inv_freq", None)
    if not isinstance(frequencies, torch.Tensor) or 2 * len(frequencies) > head_dim:
        raise FamilyError(
            f"{wants}, found {type(rotary).__name__}; this version of avl cannot export it"
        )
    axes: Literal[1, 3] = 1
    if hasattr(rotary, "mrope_section"):
        axes = 3
        _check_sections(rotary, where)
    last = min(context, MANY) - 1
    axis_of = _axes_by_column(rotary, axes, last)
    for tables in LAYOUTS:
        own = axis_of[: len(frequencies)] if tables == "halves" else axis_of[::2]
        rope = Rope(axes, frequencies.float(), own, float(rotary.attention_scaling), tables, None)
        if _same_tables(rope, rotary, last):
            return replace(rope, turned=_turned(rope, attention, head_dim))
    raise FamilyError(
        f"{wants}, whose pairs lie half a head apart or side by side, found "
        f"{type(rotary).__name__}; this version of avl cannot export it"
    )


def turn(states: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, layout: str) -> torch.Tensor:
    """States [B, H, S, D] turned by cos and sin [B, S, F], as ONNX's RotaryEmbedding does."""
    width = 2 * cos.shape[-1]
    return torch.onnx.ops.rotary_embedding(
        states,
        cos,
        sin,
        interleaved=layout == "pairs",
        rotary_embedding_dim=0 if width == states.shape[-1] else width,
    )


def _tables(rotary: Any, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor] | None:
    """cos and sin of some positions, None if it cannot be called so."""
    with torch.no_grad():
        found = attempt(lambda: rotary(torch.zeros(1, positions.shape[-1], 1), positions))
    return _pair(found)


def _axes_by_column(rotary: Any, axes: int, last: int) -> torch.Tensor:
    """int64 [2 F]: the axis on which a position of its own shows in each column of sin."""
    if axes == 1:
        return torch.zeros(2 * len(rotary.inv_freq), dtype=torch.int64)
    one_hot = last * torch.eye(axes, dtype=torch.int64)
    columns = []
    for axis in range(axes):
        found = _tables(rotary, one_hot[axis][:, None, None])
        columns.append(torch.zeros(1) if found is None else found[1][0, 0].abs())
    return torch.stack(columns).argmax(0)


def _same_tables(rope: Rope, rotary: Any, last: int) -> bool:
    """Whether `Turns` of `rope` makes what `rotary` does, for positions drawn at random."""
    generator = torch.Generator().manual_seed(0)
    shape = (1, 16) if rope.axes == 1 else (rope.axes, 1, 16)
    positions = torch.randint(0, last + 1, shape, generator=generator)
    turns = Turns(rope)
    for name, value in Turns.constants(rope).items():
        setattr(turns, name, value)
    expected = _tables(rotary, positions)
    found = turns(torch.zeros(1), positions)
    return expected is not None and all(
        _close(one, other) for one, other in zip(found, expected, strict=True)
    )


def _turned(rope: Rope, attention: nn.Module, head_dim: int) -> Layout | None:
    """How pairs lie by which `attention` turns, None if it does otherwise than ONNX's op."""
    apply = getattr(sys.modules[type(attention).__module__], APPLY, None)
    if apply is None or APPLY not in type(attention).forward.__code__.co_names:
        return None
    generator = torch.Generator().manual_seed(0)
    angles = torch.randn(1, 3, len(rope.inv_freq), generator=generator)
    full = spread(angles, rope.tables)
    # Of partial RoPE either the function or attention itself takes what is turned.
    for width in dict.fromkeys((head_dim, full.shape[-1])):
        query, key = (torch.randn(1, heads, 3, width, generator=generator) for heads in (2, 1))
        found = _applied(apply, query, key, full)
        for layout in LAYOUTS:
            expected = [turn(x, angles.cos(), angles.sin(), layout) for x in (query, key)]
            if found is not None and all(map(_close, found, expected)):
                return layout
    return None


def _applied(
    apply: Any, query: torch.Tensor, key: torch.Tensor, angles: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor] | None:
    """What transformers' function makes of them, None if it takes others."""
    return _pair(attempt(lambda: apply(query, key, angles.cos(), angles.sin())))


def _pair(found: Any) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Two tensors, None of anything else."""
    if not isinstance(found, tuple) or len(found) != 2:
        return None
    one, other = found
    return (one, other) if all(isinstance(x, torch.Tensor) for x in found) else None


def _close(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.shape == other.shape and torch.allclose(one, other, atol=1e-5)


def _check_sections(rotary: Any, where: str) -> None:
    """Refuse sections that are no sizes, or that do not cover the frequencies."""
    sections, count = rotary.mrope_section, len(rotary.inv_freq)
    known = sections if isinstance(sections, list | tuple) else ()
    are_sizes = bool(known) and all(type(size) is int and size >= 0 for size in known)
    tables = _tables(rotary, torch.zeros(3, 1, 1, dtype=torch.int64)) if are_sizes else None
    if tables is None or tables[0].shape != (1, 1, 2 * count):
        raise FamilyError(
            f"{where}: expected an mrope_section of three numbers with the sum {count}, "
            f"found {quoted(sections, 60)}; fix config.json"
        )
