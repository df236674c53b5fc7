"""Which logits the host reads, said to the kernel of LogitsLinear.

Greedy decoding reads the largest logit of a step alone, and most chunks of a prompt none. Graphs
have no word for that, so the host says it for the runs of its thread.
"""

from __future__ import annotations

from types import TracebackType

from avl_plugins.cpu.host import Host
from avl_plugins.logits import Logits


class Wanted:
    """Runs inside the `with` statement, of this thread, may leave out what is not read."""

    __slots__ = ("_host", "_logits")

    def __init__(self, host: Host | None, logits: Logits) -> None:
        """
        Args:
            host: None where there is no library, and all are computed.
        """
        self._host, self._logits = host, logits

    def __enter__(self) -> None:
        if self._host is not None:
            self._host.want(self._logits)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._host is not None:
            self._host.want(Logits.ALL)
