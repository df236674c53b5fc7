"""A conversation of several turns over one KV cache."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Any

from avl_plugins.errors import AvlError
from avl_plugins.policies import Policy
from avl_runtime.engine import Engine, Request
from avl_runtime.images import ImageLike
from avl_runtime.options import Options
from avl_runtime.processor import Prompt, Turn
from avl_runtime.results import Result
from avl_runtime.videos import VideoLike
from avl_runtime.vision import Kind


class ChatError(AvlError):
    """A chat cannot go on."""


class Chat:
    """Turns share one cache: each prompt is read once, and images may come in any turn.

    A turn whose prompt cannot be read to its end changes nothing. A stream that is given up leaves
    its reply as far as it went, and the next turn goes on from there. After an interruption inside
    a decode step the cache is incomplete, and the chat refuses to go on.
    """

    def __init__(self, engine: Engine, policy: Policy) -> None:
        self._engine = engine
        self._policy = policy
        self._conversation = engine.conversation()
        self._history: tuple[Turn, ...] = ()
        self._pending: list[int] = []
        self._interrupted = False

    @property
    def media(self) -> tuple[Kind, ...]:
        """What the conversation holds besides text, in the order of its tokens."""
        return tuple(kind for turn in self._history for kind in turn.media)

    def send(
        self,
        prompt: str,
        images: Sequence[ImageLike] | None = (),
        videos: Sequence[VideoLike] | None = (),
        return_logits: bool = False,
        return_placements: bool = False,
        **options: Any,
    ) -> Result:
        """Say something and wait for the whole reply; options as for `LVLM.generate`.

        Raises:
            AvlError: the prompt, an image or an option cannot be used.
        """
        request, encoded = self._request(
            prompt, images, videos, options, return_logits, return_placements
        )
        for _ in self._steps(request, prompt, encoded):
            pass
        return request.result(0)

    def stream(
        self,
        prompt: str,
        images: Sequence[ImageLike] | None = (),
        videos: Sequence[VideoLike] | None = (),
        return_logits: bool = False,
        return_placements: bool = False,
        **options: Any,
    ) -> Generator[str, None, Result]:
        """Say something and yield the reply in pieces of whole characters.

        Raises:
            AvlError: as `send`.
        """
        request, encoded = self._request(
            prompt, images, videos, options, return_logits, return_placements
        )
        return self._steps(request, prompt, encoded)

    def _request(
        self,
        prompt: str,
        images: Sequence[ImageLike] | None,
        videos: Sequence[VideoLike] | None,
        options: dict[str, Any],
        return_logits: bool = False,
        return_placements: bool = False,
    ) -> tuple[Request, Prompt]:
        if self._interrupted:
            raise ChatError(
                "expected a chat between two turns, found one interrupted inside a decode step; "
                "start a new chat"
            )
        processor = self._engine.processor
        encoded = (
            processor.continue_chat(self._history, prompt, images, videos)
            if self._history
            else processor.encode(prompt, images, videos)
        )
        if self._pending:
            # The last token of a reply has no row yet: it is read with the next prompt.
            encoded = processor.after(self._pending, encoded)
        request = Request(
            self._engine,
            [self._conversation],
            [encoded],
            self._policy,
            Options.of(options),
            return_logits,
            return_placements,
        )
        return request, encoded

    def _steps(
        self, request: Request, prompt: str, encoded: Prompt
    ) -> Generator[str, None, Result]:
        start = self._conversation.length
        try:
            for pieces in request.steps():
                if pieces[0]:
                    yield pieces[0]
        except GeneratorExit:
            raise
        except BaseException:
            self._interrupted = self._conversation.length > start
            raise
        finally:
            if self._conversation.length > start:
                self._remember(request, prompt, encoded, start + len(encoded.input_ids))
        return request.result(0)

    def _remember(self, request: Request, prompt: str, encoded: Prompt, prompt_end: int) -> None:
        reply = request.replies[0]
        in_cache = self._conversation.length - prompt_end
        self._pending = reply.token_ids[in_cache:]
        self._history += (
            Turn(
                prompt=prompt,
                media=tuple(part.kind for part in encoded.media),
                reply=self._engine.processor.decode(reply.token_ids),
                reply_ended=reply.finish_reason == "eos",
            ),
        )
