"""Prompts, pictures and videos to the arrays that prefill takes, and ids back to text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tokenizers import Tokenizer

from avl_plugins.errors import quoted
from avl_runtime.package.manifest import Manifest
from avl_runtime.package.package import Package
from avl_runtime.prompts.calls import CallForm
from avl_runtime.prompts.chat_template import ChatTemplate, Turn
from avl_runtime.prompts.heard import Ears, Heard
from avl_runtime.prompts.messages import (
    Message,
    PromptError,
    Said,
    conversation,
    system_message,
)
from avl_runtime.prompts.placeholders import Placeholders
from avl_runtime.prompts.plain_text import PlainText
from avl_runtime.prompts.prompt import Prompt
from avl_runtime.vision import Kind, Media
from avl_runtime.vision.load.images import ImageLike
from avl_runtime.vision.load.videos import VideoLike

__all__ = ["Processor", "Prompt", "PromptError", "Turn"]

TOKENIZER = "tokenizer.json"
IDS = 1 << 32  # tokenizers counts tokens in 32 bits


class Processor:
    """Tokenizer, chat template and image preprocessing of a package.

    A user's turn that is a text is its pictures, its videos and then the text, put through the
    package's chat template; a list of parts says where they go. Special tokens in texts are
    encoded as the ordinary text that they are, unless the caller means them. A package without a
    template is prompted raw: the prompt is taken as it stands, its special tokens too, with a
    placeholder and a line break for each picture in front, unless the prompt places them itself.
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
        visual: dict[Kind, str] = {"image": _content(tokenizer, manifest.image.token)}
        if manifest.video is not None:
            visual["video"] = _content(tokenizer, manifest.video.token)
        self._ears = Ears(manifest, visual)
        if manifest.tokens.bos is not None:
            _content(tokenizer, manifest.tokens.bos)
        names = self._named_tokens()
        self._bos = names.get("bos_token")
        self._plain = PlainText(tokenizer, [*self._placeholders.values(), *visual.values()])
        self._shown = Placeholders(self._placeholders, self._plain)
        self._template: ChatTemplate | None = None
        self._meant = tuple(self._placeholders.values())
        if manifest.chat_template is not None:
            self._template = ChatTemplate(manifest.chat_template, names, self._placeholders)
            around = [self._template.around(kind, self._plain.only) for kind in self._placeholders]
            self._meant = tuple(dict.fromkeys([*self._meant, *around]))

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
        prompt: Said,
        images: Sequence[ImageLike] | None = (),
        videos: Sequence[VideoLike] | None = (),
        system: str | None = None,
        placeholders: bool = False,
        tools: Sequence[Mapping[str, Any]] = (),
    ) -> Prompt:
        """What is said up to where the answer begins, with BOS as Hugging Face sets it.

        Args:
            prompt: a text, or parts or messages as in `messages`.
            system: a system prompt in front of it.
            placeholders: a text's placeholder strings mark where `images` and `videos` go.
            tools: functions that the model may call, as OpenAI's protocol describes them.

        Raises:
            TextError: the prompt is no text, or none that UTF-8 has.
            PromptError: it is empty, `images` or `videos` is no list or not what the prompt speaks
                of, or the model takes no videos.
            ImageError, VideoError: a picture or a video cannot be loaded.
            TemplateError: the chat template refuses what is said.
        """
        said = conversation(prompt, images, videos, system, placeholders)
        return self.read([self.hear(message) for message in said], tools)

    def continue_chat(
        self,
        history: Sequence[Turn],
        prompt: Said | Heard,
        images: Sequence[ImageLike] | None = (),
        videos: Sequence[VideoLike] | None = (),
        system: str | Message | None = None,
        placeholders: bool = False,
    ) -> Prompt:
        """The tokens of a new turn after those of `history`.

        They follow the last reply's tokens, its end token included if `reply_ended`, and go up to
        where the next answer begins. Without history this is `encode`.

        Raises:
            PromptError: as in `encode`, or the package has no chat template.
            ImageError, VideoError: a picture or a video cannot be loaded.
            RewrittenError: the chat template rewrites earlier turns.
        """
        if not isinstance(prompt, Heard):
            (message,) = conversation(prompt, images, videos, None, placeholders)
            prompt = self.hear(message)
        if isinstance(system, str):
            system = system_message(system)
        front = [] if system is None else [system]
        if not history:
            return self.read([*map(self.hear, front), prompt])
        template = self._template_for("a second turn")
        earlier = [message for turn in history for message in (turn.said, turn.answered)]
        marked = self._marked([*front, *earlier, prompt.message])
        media = self._ears.among(prompt, prompt.count("image"))
        filled, placed = self._shown.filled(
            template.render_next(marked), media, [kind for turn in history for kind in turn.media]
        )
        ids = self._tail_ids(filled, history[-1].reply_ended)
        return self._prompt(ids, placed, self._shown.question([prompt.message]))

    def hear(self, message: Message) -> Heard:
        """A message with its pictures and videos loaded and made ready.

        Raises:
            PromptError: the model takes no videos.
            ImageError, VideoError: a picture or a video cannot be loaded.
        """
        return self._ears.hear(message)

    @property
    def call_form(self) -> CallForm | None:
        """How the model writes calls of functions; None if its template knows none."""
        return None if self._template is None else self._template.call_form

    def read(self, said: Sequence[Heard], tools: Sequence[Mapping[str, Any]] = ()) -> Prompt:
        """A whole conversation up to where the next answer begins.

        Raises:
            PromptError: it has several messages and the package no chat template, or has no token.
            TemplateError: the chat template refuses it.
        """
        among = sum(heard.count("image") for heard in said)
        media = [part for heard in said for part in self._ears.among(heard, among)]
        if self._template is None:
            if tools:
                self._template_for("tools")
            if len(said) > 1:
                first = said[0].message.role
                self._template_for("a system prompt" if first == "system" else "a second turn")
            text = self._shown.raw(said[0].message)
        else:
            marked = self._marked([heard.message for heard in said])
            text = self._template.render(marked, self._plain.mark_all(tools))
        starts = self._bos is not None and text.startswith(self._bos)
        filled, placed = self._shown.filled(text, media)
        asked = self._shown.question([heard.message for heard in said])
        ids = self._plain.encode(filled, with_bos=not starts)
        if not len(ids):
            raise PromptError(
                f"expected a prompt of at least one token, found {quoted(filled, 40)}, of which "
                "the tokenizer knows nothing; ask something else"
            )
        return self._prompt(ids, placed, asked)

    def check_system(self) -> None:
        """Refuse system prompts where they cannot be used.

        Raises:
            PromptError: the package has no chat template.
            TemplateError: the chat template has no place for one.
        """
        self._template_for("a system prompt").check_system()

    def after(self, tokens: Sequence[int], prompt: Prompt) -> Prompt:
        """`prompt` behind text tokens that have no row yet."""
        ids = np.concatenate([np.array(tokens, np.int64), prompt.input_ids])
        return self._prompt([int(token) for token in ids], prompt.media, prompt.asked)

    def asked_ids(self, prompt: Prompt) -> NDArray[np.int64]:
        """Tokens of what the user said last, without a template."""
        ids = self._plain.encode(self._plain.mark(prompt.asked), with_bos=False)
        return np.array(ids, np.int64)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of `ids` without special tokens."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True))

    def view(self, image: ImageLike, among: int = 1) -> Image.Image:
        """The part of a picture that the model sees, resized as it sees it.

        Args:
            among: how many pictures the turn comes with.
        """
        return self._ears.view(image, among)

    def view_video(self, video: VideoLike) -> Image.Image:
        """One of the frames that the model sees of a video, resized as it sees it.

        Raises:
            PromptError: the model takes no videos.
            ImageError, VideoError: the video cannot be loaded.
        """
        return self._ears.view_video(video)

    def _named_tokens(self) -> dict[str, str]:
        """What a chat template may name."""
        if self.tokens.names is not None:
            return dict(self.tokens.names)
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

    def _template_for(self, what: str) -> ChatTemplate:
        if self._template is None:
            raise PromptError(
                f"expected a chat template for {what}, found none in the package; "
                "ask one question at a time"
            )
        return self._template

    def _marked(self, messages: Sequence[Message]) -> list[Message]:
        return [self._plain.marked(message, self._meant) for message in messages]

    def _tail_ids(self, text: str, reply_ended: bool) -> list[int]:
        """Ids of the text after a reply, as they come out behind one.

        A tokenizer may treat the beginning of a text in its own way. So the text is encoded behind
        an anchor, whose ids are then cut off: an end token if there is one, else a letter.
        """
        known = [token for token in self.tokens.eos if token < IDS]
        ends = [end for end in map(self.tokenizer.id_to_token, known) if end is not None]
        written = text.lstrip() if reply_ended else text  # some templates put a space before it
        if any(written.startswith(end) for end in ends):
            return self._plain.encode(written, with_bos=False)[1 if reply_ended else 0 :]
        anchor = ends[0] if reply_ended and ends else "a"
        start = self._plain.encode(anchor, with_bos=False)
        ids = self._plain.encode(anchor + text, with_bos=False)
        if ids[: len(start)] != start:
            return self._plain.encode(text, with_bos=False)
        return ids[len(start) :]

    def _check_known(self, prompt: Prompt) -> None:
        """Refuse tokens that the tokenizer knows and the model does not."""
        rows = self._manifest.embedding.shape[0]
        beyond = prompt.input_ids[(prompt.input_ids >= rows) & ~prompt.image_mask]
        if beyond.size:
            text = self.tokenizer.id_to_token(int(beyond[0]))
            raise PromptError(
                f"expected tokens below {rows}, which the model has, found {quoted(text)} (token "
                f"{beyond[0]}), which its tokenizer alone knows; leave that text out"
            )

    def _prompt(self, ids: list[int], media: Sequence[Media], asked: str) -> Prompt:
        manifest = self._manifest
        prompt = Prompt.of(
            np.array(ids, np.int64),
            manifest.visual_tokens,
            media,
            manifest.dims.position_axes,
            manifest.reach,
            asked,
        )
        self._check_known(prompt)
        expected, found = sum(part.tokens for part in media), int(prompt.image_mask.sum())
        if found != expected:
            raise PromptError(
                f"expected {expected} image tokens in the prompt, found {found}; "
                "the tokenizer does not know the image placeholder, export again"
            )
        return prompt


def _content(tokenizer: Tokenizer, token: int) -> str:
    text = tokenizer.id_to_token(token) if 0 <= token < IDS else None
    if text is None:
        raise PromptError(
            f"expected token {token} of the manifest in {TOKENIZER}, found none; export again"
        )
    return str(text)
