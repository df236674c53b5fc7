"""Whatever a layout prepares lies within the ranges that its engine is built for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from avl_plugins.errors import AvlError
from avl_runtime.engines.encoders import encoder_ranges
from avl_runtime.package.manifest import Manifest, VideoEncoder
from avl_runtime.vision.anyres import AnyresImage
from avl_runtime.vision.blended import BlendedImage, BlendedVideo, SquareImage
from avl_runtime.vision.fixed import FixedImage
from avl_runtime.vision.frames import FixedVideo
from avl_runtime.vision.layouts import ImageLayout, VideoLayout
from avl_runtime.vision.lines import LinedImage
from avl_runtime.vision.load.videos import Video
from avl_runtime.vision.media import IMAGES_PER_RUN
from avl_runtime.vision.patch_video import PatchVideo, TimedVideo
from avl_runtime.vision.patched_tiles import PatchedTiles, PictureText
from avl_runtime.vision.patches import Patches, PatchImage
from avl_runtime.vision.sliced_video import SlicedVideo
from avl_runtime.vision.slices import SlicedImage
from avl_runtime.vision.split import DatedFrames, SplitImage, TileText
from avl_runtime.vision.steps import ImageProcessing
from avl_runtime.vision.tiles import FrameLines, TiledImage
from face.support import manifest

TILE, SIDE, CACHE_ROWS = 8, 3, 4096
STEPS = ImageProcessing(False, (TILE, TILE), 3, None, None, None, None)
RESOLUTIONS = ((8, 16), (16, 8), (16, 16), (24, 8), (8, 24))
LINED = Patches(2, 1, 2, None, None)
WINDOWED, PLAIN = Patches(2, 2, 2, 3, None), Patches(2, 2, 2, None, 5)
SLICED = SlicedImage("slices", STEPS, 2, 5, 24, 6, ("", ""), ("", ""), None)
PIXELS = {"min_pixels": 16, "max_pixels": 1600}
IMAGES: tuple[ImageLayout, ...] = (
    FixedImage("fixed", STEPS, (SIDE, SIDE), SIDE**2),
    AnyresImage("anyres", STEPS, RESOLUTIONS, TILE, SIDE),
    BlendedImage("blended", STEPS, RESOLUTIONS, TILE, SIDE, 3),
    SquareImage("square", STEPS, (0, 0, 0), SIDE),
    TiledImage("tiles", STEPS, (TILE, TILE), (1, 6), (2, 2), ("", "")),
    SplitImage("split", STEPS, TILE, 24, True, (2, 2), TileText("", "")),
    PatchedTiles(
        *("patched_tiles", STEPS, 2, 2, 5, TILE, (2, 4), (1, 6), 2.0, True),
        PictureText("", "", ""),
    ),
    SLICED,
    PatchImage("patches", STEPS, WINDOWED, **PIXELS),
    LinedImage("lines", STEPS, LINED, (40, 50), 4, "\n", ""),
    LinedImage("lines", STEPS, LINED, (42, 50), 2, "", ""),
    PatchImage("patches", STEPS, PLAIN, **PIXELS),
)
TIMES: dict[str, Any] = {"fps": 2.0, "min_frames": 2, "max_frames": 12}
VIDEOS: tuple[VideoLayout, ...] = (
    FixedVideo("fixed_video", STEPS, 5, (SIDE, SIDE), SIDE**2 + 1),
    BlendedVideo("blended_video", STEPS, 6, SIDE),
    FrameLines("frame_lines", STEPS, 4, (2, 2), ("", "")),
    DatedFrames("dated_frames", STEPS, TILE, 24, 4, 1.0, (2, 2), TileText("", "")),
    PatchVideo("patch_video", STEPS, WINDOWED, **PIXELS, **TIMES, tokens_per_second=2),
    TimedVideo("timed_video", STEPS, PLAIN, **PIXELS, **TIMES, opening="", closing=""),
    SlicedVideo("sliced_video", replace(SLICED, merge=2), 5),
)


def test_every_layout_is_among_them() -> None:
    assert {type(one) for one in IMAGES} == set(get_args(ImageLayout))
    assert {type(one) for one in VIDEOS} == set(get_args(VideoLayout))


def with_layouts(image: ImageLayout, video: VideoLayout | None = None) -> Manifest:
    made = manifest()
    encoder = None if video is None else VideoEncoder("vision.onnx", "<video>", 4, video)
    return replace(made, image=replace(made.image, layout=image), video=encoder)


def assert_within(inputs: dict[str, np.ndarray[Any, Any]], ranges: Any) -> None:
    for name, array in inputs.items():
        assert name in ranges
        for axis, size in ranges[name].items():
            assert size.least <= array.shape[axis] <= size.most, (name, axis, array.shape)
            assert size.least <= size.best <= size.most


@pytest.mark.parametrize("layout", IMAGES, ids=lambda one: one.kind)
def test_pictures(layout: ImageLayout) -> None:
    ranges = encoder_ranges(with_layouts(layout), "vision.onnx", CACHE_ROWS)

    @settings(max_examples=60, deadline=None, derandomize=True, database=None)
    @given(width=st.integers(1, 90), height=st.integers(1, 90))
    def check(width: int, height: int) -> None:
        try:
            media = layout.prepare(Image.new("RGB", (width, height)), "x")
        except AvlError:  # too long and narrow
            return
        for inputs in media.runs():
            assert_within(inputs, ranges)

    check()


@pytest.mark.parametrize("layout", VIDEOS, ids=lambda one: one.kind)
def test_videos(layout: VideoLayout) -> None:
    """With a picture's layout in the same file, whose ranges are joined."""
    ranges = encoder_ranges(with_layouts(IMAGES[0], layout), "vision.onnx", CACHE_ROWS)

    @settings(max_examples=30, deadline=None, derandomize=True, database=None)
    @given(width=st.integers(2, 40), height=st.integers(2, 40), count=st.integers(2, 15))
    def check(width: int, height: int, count: int) -> None:
        frames = [Image.new("RGB", (width, height), (number, 0, 0)) for number in range(count)]
        media = layout.prepare(Video(frames, 4.0), "x")
        for inputs in media.runs():
            assert_within(inputs, ranges)

    check()


def test_media_that_fit_no_cache_are_not_provided_for() -> None:
    layout = replace(IMAGES[-1], max_pixels=1 << 24)
    ranges = encoder_ranges(with_layouts(layout), "vision.onnx", 500)
    assert ranges["pixel_values"][1].most == 500 * PLAIN.merge**2


def test_a_file_of_its_own_for_videos(tmp_path: Path) -> None:
    made = with_layouts(IMAGES[0], VIDEOS[0])
    assert made.video is not None
    made = replace(made, video=replace(made.video, file="video.onnx"))
    assert encoder_ranges(made, "vision.onnx", 9)["pixel_values"][0].most == 1
    assert encoder_ranges(made, "video.onnx", 9)["pixel_values"][0].most == IMAGES_PER_RUN
