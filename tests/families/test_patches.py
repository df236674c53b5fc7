"""Layouts of patches: sizes, windows, positions and times, against transformers' own functions."""

from __future__ import annotations

import dataclasses
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from transformers import vision_utils
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize
from transformers.video_utils import VideoMetadata

from avl_runtime.vision import patch_video, patches
from avl_runtime.vision.load.images import ImageError
from avl_runtime.vision.load.videos import Video, VideoError
from avl_runtime.vision.patch_video import PatchVideo, TimedVideo
from avl_runtime.vision.patches import Patches, PatchImage, smart_size, window_slots
from avl_runtime.vision.steps import ImageProcessing
from families.qwen import as_theirs, video_module, video_processor
from families.support import clip, picture

STEPS = ImageProcessing(True, None, 3, None, 1 / 255, (0.5, 0.4, 0.3), (0.2, 0.3, 0.25))
WINDOWED = Patches(size=4, temporal=2, merge=2, window=3, table=None)
TABLED = Patches(size=4, temporal=2, merge=2, window=None, table=7)
IMAGE = PatchImage("patches", STEPS, WINDOWED, 8 * 8 * 4, 8 * 8 * 60)
PATCH_VIDEO = PatchVideo("patch_video", STEPS, WINDOWED, 256, 3840, 2.0, 4, 768, 2)
TIMED_VIDEO = TimedVideo("timed_video", STEPS, TABLED, 256, 6400, 2.0, 4, 768, "<a>", "<b>")
SIDES = st.integers(1, 24)


def frames(rows: int, columns: int) -> np.ndarray:
    """Two normalized frames of rows x columns cells."""
    shape = (2, 3, 8 * rows, 8 * columns)
    return np.random.default_rng(0).random(shape, np.float32)


@given(
    st.integers(1, 4000),
    st.integers(1, 4000),
    st.sampled_from([28, 32]),
    st.sampled_from([(3136, 12845056), (65536, 16777216), (256, 3840)]),
)
def test_sizes_are_those_of_transformers(
    height: int, width: int, cell: int, limits: tuple[int, int]
) -> None:
    if max(height, width) <= 200 * min(height, width):
        expected = smart_resize(height, width, cell, *limits)
        assert smart_size(height, width, cell, *limits) == expected


@given(SIDES, SIDES, st.integers(1, 5))
def test_windows_are_those_of_transformers(rows: int, columns: int, side: int) -> None:
    grid = torch.tensor([[1, 2 * rows, 2 * columns]])
    index, edges = vision_utils.get_vision_window_index(
        grid, spatial_merge_size=2, window_size=side * 2 * 4, patch_size=4
    )
    theirs = [part.tolist() for part in index.split((edges.diff() // 4).tolist())]
    ours = [[n for n in window if n >= 0] for window in window_slots(rows, columns, side).tolist()]
    assert ours == theirs


@given(SIDES, SIDES)
def test_windowed_inputs_hold_each_patch_once(rows: int, columns: int) -> None:
    values = frames(rows, columns)
    plain = replace(WINDOWED, window=None).inputs(values)
    spread = WINDOWED.inputs(values)
    np.testing.assert_array_equal(as_theirs([spread]), as_theirs([plain]))
    flat = spread["position_ids"].reshape(-1, 4, 2)[spread["order"]].reshape(-1, 2)
    np.testing.assert_array_equal(flat, plain["position_ids"])
    # A place is masked unless one of the cells lies there.
    used = np.zeros(spread["mask"].size // 4, bool)
    used[spread["order"]] = True
    np.testing.assert_array_equal(spread["mask"].ravel() == 0, used.repeat(4))


@given(SIDES, SIDES)
def test_positions_are_those_of_transformers(rows: int, columns: int) -> None:
    grid = torch.tensor([[1, 2 * rows, 2 * columns]])
    inputs = TABLED.inputs(frames(rows, columns))
    theirs = vision_utils.get_vision_position_ids(grid, 2)
    np.testing.assert_array_equal(inputs["position_ids"], theirs)
    places, shares = vision_utils.get_vision_interpolation_indices_and_weights(
        grid, num_grid_per_side=7, mode="bilinear", align_corners=True, spatial_merge_size=2
    )
    np.testing.assert_array_equal(inputs["places"], places)
    np.testing.assert_array_equal(inputs["shares"], shares)


def test_tokens_show_their_cell() -> None:
    """Light up one cell of a picture that needs no resizing: one token's patches are bright."""
    image = Image.new("RGB", (8 * 7, 8 * 5))
    image.paste((255, 255, 255), (8 * 4, 8 * 3, 8 * 5, 8 * 4))
    media = IMAGE.prepare(image, "x")
    assert IMAGE.view(image).size == image.size
    tokens = as_theirs([media.inputs]).reshape(media.tokens, -1).mean(1)
    lit = int(media.cells.index[tokens.argmax()])
    assert media.cells.grid == (5, 7) and divmod(lit, 7) == (3, 4)
    assert np.unique(tokens).size == 2


@given(
    st.integers(2, 400),
    st.floats(0.5, 120),
    st.floats(0.25, 8),
    st.integers(2, 8),
    st.integers(8, 90),
)
def test_frames_are_sampled_as_transformers_does(
    total: int, fps: float, wanted: float, least: int, most: int
) -> None:
    limits = {"min_frames": least, "max_frames": most}
    film = Video([Image.new("RGB", (1, 1))] * total, fps)
    metadata = VideoMetadata(total_num_frames=total, fps=fps)

    ours, _ = replace(PATCH_VIDEO, fps=wanted, **limits)._picked(film)
    theirs = video_processor("qwen2_vl", **limits).sample_frames(metadata, fps=wanted)
    # Rounding may give transformers one more, behind the last frame.
    assert ours == [index for index in theirs.tolist() if index < total][: len(ours)]
    assert len(ours) % 2 == 0

    ours, _ = replace(TIMED_VIDEO, fps=wanted, **limits)._picked(film)
    theirs = video_processor("qwen3_vl", **limits).sample_frames(metadata, fps=wanted)
    assert ours == theirs.tolist()


@given(st.integers(2, 40), st.integers(1, 900), st.integers(1, 900))
def test_sizes_of_timed_frames_are_those_of_transformers(
    count: int, height: int, width: int
) -> None:
    frame = Image.new("RGB", (width, height))
    try:
        expected: Any = video_module("qwen3_vl").smart_resize(
            count, height, width, 2, 8, TIMED_VIDEO.min_pixels, TIMED_VIDEO.max_pixels
        )
    except ValueError:
        with pytest.raises(ImageError, match="200 times"):
            TIMED_VIDEO._size([frame] * count)
    else:
        assert TIMED_VIDEO._size([frame] * count) == expected


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen3_vl"])
@pytest.mark.parametrize("fps", [None, 10.0, 29.97])
def test_pixels_of_videos_are_those_of_transformers(family: str, fps: float | None) -> None:
    layout: Any = PATCH_VIDEO if family == "qwen2_vl" else TIMED_VIDEO
    size = {"shortest_edge": layout.min_pixels, "longest_edge": layout.max_pixels}
    steps = {"image_mean": list(STEPS.mean or ()), "image_std": list(STEPS.std or ())}
    theirs = video_processor(family, size=size, patch_size=4, **steps)
    for count, shape in ((2, (8, 8)), (5, (33, 70)), (21, (64, 48))):
        film = clip(count, shape)
        options: dict[str, Any] = {}
        if fps is not None:
            metadata = [{"total_num_frames": count, "fps": fps}]
            options = {"do_sample_frames": True, "fps": 2, "video_metadata": metadata}
        want = theirs(videos=[film], return_tensors="np", **options)
        got = layout.prepare(Video(film, fps), "x")
        np.testing.assert_array_equal(as_theirs([got.inputs]), want["pixel_values_videos"])
        groups, rows, columns = want["video_grid_thw"][0].tolist()
        assert got.cells.grid == (rows // 2, columns // 2)
        assert got.tokens == groups * rows * columns // 4
        assert layout.view(Video(film, fps)).size == (4 * columns, 4 * rows)


def test_runs_of_a_video_together_hold_all_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    film = Video(clip(9, (40, 30)), None)
    whole = PATCH_VIDEO.prepare(film, "x")
    monkeypatch.setattr(patch_video, "PATCHES_PER_RUN", 300)
    media = PATCH_VIDEO.prepare(film, "x")
    parts = [inputs["pixel_values"] for inputs in media.runs()]
    assert [len(part) for part in parts] == [2, 2, 1]
    np.testing.assert_array_equal(np.concatenate(parts), whole.inputs["pixel_values"])
    assert [len(one["pixel_values"]) for one in whole.runs()] == [4, 1]


@pytest.mark.parametrize(
    ("side", "counts"), [(512, [1, 1, 1, 1, 1]), (224, [2, 2, 1]), (64, [4, 1]), (0, [4, 1])]
)
def test_large_pictures_run_one_by_one(side: int, counts: list[int]) -> None:
    media = PATCH_VIDEO.prepare(Video(clip(9, (40, 30)), None), "x")
    pixels = np.zeros((5, 3, side, side), np.float32)
    tiles = dataclasses.replace(media, inputs={"pixel_values": pixels}, images_per_run=4)
    assert [len(one["pixel_values"]) for one in tiles.runs()] == counts


def test_what_no_encoder_could_take_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ImageError, match="200 times the other"):
        IMAGE.prepare(picture((1, 201)), "x")
    with pytest.raises(ImageError, match="200 times the other"):
        PATCH_VIDEO.prepare(Video(clip(2, (201, 1)), None), "x")
    with pytest.raises(VideoError, match="one size, found 8 x 8, 8 x 9"):
        TIMED_VIDEO.prepare(Video([picture((8, 8)), picture((8, 9))], None), "x")
    with pytest.raises(VideoError, match="at least 2 frames, found 1"):
        TIMED_VIDEO.prepare(Video(clip(1, (8, 8)), None), "x")
    monkeypatch.setattr(patches, "MAX_PATCHES", 100)
    with pytest.raises(ImageError, match=r"at most 0\.0 megapixels"):
        IMAGE.prepare(picture((64, 64)), "x")
    monkeypatch.setattr(patch_video, "MAX_VIDEO_PATCHES", 500)
    with pytest.raises(VideoError, match="at most 500 patches"):
        PATCH_VIDEO.prepare(Video(clip(20, (64, 64)), None), "x")


def test_one_frame_is_doubled() -> None:
    media = PATCH_VIDEO.prepare(Video(clip(1, (16, 16)), None), "x")
    still = IMAGE.prepare(clip(1, (16, 16))[0], "x")
    assert media.tokens == still.tokens
    np.testing.assert_allclose(
        as_theirs([media.inputs]), as_theirs([still.inputs]), atol=1e-6, rtol=0
    )
