"""Frames of a video file through PyAV, which the extra `video` installs.

A first pass reads the file's packets and decodes nothing: it counts the frames and notes when each
is shown. Frame i is the i-th of those that decoding from the start would show. Where the container
keeps exact times, picking a frame starts at the last key frame before it; elsewhere (AVI, MPEG
programme streams, GIF) at the beginning.
"""

from __future__ import annotations

import contextlib
import struct
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, BinaryIO, Final

from PIL import Image

from avl_plugins.errors import shown
from avl_runtime.machine.installation import install_extra
from avl_runtime.vision.load.animations import AnimationFrames, is_animation, open_animation
from avl_runtime.vision.load.decoding import is_heic, starts_as_picture
from avl_runtime.vision.load.frame_times import FrameTimes, frame_times
from avl_runtime.vision.load.images import MAX_PIXELS, to_rgb
from avl_runtime.vision.load.video_source import VideoError, VideoFile, VideoFileLike, video_file

MAX_BYTES: Final = 4 << 30
MAX_FRAMES: Final = 1 << 20  # nearly 10 hours at 30 frames a second
# Containers that hold their own pictures. FFmpeg's others include playlists, which name further
# files and addresses. The names are FFmpeg's.
FORMATS: Final[tuple[str, ...]] = (
    "mov,mp4,m4a,3gp,3g2,mj2",
    "matroska,webm",
    "avi",
    "mpegts",
    "mpeg",
    "gif",
    "flv",
    "ogg",
    "asf",
)
NAMES: Final = ("MP4", "MOV", "MKV", "WebM", "AVI", "MPEG", "GIF", "FLV", "Ogg", "WMV")
EXACT: Final = FORMATS[:2]
# What a file's display matrix asks for, by where it sends the axes to the right and down.
TURNS: Final[dict[tuple[int, ...], Image.Transpose]] = {
    (0, 1, -1, 0): Image.Transpose.ROTATE_270,
    (-1, 0, 0, -1): Image.Transpose.ROTATE_180,
    (0, -1, 1, 0): Image.Transpose.ROTATE_90,
    (-1, 0, 0, 1): Image.Transpose.FLIP_LEFT_RIGHT,
    (1, 0, 0, -1): Image.Transpose.FLIP_TOP_BOTTOM,
    (0, 1, 1, 0): Image.Transpose.TRANSPOSE,
    (0, -1, -1, 0): Image.Transpose.TRANSVERSE,
}


@dataclass(frozen=True, slots=True, eq=False)
class FileFrames:
    """The frames of a file.

    Attributes:
        stream: the number of the stream that they come from.
        size: width and height as the file announces them, before it is turned upright.
        times: when each frame is shown, ascending, in the stream's time base; frames of a
            container without exact times are numbered instead.
        keys: those of `times` that belong to key frames; empty in such containers.
    """

    file: VideoFile
    stream: int
    size: tuple[int, int]
    times: tuple[int, ...]
    keys: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.times)

    def pick(self, indices: Sequence[int]) -> list[Image.Image]:
        """The frames at `indices`, decoded.

        Raises:
            VideoError: the file is damaged, or has been removed.
        """
        wanted = {self.times[index] for index in indices}
        found: dict[int, Image.Image] = {}
        if self.keys:
            with _open(self.file) as container:
                found = self._from_keys(container, sorted(wanted))
        if len(found) < len(wanted):
            # Without exact times, or where a damaged key frame hides what lies behind it.
            wanted_at = {index: self.times[index] for index in indices}
            with _open(self.file) as container:
                for number, frame in enumerate(container.decode(container.streams[self.stream])):
                    if number in wanted_at:
                        found[wanted_at[number]] = self._picture(frame)
                    if number >= max(wanted_at):
                        break
        missing = [index for index in indices if self.times[index] not in found]
        if missing:
            raise VideoError(
                f"{self.file.name}: expected {len(self)} frames, found none that can be decoded at "
                f"{missing[0]}; the file is damaged, save or fetch it again"
            )
        return [found[self.times[index]] for index in indices]

    def _from_keys(self, container: Any, wanted: list[int]) -> dict[int, Image.Image]:
        """Frames by time, each run of them from the key frame before it."""
        stream = container.streams[self.stream]
        found: dict[int, Image.Image] = {}
        at = 0
        while at < len(wanted):
            key = self._key_of(wanted[at])
            run = [time for time in wanted[at:] if self._key_of(time) == key]
            container.seek(self.keys[key], stream=stream)
            for frame in container.decode(stream):
                if frame.pts in run:
                    found[frame.pts] = self._picture(frame)
                if frame.pts is None or frame.pts >= run[-1]:
                    break
            at += len(run)
        return found

    def _key_of(self, time: int) -> int:
        return max(0, bisect_right(self.keys, time) - 1)

    def _picture(self, frame: Any) -> Image.Image:
        _check_size((frame.width, frame.height), self.file.name)
        clear = any(component.is_alpha for component in frame.format.components)
        pixels = frame.to_ndarray(format="rgba" if clear else "rgb24")
        image = to_rgb(Image.fromarray(pixels))
        turn = _turn(frame)
        return image if turn is None else image.transpose(turn)


@dataclass(slots=True)
class _Packets:
    """What the packets of one stream say of its frames."""

    times: list[int | None] = field(default_factory=list)
    keys: list[int] = field(default_factory=list)
    lasts: int = 0  # how long the frame that is shown last is shown
    latest: int | None = None
    decoded_at: int | None = None
    in_order: bool = True  # whether decoding times ascend, as they do unless files were joined

    def add(self, packet: Any) -> None:
        time = packet.pts
        self.times.append(time)
        if packet.dts is not None:
            if self.decoded_at is not None and packet.dts < self.decoded_at:
                self.in_order = False
            self.decoded_at = packet.dts
        if time is None:
            return
        if packet.is_keyframe:
            self.keys.append(time)
        if self.latest is None or time >= self.latest:
            self.latest, self.lasts = time, packet.duration or 0


def open_file(source: VideoFileLike) -> tuple[FileFrames | AnimationFrames, FrameTimes]:
    """A file's frames and when they are shown.

    Raises:
        VideoError: PyAV is not installed, or the file cannot be read as a video within the limits.
    """
    file = video_file(source, MAX_BYTES)
    head = _head(file)
    if is_animation(head):
        return open_animation(file)
    with _open(file) as container:
        # Whatever is asked of a stream is asked now: behind the block its memory is gone.
        packets = _read(container, file.name)
        number = _moving(packets)
        stream, found = container.streams[number], packets[number]
        size = (int(stream.width), int(stream.height))
        rate, tick = stream.average_rate, stream.time_base
        exact = container.format.name in EXACT
        _check_size(size, file.name)
    if len(found.times) == 1 and is_heic(head):
        raise VideoError(f"{file.name}: expected a video, found a picture; pass it as an image")
    known = [time for time in found.times if time is not None]
    if len(known) < len(found.times) or not (exact or found.in_order):
        shown_at = FrameTimes(float(rate) if rate else None, None)
    else:
        shown_at = frame_times(sorted(known), Fraction(tick), found.lasts, rate)
    if not exact or not found.keys or len(set(known)) < len(found.times):
        return FileFrames(file, number, size, tuple(range(len(found.times))), ()), shown_at
    keys = tuple(sorted(found.keys))
    return FileFrames(file, number, size, tuple(sorted(known)), keys), shown_at


def _read(container: Any, name: str) -> dict[int, _Packets]:
    """The packets of every stream that may be the video, by the stream's number."""
    streams = _candidates(container)
    found = {stream.index: _Packets() for stream in streams}
    count = 0
    for packet in container.demux(streams):
        if not packet.size or packet.is_discard:
            continue  # the end of the stream, or a frame that is cut off
        found[packet.stream.index].add(packet)
        count += 1
        if count > MAX_FRAMES:
            raise VideoError(
                f"{name}: expected at most {MAX_FRAMES} frames, found more; cut the video first"
            )
    if not count:
        raise VideoError(f"{name}: expected a video of at least one frame, found none")
    return found


def _moving(packets: dict[int, _Packets]) -> int:
    """The first stream that moves; some files have a still picture in front."""
    with_frames = [number for number, found in packets.items() if found.times]
    moving = [number for number in with_frames if len(packets[number].times) > 1]
    return (moving or with_frames)[0]


def _candidates(container: Any) -> list[Any]:
    """Streams of pictures that are no cover of what the file plays."""
    import av

    aside = av.stream.Disposition.attached_pic | av.stream.Disposition.timed_thumbnails
    return [
        stream
        for stream in container.streams.video
        if stream.codec_context is not None and not stream.disposition & aside
    ]


def _turn(frame: Any) -> Image.Transpose | None:
    """How to turn a frame upright, or mirror it, as its display matrix says."""
    matrix = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return None
    a, b, _, c, d = struct.unpack("=5i", bytes(matrix)[:20])
    largest = max(map(abs, (a, b, c, d))) or 1
    signs = tuple(round(number / largest) for number in (a, b, c, d))
    return TURNS.get(signs)


def _head(file: VideoFile) -> bytes:
    try:
        return file.head()
    except OSError as error:
        raise VideoError(
            f"{file.name}: expected a readable video file, found: {_reason(error)}"
        ) from None


@contextlib.contextmanager
def _open(file: VideoFile) -> Iterator[Any]:
    """The file as a PyAV container with a video stream."""
    name = file.name
    try:
        import av
    except ImportError:
        raise VideoError(
            f"{name}: expected PyAV to read video files, found none; run: "
            f"{install_extra('video')}, or pass the frames as a list of pictures"
        ) from None
    try:
        # As an open file it can name no protocol, and so reaches nothing but itself.
        with file.open() as opened, _container(av, opened, file) as container:
            yield container
    except (av.FFmpegError, OSError, ValueError) as error:
        raise VideoError(
            f"{name}: expected a whole video, found a damaged one ({_reason(error)}); save or "
            "fetch it again"
        ) from None


def _container(av: Any, opened: BinaryIO, file: VideoFile) -> Any:
    options = {"format_whitelist": ",".join(FORMATS)}
    try:
        # Titles and tags in an odd encoding are no reason to refuse a video.
        container = av.open(opened, options=options, metadata_errors="ignore")
    except (av.FFmpegError, OSError, ValueError) as error:
        if starts_as_picture(file.head()):
            raise VideoError(
                f"{file.name}: expected a video, found a picture; pass it as an image"
            ) from None
        raise VideoError(
            f"{file.name}: expected a video ({', '.join(NAMES)}), found other data or a damaged "
            f"file ({_reason(error)})"
        ) from None
    if not _candidates(container):
        found = (
            "a file without pictures"
            if not container.streams.video
            else ("one in an unknown coding, or a cover alone")
        )
        container.close()
        raise VideoError(f"{file.name}: expected a video, found {found}")
    return container


def _reason(error: Exception) -> str:
    return shown(" ".join(str(getattr(error, "strerror", None) or error).split()), 120)


def _check_size(size: tuple[int, int], name: str) -> None:
    width, height = size
    if width < 1 or height < 1:
        raise VideoError(f"{name}: expected frames with pixels, found {width} x {height}")
    if width * height > MAX_PIXELS:
        raise VideoError(
            f"{name}: expected at most {MAX_PIXELS // 1_000_000} megapixels a frame, "
            f"found {width} x {height}; scale the video down first"
        )
