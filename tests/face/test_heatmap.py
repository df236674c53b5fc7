"""Spans of decode steps, the heatmap and the grid for the terminal."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

from avl_plugins.policies import parse
from avl_runtime import LVLM
from avl_runtime.generate.results import Placement
from avl_runtime.show import heatmap
from avl_runtime.show.grid import grids
from avl_runtime.show.heatmap import (
    CORE,
    SECONDARY,
    STOPPED,
    WITHHELD,
    HeatmapError,
    Shares,
    draw,
    ramp,
    shares,
)
from avl_runtime.show.spans import A_VL, early, spans
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


PANEL = 384  # of a grid of two by two; around it 16 pixels, above it 24


def panels(sheet: Image.Image, top: int = 16) -> tuple[np.ndarray, np.ndarray]:
    """The two panels of a sheet's first row, [384, 384, 3] each."""
    pixels = np.asarray(sheet).astype(int)[top + 24 :][:PANEL]
    return pixels[:, 16:][:, :PANEL], pixels[:, 32 + PANEL :][:, :PANEL]


def test_colours_follow_the_places() -> None:
    white = Image.new("RGB", (28, 28), "white")
    full = np.ones((3, 4), np.bool_)
    core, parked = full.copy(), full.copy()
    core[:, [1, 2, 3]] = False
    parked[:, [0, 2, 3]] = False
    sheet = draw([white], [Placement(0, core, parked)], [GRID], 9)
    seen, kept = panels(sheet)
    assert (seen == 255).all()
    orange, blue = kept[96, 96], kept[96, 288]
    assert orange[0] > orange[2] + 40 and blue[2] > blue[0] + 40
    assert kept[288, 96].max() < 90  # dropped in every layer
    assert np.abs(kept[288, 96] - kept[288, 288]).max() == 0


def colours(pixels: np.ndarray) -> set[tuple[int, ...]]:
    return set(map(tuple, pixels.reshape(-1, 3).tolist()))


@pytest.mark.parametrize("layers", [1, 2, 6, 28, 80])
def test_every_colour_stands_in_a_scale(layers: int) -> None:
    """Patches kept in 0, 1, … and all layers, as core and as secondary, on white paper."""
    rng = np.random.default_rng(layers)
    grid = Cells((12, 12), np.arange(144))
    least = rng.integers(0, layers + 1, 144)
    kept = np.arange(layers)[:, None] < least
    core = kept & (rng.random(144) < 0.5)
    sheet = draw([Image.new("RGB", (9, 9), "white")], [Placement(0, core, kept & ~core)], [grid], 3)
    legend = np.asarray(sheet)[16 + 24 + PANEL + 16 :]
    found = colours(panels(sheet)[1])
    assert len(found) >= min(2 * layers, 30)
    assert found <= colours(legend)
    scales = np.concatenate([ramp(CORE, layers), ramp(SECONDARY, layers)])
    for row in range(12):
        for column in range(12):
            token = 12 * row + column
            steps = layers + 1
            want = scales[least[token] + (0 if core[:, token].any() else steps)]
            if least[token] == 0:
                want = scales[0]
            assert (panels(sheet)[1][32 * row + 16, 32 * column + 16] == want).all()


def test_the_picture_shows_in_what_is_kept_and_only_there() -> None:
    half = Image.new("RGB", (12, 12), "white")
    half.paste((0, 0, 0), (0, 0, 6, 12))
    core = np.zeros((2, 4), np.bool_)
    core[:, :2] = True
    _, kept = panels(draw([half], [Placement(0, core, np.zeros_like(core))], [GRID], 3))
    ink, paper = kept[96, 96], kept[96, 288]
    assert tuple(paper) == CORE and (ink < np.array(CORE) // 5 + 1).all()
    assert tuple(kept[2, 2]) == CORE  # a frame in the scale's own colour
    assert len(colours(kept[PANEL // 2 :])) == 1  # nothing of it where all is dropped


def test_shares_are_those_of_tokens_and_steps() -> None:
    first, second = placement(0, [0, 1], [2]), placement(4, [0], [1])
    found = shares([first, second], [GRID], 0, 9)
    # Steps 1 to 3 were made with the first, 4 to 9 with the second.
    core = (3 * first.core.mean() + 6 * second.core.mean()) / 9
    parked = (3 * first.parked.mean() + 6 * second.parked.mean()) / 9
    assert found == Shares(pytest.approx(core), pytest.approx(parked))
    assert str(Shares(0.304, 0.196)) == "kept 50%: core 30%, secondary 20%"
    one = shares([first], [GRID], 0, 0)
    assert one.core == pytest.approx(first.core.mean())


def test_a_row_an_image_and_two_panels() -> None:
    image = Image.new("RGB", (28, 28), "white")
    placements = [placement(3 * n + (n > 0), [0], [1], tokens=8) for n in range(20)]
    sheet = draw([image, image], placements, [GRID, GRID], 60)
    one = draw([image], [placement(0, [0], [1])], [GRID], 60)
    assert sheet.width == one.width == 16 + 2 * (PANEL + 16)
    assert sheet.height - one.height == PANEL + 24 + 16


def test_question_answer_and_shares_are_written(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    write = ImageDraw.ImageDraw.text

    def note(self: ImageDraw.ImageDraw, xy: Any, text: str, *more: Any, **options: Any) -> None:
        said.append(text)
        write(self, xy, text, *more, **options)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", note)
    image = Image.new("RGB", (28, 28), "white")
    answer = "One ring\nund drei Äpfel. " + "word " * 400
    places = [placement(0, [0, 1], [2])]
    sheet = draw([image], places, [GRID], 5, "avl · How many?", answer)
    plain = draw([image], places, [GRID], 5)
    assert "avl · How many?" in said
    lines = [line for line in said if "word" in line]
    assert len(lines) == 3 and lines[-1].endswith("…")
    assert lines[0].startswith("One ring und drei Apfel. word")
    font = heatmap._font(heatmap.WORDS)
    assert all(font.getlength(line) <= sheet.width - 32 for line in lines)
    told = str(shares(places, [GRID], 0, 5))
    assert {told, "what the model sees", "kept in k of 2 layers,", "0", "1", "2"} <= set(said)
    assert sheet.height == plain.height + 4 * 24 + 8


def test_long_words_and_longer_texts_are_cut_quickly() -> None:
    image = Image.new("RGB", (28, 28), "white")
    for text in ("w" * 100_000, "word " * 100_000, "\U0001f600" * 1000, "", " \n"):
        sheet = draw([image], [placement(0, [0], [1])], [GRID], 5, text, text)
        assert sheet.width == 16 + 2 * (PANEL + 16)


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


def test_the_policy_says_what_places_are_called() -> None:
    """FastV has no core: what it keeps is read at every step."""
    kept = parse("fastv").places
    assert kept == ("kept", "dropped") and parse("avl+fastv").places == A_VL
    assert str(Shares(0.5, 0.0, kept)) == "kept 50%"
    assert str(Shares(0.3, 0.2)) == "kept 50%: core 30%, secondary 20%"
    places = [placement(0, [0], [])]
    told = grids(places, [GRID], 6, colour=False, places=kept)
    assert told.endswith("## kept   .. dropped   in at least half of the layers")
    image = Image.new("RGB", (9, 9), "white")
    one, two = (
        np.asarray(draw([image], places, [GRID], 5, places=names)).reshape(-1, 3)
        for names in (kept, A_VL)
    )
    assert not (one == SECONDARY).all(1).any() and (two == SECONDARY).all(1).any()


def test_what_a_prompt_dropped_early_is_marked() -> None:
    """In both pictures; a cell that shows a token which all layers read is not."""
    placements, cells = [placement(0, [0], [2])], Cells((2, 2), np.array([0, 1, 2, 3]))
    dropped = np.array([-1, 0, -1, 3])
    gone = early(dropped, [cells], 0)
    assert gone.withheld.tolist() == [[False, True], [False, False]]
    assert gone.stopped.tolist() == [[False, False], [False, True]]
    nothing = early(None, [cells], 0)
    assert not nothing.withheld.any() and not nothing.stopped.any()
    thrice = Cells((1, 3), np.array([0, 0, 1, 1, 2, 2, -1]))
    frames = early(np.array([0, -1, 0, 0, 0, 2, 0]), [cells, thrice][1:], 0)
    assert frames.withheld.tolist() == [[False, True, False]]
    assert frames.stopped.tolist() == [[False, False, True]]
    image = Image.new("RGB", (8, 8), (200, 200, 200))
    plain, shown = (draw([image], placements, [cells], 3, dropped=one) for one in (None, dropped))
    for mark in (WITHHELD, STOPPED):
        colours = [one.convert("RGB").getcolors(1 << 16) or [] for one in (plain, shown)]
        assert [mark in {colour for _, colour in one} for one in colours] == [False, True]
    text = grids(placements, [cells], 3, colour=False, dropped=dropped)
    assert "##--" in text and "//" in text.splitlines()[3]
    assert "-- dropped before the decoder   // dropped between layers" in text
    plain_text = grids(placements, [cells], 3, colour=False)
    assert "--" not in plain_text and "//" not in plain_text


def test_results_tell_before_which_layer_a_prompt_dropped_a_token(tiny: LVLM) -> None:
    image = Image.new("RGB", (168, 168), (90, 120, 40))
    chat = tiny.chat(policy="uniform:tokens=16+fastv:keep=0.5")
    counts = {0: 128, 2: 8, -1: 8}
    for turn in (1, 2):
        dropped = chat.send("What is it?", [image], max_new_tokens=2).dropped_before
        assert dropped is not None and dropped.shape == (144 * turn,)
        assert {k: int((dropped[-144:] == k).sum()) for k in counts} == counts
    whole = tiny.generate("?", [image], policy="avl", max_new_tokens=1).dropped_before
    assert whole is not None and (whole == -1).all()


@pytest.mark.parametrize("policy", ["fastv", "uniform+fastv:keep=0.5", "snapkv:keep=0.3"])
def test_tokens_that_layers_read_are_those_of_their_caches(tiny: LVLM, policy: str) -> None:
    """What a prompt dropped before a layer has no row there; what was not has one, or lost it."""
    image = Image.effect_noise((168, 168), 60).convert("RGB")
    result = tiny.generate("?", [image], policy=policy, max_new_tokens=1, return_placements=True)
    held, dropped = result.placements[0].core, result.dropped_before
    assert dropped is not None
    layers = np.arange(len(held))[:, None]
    went_on = (dropped < 0) | (layers < dropped)
    if "snapkv" in policy:
        assert went_on.all() and 0 < held.sum() < held.size
    else:
        np.testing.assert_array_equal(held, went_on)
