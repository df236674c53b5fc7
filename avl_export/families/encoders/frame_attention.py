"""Attention over whole frames, as torch.export sees it, and its translation to one ONNX node.

Traced op by op, so many small products (`Cut`) would take longer than all else of an export.
`avl_export.graph.frames` makes of the node what runtimes know.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from onnx import defs
from onnxscript.values import Opset

from avl_export.families.replicate import KINDS

DOMAIN = "avl.frames"
NAME = "FrameAttention"
SIZES = ("heads", "parts", "width")

torch.library.define(
    "avl::frame_attention",
    "(Tensor query, Tensor key, Tensor value, Tensor? mask, int heads, int parts, float scale) "
    "-> Tensor",
)


def frame_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    heads: int,
    parts: int,
    scale: float,
) -> torch.Tensor:
    """Every row of a frame attends to all of its rows: [T, P, C] each -> [T, P, C].

    Only for tracing: it computes nothing.

    Args:
        mask: [P], 0 at keys that are seen and far below at others.
        parts: into how many the queries of a frame are divided; P is a multiple.
    """
    out = torch.ops.avl.frame_attention(query, key, value, mask, heads, parts, scale)
    return cast(torch.Tensor, out)


def _shape(query: torch.Tensor, *_: object) -> torch.Tensor:
    return torch.empty_like(query)


def _node(query: Any, key: Any, value: Any, mask: Any, heads: int, parts: int, scale: float) -> Any:
    inputs = (query, key, value) if mask is None else (query, key, value, mask)
    sizes = dict(zip(SIZES, (heads, parts, query.shape[-1]), strict=True))
    return Opset(DOMAIN, 1).FrameAttention(*inputs, scale=scale, **sizes)


def translation() -> dict[Any, Any]:
    """The custom translation table entry; registers the ONNX schema."""
    if not defs.has(NAME, DOMAIN):
        defs.register_schema(_schema())
    return {torch.ops.avl.frame_attention.default: _node}


def _schema() -> defs.OpSchema:
    schema = defs.OpSchema
    rows = [schema.FormalParameter(name, "T") for name in ("query", "key", "value")]
    mask = schema.FormalParameter("mask", "T", param_option=schema.FormalParameterOption.Optional)
    kind = schema.AttrType
    return schema(
        NAME,
        DOMAIN,
        1,
        inputs=[*rows, mask],
        outputs=[schema.FormalParameter("out", "T")],
        type_constraints=[("T", list(KINDS), "")],
        attributes=[
            schema.Attribute("scale", kind.FLOAT, "", required=True),
            *(schema.Attribute(name, kind.INT, "", required=True) for name in SIZES),
        ],
    )


torch.library.register_fake("avl::frame_attention", _shape)
