"""The reference of SplitCacheAttention against loops over single elements."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avl_plugins.errors import AvlError
from avl_plugins.reference import split_cache_attention
from avl_plugins.schema import SPLIT_CACHE_ATTENTION
from ops.op_models import Arrays, attention_inputs


def by_hand(arrays: Arrays, scale: float) -> tuple[list[list[float]], dict[tuple[int, ...], float]]:
    """Outputs [b, h, s] -> D floats in order, and masses by (b, kv head, weighting, column)."""
    batch, heads, new, width = arrays["q"].shape
    kv_heads = arrays["k_new"].shape[1]
    capacities = arrays["k_active"].shape[2], arrays["k_parked"].shape[2]
    outputs: list[list[float]] = []
    masses: dict[tuple[int, ...], float] = {}
    for b in range(batch):
        for h in range(heads):
            kv = h * kv_heads // heads
            for s in range(new):
                columns = {j: ("active", j) for j in range(arrays["active_len"][b])}
                columns |= {
                    capacities[0] + j: ("parked", j) for j in range(arrays["parked_len"][b])
                }
                columns |= {sum(capacities) + t: ("new", t) for t in range(s + 1)}
                weight = {}
                for column, (place, row) in columns.items():
                    key = arrays[f"k_{place}"][b, kv, row]
                    query = arrays["q"][b, h, s]
                    dot = math.fsum(float(query[d]) * float(key[d]) for d in range(width))
                    weight[column] = math.exp(dot * scale)
                total = math.fsum(weight.values())
                outputs.append(
                    [
                        math.fsum(
                            weight[column] / total * float(arrays[f"v_{place}"][b, kv, row, d])
                            for column, (place, row) in columns.items()
                        )
                        for d in range(width)
                    ]
                )
                for column, value in weight.items():
                    for r, given_weights in enumerate(arrays["row_weights"][b]):
                        at = (b, kv, r, column)
                        part = float(given_weights[s]) * value / total * kv_heads / heads
                        masses[at] = masses.get(at, 0.0) + part
    return outputs, masses


@settings(max_examples=40, deadline=None, derandomize=True, database=None)
@given(
    arrays=st.sampled_from([1, 2, 4]).flatmap(lambda g: attention_inputs(g, 4, largest=6)),
    scale=st.sampled_from([0.5, 1.0]),
)
def test_agrees_with_single_elements(arrays: Arrays, scale: float) -> None:
    for place in ("active", "parked"):  # the oracle must not even touch unused rows
        for b, used in enumerate(arrays[f"{place}_len"]):
            arrays[f"k_{place}"][b, :, used:] = np.nan
            arrays[f"v_{place}"][b, :, used:] = np.nan
    ordered = [arrays[value.name] for value in SPLIT_CACHE_ATTENTION.inputs]
    out, *parts = split_cache_attention(*ordered, scale=scale)
    outputs, masses = by_hand(arrays, scale)
    np.testing.assert_allclose(out, np.reshape(outputs, out.shape), rtol=2e-7, atol=1e-12)
    mass = np.concatenate(parts, axis=3)
    wanted = np.zeros(mass.shape)
    for at, value in masses.items():
        wanted[at] = value
    np.testing.assert_allclose(mass, wanted, rtol=2e-7, atol=1e-12)


def valid() -> Arrays:
    ones = {d: np.ones((2, 2, n, 4), np.float32) for d, n in (("a", 5), ("p", 3), ("n", 2))}
    return {
        "q": np.ones((2, 4, 2, 4), np.float32),
        "k_new": ones["n"],
        "v_new": ones["n"],
        "k_active": ones["a"],
        "v_active": ones["a"],
        "active_len": np.array([5, 0]),
        "k_parked": ones["p"],
        "v_parked": ones["p"],
        "parked_len": np.array([0, 3]),
        "row_weights": np.ones((2, 1, 2), np.float32),
    }


@pytest.mark.parametrize(
    ("name", "array", "words"),
    [
        ("q", np.ones((2, 3, 2, 4)), "3 query heads for 2 KV heads"),
        ("q", np.ones((2, 4, 2)), "4 dimensions"),
        ("v_active", np.ones((2, 2, 4, 4)), "A = 5"),
        ("k_parked", np.ones((2, 2, 0, 4)), "length 0"),
        ("row_weights", np.ones((2, 1, 3)), "S = 2"),
        ("active_len", np.array([6, 0]), "from 0 to 5"),
        ("parked_len", np.array([0, -1]), "from 0 to 3"),
    ],
)
def test_misfits_are_refused_in_one_line(name: str, array: object, words: str) -> None:
    arrays = valid()
    split_cache_attention(*arrays.values(), scale=1.0)
    arrays[name] = array
    with pytest.raises(AvlError, match=words) as refusal:
        split_cache_attention(*arrays.values(), scale=1.0)
    assert "\n" not in str(refusal.value)
