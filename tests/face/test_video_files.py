"""Files whose streams, times or pictures are not as the usual ones have them."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from avl_runtime.vision.load import animations, video_source
from avl_runtime.vision.load.videos import VideoError, load_video

from .filming import SIZE, colours, film

MOVING = range(0, 2400, 80)  # milliseconds: 30 frames at 12.5 a second


def decoded(path: Any, stream: int = 0) -> list[np.ndarray]:
    with av.open(path) as container:
        frames = container.decode(container.streams.video[stream])
        return [frame.to_ndarray(format="rgb24") for frame in frames]


def same(source: Any, expected: list[np.ndarray], fps: float | None = 12.5) -> None:
    video = load_video(source)
    assert video.count == len(expected)
    assert fps is None or video.fps == pytest.approx(fps, rel=0.02)
    indices = [len(expected) - 1, 0, len(expected) // 2]
    for index, image in zip(indices, video.pick(indices), strict=True):
        np.testing.assert_array_equal(np.asarray(image), expected[index])


def refused(source: Any) -> str:
    with pytest.raises(VideoError) as caught:
        load_video(source)
    message = str(caught.value)
    assert "\n" not in message and "expected" in message and len(message) < 400
    return message


# Streams in another order.


def sound(container: Any) -> Callable[[], None]:
    stream = container.add_stream("aac", rate=8000)
    frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
    frame.rate = 8000

    def finish() -> None:
        for number in range(8):
            frame.pts = number * 1024
            container.mux(stream.encode(frame))
        container.mux(stream.encode())

    return finish


def cover(container: Any) -> Callable[[], None]:
    """A picture in front, as music and films have one."""
    stream = container.add_stream("mjpeg", rate=1)
    stream.width, stream.height = 32, 32
    stream.pix_fmt = "yuvj420p"
    stream.disposition = av.stream.Disposition.attached_pic
    frame = av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24")
    frame.pts, frame.time_base = 0, Fraction(1)

    def finish() -> None:
        container.mux(stream.encode(frame))
        container.mux(stream.encode())

    return finish


def still(container: Any) -> Callable[[], None]:
    """One frame in front that nothing marks as a cover."""
    finish = cover(container)
    container.streams.video[0].disposition = av.stream.Disposition.default
    return finish


@pytest.mark.parametrize("before", [sound, cover, still])
@pytest.mark.parametrize("name", ["a.mp4", "b.mkv", "c.mov", "d.avi"])
def test_the_stream_that_moves_is_the_video(tmp_path: Path, before: Any, name: str) -> None:
    path = film(str(tmp_path / name), MOVING, rate=12, before=before)
    with av.open(path) as container:
        streams = range(len(container.streams.video))
    expected = max((decoded(path, stream) for stream in streams), key=len)
    same(path, expected, None if name == "d.avi" else 12.5)  # AVI shows the first frame longer


def test_sound_with_a_cover_alone_is_no_video(tmp_path: Path) -> None:
    path = str(tmp_path / "song.m4a")
    with av.open(path, "w", format="mp4") as container:
        for finish in (cover(container), sound(container)):
            finish()
    assert "cover" in refused(path)


# Times.


def test_fragments_without_a_duration(tmp_path: Path) -> None:
    for settings in ("frag_keyframe+empty_moov+default_base_moof", "frag_every_frame+empty_moov"):
        path = str(tmp_path / f"{len(settings)}.mp4")
        film(path, MOVING, rate=12, settings={"movflags": settings}, options={"g": "7"})
        same(path, decoded(path))


@pytest.mark.parametrize("name", ["a.mp4", "b.mkv", "c.mov"])
@pytest.mark.parametrize("first", [-500, 7000])
def test_times_that_do_not_begin_with_zero(tmp_path: Path, name: str, first: int) -> None:
    settings = {"avoid_negative_ts": "disabled", "use_editlist": "0"}
    times = [time + first for time in MOVING]
    options = {"g": "7", "bf": "0"}
    path = str(tmp_path / name)
    film(path, times, rate=12, settings=settings, options=options)
    with av.open(path) as container:
        packet = next(packet for packet in container.demux(video=0))
        assert (packet.pts < 0) == (first < 0) or name != "b.mkv"
    same(path, decoded(path))


def test_a_live_recording_has_no_length(tmp_path: Path) -> None:
    """Matroska written to where it cannot go back: no duration, no index."""

    class Pipe(io.RawIOBase):
        data = bytearray()

        def write(self, data: Any) -> int:
            self.data += data
            return len(data)

        def writable(self) -> bool:
            return True

    pipe = Pipe()
    film(pipe, MOVING, rate=60, form="matroska", settings={"live": "1"}, options={"g": "7"})
    path = tmp_path / "live.mkv"
    path.write_bytes(pipe.data)
    with av.open(str(path)) as container:
        assert container.streams.video[0].duration is None
    # What it announces counts for the last frame alone.
    same(path, decoded(str(path)), 30 / (29 * 0.08 + 1 / 60))


# Turned and mirrored.

ONE = 1 << 16
MATRICES = {
    (0, 1, -1, 0): lambda image: np.rot90(image, -1),
    (-1, 0, 0, -1): lambda image: np.rot90(image, 2),
    (0, -1, 1, 0): lambda image: np.rot90(image, 1),
    (-1, 0, 0, 1): lambda image: image[:, ::-1],
    (1, 0, 0, -1): lambda image: image[::-1],
    (0, 1, 1, 0): lambda image: image.transpose(1, 0, 2),
    (0, -1, -1, 0): lambda image: np.rot90(image, 2).transpose(1, 0, 2),
    (1, 0, 0, 1): lambda image: image,
}


@pytest.mark.parametrize("turn", MATRICES)
def test_turned_and_mirrored_films_come_upright(tmp_path: Path, turn: tuple[int, ...]) -> None:
    path = tmp_path / "a.mp4"
    film(str(path), MOVING, rate=12)
    plain = decoded(str(path))
    data = bytearray(path.read_bytes())
    place = data.index(b"tkhd") + 4 + 40
    a, b, c, d = turn
    numbers = (a * ONE, b * ONE, 0, c * ONE, d * ONE, 0, 0, 0, 1 << 30)
    data[place : place + 36] = b"".join(n.to_bytes(4, "big", signed=True) for n in numbers)
    path.write_bytes(data)
    same(path, [MATRICES[turn](image) for image in plain])


# In memory, and by other names.


def test_bytes_open_files_and_addresses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    path = tmp_path / "my film #1.mp4"
    film(str(path), MOVING, rate=12)
    expected, data = decoded(str(path)), path.read_bytes()
    address = "data:video/mp4;base64," + base64.b64encode(data).decode()
    at_end = io.BytesIO(data)
    at_end.seek(100)
    plain = (path, str(path), f"~/{path.name}", f"file://{tmp_path}/my%20film%20%231.mp4")
    for source in (*plain, data, memoryview(data), at_end, path.open("rb"), address):
        same(source, expected)
    monkeypatch.setattr(video_source, "MAX_DATA", 1000)
    for source in (data, io.BytesIO(data), address):
        assert "at most" in refused(source)
    assert "binary mode" in refused(io.StringIO("text"))
    assert "address" in refused("https://example.org/a.mp4")
    assert "no bytes" in refused(b"")
    (tmp_path / "two\nlines.mp4").write_bytes(b"no video")
    refused(tmp_path / "two\nlines.mp4")
    assert "name too long" in refused("x" * 9000) and "characters" in refused("x" * 90_000)


# Animated pictures.

LASTS = (100, 250, 30, 1000, 100, 100)
SHADES = tuple(range(20, 260, 40))
PICTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "a.webp": ("WEBP", {"lossless": True}),
    "a.png": ("PNG", {}),
    "a.avif": ("AVIF", {"quality": 100}),
    "a.gif": ("GIF", {}),
}


def animated(path: Path, lasts: Any = LASTS, mode: str = "RGB") -> Path:
    form, options = PICTURES[path.name]
    shades = [(shade, 0, 0, 255)[: len(mode)] for shade in SHADES]
    frames = [Image.new(mode, SIZE, shade) for shade in shades]
    frames[0].save(path, form, save_all=True, append_images=frames[1:], duration=lasts, **options)
    return path


@pytest.mark.parametrize("name", PICTURES)
def test_animated_pictures_are_videos_with_their_own_times(tmp_path: Path, name: str) -> None:
    path = animated(tmp_path / name)
    for source in (path, path.read_bytes()):
        video = load_video(source)
        assert video.count == len(LASTS) and video.seconds is not None
        assert video.seconds == pytest.approx([0, 0.1, 0.35, 0.38, 1.38, 1.48], abs=0.011)
        assert video.fps == pytest.approx(len(LASTS) / 1.58, rel=0.01)
        picked = video.pick([3, 0, 5, 3])
        for image, shade in zip(picked, (SHADES[3], SHADES[0], SHADES[5], SHADES[3]), strict=True):
            assert image.mode == "RGB"
            assert np.abs(np.asarray(image).astype(int) - (shade, 0, 0)).max() <= 3
    constant = load_video(animated(tmp_path / name, lasts=80))
    assert constant.seconds is None and constant.fps == pytest.approx(12.5)


def test_heic_pictures_are_no_videos(tmp_path: Path) -> None:
    heif = pytest.importorskip("pillow_heif", reason="pillow-heif (the extra heic) is missing")
    path = tmp_path / "a.heic"
    heif.from_pillow(Image.new("RGB", SIZE)).save(path)
    assert "pass it as an image" in refused(path)


@pytest.mark.parametrize("name", ["a.webp", "a.png", "a.avif", "a.gif", "a.mkv"])
def test_transparent_parts_of_animations_are_laid_over_white(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    frames = [Image.new("RGBA", SIZE, (0, 0, 0, alpha)) for alpha in (0, 255)]
    if name == "a.mkv":
        with av.open(str(path), "w") as container:
            stream = container.add_stream("ffv1", rate=12)
            (stream.width, stream.height), stream.pix_fmt = SIZE, "bgra"
            for number, image in enumerate(frames):
                frame = av.VideoFrame.from_ndarray(np.asarray(image), format="rgba")
                frame.pts, frame.time_base = number, Fraction(1, 12)
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
    else:
        form, options = PICTURES[name]
        frames[0].save(path, form, save_all=True, append_images=frames[1:], duration=80, **options)
    first, second = load_video(path).pick([0, 1])
    assert np.asarray(first).min() >= 252 and np.asarray(second).max() <= 3


@pytest.mark.parametrize("name", ["a.webp", "a.png", "a.avif", "a.jpg", "a.bmp"])
def test_still_pictures_are_no_videos(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    Image.new("RGB", SIZE).save(path)
    assert "pass it as an image" in refused(path)


@pytest.mark.parametrize("name", ["a.webp", "a.png", "a.avif"])
def test_damaged_and_huge_animations(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = animated(tmp_path / name)
    whole = path.read_bytes()
    rng = np.random.default_rng(3)
    for attempt in range(20):
        data = bytearray(whole[: rng.integers(20, len(whole))] if attempt % 2 else whole)
        for _ in range(attempt % 3):
            data[rng.integers(len(data))] = rng.integers(256)
        path.write_bytes(data)
        try:
            video = load_video(path)
            assert len(video.pick([0, video.count - 1])) == 2
        except VideoError as error:
            assert "expected" in str(error) and "\n" not in str(error)
    path.write_bytes(whole)
    monkeypatch.setattr(animations, "MAX_DECODED", 5 * SIZE[0] * SIZE[1])
    assert "megapixels" in refused(path)


def test_an_animated_avif_is_read_without_pillows_decoder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PyAV shows its still picture as a stream in front of the one that moves."""
    path = animated(tmp_path / "a.avif")
    with av.open(str(path)) as container:
        assert len(container.streams.video) == 2
    monkeypatch.delitem(Image.OPEN, "AVIF")
    video = load_video(path)
    assert video.count == len(LASTS) and video.seconds is not None
    assert video.seconds == pytest.approx([0, 0.1, 0.35, 0.38, 1.38, 1.48])
    reds = [np.asarray(image)[..., 0].mean() for image in video.pick(range(6))]
    assert reds == pytest.approx(SHADES, abs=4)


def test_frames_tell_their_numbers() -> None:
    """Otherwise the tests above would compare like with like."""
    assert len({colours(number)[0, 0].tobytes() for number in range(30)}) == 30
