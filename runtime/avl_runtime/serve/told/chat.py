"""/v1/chat/completions: how its answers are told."""

from __future__ import annotations

from collections.abc import Sequence

from avl_runtime.generate.call_reader import Piece
from avl_runtime.generate.results import TokenLogprobs
from avl_runtime.serve.answering import Form
from avl_runtime.serve.asked.fields import ChatRequest, chat_request
from avl_runtime.serve.http.exchange import Exchange
from avl_runtime.serve.served import Event, Run
from avl_runtime.serve.told.answers import Answer, delta, standing, without_end


class ChatTeller:
    """Tells an answer whole, or in chunks."""

    def __init__(self, exchange: Exchange, asked: ChatRequest, run: Run) -> None:
        self._exchange, self._asked, self._run = exchange, asked, run
        self._answer = Answer(asked.model, run)
        readers = [run.reader() for _ in run.requests]
        self._readers = [reader for reader in readers if reader is not None]
        self._told = [0] * asked.choices  # logprobs of each choice
        self._logprobs = asked.options.logprobs is not None
        self._opened: set[int] = set()

    async def step(self, event: Event) -> None:
        """Send what came, if it is to be streamed."""
        if not self._asked.stream:
            return
        exchange, index = self._exchange, event.choice
        if exchange.status is None:
            await exchange.begin_events()
        if index not in self._opened:
            self._opened.add(index)
            content = None if self._readers else ""  # there may be none
            opening = {"role": "assistant", "content": content, "refusal": None}
            shown = self._answer.visuals(index) if self._asked.live else None
            await exchange.event(self._answer.piece(index, opening, None, shown))
        self._told[index] += len(event.logprobs)
        logprobs = without_end(event.logprobs, self._run.requests[index], self._told[index])
        state = standing(event.state) if self._asked.live and event.state else None
        noted: Sequence[TokenLogprobs] | None = logprobs if self._logprobs else None
        pieces = self._pieces(event)
        if not pieces and (logprobs or state):
            pieces = [Piece("")]
        for piece in pieces:
            await exchange.event(self._answer.piece(index, delta(piece), noted, state))
            noted = [] if self._logprobs else None
            state = None
        if event.done:
            await exchange.event(self._answer.last(index, self._asked.live))

    def _pieces(self, event: Event) -> list[Piece]:
        """What came of an answer: text, or parts of calls."""
        if not self._readers:
            return [Piece(event.text)] if event.text else []
        return self._readers[event.choice].push(event.text, last=event.done)

    async def end(self) -> None:
        """Send the whole answer, or what a stream ends with."""
        if not self._asked.stream:
            await self._exchange.whole(self._answer.whole(self._logprobs))
            return
        if self._asked.usage:
            await self._exchange.event(self._answer.used())
        await self._exchange.end(b"[DONE]")


CHAT = Form(chat_request, ChatTeller)
