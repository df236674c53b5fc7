"""TensorRT-RTX compiles the bodies of layers with a state: If over rows, Scan over chunks."""

from __future__ import annotations

from typing import Any

import onnx.inliner
import pytest

from avl_plugins.bodies.state_body import CHUNK, state_function
from avl_plugins.schema import GATED_DELTA_RULE, STATE_OPS, Op
from ops.op_models import op_model

SIZES = {"B": 1, "Hk": 2, "Hv": 4, "Dk": 16, "Dv": 32, "C": 40, "K": 4, "J": 3}
ROWS = (1, CHUNK, 3 * CHUNK)  # the least, the best and the most


@pytest.mark.parametrize("op", STATE_OPS, ids=lambda op: op.name)
def test_a_body_is_compiled_for_steps_and_prompts(op: Op) -> None:
    trt: Any = pytest.importorskip("tensorrt_rtx")
    names = {size for value in op.inputs for size in value.shape}
    dims = {name: size for name, size in SIZES.items() if name in names}
    model = op_model(op, [state_function(op, SIZES["K"])], dims, {})
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, logger)
    inlined = onnx.inliner.inline_local_functions(model)
    assert parser.parse(inlined.SerializeToString()), parser.get_error(0).desc()
    profile, config = builder.create_optimization_profile(), builder.create_builder_config()
    for value in op.inputs:
        shapes = (tuple(dims.get(size, rows) for size in value.shape) for rows in ROWS)
        profile.set_shape(f"{value.name}.0", *shapes)
    config.add_optimization_profile(profile)
    assert builder.build_serialized_network(network, config) is not None
    loops = sum(
        layer.type == trt.LayerType.TRIP_LIMIT
        for layer in map(network.get_layer, range(network.num_layers))
    )
    assert loops == (op == GATED_DELTA_RULE)
