"""Memory for cached rows: whose rows fit may run, and the others wait."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

from avl_runtime.evaluate import cost
from avl_runtime.execute.protocol import Executor
from avl_runtime.kv.growth import room
from avl_runtime.package.dims import Dims
from avl_runtime.requests.request import Request
from avl_runtime.serve.errors import refused

LEAST_SHARE: Final = 8  # of the memory, where weights would leave less


@dataclass(frozen=True, slots=True, eq=False)
class Need:
    """The most rows that the choices of a request can have.

    Attributes:
        choices: that have as many each.
        steps: that may come behind a prompt.
        active, parked: rows of each layer [L].
        row_bytes: of an active row of each layer, and of a parked one.
        state_bytes: that each choice has beside rows.
    """

    choices: int
    steps: int
    active: tuple[int, ...]
    parked: tuple[int, ...]
    row_bytes: tuple[tuple[int, int], ...]
    state_bytes: int = 0

    @classmethod
    def of(cls, requests: Sequence[Request], dims: Dims, executor: Executor) -> Need:
        """What requests need that differ in their seeds alone.

        Tokens that are dropped before a layer reads them, whatever it sees, take no row of it. All
        others have one until the whole prompt has been read, and so has, beside it, what is parked.
        Layers with a state have it twice: a step writes another one than it reads.
        """
        request = requests[0]
        prompt, actions = request.prompt, request.policy.actions()
        steps = min(request.most_steps, dims.max_positions - len(prompt.input_ids))
        given = cost.Request.of(prompt.image_mask, steps, prompt.media).under(actions)
        between = [action for action in actions if action.before is not None]
        entering, _ = cost.placed_rows(dims, between, given.visual)
        _, parked = cost.placed_rows(dims, actions, given.visual)
        active = [given.prompt - given.visual + images + steps for images in entering]
        shape = tuple(active), tuple(parked)
        each = tuple(executor.row_bytes)
        return cls(len(requests), steps, *shape, each, 2 * executor.state_bytes)


def most_bytes(needs: Sequence[Need]) -> int:
    """Of the rows and states of requests to one model that run together, at most.

    Rows of a batch lie side by side, with room for as many as the longest has; while it is made
    anew, one layer is there twice.
    """
    if not needs:
        return 0
    choices, steps = sum(one.choices for one in needs), max(one.steps for one in needs)
    layers: list[int] = []
    for held, apart, (active_bytes, parked_bytes) in zip(
        zip(*(one.active for one in needs), strict=True),
        zip(*(one.parked for one in needs), strict=True),
        needs[0].row_bytes,
        strict=True,
    ):
        rows = max(1, *held)
        more = room(rows, steps) if choices > 1 else 0
        layers.append((rows + more) * active_bytes + max(1, *apart) * parked_bytes)
    rows_bytes = sum(layers) + max(layers, default=0)
    return choices * (rows_bytes + needs[0].state_bytes)


class Rows:
    """Room for the rows of requests that run, given in the order in which they come.

    Attributes:
        limit: bytes of all of them; None: there is none.
    """

    def __init__(self, limit: int | None) -> None:
        self.limit = limit
        self._held: dict[str, list[Need]] = {}
        self._waiting: deque[tuple[str, Need, asyncio.Future[None]]] = deque()

    @property
    def reserved(self) -> int:
        """Bytes that those who have room may take at most."""
        return sum(map(most_bytes, self._held.values()))

    @property
    def waiting(self) -> int:
        """Requests that wait for room."""
        return len(self._waiting)

    @asynccontextmanager
    async def room(self, model: str, need: Need) -> AsyncIterator[None]:
        """Have room for what a request to a model needs, waiting for it.

        Raises:
            ApiError: there is never as much.
        """
        alone = most_bytes([need])
        if self.limit is not None and alone > self.limit:
            raise refused(
                f"expected a request whose rows take at most {self.limit} bytes, found that they "
                f"may take {alone}: {need.choices} x {max(need.active)} tokens, answers included; "
                "ask for fewer tokens or choices, or smaller pictures, or have the server started "
                "with more --kv-bytes",
                code="context_length_exceeded",
            )
        await self._enter(model, need)
        try:
            yield
        finally:
            self._leave(model, need)

    async def _enter(self, model: str, need: Need) -> None:
        if not self._waiting and self._fits(model, need):
            self._held.setdefault(model, []).append(need)
            return
        entry: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((model, need, entry))
        try:
            await entry
        except asyncio.CancelledError:
            if entry.done() and not entry.cancelled():
                self._leave(model, need)  # it was let in just before
            else:
                self._waiting = deque(one for one in self._waiting if one[2] is not entry)
                self._let_in()
            raise

    def _leave(self, model: str, need: Need) -> None:
        self._held[model].remove(need)
        if not self._held[model]:
            del self._held[model]
        self._let_in()

    def _fits(self, model: str, need: Need) -> bool:
        if self.limit is None:
            return True
        others = sum(most_bytes(held) for name, held in self._held.items() if name != model)
        return others + most_bytes([*self._held.get(model, []), need]) <= self.limit

    def _let_in(self) -> None:
        while self._waiting and self._fits(*self._waiting[0][:2]):
            model, need, entry = self._waiting.popleft()
            if not entry.done():
                self._held.setdefault(model, []).append(need)
                entry.set_result(None)


def usual_limit(weights: int, memory: int | None) -> int | None:
    """Bytes for rows where nobody says how many: half of what weights leave of the memory.

    Args:
        weights: bytes that may be loaded at one time.
        memory: of the machine; None where it is not known, and nothing is limited.
    """
    return None if memory is None else max((memory - weights) // 2, memory // LEAST_SHARE)
