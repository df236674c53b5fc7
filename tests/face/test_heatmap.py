"""Spans of decode steps, the heatmap and the grid for the terminal."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from avl_runtime.cli.show import grids
from avl_runtime.heatmap import HeatmapError, draw
from avl_runtime.results import Placement
from avl_runtime.spans import spans
from avl_runtime.vision import Cells

GRID = Cells((2, 2), np.arange(4))


def placement(step: int, core: list[int], parked: list[int], tokens: int = 4) -> Placement:
    """Two layers; the second one has dropped everything but the first core token."""
    places = np.zeros((2, 2, tokens), np.bool_)
    places[0, :, core] = True
    places[1, :, parked] = True
    places[:, 1] = False
    places[0, 1, core[:1]] = True
    return Placement(step, places[0], places[1])


def test_spans_cover_every_step_once() -> None:
    placements = [placement(0, [0, 1], [2])] + [placement(3 * n + 1, [2], [0]) for n in range(1, 9)]
    parts = spans(placements, [GRID, GRID], 0, 26)
    assert parts[0].caption == "prefill, steps 1-6" and parts[1].caption == "steps 7-12"
    bounds = [(part.first, part.last) for part in parts]
    assert bounds == [(1, 6), (7, 12), (13, 18), (19, 21), (22, 24), (25, 26)]
    np.testing.assert_allclose(parts[0].core, [[0.5, 0.25], [0.5, 0.0]])
    np.testing.assert_allclose(parts[0].secondary, [[0.25, 0.0], [0.25, 0.0]])


def test_captions() -> None:
    one = [placement(0, [0], [1])]
    assert [part.caption for part in spans(one, [GRID, GRID], 0, 0)] == ["prefill"]
    assert [part.caption for part in spans(one, [GRID, GRID], 0, 1)] == ["prefill, step 1"]
    # A refresh at the very last step chooses a core that no step reads.
    two = [*one, placement(4, [1], [0])]
    assert [part.caption for part in spans(two, [GRID, GRID], 0, 3)] == ["prefill, steps 1-3"]
    assert [part.caption for part in spans(two, [GRID, GRID], 0, 4)] == [
        "prefill, steps 1-3",
        "step 4",
    ]


def test_images_take_their_own_tokens() -> None:
    both = [placement(0, [0, 5], [6], tokens=8)]
    assert spans(both, [GRID, GRID], 0, 5)[0].core[0, 0] == 1
    second = spans(both, [GRID, GRID], 1, 5)[0]
    np.testing.assert_allclose(second.core, [[0, 0.5], [0, 0]])
    np.testing.assert_allclose(second.secondary, [[0, 0], [0.5, 0]])


def test_tokens_that_share_a_cell_or_show_none() -> None:
    seen = Cells((1, 2), np.array([-1, 1, 1, -1]))
    (part,) = spans([placement(0, [1, 2], [])], [seen], 0, 0)
    # Token 1 is core in the first of two layers, token 2 too; both show the right cell.
    one = placement(0, [1, 2], [])
    expected = one.core[:, 1:3].mean()
    np.testing.assert_allclose(part.core, [[0, expected]])


def test_colours_follow_the_places() -> None:
    white = Image.new("RGB", (28, 28), "white")
    full = np.ones((3, 4), np.bool_)
    core, parked = full.copy(), full.copy()
    core[:, [1, 2, 3]] = False
    parked[:, [0, 2, 3]] = False
    sheet = draw([white], [Placement(0, core, parked)], [GRID], 9, "avl")
    pixels = np.asarray(sheet).astype(int)
    panel = pixels[-16 - 22 - 16 - 264 : -16 - 22 - 16, 16 + 264 + 16 :][:, :264]
    orange, blue = panel[66, 66], panel[66, 198]
    assert orange[0] > orange[2] + 40 and blue[2] > blue[0] + 40
    assert panel[198, 66].max() < 90  # dropped in every layer
    assert np.abs(panel[198, 66] - panel[198, 198]).max() == 0


def test_a_row_an_image_and_at_most_six_panels() -> None:
    image = Image.new("RGB", (28, 28), "white")
    placements = [placement(3 * n + (n > 0), [0], [1], tokens=8) for n in range(20)]
    sheet = draw([image, image], placements, [GRID, GRID], 60)
    one = draw([image], [placement(0, [0], [1])], [GRID], 60)
    assert sheet.width == 16 + 7 * (264 + 16)
    assert sheet.height - one.height == 264 + 22 + 16


def test_images_that_do_not_fit_the_placements() -> None:
    image = Image.new("RGB", (28, 28))
    for images, placements in (([], [placement(0, [0], [1])]), ([image], [])):
        with pytest.raises(HeatmapError, match="image tokens"):
            draw(images, placements, [GRID], 5)
    with pytest.raises(HeatmapError, match="expected 1 images of 4 image tokens in all"):
        draw([image, image], [placement(0, [0], [1])], [GRID], 5)


def test_terminal_grid() -> None:
    placements = [placement(0, [0, 1], [2]), placement(4, [0, 2], [1])]
    told = grids(placements, [GRID], 6, colour=False)
    assert told.splitlines()[:4] == ["image 1", "pref   step", "####   ##++", "++..   ##.."]
    assert "\x1b" not in told and "\x1b[" in grids(placements, [GRID], 6, colour=True)
