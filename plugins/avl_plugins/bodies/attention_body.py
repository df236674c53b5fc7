"""SplitCacheAttention in standard ONNX ops, in the language of `onnx.parser`.

It chooses between two functions of their own, which kernels may take over. SplitCachePrompt, of a
prompt's chunk, goes to a runtime's own attention, over cached rows cut to the longest sequence's;
masses come from those rows alone that have a weight. SplitCacheStep, of one row, takes matrix
products, and has a branch for steps that read parked rows (refreshes) and one for those that do
not.

Node overhead dominates a small decode step, so those branches are written for few nodes:

- ONNX Runtime merges equal nodes of several layers, but not if a branch reads them: what branches
  read is a layer's own, and only the choice between them stands before them.
- The queries are scaled, not the scores: a scale fused into a product of one row costs ONNX
  Runtime its matrix-vector kernel.
- Grouped query heads are rows of one matrix, [B, Hkv, G * S, D]: KV heads are never repeated.
- Scores are concatenated, caches never are.
- Scores are masked and normalised in float32; the casts vanish where T is float32.
"""

from __future__ import annotations

from collections.abc import Mapping

_HEADS = ("Shape <start = 1, end = 2> (q)", "Shape <start = 1, end = 2> (k_new)")

_INPUTS = """q, k_new, v_new, k_active, v_active, active_len,
                    k_parked, v_parked, parked_len, row_weights"""

_ATTENTION = """
    rows_now = Shape <start = 2, end = 3> (row_weights)
    one_row = Constant <value_ints = [1]> ()
    is_step = Equal (rows_now, one_row)
    out, mass_active, mass_parked, mass_new = If (is_step) <
        then_branch = step () => (step_out, step_active, step_parked, step_new)
        {
            step_out, step_active, step_parked, step_new =
                avl.{step} <scale: float = @scale> ({inputs})
        },
        else_branch = prompt () => (prompt_out, prompt_active, prompt_parked, prompt_new)
        { {prompt} }
    >
"""

_PROMPT_CALL = """
            prompt_out, prompt_active, prompt_parked, prompt_new =
                avl.{prompt} <scale: float = @scale> ({inputs})
"""

_STEPS = """
    parked_most = ReduceMax <keepdims = 1> (parked_len)
    nothing_parked = Constant <value_ints = [0]> ()
    is_ordinary = Equal (parked_most, nothing_parked)
    {scaled}
    out, mass_active, mass_parked, mass_new = If (is_ordinary) <
        then_branch = ordinary ()
            => (ordinary_out, ordinary_active, ordinary_parked, ordinary_new)
        { {ordinary} },
        else_branch = refresh ()
            => (refresh_out, refresh_active, refresh_parked, refresh_new)
        { {refresh} }
    >
"""

_SCALED = """
    scale_float = Constant <value_float: float = @scale> ()
    scale_like = CastLike (scale_float, q)
    q_scaled = Mul (q, scale_like)"""

_PROMPT = """
    {scaled}
    # Cached rows up to the longest sequence's, and which of them a sequence has.
    axis_0 = Constant <value_ints = [0]> ()
    axis_1 = Constant <value_ints = [1]> ()
    axis_2 = Constant <value_ints = [2]> ()
    axis_3 = Constant <value_ints = [3]> ()
    axes_0_1 = Constant <value_ints = [0, 1]> ()
    axes_1_to_3 = Constant <value_ints = [1, 2, 3]> ()
    begin = Constant <value_ints = [0]> ()
    p_zero = Constant <value_int = 0> ()
    p_one = Constant <value_int = 1> ()
    heads = {heads}
    kv_heads = {kv_heads}
    group = Div (heads, kv_heads)
    batch = Shape <start = 0, end = 1> (row_weights)
    one_dim = Constant <value_ints = [1]> ()
    rows_new = Shape <start = 2, end = 3> (row_weights)
    rows_size = Squeeze (rows_new)

    active_top = ReduceMax <keepdims = 1> (active_len)
    k_active_used = Slice (k_active, begin, active_top, axis_2)
    v_active_used = Slice (v_active, begin, active_top, axis_2)
    active_size = Squeeze (active_top)
    active_index = Range (p_zero, active_size, p_one)
    active_end = Unsqueeze (active_len, axes_1_to_3)
    active_has = Less (active_index, active_end)
    {active_near}
    active_shape = Concat <axis = 0> (batch, one_dim, rows_new, active_top)
    active_seen = Expand ({active_sees}, active_shape)

    parked_top = ReduceMax <keepdims = 1> (parked_len)
    k_parked_used = Slice (k_parked, begin, parked_top, axis_2)
    v_parked_used = Slice (v_parked, begin, parked_top, axis_2)
    parked_size = Squeeze (parked_top)
    parked_index = Range (p_zero, parked_size, p_one)
    parked_end = Unsqueeze (parked_len, axes_1_to_3)
    parked_has = Less (parked_index, parked_end)
    parked_shape = Concat <axis = 0> (batch, one_dim, rows_new, parked_top)
    parked_seen = Expand (parked_has, parked_shape)

    new_index = Range (p_zero, rows_size, p_one)
    {new_sees}
    new_shape = Concat <axis = 0> (batch, one_dim, rows_new, rows_new)
    new_seen = Expand (sees, new_shape)

    k = Concat <axis = 2> (k_active_used, k_parked_used, k_new)
    v = Concat <axis = 2> (v_active_used, v_parked_used, v_new)
    seen = Concat <axis = 3> (active_seen, parked_seen, new_seen)
    {mask}
    out = Attention <scale = 1.0> (q_scaled, k, v, {mask_is})

    # Masses, from the n rows with a weight and, as n must not be 0, the last: queries
    # [B, Hkv, G * n, D].
    nothing = Constant <value_float = 0.0> ()
    masked = Constant <value_float = -3.4028234663852886e38> ()
    weight_size = Abs (row_weights)
    row_weight = ReduceMax <keepdims = 0> (weight_size, axes_0_1)
    has_weight = Greater (row_weight, nothing)
    last_index = Sub (rows_size, p_one)
    is_last = Equal (new_index, last_index)
    is_wanted = Or (has_weight, is_last)
    found_rows = NonZero (is_wanted)
    rows = Squeeze (found_rows, axis_0)
    rows_count = Shape (rows)
    group_rows = Mul (group, rows_count)
    head_dim = Shape <start = 3, end = 4> (q_scaled)
    rows_shape = Concat <axis = 0> (batch, kv_heads, group_rows, head_dim)
    q_at_rows = Gather <axis = 2> (q_scaled, rows)
    q_rows = Reshape (q_at_rows, rows_shape)
    k_t = Transpose <perm = [0, 1, 3, 2]> (k)
    rows_dot = MatMul (q_rows, k_t)
    {rows_all}
    of_group = Tile (rows, group)
    rows_seen = Gather <axis = 2> (seen, of_group)
    rows_scores = Where (rows_seen, rows_all, masked)
    probability = Softmax <axis = -1> (rows_scores)
    rows_weight = Gather <axis = 2> (row_weights, of_group)
    group_float = Cast <to = 1> (group)
    rows_share = Div (rows_weight, group_float)
    weights = Unsqueeze (rows_share, axis_1)
    mass = MatMul (weights, probability)
    used_sizes = Concat <axis = 0> (active_top, parked_top, rows_new)
    active_mass, parked_mass, mass_new = Split <axis = 3> (mass, used_sizes)
    active_capacity = Shape <start = 2, end = 3> (k_active)
    active_rest = Sub (active_capacity, active_top)
    active_pads = Concat <axis = 0> (begin, active_rest)
    mass_active = Pad (active_mass, active_pads, nothing, axis_3)
    parked_capacity = Shape <start = 2, end = 3> (k_parked)
    parked_rest = Sub (parked_capacity, parked_top)
    parked_pads = Concat <axis = 0> (begin, parked_rest)
    mass_parked = Pad (parked_mass, parked_pads, nothing, axis_3)
"""

_CAUSAL = """
    new_column = Unsqueeze (new_index, axis_1)
    sees = LessOrEqual (new_index, new_column)"""

_STEP = """
    # One matrix of queries a KV head, [B, Hkv, G, D].
    heads = {heads}
    kv_heads = {kv_heads}
    group = Div (heads, kv_heads)
    batch_dim = Constant <value_ints = [0]> ()
    rest_dims = Constant <value_ints = [-1, 0]> ()
    group_shape = Concat <axis = 0> (batch_dim, kv_heads, rest_dims)
    q_group = Reshape (q_scaled, group_shape)

    # Scores of each block of keys, [B, Hkv, G, keys].
    axes_1_to_3 = Constant <value_ints = [1, 2, 3]> ()
    s_zero = Constant <value_int = 0> ()
    s_one = Constant <value_int = 1> ()
    s_one_dim = Constant <value_ints = [1]> ()
    masked = Constant <value_float = -3.4028234663852886e38> ()
    k_active_t = Transpose <perm = [0, 1, 3, 2]> (k_active)
    active_dot = MatMul (q_group, k_active_t)
    {active_all}
    active = Shape <start = 2, end = 3> (k_active)
    active_size = Squeeze (active)
    active_index = Range (s_zero, active_size, s_one)
    active_end = Unsqueeze (active_len, axes_1_to_3)
    active_seen = Less (active_index, active_end)
    active_scores = Where (active_seen, active_all, masked)
    k_new_t = Transpose <perm = [0, 1, 3, 2]> (k_new)
    new_dot = MatMul (q_group, k_new_t)
    {new_all}
    {parked_scores}
    scores = Concat <axis = 3> ({scores})
    probability = Softmax <axis = -1> (scores)
    sizes = Concat <axis = 0> ({sizes})

    # Values, then back to one row a query head.
    probability_like = CastLike (probability, q_scaled)
    {probabilities} = Split <axis = 3> (probability_like, sizes)
    o_active = MatMul (p_active, v_active)
    o_new = MatMul (p_new, v_new)
    {values}
    out_shape = Concat <axis = 0> (batch_dim, heads, rest_dims)
    {out} = Reshape (o_group, out_shape)

    # Weights [B, 1, R, G]; the mean over a group is in them.
    begin = Constant <value_ints = [0]> ()
    axis_1 = Constant <value_ints = [1]> ()
    of_group = Tile (begin, group)
    group_weights = Gather <axis = 2> (row_weights, of_group)
    group_float = Cast <to = 1> (group)
    group_share = Div (group_weights, group_float)
    weights = Unsqueeze (group_share, axis_1)
    mass = MatMul (weights, probability)
    {masses}
"""

# A step that reads parked rows, and one that does not: some ten nodes fewer.
_REFRESH = {
    "parked_scores": """
    k_parked_t = Transpose <perm = [0, 1, 3, 2]> (k_parked)
    parked_dot = MatMul (q_group, k_parked_t)
    {parked_all}
    parked = Shape <start = 2, end = 3> (k_parked)
    parked_size = Squeeze (parked)
    parked_index = Range (s_zero, parked_size, s_one)
    parked_end = Unsqueeze (parked_len, axes_1_to_3)
    parked_seen = Less (parked_index, parked_end)
    parked_scores = Where (parked_seen, parked_all, masked)""",
    "scores": "active_scores, parked_scores, new_scores",
    "sizes": "active, parked, s_one_dim",
    "probabilities": "p_active, p_parked, p_new",
    "values": """
    o_parked = MatMul (p_parked, v_parked)
    o_group = Sum (o_active, o_parked, o_new)""",
    "out": "refresh_out",
    "masses": "refresh_active, refresh_parked, refresh_new = Split <axis = 3> (mass, sizes)",
}
_ORDINARY = {
    "parked_scores": "",
    "scores": "active_scores, new_scores",
    "sizes": "active, s_one_dim",
    "probabilities": "p_active, p_new",
    "values": "o_group = Add (o_active, o_new)",
    "out": "ordinary_out",
    "masses": """
    ordinary_active, ordinary_new = Split <axis = 3> (mass, sizes)
    each_head = Shape <start = 0, end = 2> (k_parked)
    each_weighting = Shape <start = 1, end = 2> (row_weights)
    each_row = Shape <start = 2, end = 3> (k_parked)
    unread = Concat <axis = 0> (each_head, each_weighting, each_row)
    ordinary_parked = ConstantOfShape (unread)""",
}


# What scores are, in float32.
_STEP_SCORES = {
    "active_all": "active_all = Cast <to = 1> (active_dot)",
    "parked_all": "parked_all = Cast <to = 1> (parked_dot)",
    "new_all": "new_scores = Cast <to = 1> (new_dot)",
}
_PROMPT_SCORES = {
    "mask": "",
    "mask_is": "seen",
    "rows_all": "rows_all = Cast <to = 1> (rows_dot)",
}


def attention_body(
    prompt: str = "",
    more: str = "",
    step: str = "SplitCacheStep",
    several: str = "SplitCachePrompt",
) -> str:
    """SplitCacheAttention's nodes: the choice between the two functions below.

    Args:
        prompt: nodes for several rows, which make prompt_out, prompt_active, prompt_parked and
            prompt_new; {inputs} in them are those of the op. By default a call of `several`.
        more: inputs of the op behind those of SplitCacheAttention, that both functions take.
        step: the function of one row.
    """
    inputs = f"{_INPUTS}, {more}" if more else _INPUTS
    prompt = prompt or filled(_PROMPT_CALL, prompt=several)
    return filled(_ATTENTION, step=step, prompt=prompt, inputs=inputs)


def prompt_body(
    heads: tuple[int, int] | None,
    new_sees: str = _CAUSAL,
    active_near: str = "",
    active_sees: str = "active_has",
    scores: Mapping[str, str] = _PROMPT_SCORES,
) -> str:
    """SplitCachePrompt's nodes; `heads` (H, Hkv) writes the head counts into them.

    Args:
        new_sees: nodes that make `sees` [..., S, S], which new rows see which.
        active_near: nodes in front of `active_sees` [..., S or 1, rows], which active rows they
            see.
        scores: nodes of scores and their mask, by their place.
    """
    parts = {"new_sees": new_sees, "active_near": active_near, "active_sees": active_sees}
    return _with_heads(filled(_PROMPT, scaled=_SCALED, **parts, **scores), heads)


def step_body(heads: tuple[int, int] | None, scores: Mapping[str, str] = _STEP_SCORES) -> str:
    """SplitCacheStep's nodes; arguments as for `prompt_body`."""
    ordinary, refresh = (filled(_STEP, **parts, **scores) for parts in (_ORDINARY, _REFRESH))
    return _with_heads(filled(_STEPS, scaled=_SCALED, ordinary=ordinary, refresh=refresh), heads)


def constant_ints(value: int) -> str:
    """A node whose output is [value], in the parser's language."""
    return f"Constant <value_ints = [{value}]> ()"


def filled(template: str, **parts: object) -> str:
    """`template` with each {name} of `parts` replaced; braces of the parser's language stay."""
    for name, part in parts.items():
        template = template.replace(f"{{{name}}}", str(part))
    return template


def _with_heads(body: str, heads: tuple[int, int] | None) -> str:
    """`body` with the head counts, or with what finds them in the shapes of q and k_new."""
    query, key = _HEADS if heads is None else (constant_ints(heads[0]), constant_ints(heads[1]))
    return filled(body, heads=query, kv_heads=key)
