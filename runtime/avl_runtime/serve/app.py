"""The routes, and what holds for all of them: keys, errors, counts, the log."""

from __future__ import annotations

import asyncio
import json
import math
import sys
import time
import traceback
from collections.abc import Awaitable, Callable, Collection, Mapping
from typing import Any, TextIO

from avl_plugins.errors import quoted
from avl_runtime.serve.answering import Answering
from avl_runtime.serve.errors import ApiError, told
from avl_runtime.serve.files import HEADERS, page_files
from avl_runtime.serve.http.bodies import GoneError, Receive
from avl_runtime.serve.http.exchange import Exchange, Send
from avl_runtime.serve.http.guard import Guard
from avl_runtime.serve.limits import Limits
from avl_runtime.serve.metrics import Metrics
from avl_runtime.serve.shelf import Shelf
from avl_runtime.serve.telemetry import Spans
from avl_runtime.serve.told.chat import CHAT
from avl_runtime.serve.told.responses import RESPONSE

Handler = Callable[[Exchange], Awaitable[None]]
GONE = 499  # what logs and counts have for a client that went away; nobody is sent it
OPEN = ("/health", "/ready")  # asked by machines that have no key, and saying nothing of use
METRICS = "/metrics"
UNTRACED = (*OPEN, METRICS)  # asked by machines again and again
MODELS = "/v1/models"


class App:
    """An ASGI application.

    Attributes:
        stopping: whether it will end soon, so that no new request shall come here.
        answering: what answers questions.
    """

    def __init__(
        self,
        shelf: Shelf,
        limits: Limits,
        guard: Guard,
        log: TextIO | None,
        hosts: Collection[str] = (),
        spans: Spans | None = None,
    ) -> None:
        """
        Args:
            hosts: that pictures may be fetched from.
            log: where a line for each request goes.
            spans: where traces go; closed with this.
        """
        self._shelf, self._guard, self._log, self._spans = shelf, guard, log, spans
        self._metrics = Metrics()
        self.answering = Answering(shelf, limits, self._metrics, hosts)
        self.stopping = False
        self._routes: Mapping[str, Mapping[str, Handler]] = {
            "/v1/chat/completions": {"POST": self._chat},
            "/v1/responses": {"POST": self._response},
            "/tokenize": {"POST": self.answering.count},
            MODELS: {"GET": self._models},
            "/health": {"GET": self._health},
            "/ready": {"GET": self._ready},
            METRICS: {"GET": self._counts},
        }
        self._files = page_files()
        admission = self.answering.admission
        watch = self._metrics.watch
        watch("avl_places_taken", "Places of answers.", lambda: admission.running)
        watch("avl_running", "Answers that schedulers read and decode.", lambda: shelf.requests)
        watch("avl_models_loaded", "Models that are loaded.", lambda: len(shelf.loaded))
        watch("avl_prefix_bytes", "Bytes of prompts' rows for others.", lambda: shelf.prefix_bytes)
        watch("avl_waiting", "Requests that wait for a place.", lambda: admission.waiting)
        rows = self.answering.rows
        most = math.inf if rows.limit is None else rows.limit
        watch("avl_kv_bytes_limit", "Bytes of cached rows that there is room for.", lambda: most)
        watch("avl_kv_bytes_reserved", "Of those, held for answers.", lambda: rows.reserved)
        watch("avl_waiting_for_rows", "Requests that wait for such room.", lambda: rows.waiting)

    async def close(self) -> None:
        """Let go of threads and models."""
        self.answering.close()
        await self._shelf.close()
        if self._spans is not None:
            await asyncio.to_thread(self._spans.close)

    async def __call__(self, scope: Mapping[str, Any], receive: Receive, send: Send) -> None:
        """Answer a request; no exception but a cancellation leaves this."""
        if scope["type"] != "http":
            raise RuntimeError("expected an HTTP request")
        exchange = Exchange(scope, receive, send)
        try:
            await self._answered(exchange)
        finally:
            self._note(exchange)

    async def _answered(self, exchange: Exchange) -> None:
        try:
            await self._handler(exchange)(exchange)
        except GoneError:
            exchange.status = GONE
        except asyncio.CancelledError:
            exchange.status = GONE
            raise
        except Exception as error:
            answer = told(error, self._shelf.private)
            if answer.status == 500:
                self._trace(exchange, error)
            try:
                await exchange.error(answer)
            except Exception as second:
                self._trace(exchange, second)

    def _handler(self, exchange: Exchange) -> Handler:
        """What answers a request.

        Raises:
            ApiError: nothing does, or the client may not ask.
        """
        if exchange.path in self._files:
            self._guard.check_host(exchange.headers)
        elif exchange.path not in OPEN:
            exchange.client = self._guard.check(exchange.headers)
        model = exchange.path.removeprefix(f"{MODELS}/")
        methods = self._routes.get(exchange.path)
        if exchange.path in self._files:
            methods = {"GET": self._file}
        elif methods is None and model != exchange.path:
            methods = {"GET": self._model}
        if methods is None:
            raise ApiError(
                404,
                f"expected one of {', '.join(self._routes)}, found {quoted(exchange.path)}; ask "
                "one of them",
                None,
                "not_found",
            )
        method = "GET" if exchange.method == "HEAD" else exchange.method
        if method not in methods:
            allowed = ", ".join(methods)
            raise ApiError(
                405,
                f"expected the method {allowed}, found {quoted(exchange.method)}; ask with it",
                code="method_not_allowed",
                headers={"Allow": allowed},
            )
        if method == "POST":
            _check_json(exchange.headers)
        return methods[method]

    async def _chat(self, exchange: Exchange) -> None:
        await self.answering(exchange, CHAT)

    async def _response(self, exchange: Exchange) -> None:
        await self.answering(exchange, RESPONSE)

    async def _models(self, exchange: Exchange) -> None:
        await exchange.whole({"object": "list", "data": self._shelf.listed()})

    async def _model(self, exchange: Exchange) -> None:
        name = exchange.path.removeprefix(f"{MODELS}/")
        self._shelf.check(name)
        (found,) = [one for one in self._shelf.listed() if one["id"] == name]
        await exchange.whole(found)

    async def _health(self, exchange: Exchange) -> None:
        alive = self._shelf.alive
        await exchange.whole({"status": "ok" if alive else "failed"}, 200 if alive else 503)

    async def _ready(self, exchange: Exchange) -> None:
        state = "stopping" if self.stopping else "ready" if self._shelf.alive else "failed"
        await exchange.whole({"status": state}, 200 if state == "ready" else 503)

    async def _counts(self, exchange: Exchange) -> None:
        await exchange.answer(*self._metrics.page())

    async def _file(self, exchange: Exchange) -> None:
        file = self._files[exchange.path]
        await exchange.answer(file.data, file.kind, 200, HEADERS)

    def _route(self, exchange: Exchange) -> str:
        if exchange.path in self._routes:
            return exchange.path
        if exchange.path in self._files:
            return "page"
        return MODELS if exchange.path.startswith(f"{MODELS}/") else "other"

    def _note(self, exchange: Exchange) -> None:
        seconds, route = time.perf_counter() - exchange.begun, self._route(exchange)
        status = exchange.status or GONE
        self._metrics.answered(route, status, seconds)
        if self._spans is not None and exchange.path not in UNTRACED and route != "page":
            self._spans.add(exchange, route, status, seconds)
        if self._log is not None and exchange.path not in OPEN:
            line = {
                "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                "id": exchange.id,
                "route": route,
                "status": status,
                "ms": round(seconds * 1e3, 1),
                **{name: value for name, value in exchange.notes.items() if value is not None},
            }
            print(json.dumps(line), file=self._log, flush=True)

    def _trace(self, exchange: Exchange, error: BaseException) -> None:
        text = "".join(traceback.format_exception(error))
        print(f"avl-serve: {exchange.id}: {text}", file=sys.stderr, end="", flush=True)


def _check_json(headers: Mapping[str, str]) -> None:
    """Refuse bodies that a page from elsewhere can send without asking whether it may.

    Raises:
        ApiError: the content type is not JSON's, or the body is compressed.
    """
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise ApiError(
            415,
            f"expected the content type application/json, found {quoted(kind)}; set the header "
            "Content-Type",
            None,
            "not_json",
        )
    if headers.get("content-encoding", "identity").strip().lower() != "identity":
        raise ApiError(
            415,
            "expected a body as it is, found a compressed one; send it plain",
            None,
            "compressed",
        )
