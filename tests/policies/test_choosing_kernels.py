"""Kernels that choose among many tokens, beside brute force and beside NumPy's way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from avl_plugins import cpu
from avl_plugins.cpu import build, sharing
from avl_plugins.cpu import choosing as choices
from avl_plugins.cpu.choosing import Choosing, choosing
from avl_plugins.policies.embedded import similar
from avl_plugins.policies.embedded.cdpruner import SMALLEST, spanning
from avl_plugins.policies.embedded.covering import covering
from avl_plugins.policies.embedded.similar import directions
from avl_plugins.policies.embedded.vispruner import AT_ONCE, without_repeats
from policies import test_embedded, test_looking
from support.compiled import library_for

COVERED = ("divprune", "mmtok", "cdpruner", "dart")
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


@pytest.mark.parametrize("name", COVERED)
def test_choices_without_the_library_are_brute_force(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(cpu.SWITCH, "off")
    test_embedded.test_tokens_that_are_nearly_alike_are_told_apart(name)


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


@pytest.mark.usefixtures("level")
@pytest.mark.parametrize("alike", ["apart", "in crowds", "all the same", "zeros of both signs"])
def test_rounds_go_on_where_no_neighbour_that_was_known_is_left(alike: str) -> None:
    """From more tokens than a list of likest ones holds down to fewer, and beside brute force."""
    rng, ours = np.random.default_rng(9), choosing()
    assert ours is not None
    for tokens, most in ((130, 2), (700, 9)):
        near = rng.standard_normal((tokens, tokens)).astype(np.float32)
        if alike == "in crowds":
            crowd = rng.integers(0, 5, tokens)
            near[crowd[:, None] == crowd] += 9
        elif alike == "all the same":
            near[:] = 0.5
        elif alike == "zeros of both signs":
            near = np.copysign(np.float32(0), near)
        left = rng.permutation(tokens)
        want = left
        while len(want) > most:
            even, odd = want[::2], want[1::2]
            order = np.lexsort((even, -near[np.ix_(even, odd)].max(1)))
            drop = min(AT_ONCE, len(want) - most, len(even))
            want = np.concatenate([even[order[drop:]], odd])
        assert ours.without_repeats(near, left, most, AT_ONCE).tolist() == want.tolist()


def directed(rows: np.ndarray) -> np.ndarray:
    wide = rows.astype(np.float64)
    lengths = np.sqrt((wide**2).sum(1, keepdims=True))
    return wide / np.where(lengths, lengths, 1)


LEVELS: dict[str, tuple[str, ...]] = {
    "base": (),
    **{name.removeprefix("avl_likeness_"): own for name, own in build.LIKENESS_LEVELS.items()},
}


@pytest.fixture(params=LEVELS)
def level(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    library_for(request, monkeypatch, LEVELS)


@pytest.mark.usefixtures("level")
def test_cosines_are_numpys_and_as_equal_as_rows() -> None:
    rng, ours = np.random.default_rng(5), choosing()
    assert ours is not None
    for tokens, others, width in ((1, 1, 1), (49, 47, 200), (145, 97, 33)):
        rows, beside = (
            rng.standard_normal((count, width)).astype(np.float32) for count in (tokens, others)
        )
        rows[tokens // 2] = 0
        rows[-1] = 3 * rows[0]
        for dtype, near in ((np.float64, 1e-14), (np.float32, 1e-6)):
            panels = ours.panels(rows, dtype)
            found, across = panels.among(), panels.to(beside)
            assert found.dtype == across.dtype == dtype
            want = directed(rows)
            np.testing.assert_allclose(found, want @ want.T, atol=near, rtol=0)
            np.testing.assert_allclose(across, want @ directed(beside).T, atol=near, rtol=0)
            np.testing.assert_array_equal(found, found.T)
            again, nearest = panels.among_with_nearest()
            np.testing.assert_array_equal(again, found)
            np.fill_diagonal(found, -np.inf)
            np.testing.assert_array_equal(nearest, found.max(1))
        wider = np.zeros((tokens, tokens + 3), np.float32)
        ours.panels(rows, np.float32).among(0.2, wider[:, 3:])
        np.testing.assert_allclose(wider[:, 3:], np.exp((want @ want.T - 1) / 0.2), atol=1e-5)
        assert not wider[:, :3].any()


@pytest.mark.usefixtures("kernels")
def test_what_is_found_does_not_depend_on_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows come several times, so that many are worth the same."""
    monkeypatch.setattr(sharing, "ALONE", 1)
    rng, ours = np.random.default_rng(6), choosing()
    assert ours is not None
    rows = np.concatenate([rng.standard_normal((45, 40)).astype(np.float32)] * 3)
    panels = ours.panels(rows, np.float32)
    near = panels.among()
    weights, relevance = np.tile(rng.random(45), 3), np.tile(rng.random(45), 3)
    found = []
    for threads in (1, 2, 5):
        with sharing.on_threads(threads):
            covered = ours.cover(near, 100, weights, np.ones(135))
            found.append((covered.tolist(), ours.span(panels, 60, relevance, 0.5, 1e-6).tolist()))
    assert all(one == found[0] for one in found)
    assert len(set(found[0][0])) == 100 and max(found[0][1]) < 45


@pytest.mark.parametrize("rows", [1, 129, 1500])
def test_what_threads_make_of_rows_is_numpys(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharing, "ALONE", 1)
    wide = np.random.default_rng(8).random((rows, 333), np.float32)[:, 33:]
    with sharing.on_threads(3):
        found = sharing.of_rows(lambda some: some.sum(1), wide)
    np.testing.assert_array_equal(found, wide.sum(1))


@pytest.mark.usefixtures("kernels")
def test_where_a_thread_cannot_begin_no_other_waits_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharing, "ALONE", 1)
    submit, begun = choices.ThreadPoolExecutor.submit, []

    def few(pool: Any, function: Any, *given: Any) -> Any:
        if len(begun) == 2:
            raise RuntimeError("can't start new thread")
        begun.append(given)
        return submit(pool, function, *given)

    ours = choosing()
    assert ours is not None
    monkeypatch.setattr(choices.ThreadPoolExecutor, "submit", few)
    near = np.eye(60, dtype=np.float32)
    with sharing.on_threads(4), pytest.raises(RuntimeError, match="can't start new thread"):
        ours.cover(near, 4, np.ones(60), np.ones(60))
    assert len(begun) == 2


@pytest.mark.usefixtures("level")
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_determinants_are_numpys(dtype: type, monkeypatch: pytest.MonkeyPatch) -> None:
    rng, ours = np.random.default_rng(7), choosing()
    assert ours is not None
    monkeypatch.setenv(cpu.SWITCH, "off")
    monkeypatch.setattr(similar, "dtype_of", lambda tokens: dtype)
    for tokens, width, count in ((1, 4, 1), (20, 64, 20), (61, 12, 30), (150, 133, 50)):
        rows, relevance = rng.standard_normal((tokens, width)), rng.random(tokens)
        want = spanning(directions(rows), count, relevance, 0.5)
        got = ours.span(ours.panels(rows, dtype), count, relevance, 0.5, SMALLEST)
        assert got.tolist() == want.tolist()


@pytest.mark.usefixtures("kernels")
def test_what_is_no_square_of_float32_is_refused() -> None:
    ours = choosing()
    assert ours is not None
    rows = ours.panels(np.ones((5, 3), np.float32), np.float32)
    for out in (
        np.empty((5, 4), np.float32),
        np.empty((5, 5)),
        np.empty((5, 10), np.float32)[:, ::2],
    ):
        with pytest.raises(ValueError, match="expected 5 rows of as many float32"):
            rows.among(out=out)
    with pytest.raises(ValueError, match="expected rows of 3 numbers, found 4"):
        rows.to(np.ones((2, 4)))
    for covers in (np.ones((5, 4)), np.ones((5, 8), np.float32)[:, ::2]):
        with pytest.raises(ValueError, match="expected covers in float32, side by side"):
            ours.cover(covers, 2, np.ones(5), np.ones(4))
