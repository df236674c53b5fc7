"""What runs next: chunks of prompts, and decode steps of all sequences that run."""

from __future__ import annotations

import threading
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager

from avl_plugins.errors import AvlError, quoted
from avl_runtime.generate.check import Check
from avl_runtime.generate.results import Result
from avl_runtime.requests.loaded import ClosedError, Loaded
from avl_runtime.requests.readings import Readings
from avl_runtime.requests.request import CancelledError, Request, RequestError


class _DecoderError(Exception):
    """Holds what ended a run of the decoder, and so all requests; not one request's own error."""


@contextmanager
def _decoding() -> Iterator[None]:
    try:
        yield
    except AvlError as error:
        raise _DecoderError(error) from error


@contextmanager
def _its_own(request: Request) -> Iterator[None]:
    """What a request's own rules make of its logits ends that request, and no other."""
    try:
        yield
    except AvlError as error:
        request.end(error)


class Runner:
    """Requests that run together; they come and go between steps.

    Each has a policy, options, a sampler and stop strings of its own. Prompts are read in chunks
    between decode steps, in the order that `Turns` gives, and the first token is chosen as soon as
    its prompt has been read. Where nothing runs, requests that wait begin to decode together, but
    for those with longer prompts; those that the backend has no room for wait until others are
    done. A runner belongs to one thread at a time.
    """

    def __init__(self, loaded: Loaded) -> None:
        self._loaded = loaded
        self._decoder = loaded.decoder()
        self._executor = loaded.executor
        self._readings = Readings(self._executor.chunk)
        self._ready: list[Request] = []  # with a first token
        self._awaited: list[Request] = []  # whom those that are ready wait for
        self._running: list[Request] = []
        self._stepping = threading.Lock()

    @property
    def requests(self) -> tuple[Request, ...]:
        """Those that are not done."""
        return (*self._running, *self._ready, *self._readings.waiting)

    @property
    def running(self) -> tuple[Request, ...]:
        """Those whose prompts have been read."""
        return tuple(self._running)

    def submit(self, request: Request) -> Request:
        """Have a request run.

        Raises:
            RequestError: it is another model's, or was submitted before.
            ClosedError: the model was closed.
        """
        if not isinstance(request, Request):
            raise RequestError(
                f"expected a request, found {quoted(request)}; make one with LVLM.request"
            )
        if request.loaded is not self._loaded:
            raise RequestError(
                "expected a request of this model, found one of another; make it with the model "
                "that shall run it"
            )
        if request.submitted:
            raise RequestError(
                "expected a new request, found one that was submitted before; make another"
            )
        self._loaded.check_open()
        request.submitted = True
        self._readings.add(request, len(request.prompt.input_ids))
        return request

    def run(self, request: Request) -> Generator[str, None, Result]:
        """Run until a request is done; yields its text in pieces of whole characters.

        Given up earlier, it is cancelled.

        Raises:
            AvlError: what ended the request.
        """
        self.submit(request)
        try:
            while not request.done:
                if request in self.step() and request.fresh:
                    yield request.fresh
        finally:
            self.cancel(request)
        return request.result

    def cancel(self, request: Request) -> None:
        """End a request, and free its rows, now; nothing where it is done.

        Raises:
            RequestError: it was not submitted here.
        """
        if not isinstance(request, Request):
            raise RequestError(
                f"expected a request, found {quoted(request)}; pass what add() or submit() gave"
            )
        if request.done:
            return
        if request not in self.requests:
            raise RequestError(
                "expected a request that runs here, found one that was not submitted here; cancel "
                "it where it runs"
            )
        if request in self._running:
            self._running.remove(request)
            request.drop_drafts()
            with self._executor.turn:
                self._decoder.leave(request.sequence, keep=request.kept)
        elif request in self._ready:
            self._ready.remove(request)
        else:
            self._readings.remove(request)
        request.free()
        request.end(CancelledError("the request was cancelled"))

    def step(self) -> list[Request]:
        """Read a chunk of a prompt and run a decode step, as far as there are any.

        Returns:
            Those that ran: `Request.fresh` is what of their text became certain, and some may be
            done.

        Raises:
            RequestError: another thread is in a step.
        """
        if not self._stepping.acquire(blocking=False):
            raise RequestError(
                "expected one thread at a time, found a second one in step(); give each thread a "
                "scheduler, or use AsyncLVLM"
            )
        try:
            self._loaded.check_open()
            with self._executor.turn:
                return self._step()
        except ClosedError as error:
            ended = list(self.requests)
            for request in ended:
                self.cancel(request)
                request.end(error)
            return ended
        finally:
            self._stepping.release()

    def _step(self) -> list[Request]:
        moved = self._read_chunk()
        if moved and moved == [*self.requests] and not moved[0].done:
            return moved  # a lone first token is told before buffers are bound for the second
        try:
            if self._ready and self._may_start():
                return [*moved, *(one for one in self._start(moved) if one not in moved)]
            if self._running:
                return [*moved, *self._decode()]
        except BaseException as error:  # some may have got a token whose row is not whole
            self._end_all([*self._running, *self._ready], error)
            raise
        return moved

    def _read_chunk(self) -> list[Request]:
        """Go on reading a prompt; returns its request if that got its first token, or failed."""
        taken = len(self._running) + len(self._ready) + self._readings.begun
        request = self._readings.next(self._executor.most_sequences - taken)
        if request is None:
            return []
        begun = time.perf_counter()
        try:
            logits = self._readings.read(request)
            if logits is None:
                return []
            request.begin()
            if request.trace:
                request.note(self._decoder.placement(request.sequence))
            with _its_own(request):
                request.take(logits)
            self._readings.remove(request)
        except AvlError as error:
            self._readings.remove(request)
            request.end(error)
            return [request]
        except BaseException as error:
            self._readings.remove(request)
            request.end(error)
            request.free()
            raise
        finally:
            request.prefill_s += time.perf_counter() - begun
        if not self._ready:
            self._awaited = self._readings.before(len(request.prompt.input_ids))
        self._ready.append(request)
        return [request]

    def _may_start(self) -> bool:
        """Whether those that are ready wait for nobody."""
        if self._running or len(self._ready) == self._executor.most_sequences:
            return True
        waiting = self._readings.waiting
        return any(one.done for one in self._ready) or not any(
            one in waiting for one in self._awaited
        )

    def _start(self, moved: list[Request]) -> list[Request]:
        """Have those whose prompts are read join; returns those that this ended.

        Args:
            moved: those whose first tokens have yet to be told.
        """
        begun = time.perf_counter()
        joining = self._ready
        steps = max(one.steps_left for one in (*self._running, *joining))
        try:
            self._decoder.join([one.sequence for one in joining], steps)
        except AvlError as error:
            return self._end_all([*self._running, *joining], error)
        self._ready, self._running = [], [*self._running, *joining]
        spent = (time.perf_counter() - begun) / len(joining)
        for request in joining:
            if request in moved:
                request.prefill_s += spent
            else:  # what has been told of its prompt stays so
                request.decode_s += spent
        self._let_go()
        return []

    def _decode(self) -> list[Request]:
        """Check drafts, and run a step unless every request has got a token by its drafts."""
        begun = time.perf_counter()
        running = left = list(self._running)
        for request in running:
            request.fresh = ""
        try:
            checked = self._check_drafts(running)
            for request, drafted, check in checked:
                steps = request.steps
                with _its_own(request):
                    request.check(drafted, check.logits)
                with _decoding():  # rows that are stored half way are those of a whole batch
                    check.keep(request.steps - steps)
                if request.trace and request.sequence.drafting is not None:
                    request.note(self._decoder.placement(request.sequence))
            if checked:
                begun = self._note_time(running, begun)
                self._let_go()
                left = list(self._running)
            if len(checked) < len(running):
                self._run_step(left)
                self._note_time(left, begun)
        except _DecoderError as error:
            self._end_all(left, error.args[0])
        self._let_go()
        return running

    def _check_drafts(self, running: list[Request]) -> list[tuple[Request, list[int], Check]]:
        """Run the drafts of requests that have some: with these, and what follows each."""
        # One check of all reads weights once.
        complete = any(request.is_drafted for request in running)
        found = [(request, request.drafted(complete)) for request in running]
        asked = [(request, drafted) for request, drafted in found if drafted]
        if not asked:
            return []
        wanted = min(request.reply.reads for request, _ in asked)
        rows = [
            (request.sequence, [request.reply.token_ids[-1], *drafted])
            for request, drafted in asked
        ]
        with _decoding():
            checks = self._decoder.check(rows, wanted, max(one.steps_left for one in running))
        return [(*pair, check) for pair, check in zip(asked, checks, strict=True)]

    def _run_step(self, running: list[Request]) -> None:
        drafting = {one.sequence: one for one in running if one.drafts(len(running))}
        wanted = min(
            one.reply.guesses if one.sequence in drafting else one.reply.reads for one in running
        )
        with _decoding():
            logits = self._decoder.run([one.newest for one in running], wanted, drafting)
        for request, row in zip(running, logits, strict=True):
            if request.sequence in drafting:
                with _its_own(request):
                    request.draft(row)
                continue
            if request.trace and request.sequence.moves_images:
                request.note(self._decoder.placement(request.sequence))
            request.steps += 1
            with _its_own(request):
                request.take(row)

    def _note_time(self, running: list[Request], begun: float) -> float:
        """Count the time since `begun` as decoding, for requests that ran; the time now."""
        now = time.perf_counter()
        for request in running:
            request.decode_s += now - begun
        return now

    def _end_all(self, requests: list[Request], error: BaseException) -> list[Request]:
        """End all that run, and more: a batch that stops half way leaves no cache whole."""
        for request in requests:
            request.end(error)
        self._running, self._ready = [], []
        self._decoder = self._loaded.decoder()
        return requests

    def _let_go(self) -> None:
        """Take those that are done out of the batch."""
        done = [one for one in self._running if one.done]
        if not done:
            return
        self._running = [one for one in self._running if not one.done]
        for request in done:
            if request.error is None:
                request.finish()
            else:
                request.drop_drafts()
        self._decoder.leave_together([(one.sequence, one.kept) for one in done])
