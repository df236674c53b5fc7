"""One policy over many cases: scores, bytes, arithmetic, and how far it drifts from dense."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from avl_plugins.policies import Policy, parse
from avl_runtime.evaluate.cases import Case
from avl_runtime.evaluate.cost import Request, placed_rows, request_flops
from avl_runtime.generate.prefill import finished
from avl_runtime.generate.results import Result
from avl_runtime.model import LVLM
from avl_runtime.package.dims import Dims
from avl_runtime.prompts.processor import Prompt
from avl_runtime.requests.loaded import Loaded

MAX_NEW_TOKENS = 64
TIMED_STEPS = 32
MEANS = ("kv", "image_kv", "flops", "first_token", "divergence")
TIMES = ("first_ms", "step_ms")


@dataclass(slots=True)
class Measured:
    """Sums over the cases seen; `mean` gives what is reported.

    Attributes:
        scores: by task, of each case.
        kv, image_kv: shares of a dense cache's bytes, and of image rows at the end of prefill.
        flops: share of what the same tokens cost under dense attention, prefill and decode.
        first_token: 1 where the first token is dense attention's.
        divergence: KL(dense || policy) in nats, a step, over dense attention's own reply from its
            second token on.
        first_ms, step_ms: of requests that do nothing else and take `TIMED_STEPS` steps: from the
            prompt's patches to the first token, and a decode step, in milliseconds. Empty where
            times are not measured.
    """

    policy: str
    scores: dict[str, list[float]] = field(default_factory=dict)
    kv: list[float] = field(default_factory=list)
    image_kv: list[float] = field(default_factory=list)
    flops: list[float] = field(default_factory=list)
    first_token: list[float] = field(default_factory=list)
    divergence: list[float] = field(default_factory=list)
    first_ms: list[float] = field(default_factory=list)
    step_ms: list[float] = field(default_factory=list)

    def add(self, other: Measured) -> None:
        """Take further cases of the same policy in."""
        for task, found in other.scores.items():
            self.scores.setdefault(task, []).extend(found)
        for name in (*MEANS, *TIMES):
            getattr(self, name).extend(getattr(other, name))

    def row(self) -> dict[str, object]:
        """Means, and the standard errors of scores (None of one sample), as a JSON object.

        Of times, where there are some, medians.
        """
        means = {
            name: round(float(np.mean(getattr(self, name))), 5) if getattr(self, name) else None
            for name in MEANS
        }
        for name in TIMES:
            if getattr(self, name):
                means[name] = round(float(np.median(getattr(self, name))), 3)
        scores = {task: round(float(np.mean(found)), 4) for task, found in self.scores.items()}
        errors = {task: _standard_error(found) for task, found in self.scores.items()}
        return {"policy": self.policy, "scores": scores, "standard_errors": errors, **means}


def measure(
    model: LVLM,
    policies: Iterable[str],
    cases: Iterable[Case],
    *,
    drift: bool = True,
    times: bool = False,
) -> list[Measured]:
    """Run every case under every policy, greedily, with the package's penalties and bans.

    Args:
        drift: whether first tokens and divergence are measured, by a second run of each.
        times: whether times are, by a further run of each; of a case policies come one behind the
            other, so that all have their share of whatever else the machine does.

    Raises:
        AvlError: a policy or a picture cannot be used.
    """
    found = [Measured(str(parse(policy))) for policy in policies]
    loaded = model.loaded
    for case in cases:
        prompt = loaded.processor.encode(case.prompt, case.images)
        reply = model.generate(
            case.prompt,
            case.images,
            policy="dense",
            max_new_tokens=MAX_NEW_TOKENS,
            temperature=0,
            return_logits=True,
            return_placements=True,
        )
        for measured in found:
            policy = parse(measured.policy)
            result, logits = reply, reply.logits if drift else None
            if policy.actions():
                result = model.generate(
                    case.prompt,
                    case.images,
                    policy=measured.policy,
                    max_new_tokens=MAX_NEW_TOKENS,
                    temperature=0,
                    return_placements=True,
                )
                if drift:
                    logits = forced_logits(loaded, prompt, policy, reply.token_ids)
            _note(measured, model.package.manifest.dims, case, prompt, policy, result)
            if times:
                _time(measured, model, case)
            if reply.logits is not None and logits is not None:
                same = reply.logits[0].argmax() == logits[0].argmax()
                measured.first_token.append(float(same))
                if len(logits) > 1:
                    measured.divergence.append(_divergence(reply.logits[1:], logits[1:]))
    return found


def _time(measured: Measured, model: LVLM, case: Case) -> None:
    """Time a request of its own, which hands out no placements and no logits."""
    stats = model.generate(
        case.prompt,
        case.images,
        policy=measured.policy,
        max_new_tokens=TIMED_STEPS + 1,
        min_new_tokens=TIMED_STEPS + 1,
        temperature=0,
    ).stats
    measured.first_ms.append(stats.prefill_ms)
    measured.step_ms.append(stats.decode_ms_per_token)


def forced_logits(
    loaded: Loaded, prompt: Prompt, policy: Policy, tokens: tuple[int, ...]
) -> NDArray[np.float32]:
    """Logits [T, V] of a reply that is given: what a policy would have said at each step."""
    sequence, decoder = loaded.sequence(policy), loaded.decoder()
    logits = [finished(loaded.prefill(sequence, prompt))]
    steps = len(tokens) - 1
    decoder.join([sequence], max(1, steps))
    # The decoder writes every step's logits into the same buffer.
    logits += [decoder.run([token])[0].copy() for token in tokens[:steps]]
    return np.stack(logits)


def _note(
    measured: Measured, dims: Dims, case: Case, prompt: Prompt, policy: Policy, result: Result
) -> None:
    measured.scores.setdefault(case.task, []).append(case.score(result.text))
    measured.kv.append(result.stats.kv_bytes / result.stats.kv_bytes_dense)
    placed = result.placements[0]
    if placed.core.size:
        measured.image_kv.append(float((placed.core | placed.parked).mean()))
    measured.flops.append(flops_share(dims, prompt, policy, result))


def flops_share(dims: Dims, prompt: Prompt, policy: Policy, result: Result) -> float:
    """Arithmetic of a reply to `prompt` over that of dense attention for the same tokens.

    Args:
        result: with placements.
    """
    request = Request.of(prompt.image_mask, result.stats.new_tokens - 1, prompt.media)
    placed, actions = result.placements[0], policy.actions()
    rows = placed.core.sum(1).tolist(), placed.parked.sum(1).tolist()
    read = request.under(actions)
    prefill, steps = request_flops(dims, actions, read, *rows, placed.rows or None)
    dense_prefill, dense_steps = request_flops(
        dims, (), request, *placed_rows(dims, (), request.visual)
    )
    again = result.stats.steps_again / len(steps) if steps else 0.0
    return (prefill + (1 + again) * sum(steps)) / (dense_prefill + sum(dense_steps))


def _standard_error(found: Sequence[float]) -> float | None:
    """Of the mean of samples that were drawn by themselves."""
    if len(found) < 2:
        return None
    return round(float(np.std(found, ddof=1)) / math.sqrt(len(found)), 5)


def _divergence(dense: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    mean = float(divergences(dense, other).mean())
    return mean if math.isfinite(mean) else math.inf


def divergences(exact: NDArray[np.float32], other: NDArray[np.float32]) -> NDArray[np.float64]:
    """KL(exact || other) of each row of logits [T, V], in nats; [T]."""
    p, q = log_softmax(exact), log_softmax(other)
    kl: NDArray[np.float64] = (np.exp(p) * (p - q)).sum(1)
    return kl


def log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    wide = logits.astype(np.float64)
    wide -= wide.max(1, keepdims=True)
    shifted: NDArray[np.float64] = wide - np.log(np.exp(wide).sum(1, keepdims=True))
    return shifted
