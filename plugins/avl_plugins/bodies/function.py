"""The ops as ONNX functions of standard ops, for every runtime without a kernel of ours."""

from __future__ import annotations

import onnx
from onnx import parser

from avl_plugins.bodies.attention_body import attention_body, prompt_body, step_body
from avl_plugins.bodies.linear_ops import (
    ADD_BIAS,
    FINISHED_LINEARS,
    GATED_LINEARS,
    QUANTIZED_LINEARS,
)
from avl_plugins.bodies.mutual_body import WHOLE, Cut, cut_body
from avl_plugins.bodies.reach_body import (
    block_body,
    block_prompt_body,
    window_body,
    window_prompt_body,
)
from avl_plugins.schema import (
    BLOCK_CACHE_ATTENTION,
    BLOCK_CACHE_PROMPT,
    DOMAIN,
    MASKED_MUTUAL_ATTENTION,
    MUTUAL_ATTENTION,
    PLUGIN_ATTRIBUTES,
    SPLIT_CACHE_ATTENTION,
    SPLIT_CACHE_PROMPT,
    SPLIT_CACHE_STEP,
    VERSION,
    WINDOW_CACHE_ATTENTION,
    WINDOW_CACHE_PROMPT,
    Op,
)

_PLAIN_LINEAR = """
    {w} = Cast <to = 1> ({tensors})
    {y} = Gemm <transB = 1> (x, {w})
"""
# What follows a linear, from {product} to {y}.
_ENDINGS = {
    ADD_BIAS: """
    {y} = Add ({product}, {bias})
""",
    "AddBiasGelu": """
    sum = Add ({product}, {bias})
    {y} = Gelu (sum)
""",
    "AddBiasTanhGelu": """
    sum = Add ({product}, {bias})
    {y} = Gelu <approximate = "tanh"> (sum)
""",
    "AddBiasQuickGelu": """
    sum = Add ({product}, {bias})
    slope = Constant <value_float = 1.702> ()
    steep = Mul (sum, slope)
    share = Sigmoid (steep)
    {y} = Mul (sum, share)
""",
}
# From products y_0 and y_1 to y.
_GATES = {
    "SiluGate": """
    share = Sigmoid (y_0)
    gate = Mul (y_0, share)
    y = Mul (gate, y_1)
""",
    "GeluGate": """
    gate = Gelu (y_0)
    y = Mul (gate, y_1)
""",
    "TanhGeluGate": """
    gate = Gelu <approximate = "tanh"> (y_0)
    y = Mul (gate, y_1)
""",
}

_QUANTIZED_LINEAR = """
    {w} = DequantizeLinear <axis: int = @axis, block_size: int = @block_size> ({tensors})
    {y} = Gemm (x, {w})
"""

_QUANTIZED_NAMES = {op.name for op in QUANTIZED_LINEARS.values()}
# The linear, and its ending or gate:
_WITHOUT = {op.name: parts for parts, op in (*FINISHED_LINEARS.items(), *GATED_LINEARS.items())}


def split_cache_attention_functions(
    opset: int = 23, heads: tuple[int, int] | None = None
) -> tuple[onnx.FunctionProto, onnx.FunctionProto, onnx.FunctionProto]:
    """`avl::SplitCacheAttention`, and the functions that it calls: `SplitCacheStep` and `-Prompt`.

    A model needs all and the same default `opset`. ONNX Runtime takes kernels of ours for the two
    where they are registered (`avl_plugins.cpu`), and else their bodies.

    `heads` (H, Hkv) writes the head counts into the bodies. The result is the same, with fewer
    nodes: what depends on the counts alone is then worked out when a graph is loaded.
    """
    return (
        function_proto(SPLIT_CACHE_ATTENTION, attention_body(), opset),
        function_proto(SPLIT_CACHE_STEP, step_body(heads), opset),
        function_proto(SPLIT_CACHE_PROMPT, prompt_body(heads), opset),
    )


def reach_functions(
    op: Op, opset: int = 23, heads: tuple[int, int] | None = None
) -> tuple[onnx.FunctionProto, onnx.FunctionProto]:
    """BLOCK_CACHE_ATTENTION or WINDOW_CACHE_ATTENTION, and what it calls of its own.

    A model needs `split_cache_attention_functions` too; arguments are the same.

    Raises:
        KeyError: `op` is none of the two.
    """
    part, body, masked = {
        BLOCK_CACHE_ATTENTION.name: (BLOCK_CACHE_PROMPT, block_body, block_prompt_body),
        WINDOW_CACHE_ATTENTION.name: (WINDOW_CACHE_PROMPT, window_body, window_prompt_body),
    }[op.name]
    return function_proto(op, body(), opset), function_proto(part, masked(heads), opset)


def mutual_attention_function(
    opset: int = 23, cut: Cut | None = None, *, masked: bool = False
) -> onnx.FunctionProto:
    """`avl::MutualAttention` or `avl::MaskedMutualAttention`; a model needs the same `opset`.

    Args:
        cut: computes scores in parts, for rows of these sizes alone. None leaves all of it to the
            runtime, which masks cannot be.
    """
    op = MASKED_MUTUAL_ATTENTION if masked else MUTUAL_ATTENTION
    return function_proto(op, WHOLE if cut is None else cut_body(cut, masked), opset)


def linear_function(op: Op, opset: int = 23) -> onnx.FunctionProto:
    """One of `linear_ops.LINEARS` as a function; a model needs the same default `opset`.

    ONNX Runtime takes a kernel of ours where one is registered. Else it fuses DequantizeLinear and
    Gemm into MatMulNBits, and does a Cast of weights when it loads the graph.
    """
    base, ending = _WITHOUT.get(op.name, (op.name, ""))
    template = _QUANTIZED_LINEAR if base in _QUANTIZED_NAMES else _PLAIN_LINEAR
    gate = _GATES.get(ending, "")
    products = ["y_0", "y_1"] if gate else [value.name for value in op.outputs]
    tensors = [value.name for value in op.inputs[1:]]
    each = len(tensors) // len(products)
    has_bias = ending in _ENDINGS
    body = ""
    for y, at in zip(products, range(0, len(tensors), each), strict=True):
        product = f"product_of_{y}" if has_bias else y
        weight = tensors[at : at + each - has_bias]
        body += template.format(y=product, w=f"weight_of_{y}", tensors=", ".join(weight))
        if has_bias:
            body += _ENDINGS[ending].format(y=y, product=product, bias=tensors[at + each - 1])
    return function_proto(op, body + gate, opset)


def attention_node_attributes(scale: float) -> dict[str, float | int | str]:
    """What a SplitCacheAttention node carries: its scale, and what names the TensorRT plugin."""
    return {"scale": float(scale), **PLUGIN_ATTRIBUTES}


def function_proto(op: Op, body: str, opset: int) -> onnx.FunctionProto:
    """`body` in the parser's language as a function with the signature of `op`."""
    attributes = ", ".join(attribute.name for attribute in op.attributes)
    signature = (
        f'<domain: "{DOMAIN}", opset_import: ["" : {opset}, "{DOMAIN}" : {VERSION}]>\n'
        f"{op.name} {f'<{attributes}>' if attributes else ''} "
        f"({', '.join(value.name for value in op.inputs)}) "
        f"=> ({', '.join(value.name for value in op.outputs)})\n"
    )
    function = parser.parse_function(f"{signature}{{{body}}}")
    function.doc_string = op.doc
    return function
