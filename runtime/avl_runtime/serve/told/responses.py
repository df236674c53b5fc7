"""/v1/responses: how its requests are read and its answers told; nothing is stored."""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping
from typing import Any, Final

from avl_runtime.generate.call_reader import Piece
from avl_runtime.serve.answering import Form
from avl_runtime.serve.asked import values
from avl_runtime.serve.asked.content import RESPONSES, Said, check, messages
from avl_runtime.serve.asked.fields import (
    FLAGS,
    LONGEST_NAME,
    NUMBERS,
    WHOLE,
    ChatRequest,
    needed,
    options_of,
    policy_of,
    taken,
    tools_read,
    user_of,
)
from avl_runtime.serve.asked.formats import TEXT, Format, format_of
from avl_runtime.serve.http.exchange import Exchange
from avl_runtime.serve.limits import Limits
from avl_runtime.serve.served import Event, Run
from avl_runtime.serve.told.answers import Object, about
from avl_runtime.serve.told.items import Item, text_part

# Fields of OpenAI's protocol that ask for nothing when they have such a value.
NEUTRAL: Final[Mapping[str, tuple[Any, ...]]] = {
    "store": (False,),  # without it OpenAI's own server stores; this one cannot
    "include": ([],),
    "metadata": ({},),
    "truncation": ("disabled",),
    "background": (False,),
    "service_tier": ("auto", "default"),
    "top_logprobs": (0,),
    "stream_options": ({}, {"include_obfuscation": False}),
    "reasoning": ({}, {"effort": "none"}),
    "previous_response_id": (),
    "conversation": (),
    "prompt": (),
    "max_tool_calls": (),
}
NO_TOOLS: Final = {"tools": [], "tool_choice": "none", "parallel_tool_calls": False}
OWN: Final = (
    *("model", "input", "instructions", "max_output_tokens", "stream", "user"),
    *("safety_identifier", "policy", "kv", "placements", "stop", "min_new_tokens", "text"),
    *("tools", "tool_choice", "parallel_tool_calls"),
)
KNOWN: Final = frozenset((*OWN, *NUMBERS, *WHOLE, *FLAGS, *NEUTRAL))


def response_request(body: Mapping[str, Any], limits: Limits) -> ChatRequest:
    """Read a body of /v1/responses.

    Raises:
        ApiError: a field is unknown, not served, or has a value that it cannot have.
        AvlError: the policy cannot be read.
    """
    given = taken(body, KNOWN, NEUTRAL)
    options = {name: one for name, one in given.items() if name not in NEUTRAL}
    if "max_output_tokens" in given:
        options["max_tokens"] = values.whole(
            given["max_output_tokens"], "max_output_tokens", 1, limits.new_tokens
        )
    return ChatRequest(
        model=values.text(needed(given, "model"), "model", LONGEST_NAME),
        said=_said(given, limits),
        choices=1,
        options=options_of(options, limits),
        policy=policy_of(given),
        kv=values.text(given["kv"], "kv", LONGEST_NAME) if "kv" in given else None,
        placements=values.flag(given.get("placements", False), "placements"),
        live=False,
        stream=values.flag(given.get("stream", False), "stream"),
        usage=True,
        user=user_of(given),
        format=_format(given),
        tools=tools_read(given, nested=False),
    )


def _format(given: Mapping[str, Any]) -> Format:
    text = values.an_object(given.get("text", {}), "text", ("format", "verbosity"))
    if text.get("verbosity", "medium") != "medium":
        raise values.wrong("text.verbosity", "medium", text["verbosity"])
    return format_of(text.get("format", TEXT), "text.format", None)


def _said(given: Mapping[str, Any], limits: Limits) -> tuple[Said, ...]:
    asked = needed(given, "input")
    if isinstance(asked, str):
        said: tuple[Said, ...] = (Said("user", (values.text(asked, "input", limits.text),)),)
    else:
        said = messages(asked, limits, RESPONSES)
    if "instructions" in given:
        front = values.text(given["instructions"], "instructions", limits.text)
        said = (Said("system", (front,)), *said)
    check(said, limits, "input")
    return said


class ResponseTeller:
    """Tells an answer whole, or in events that have numbers."""

    def __init__(self, exchange: Exchange, asked: ChatRequest, run: Run) -> None:
        self._exchange, self._asked, self._run = exchange, asked, run
        self._id = f"resp_{secrets.token_hex(16)}"
        self._created = int(time.time())
        self._number = 0
        self._reader = run.reader()
        self._items: list[Item] = []

    async def step(self, event: Event) -> None:
        """Note what came, and send it if it is to be streamed."""
        if self._asked.stream and self._exchange.status is None:
            await self._exchange.begin_events()
            for kind in ("response.created", "response.in_progress"):
                await self._send(kind, response=self._response("in_progress"))
        pieces = [Piece(event.text)]
        if self._reader is not None:
            pieces = self._reader.push(event.text, last=event.done)
        elif not self._items:
            await self._add(Item())
        for piece in pieces:
            if piece.name is not None:
                await self._add(Item(piece.name))
            elif piece.call is None and (not self._items or self._items[-1].name is not None):
                await self._add(Item())
            if piece.text:
                await self._grow(piece.text)

    async def end(self) -> None:
        """Send the whole answer, or what a stream ends with."""
        status = self._status()
        if not self._items:
            await self._add(Item())
        if not self._asked.stream:
            await self._exchange.whole(self._response(status))
            return
        await self._close(status)
        await self._send(f"response.{status}", response=self._response(status))
        await self._exchange.end()

    async def _add(self, item: Item) -> None:
        """Begin an item, behind which the one before it is whole."""
        if self._items:
            await self._close("completed")
        self._items.append(item)
        shown = item.shown("in_progress", begun=True)
        await self._tell("response.output_item.added", item=shown)
        if item.name is None:
            await self._tell_part("response.content_part.added", part=text_part(""))

    async def _grow(self, text: str) -> None:
        """Have more of the last item."""
        item = self._items[-1]
        item.text += text
        if item.name is None:
            await self._tell_part("response.output_text.delta", delta=text, logprobs=[])
        else:
            kind = "response.function_call_arguments.delta"
            await self._tell(kind, item_id=item.id, delta=text)

    async def _close(self, status: str) -> None:
        """Tell that the last item is whole, or cut."""
        item = self._items[-1]
        if item.name is None:
            await self._tell_part("response.output_text.done", text=item.text, logprobs=[])
            await self._tell_part("response.content_part.done", part=text_part(item.text))
        else:
            told = {"item_id": item.id, "name": item.name, "arguments": item.text}
            await self._tell("response.function_call_arguments.done", **told)
        await self._tell("response.output_item.done", item=item.shown(status))

    async def _tell_part(self, kind: str, **fields: Any) -> None:
        await self._tell(kind, item_id=self._items[-1].id, content_index=0, **fields)

    async def _tell(self, kind: str, **fields: Any) -> None:
        """Send an event about the last item."""
        if self._asked.stream:
            await self._send(kind, output_index=len(self._items) - 1, **fields)

    async def _send(self, kind: str, **fields: Any) -> None:
        numbered = {"type": kind, "sequence_number": self._number, **fields}
        self._number += 1
        await self._exchange.event(numbered, kind)

    def _status(self) -> str:
        return "incomplete" if self._run.reason(0) == "length" else "completed"

    def _output(self, status: str) -> list[Object]:
        whole = [item.shown("completed") for item in self._items[:-1]]
        return [*whole, self._items[-1].shown(status)]

    def _response(self, status: str) -> Object:
        request, begun = self._run.requests[0], status == "in_progress"
        prompt, answer = len(request.prompt.input_ids), len(request.reply.token_ids)
        used = {
            "input_tokens": prompt,
            "input_tokens_details": {"cached_tokens": request.prefix_tokens},
            "output_tokens": answer,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": prompt + answer,
        }
        reason = {"reason": "max_output_tokens"} if status == "incomplete" else None
        found: Object = {
            "id": self._id,
            "object": "response",
            "created_at": self._created,
            "status": status,
            "model": self._asked.model,
            "error": None,
            "incomplete_details": reason,
            "instructions": None,
            "max_output_tokens": self._asked.options.max_new_tokens,
            "metadata": {},
            "output": [] if begun else self._output(status),
            "previous_response_id": None,
            "store": False,
            "temperature": self._asked.options.temperature,
            "text": {"format": dict(self._asked.format.told)},
            **(NO_TOOLS if self._asked.tools is None else self._asked.tools.asked),
            "top_p": self._asked.options.top_p,
            "truncation": "disabled",
            "usage": None if begun else used,
        }
        return found if begun else found | {"avl": about(request, self._run.cut)}


RESPONSE: Final = Form(response_request, ResponseTeller)
