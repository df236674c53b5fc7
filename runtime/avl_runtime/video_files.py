"""Frames of a video file through PyAV, which the extra `video` installs.

A first pass reads the file's packets and decodes nothing: it counts the frames and notes when each
is shown. Frame i is the i-th of those that decoding from the start would show. Where the container
keeps exact times, picking a frame starts at the last key frame before it; elsewhere (AVI, MPEG
programme streams, GIF) at the beginning.
"""

from __future__ import annotations

import contextlib
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final

from PIL import Image

from avl_plugins.errors import AvlError
from avl_runtime.images import MAX_PIXELS
from avl_runtime.installation import install_extra

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
TURNS: Final = {
    90: Image.Transpose.ROTATE_90,
    180: Image.Transpose.ROTATE_180,
    -180: Image.Transpose.ROTATE_180,
    -90: Image.Transpose.ROTATE_270,
}


class VideoError(AvlError):
    """A video is missing, damaged, too large or no video."""


@dataclass(frozen=True, slots=True, eq=False)
class FileFrames:
    """The frames of a file.

    Attributes:
        size: width and height as the file announces them, before it is turned upright.
        times: when each frame is shown, ascending, in the stream's time base; frames of a
            container without exact times are numbered instead.
        keys: those of `times` that belong to key frames; empty in such containers.
    """

    path: str
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
            with _open(self.path) as container:
                found = self._from_keys(container, sorted(wanted))
        if len(found) < len(wanted):
            # Without exact times, or where a damaged key frame hides what lies behind it.
            wanted_at = {index: self.times[index] for index in indices}
            with _open(self.path) as container:
                for number, frame in enumerate(container.decode(video=0)):
                    if number in wanted_at:
                        found[wanted_at[number]] = self._picture(frame)
                    if number >= max(wanted_at):
                        break
        missing = [index for index in indices if self.times[index] not in found]
        if missing:
            raise VideoError(
                f"{self.path}: expected {len(self)} frames, found none that can be decoded at "
                f"{missing[0]}; the file is damaged, save or fetch it again"
            )
        return [found[self.times[index]] for index in indices]

    def _from_keys(self, container: Any, wanted: list[int]) -> dict[int, Image.Image]:
        """Frames by time, each run of them from the key frame before it."""
        stream = container.streams.video[0]
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
        _check_size((frame.width, frame.height), self.path)
        image = Image.fromarray(frame.to_ndarray(format="rgb24"))
        turn = TURNS.get(round(frame.rotation))
        return image if turn is None else image.transpose(turn)


def open_file(source: str | Path) -> tuple[FileFrames, float | None]:
    """A file's frames and how many of them are shown a second, if it says so.

    Raises:
        VideoError: PyAV is not installed, or the file cannot be read as a video within the limits.
    """
    path = str(source)
    _check_file(path)
    times: list[int | None] = []
    keys: list[int] = []
    with _open(path) as container:
        # Whatever is asked of a stream is asked now: behind the block its memory is gone.
        stream = container.streams.video[0]
        size = (int(stream.width), int(stream.height))
        rate = stream.average_rate
        exact = container.format.name in EXACT
        _check_size(size, path)
        for packet in container.demux(stream):
            if not packet.size or packet.is_discard:
                continue  # the end of the stream, or a frame that is cut off
            times.append(packet.pts)
            if packet.is_keyframe and packet.pts is not None:
                keys.append(packet.pts)
            if len(times) > MAX_FRAMES:
                raise VideoError(
                    f"{path}: expected at most {MAX_FRAMES} frames, found more; cut the video first"
                )
    if not times:
        raise VideoError(f"{path}: expected a video of at least one frame, found none")
    known = sorted({time for time in times if time is not None})
    fps = float(rate) if rate else None
    if not exact or not keys or len(known) < len(times):
        return FileFrames(path, size, tuple(range(len(times))), ()), fps
    return FileFrames(path, size, tuple(known), tuple(sorted(keys))), fps


@contextlib.contextmanager
def _open(path: str) -> Iterator[Any]:
    """The file as a PyAV container with a video stream."""
    try:
        import av
    except ImportError:
        raise VideoError(
            f"{path}: expected PyAV to read video files, found none; run: "
            f"{install_extra('video')}, or pass the frames as a list of pictures"
        ) from None
    try:
        # As an open file it can name no protocol, and so reaches nothing but itself.
        with Path(path).open("rb") as file, _container(av, file, path) as container:
            yield container
    except (av.FFmpegError, OSError, ValueError) as error:
        raise VideoError(
            f"{path}: expected a whole video, found a damaged one ({_reason(error)}); save or "
            "fetch it again"
        ) from None


def _container(av: Any, file: BinaryIO, path: str) -> Any:
    options = {"format_whitelist": ",".join(FORMATS)}
    try:
        # Titles and tags in an odd encoding are no reason to refuse a video.
        container = av.open(file, options=options, metadata_errors="ignore")
    except (av.FFmpegError, OSError, ValueError) as error:
        raise VideoError(
            f"{path}: expected a video ({', '.join(NAMES)}), found other data or a damaged file "
            f"({_reason(error)})"
        ) from None
    streams = container.streams.video
    if not streams or streams[0].codec_context is None:
        found = "one in an unknown coding" if streams else "a file without pictures"
        container.close()
        raise VideoError(f"{path}: expected a video, found {found}")
    return container


def _reason(error: Exception) -> str:
    return " ".join(str(getattr(error, "strerror", None) or error).split())[:120]


def _check_file(path: str) -> None:
    if "://" in path:
        raise VideoError(f"{path}: expected the path of a video file, found an address; fetch it")
    place = Path(path)
    try:
        if place.is_dir():
            raise VideoError(f"{path}: expected a video file, found a folder; name a file in it")
        if not place.exists():
            raise VideoError(f"{path}: expected a video file, found nothing; check the path")
        if not place.is_file():
            raise VideoError(f"{path}: expected a video file, found a device or a pipe")
        size = place.stat().st_size
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        name = ascii(path)[1:-1]
        raise VideoError(f"{name}: expected a readable video file, found: {reason}") from None
    if not size:
        raise VideoError(f"{path}: expected a video, found no bytes")
    if size > MAX_BYTES:
        raise VideoError(
            f"{path}: expected at most {MAX_BYTES >> 30} GiB, found {size / (1 << 30):.1f} GiB; "
            "cut or scale the video down first"
        )


def _check_size(size: tuple[int, int], path: str) -> None:
    width, height = size
    if width < 1 or height < 1:
        raise VideoError(f"{path}: expected frames with pixels, found {width} x {height}")
    if width * height > MAX_PIXELS:
        raise VideoError(
            f"{path}: expected at most {MAX_PIXELS // 1_000_000} megapixels a frame, "
            f"found {width} x {height}; scale the video down first"
        )
