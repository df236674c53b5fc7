"""`AsyncLVLM`: one model for many coroutines, whose requests decode together."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Unpack

from avl_plugins.errors import AvlError
from avl_runtime.generate.keywords import AskKeywords
from avl_runtime.generate.results import Result
from avl_runtime.model import LVLM
from avl_runtime.prompts.messages import Said
from avl_runtime.requests.loaded import ClosedError
from avl_runtime.requests.request import Request, RequestError
from avl_runtime.requests.scheduler import Scheduler
from avl_runtime.requests.stream import GivenUpError
from avl_runtime.vision.load.images import ImageLike
from avl_runtime.vision.load.videos import VideoLike


class AsyncLVLM:
    """As `LVLM`, for servers: `generate` is awaited, `stream` iterated with `async for`.

    A thread runs one scheduler, in which all requests that there are decode together. A task that
    is cancelled, or an iterator that is closed, ends its request and frees its rows.
    """

    def __init__(self, model: LVLM) -> None:
        """
        Args:
            model: closed with this one.
        """
        self.model = model
        self._calls: queue.SimpleQueue[Callable[[], object] | None] = queue.SimpleQueue()
        self._scheduler = Scheduler(model)
        self._told: dict[int, Callable[[], object]] = {}  # by a request's id, who hears of it
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="avl-scheduler", daemon=True)
        self._thread.start()

    @classmethod
    def load(cls, folder: str | Path, **options: Any) -> AsyncLVLM:
        """Load a package; arguments as for `LVLM.load`.

        Raises:
            AvlError: the package, the backend or the policy cannot be used, with the reason.
        """
        return cls(LVLM.load(folder, **options))

    @property
    def alive(self) -> bool:
        """Whether requests are run: it is open, and its thread goes on."""
        return not self._closed and self._thread.is_alive()

    @property
    def requests(self) -> int:
        """Requests that are not done."""
        return len(self._scheduler.requests)

    async def generate(
        self,
        prompt: Said,
        images: Sequence[ImageLike] | None = (),
        videos: Sequence[VideoLike] | None = (),
        **keywords: Unpack[AskKeywords],
    ) -> Result:
        """Generate a whole reply; arguments as for `LVLM.generate`.

        Raises:
            AvlError: the prompt, an image, the policy or an option cannot be used.
        """
        stream = self.stream(prompt, images, videos, **keywords)
        async for _ in stream:
            pass
        return stream.result

    def stream(
        self,
        prompt: Said,
        images: Sequence[ImageLike] | None = (),
        videos: Sequence[VideoLike] | None = (),
        **keywords: Unpack[AskKeywords],
    ) -> AsyncStream:
        """Generate a reply, told while it comes; arguments as for `LVLM.generate`.

        The prompt is looked at when the first piece is asked for.
        """

        def request() -> Request:
            return self.model.request(prompt, images, videos, **keywords)

        return AsyncStream(self, request)

    async def close(self) -> None:
        """End all requests and give back what loading took."""
        if not self._closed:
            self._closed = True
            self._calls.put(None)
            await asyncio.to_thread(self._thread.join)
            await asyncio.to_thread(self.model.close)  # which may wait for a disk

    async def __aenter__(self) -> AsyncLVLM:
        """
        Raises:
            ClosedError: the model was closed.
        """
        if self._closed:
            raise ClosedError
        self.model.loaded.check_open()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    def submit(self, request: Request, heard: Callable[[], object]) -> None:
        """Have a request run; `heard` is called in the scheduler's thread after its steps.

        Raises:
            ClosedError: the model was closed.
        """
        if self._closed:
            raise ClosedError

        def begin() -> None:
            try:
                self._scheduler.submit(request)
            except AvlError as error:
                request.end(error)
                self._tell(request, heard)
            else:
                self._told[id(request)] = heard

        self._calls.put(begin)

    def cancel(self, request: Request) -> None:
        """End a request, and free its rows, before the next step."""
        self._calls.put(lambda: self._end(request))

    def _end(self, request: Request, error: AvlError | None = None) -> None:
        self._scheduler.cancel(request)
        if error is not None:
            request.end(error)
        heard = self._told.pop(id(request), None)
        if heard is not None:
            self._tell(request, heard)

    def _work(self) -> None:
        """Run what there is; wait where there is nothing."""
        while True:
            try:
                call = self._calls.get(block=not self._scheduler.requests)
            except queue.Empty:
                self._step()
                continue
            if call is None:
                for request in self._scheduler.requests:
                    self._end(request, ClosedError())
                return
            call()

    def _step(self) -> None:
        waiting = self._scheduler.requests
        try:
            moved = self._scheduler.step()
        except BaseException as error:  # a fault of ours ends these requests, not the thread
            moved = [one for one in waiting if one.done] or list(waiting)
            for request in moved:
                self._scheduler.cancel(request)
                request.end(error)
        for request in moved:
            heard = self._told.get(id(request))
            if request.done:
                self._told.pop(id(request), None)
            if heard is not None:
                self._tell(request, heard)

    def _tell(self, request: Request, heard: Callable[[], object]) -> None:
        try:
            heard()
        except RuntimeError:  # its event loop was closed: nobody waits for it any more
            self._told.pop(id(request), None)
            self._scheduler.cancel(request)


class AsyncStream(AsyncIterator[str]):
    """Iterated with `async for`, it gives the reply's text in pieces; then there is `result`.

    It belongs to the event loop in which it was first iterated; the tasks there may share it.
    """

    def __init__(self, model: AsyncLVLM, make: Callable[[], Request]) -> None:
        self._model, self._make = model, make
        self._request: Request | None = None
        self._beginning = asyncio.Lock()
        self._closed = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._pieces: asyncio.Queue[str | None] = asyncio.Queue()

    @property
    def result(self) -> Result:
        """The finished reply.

        Raises:
            AvlError: what ended it, or that it was given up, or has not come to its end.
        """
        done = self._request is not None and self._request.done
        if self._closed and not done:
            raise GivenUpError
        if self._request is None:
            raise RequestError(
                "expected a reply that has come to its end, found one not begun; iterate it first"
            )
        if not done:
            raise RequestError(
                "expected a reply that has come to its end, found one that still runs; iterate it "
                "to its end"
            )
        return self._request.result

    async def __anext__(self) -> str:
        loop = asyncio.get_running_loop()
        if self._loop is None:
            self._loop = loop
        elif self._loop is not loop:
            raise RequestError(
                "expected a reply in the event loop in which it began, found it in another; ask "
                "again in this one"
            )
        async with self._beginning:
            if self._request is None and not self._closed:
                await self._begin(loop)
            if self._closed:
                raise StopAsyncIteration
        try:
            piece = await self._pieces.get()
        except asyncio.CancelledError:
            # Tasks that share it hear of an error: a reply cut must not look like one that ended.
            if self._request is not None and not self._request.done:
                self._model.cancel(self._request)
            raise
        if piece is None:
            self._pieces.put_nowait(None)  # for whoever asks again
            if self._request is not None and self._request.error is not None:
                raise self._request.error
            raise StopAsyncIteration
        return piece

    async def aclose(self) -> None:
        """Give up what has not been asked for."""
        self._closed = True
        if self._request is not None and not self._request.done:
            self._model.cancel(self._request)

    async def _begin(self, loop: asyncio.AbstractEventLoop) -> None:
        request = await asyncio.to_thread(self._make)
        if self._closed:  # meanwhile
            return

        def heard() -> None:
            pieces = [request.fresh] if request.fresh else []
            if request.done:
                pieces.append("")
            loop.call_soon_threadsafe(self._take, pieces)

        self._model.submit(request, heard)
        self._request = request

    def _take(self, pieces: list[str]) -> None:
        for piece in pieces:
            self._pieces.put_nowait(piece or None)
