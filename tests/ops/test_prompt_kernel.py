"""The compiled kernel of prompts, as ONNX Runtime calls it, against the reference and the body."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.inliner
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ops.agreement import assert_agrees, expected
from ops.op_models import POISON, Arrays, attention_inputs, run, session
from ops.test_attention_function import GROUPS, attention_model, attention_session, key_of

HEAD_DIMS = (8, 20, 32, 64, 80, 96, 128, 256)
COUNTS = st.sampled_from((2, 5, 6, 7, 13, 63, 64, 65, 130, 300))  # of new rows


@functools.cache
def prompt_session(kernels: Path, *key: Any, threads: int = 2) -> ort.InferenceSession:
    return session(attention_model(*key), kernels, intra_op_num_threads=threads)


def prompt_inputs(
    sizes: Mapping[str, int], lengths: Mapping[str, list[int]], weighted: float, seed: int
) -> Arrays:
    """Random rows, with poison past their lengths; a part `weighted` of the rows have weights.

    `sizes` names dimensions as in the schema.
    """
    numbers = np.random.default_rng(seed)
    b, h, kv, s, d = (sizes[name] for name in ("B", "H", "Hkv", "S", "D"))
    shapes = {"q": (h, s), "k_new": (kv, s), "v_new": (kv, s)}
    shapes |= {f"{part}_active": (kv, sizes["A"]) for part in "kv"}
    shapes |= {f"{part}_parked": (kv, sizes["P"]) for part in "kv"}
    arrays: Arrays = {
        name: numbers.standard_normal((b, *shape, d), np.float32) for name, shape in shapes.items()
    }
    for place, used in lengths.items():
        arrays[f"{place}_len"] = np.array(used, np.int64)
        for sequence, length in enumerate(used):
            for part in "kv":
                arrays[f"{part}_{place}"][sequence, :, length:] = POISON
    weights = numbers.random((b, sizes["R"], s), np.float32)
    arrays["row_weights"] = weights * (numbers.random((b, 1, s)) < weighted)
    return arrays


@st.composite
def prompts(
    draw: Any,
    counts: st.SearchStrategy[int] = COUNTS,
    lengths_of: tuple[int, ...] = (1, 70, 1500),
    head_dims: tuple[int, ...] = HEAD_DIMS,
) -> Arrays:
    """Prompts of more rows and keys than a tile, a block or a span takes."""
    rows = draw(counts)
    longest = draw(st.sampled_from(lengths_of))
    batch, kv = draw(st.integers(1, 2)), draw(st.integers(1, 2))
    sizes = {"B": batch, "Hkv": kv, "H": kv * draw(st.sampled_from((1, 2, 3, 7))), "S": rows}
    sizes |= {"D": draw(st.sampled_from(head_dims)), "R": draw(st.integers(1, 3))}
    lengths = {}
    for place in ("active", "parked"):
        used = st.integers(0, longest)
        lengths[place] = draw(st.lists(used, min_size=batch, max_size=batch))
        sizes[place[0].upper()] = max(1, *lengths[place]) + draw(st.integers(0, 3))
    weighted = draw(st.sampled_from((0.0, 0.1, 1.0)))
    return prompt_inputs(sizes, lengths, weighted, draw(st.integers(0, 2**32 - 1)))


@settings(max_examples=40, deadline=None, derandomize=True, database=None)
@given(arrays=prompts())
def test_prompts_agree_with_the_reference(kernels: Path, arrays: Arrays) -> None:
    assert_agrees(arrays, run(prompt_session(kernels, *key_of(arrays)), arrays))


@pytest.mark.parametrize("group", GROUPS)
def test_small_prompts_agree_with_the_reference(group: int, kernels: Path) -> None:
    @settings(max_examples=20, deadline=None, derandomize=True, database=None)
    @given(arrays=st.sampled_from(HEAD_DIMS).flatmap(lambda d: attention_inputs(group, d)))
    def check(arrays: Arrays) -> None:
        assert_agrees(arrays, run(prompt_session(kernels, *key_of(arrays)), arrays))

    check()


def _prompt(rows: int, active: int, weighted: float = 0.3, seed: int = 0) -> Arrays:
    sizes = {"B": 2, "H": 6, "Hkv": 2, "S": rows, "D": 64, "A": active + 4, "P": 40, "R": 2}
    return prompt_inputs(sizes, {"active": [active, 3], "parked": [0, 40]}, weighted, seed)


@pytest.mark.parametrize(("rows", "active"), [(9, 3000), (200, 500)])
def test_threads_change_nothing(kernels: Path, rows: int, active: int) -> None:
    arrays = _prompt(rows, active)
    key = key_of(arrays)
    one, two = (run(prompt_session(kernels, *key, threads=threads), arrays) for threads in (1, 2))
    for found, wanted in zip(two, one, strict=True):
        np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("rows", [9, 200])
def test_a_prompt_without_masses(kernels: Path, rows: int) -> None:
    arrays = _prompt(rows, 70)
    wanted = expected(arrays)[0]
    arrays["row_weights"] = arrays["row_weights"][:, :0]
    out, *masses = run(prompt_session(kernels, *key_of(arrays)), arrays)
    np.testing.assert_allclose(out, wanted, rtol=1e-5, atol=1e-5)
    assert [mass.shape[2] for mass in masses] == [0, 0, 0]


@pytest.mark.parametrize("factor", [1e-3, 30.0, 1e3])
@pytest.mark.parametrize("rows", [9, 200])
def test_scores_of_any_size(kernels: Path, rows: int, factor: float) -> None:
    arrays = _prompt(rows, 2600, 1.0)
    arrays["q"] *= np.float32(factor)
    outputs = run(prompt_session(kernels, *key_of(arrays)), arrays)
    # Scores of hundreds are rounded to float32 before they become exponents.
    tolerance = max(1e-5, factor * 64**0.5 * 2.0**-23 * 8) * np.maximum(
        1, arrays["row_weights"].sum(axis=2).max()
    )
    for found, wanted in zip(outputs, expected(arrays), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("rows", [9, 200])
def test_no_number_in_a_row_stays_in_it(kernels: Path, rows: int, value: float) -> None:
    """A query row that is not finite spoils its own output and masses, and no other row's."""
    arrays = _prompt(rows, 700)
    arrays["row_weights"][:, 0, 4], arrays["row_weights"][:, 1, 4] = 1.0, 0.0
    arrays["row_weights"][1, :, 4] = 0.0
    broken = {name: array.copy() for name, array in arrays.items()}
    broken["q"][:, 1, 4] = value
    plain, found = (run(prompt_session(kernels, *key_of(a)), a) for a in (arrays, broken))
    body = run(attention_session(*key_of(arrays)), broken)
    assert np.isnan(found[0][:, 1, 4]).all()
    assert np.isnan(body[0][:, 1, 4]).all()
    rest = np.ones(plain[0].shape, np.bool_)
    rest[:, 1, 4] = False
    np.testing.assert_array_equal(found[0][rest], plain[0][rest])
    for mine, other in zip(found[1:], plain[1:], strict=True):
        np.testing.assert_array_equal(mine[1], other[1])  # without a weight it reaches no mass
    assert np.isnan(found[3][0, 0, :, :5]).all()


@pytest.mark.parametrize(("name", "length"), [("active_len", 75), ("parked_len", -1)])
def test_a_length_past_the_rows_is_refused(kernels: Path, name: str, length: int) -> None:
    arrays = _prompt(9, 70)
    arrays[name][:] = length
    with pytest.raises(Exception, match="lengths within capacities"):
        run(prompt_session(kernels, *key_of(arrays)), arrays)


def test_packages_from_before_the_function_still_run(kernels: Path) -> None:
    arrays = _prompt(9, 70)
    model = onnx.inliner.inline_selected_functions(
        attention_model(*key_of(arrays)), [("avl", "SplitCachePrompt")]
    )
    assert [one.name for one in model.functions] == ["SplitCacheAttention", "SplitCacheStep"]
    assert_agrees(arrays, run(session(model, kernels), arrays))
