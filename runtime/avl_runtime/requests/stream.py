"""A reply while it comes."""

from __future__ import annotations

import threading
from collections.abc import Generator
from types import TracebackType
from typing import Any

from avl_plugins.errors import AvlError, quoted
from avl_runtime.generate.results import Result
from avl_runtime.requests.request import RequestError


class GivenUpError(AvlError):
    """A reply was given up, so that there is no result."""

    def __init__(self) -> None:
        super().__init__(
            "expected a reply that has come to its end, found one that was given up; ask again"
        )


class Stream(Generator[str, None, Result]):
    """Iterated, it gives the reply's text in pieces of whole characters; then there is `result`.

    Nothing runs before the first piece is asked for. Leaving a `with` statement, or `close`, gives
    up what has not been asked for. Threads that share one get every piece once.
    """

    def __init__(self, steps: Generator[str, None, Result]) -> None:
        self._steps = steps
        self._result: Result | None = None
        self._given_up = False
        self._lock = threading.RLock()

    @property
    def result(self) -> Result:
        """The finished reply; what has not been asked for is waited for.

        Raises:
            GivenUpError: the stream was closed, or a failure ended it.
            AvlError: the reply cannot be made.
        """
        for _ in self:
            pass
        if self._result is None:
            raise GivenUpError
        return self._result

    def send(self, value: None) -> str:
        """The next piece.

        Raises:
            RequestError: a value was sent, for which a reply has no use.
            AvlError: the reply cannot be made.
        """
        if value is not None:
            raise RequestError(
                f"expected nothing to send to a reply, found {quoted(value)}; ask for its next "
                "piece with next, or begin another with what you say"
            )
        with self._lock:
            try:
                return next(self._steps)
            except StopIteration as end:
                if end.value is not None:
                    self._result = end.value
                raise StopIteration(self._result) from None

    def throw(self, *error: Any) -> str:
        """Have an exception end the reply."""
        with self._lock:
            return self._steps.throw(*error)

    def close(self) -> None:
        """Give up what has not been asked for."""
        with self._lock:
            self._given_up = True
            self._steps.close()

    def __enter__(self) -> Stream:
        """
        Raises:
            GivenUpError: the reply was given up.
        """
        if self._given_up and self._result is None:
            raise GivenUpError
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
