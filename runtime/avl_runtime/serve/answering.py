"""From a body to an answer, whatever its form: admission, pictures, deadlines, cuts."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from avl_runtime.machine.memory import give_back
from avl_runtime.requests.request import Request
from avl_runtime.serve.admission import Admission, stopping
from avl_runtime.serve.asked.content import pictures
from avl_runtime.serve.asked.fields import ChatRequest, chat_request
from avl_runtime.serve.decoding.processes import Decoders
from avl_runtime.serve.errors import ApiError, refused
from avl_runtime.serve.http.bodies import Body, GoneError, Held, parsed
from avl_runtime.serve.http.exchange import Exchange
from avl_runtime.serve.http.fetch import Fetcher
from avl_runtime.serve.limits import Limits
from avl_runtime.serve.metrics import Metrics
from avl_runtime.serve.pictures import Pictures, is_remote
from avl_runtime.serve.rows import Rows
from avl_runtime.serve.served import Event, Run, Served, stats_of
from avl_runtime.serve.shelf import Shelf

PREPARING = 2  # bodies and pictures that are taken apart at one time, for the sake of memory
SENDING = 10.0  # seconds after the deadline in which a client may still read its answer
FETCHING = 8  # pictures that are fetched at one time
Found = TypeVar("Found")
Read = Callable[[Mapping[str, Any], Limits], ChatRequest]


class Teller(Protocol):
    """Tells a client what happens, in the objects of a form."""

    async def step(self, event: Event) -> None:
        """Tell what a step did."""

    async def end(self) -> None:
        """Tell that all choices are done."""


@dataclass(frozen=True, slots=True)
class Form:
    """How a route's requests are written, and its answers.

    Attributes:
        read: a body, as a request.
        teller: of a request that runs.
    """

    read: Read
    teller: Callable[[Exchange, ChatRequest, Run], Teller]


class Answering:
    """Answers questions.

    Attributes:
        admission: who may run.
        decoders: what decodes pictures.
        rows: room for the rows of those that run.
    """

    def __init__(
        self, shelf: Shelf, limits: Limits, metrics: Metrics, hosts: Collection[str] = ()
    ) -> None:
        """
        Args:
            hosts: that pictures may be fetched from.
        """
        self._fetcher = Fetcher(hosts, limits.body) if hosts else None
        self._fetchers = ThreadPoolExecutor(FETCHING, "avl-fetch")
        self._shelf, self._limits, self._metrics = shelf, limits, metrics
        self.admission = Admission(limits.running, limits.queue)
        self.rows = Rows(shelf.rows_limit if limits.kv_bytes is None else limits.kv_bytes)
        self._held = Held(limits)
        self._workers = ThreadPoolExecutor(PREPARING, "avl-prepare")
        self.decoders = Decoders(PREPARING, limits.pixels, limits.body)
        self._runs: set[Run] = set()
        self._rest: asyncio.TimerHandle | None = None
        self._stopped = False

    async def __call__(self, exchange: Exchange, form: Form) -> None:
        """Answer one request.

        Raises:
            AvlError: it cannot be answered.
            GoneError: the client went away.
        """
        with self._held.body() as body:
            await body.read(exchange.headers, exchange.receive)
            await exchange.unless_gone(self._answer(exchange, body, form))

    def cut(self) -> None:
        """End all that runs with what it has, and send away who waits."""
        self._stopped = True
        self.admission.stop()
        for run in self._runs:
            run.stop("shutdown")

    def close(self) -> None:
        """Let the threads go, and end the processes."""
        self._stopped = True
        for threads in (self._workers, self._fetchers):
            threads.shutdown(wait=False, cancel_futures=True)
        self.decoders.close()

    async def count(self, exchange: Exchange) -> None:
        """Answer how many tokens the messages of a chat request are.

        Raises:
            AvlError: it cannot be answered.
            GoneError: the client went away.
        """
        with self._held.body() as body:
            await body.read(exchange.headers, exchange.receive)
            await exchange.unless_gone(self._count(exchange, body))

    async def _count(self, exchange: Exchange, body: Body) -> None:
        async with AsyncExitStack() as stack:
            deadline = self._deadline()
            async with _in_time(deadline):
                _, served, requests = await self._prepared(exchange, stack, body, _counted)
            ids = requests[0].prompt.input_ids
            found = {"count": len(ids), "max_model_len": served.context, "tokens": ids.tolist()}
            await _sent(exchange.whole(found), deadline)

    async def _answer(self, exchange: Exchange, body: Body, form: Form) -> None:
        deadline = self._deadline()
        async with AsyncExitStack() as stack:
            async with _in_time(deadline):
                asked, served, requests = await self._prepared(exchange, stack, body, form.read)
                need = served.need(requests)
                with exchange.waiting():
                    await stack.enter_async_context(self.rows.room(served.name, need))
            run = Run(served, requests, asked)
            stack.callback(self._over, exchange, run, asked)
            if self._stopped:
                raise stopping()
            self._runs.add(run)
            run.begin()
            await self._tell(exchange, run, form.teller(exchange, asked, run), deadline)

    async def _prepared(
        self, exchange: Exchange, stack: AsyncExitStack, body: Body, read: Read
    ) -> tuple[ChatRequest, Served, list[Request]]:
        """What is asked, and requests of the scheduler for it; the body is dropped.

        Args:
            stack: gives back places and the model.

        Raises:
            AvlError: it cannot be served.
        """
        limits = self._limits
        asked = await self._worked(lambda: read(parsed(body.data, limits), limits))
        self._shelf.check(asked.model)
        places = self.admission.places(asked.choices, exchange.client)
        with exchange.waiting():
            await stack.enter_async_context(places)
            served = await stack.enter_async_context(self._shelf.using(asked.model))
        fetched = await self._fetched(asked)
        decoding = Pictures(limits, self.decoders, fetched)
        requests = await self._worked(lambda: served.prepare(asked, decoding))
        body.drop()
        return dataclasses.replace(asked, said=()), served, requests

    def _deadline(self) -> float:
        return asyncio.get_running_loop().time() + self._limits.seconds

    async def _tell(self, exchange: Exchange, run: Run, teller: Teller, deadline: float) -> None:
        """Tell until all choices are done; those that are not by the deadline are cut.

        Raises:
            AvlError: what ended a choice, or no token came before the deadline.
            GoneError: the client does not read what it is told.
        """
        until: float | None = deadline
        begun = False
        while run.left:
            try:
                async with asyncio.timeout_at(until):
                    event = await run.next()
            except TimeoutError:
                if not begun:
                    raise _too_late() from None
                run.stop("time")
                until = None  # it stops before the next step
                continue
            if not begun:
                begun = True
                first = time.perf_counter() - exchange.begun
                self._metrics.first(run.name, first)
                exchange.notes["first_ms"] = round(first * 1e3, 1)
            await _sent(teller.step(event), deadline)
        await _sent(teller.end(), deadline)

    async def _fetched(self, asked: ChatRequest) -> dict[str, bytes]:
        """Pictures that are not in the request, by address; none where none are fetched.

        Raises:
            ApiError: one cannot be had.
        """
        found: dict[str, bytes] = {}
        remote = {part.url: part for part in pictures(asked.said) if is_remote(part)}
        if self._fetcher is None:
            return found
        loop = asyncio.get_running_loop()
        for url, picture in remote.items():
            found[url] = await loop.run_in_executor(
                self._fetchers, self._fetcher.fetch, url, picture.name
            )
            if sum(map(len, found.values())) > self._limits.body:
                raise refused(
                    f"{picture.name}: expected pictures of at most {self._limits.body} bytes "
                    "together, found more; send smaller or fewer ones",
                    picture.name,
                )
        return found

    async def _worked(self, work: Callable[[], Found]) -> Found:
        self._rest_later()
        return await asyncio.get_running_loop().run_in_executor(self._workers, work)

    def _rest_later(self) -> None:
        """Give freed memory back when nothing has run and nobody has asked for a while."""
        if self._rest is not None:
            self._rest.cancel()

        def rest() -> None:
            if not (self._runs or self._stopped):
                self._workers.submit(give_back)

        self._rest = asyncio.get_running_loop().call_later(self._limits.rest, rest)

    def _over(self, exchange: Exchange, run: Run, asked: ChatRequest) -> None:
        """Note what became of a request; whatever still runs of it is ended."""
        run.stop()
        self._runs.discard(run)
        self._rest_later()
        requests = run.requests
        prompt = len(requests[0].prompt.input_ids)
        completion = sum(len(request.reply.token_ids) for request in requests)
        prefix = requests[0].prefix_tokens
        self._metrics.used(asked.model, prompt, prefix, completion)
        exchange.notes |= {
            "model": asked.model,
            "policy": str(requests[0].policy),
            "prompt_tokens": prompt,
            "prefix_tokens": prefix,
            "visual_tokens": int(requests[0].prompt.image_mask.sum()),
            "visual_tokens_read": requests[0].visual_tokens_read,
            "completion_tokens": completion,
            "kv_bytes": sum(one.kv_bytes for one in map(stats_of, requests) if one is not None),
            "prefill_ms": round(sum(one.prefill_s for one in requests) * 1e3, 1),
            "decode_ms": round(max(one.decode_s for one in requests) * 1e3, 1),
            "finish": [run.reason(choice) for choice in range(len(requests))],
            "user": asked.user,
            "cut": run.cut,
        }


@asynccontextmanager
async def _in_time(deadline: float) -> AsyncIterator[None]:
    """Give up what is not done before the deadline.

    Raises:
        ApiError: it was not.
    """
    try:
        async with asyncio.timeout_at(deadline):
            yield
    except TimeoutError:
        raise _too_late() from None


async def _sent(telling: Awaitable[None], deadline: float) -> None:
    """Tell a client, and give it up where it reads so slowly that the deadline is long over.

    Raises:
        GoneError: it was.
    """
    try:
        async with asyncio.timeout_at(deadline + SENDING):
            await telling
    except TimeoutError:
        raise GoneError from None


def _counted(body: Mapping[str, Any], limits: Limits) -> ChatRequest:
    """Read a body of /tokenize, whose answer is one object."""
    asked = chat_request(body, limits)
    if asked.stream:
        raise refused("stream: expected false, as tokens are counted at once, found true", "stream")
    return asked


def _too_late() -> ApiError:
    return ApiError(
        504,
        "expected an answer in time, found none; ask for less, or try again later",
        code="timeout",
    )
