"""Frames are taken by when they are shown, whatever rate a file announces."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from avl_runtime.vision.load.frame_times import frame_times
from avl_runtime.vision.load.videos import Video, load_video
from avl_runtime.vision.patch_video import PatchVideo, TimedVideo
from avl_runtime.vision.patches import Patches
from avl_runtime.vision.steps import ImageProcessing
from families.qwen import video_processor

from .filming import SIZE, film, last_duration, shown_times

STEPS = ImageProcessing(True, None, 3, None, 1 / 255, (0.5,) * 3, (0.5,) * 3)
CUT = Patches(4, 2, 2, None, None)
QWEN2 = PatchVideo("patch_video", STEPS, CUT, 64, 1024, 2.0, 4, 768, 2)
QWEN3 = TimedVideo("timed_video", STEPS, CUT, 64, 1 << 17, 2.0, 4, 768, "<", ">")

RNG = np.random.default_rng(5)
# As a screen recording: bursts of frames, and pauses of up to half a second.
BURSTS = [0, *np.cumsum(RNG.choice([17, 17, 17, 33, 500], 90)).tolist()]
# Containers with times of their own, and what a frame of theirs is coded with.
VARYING = {
    "a.mkv": {"codec": "mpeg4"},
    "b.webm": {"codec": "libvpx"},
    "c.mp4": {"codec": "mpeg4"},
    "d.mov": {"codec": "mjpeg", "pixels": "yuvj420p"},
    "e.flv": {"codec": "flv"},
    "f.asf": {"codec": "msmpeg4v2"},
    "g.avi": {"codec": "mjpeg", "pixels": "yuvj420p"},
    "h.mkv": {"codec": "libx264", "options": {"bf": "2", "g": "12"}},
    "i.mp4": {"codec": "libx264", "settings": {"movflags": "frag_keyframe+empty_moov"}},
    "j.gif": {"codec": "gif", "pixels": "rgb8"},
    "k.ts": {"codec": "libx264", "options": {"bf": "2"}},
}


@pytest.fixture(scope="module")
def varying(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("varying")
    for name, how in VARYING.items():
        film(str(folder / name), BURSTS, rate=60, **how)
    return folder


def taken(layout: Any, video: Video) -> list[int]:
    """The frames that a layout takes."""
    asked: list[int] = []
    frames = [Image.new("RGB", SIZE)] * video.count

    class Asked(Video):
        def pick(self, indices: Sequence[int]) -> list[Image.Image]:
            asked.extend(indices)
            return super().pick(indices)

    layout.prepare(Asked(frames, video.fps, video.seconds), "*")
    return asked


def on_screen(times: Sequence[float], moment: float) -> int:
    """The frame that is shown at a moment, by looking at all of them."""
    return max(i for i, time in enumerate(times) if time <= moment + 1e-6)


def said_times(layout: TimedVideo, video: Video) -> list[float]:
    """The times that a layout writes into the prompt."""
    frames = [Image.new("RGB", SIZE)] * video.count
    text = layout.prepare(Video(frames, video.fps, video.seconds), "*").replacement
    return [float(part.split(" seconds>")[0]) for part in text.split("<") if " seconds>" in part]


@pytest.mark.parametrize("name", VARYING)
def test_frames_are_those_on_screen_at_even_times(varying: Path, name: str) -> None:
    path = varying / name
    video, times = load_video(path), shown_times(path)
    assert video.count == len(times) and video.seconds is not None and video.fps is not None
    np.testing.assert_allclose(video.seconds, times, atol=1e-6)
    lasts = last_duration(path) or times[-1] / (len(times) - 1)
    duration = times[-1] + lasts
    assert video.count / video.fps == pytest.approx(duration)

    count = int(duration * 2) // 2 * 2
    expected = [on_screen(times, k * duration / count) for k in range(count)]
    assert taken(QWEN2, video) == expected

    count = int(duration * 2)
    moments = np.linspace(0, times[-1], count)
    found = taken(QWEN3, video)
    away = [abs(times[i] - at) for i, at in zip(found, moments, strict=True)]
    assert away == pytest.approx([min(abs(time - at) for time in times) for at in moments])
    padded = [times[i] for i in (*found, found[-1])][: count + count % 2]
    middles = [(a + b) / 2 for a, b in zip(padded[::2], padded[1::2], strict=True)]
    assert said_times(QWEN3, video) == pytest.approx(middles, abs=0.051)


@pytest.mark.parametrize("name", VARYING)
def test_picked_frames_are_those_decoding_shows(varying: Path, name: str) -> None:
    with av.open(varying / name) as container:
        expected = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    video = load_video(varying / name)
    indices = [0, 90, 3, 44, 45, 71]
    for index, image in zip(indices, video.pick(indices), strict=True):
        np.testing.assert_array_equal(np.asarray(image), expected[index])


def test_a_minute_of_screen_recording(tmp_path: Path) -> None:
    """600 frames in a file that announces 60 a second: by that it would last 10 seconds."""
    times = [0, *np.cumsum(np.tile([20, 30, 20, 330], 150))][:600]
    path = film(str(tmp_path / "screen.mkv"), times, rate=60)
    with av.open(path) as container:
        assert container.streams.video[0].average_rate == 60
    video = load_video(path)
    assert len(taken(QWEN3, video)) == 119 and len(taken(QWEN2, video)) == 118
    said = said_times(QWEN3, video)
    assert len(said) == 60 and said[0] < 0.5 and 59 < said[-1] < 60
    assert np.diff(said).max() < 1.5


# Constant rates: transformers' own samplers, at the rate that the file states.

CONSTANT = {
    "a.mp4": ({"codec": "mpeg4", "options": {"bf": "2"}}, 24),
    "b.mkv": ({"codec": "mpeg4"}, 30),
    "c.webm": ({"codec": "libvpx"}, 25),
    "d.avi": ({"codec": "mpeg4"}, 12),
    "e.mov": ({"codec": "mjpeg", "pixels": "yuvj420p"}, 60),
    "f.ts": ({"codec": "libx264"}, 25),
    "g.mp4": ({"codec": "libx264", "settings": {"movflags": "frag_keyframe+empty_moov"}}, 24),
    "h.flv": ({"codec": "flv"}, 30),
    "i.mpg": ({"codec": "mpeg1video"}, 25),
}


@pytest.mark.parametrize("name", CONSTANT)
def test_constant_rates_are_sampled_as_transformers_does(tmp_path: Path, name: str) -> None:
    how, rate = CONSTANT[name]
    path = film(str(tmp_path / name), range(150), rate=rate, tick=Fraction(1, rate), **how)
    video = load_video(path)
    assert video.seconds is None and video.fps == pytest.approx(rate, rel=1e-3)
    metadata = SimpleNamespace(total_num_frames=150, fps=video.fps)
    for kind, layout in (("qwen2_vl", QWEN2), ("qwen3_vl", QWEN3)):
        theirs = video_processor(kind, patch_size=4, min_frames=4, max_frames=768)
        assert taken(layout, video) == list(theirs.sample_frames(metadata, fps=2))


def test_a_telephone_that_keeps_its_rate_within_half_a_frame_is_constant(tmp_path: Path) -> None:
    times = (np.arange(90) * 33.3667 + RNG.uniform(-9, 9, 90)).clip(0).round().astype(int)
    video = load_video(film(str(tmp_path / "a.mp4"), times.tolist(), rate=30))
    assert video.seconds is None and video.fps == pytest.approx(30, rel=0.01)


@given(
    gaps=st.lists(st.integers(1, 900), min_size=1, max_size=60),
    lasts=st.integers(0, 900),
    announced=st.none() | st.fractions(min_value=1, max_value=120),
)
@settings(max_examples=200, deadline=None)
def test_times_of_any_kind(gaps: list[int], lasts: int, announced: Fraction | None) -> None:
    ticks = [7, *(np.cumsum(gaps) + 7).tolist()]
    found = frame_times(ticks, Fraction(1, 1000), lasts, announced)
    seconds = [(one - 7) / 1000 for one in ticks]
    assert found.fps is not None and found.fps > 0
    if found.seconds is None:
        assert found.fps == pytest.approx(float(announced or 0))
        assert all(abs(one * found.fps - i) < 0.5 for i, one in enumerate(seconds))
    else:
        assert found.seconds == pytest.approx(tuple(seconds))
        assert len(ticks) / found.fps == pytest.approx(
            seconds[-1] + (lasts / 1000 or seconds[-1] / len(gaps))
        )
        video = Video([Image.new("RGB", SIZE)] * len(ticks), found.fps, found.seconds)
        duration, indices = len(ticks) / found.fps, taken(QWEN2, video)
        expected = [on_screen(seconds, k * duration / len(indices)) for k in range(len(indices))]
        assert indices == expected
