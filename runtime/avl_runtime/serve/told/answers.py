"""What clients are answered: the objects of OpenAI's protocol, whole and in chunks.

Every chunk has every field that clients read: openai's stream helper fails without `object`,
`index` and `delta`.
"""

from __future__ import annotations

import base64
import secrets
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from avl_runtime import __version__
from avl_runtime.generate.call_reader import CallReader, Piece
from avl_runtime.generate.results import Logprob, Placement, TokenLogprobs
from avl_runtime.prompts.text import REPLACEMENT
from avl_runtime.requests.request import Request
from avl_runtime.serve.served import Cut, Run, State, stats_of

SMALLEST_LOGPROB = -9999.0  # JSON has no infinity, and this is what OpenAI writes for it
Object = dict[str, Any]


class Answer:
    """The objects of one answer, which share an id, a time and a model's name."""

    def __init__(self, model: str, run: Run) -> None:
        self._run = run
        self._id = f"chatcmpl-{secrets.token_hex(12)}"
        self._shared = {
            "created": int(time.time()),
            "model": model,
            "system_fingerprint": f"avl-{__version__}",
        }

    def whole(self, logprobs: bool) -> Object:
        """A finished answer.

        Args:
            logprobs: whether they were asked for.
        """
        choices = []
        for index, request in enumerate(self._run.requests):
            choices.append(
                {
                    "index": index,
                    "message": _message(request.reply.text, self._run.reader()),
                    "logprobs": _logprobs(self._told(request)) if logprobs else None,
                    "finish_reason": self._run.reason(index),
                    "avl": about(request, self._run.cut),
                }
            )
        return {
            "id": self._id,
            "object": "chat.completion",
            **self._shared,
            "choices": choices,
            "usage": self.usage(),
        }

    def piece(
        self,
        index: int,
        delta: Object,
        logprobs: Sequence[TokenLogprobs] | None,
        told: Object | None = None,
    ) -> Object:
        """A chunk with what has come of a choice.

        Args:
            told: what OpenAI's protocol has no field for.
        """
        found = None if logprobs is None else _logprobs(logprobs)
        choice = _choice(index, delta, found, None)
        return self._chunk([choice if told is None else choice | {"avl": told}])

    def visuals(self, index: int) -> Object:
        """What the image tokens of a choice's placements show."""
        return {"visuals": visuals(self._run.requests[index])}

    def last(self, index: int, live: bool) -> Object:
        """A choice's last chunk.

        Args:
            live: whether placements were in the chunks before.
        """
        ended = _choice(index, {}, None, self._run.reason(index))
        told = about(self._run.requests[index], self._run.cut, live)
        return self._chunk([ended | {"avl": told}])

    def used(self) -> Object:
        """The chunk behind all choices that says what was used."""
        return self._chunk([]) | {"usage": self.usage()}

    def usage(self) -> Object:
        """How many tokens there were."""
        prompt = len(self._run.requests[0].prompt.input_ids)
        completion = sum(len(request.reply.token_ids) for request in self._run.requests)
        return {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
            "prompt_tokens_details": {"cached_tokens": self._run.requests[0].prefix_tokens},
        }

    def _told(self, request: Request) -> Sequence[TokenLogprobs]:
        found = request.reply.logprobs or []
        return without_end(found, request, len(found))

    def _chunk(self, choices: list[Object]) -> Object:
        return {
            "id": self._id,
            "object": "chat.completion.chunk",
            **self._shared,
            "choices": choices,
            "usage": None,
        }


def _message(text: str, reader: CallReader | None) -> Object:
    found: Object = {"role": "assistant", "content": text, "refusal": None}
    if reader is None:
        return found
    pieces = reader.push(text, last=True)
    calls: list[Object] = []
    for piece in pieces:
        if piece.name is not None:
            calls.append(begun(piece.name))
        elif piece.call is not None:
            calls[piece.call]["function"]["arguments"] += piece.text
    said = "".join(piece.text for piece in pieces if piece.call is None)
    return found | {"content": said or None, "tool_calls": calls} if calls else found


def delta(piece: Piece) -> Object:
    """What a chunk brings of a choice."""
    if piece.call is None:
        return {"content": piece.text}
    told = {"function": {"arguments": piece.text}} if piece.name is None else begun(piece.name)
    return {"tool_calls": [{"index": piece.call, **told}]}


def begun(name: str) -> Object:
    """A call of a function, without its arguments."""
    function = {"name": name, "arguments": ""}
    return {"id": f"call_{secrets.token_hex(12)}", "type": "function", "function": function}


def without_end(
    logprobs: Sequence[TokenLogprobs], request: Request, told: int
) -> Sequence[TokenLogprobs]:
    """Logprobs up to the reply's first `told` tokens, without that of the end token."""
    ended = request.reply.finish_reason == "eos" and told == len(request.reply.token_ids)
    return logprobs[:-1] if ended else logprobs


def about(request: Request, cut: Cut | None, live: bool = False) -> Object:
    """What OpenAI's protocol has no field for; figures are None for an answer that was cut.

    Args:
        live: whether placements have been told before.
    """
    stats = stats_of(request)
    found: Object = {
        "policy": str(request.policy),
        "kv": request.loaded.executor.kv,
        "seed": request.reply.seed,
        "visual_tokens": int(request.prompt.image_mask.sum()),
        "visual_tokens_read": request.visual_tokens_read,
        "prefix_tokens": request.prefix_tokens,
        "kv_bytes": stats and stats.kv_bytes,
        "kv_bytes_dense": stats and stats.kv_bytes_dense,
        "cut": cut if stats is None else None,
    }
    if request.trace and not live:
        found["visuals"] = visuals(request)
        found["placements"] = [_placement(one) for one in request.reply.placements]
    return found


def standing(state: State) -> Object:
    """How a choice stands, for a chunk."""
    return {
        "tokens": state.tokens,
        "prefill_ms": round(state.prefill_ms, 3),
        "decode_ms": round(state.decode_ms, 3),
        "row_bytes": state.row_bytes,
        "row_bytes_dense": state.row_bytes_dense,
        "placements": [_placement(one) for one in state.placements],
    }


def visuals(request: Request) -> list[Object]:
    """What the image tokens of each picture show, in prompt order, and where a prompt dropped them.

    That is null where the prompt was not read.
    """
    found = [media.cells for media in request.prompt.media]
    counts = [len(one.index) for one in found]
    dropped = request.sequence.images_dropped
    read = len(dropped) == sum(counts)
    parts = np.split(dropped, np.cumsum(counts)[:-1]) if read else [None] * len(found)
    return [
        {
            "grid": list(one.grid),
            "seen": list(one.seen),
            "cells": one.index.tolist(),
            "dropped_before": None if part is None else part.tolist(),
        }
        for one, part in zip(found, parts, strict=False)
    ]


def _choice(index: int, delta: Object, logprobs: Object | None, reason: str | None) -> Object:
    return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}


def _logprobs(found: Sequence[TokenLogprobs]) -> Object:
    content = [_logprob(one) | {"top_logprobs": [*map(_logprob, one.top)]} for one in found]
    return {"content": content, "refusal": None}


def _logprob(one: Logprob) -> Object:
    # Of a token that is a part of a character the text does not tell the bytes.
    known = REPLACEMENT not in one.text
    return {
        "token": one.text,
        "bytes": list(one.text.encode()) if known else None,
        "logprob": max(one.logprob, SMALLEST_LOGPROB),
    }


def _placement(one: Placement) -> Object:
    return {"step": one.step, "core": _bits(one.core), "parked": _bits(one.parked)}


def _bits(mask: NDArray[np.bool_]) -> Object:
    """[layers, image tokens] bools: rows one after the other, the first in a byte's highest bit."""
    packed = np.packbits(mask, axis=None).tobytes()
    return {"shape": list(mask.shape), "bits": base64.b64encode(packed).decode()}
