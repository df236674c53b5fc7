"""Ops between linears, whose rows hold heads side by side, and attention, which has them apart.

Shapes are named dimensions, as in `ops`:

    rows = B * S    B batch    S new rows    D head size    F pairs of a head that are turned
    H query heads    Hkv KV heads
"""

from __future__ import annotations

from dataclasses import replace

from avl_plugins.schema.ops import Attribute, Op, Value

ROTARY_HEADS = Op(
    name="RotaryHeads",
    doc=(
        "Rows of queries, keys and values as heads. Of queries and keys the first 2 F numbers of "
        "each head are turned as ONNX's RotaryEmbedding does: (a, b) becomes (a cos - b sin, "
        "b cos + a sin)."
    ),
    inputs=(
        Value("q", "T", ("rows", "H * D"), "queries"),
        Value("k", "T", ("rows", "Hkv * D"), "keys"),
        Value("v", "T", ("rows", "Hkv * D"), "values"),
        Value("cos", "T", ("B", "S", "F"), "of each row's angles"),
        Value("sin", "T", ("B", "S", "F"), "of each row's angles"),
    ),
    outputs=(
        Value("q_heads", "T", ("B", "H", "S", "D"), "queries, turned"),
        Value("k_heads", "T", ("B", "Hkv", "S", "D"), "keys, turned"),
        Value("v_heads", "T", ("B", "Hkv", "S", "D"), "values"),
    ),
    attributes=(
        Attribute("head_size", "int", "D"),
        Attribute("interleaved", "int", "1: pairs lie side by side; 0: F apart"),
        Attribute("rotated", "int", "2 F, or 0 where that is D"),
    ),
)

NORMED_ROTARY_HEADS = replace(
    ROTARY_HEADS,
    name="NormedRotaryHeads",
    doc=f"{ROTARY_HEADS.doc} Before, each head is divided by its root mean square, times a weight.",
    inputs=(
        *ROTARY_HEADS.inputs,
        Value("q_norm", "T", ("D",), "weight of queries"),
        Value("k_norm", "T", ("D",), "weight of keys"),
    ),
    attributes=(
        *ROTARY_HEADS.attributes,
        Attribute("epsilon", "float", "is added to the mean square"),
    ),
)

JOINED_HEADS = Op(
    name="JoinedHeads",
    doc="What attention gives, as rows whose heads lie side by side.",
    inputs=(Value("heads", "T", ("B", "H", "S", "D"), "of each row"),),
    outputs=(Value("joined", "T", ("rows", "H * D"), "the same numbers"),),
)

HEAD_OPS = (ROTARY_HEADS, NORMED_ROTARY_HEADS, JOINED_HEADS)
