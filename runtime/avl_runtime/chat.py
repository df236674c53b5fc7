"""A conversation of several turns over one KV cache."""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Unpack

from avl_plugins.errors import AvlError
from avl_plugins.policies import Policy
from avl_runtime.generate import sequence as sequences
from avl_runtime.generate.keywords import NOTED, TurnKeywords, parted
from avl_runtime.generate.options import Options
from avl_runtime.generate.results import Result
from avl_runtime.prompts.chat_template import RewrittenError
from avl_runtime.prompts.exchanges import Exchange, placed, recalled
from avl_runtime.prompts.heard import Heard
from avl_runtime.prompts.messages import (
    Message,
    PromptError,
    Said,
    conversation,
    read_messages,
    system_message,
)
from avl_runtime.prompts.processor import Prompt
from avl_runtime.requests.loaded import Loaded, as_policy
from avl_runtime.requests.remembered import Remembered
from avl_runtime.requests.request import Request
from avl_runtime.requests.runner import Runner
from avl_runtime.requests.stream import Stream
from avl_runtime.vision import Kind
from avl_runtime.vision.load.images import ImageLike
from avl_runtime.vision.load.videos import VideoLike


class ChatError(AvlError):
    """A chat cannot go on."""


class Chat:
    """Turns share one cache: each prompt is read once, and images may come in any turn.

    A turn begins when its reply is first asked for, and one turn runs at a time, in whatever
    thread. A turn that ends with an `AvlError`, or whose prompt is not read to its end, changes
    nothing. A stream that is given up leaves its reply as far as it was told. After an interruption
    inside a decode step the chat refuses to go on until the turn is undone.

    Where the cache does not hold what comes in front of a turn, all is read anew: after `undo` of a
    turn with pictures or whose rows a policy has moved, `set_system`, `set_policy`, a failure or a
    stop string inside of a reply, with a template that writes earlier turns otherwise, and in every
    turn where a policy chooses image tokens by what is asked.
    """

    def __init__(
        self,
        loaded: Loaded,
        policy: Policy,
        system: str | None = None,
        messages: Sequence[Mapping[str, Any]] | None = (),
    ) -> None:
        """
        Args:
            system: a system prompt.
            messages: what was said before, as `messages` gives it.

        Raises:
            AvlError: the system prompt or a message cannot be used.
        """
        self._loaded = loaded
        self._policy = policy
        self._system: Message | None = None
        self._exchanges: tuple[Exchange, ...] = ()
        self._kept = Remembered()
        self._interrupted = False
        self._running = threading.Lock()
        earlier = () if messages is None else messages
        none = isinstance(earlier, Sequence) and not len(earlier)
        said = [] if none else list(read_messages(earlier))
        if said and said[0].role == "system":
            if system is not None:
                raise PromptError(
                    "expected one system prompt, found one in the messages and one beside them; "
                    "leave one of them out"
                )
            self._set_system(said.pop(0))
        elif system is not None:
            self._set_system(system_message(system))
        self._exchanges = recalled(said, loaded.processor)

    @property
    def policy(self) -> Policy:
        """The policy of the turns to come."""
        return self._policy

    @property
    def messages(self) -> list[dict[str, Any]]:
        """What has been said, as transformers' chat templates take it.

        {"role": ..., "content": a list of parts}, in order; pictures and videos as they were
        given. A turn that runs is not among them.
        """
        said = [] if self._system is None else [self._system]
        said += [each for one in self._exchanges for each in (one.heard.message, one.turn.answered)]
        return [message.to_dict() for message in said]

    @property
    def media(self) -> tuple[Kind, ...]:
        """What the conversation holds besides text, in the order of its tokens."""
        return tuple(kind for one in self._exchanges for kind in one.media)

    def send(
        self,
        prompt: Said,
        images: Sequence[ImageLike] | None = (),
        videos: Sequence[VideoLike] | None = (),
        **keywords: Unpack[TurnKeywords],
    ) -> Result:
        """Say something and wait for the whole reply; arguments as for `LVLM.generate`.

        Raises:
            AvlError: the prompt, an image or an option cannot be used, or another turn runs.
        """
        return self.stream(prompt, images, videos, **keywords).result

    def stream(
        self,
        prompt: Said,
        images: Sequence[ImageLike] | None = (),
        videos: Sequence[VideoLike] | None = (),
        **keywords: Unpack[TurnKeywords],
    ) -> Stream:
        """Say something and have the reply told while it comes.

        The turn begins with the first piece that is asked for and ends with the last one, or when
        the stream is closed.

        Raises:
            AvlError: as `send`; what depends on the turns before is refused with the first piece.
        """
        asked, options = parted(keywords, TurnKeywords)
        said = conversation(prompt, images, videos, None, asked.get("placeholders", False))
        if len(said) != 1:
            raise PromptError(
                f"expected one message of the user, found {len(said)} messages; "
                "begin a chat with the earlier ones"
            )
        heard = self._loaded.processor.hear(said[0])
        noted = {name: asked[name] for name in NOTED & asked.keys()}
        return Stream(self._turn(heard, options, noted))

    def undo(self) -> None:
        """Take back the last thing said and its reply.

        Raises:
            ChatError: nothing has been said, or a turn runs.
        """
        with self._alone():
            if not self._exchanges:
                raise ChatError("expected something said to take back, found nothing; ask first")
            self._exchanges = self._exchanges[:-1]
            if self._interrupted:
                self._forget()
            else:
                self._kept.take_back()

    def fork(self) -> Chat:
        """A second chat that goes on from here; rows are shared until one of the two goes on.

        Raises:
            ClosedError: the model was closed.
            ChatError: a turn runs.
        """
        self._loaded.check_open()
        with self._alone():
            other = Chat(self._loaded, self._policy)
            other._system, other._exchanges = self._system, self._exchanges
            other._interrupted = self._interrupted
            if not self._interrupted:
                other._kept = self._kept.fork()
            return other

    def clear(self) -> None:
        """Take back all that has been said; the system prompt and the policy stay.

        Raises:
            ChatError: a turn runs.
        """
        with self._alone():
            self._exchanges = ()
            self._forget()

    def set_policy(self, policy: str | Policy) -> None:
        """Read all that was said, and go on, under another policy from the next turn on.

        Raises:
            PolicyError: the policy cannot be used with this package.
            ChatError: a turn runs.
        """
        chosen = as_policy(policy)
        self._loaded.check(chosen)
        with self._alone():
            if chosen != self._policy:
                self._policy = chosen
                self._forget()

    def set_system(self, text: str | None) -> None:
        """Have another system prompt, or none, from the next turn on.

        Raises:
            AvlError: the chat template has no place for one, or a turn runs.
        """
        with self._alone():
            self._set_system(None if text is None else system_message(text))
            self._forget()

    def _set_system(self, message: Message | None) -> None:
        if message is not None:
            self._loaded.processor.check_system()
        self._system = message

    def _forget(self) -> None:
        """Drop the cache: the next turn reads what was said."""
        self._kept.forget()
        self._interrupted = False

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Mark a turn, or a change, as running."""
        if not self._running.acquire(blocking=False):
            raise ChatError(
                "expected a chat between two turns, found one whose turn still runs; "
                "finish or close its stream first"
            )
        try:
            yield
        finally:
            self._running.release()

    def _turn(
        self, heard: Heard, options: Options, noted: Mapping[str, bool]
    ) -> Generator[str, None, Result]:
        with self._alone():
            if self._interrupted:
                raise ChatError(
                    "expected a chat between two turns, found one interrupted inside a decode "
                    "step; undo that turn, or start a new chat"
                )
            sequence, encoded = self._encoded(heard)
            request = Request(
                self._loaded,
                encoded,
                self._policy,
                options,
                noted.get("return_logits", False),
                noted.get("return_placements", False),
                sequence,
            )
            start, before = sequence.length, self._kept.pending
            resting = failed = False  # between steps, where the cache is whole
            steps = Runner(self._loaded).run(request)
            try:
                for piece in steps:
                    resting = True
                    yield piece
                    resting = False
            except AvlError:
                failed = not resting
                raise
            except BaseException:
                self._interrupted = sequence.length > start and not resting
                raise
            finally:
                steps.close()
                if failed and sequence.length > start:
                    self._forget()
                elif sequence.length > start:
                    self._remember(request, sequence, heard, encoded, options, start)
                    if start:
                        self._kept.turns.append((start, before))
            return request.result

    def _encoded(self, heard: Heard) -> tuple[sequences.Sequence, Prompt]:
        """What has to be read for a turn, and the sequence that it goes on."""
        processor, system = self._loaded.processor, self._system
        history = [one.turn for one in self._exchanges]
        if self._kept.sequence is not None and not self._decides_anew(heard):
            try:
                encoded = processor.continue_chat(history, heard, (), (), system)
            except RewrittenError:
                pass
            else:
                # The last token of a reply has no row yet: it is read with the next prompt.
                if self._kept.pending:
                    encoded = processor.after(self._kept.pending, encoded)
                return self._kept.sequence, encoded
        whole = [] if system is None else [processor.hear(system)]
        for one in self._exchanges:
            whole += [one.heard, processor.hear(one.turn.answered)]
        encoded = processor.read([*whole, heard])
        # First the old one's memory is given back. What was said is known without it.
        self._kept.forget()
        return self._loaded.sequence(self._policy), encoded

    def _decides_anew(self, heard: Heard) -> bool:
        """Whether which image tokens are read depends on what is said now."""
        return self._policy.reads_question and bool(self.media or heard.media)

    def _remember(
        self,
        request: Request,
        sequence: sequences.Sequence,
        heard: Heard,
        encoded: Prompt,
        options: Options,
        start: int,
    ) -> None:
        """Note what a turn has left in the cache, which began at token `start`."""
        reply = request.reply
        in_cache = sequence.length - start - len(encoded.input_ids)
        ended = reply.finish_reason == "eos"
        special = options.skip_special_tokens is False
        said = Exchange(heard, heard.message.kinds, reply.text, ended, special)
        kinds = [part.kind for part in encoded.media]
        self._exchanges = (
            (*self._exchanges, *placed([said], kinds))
            if start
            else placed([*self._exchanges, said], kinds)
        )
        self._kept.sequence, self._kept.pending = sequence, reply.token_ids[in_cache:]
        if reply.finish_reason in ("eos", "length") or self._reads(reply.token_ids, said):
            return
        # The reply was cut: what was told ends inside of what was generated.
        self._kept.pending = []
        if not self._reads(reply.token_ids[:in_cache], said):
            self._kept.sequence = None

    def _reads(self, token_ids: Sequence[int], said: Exchange) -> bool:
        """Whether tokens are the reply as it was told."""
        decode = self._loaded.processor.tokenizer.decode
        text = decode(list(token_ids), skip_special_tokens=not said.special)
        return bool(text.lstrip() == said.reply)
