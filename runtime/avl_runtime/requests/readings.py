"""Prompts of requests while they are read, a chunk each time."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from avl_runtime.generate.prefill import Reading
from avl_runtime.requests.request import Request
from avl_runtime.requests.turns import Turns


class Readings(Turns[Request]):
    """Requests whose prompts are not read, and how far the reading of each has come."""

    def __init__(self, chunk: int) -> None:
        super().__init__(chunk)
        self._readings: dict[Request, Reading] = {}

    def read(self, request: Request) -> NDArray[np.float32] | None:
        """Read a chunk, or encode a picture; returns the logits [V] behind the whole prompt.

        Raises:
            AvlError: the prompt cannot be read.
        """
        if request not in self._readings:
            self._readings[request] = request.loaded.prefill(
                request.sequence, request.prompt, request.reply.reads, request.most_steps
            )
        try:
            next(self._readings[request])
        except StopIteration as end:
            found: NDArray[np.float32] = end.value
            return found
        return None

    def remove(self, one: Request) -> None:
        """Read no more of a prompt; of one that is read half way the sequence is as it was."""
        super().remove(one)
        reading = self._readings.pop(one, None)
        if reading is not None:
            reading.close()
