"""/v1/responses: how its requests are read and its answers told; nothing is stored."""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping
from typing import Any, Final

from avl_runtime.serve import values
from avl_runtime.serve.answering import Form
from avl_runtime.serve.answers import Object, about
from avl_runtime.serve.content import RESPONSES, Said, check, messages
from avl_runtime.serve.exchange import Exchange
from avl_runtime.serve.fields import (
    FLAGS,
    LONGEST_NAME,
    NUMBERS,
    WHOLE,
    ChatRequest,
    needed,
    options_of,
    policy_of,
    taken,
    user_of,
)
from avl_runtime.serve.formats import TEXT, Format, format_of
from avl_runtime.serve.limits import Limits
from avl_runtime.serve.served import Event, Run

# Fields of OpenAI's protocol that ask for nothing when they have such a value.
NEUTRAL: Final[Mapping[str, tuple[Any, ...]]] = {
    "store": (False,),  # without it OpenAI's own server stores; this one cannot
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "parallel_tool_calls": (True, False),
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
OWN: Final = (
    *("model", "input", "instructions", "max_output_tokens", "stream", "user"),
    *("safety_identifier", "policy", "kv", "placements", "stop", "min_new_tokens", "text"),
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
        self._id, self._item = f"resp_{secrets.token_hex(16)}", f"msg_{secrets.token_hex(16)}"
        self._created = int(time.time())
        self._number = 0

    async def step(self, event: Event) -> None:
        """Send what came, if it is to be streamed."""
        if not self._asked.stream:
            return
        if self._exchange.status is None:
            await self._open()
        if event.text:
            await self._part("response.output_text.delta", delta=event.text, logprobs=[])

    async def end(self) -> None:
        """Send the whole answer, or what a stream ends with."""
        status = self._status()
        if not self._asked.stream:
            await self._exchange.whole(self._response(status))
            return
        text = self._run.requests[0].reply.text
        await self._part("response.output_text.done", text=text, logprobs=[])
        await self._part("response.content_part.done", part=_text(text))
        item = self._message(text, status)
        await self._send("response.output_item.done", output_index=0, item=item)
        await self._send(f"response.{status}", response=self._response(status))
        await self._exchange.end()

    async def _open(self) -> None:
        await self._exchange.begin_events()
        for kind in ("response.created", "response.in_progress"):
            await self._send(kind, response=self._response("in_progress"))
        item = self._message(None, "in_progress")
        await self._send("response.output_item.added", output_index=0, item=item)
        await self._part("response.content_part.added", part=_text(""))

    async def _part(self, kind: str, **fields: Any) -> None:
        where = {"item_id": self._item, "output_index": 0, "content_index": 0}
        await self._send(kind, **where, **fields)

    async def _send(self, kind: str, **fields: Any) -> None:
        numbered = {"type": kind, "sequence_number": self._number, **fields}
        self._number += 1
        await self._exchange.event(numbered, kind)

    def _status(self) -> str:
        whole = self._run.requests[0].reply.finish_reason in ("eos", "stop")
        return "completed" if whole else "incomplete"

    def _message(self, text: str | None, status: str) -> Object:
        return {
            "type": "message",
            "id": self._item,
            "role": "assistant",
            "status": status,
            "content": [] if text is None else [_text(text)],
        }

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
            "output": [] if begun else [self._message(request.reply.text, status)],
            "parallel_tool_calls": False,
            "previous_response_id": None,
            "store": False,
            "temperature": self._asked.options.temperature,
            "text": {"format": dict(self._asked.format.told)},
            "tool_choice": "none",
            "tools": [],
            "top_p": self._asked.options.top_p,
            "truncation": "disabled",
            "usage": None if begun else used,
        }
        return found if begun else found | {"avl": about(request, self._run.cut)}


def _text(text: str) -> Object:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


RESPONSE: Final = Form(response_request, ResponseTeller)
