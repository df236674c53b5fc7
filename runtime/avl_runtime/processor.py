"""Prompts, pictures and videos to the arrays that prefill takes, and ids back to text."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from tokenizers import Tokenizer

from avl_plugins.errors import AvlError
from avl_runtime.chat_template import ChatTemplate, Turn
from avl_runtime.images import ImageLike, load_image
from avl_runtime.manifest import Manifest, VideoEncoder
from avl_runtime.package import Package
from avl_runtime.prompt import Prompt
from avl_runtime.text import check_text
from avl_runtime.videos import VideoLike, load_video
from avl_runtime.vision import Kind, Media

__all__ = ["Processor", "Prompt", "PromptError", "Turn"]

TOKENIZER = "tokenizer.json"
IDS = 1 << 32  # tokenizers counts tokens in 32 bits


class PromptError(AvlError):
    """A prompt is empty or holds text that only the chat template may write."""


class Processor:
    """Tokenizer, chat template and image preprocessing of a package.

    A user's turn is its pictures, its videos and then its text, put through the package's chat
    template. A package without one is prompted raw: the prompt is taken as it stands, with a
    placeholder and a line break for each in front, unless the prompt places them itself.
    """

    def __init__(self, manifest: Manifest, tokenizer: Tokenizer) -> None:
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self.tokenizer = tokenizer
        self.tokens = manifest.tokens
        self._manifest = manifest
        self._placeholders: dict[Kind, str] = {"image": manifest.image.placeholder}
        if manifest.video is not None:
            self._placeholders["video"] = manifest.video.placeholder
        self._image = _content(tokenizer, manifest.image.token)
        self._video = "" if manifest.video is None else _content(tokenizer, manifest.video.token)
        self._bos = None
        if manifest.tokens.bos is not None:
            self._bos = _content(tokenizer, manifest.tokens.bos)
        special = [
            token.content
            for token in tokenizer.get_added_tokens_decoder().values()
            if token.special
        ]
        self._reserved = tuple(dict.fromkeys([*special, *self._placeholders.values()]))
        self._template: ChatTemplate | None = None
        if manifest.chat_template is not None:
            self._template = ChatTemplate(
                manifest.chat_template, self._named_tokens(), self._placeholders
            )

    @classmethod
    def from_package(cls, package: Package) -> Processor:
        """Read what a package holds.

        Raises:
            PackageError: the tokenizer is missing or has changed.
            PromptError: it is damaged, or lacks a token of the manifest.
            TemplateError: the chat template cannot be compiled.
        """
        data = package.read(TOKENIZER)
        try:
            tokenizer = Tokenizer.from_buffer(data)
        # The library raises bare Exception for a file it cannot read.
        except Exception as error:
            reason = " ".join(str(error).split())[:120]
            raise PromptError(
                f"{package.file(TOKENIZER)}: expected a tokenizer, found: {reason}; export again"
            ) from None
        return cls(package.manifest, tokenizer)

    def encode(
        self,
        prompt: str,
        images: Sequence[ImageLike] | None = (),
        videos: Sequence[VideoLike] | None = (),
    ) -> Prompt:
        """One user turn, up to where the answer begins, with BOS as Hugging Face sets it.

        Raises:
            TextError: the prompt is no text, or none that UTF-8 has.
            PromptError: it is empty or holds special tokens, `images` or `videos` is no list, or
                the model takes no videos.
            ImageError, VideoError: a picture or a video cannot be loaded.
            TemplateError: the chat template refuses the turn.
        """
        _check_said(prompt)
        media = self._media(images, videos)
        kinds = [part.kind for part in media]
        if self._template is None:
            text = self._raw(prompt, kinds)
        else:
            self._check(prompt)
            text = self._template.render((), prompt, kinds)
        starts = self._bos is not None and text.startswith(self._bos)
        filled, placed = self._filled(text, media)
        return self._prompt(self._ids(filled, with_bos=not starts), placed)

    def continue_chat(
        self,
        history: Sequence[Turn],
        prompt: str,
        images: Sequence[ImageLike] | None = (),
        videos: Sequence[VideoLike] | None = (),
    ) -> Prompt:
        """The tokens of a new turn after those of `history`.

        They follow the last reply's tokens, its end token included if `reply_ended`, and go up to
        where the next answer begins. Without history this is `encode`.

        Raises:
            PromptError: as in `encode`, or the package has no chat template.
            ImageError, VideoError: a picture or a video cannot be loaded.
            TemplateError: the chat template rewrites earlier turns.
        """
        if not history:
            return self.encode(prompt, images, videos)
        if self._template is None:
            raise PromptError(
                "expected a chat template for a second turn, found none in the package; "
                "ask one question at a time"
            )
        _check_said(prompt)
        self._check(prompt)
        media = self._media(images, videos)
        text = self._template.render_next(history, prompt, [part.kind for part in media])
        filled, placed = self._filled(text, media)
        return self._prompt(self._tail_ids(filled, history[-1].reply_ended), placed)

    def after(self, tokens: Sequence[int], prompt: Prompt) -> Prompt:
        """`prompt` behind text tokens that have no row yet."""
        ids = np.concatenate([np.array(tokens, np.int64), prompt.input_ids])
        return self._prompt([int(token) for token in ids], prompt.media)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of `ids` without special tokens."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True))

    def view(self, image: ImageLike, among: int = 1) -> Image.Image:
        """The part of a picture that the model sees, resized as it sees it.

        Args:
            among: how many pictures the turn comes with.
        """
        return self._manifest.image.layout_among(among).view(load_image(image))

    def view_video(self, video: VideoLike) -> Image.Image:
        """One of the frames that the model sees of a video, resized as it sees it.

        Raises:
            PromptError: the model takes no videos.
            ImageError, VideoError: the video cannot be loaded.
        """
        return self._video_encoder([video]).layout.view(load_video(video))

    def _named_tokens(self) -> dict[str, str]:
        ids = {
            "bos_token": self.tokens.bos,
            "eos_token": self.tokens.eos[0] if self.tokens.eos else None,
            "pad_token": self.tokens.pad,
        }
        named = {
            name: _content(self.tokenizer, token)
            for name, token in ids.items()
            if token is not None
        }
        return named | {f"{kind}_token": text for kind, text in self._placeholders.items()}

    def _check(self, prompt: str) -> None:
        found = next((token for token in self._reserved if token in prompt), None)
        if found is not None:
            raise PromptError(
                f"expected a prompt of plain text, found the special token {found!r}; "
                "leave it out, pictures and turns get their tokens by themselves"
            )

    def _raw(self, prompt: str, kinds: Sequence[Kind]) -> str:
        front = ""
        for kind, placeholder in self._placeholders.items():
            placed, sent = prompt.count(placeholder), kinds.count(kind)
            if placed not in (0, sent):
                raise PromptError(
                    f"expected {sent} {kind} placeholders ({placeholder}) or none in the prompt, "
                    f"found {placed}"
                )
            front += "" if placed else f"{placeholder}\n" * sent
        return front + prompt

    def _media(
        self, images: Sequence[ImageLike] | None, videos: Sequence[VideoLike] | None
    ) -> tuple[Media, ...]:
        """Everything loaded and made ready, pictures first."""
        images = () if images is None else images
        videos = () if videos is None else videos
        _check_list(images, "images")
        _check_list(videos, "videos")
        seen_as = self._manifest.image.layout_among(len(images))
        media = [seen_as.prepare(load_image(source), self._image) for source in images]
        if videos:
            layout = self._video_encoder(videos).layout
            media += [layout.prepare(load_video(source), self._video) for source in videos]
        return tuple(media)

    def _video_encoder(self, videos: Sequence[VideoLike]) -> VideoEncoder:
        encoder = self._manifest.video
        if encoder is None:
            raise PromptError(
                f"expected images only, found {len(videos)} videos, which a model of the "
                f"{self._manifest.family} family does not take; send single frames as images"
            )
        return encoder

    def _filled(self, text: str, media: Sequence[Media]) -> tuple[str, tuple[Media, ...]]:
        """`text` with all placeholders replaced, and `media` in the order of their places."""
        kinds = {placeholder: kind for kind, placeholder in self._placeholders.items()}
        waiting = {kind: [part for part in media if part.kind == kind] for kind in kinds.values()}
        placed: list[Media] = []

        def replacement(found: re.Match[str]) -> str:
            placed.append(waiting[kinds[found[0]]].pop(0))
            return placed[-1].replacement

        filled = re.sub("|".join(map(re.escape, kinds)), replacement, text)
        return filled, tuple(placed)

    def _ids(self, text: str, *, with_bos: bool) -> list[int]:
        return list(self.tokenizer.encode(text, add_special_tokens=with_bos).ids)

    def _tail_ids(self, text: str, reply_ended: bool) -> list[int]:
        """Ids of the text after a reply, as they come out behind one.

        A tokenizer may treat the beginning of a text in its own way. So the text is encoded behind
        an anchor, whose ids are then cut off: an end token if there is one, else a letter.
        """
        ends = [_content(self.tokenizer, token) for token in self.tokens.eos]
        closing = next((end for end in ends if text.startswith(end)), None)
        if closing is not None:
            return self._ids(text, with_bos=False)[1 if reply_ended else 0 :]
        anchor = ends[0] if reply_ended and ends else "a"
        start = self._ids(anchor, with_bos=False)
        ids = self._ids(anchor + text, with_bos=False)
        if ids[: len(start)] != start:
            return self._ids(text, with_bos=False)
        return ids[len(start) :]

    def _prompt(self, ids: list[int], media: Sequence[Media]) -> Prompt:
        manifest = self._manifest
        prompt = Prompt.of(
            np.array(ids, np.int64), manifest.visual_tokens, media, manifest.dims.position_axes
        )
        expected, found = sum(part.tokens for part in media), int(prompt.image_mask.sum())
        if found != expected:
            raise PromptError(
                f"expected {expected} image tokens in the prompt, found {found}; "
                "the tokenizer does not know the image placeholder, export again"
            )
        return prompt


def _check_said(prompt: str) -> None:
    check_text(prompt, "prompt")
    if not prompt.strip():
        raise PromptError("expected a prompt, found an empty one; ask something")


def _check_list(sources: Sequence[object], name: str) -> None:
    """A path or an array is a sequence too, and would be taken apart."""
    if isinstance(sources, (str, bytes, Path, Image.Image, np.ndarray)):
        raise PromptError(
            f"expected a list of {name}, found {type(sources).__name__}; write {name}=[…]"
        )


def _content(tokenizer: Tokenizer, token: int) -> str:
    text = tokenizer.id_to_token(token) if 0 <= token < IDS else None
    if text is None:
        raise PromptError(
            f"expected token {token} of the manifest in {TOKENIZER}, found none; export again"
        )
    return str(text)
