"""Who runs when: candidates take turns, so that a machine's moods meet them all alike."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from avl_runtime.bench.idle import Load


@dataclass(frozen=True, slots=True)
class Run:
    """One run of a candidate; seconds.

    Attributes:
        encode_s: of vision towers, None where there are no pictures or none are encoded.
        prefill_s: up to the first token.
        steps_s: of each decode step.
        cpu_s: process CPU time of the whole run, all threads together.
        tokens: generated, of each sequence.
        others: share of the machine that other programs used meanwhile, None if unknown.
    """

    encode_s: float | None
    prefill_s: float
    steps_s: tuple[float, ...]
    cpu_s: float
    kv_bytes: int
    peak_rss_bytes: int
    tokens: tuple[tuple[int, ...], ...]
    others: float | None = None

    @property
    def total_s(self) -> float:
        """From ready inputs to the last token."""
        return (self.encode_s or 0.0) + self.prefill_s + sum(self.steps_s)


def orders(names: Sequence[str], rounds: int) -> list[list[str]]:
    """The order of each round; another candidate begins every time."""
    starts = [number % len(names) for number in range(rounds)]
    return [[*names[start:], *names[:start]] for start in starts]


def interleave(
    candidates: Mapping[str, Callable[[], Run]],
    repeats: int,
    warm_up: int,
    before: Callable[[], object],
) -> dict[str, list[Run]]:
    """Run every candidate once a round.

    Args:
        repeats: rounds that count.
        warm_up: rounds before them that do not.
        before: called before each run, as to wait for an idle machine.
    """
    found: dict[str, list[Run]] = {name: [] for name in candidates}
    for number, order in enumerate(orders(list(candidates), warm_up + repeats)):
        for name in order:
            before()
            run = candidates[name]()
            if number >= warm_up:
                found[name].append(run)
    return found


def as_run(answer: Mapping[str, Any], before: Load | None, after: Load | None, ticks: float) -> Run:
    """A worker's answer.

    Args:
        before, after: the machine's load around the run.
        ticks: of the load in a second of one processor.
    """
    return Run(
        encode_s=answer["encode_s"],
        prefill_s=answer["prefill_s"],
        steps_s=tuple(answer["steps_s"]),
        cpu_s=answer["cpu_s"],
        kv_bytes=answer["kv_bytes"],
        peak_rss_bytes=answer["peak_rss_bytes"],
        tokens=tuple(tuple(row) for row in answer["tokens"]),
        others=others_share(answer["cpu_s"], before, after, ticks),
    )


def others_share(
    cpu_s: float, before: Load | None, after: Load | None, ticks: float
) -> float | None:
    """Share of the machine that others than a worker used while it ran for `cpu_s` seconds.

    Arguments as for `as_run`; None where the load is not known.
    """
    if before is None or after is None or after.total <= before.total:
        return None
    others = before.share_until(after) - cpu_s * ticks / (after.total - before.total)
    return min(1.0, max(0.0, others))
