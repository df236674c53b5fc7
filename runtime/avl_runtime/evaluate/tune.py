"""The cheapest policy whose answers to one's own questions are good enough.

Successive halving (arXiv 1502.07943): all policies are asked a few questions, the better half of
them twice as many, and so on until those that are left have been asked all.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from avl_plugins.errors import AvlError, PolicyError
from avl_plugins.policies import parse
from avl_runtime.evaluate.cases import Case
from avl_runtime.evaluate.measure import Measured, measure
from avl_runtime.model import LVLM

Cost = Literal["kv", "flops"]
COSTS: tuple[Cost, ...] = ("kv", "flops")

FIRST = 8  # questions that every policy is asked
LEFT = 4  # policies that are asked all questions, if as many hold
DRAWS = 2000  # of the bootstrap
INTERVAL = (0.025, 0.975)

_SHARES = (0.5, 0.25, 0.11)
USUAL = (
    *(f"fastv:keep={keep}" for keep in (0.75, *_SHARES)),
    *(f"avl:keep={keep},core={keep * 0.6:.2g}" for keep in (0.75, *_SHARES)),
    "avl:refresh=8",
    "avl:core=0.1,refresh=8",
    "avl:keep=0.25,core=0.1,refresh=8",
    "avl+fastv",
    "avl:keep=0.25+fastv:keep=0.5",
    *(f"{name}:keep={keep}" for name in ("divprune", "mmtok") for keep in _SHARES),
    *(f"{name}:keep={keep}" for name in ("snapkv", "vlcache") for keep in (0.5, 0.25, 0.1)),
    *(f"zipvl:tau={tau}" for tau in (0.975, 0.9)),
    "pyramidkv:keep=0.25",
    "divprune:keep=0.5+avl:core=0.3",
    "divprune:keep=0.5+snapkv:keep=0.5",
    "pyramiddrop",
    "sparsevlm",
)


class TuneError(AvlError):
    """Nothing can be found out by these questions."""


@dataclass(frozen=True, slots=True)
class Trial:
    """What is known of a policy.

    Attributes:
        cases: questions that it was asked.
        quality: its scores over dense attention's on the same questions, the mean over metrics by
            how many questions have them; low and high are the ends of the interval that holds it
            in 95 of 100 drawings of as many questions.
        kv, flops: shares of what dense attention takes.
    """

    policy: str
    cases: int
    quality: float
    low: float
    high: float
    kv: float
    flops: float

    def cost(self, of: Cost) -> tuple[float, float]:
        """What is to be small, and what decides between equals."""
        return (self.kv, self.flops) if of == "kv" else (self.flops, self.kv)


def usual(model: LVLM) -> list[str]:
    """Policies to try, without those that a package cannot serve."""
    found = []
    for text in USUAL:
        try:
            model.loaded.check(parse(text))
        except PolicyError:
            continue
        found.append(text)
    return found


def tune(
    model: LVLM,
    policies: Iterable[str],
    cases: Sequence[Case],
    least: float,
    cost: Cost,
    told: Callable[[int, int], None] = lambda questions, policies: None,
) -> list[Trial]:
    """Try policies; the cheapest first.

    Args:
        least: the lowest quality that is good enough.
        told: called before each round with how many questions are asked in all, and of how many
            policies.

    Raises:
        TuneError: dense attention answers none of the questions.
        AvlError: a policy or a picture cannot be used.
    """
    order = np.random.default_rng(0).permutation(len(cases))
    alive = [one for one in dict.fromkeys(str(parse(text)) for text in policies) if one != "dense"]
    seen = {policy: Measured(policy) for policy in ("dense", *alive)}
    tasks: list[str] = []
    found: dict[str, Trial] = {}
    for size in rounds(len(cases)):
        new = [cases[index] for index in order[len(tasks) : size]]
        told(size, len(alive))
        tasks += [case.task for case in new]
        for one in measure(model, ("dense", *alive), new, drift=False):
            seen[one.policy].add(one)
        last = size == len(cases)
        if not last and not any(map(any, seen["dense"].scores.values())):
            continue  # nothing is known yet: all are asked more
        for policy in ("dense", *alive):
            found[policy] = judge(seen[policy], seen["dense"])
        if not last:
            alive = better_half([found[policy] for policy in alive], least, cost)
    return sorted(found.values(), key=lambda trial: (*trial.cost(cost), trial.policy))


def rounds(count: int) -> list[int]:
    """Questions asked by the end of each round."""
    sizes = [count]
    while sizes[-1] > FIRST:
        sizes.append(max(FIRST, math.ceil(sizes[-1] / 2)))
    return sizes[::-1]


def better_half(trials: Sequence[Trial], least: float, cost: Cost) -> list[str]:
    """Those that are asked more: the cheapest that seem to hold, then the best of the others.

    Whatever surely does not hold is left out.
    """
    able = [one for one in trials if one.high >= least]
    holding = sorted((one for one in able if one.quality >= least), key=lambda one: one.cost(cost))
    others = sorted((one for one in able if one.quality < least), key=lambda one: -one.quality)
    return [one.policy for one in (*holding, *others)][: max(LEFT, math.ceil(len(trials) / 2))]


def chosen(trials: Sequence[Trial], least: float, *, sure: bool) -> Trial:
    """The cheapest of `tune`'s that was asked all questions and holds; dense attention does.

    Args:
        sure: whether the lower end of its interval has to hold.
    """
    most = max(one.cases for one in trials)
    return next(
        one
        for one in trials
        if one.policy == "dense"
        or (one.cases == most and (one.low if sure else one.quality) >= least)
    )


def judge(measured: Measured, dense: Measured) -> Trial:
    """A policy beside dense attention on the same questions, as far as both were asked them.

    Raises:
        TuneError: dense attention answers none of them.
    """
    pairs = []
    for task, scores in measured.scores.items():
        own, full = np.array(scores), np.array(dense.scores[task][: len(scores)])
        if full.any():
            pairs.append((own, full))
    if not pairs:
        raise TuneError(
            "expected questions that dense attention answers at least in part, found that it "
            "scores 0 on all of them; look at the answers and metrics of --data"
        )
    counts = [len(own) for own, _ in pairs]
    weights = [count / sum(counts) for count in counts]
    generator = np.random.default_rng(0)
    drawn = np.zeros(DRAWS)
    for (own, full), weight in zip(pairs, weights, strict=True):
        rows = generator.integers(len(own), size=(DRAWS, len(own)))
        whole = full[rows].sum(1)
        # A draw of questions that nobody answers says nothing: it is as good as dense.
        ratios = np.divide(own[rows].sum(1), whole, out=np.ones(DRAWS), where=whole > 0)
        drawn += weight * ratios
    quality = sum(
        weight * float(own.sum() / full.sum())
        for (own, full), weight in zip(pairs, weights, strict=True)
    )
    low, high = map(float, np.quantile(drawn, INTERVAL))
    if measured is not dense and all((own == full).all() for own, full in pairs):
        # What has not happened in n questions happens in fewer than 3/n of all (rule of three).
        low = max(0.0, 1 - 3 / sum(counts))
    total = len(measured.kv)
    means = (float(np.mean(found)) for found in (measured.kv, measured.flops))
    return Trial(measured.policy, total, quality, low, high, *means)


def table(trials: Sequence[Trial], least: float, picked: Trial) -> str:
    """One line a policy, the cheapest first."""
    most = max(one.cases for one in trials)
    lines = [
        "| policy | questions | quality | 95 % interval | total KV | FLOPs | |",
        "|---|---|---|---|---|---|---|",
    ]
    for one in trials:
        said = "chosen" if one is picked else ""
        if one.cases < most:
            said = "left out"
        elif one.quality < least:
            said = "too low"
        lines.append(
            f"| `{one.policy}` | {one.cases} | {one.quality:.3f} | {one.low:.3f} to {one.high:.3f} "
            f"| {one.kv:.0%} | {one.flops:.0%} | {said} |"
        )
    return "\n".join(lines)


def as_json(trial: Trial) -> dict[str, Any]:
    """A trial as a JSON object."""
    numbers = ("quality", "low", "high", "kv", "flops")
    rounded = {name: round(getattr(trial, name), 5) for name in numbers}
    return {"policy": trial.policy, "cases": trial.cases, **rounded}
