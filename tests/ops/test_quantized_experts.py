"""SparseExperts with codes of 4 and 8 bits: bodies and kernels in float64, and what is read."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

import numpy as np
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from onnx import TensorProto

from avl_export.quantize.packing import pack_int4
from avl_plugins.bodies.experts_body import experts_function
from avl_plugins.cpu.build import CODED_LEVELS
from avl_plugins.schema import QUANTIZED_EXPERTS
from ops.expert_models import Array, drawn, expected, guarded, run
from ops.op_models import op_model, session
from support.compiled import library_for

Bits = Literal[4, 8]
LEVELS = {
    "avx2": (*CODED_LEVELS["avl_coded_avx2"], "-mf16c"),
    "avx-vnni": (*CODED_LEVELS["avl_coded_avx_vnni"], "-mf16c"),
    "vnni": CODED_LEVELS["avl_coded_avx512"],
}
# Rows, hidden size, experts, experts of a row, intermediate size; and inputs that share a scale,
# 0: all.
SIZES = [((1, 64, 7, 3, 32), 32), ((9, 128, 11, 4, 64), 64), ((40, 256, 5, 2, 128), 128)]
SIZES += [((3, 96, 4, 4, 160), 32), ((3, 96, 4, 4, 192), 0), ((17, 128, 3, 1, 32), 0)]


@functools.cache
def opened(
    bits: Bits, kernels: Path | None = None, level: str = "", element: int = TensorProto.FLOAT
) -> ort.InferenceSession:
    """An op in a graph of its own; `level` is what the environment says, which a session reads."""
    op = QUANTIZED_EXPERTS[bits]
    model = op_model(op, [experts_function(op)], {}, {}, element=element)
    return session(model, kernels, intra_op_num_threads=2)


Form = Callable[[Bits, Mapping[str, Array]], Array]


@pytest.fixture(params=["body", *LEVELS])
def form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Form:
    """The op's result by its body, or by kernels for instructions that this processor has."""
    library = library_for(request, monkeypatch, LEVELS)
    return lambda bits, arrays: run(opened(bits, library, request.param), arrays)


def coded(
    sizes: tuple[int, ...], block: int, bits: Bits
) -> tuple[dict[str, Array], dict[str, Array]]:
    """The op's inputs, and the same with what codes stand for, in float64."""
    arrays = drawn(sizes)
    rng, weights = np.random.default_rng(sizes[1]), dict(arrays)
    for name in ("gate_up", "down"):
        experts, outputs, inputs = arrays[name].shape
        low = -(1 << (bits - 1))
        codes = rng.integers(low, -low, arrays[name].shape, np.int8)
        shape = (experts, outputs, inputs // (block or inputs))
        scales = rng.uniform(0.1, 1, shape).astype(np.float32) / np.float32(-low * inputs**0.5)
        arrays[name] = pack_int4(codes) if bits == 4 else codes
        arrays[f"{name}_scales"] = scales
        weights[name] = codes * np.repeat(scales.astype(np.float64), inputs // shape[-1], -1)
    return arrays, weights


def rounded(rows: NDArray[np.float64], block: int) -> NDArray[np.float64]:
    """What kernels make of numbers that weights are multiplied with, as QuantizedLinear's does."""
    size = block or rows.shape[-1]
    span = next(span for span in (128, 64, 32) if size % span == 0)
    parts = rows.reshape(*rows.shape[:-1], -1, span)
    tops = np.abs(parts).max(-1, keepdims=True)
    return (np.rint(parts * (127 / tops)) * (tops / 127)).reshape(rows.shape)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(("sizes", "block"), SIZES, ids=str)
def test_it_is_the_sum_over_chosen_experts(
    form: Form,
    sizes: tuple[int, ...],
    block: int,
    bits: Bits,
    request: pytest.FixtureRequest,
) -> None:
    """A number that lies between two codes may become either: one row in ten is allowed that."""
    arrays, weights = coded(sizes, block, bits)
    found = form(bits, arrays)
    if "body" in request.node.name:
        np.testing.assert_allclose(found, expected(weights), atol=2e-6, rtol=0)
        return
    weights["x"] = rounded(weights["x"].astype(np.float64), block)
    errors = np.abs(found - expected(weights, lambda inner: rounded(inner, block))).max(-1)
    assert np.sort(errors)[: len(errors) - -(-len(errors) // 10)].max(initial=0) <= 2e-6
    assert errors.max() <= 1e-3


@pytest.mark.parametrize("bits", [4, 8])
def test_rows_in_half_precision(bits: Bits) -> None:
    """Which no kernel takes; the body computes in the rows' type and adds in float32."""
    arrays, weights = coded(*SIZES[0], bits)
    halves = {name: a.astype(np.float16) for name, a in arrays.items() if a.dtype == np.float32}
    found = run(opened(bits, element=TensorProto.FLOAT16), arrays | halves)
    assert found.dtype == np.float16
    np.testing.assert_allclose(found, expected(weights), atol=3e-3, rtol=0)


def test_no_rows(form: Form) -> None:
    arrays = {name: a[:0] if a.ndim == 2 else a for name, a in coded(*SIZES[0], 4)[0].items()}
    assert form(4, arrays).shape == (0, SIZES[0][0][1])


@pytest.mark.parametrize("bits", [4, 8])
def test_codes_of_others_are_not_read(form: Form, bits: Bits) -> None:
    """Pages of experts that no row chose must not be touched: the system would end the process."""
    arrays, _ = coded((5, 256, 8, 2, 128), 32, bits)
    arrays["chosen"] = arrays["chosen"] % 2 + [[1, 5]] * 5  # experts 1 and 2, 5 and 6
    chosen = set(arrays["chosen"].flat)
    stacks = {name: guarded(a, chosen) for name, a in arrays.items() if a.ndim == 3}
    np.testing.assert_array_equal(form(bits, arrays | stacks), form(bits, arrays))


def test_what_does_not_fit_is_refused(kernels: Path) -> None:
    model = opened(4, kernels, "all")
    arrays, _ = coded(*SIZES[1], 4)
    for wrong in ("shares", "down", "down_scales"):
        with pytest.raises(Exception, match="expected shapes that agree"):
            run(model, arrays | {wrong: arrays[wrong][:, :2].copy()})
    scales = np.repeat(arrays["gate_up_scales"], 4, -1)  # of 16 inputs
    with pytest.raises(Exception, match="expected blocks of a multiple of 32 inputs"):
        run(model, arrays | {"gate_up_scales": scales})
