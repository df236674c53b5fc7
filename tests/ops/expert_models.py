"""Inputs of mixtures of experts, what comes of them in float64, and weights nobody may read."""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Callable, Mapping
from typing import Any

import ml_dtypes
import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import TensorProto

from avl_plugins.schema import SPARSE_EXPERTS
from ops.op_models import NUMPY_TYPES

Array = NDArray[Any]
PAGE = mmap.PAGESIZE


def run(model: ort.InferenceSession, arrays: Mapping[str, Array]) -> Array:
    """Arrays are not copied, so that weights lie where the test put them."""

    def value(array: Array) -> ort.OrtValue:
        if array.dtype == ml_dtypes.bfloat16:
            kind = TensorProto.BFLOAT16
            return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(array.view(np.uint16), kind)
        return ort.OrtValue.ortvalue_from_numpy(array)

    feeds = {f"{name}.0": value(array) for name, array in arrays.items()}
    found: Array = model.run_with_ort_values(None, feeds)[0].numpy()
    return found


def drawn(sizes: tuple[int, ...], stored: int = TensorProto.FLOAT) -> dict[str, Array]:
    """Weights [E, outputs, inputs]."""
    rows, size, experts, each, inner = sizes
    rng = np.random.default_rng(rows)
    kind = NUMPY_TYPES[stored]
    return {
        "x": rng.standard_normal((rows, size), np.float32),
        "chosen": np.stack([rng.permutation(experts)[:each] for _ in range(rows)]),
        "shares": rng.random((rows, each), np.float32),
        "gate_up": (rng.standard_normal((experts, 2 * inner, size)) / size**0.5).astype(kind),
        "down": (rng.standard_normal((experts, size, inner)) / inner**0.5).astype(kind),
    }


def expected(
    arrays: Mapping[str, Array], rounded: Callable[[Array], Array] = lambda inner: inner
) -> Array:
    """Row by row, in float64; `rounded` is done to what down's weights are multiplied with."""
    x, chosen, shares, gate_up, down = (arrays[value.name] for value in SPARSE_EXPERTS.inputs)
    y = np.zeros(x.shape)
    for row, (own, counts) in enumerate(zip(chosen, shares, strict=True)):
        for expert, share in zip(own, counts, strict=True):
            gate, up = np.split(gate_up[expert].astype(np.float64) @ x[row], 2)
            inner = rounded(gate / (1 + np.exp(-gate)) * up)
            y[row] += share * (down[expert].astype(np.float64) @ inner)
    return y


def guarded(weights: Array, readable: set[int]) -> Array:
    """A stack at the begin of pages, of which those of other experts cannot be read."""
    assert weights[0].nbytes % PAGE == 0
    memory = mmap.mmap(-1, weights.nbytes)
    stack = np.frombuffer(memory, weights.dtype).reshape(weights.shape)
    stack[:] = weights
    libc = ctypes.CDLL(None, use_errno=True)
    for expert in set(range(len(stack))) - readable:
        address = ctypes.c_void_p(stack[expert].ctypes.data)
        assert libc.mprotect(address, ctypes.c_size_t(stack[expert].nbytes), 0) == 0
    return stack
