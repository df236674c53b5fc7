"""Kernels that choose among many tokens, beside brute force and beside NumPy's way."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from avl_plugins import cpu
from avl_plugins.cpu.choosing import Choosing, choosing
from avl_plugins.policies.embedded import similar
from avl_plugins.policies.embedded.covering import covering
from avl_plugins.policies.embedded.vispruner import AT_ONCE, without_repeats
from policies import test_embedded, test_looking

COVERED = ("divprune", "mmtok", "cdpruner")
LOOKED = ("scope", "vispruner")


@pytest.fixture(params=("kernels", "off"))
def many(
    request: pytest.FixtureRequest, kernels: Path, monkeypatch: pytest.MonkeyPatch
) -> Choosing | None:
    """Few tokens are taken for many: by kernels, and without the library."""
    monkeypatch.setattr(similar, "FINE", 0)
    if request.param == "off":
        monkeypatch.setenv(cpu.SWITCH, "off")
    found = similar.many(1)
    assert (found is None) == (request.param == "off")
    return found


@pytest.mark.usefixtures("many")
@pytest.mark.parametrize("name", COVERED)
def test_choices_are_brute_force_in_float64(name: str) -> None:
    test_embedded.test_methods_are_brute_force_in_float64(name, 4)


@pytest.mark.usefixtures("many")
@pytest.mark.parametrize("name", LOOKED)
def test_choices_by_attention_are_brute_force_in_float64(name: str) -> None:
    test_looking.test_methods_are_brute_force_in_float64(name)


@pytest.mark.usefixtures("many")
@pytest.mark.parametrize("name", COVERED + LOOKED)
def test_equal_tokens_are_taken_from_the_lowest_on(name: str) -> None:
    module = test_embedded if name in COVERED else test_looking
    module.test_equal_tokens_are_taken_from_the_lowest_on(name)


@pytest.mark.usefixtures("kernels")
def test_gains_that_are_equal_go_to_the_lowest_as_in_numpy() -> None:
    """Whole numbers, whose sums are exact: many are equal."""
    rng, ours = np.random.default_rng(3), choosing()
    assert ours is not None
    for tokens, things, count in ((1, 3, 1), (90, 40, 90), (150, 300, 60)):
        covers = rng.integers(-2, 4, (tokens, things)).astype(np.float32)
        weights = rng.integers(0, 3, tokens).astype(np.float64)
        shares = rng.integers(1, 3, things).astype(np.float64)
        want = covering(covers.copy(), count, weights, shares)
        assert ours.cover(covers, count, weights, shares).tolist() == want.tolist()


@pytest.mark.usefixtures("kernels")
def test_rounds_with_equal_likenesses_are_numpys() -> None:
    rng, ours = np.random.default_rng(4), choosing()
    assert ours is not None
    for tokens, most in ((2, 1), (30, 7), (200, 3), (300, 290)):
        near = rng.integers(-3, 3, (tokens, tokens)).astype(np.float32) / 4
        left = rng.permutation(tokens)
        want = without_repeats(near, left, most)
        assert ours.without_repeats(near, left, most, AT_ONCE).tolist() == want.tolist()


@pytest.mark.usefixtures("kernels")
def test_what_is_no_square_of_float32_is_refused() -> None:
    ours = choosing()
    assert ours is not None
    rows = np.ones((5, 3), np.float32)
    for out in (
        np.empty((5, 4), np.float32),
        np.empty((5, 5)),
        np.empty((5, 10), np.float32)[:, ::2],
    ):
        with pytest.raises(ValueError, match="expected 5 rows of as many float32"):
            ours.likeness(rows, out=out)
    for covers in (np.ones((5, 4)), np.ones((5, 8), np.float32)[:, ::2]):
        with pytest.raises(ValueError, match="expected covers in float32, side by side"):
            ours.cover(covers, 2, np.ones(5), np.ones(4))
