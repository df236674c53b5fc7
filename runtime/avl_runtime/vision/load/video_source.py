"""Files that hold videos, on disk or in memory."""

from __future__ import annotations

import io
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, BinaryIO, Final, TypeGuard

from avl_plugins.errors import AvlError, shown
from avl_runtime.vision.load import sources
from avl_runtime.vision.load.sources import SourceError

MAX_DATA: Final = 512 << 20  # bytes of a video that is handed over in memory
HEAD: Final = 64

VideoFileLike = str | os.PathLike[str] | bytes | bytearray | memoryview | IO[bytes]


class VideoError(AvlError):
    """A video is missing, damaged, too large or no video."""


@dataclass(frozen=True, slots=True)
class VideoFile:
    """A file with a video, on disk (`path`) or in memory (`data`).

    `name` is what messages call it.
    """

    name: str
    path: Path | None
    data: bytes = b""

    def open(self) -> BinaryIO:
        """The file, open for reading."""
        return io.BytesIO(self.data) if self.path is None else self.path.open("rb")

    def head(self) -> bytes:
        """Its first bytes, which tell the kind."""
        with self.open() as file:
            return file.read(HEAD)


def is_open(source: object) -> TypeGuard[IO[bytes]]:
    """Whether `source` is an open file."""
    return callable(getattr(source, "read", None))


def video_file(source: Any, limit: int) -> VideoFile:
    """What a path, an address, bytes or an open file stands for; of a file, at most `limit` bytes.

    Raises:
        VideoError: there is no file that can be read, or one too large.
    """
    named = isinstance(source, (str, os.PathLike))
    name = shown(source) if named else "video bytes"
    try:
        if isinstance(source, str) and source[:5].lower() == "data:":
            return _held(name, sources.data_address(source, MAX_DATA))
        if isinstance(source, (bytes, bytearray, memoryview)):
            sources.check_length(memoryview(source).nbytes, MAX_DATA)
            return _held(name, bytes(source))
        if not named:
            return _held(name, sources.read_stream(source, "a video", MAX_DATA))
        if isinstance(source, str) and sources.ADDRESS.match(source) and not _is_local(source):
            raise SourceError("expected the path of a video file, found an address; fetch it")
        path = sources.local_path(source if isinstance(source, str) else Path(source))
        sources.check_file(path, "a video", sys.maxsize)
        size = path.stat().st_size
    except (SourceError, OSError) as error:
        raise VideoError(f"{name}: {shown(error, 200)}") from None
    if not size:
        raise VideoError(f"{name}: expected a video, found no bytes")
    if size > limit:
        raise VideoError(
            f"{name}: expected at most {limit >> 30} GiB, found {size / (1 << 30):.1f} GiB; "
            "cut or scale the video down first"
        )
    return VideoFile(name, path)


def _held(name: str, data: bytes) -> VideoFile:
    if not data:
        raise SourceError("expected a video, found no bytes")
    return VideoFile(name, None, data)


def _is_local(text: str) -> bool:
    return text[:6].lower() == "file:/"
