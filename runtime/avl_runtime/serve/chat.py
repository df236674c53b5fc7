"""/v1/chat/completions: how its answers are told."""

from __future__ import annotations

from avl_runtime.serve.answering import Form
from avl_runtime.serve.answers import Answer, standing, without_end
from avl_runtime.serve.exchange import Exchange
from avl_runtime.serve.fields import ChatRequest, chat_request
from avl_runtime.serve.served import Event, Run


class ChatTeller:
    """Tells an answer whole, or in chunks."""

    def __init__(self, exchange: Exchange, asked: ChatRequest, run: Run) -> None:
        self._exchange, self._asked, self._run = exchange, asked, run
        self._answer = Answer(asked.model, run)
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
            opening = {"role": "assistant", "content": "", "refusal": None}
            shown = self._answer.visuals(index) if self._asked.live else None
            await exchange.event(self._answer.piece(index, opening, None, shown))
        self._told[index] += len(event.logprobs)
        logprobs = without_end(event.logprobs, self._run.requests[index], self._told[index])
        state = standing(event.state) if self._asked.live and event.state else None
        if event.text or logprobs or state:
            noted = logprobs if self._logprobs else None
            await exchange.event(self._answer.piece(index, {"content": event.text}, noted, state))
        if event.done:
            await exchange.event(self._answer.last(index, self._asked.live))

    async def end(self) -> None:
        """Send the whole answer, or what a stream ends with."""
        if not self._asked.stream:
            await self._exchange.whole(self._answer.whole(self._logprobs))
            return
        if self._asked.usage:
            await self._exchange.event(self._answer.used())
        await self._exchange.end(b"[DONE]")


CHAT = Form(chat_request, ChatTeller)
