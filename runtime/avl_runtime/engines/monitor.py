"""The builder's own account of its progress, as one bar."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any

from avl_runtime.machine.progress import Progress

UNITS = 100  # of the bar; more would redraw it for nothing


@dataclass(slots=True)
class _Phase:
    name: str
    parent: str | None
    steps: int
    done: int = 0


class Phases:
    """Nested phases, each of a known number of steps, as a share of the whole.

    A phase counts within the step of its parent during which it runs.
    """

    def __init__(self) -> None:
        self._open: dict[str, _Phase] = {}

    def start(self, name: str, parent: str | None, steps: int) -> None:
        self._open[name] = _Phase(name, parent, max(steps, 1))

    def step(self, name: str, number: int) -> None:
        if name in self._open:
            phase = self._open[name]
            phase.done = min(number + 1, phase.steps)

    def finish(self, name: str) -> None:
        self._open.pop(name, None)

    @property
    def over(self) -> bool:
        """Whether no phase is running."""
        return not self._open

    def share(self) -> float:
        """How much is done, 0 to 1."""
        roots = [phase for phase in self._open.values() if phase.parent not in self._open]
        return self._share(roots[0]) if roots else 0.0

    def _share(self, phase: _Phase) -> float:
        inside = [self._share(one) for one in self._open.values() if one.parent == phase.name]
        return min(1.0, (phase.done + max(inside, default=0.0)) / phase.steps)


def make_monitor(trt: Any, label: str) -> Any:
    """An IProgressMonitor of the module `trt` that draws a bar; `label` says what is built.

    The builder calls it from several threads. It never cancels: a build runs in a process of its
    own, which is ended from outside at any time.
    """
    progress = Progress("avl-build", UNITS)
    phases = Phases()
    lock = threading.Lock()

    def draw(share: float) -> None:
        ahead = int(UNITS * share) - progress.done
        if ahead > 0 or not progress.started:
            progress.step(label, max(0, ahead))

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()

        def phase_start(self, name: str, parent: str | None, steps: int) -> None:
            with lock:
                phases.start(name, parent, steps)

        def step_complete(self, name: str, step: int) -> bool:
            with lock:
                phases.step(name, step)
                draw(phases.share())
            return True

        def phase_finish(self, name: str) -> None:
            with lock:
                phases.finish(name)
                if phases.over:  # the builder need not report the last steps one by one
                    draw(1.0)
                    progress.close()

    return Monitor()
