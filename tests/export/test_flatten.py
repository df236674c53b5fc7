"""Hidden states as rows between attentions: the same numbers, and where they are reshaped."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
from onnx_ir.passes import common as passes

from avl_export.graph.flatten import flatten_rows

# Two layers of one linear each, as a trace has them, the second one's hidden states with `features`
# added to them.
TRACED = """
<ir_version: 10, opset_import: ["" : 23]>
layers (float[batch, seq, 4] hidden, float[batch, seq, 4] features, float[batch, 1, 4] shift)
    => (float[batch, seq, 4] out, float[batch, seq, 4] moved)
<float[4] scale = {1, 2, 3, 4}, int64[2] rows = {-1, 4}, int64[1] width = {4},
 float[4, 4] weight = {1, 0, 2, 0, 0, 1, 0, -1, 3, 0, 1, 0, 0, 1, 1, 1}>
{
    normed = RMSNormalization <axis = -1> (hidden, scale)
    matrix = Reshape (normed, rows)
    product = Gemm (matrix, weight)
    lead = Shape <start = 0, end = -1> (normed)
    sizes = Concat <axis = 0> (lead, width)
    whole = Reshape (product, sizes)
    first = Add (hidden, whole)
    added = Add (first, features)
    normed_2 = RMSNormalization <axis = -1> (added, scale)
    matrix_2 = Reshape (normed_2, rows)
    product_2 = Gemm (matrix_2, weight)
    lead_2 = Shape <start = 0, end = -1> (normed_2)
    sizes_2 = Concat <axis = 0> (lead_2, width)
    whole_2 = Reshape (product_2, sizes_2)
    out = Add (added, whole_2)
    moved = Add (features, shift)
}
"""


def test_features_that_are_added_become_rows_too() -> None:
    before = onnx.parser.parse_model(TRACED)
    model = ir.serde.deserialize_model(before)
    flatten_rows(model.graph)
    for clean in (passes.RemoveUnusedNodesPass(), passes.NameFixPass()):
        clean(model)
    after = ir.serde.serialize_model(model)
    onnx.checker.check_model(after, full_check=True)
    # Of both inputs on the way in, and of the hidden states on the way out.
    assert Counter(node.op_type for node in after.graph.node)["Reshape"] == 3
    numbers = np.random.default_rng(0)
    feeds = {
        name: numbers.standard_normal(shape, np.float32)
        for name, shape in (("hidden", (2, 3, 4)), ("features", (2, 3, 4)), ("shift", (2, 1, 4)))
    }
    found, wanted = (
        ort.InferenceSession(one.SerializeToString()).run(None, feeds) for one in (after, before)
    )
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(one, other)
