"""Prompts and pictures to the arrays that prefill takes, and ids back to text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tokenizers import Tokenizer

from avl_plugins.errors import AvlError
from avl_runtime.chat_template import ChatTemplate, Turn
from avl_runtime.images import ImageLike, load_image
from avl_runtime.package import Manifest, Package
from avl_runtime.preprocess import fit, image_hash, pixel_values

__all__ = ["Processor", "Prompt", "PromptError", "Turn"]

TOKENIZER = "tokenizer.json"


class PromptError(AvlError):
    """A prompt is empty or holds text that only the chat template may write."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """What prefill takes.

    `input_ids` [N] int64, `image_mask` [N] bool (True at image tokens), `pixel_values`
    [images, 3, H, W] float32, `image_hashes` one SHA-256 a picture.
    """

    input_ids: NDArray[np.int64]
    image_mask: NDArray[np.bool_]
    pixel_values: NDArray[np.float32]
    image_hashes: tuple[str, ...]


class Processor:
    """Tokenizer, chat template and image preprocessing of a package.

    A user's turn is its pictures and then its text, put through the package's chat template. A
    package without one is prompted raw: the prompt is taken as it stands, with a placeholder and
    a line break a picture in front, unless the prompt places the pictures itself.
    """

    def __init__(self, manifest: Manifest, tokenizer: Tokenizer) -> None:
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self.tokenizer = tokenizer
        self.tokens = manifest.tokens
        self.image_processing = manifest.image_processing
        self._tokens_per_image = manifest.vision.tokens_per_image
        self._image = _content(tokenizer, manifest.tokens.image)
        self._bos = None
        if manifest.tokens.bos is not None:
            self._bos = _content(tokenizer, manifest.tokens.bos)
        self._special = tuple(
            token.content
            for token in tokenizer.get_added_tokens_decoder().values()
            if token.special
        )
        self._template: ChatTemplate | None = None
        if manifest.chat_template is not None:
            self._template = ChatTemplate(manifest.chat_template, self._named_tokens(), self._image)

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

    def encode(self, prompt: str, images: Sequence[ImageLike] = ()) -> Prompt:
        """One user turn, up to where the answer begins, with BOS as Hugging Face sets it.

        Raises:
            PromptError: the prompt is empty or holds special tokens, or `images` is no list.
            ImageError: a picture cannot be loaded.
            TemplateError: the chat template refuses the turn.
        """
        _check_list(images)
        if self._template is None:
            text = self._raw(prompt, len(images))
        else:
            self._check(prompt)
            text = self._template.render((), prompt, len(images))
        starts = self._bos is not None and text.startswith(self._bos)
        return self._prompt(self._ids(text, with_bos=not starts), images)

    def continue_chat(
        self, history: Sequence[Turn], prompt: str, images: Sequence[ImageLike] = ()
    ) -> Prompt:
        """The tokens of a new turn after those of `history`.

        They follow the last reply's tokens, its end token included if `reply_ended`, and go up to
        where the next answer begins. Without history this is `encode`.

        Raises:
            PromptError: as in `encode`, or the package has no chat template.
            ImageError: a picture cannot be loaded.
            TemplateError: the chat template rewrites earlier turns.
        """
        if not history:
            return self.encode(prompt, images)
        _check_list(images)
        if self._template is None:
            raise PromptError(
                "expected a chat template for a second turn, found none in the package; "
                "ask one question at a time"
            )
        self._check(prompt)
        text = self._template.render_next(history, prompt, len(images))
        return self._prompt(self._tail_ids(text, history[-1].reply_ended), images)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of `ids` without special tokens."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True))

    def view(self, image: ImageLike) -> Image.Image:
        """The part of a picture that the model sees, resized as it sees it."""
        return Image.fromarray(fit(load_image(image), self.image_processing))

    def _named_tokens(self) -> dict[str, str]:
        ids = {
            "bos_token": self.tokens.bos,
            "eos_token": self.tokens.eos[0] if self.tokens.eos else None,
            "pad_token": self.tokens.pad,
            "image_token": self.tokens.image,
        }
        return {
            name: _content(self.tokenizer, token)
            for name, token in ids.items()
            if token is not None
        }

    def _check(self, prompt: str) -> None:
        if not prompt.strip():
            raise PromptError("expected a prompt, found an empty one; ask something")
        found = next((token for token in self._special if token in prompt), None)
        if found is not None:
            raise PromptError(
                f"expected a prompt of plain text, found the special token {found!r}; "
                "leave it out, pictures and turns get their tokens by themselves"
            )

    def _raw(self, prompt: str, images: int) -> str:
        if not prompt.strip():
            raise PromptError("expected a prompt, found an empty one; ask something")
        placed = prompt.count(self._image)
        if placed not in (0, images):
            raise PromptError(
                f"expected {images} image placeholders ({self._image}) or none in the prompt, "
                f"found {placed}"
            )
        return prompt if placed else f"{self._image}\n" * images + prompt

    def _ids(self, text: str, *, with_bos: bool) -> list[int]:
        expanded = text.replace(self._image, self._image * self._tokens_per_image)
        return list(self.tokenizer.encode(expanded, add_special_tokens=with_bos).ids)

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

    def _prompt(self, ids: list[int], images: Sequence[ImageLike]) -> Prompt:
        loaded = [load_image(image) for image in images]
        values = [
            pixel_values(fit(image, self.image_processing), self.image_processing)
            for image in loaded
        ]
        shapes = {value.shape for value in values}
        if len(shapes) > 1:
            raise PromptError(
                f"expected images of one size after preprocessing, found {sorted(shapes)}; "
                "the package lacks a crop, export again"
            )
        height, width = self.image_processing.crop or (1, 1)
        stacked = np.stack(values) if values else np.zeros((0, 3, height, width), np.float32)
        input_ids = np.array(ids, np.int64)
        mask = input_ids == self.tokens.image
        expected = self._tokens_per_image * len(images)
        if int(mask.sum()) != expected:
            raise PromptError(
                f"expected {expected} image tokens in the prompt, found {int(mask.sum())}; "
                "the tokenizer does not know the image placeholder, export again"
            )
        return Prompt(input_ids, mask, stacked, tuple(image_hash(image) for image in loaded))


def _check_list(images: Sequence[ImageLike]) -> None:
    """A path or an array is a sequence too, and would be taken apart."""
    if isinstance(images, (str, bytes, Path, Image.Image, np.ndarray)):
        raise PromptError(
            f"expected a list of images, found {type(images).__name__}; write images=[…]"
        )


def _content(tokenizer: Tokenizer, token: int) -> str:
    text = tokenizer.id_to_token(token)
    if text is None:
        raise PromptError(
            f"expected token {token} of the manifest in {TOKENIZER}, found none; export again"
        )
    return str(text)
