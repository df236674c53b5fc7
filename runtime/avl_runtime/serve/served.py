"""A package that is served: from what a client asks to requests of the scheduler."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from avl_plugins.errors import AvlError
from avl_plugins.policies import Policy, Refresh
from avl_runtime.async_model import AsyncLVLM
from avl_runtime.generate.call_reader import CallReader
from avl_runtime.generate.options import Options
from avl_runtime.generate.results import Placement, Stats, TokenLogprobs
from avl_runtime.prompts.calls import CallForm
from avl_runtime.requests.request import CancelledError, Request
from avl_runtime.serve.asked.content import Said
from avl_runtime.serve.asked.fields import ChatRequest, kept_as
from avl_runtime.serve.errors import refused
from avl_runtime.serve.limits import Limits
from avl_runtime.serve.pictures import Pictures
from avl_runtime.serve.rows import Need

Cut = Literal["time", "shutdown"]
FINISHES = {"eos": "stop", "stop": "stop"}  # of all else there was no room, or no time


class Served:
    """A model that requests name.

    Attributes:
        name: by which they do.
        model: whose scheduler runs them.
    """

    def __init__(self, name: str, model: AsyncLVLM, limits: Limits) -> None:
        self.name, self.model, self._limits = name, model, limits

    @property
    def context(self) -> int:
        """Tokens of a prompt and its answer together."""
        return self.model.model.package.manifest.dims.max_positions

    @property
    def call_form(self) -> CallForm | None:
        """How the model writes calls of functions, if it does."""
        return self.model.model.processor.call_form

    def need(self, requests: Sequence[Request]) -> Need:
        """How many rows the choices of a request may have at most."""
        dims = self.model.model.package.manifest.dims
        return Need.of(requests, dims, self.model.model.loaded.executor)

    def prepare(self, asked: ChatRequest, pictures: Pictures) -> list[Request]:
        """A request of the scheduler for each choice; pictures are decoded here.

        Args:
            pictures: decodes those of this request.

        Raises:
            AvlError: what was asked cannot be used with this model.
        """
        model = self.model.model
        wrong = kept_as(asked.kv, model.loaded.executor.kv)
        if wrong is not None:
            raise wrong
        policy = model.policy if asked.policy is None else asked.policy
        model.loaded.check(policy)
        said = self._said(asked.said, pictures)
        tools = () if asked.tools is None else asked.tools.told
        prompt = model.processor.encode(said, tools=tools)
        # Looked at here, before pictures are encoded and rows are made of texts.
        most = min(self._limits.prompt or self.context, self.context)
        if len(prompt.input_ids) > most:
            raise refused(
                f"expected a prompt of at most {most} tokens (this model's maximum context length "
                f"is {self.context}), found {len(prompt.input_ids)}; shorten it, or send fewer or "
                "smaller pictures",
                code="context_length_exceeded",
            )
        if asked.placements:
            layers, images = len(model.package.manifest.row_layers), int(prompt.image_mask.sum())
            steps = min(asked.options.max_new_tokens or most, self.context - len(prompt.input_ids))
            self._check_placements(asked, policy, layers * images, steps)
        grammar = asked.format.grammar
        if asked.tools is not None and self.call_form is not None:
            grammar = asked.tools.grammar(model.loaded.grammars, self.call_form, grammar)
        return [
            Request(
                model.loaded,
                prompt,
                policy,
                _seeded(asked, choice),
                return_placements=asked.placements,
                grammar=grammar,
            )
            for choice in range(asked.choices)
        ]

    def _check_placements(
        self, asked: ChatRequest, policy: Policy, places: int, steps: int
    ) -> None:
        """Refuse placements that would take too much memory.

        Args:
            places: image tokens of all layers.
            steps: tokens that may come.

        Raises:
            ApiError: they would.
        """
        every = [one.every for one in policy.actions() if isinstance(one, Refresh)]
        times = 1 + (steps // min(every) if every else 0)
        found = 2 * places * times * asked.choices  # core and parked, a byte each
        if found > self._limits.placements:
            raise refused(
                f"placements: expected at most {self._limits.placements} bytes of them, found "
                f"{found} for {steps} tokens; ask for fewer tokens or choices, or leave it out",
                "placements",
            )

    def _said(self, said: Sequence[Said], pictures: Pictures) -> list[dict[str, object]]:
        return [
            {
                "role": one.role,
                "tool_calls": [call.to_dict() for call in one.calls],
                "tool_call_id": one.answers,
                "content": [
                    {"type": "text", "text": part}
                    if isinstance(part, str)
                    else {"type": "image", "image": pictures.load(part)}
                    for part in one.parts
                ],
            }
            for one in said
        ]


def _seeded(asked: ChatRequest, choice: int) -> Options:
    """Options with a seed of its own for each choice, where the client gave one."""
    options, seed = asked.options, asked.options.seed
    if asked.tools is not None:
        options = dataclasses.replace(options, skip_special_tokens=False)
    return options if seed is None else dataclasses.replace(options, seed=seed + choice)


def stats_of(request: Request) -> Stats | None:
    """What was measured on a request, None where it has not come to its own end."""
    try:
        return request.result.stats
    except AvlError:
        return None


@dataclass(frozen=True, slots=True)
class State:
    """How a choice stands after a step.

    Attributes:
        tokens: that have come.
        prefill_ms, decode_ms: that the prompt took, and the steps since.
        row_bytes, row_bytes_dense: of the rows that it holds, and that dense attention would
            hold, without room for more; None when they have been freed.
        placements: that the step brought.
    """

    tokens: int
    prefill_ms: float
    decode_ms: float
    row_bytes: int | None
    row_bytes_dense: int | None
    placements: tuple[Placement, ...]


@dataclass(frozen=True, slots=True)
class Event:
    """What a step did to a choice.

    Attributes:
        text: that became certain.
        logprobs: of the tokens that came, if they were asked for.
        done: whether it was the last one.
        state: of the choice, if placements were asked for.
    """

    choice: int
    text: str
    logprobs: tuple[TokenLogprobs, ...]
    done: bool
    state: State | None = None


class Run:
    """The choices of one request while they run.

    Attributes:
        name: of the model.
        requests: one for each choice.
        cut: why they were ended before their end, if they were.
    """

    def __init__(self, served: Served, requests: Sequence[Request], asked: ChatRequest) -> None:
        self.requests, self._served = tuple(requests), served
        self.name = served.name
        self._tools = asked.tools
        self.cut: Cut | None = None
        self.left = len(requests)
        self._begun = 0
        self._events: asyncio.Queue[Event] = asyncio.Queue()

    def reason(self, choice: int) -> str:
        """Why a choice ended, as clients are told it."""
        reply = self.requests[choice].reply
        reader = self.reader()
        if reader is not None and reply.finish_reason == "eos":
            reader.push(reply.text, last=True)
            if reader.calls:
                return "tool_calls"
        return FINISHES.get(reply.finish_reason or "", "length")

    def reader(self) -> CallReader | None:
        """What tells calls of functions in a reply; None where none may be called."""
        form = self._served.call_form
        return None if self._tools is None or form is None else self._tools.reader(form)

    def begin(self) -> None:
        """Have the scheduler run them.

        Raises:
            ClosedError: the model was closed.
        """
        loop = asyncio.get_running_loop()
        for choice, request in enumerate(self.requests):
            self._served.model.submit(request, self._teller(loop, choice, request))
            self._begun += 1

    async def next(self) -> Event:
        """What happens next.

        Raises:
            AvlError: what ended a choice before its end.
        """
        event = await self._events.get()
        if event.done:
            self.left -= 1
            error = self.requests[event.choice].error
            if error is not None and not (self.cut and isinstance(error, CancelledError)):
                raise error
        return event

    def stop(self, cut: Cut | None = None) -> None:
        """End what runs, and free its rows, before the next step."""
        self.cut = self.cut or cut
        for request in self.requests[: self._begun]:
            if not request.done:
                self._served.model.cancel(request)

    def _teller(
        self, loop: asyncio.AbstractEventLoop, choice: int, request: Request
    ) -> Callable[[], object]:
        told = placed = 0

        def heard() -> None:  # in the scheduler's thread
            nonlocal told, placed
            fresh = tuple(request.reply.logprobs[told:]) if request.reply.logprobs else ()
            told += len(fresh)
            state = _state(request, placed) if request.trace else None
            placed += len(state.placements) if state else 0
            event = Event(choice, request.fresh, fresh, request.done, state)
            loop.call_soon_threadsafe(self._events.put_nowait, event)

        return heard


def _state(request: Request, placed: int) -> State:
    """How a request stands; asked in the scheduler's thread.

    Args:
        placed: placements that have been told.
    """
    held, dense = (None, None) if request.done else request.sequence.row_bytes()
    fresh = tuple(request.reply.placements[placed:])
    spent = request.prefill_s * 1e3, request.decode_s * 1e3
    return State(len(request.reply.token_ids), *spent, held, dense, fresh)
