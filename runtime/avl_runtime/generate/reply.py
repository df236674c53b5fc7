"""One sequence's reply as it grows: the choice of tokens, and their text."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from avl_plugins.logits import Logits
from avl_runtime.generate.grammars import Constraint
from avl_runtime.generate.logprobs import token_logprobs
from avl_runtime.generate.options import Options
from avl_runtime.generate.results import FinishReason, Placement, TokenLogprobs
from avl_runtime.prompts.text import StopMatcher, StreamDecoder


class Reply:
    """One sequence's reply as it grows.

    Attributes:
        reads: which logits `take` needs.
        guesses: which logits `guess` needs.
        seed: of the draws, or the one asked for; None where nothing is drawn.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        eos: Sequence[int],
        options: Options,
        keep_logits: bool,
        constraint: Constraint | None = None,
    ) -> None:
        self.token_ids: list[int] = []
        self.logits: list[NDArray[np.float32]] | None = [] if keep_logits else None
        self.placements: list[Placement] = []
        self.finish_reason: FinishReason | None = None
        self.text = ""
        self.logprobs: list[TokenLogprobs] | None = None if options.logprobs is None else []
        self._top = options.logprobs or 0
        self._sampler = options.sampler(eos, constraint)
        self.seed = self._sampler.seed if self._sampler.draws else options.seed
        self.guesses = self._sampler.reads
        self._ahead = self._sampler
        noted = keep_logits or self.logprobs is not None
        self.reads = Logits.ALL if noted else self._sampler.reads
        self._tokenizer = tokenizer
        self._decoder = StreamDecoder(tokenizer, options.skip_special_tokens is not False)
        self._stops = StopMatcher(options.stop or ())
        self._eos = frozenset(eos)

    def guess(self, logits: NDArray[np.float32], history: Sequence[int], ahead: int) -> int:
        """The token that `take` would choose, were these the logits; nothing is taken.

        Args:
            history: tokens of the prompt, of the reply so far, and `ahead` guesses before this one.
        """
        if not ahead:
            self._ahead = self._sampler.ahead()
        return self._ahead(logits, history, len(self.token_ids) + ahead)

    def ends(self, token: int) -> bool:
        """Whether a token ends the reply."""
        return token in self._eos

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
