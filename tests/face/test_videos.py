"""Videos from lists, arrays and files, and the ones that must be refused."""

from __future__ import annotations

import functools
import random
import shutil
import sys
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers.video_utils import load_video as theirs

from avl_plugins.errors import AvlError
from avl_runtime.machine.installation import install_extra
from avl_runtime.vision.frame_steps import spread
from avl_runtime.vision.load import video_files, videos
from avl_runtime.vision.load.images import ImageError
from avl_runtime.vision.load.videos import Video, VideoError, load_video
from avl_runtime.vision.resample import resize

RATE, COUNT, SIZE = 12, 30, (64, 48)
# Every kind of container; some with frames that are stored in another order than shown.
FILES = {
    "a.mp4": ("mpeg4", "yuv420p", {"bf": "2", "g": "8"}),
    "b.mkv": ("mpeg4", "yuv420p", {"bf": "2", "g": "10"}),
    "c.mov": ("mjpeg", "yuvj420p", {}),
    "d.avi": ("mpeg4", "yuv420p", {"g": "8"}),
    "e.ts": ("mpeg2video", "yuv420p", {"bf": "2", "g": "8"}),
    "f.mpg": ("mpeg1video", "yuv420p", {"g": "8"}),
    "g.gif": ("gif", "rgb8", {}),
    "h.mkv": ("ffv1", "bgr0", {}),
}


def drawn(number: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    """A frame whose colours tell its number."""
    width, height = size
    frame = np.zeros((height, width, 3), np.uint8)
    frame[:, : width // 2] = (8 * number % 256, 255 - 8 * number % 256, 128)
    frame[number % height, :, 2] = 255
    return frame


def write(path: Path, count: int = COUNT) -> Path:
    codec, pixels, options = FILES[path.name]
    rate = 25 if path.suffix in (".ts", ".mpg") else RATE
    with av.open(path, "w") as container:
        stream = container.add_stream(codec, rate=rate, options=options)
        stream.width, stream.height = SIZE
        stream.pix_fmt = pixels
        for number in range(count):
            frame = av.VideoFrame.from_ndarray(drawn(number), format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One file of each kind."""
    place = tmp_path_factory.mktemp("videos")
    for name in FILES:
        write(place / name)
    return place


@functools.cache
def decoded(path: Path) -> list[np.ndarray]:
    """All frames, from the first to the last."""
    with av.open(path) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def same(found: Sequence[Image.Image], expected: Sequence[np.ndarray]) -> None:
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(np.asarray(one), other)


def refused(source: Any, error: type[AvlError] = VideoError) -> str:
    with pytest.raises(error) as caught:
        video = load_video(source)
        video.pick(range(video.count))
    message = str(caught.value)
    assert "\n" not in message and "expected" in message
    return message


# Frames in memory.


def test_lists_and_arrays_give_the_same_frames(tmp_path: Path) -> None:
    frames = np.stack([drawn(number) for number in range(5)])
    Image.fromarray(frames[1]).save(tmp_path / "1.png")
    mixed = [Image.fromarray(frames[0]), tmp_path / "1.png", *frames[2:]]
    for source in (list(frames), frames, mixed):
        video = load_video(source)
        assert (video.count, video.fps) == (5, None)
        same(video.pick([4, 0, 0, 1]), frames[[4, 0, 0, 1]])
        assert load_video(video) is video


def test_arrays_of_one_and_four_channels() -> None:
    grey = np.arange(48, dtype=np.uint8).reshape(3, 4, 4, 1)
    expected = list(grey.repeat(3, 3))
    same(load_video(grey).pick(range(3)), expected)
    opaque = np.concatenate([grey.repeat(3, 3), np.full_like(grey, 255)], 3)
    same(load_video(opaque).pick(range(3)), expected)


@pytest.mark.parametrize(
    "source",
    [
        [],
        np.zeros((0, 4, 4, 3), np.uint8),
        np.zeros((2, 4, 4, 2), np.uint8),
        np.zeros((4, 4, 3), np.uint8),
        np.zeros((2, 4, 4, 3), np.float32),
        b"bytes",
        Image.new("RGB", (4, 4)),
        7,
    ],
)
def test_what_holds_no_frames_is_refused(source: Any) -> None:
    refused(source)


def test_pictures_of_a_list_are_loaded_when_they_are_picked() -> None:
    frames = [Image.new("RGB", (4, 4)), "missing.png", Image.new("RGB", (4, 4), "red")]
    same(load_video(frames).pick([2]), [np.full((4, 4, 3), (255, 0, 0), np.uint8)])
    assert "missing.png" in refused(frames, ImageError)


# Files.


@pytest.mark.parametrize("name", FILES)
def test_frames_of_a_file_are_those_that_decoding_shows(folder: Path, name: str) -> None:
    expected = decoded(folder / name)
    for path in (folder / name, str(folder / name)):
        video = load_video(path)
        assert video.count == len(expected) == COUNT
        assert video.fps == pytest.approx(25 if name in ("e.ts", "f.mpg") else RATE, rel=0.05)
        same(video.pick(range(COUNT)), expected)


@given(
    name=st.sampled_from(list(FILES)),
    indices=st.lists(st.integers(0, COUNT - 1), min_size=1, max_size=6),
)
@settings(max_examples=60, deadline=None)
def test_any_frames_in_any_order(folder: Path, name: str, indices: list[int]) -> None:
    expected = decoded(folder / name)
    same(load_video(folder / name).pick(indices), [expected[index] for index in indices])


@pytest.mark.parametrize("name", ["a.mp4", "d.avi"])
def test_eight_frames_are_those_that_transformers_takes(folder: Path, name: str) -> None:
    expected, _ = theirs(str(folder / name), num_frames=8, backend="pyav")
    video = load_video(folder / name)
    same(video.pick(spread(video.count, 8)), list(expected))


@pytest.mark.parametrize("name", ["a.mp4", "b.mkv"])
def test_nothing_before_the_nearest_key_frame_is_decoded(
    folder: Path, tmp_path: Path, name: str
) -> None:
    """Frames behind are found although the file's beginning cannot be decoded any more."""
    expected = decoded(folder / name)
    with av.open(folder / name) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
        starts = [number for number, packet in enumerate(packets) if packet.is_keyframe]
        places = [(packet.pos, packet.size) for packet in packets[: starts[2]]]
    data = bytearray((folder / name).read_bytes())
    for position, size in places:
        data[position + 4 : position + size] = bytes(size - 4)
    path = tmp_path / name
    path.write_bytes(data)
    later = [COUNT - 3, COUNT - 1]
    video = load_video(path)
    assert video.count == COUNT
    same(video.pick(later), [expected[index] for index in later])
    with pytest.raises(VideoError, match="damaged"):
        video.pick([1])


def test_a_turned_video_comes_upright(folder: Path, tmp_path: Path) -> None:
    """Telephones film lying down and note the turn in the track's header."""
    data = bytearray((folder / "a.mp4").read_bytes())
    matrix = data.index(b"tkhd") + 4 + 40
    one = 1 << 16
    for clockwise, turn in (
        ((0, one, -one, 0), -1),
        ((-one, 0, 0, -one), 2),
        ((0, -one, one, 0), 1),
    ):
        a, b, c, d = clockwise
        numbers = (a, b, 0, c, d, 0, 0, 0, 1 << 30)
        data[matrix : matrix + 36] = b"".join(n.to_bytes(4, "big", signed=True) for n in numbers)
        path = tmp_path / f"turned{turn}.mp4"
        path.write_bytes(data)
        same(load_video(path).pick([3]), [np.rot90(decoded(folder / "a.mp4")[3], turn)])


# Files that must be refused.


def test_limits_hold_before_anything_is_decoded(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = folder / "a.mp4"

    def fail(*_: object) -> None:
        raise AssertionError("a frame was decoded")

    monkeypatch.setattr(video_files.FileFrames, "_picture", fail)
    monkeypatch.setattr(videos, "MAX_PICKED", 3 * SIZE[0] * SIZE[1])
    for source in (path, [drawn(number) for number in range(4)]):
        with pytest.raises(VideoError, match="megapixels in all"):
            load_video(source).pick([0, 1, 2, 3])
    for name, value, said in (
        ("MAX_BYTES", 100, "GiB"),
        ("MAX_FRAMES", COUNT - 1, "frames"),
        ("MAX_PIXELS", SIZE[0] * SIZE[1] - 1, "megapixels a frame"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(video_files, name, value)
            assert said in refused(path)


def test_what_is_no_video_file_is_refused(folder: Path, tmp_path: Path) -> None:
    def file(name: str, data: bytes) -> Path:
        (tmp_path / name).write_bytes(data)
        return tmp_path / name

    assert "nothing" in refused(tmp_path / "missing.mp4")
    assert "folder" in refused(tmp_path)
    assert "device" in refused("/dev/null")
    assert "address" in refused("https://example.org/a.mp4")
    assert "no bytes" in refused(file("empty.mp4", b""))
    assert "MP4" in refused(file("text.mp4", b"What is this?\n" * 99))
    refused("a\0b.mp4")
    shutil.copy(folder / "a.mp4", tmp_path)
    # Lists of files are no videos: they would name others, or addresses.
    listed = "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\na.mp4\n#EXT-X-ENDLIST\n"
    refused(file("list.m3u8", listed.encode()))
    refused(file("list.ffconcat", b"ffconcat version 1.0\nfile a.mp4\n"))


def test_a_file_with_sound_alone_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "sound.mp4"
    with av.open(path, "w") as container:
        stream = container.add_stream("aac", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        frame.rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    assert "without pictures" in refused(path)


@pytest.mark.parametrize("name", FILES)
def test_damaged_files_never_raise_anything_else(
    folder: Path, tmp_path: Path, name: str, capfd: pytest.CaptureFixture[str]
) -> None:
    whole = (folder / name).read_bytes()
    rng = random.Random(name)
    path = tmp_path / name
    refusals = 0
    for attempt in range(24):
        data = bytearray(whole)
        if attempt % 3 == 0:
            del data[rng.randrange(len(data)) :]
        for _ in range(attempt % 3 * 8):
            data[rng.randrange(len(data))] = rng.randrange(256)
        path.write_bytes(data)
        try:
            video = load_video(path)
            assert len(video.pick(spread(video.count, 8))) == min(8, video.count)
        except AvlError as error:
            assert "expected" in str(error) and "\n" not in str(error)
            refusals += 1
    assert refusals
    assert capfd.readouterr() == ("", "")


def test_a_file_that_has_gone_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mp4", 4)
    video = load_video(path)
    path.unlink()
    with pytest.raises(VideoError, match=r"a\.mp4"):
        video.pick([0])


def test_without_pyav_the_line_says_what_to_install(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    assert f"found none; run: {install_extra('video')}, or pass" in refused(folder / "a.mp4")
    assert load_video([Image.new("RGB", (4, 4))]).count == 1


# Resizing frames.


@given(
    size=st.tuples(st.integers(1, 150), st.integers(1, 150)),
    target=st.tuples(st.integers(1, 150), st.integers(1, 150)),
    mode=st.sampled_from([(2, "bilinear"), (3, "bicubic")]),
    seed=st.integers(0, 99),
)
@settings(max_examples=150, deadline=None)
def test_resize_is_torchs(
    size: tuple[int, int], target: tuple[int, int], mode: tuple[int, str], seed: int
) -> None:
    number, name = mode
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (*size, 3), np.uint8)
    if seed % 2:
        pixels = (pixels > 127).astype(np.uint8) * 255  # overshoots
    expected = torch.nn.functional.interpolate(
        torch.from_numpy(pixels).permute(2, 0, 1)[None], target, mode=name, antialias=True
    )
    np.testing.assert_array_equal(
        resize(pixels, *target, number), expected[0].permute(1, 2, 0).numpy()
    )


def test_other_filters_are_refused() -> None:
    with pytest.raises(ImageError, match="expected"):
        resize(np.zeros((4, 4, 3), np.uint8), 2, 2, 0)


def test_a_short_video_is_taken_whole_and_a_long_one_spread() -> None:
    assert spread(3, 8) == [0, 1, 2] and spread(8, 8) == list(range(8))
    assert spread(100, 8) == [0, 12, 25, 37, 50, 62, 75, 87]
    assert Video([Image.new("RGB", (1, 1))], 2.0).fps == 2.0
