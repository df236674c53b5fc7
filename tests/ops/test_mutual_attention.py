"""MutualAttention: its bodies and its kernels, in float32, words and bf16, against float64."""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, helper

from avl_plugins import cpu
from avl_plugins.bodies.function import mutual_attention_function
from avl_plugins.bodies.mutual_body import Cut
from avl_plugins.cpu.build import compiler, knows
from avl_plugins.schema import DOMAIN, MASKED_MUTUAL_ATTENTION, MUTUAL_ATTENTION, VERSION
from ops.agreement import scale_of
from ops.op_models import session
from ops.test_prompt_amx import IN_BF16, LEAST, in_bf16
from ops.test_prompt_codes import VNNI
from support.compiled import require

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
SETTINGS = {"deadline": None, "derandomize": True, "database": None}


BLOCK, WORD = 64, 5792  # keys that are weighed together, and the largest of their words


@functools.cache
def model_of(heads: int, head_dim: int, parts: int | None, masked: bool) -> onnx.ModelProto:
    """`parts`: of the queries, where the body takes scores apart."""
    op = MASKED_MUTUAL_ATTENTION if masked else MUTUAL_ATTENTION
    kinds: dict[str, Any] = {"seen": (TensorProto.BOOL, ["K"])}
    for name, rows in (("q", "S"), ("k", "K"), ("v", "K"), ("out", "S")):
        kinds[name] = (TensorProto.FLOAT, ["B", rows, heads, head_dim])
    values = {name: helper.make_tensor_value_info(name, *kind) for name, kind in kinds.items()}
    names = [value.name for value in op.inputs]
    scale = scale_of(head_dim)
    node = helper.make_node(op.name, names, ["out"], domain=DOMAIN, scale=scale)
    cut = None if parts is None else Cut(heads, head_dim, parts)
    model = helper.make_model(
        helper.make_graph([node], "mutual", [values[n] for n in names], [values["out"]]),
        functions=[mutual_attention_function(23, cut, masked=masked)],
        opset_imports=[helper.make_opsetid("", 23), helper.make_opsetid(DOMAIN, VERSION)],
        ir_version=11,
    )
    onnx.checker.check_model(model, full_check=True)
    return model


@functools.cache
def opened(
    key: tuple[int, int, int | None, bool], kernels: Path | None, bf16: bool, has_amx: str
) -> ort.InferenceSession:
    """`has_amx` is what the environment says of it, which a session reads when it is opened."""
    entries = IN_BF16 if bf16 else {}
    return session(model_of(*key), kernels, entries, intra_op_num_threads=2)


def run(
    arrays: dict[str, Any], kernels: Path | None, bf16: bool = False, parts: int | None = None
) -> Floats:
    masked = "seen" in arrays
    key = (*arrays["q"].shape[2:], (parts or 1) if masked else parts, masked)
    (out,) = opened(key, kernels, bf16, os.environ.get(cpu.AMX_SWITCH, "")).run(None, arrays)
    assert out.dtype == np.float32
    return out


def attention(q: Doubles, k: Doubles, v: Doubles) -> tuple[Doubles, Doubles]:
    """What it is in float64, and the same of the values' sizes."""
    q, k, v = (rows.swapaxes(1, 2) for rows in (q, k, v))
    scores = q @ k.swapaxes(2, 3)
    weights = np.exp(scores - scores.max(axis=3, keepdims=True))
    weights /= weights.sum(axis=3, keepdims=True)
    return (weights @ v).swapaxes(1, 2), (weights @ np.abs(v)).swapaxes(1, 2)


def plain(arrays: dict[str, Any]) -> Doubles:
    q, k, v = (arrays[name].astype(np.float64) for name in "qkv")
    seen = arrays.get("seen", slice(None))
    return attention(q * scale_of(q.shape[3]), k[:, seen], v[:, seen])[0]


@st.composite
def pictures(draw: Any) -> dict[str, Floats]:
    rows = draw(st.one_of(st.integers(1, 80), st.sampled_from((127, 128, 257, 577))))
    width = draw(st.sampled_from((8, 20, 64, 72, 80, 128)))
    keys = draw(st.one_of(st.just(rows), st.integers(1, 200), st.just(2100)))
    batch, heads = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    numbers = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    arrays: dict[str, Any] = {
        name: numbers.standard_normal((batch, count, heads, width), np.float32)
        for name, count in (("q", rows), ("k", keys), ("v", keys))
    }
    if draw(st.booleans()):
        arrays["seen"] = numbers.random(keys) < draw(st.sampled_from((0.1, 0.7, 1.0)))
        arrays["seen"][draw(st.integers(0, keys - 1))] = True
    return arrays


@settings(max_examples=30, **SETTINGS)
@given(arrays=pictures(), apart=st.booleans())
def test_the_bodies_agree_with_float64(arrays: dict[str, Any], apart: bool) -> None:
    rows = arrays["q"].shape[1]
    parts = next(n for n in (4, 3, 2, 1) if rows % n == 0) if apart else None
    found = run(arrays, None, parts=parts)
    np.testing.assert_allclose(found, plain(arrays), rtol=1e-5, atol=1e-5)


@settings(max_examples=40, **SETTINGS)
@given(arrays=pictures())
def test_in_bf16_it_is_as_near_as_rounding_lets_it(
    amx_kernel: Path, arrays: dict[str, Floats]
) -> None:
    found, rows = run(arrays, amx_kernel, bf16=True), arrays["q"].shape[1]
    if rows < LEAST:
        np.testing.assert_allclose(found, plain(arrays), rtol=1e-5, atol=1e-5)
        return
    unit = np.float32(scale_of(arrays["q"].shape[3])) * np.float32(np.log2(np.e))
    seen = arrays.get("seen", slice(None))
    q, k, v = in_bf16(arrays["q"] * unit), in_bf16(arrays["k"]), in_bf16(arrays["v"])
    k, v = k[:, seen], v[:, seen]
    wanted, sizes = attention(q * np.log(2), k, v)
    assert (np.abs(found - wanted) <= (2.0**-8 + 3e-4) * sizes).all()


@settings(max_examples=30, **SETTINGS)
@given(arrays=pictures())
def test_in_float32_it_agrees_with_float64(kernels: Path, arrays: dict[str, Any]) -> None:
    np.testing.assert_allclose(run(arrays, kernels), plain(arrays), rtol=1e-5, atol=1e-5)


@pytest.fixture
def words(kernels: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The library where sessions opened now take VNNI and no AMX."""
    require(VNNI)
    if not knows(compiler(), VNNI):
        pytest.skip("this compiler does not know VNNI")
    monkeypatch.setenv(cpu.AMX_SWITCH, "off")
    return kernels


def by_words(arrays: dict[str, Any]) -> tuple[Doubles, Doubles]:
    """Attention in float64, and how far rounding to words may be from it.

    Numbers of queries, keys and values are off by half of their row's greatest over what words may
    be, and weights times values' greatest by half of a block's greatest over that.
    """
    seen, d = arrays.get("seen", slice(None)), arrays["q"].shape[3]
    q, k, v = (arrays[name].astype(np.float64).swapaxes(1, 2) for name in "qkv")
    k, v = k[:, :, seen], v[:, :, seen]
    dims = -(-d // 16) * 16
    most = min(2**15 - 1, int(((2**31 - 1) // dims) ** 0.5) - 1)
    q_off, k_off = (np.abs(x).max(3) / most / 2 for x in (q, k))
    off = q_off[..., None] * np.abs(k).sum(3)[:, :, None]
    off += (
        np.abs(q).sum(3)[..., None] * k_off[:, :, None] + d * q_off[..., None] * k_off[:, :, None]
    )
    off *= scale_of(d)
    scores = q @ k.swapaxes(2, 3) * scale_of(d)
    weights = np.exp(scores - scores.max(3, keepdims=True))
    weights /= weights.sum(3, keepdims=True)
    grown = np.expm1(off + off.max(3, keepdims=True)) + 2e-5
    largest = np.abs(v).max(3)
    bound = (weights * grown) @ np.abs(v) + (weights @ (largest / WORD / 2)[..., None])
    heavy = weights * (1 + grown) * largest[:, :, None]
    for first in range(0, k.shape[2], BLOCK):
        block = slice(first, first + BLOCK)
        shares = np.abs(v[:, :, block]) / largest[:, :, block, None]
        bound += heavy[..., block].max(3)[..., None] / WORD / 2 * shares.sum(2)[:, :, None]
    return (weights @ v).swapaxes(1, 2), bound.swapaxes(1, 2) + 1e-6


@settings(max_examples=40, **SETTINGS, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(arrays=pictures())
def test_in_words_it_is_as_near_as_rounding_lets_it(words: Path, arrays: dict[str, Any]) -> None:
    found = run(arrays, words, bf16=True)
    if arrays["q"].shape[1] < LEAST:
        np.testing.assert_allclose(found, plain(arrays), rtol=1e-5, atol=1e-5)
        return
    wanted, bound = by_words(arrays)
    assert (np.abs(found - wanted) <= bound).all()


@pytest.mark.parametrize("size", [512, 528])
def test_wide_heads_and_uneven_rows(words: Path, size: int) -> None:
    """Greatest sums of words: all numbers of a row are its greatest, and rows differ widely."""
    rows = np.geomspace(1e-6, 1e3, 130, dtype=np.float32)[:, None, None]
    arrays = {name: np.ones((1, 130, 1, size), np.float32) * rows for name in "qkv"}
    arrays["k"] = arrays["k"][:, ::-1].copy() * np.float32(1e-6)
    wanted, bound = by_words(arrays)
    assert (np.abs(run(arrays, words, bf16=True) - wanted) <= bound + 1e-6 * np.abs(wanted)).all()


@pytest.mark.parametrize("name", ["q", "k", "v"])
@pytest.mark.parametrize("flaw", [np.nan, np.inf])
def test_flaws_are_not_hidden_by_words(words: Path, name: str, flaw: float) -> None:
    arrays = {each: np.ones((1, 70, 1, 64), np.float32) for each in "qkv"}
    arrays[name][0, 66, 0, 3] = flaw
    found = run(arrays, words, bf16=True)
    assert not np.isfinite(found[0, 66] if name == "q" else found).any()


def test_shapes_that_differ_are_refused(words: Path) -> None:
    arrays: dict[str, Any] = {
        name: np.ones((1, 3 + (name == "v"), 2, 8), np.float32) for name in "qkv"
    }
    with pytest.raises(Exception, match="queries, keys and values of the same shape, but for"):
        run(arrays, words)
    even = {**arrays, "v": arrays["k"]}
    with pytest.raises(Exception, match="seen to have one entry for each key"):
        run({**even, "seen": np.ones(4, np.bool_)}, words)
    with pytest.raises(Exception, match="a key that is seen, found none"):
        run({**even, "seen": np.zeros(3, np.bool_)}, words)
