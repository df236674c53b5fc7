"""The two ops as ONNX functions of standard ops, for every runtime without a kernel of ours.

Node overhead dominates a small decode step, so the attention body is written for few nodes once a
graph is optimised:

- Everything about S comes from `row_weights`, which all layers share, so those nodes merge into
  one set a graph if the head counts are constants.
- The queries are scaled, not the scores: a scale fused into a product of one row costs ONNX
  Runtime its matrix-vector kernel, and half the speed.
- Grouped query heads are rows of one matrix, [B, Hkv, G * S, D]: KV heads are never repeated.
- Scores are concatenated, caches never are.
- Scores are masked and normalised in float32; the casts vanish where T is float32.
"""

from __future__ import annotations

import onnx
from onnx import parser

from avl_plugins.schema import (
    DOMAIN,
    PLUGIN_ATTRIBUTES,
    SPLIT_CACHE_ATTENTION,
    SPLIT_CACHE_UPDATE,
    Op,
)

_HEADS = ("Shape <start = 1, end = 2> (q)", "Shape <start = 1, end = 2> (k_new)")

_ATTENTION = """
    # Sizes of the new rows, their causal mask and their weights, [G * S, ...] with g outermost.
    heads = {heads}
    kv_heads = {kv_heads}
    group = Div (heads, kv_heads)
    new = Shape <start = 2, end = 3> (row_weights)
    zero = Constant <value_int = 0> ()
    one = Constant <value_int = 1> ()
    axis_1 = Constant <value_ints = [1]> ()
    axes_1_to_3 = Constant <value_ints = [1, 2, 3]> ()
    new_size = Squeeze (new)
    new_index = Range (zero, new_size, one)
    row_index = Tile (new_index, group)
    row_column = Unsqueeze (row_index, axis_1)
    causal = LessOrEqual (new_index, row_column)
    group_float = Cast <to = 1> (group)
    row_share = Div (row_weights, group_float)
    group_share = Gather <axis = 2> (row_share, row_index)
    weights = Unsqueeze (group_share, axis_1)

    # Scaled queries, one matrix a KV head.
    scale_float = Constant <value_float: float = @scale> ()
    scale_like = CastLike (scale_float, q)
    batch_dim = Constant <value_ints = [0]> ()
    rest_dims = Constant <value_ints = [-1, 0]> ()
    group_shape = Concat <axis = 0> (batch_dim, kv_heads, rest_dims)
    q_scaled = Mul (q, scale_like)
    q_group = Reshape (q_scaled, group_shape)

    # Scores of each block of keys, [B, Hkv, G * S, keys].
    masked = Constant <value_float = -3.4028234663852886e38> ()

    k_active_t = Transpose <perm = [0, 1, 3, 2]> (k_active)
    active_dot = MatMul (q_group, k_active_t)
    active_all = Cast <to = 1> (active_dot)
    active = Shape <start = 2, end = 3> (k_active)
    active_size = Squeeze (active)
    active_index = Range (zero, active_size, one)
    active_end = Unsqueeze (active_len, axes_1_to_3)
    active_seen = Less (active_index, active_end)
    active_scores = Where (active_seen, active_all, masked)

    k_parked_t = Transpose <perm = [0, 1, 3, 2]> (k_parked)
    parked_dot = MatMul (q_group, k_parked_t)
    parked_all = Cast <to = 1> (parked_dot)
    parked = Shape <start = 2, end = 3> (k_parked)
    parked_size = Squeeze (parked)
    parked_index = Range (zero, parked_size, one)
    parked_end = Unsqueeze (parked_len, axes_1_to_3)
    parked_seen = Less (parked_index, parked_end)
    parked_scores = Where (parked_seen, parked_all, masked)

    k_new_t = Transpose <perm = [0, 1, 3, 2]> (k_new)
    new_dot = MatMul (q_group, k_new_t)
    new_all = Cast <to = 1> (new_dot)
    new_scores = Where (causal, new_all, masked)

    scores = Concat <axis = 3> (active_scores, parked_scores, new_scores)
    probability = Softmax <axis = -1> (scores)
    sizes = Concat <axis = 0> (active, parked, new)

    # Values, then back to one row a query head.
    probability_like = CastLike (probability, q)
    p_active, p_parked, p_new = Split <axis = 3> (probability_like, sizes)
    o_active = MatMul (p_active, v_active)
    o_parked = MatMul (p_parked, v_parked)
    o_new = MatMul (p_new, v_new)
    o_group = Sum (o_active, o_parked, o_new)
    out_shape = Concat <axis = 0> (batch_dim, heads, rest_dims)
    out = Reshape (o_group, out_shape)

    mass = MatMul (weights, probability)
    mass_active, mass_parked, mass_new = Split <axis = 3> (mass, sizes)
"""

_UPDATE = """
    # Addresses [B, Hkv, M] as indices [B, Hkv, M, D]. A move to nowhere goes to the first new row,
    # which is not returned.
    active = Shape <start = 2, end = 3> (k_active)
    parked = Shape <start = 2, end = 3> (k_parked)
    new = Shape <start = 2, end = 3> (k_new)
    sizes = Concat <axis = 0> (active, parked, new)
    cached = Add (active, parked)
    zero = Constant <value_int = 0> ()
    last_axis = Constant <value_ints = [-1]> ()
    moves = Shape (source)
    head_dim = Shape <start = 3, end = 4> (k_new)
    index_shape = Concat <axis = 0> (moves, head_dim)
    nowhere = Less (destination, zero)
    target = Where (nowhere, cached, destination)
    target_column = Unsqueeze (target, last_axis)
    target_index = Expand (target_column, index_shape)
    source_column = Unsqueeze (source, last_axis)
    source_index = Expand (source_column, index_shape)

    k_before = Concat <axis = 2> (k_active, k_parked, k_new)
    k_moved = GatherElements <axis = 2> (k_before, source_index)
    k_after = ScatterElements <axis = 2> (k_before, target_index, k_moved)
    k_active_out, k_parked_out, k_rest = Split <axis = 2> (k_after, sizes)

    v_before = Concat <axis = 2> (v_active, v_parked, v_new)
    v_moved = GatherElements <axis = 2> (v_before, source_index)
    v_after = ScatterElements <axis = 2> (v_before, target_index, v_moved)
    v_active_out, v_parked_out, v_rest = Split <axis = 2> (v_after, sizes)
"""


def split_cache_attention_function(
    opset: int = 23, heads: tuple[int, int] | None = None
) -> onnx.FunctionProto:
    """`avl::SplitCacheAttention` as a function; a model needs the same default `opset`.

    `heads` (H, Hkv) writes the head counts into the body. The result is the same, but ONNX Runtime
    then merges the nodes that all layers share: about a quarter fewer nodes a layer.
    """
    query, key = _HEADS if heads is None else (constant_ints(heads[0]), constant_ints(heads[1]))
    body = _ATTENTION.replace("{heads}", query).replace("{kv_heads}", key)
    return function_proto(SPLIT_CACHE_ATTENTION, body, opset)


def split_cache_update_function(opset: int = 23) -> onnx.FunctionProto:
    """`avl::SplitCacheUpdate` as a function; a model needs the same default `opset`."""
    return function_proto(SPLIT_CACHE_UPDATE, _UPDATE, opset)


def attention_node_attributes(scale: float) -> dict[str, float | int | str]:
    """What a SplitCacheAttention node carries: its scale, and what names the TensorRT plugin."""
    return {"scale": float(scale), **PLUGIN_ATTRIBUTES}


def constant_ints(value: int) -> str:
    """A node whose output is [value], in the parser's language."""
    return f"Constant <value_ints = [{value}]> ()"


def function_proto(op: Op, body: str, opset: int) -> onnx.FunctionProto:
    """`body` in the parser's language as a function with the signature of `op`."""
    attributes = ", ".join(attribute.name for attribute in op.attributes)
    signature = (
        f'<domain: "{DOMAIN}", opset_import: ["" : {opset}]>\n'
        f"{op.name} {f'<{attributes}>' if attributes else ''} "
        f"({', '.join(value.name for value in op.inputs)}) "
        f"=> ({', '.join(value.name for value in op.outputs)})\n"
    )
    function = parser.parse_function(f"{signature}{{{body}}}")
    function.doc_string = op.doc
    return function
