"""A model of Triton Inference Server's Python backend, decoupled: answers come in pieces.

Source: the README of the server's Python backend. It hands each model one module,
`triton_python_backend_utils`, which exists inside of the server alone.
"""

from __future__ import annotations

import asyncio
import json
import threading
import traceback
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, wait
from importlib import import_module
from pathlib import Path
from typing import Any, Final

import numpy as np

from avl_plugins.errors import AvlError, quoted
from avl_runtime.serve.answering import Answering, Form
from avl_runtime.serve.asked.fields import ChatRequest, chat_request
from avl_runtime.serve.errors import refused, told
from avl_runtime.serve.http.bodies import GoneError, Message
from avl_runtime.serve.http.exchange import Exchange
from avl_runtime.serve.limits import Limits
from avl_runtime.serve.metrics import Metrics
from avl_runtime.serve.served import Event, Run
from avl_runtime.serve.shelf import Shelf

LOOKED: Final = 0.1  # seconds between two looks whether a client gave up
USUAL: Final = Limits()
NUMBERS: Final = {  # None where the server chooses
    "running": USUAL.running,
    "max_new_tokens": USUAL.new_tokens,
    "kv_bytes": USUAL.kv_bytes,
    "cache_limit": None,
}
PARAMETERS: Final = ("package", *NUMBERS, "policy", "backend", "kv", "cache_dir")
# Fields that inputs stand for, and those whose answer no output has room for.
OWN: Final = ("messages", "model", "stream", "stream_options", "n")
UNTOLD: Final = (
    *("logprobs", "top_logprobs", "placements", "tools", "tool_choice", "parallel_tool_calls"),
)
# Statuses of the server of OpenAI's protocol, as errors of this one.
ERRORS: Final = {400: "INVALID_ARG", 404: "NOT_FOUND", 429: "UNAVAILABLE", 503: "UNAVAILABLE"}
SCOPE: Final = {"method": "POST", "path": "/", "headers": [(b"content-type", b"application/json")]}


class ParameterError(AvlError):
    """A parameter of a model's configuration cannot be used."""


class TritonPythonModel:
    """What the server makes of `model.py`; requests decode together in one scheduler."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Load the package.

        Args:
            args: as the server has them: `model_config` is JSON, `model_repository` the model's
                folder.

        Raises:
            AvlError: it cannot be loaded.
        """
        self._utils: Any = import_module("triton_python_backend_utils")
        given = parameters(json.loads(args["model_config"]))
        limits = Limits(
            running=given["running"],
            new_tokens=given["max_new_tokens"],
            kv_bytes=given["kv_bytes"],
        )
        self._name, folder = args["model_name"], Path(args["model_repository"])
        self._shelf = Shelf(
            {self._name: folder / given["package"]},
            limits,
            policy=given["policy"],
            backend=given["backend"],
            kv=given["kv"],
            prefix_cache="auto",
            cache_dir=given["cache_dir"] and folder / given["cache_dir"],
            cache_limit=given["cache_limit"],
        )
        self._answering = Answering(self._shelf, limits, Metrics())
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="avl-answers")
        self._thread.start()
        self._left: set[Future[None]] = set()

    def execute(self, requests: Sequence[Any]) -> None:
        """Begin to answer; answers are sent from another thread."""
        for request in requests:
            sender = request.get_response_sender()
            try:
                # Tensors are gone when this returns.
                body = json.dumps(self._body(request)).encode()
            except Exception as error:
                self._fail(sender, error)
                continue
            found = asyncio.run_coroutine_threadsafe(self._answer(sender, body), self._loop)
            self._left.add(found)
            found.add_done_callback(self._left.discard)

    def finalize(self) -> None:
        """Cut what runs, and give back what loading took."""
        self._loop.call_soon_threadsafe(self._answering.cut)
        wait(list(self._left))
        asyncio.run_coroutine_threadsafe(self._shelf.close(), self._loop).result()
        self._answering.close()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _body(self, request: Any) -> dict[str, Any]:
        """A body of /v1/chat/completions, of a request's inputs.

        Raises:
            ApiError: an input cannot be used.
        """
        (text,) = self._input(request, "text_input") or [""]
        (stream,) = self._input(request, "stream") or [False]
        (fields,) = self._input(request, "sampling_parameters") or [b"{}"]
        parts: list[dict[str, Any]] = []
        for image in self._input(request, "image"):
            address = _text(image, "image")
            url = address if address[:5].lower() == "data:" else f"data:;base64,{address}"
            parts.append({"type": "image_url", "image_url": {"url": url}})
        parts.append({"type": "text", "text": _text(text, "text_input")})
        return {
            **_fields(_text(fields, "sampling_parameters")),
            "model": self._name,
            "messages": [{"role": "user", "content": parts}],
            "stream": bool(stream),
        }

    def _input(self, request: Any, name: str) -> list[Any]:
        """The elements of an input tensor, none where it is left out."""
        tensor = self._utils.get_input_tensor_by_name(request, name)
        return [] if tensor is None else list(tensor.as_numpy().ravel())

    async def _answer(self, sender: Any, body: bytes) -> None:
        waiting = [{"type": "http.request", "body": body}]

        async def receive() -> Message:
            if waiting:
                return waiting.pop()
            while not sender.is_cancelled():
                await asyncio.sleep(LOOKED)
            return {"type": "http.disconnect"}

        async def send(message: Message) -> None:
            raise RuntimeError("expected answers to go through the sender")

        def teller(exchange: Exchange, asked: ChatRequest, run: Run) -> _Teller:
            return _Teller(self._utils, sender, asked, run)

        try:
            exchange = Exchange(SCOPE, receive, send)
            await self._answering(exchange, Form(chat_request, teller))
        except GoneError:
            sender.send(flags=self._utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
        except Exception as error:
            self._fail(sender, error)

    def _fail(self, sender: Any, error: Exception) -> None:
        answer, utils = told(error, self._shelf.private), self._utils
        if answer.status == 500:
            utils.Logger.log_error("".join(traceback.format_exception(error)))
        kind = getattr(utils.TritonError, ERRORS.get(answer.status, "INTERNAL"))
        response = utils.InferenceResponse(error=utils.TritonError(str(answer), kind))
        sender.send(response, flags=utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)


class _Teller:
    """Sends a text whole, or in pieces; of several pieces the last one says why it ended."""

    def __init__(self, utils: Any, sender: Any, asked: ChatRequest, run: Run) -> None:
        self._utils, self._sender, self._asked, self._run = utils, sender, asked, run

    async def step(self, event: Event) -> None:
        if self._asked.stream and (event.text or event.done):
            reason = self._run.reason(0) if event.done else ""
            await asyncio.to_thread(self._sender.send, self._response(event.text, reason))

    async def end(self) -> None:
        found = []
        if not self._asked.stream:
            (request,) = self._run.requests
            found.append(self._response(request.reply.text, self._run.reason(0)))
        final = self._utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL
        await asyncio.to_thread(self._sender.send, *found, flags=final)

    def _response(self, text: str, reason: str) -> Any:
        tensors = [
            self._utils.Tensor(name, np.array([value.encode()], np.object_))
            for name, value in (("text_output", text), ("finish_reason", reason))
        ]
        return self._utils.InferenceResponse(output_tensors=tensors)


def parameters(config: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters of a configuration; names in capitals are the server's own.

    Raises:
        ParameterError: one is missing, unknown or no number.
    """
    given = {name: one["string_value"] for name, one in config.get("parameters", {}).items()}
    for name in given:
        if name not in PARAMETERS and name != name.upper():
            raise ParameterError(
                f"parameters: expected {', '.join(PARAMETERS)}, found {quoted(name)}; leave it out"
            )
    if not given.get("package"):
        raise ParameterError("parameters: expected package, a folder with avl.json, found none")
    found: dict[str, Any] = {name: given.get(name) or None for name in PARAMETERS}
    for name, usual in NUMBERS.items():
        text = found[name]
        if text is None:
            found[name] = usual
            continue
        if not (text.isascii() and text.isdecimal() and len(text) < 16 and int(text) > 0):
            raise ParameterError(
                f"parameters: expected a whole number of at least 1 as {name}, found {quoted(text)}"
            )
        found[name] = int(text)
    return found | {name: found[name] or "auto" for name in ("backend", "kv")}


def _text(value: object, name: str) -> str:
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            value = "other bytes"
    if not isinstance(value, str) or value == "other bytes":
        raise refused(f"{name}: expected text in UTF-8, found {quoted(value)}; encode it so", name)
    return value


def _fields(text: str) -> dict[str, Any]:
    """Fields of a chat request.

    Raises:
        ApiError: it is no JSON object, or has a field that other inputs stand for, or one that
            asks for what outputs do not tell.
    """
    name = "sampling_parameters"
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise refused(f"{name}: expected a JSON object, found {quoted(text)}; send one", name)
    for key in (*OWN, *UNTOLD):
        if key in found:
            none = ", ".join(OWN if key in OWN else UNTOLD)
            raise refused(
                f"{name}: expected none of {none}, found {quoted(key)}; leave it out", name
            )
    return found
