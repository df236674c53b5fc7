"""TensorRT-RTX compiles attention with RESTORE's bias: its If and its tables, steps and prompts."""

from __future__ import annotations

from typing import Any

import onnx.inliner
import pytest

from avl_plugins.bodies.compiled_function import compiled_attention_function
from avl_plugins.bodies.restored_function import choice_functions
from avl_plugins.schema import RESTORED_CACHE_ATTENTION
from ops.op_models import op_model

HEADS = (4, 2)
ROWS = ({"S": 1, "A": 8, "P": 1}, {"S": 1, "A": 64, "P": 16}, {"S": 64, "A": 256, "P": 128})


@pytest.mark.parametrize("axes", [1, 3])
def test_attention_with_a_bias_is_compiled(axes: int) -> None:
    trt: Any = pytest.importorskip("tensorrt_rtx")
    op = RESTORED_CACHE_ATTENTION
    sizes = {"B": 1, "H": HEADS[0], "Hkv": HEADS[1], "D": 16, "E": 1, "R": 2}
    sizes |= {"F": 1, "Z": axes + 1, "X": axes, "M": 512}
    bodies = [compiled_attention_function(23, HEADS, biased=biased) for biased in (False, True)]
    functions = (*choice_functions(axes), *bodies)
    model = onnx.inliner.inline_local_functions(op_model(op, functions, sizes, {"scale": 0.25}))
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, logger)
    assert parser.parse(model.SerializeToString()), parser.get_error(0).desc()
    profile, config = builder.create_optimization_profile(), builder.create_builder_config()
    for value in op.inputs:
        shapes = [tuple((sizes | rows)[size] for size in value.shape) for rows in ROWS]
        profile.set_shape(f"{value.name}.0", *shapes)
    config.add_optimization_profile(profile)
    assert builder.build_serialized_network(network, config) is not None
