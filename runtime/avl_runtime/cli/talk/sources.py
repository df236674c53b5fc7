"""Pictures and videos that wait for a question, and where they came from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from avl_plugins.errors import shown as short
from avl_runtime.cli.talk.pasted import pasted_paths
from avl_runtime.prompts.processor import Processor
from avl_runtime.vision.load.images import load_image
from avl_runtime.vision.load.sources import SourceError, local_path
from avl_runtime.vision.load.videos import Video, load_video

ADDRESSES = ("http://", "https://", "data:")


@dataclass(frozen=True, slots=True)
class Shown:
    """Pictures and videos that go with a question."""

    images: tuple[Image.Image, ...] = ()
    videos: tuple[Video, ...] = ()

    def __add__(self, other: Shown) -> Shown:
        return Shown(self.images + other.images, self.videos + other.videos)

    @property
    def count(self) -> int:
        """Pictures and videos together."""
        return len(self.images) + len(self.videos)

    def counted(self) -> str:
        """As "1 picture and 2 videos"."""
        return counted(len(self.images), len(self.videos))


class Sources:
    """Where pictures and videos came from, for conversations that are saved."""

    def __init__(self) -> None:
        self._known: list[tuple[object, str]] = []

    def note(self, loaded: object, source: str) -> None:
        """Remember an address or, made absolute, the path of a file; what is neither has none."""
        if _is_address(source):
            self._known.append((loaded, source))
            return
        try:
            path = local_path(source)
            name = str(path).partition("#frame=")[0]
            exists = path.exists() or Path(name).exists()
        except (OSError, ValueError, SourceError):  # a picture in base64 is too long for a name
            return
        if exists:
            self._known.append((loaded, str(path.absolute())))

    def of(self, loaded: object) -> str | None:
        """The path or address of something loaded; None where it has none."""
        return next((source for one, source in self._known if one is loaded), None)

    def take(self, kind: str, text: str) -> Shown:
        """Load what a command names, as terminals paste it.

        Args:
            kind: "image" or "video".

        Raises:
            ImageError, VideoError: one of the files cannot be used.
        """
        found = Shown()
        for source in pasted_paths(text):
            if kind == "image":
                picture = load_image(source)
                self.note(picture, source)
                found += Shown((picture,))
            else:
                video = load_video(source)
                self.note(video, source)
                found += Shown((), (video,))
        return found

    def told(self, new: Shown, waiting: Shown, processor: Processor) -> list[str]:
        """A line for each of `new`, which is the end of `waiting`, with sizes and tokens.

        Raises:
            AvlError: the model cannot take them.
        """
        lines = []
        for image in new.images:
            size = f"{image.width} x {image.height}"
            lines.append(f"{self._name(image)}: {size}, {_tokens(processor, Shown((image,)))}")
        lines += [
            f"{self._name(video)}: {video.count} frames, {_tokens(processor, Shown((), (video,)))}"
            for video in new.videos
        ]
        if waiting.count > 1:
            lines.append(
                f"{waiting.counted()} go with the next question, {_tokens(processor, waiting)}"
            )
        return lines

    def _name(self, loaded: object) -> str:
        source = self.of(loaded)
        if source is None:
            return "picture"
        return short(source if _is_address(source) else Path(source).name, 60)


def counted(images: int, videos: int) -> str:
    """As "1 picture and 2 videos", or "" for none."""
    some = [(images, "picture"), (videos, "video")]
    return " and ".join(f"{n} {word}{'s' if n > 1 else ''}" for n, word in some if n)


def _tokens(processor: Processor, shown: Shown) -> str:
    prompt = processor.encode("?", list(shown.images), list(shown.videos))
    return f"{int(prompt.image_mask.sum())} tokens"


def _is_address(source: str) -> bool:
    return source.lower().startswith(ADDRESSES)
