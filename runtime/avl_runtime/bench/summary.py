"""Runs of a candidate to the figures that are reported."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from avl_plugins.policies import Action
from avl_runtime.bench.candidates import Candidate
from avl_runtime.bench.schedule import Run
from avl_runtime.evaluate.cost import Request, placed_rows, request_flops
from avl_runtime.package.dims import Dims

DISTURBED = 0.1  # share of the machine that others may use during a run


@dataclass(frozen=True, slots=True)
class Spread:
    """A measure over all runs: median, extremes and quartiles."""

    median: float
    minimum: float
    quartile_1: float
    quartile_3: float
    maximum: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Of one value or more; quartiles as medians are, between the values next to them."""
        if len(values) == 1:
            return cls(*[float(values[0])] * 5)
        first, median, third = statistics.quantiles(values, n=4, method="inclusive")
        return cls(median, min(values), first, third, max(values))


@dataclass(frozen=True, slots=True)
class Row:
    """What is reported of a candidate; times in milliseconds.

    Attributes:
        name: of the candidate; `runs_on`: its library; `weights`: as they are computed with.
        encode, prefill, decode_step, refresh_step, decode_token, end_to_end: wall time of the
            vision towers, of the prompt up to the first token, of an ordinary decode step and of
            one that reads parked rows too (medians of a run's steps), of all steps together by
            their number, and of everything.
        cpu: process time of a run, all threads together.
        kv_bytes: at the end of a run. peak_rss_bytes: since the process began.
        loaded_rss_bytes: before the first run.
        prefill_flops, decode_flops: by formula, a token (mean) for decode, of the whole batch.
        same_tokens: share of tokens equal to the first candidate's; None if it was asked
            something else.
        disturbed: runs during which others used more than a tenth of the machine.
        step_ms: of each decode step, the median over runs.
        note: what else to know.
        kv, compute: how avl was asked to keep rows, and to multiply prompts; None of others.
    """

    name: str
    runs_on: str
    weights: str
    runs: int
    encode: Spread | None
    prefill: Spread
    decode_step: Spread | None
    refresh_step: Spread | None
    decode_token: Spread | None
    end_to_end: Spread
    cpu: Spread
    kv_bytes: int
    loaded_rss_bytes: int | None
    peak_rss_bytes: int
    prefill_flops: float
    decode_flops: float
    same_tokens: float | None
    disturbed: int | None
    step_ms: tuple[float, ...]
    note: str
    kv: str | None
    compute: str | None


@dataclass(frozen=True, slots=True)
class Loaded:
    """A candidate, and what its worker told when it was ready; see `Row`."""

    candidate: Candidate
    weights: str
    rss_bytes: int | None


def summarize(
    loaded: Loaded, runs: Sequence[Run], dims: Dims, request: Request, batch: int, first: Run
) -> Row:
    """Figures of a candidate; `first` is a run of the first one, to compare tokens with."""
    candidate, actions = loaded.candidate, loaded.candidate.actions
    # Without pictures all are asked the same, whatever a note says of them.
    same_prompt = candidate.same_prompt or not request.visual
    refreshes = refresh_steps(actions, dims, request)
    ordinary = [i for i in range(request.steps) if i not in refreshes]
    read = request.under(actions)
    active, parked = placed_rows(dims, actions, read.visual)
    prefill, steps = request_flops(dims, actions, read, active, parked)
    others = [run.others for run in runs if run.others is not None]

    def spread(value: Callable[[Run], float]) -> Spread:
        return Spread.of([1e3 * value(run) for run in runs])

    def step(places: Sequence[int]) -> Spread | None:
        if not places:
            return None
        return spread(lambda run: statistics.median(run.steps_s[i] for i in places))

    encoded = all(run.encode_s is not None for run in runs)
    return Row(
        name=candidate.name,
        runs_on=candidate.runs_on,
        weights=loaded.weights,
        runs=len(runs),
        encode=spread(lambda run: run.encode_s or 0.0) if encoded else None,
        prefill=spread(lambda run: run.prefill_s),
        decode_step=step(ordinary),
        refresh_step=step(sorted(refreshes)),
        decode_token=spread(lambda run: statistics.fmean(run.steps_s)) if request.steps else None,
        end_to_end=spread(lambda run: run.total_s),
        cpu=spread(lambda run: run.cpu_s),
        kv_bytes=max(run.kv_bytes for run in runs),
        loaded_rss_bytes=loaded.rss_bytes,
        peak_rss_bytes=max(run.peak_rss_bytes for run in runs),
        prefill_flops=batch * prefill,
        decode_flops=batch * statistics.fmean(steps) if steps else 0.0,
        same_tokens=_same(runs[0], first) if same_prompt else None,
        disturbed=sum(share > DISTURBED for share in others) if others else None,
        step_ms=tuple(
            round(1e3 * statistics.median(run.steps_s[i] for run in runs), 4)
            for i in range(request.steps)
        ),
        note=candidate.note if candidate.same_prompt or request.visual else "",
        kv=candidate.job.get("kv"),
        compute=candidate.job.get("compute"),
    )


def refresh_steps(actions: Sequence[Action], dims: Dims, request: Request) -> set[int]:
    """Which decode steps, counted from 0, read parked rows."""
    if not any(placed_rows(dims, actions, request.under(actions).visual)[1]):
        return set()
    reading = [action for action in actions if action.reads_parked]
    return {i for i in range(request.steps) if any(one.due(i + 1) for one in reading)}


def _same(run: Run, other: Run) -> float:
    pairs = [
        mine == theirs
        for row, other_row in zip(run.tokens, other.tokens, strict=True)
        for mine, theirs in zip(row, other_row, strict=True)
    ]
    return sum(pairs) / len(pairs)
