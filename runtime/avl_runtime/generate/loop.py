"""The token loop: from first logits to finished replies, as a generator of steps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from avl_plugins.cpu.logits import Logits
from avl_runtime.generate.conversation import Conversation
from avl_runtime.generate.logprobs import token_logprobs
from avl_runtime.generate.options import OptionError, Options
from avl_runtime.generate.results import FinishReason, Placement, TokenLogprobs
from avl_runtime.prompts.text import StopMatcher, StreamDecoder

__all__ = ["OptionError", "Options", "Reply", "Steps", "run"]


class Steps(Protocol):
    """What runs decode steps: `decode.Decoder` on the host, `DeviceDecoder` on a device.

    Attributes:
        step: how many have been run.
        refreshed: whether the last one read parked rows and chose a new core.
        nbytes: of the K and V that are held, of all sequences.
    """

    step: int
    refreshed: bool

    @property
    def nbytes(self) -> int: ...

    def placement(
        self, seq: int, image_mask: NDArray[np.bool_]
    ) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]: ...

    def run(
        self,
        tokens: NDArray[np.int64],
        alive: NDArray[np.bool_],
        logits: Logits = Logits.ALL,
    ) -> NDArray[np.float32]: ...


class Reply:
    """One sequence's reply as it grows.

    Attributes:
        reads: which logits `take` needs.
        seed: of the draws, or the one asked for; None where nothing is drawn.
    """

    def __init__(
        self, tokenizer: Tokenizer, eos: Sequence[int], options: Options, keep_logits: bool
    ) -> None:
        self.token_ids: list[int] = []
        self.logits: list[NDArray[np.float32]] | None = [] if keep_logits else None
        self.placements: list[Placement] = []
        self.finish_reason: FinishReason | None = None
        self.text = ""
        self.logprobs: list[TokenLogprobs] | None = None if options.logprobs is None else []
        self._top = options.logprobs or 0
        self._sampler = options.sampler(eos)
        self.seed = self._sampler.seed if self._sampler.draws else options.seed
        noted = keep_logits or self.logprobs is not None
        self.reads = Logits.ALL if noted else self._sampler.reads
        self._tokenizer = tokenizer
        self._decoder = StreamDecoder(tokenizer, options.skip_special_tokens is not False)
        self._stops = StopMatcher(options.stop or ())
        self._eos = frozenset(eos)

    def take(self, logits: NDArray[np.float32], history: Sequence[int], limit: int) -> str:
        """Choose the next token from logits [V]; returns the text that became certain.

        Args:
            history: tokens of the prompt and of the reply so far, for penalties.
            limit: tokens the reply may have in all.
        """
        if self.logits is not None:
            self.logits.append(logits.copy())
        token = self._sampler(logits, history, len(self.token_ids))
        self.token_ids.append(token)
        if self.logprobs is not None:
            self.logprobs.append(token_logprobs(logits, token, self._top, self._tokenizer))
        piece = ""
        if token in self._eos:
            self.finish_reason = "eos"
        else:
            piece = self._stops.push(self._decoder.push(token))
            if self._stops.stopped:
                self.finish_reason = "stop"
            elif len(self.token_ids) >= limit:
                self.finish_reason = "length"
        if self.finish_reason in ("eos", "length"):
            piece += self._stops.push(self._decoder.flush())
            if self._stops.stopped:
                self.finish_reason = "stop"
            piece += self._stops.flush()
        if not self.text:
            piece = piece.lstrip()  # the space that joins a reply to its prompt
        self.text += piece
        return piece


def run(
    decoder: Steps,
    conversations: Sequence[Conversation],
    replies: Sequence[Reply],
    first_logits: NDArray[np.float32],
    limits: Sequence[int],
    trace: bool,
) -> Iterator[list[str]]:
    """Generate until every reply is finished; yields the new text of each after every step.

    Args:
        replies: one for each sequence, which all read the same logits.
        first_logits: [B, V], from prefill.
        limits: tokens each reply may have in all.
        trace: whether to note where image tokens are, after prefill and after every refresh.
    """
    logits = first_logits
    if trace:
        _note_placements(decoder, conversations, replies)
    while True:
        pieces = [""] * len(replies)
        for seq, reply in enumerate(replies):
            if reply.finish_reason is None:
                history = conversations[seq].token_ids
                pieces[seq] = reply.take(logits[seq], history, limits[seq])
        yield pieces
        alive = np.array([reply.finish_reason is None for reply in replies])
        if not alive.any():
            return
        tokens = np.array([reply.token_ids[-1] for reply in replies], np.int64)
        logits = decoder.run(tokens, alive, replies[0].reads)
        if trace and decoder.refreshed:
            _note_placements(decoder, conversations, replies)


def _note_placements(
    decoder: Steps, conversations: Sequence[Conversation], replies: Sequence[Reply]
) -> None:
    for seq, (conversation, reply) in enumerate(zip(conversations, replies, strict=True)):
        if reply.finish_reason is None:
            core, parked = decoder.placement(seq, conversation.image_mask)
            # A refresh at step g chooses the core that steps from g + 1 on read.
            step = decoder.step + 1 if decoder.step else 0
            reply.placements.append(Placement(step, core, parked))
