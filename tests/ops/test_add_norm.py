"""AddRMSNorm: the body and kernels against float64."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from numpy.typing import NDArray

from avl_plugins.bodies.norms_body import add_rms_norm_function
from avl_plugins.cpu.build import NORM_LEVELS
from avl_plugins.schema import ADD_RMS_NORM
from ops.op_models import Arrays, op_model, run, session
from support.compiled import library_for

Floats = NDArray[np.float32]
Form = Callable[..., list[Floats]]
LEVELS = {"base": (), "avx2": NORM_LEVELS["avl_norm_avx2"]}
LEVELS |= {"avx512": NORM_LEVELS["avl_norm_avx512"]}


@functools.cache
def opened(kernels: Path | None, level: str, epsilon: float) -> ort.InferenceSession:
    """The op in a graph; `level` is what the environment says, which a session reads."""
    model = op_model(ADD_RMS_NORM, [add_rms_norm_function()], {}, {"epsilon": epsilon})
    return session(model, kernels, intra_op_num_threads=2)


@pytest.fixture(params=["body", *LEVELS])
def form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Form:
    """The op's results by its body, or by kernels for instructions that this processor has."""
    library = library_for(request, monkeypatch, LEVELS)

    def computed(arrays: Arrays, epsilon: float) -> list[Floats]:
        return run(opened(library, request.param, epsilon), arrays)

    return computed


def arrays_of(rows: int, width: int, size: float = 1.0) -> Arrays:
    numbers = np.random.default_rng(rows * width)
    return {
        "a": size * numbers.standard_normal((rows, width), np.float32),
        "b": size * numbers.standard_normal((rows, width), np.float32),
        "weight": numbers.standard_normal(width, np.float32),
    }


@pytest.mark.parametrize("epsilon", [1e-6, 0.25])
@pytest.mark.parametrize("size", [1e-4, 1.0, 1e4])
@pytest.mark.parametrize("rows", [0, 1, 2, 16, 17, 50])
def test_sums_are_normed_as_in_float64(form: Form, rows: int, size: float, epsilon: float) -> None:
    for width in (1, 24, 77, 1024):
        arrays = arrays_of(rows, width, np.float32(size))
        total, normed = form(arrays, epsilon)
        np.testing.assert_array_equal(total, arrays["a"] + arrays["b"])
        exact = total.astype(np.float64)
        wanted = exact / np.sqrt((exact**2).mean(-1, keepdims=True) + epsilon) * arrays["weight"]
        assert normed.dtype == np.float32 and normed.shape == (rows, width)
        np.testing.assert_allclose(normed, wanted, rtol=4e-6, atol=1e-37)


def test_what_is_no_number_stays_in_its_row(form: Form) -> None:
    arrays = arrays_of(40, 30)
    arrays["b"][17, 3] = np.nan
    total, normed = form(arrays, 1e-6)
    assert np.isnan(total[17, 3]) and np.isnan(normed[17]).all()
    others = np.arange(40) != 17
    assert np.isfinite(normed[others]).all() and np.isfinite(total[others]).all()


@pytest.mark.parametrize(
    ("name", "shape"), [("b", (1, 8)), ("b", (3, 7)), ("weight", (7,)), ("weight", (1,))]
)
def test_shapes_that_do_not_agree_are_refused(
    kernels: Path, name: str, shape: tuple[int, ...]
) -> None:
    arrays = arrays_of(3, 8)
    run(opened(kernels, "", 1e-6), arrays)
    arrays[name] = np.zeros(shape, np.float32)
    with pytest.raises(Exception, match="expected shapes that agree"):
        run(opened(kernels, "", 1e-6), arrays)
