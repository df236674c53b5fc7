"""One-op models, sessions on them, and random inputs with poisoned unused rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx.inliner
import onnxruntime as ort
from hypothesis import strategies as st
from onnx import TensorProto, helper

from avl_plugins.schema import Op, Value

POISON = 1e4  # large and finite: what a cache may hold past its length

Arrays = dict[str, np.ndarray[Any, Any]]
NUMPY_TYPES = {
    TensorProto.FLOAT: np.float32,
    TensorProto.FLOAT16: np.float16,
    TensorProto.BFLOAT16: ml_dtypes.bfloat16,
}


def op_model(
    op: Op,
    functions: Sequence[onnx.FunctionProto],
    dims: Mapping[str, int],
    attributes: Mapping[str, Any],
    *,
    element: int = TensorProto.FLOAT,
    stored: int = TensorProto.FLOAT,
    layers: int = 1,
    shared: tuple[str, ...] = (),
    opset: int = 23,
) -> onnx.ModelProto:
    """A model of `layers` nodes; dimensions in `dims` are static, others symbolic.

    Values are named `name.layer`; those in `shared` are one graph input named `name`.
    """

    def info(value: Value, layer: int) -> onnx.ValueInfoProto:
        kinds = {"T": element, "int64": TensorProto.INT64, "float32": TensorProto.FLOAT}
        kinds |= {"int8": TensorProto.INT8, "float16": TensorProto.FLOAT16}
        kinds |= {"uint8": TensorProto.UINT8, "stored": stored}
        local = ("A", "P")
        shape = [dims.get(d, f"{d}{layer}" if d in local else d) for d in value.shape]
        return helper.make_tensor_value_info(name(value, layer), kinds[value.dtype], shape)

    def name(value: Value, layer: int) -> str:
        return value.name if value.name in shared else f"{value.name}.{layer}"

    nodes, inputs, outputs = [], {}, []
    for layer in range(layers):
        nodes.append(
            helper.make_node(
                op.name,
                [name(value, layer) for value in op.inputs],
                [name(value, layer) for value in op.outputs],
                domain=op.domain,
                **attributes,
            )
        )
        inputs |= {name(value, layer): info(value, layer) for value in op.inputs}
        outputs += [info(value, layer) for value in op.outputs]
    model = helper.make_model(
        helper.make_graph(nodes, "ops", list(inputs.values()), outputs),
        opset_imports=[helper.make_opsetid("", opset), helper.make_opsetid(op.domain, op.version)],
        functions=functions,
        ir_version=11,
    )
    onnx.checker.check_model(model, full_check=True)
    return model


def session(
    model: onnx.ModelProto,
    kernels: Path | None = None,
    entries: Mapping[str, str] | None = None,
    **options: Any,
) -> ort.InferenceSession:
    """A session on `model`, with the kernels of the library `kernels` if there is one.

    `entries` are those of its configuration, and `options` other settings.
    """
    settings = ort.SessionOptions()
    for key, value in (entries or {}).items():
        settings.add_session_config_entry(key, value)
    settings.intra_op_num_threads = 1
    if kernels:
        settings.register_custom_ops_library(str(kernels))
    settings.log_severity_level = 3
    for key, value in options.items():
        setattr(settings, key, value)
    return ort.InferenceSession(
        model.SerializeToString(), settings, providers=["CPUExecutionProvider"]
    )


def run(model: ort.InferenceSession, arrays: Arrays) -> list[np.ndarray[Any, Any]]:
    """Outputs of a one-layer model for arrays named as in the schema."""
    return model.run(None, {f"{name}.0": array for name, array in arrays.items()})


@st.composite
def attention_inputs(
    draw: Callable[[st.SearchStrategy[Any]], Any],
    group: int,
    head_dim: int,
    element: int = TensorProto.FLOAT,
    largest: int = 12,
) -> Arrays:
    """Inputs of SplitCacheAttention: ragged lengths, 0 included, and poison past them."""
    batch = draw(st.integers(1, 3))
    kv_heads = draw(st.integers(1, 3))
    new = draw(st.one_of(st.just(1), st.integers(2, 7)))
    weightings = draw(st.integers(1, 3))
    places = {"active": draw(st.integers(1, largest)), "parked": draw(st.integers(1, largest))}
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    kind = NUMPY_TYPES[element]

    def normal(*shape: int) -> np.ndarray[Any, Any]:
        return rng.standard_normal(shape).astype(kind)

    arrays: Arrays = {
        "q": normal(batch, group * kv_heads, new, head_dim),
        "k_new": normal(batch, kv_heads, new, head_dim),
        "v_new": normal(batch, kv_heads, new, head_dim),
        "row_weights": rng.random((batch, weightings, new)).astype(np.float32),
    }
    for place, capacity in places.items():
        length = draw(
            st.one_of(
                st.just([0] * batch),
                st.lists(st.integers(0, capacity), min_size=batch, max_size=batch),
            )
        )
        arrays[f"{place}_len"] = np.array(length, np.int64)
        for cache in ("k", "v"):
            rows = normal(batch, kv_heads, capacity, head_dim)
            for b, used in enumerate(length):
                rows[b, :, used:] = POISON
            arrays[f"{cache}_{place}"] = rows
    return arrays
