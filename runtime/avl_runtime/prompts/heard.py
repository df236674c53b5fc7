"""Messages with their pictures and videos loaded and made ready."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from PIL import Image

from avl_runtime.package.manifest import Manifest, VideoEncoder
from avl_runtime.prompts.messages import Message, PromptError
from avl_runtime.vision import Kind, Media
from avl_runtime.vision.load.images import ImageLike, load_image
from avl_runtime.vision.load.videos import VideoLike, load_video


@dataclass(slots=True, eq=False)
class Heard:
    """A message, and what its pictures and videos were made into."""

    message: Message
    several: bool  # whether the pictures were made ready as some among others
    media: tuple[Media, ...]
    pictures: list[Image.Image] = field(default_factory=list)  # where that makes a difference

    def count(self, kind: Kind) -> int:
        """How many pictures, or videos, there are."""
        return self.message.kinds.count(kind)


class Ears:
    """Loads what comes with messages.

    Args:
        tokens: the text of a picture's and a video's token.
    """

    def __init__(self, manifest: Manifest, tokens: Mapping[Kind, str]) -> None:
        self._image = manifest.image
        self._video = manifest.video
        self._family = manifest.family
        self._tokens = tokens

    def hear(self, message: Message) -> Heard:
        """Load everything and make it ready, as in a conversation of this message alone.

        Raises:
            PromptError: the model takes no videos.
            ImageError, VideoError: a picture or a video cannot be loaded.
        """
        pictures = [load_image(source) for kind, source in message.sources if kind == "image"]
        videos = [source for kind, source in message.sources if kind == "video"]
        films = iter(self._films(videos) if videos else [])
        several = len(pictures) > 1
        images = iter(self._prepared(pictures, several))
        media = tuple(next(images if kind == "image" else films) for kind in message.kinds)
        return Heard(message, several, media, pictures if self._image.several else [])

    def among(self, heard: Heard, count: int) -> tuple[Media, ...]:
        """The media of a message among `count` pictures in all."""
        several = count > 1
        if heard.pictures and several != heard.several:
            images = iter(self._prepared(heard.pictures, several))
            heard.media = tuple(
                next(images) if part.kind == "image" else part for part in heard.media
            )
            heard.several = several
        return heard.media

    def view(self, image: ImageLike, among: int) -> Image.Image:
        """As `Processor.view`."""
        return self._image.layout_among(among).view(load_image(image))

    def view_video(self, video: VideoLike) -> Image.Image:
        """As `Processor.view_video`."""
        return self._encoder(1).layout.view(load_video(video))

    def _prepared(self, pictures: Sequence[Image.Image], several: bool) -> list[Media]:
        layout = self._image.layout_among(2 if several else 1)
        return [
            replace(layout.prepare(picture, self._tokens["image"]), shown=picture.size)
            for picture in pictures
        ]

    def _films(self, videos: Sequence[VideoLike]) -> list[Media]:
        layout = self._encoder(len(videos)).layout
        return [layout.prepare(load_video(source), self._tokens["video"]) for source in videos]

    def _encoder(self, videos: int) -> VideoEncoder:
        if self._video is None:
            raise PromptError(
                f"expected images only, found {videos} videos, which a model of the "
                f"{self._family} family does not take; send single frames as images"
            )
        return self._video
