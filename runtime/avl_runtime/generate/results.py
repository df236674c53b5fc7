"""What a generation gives back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from avl_runtime.vision import Cells

FinishReason = Literal["eos", "length", "stop"]


@dataclass(frozen=True, slots=True)
class DeviceBytes:
    """What a backend holds in a device's memory, by what it is for, and parked rows it does not.

    Weights are what loading the engines took. Scratch is everything else that was asked for:
    activations, outputs, book-keeping, inputs of a step.
    """

    weights: int
    active: int
    parked: int
    scratch: int
    parked_on_host: int


@dataclass(frozen=True, slots=True)
class Logprob:
    """A token, its text by itself, and the natural logarithm of its probability."""

    token_id: int
    text: str
    logprob: float


@dataclass(frozen=True, slots=True)
class TokenLogprobs(Logprob):
    """A token of a reply, and the likeliest ones in its place, the likeliest first.

    Probabilities are the model's own: of the logits before any sampling rule.
    """

    top: tuple[Logprob, ...]


@dataclass(frozen=True, slots=True)
class Drafts:
    """How many tokens a source drafted for a reply, and how many of them the model accepted."""

    source: str
    drafted: int
    accepted: int


@dataclass(frozen=True, slots=True)
class Stats:
    """Measured on the request itself; times are wall time in milliseconds.

    `kv_bytes` are the bytes of the live KV arrays, and of the states of layers that keep one, when
    the last token was made, and `kv_bytes_dense` what dense attention would hold at the same point.
    In a batch both are the
    sequence's equal share. `device_bytes`, of all conversations that are alive, is None where
    caches are in the host's memory. `seed` is that of the draws, or the one asked for; None where
    nothing is drawn. `kernels` names the CPU kernels that ran, by their instructions, what they
    multiplied in bf16, and rows that have none; None where none of avl's own ran. `drafts` has an
    entry for each source that was asked for drafts. `kv` is the type of the cache's rows.
    `prefix_tokens` counts tokens at the prompt's begin whose rows an earlier prompt has left; under
    a policy that drops image tokens between layers those of the layers before. `visual_tokens_read`
    are those of the prompt's visual tokens that the decoder was given. `steps_again` counts decode
    steps that a policy had computed a second time.
    """

    policy: str
    backend: str
    prompt_tokens: int
    visual_tokens: int
    new_tokens: int
    prefill_ms: float
    decode_ms_per_token: float
    kv_bytes: int
    kv_bytes_dense: int
    peak_rss_bytes: int
    device_bytes: DeviceBytes | None = None
    seed: int | None = None
    drafts: tuple[Drafts, ...] = ()
    kernels: str | None = None
    kv: str | None = None
    prefix_tokens: int = 0
    visual_tokens_read: int = 0
    steps_again: int = 0

    @property
    def drafted(self) -> int:
        """Tokens that all sources drafted."""
        return sum(one.drafted for one in self.drafts)

    @property
    def accepted(self) -> int:
        """Drafted tokens that became part of the reply."""
        return sum(one.accepted for one in self.drafts)


@dataclass(frozen=True, slots=True)
class Placement:
    """Where image tokens are from decode step `step` on (0: since prefill), in prompt order.

    core, parked: [layers, image tokens] bool, of the layers that keep rows. A token that is neither
    is dropped (minor). Where KV heads hold different ones, core is what one head at least holds.
    rows: of each of these layers, active rows of a KV head, text too.
    """

    step: int
    core: NDArray[np.bool_]
    parked: NDArray[np.bool_]
    rows: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Result:
    """A finished generation. `token_ids` holds the end-of-sequence token if one was generated.

    `logits` is [new tokens, vocab] float32, before any sampling rule, if asked for. `visuals` tells
    what the image tokens of `placements` show, one entry for each picture and video of the
    conversation, and `dropped_before` [image tokens] before which layer a prompt dropped each: 0
    before the decoder, -1 before none. `logprobs` has an entry for each of `token_ids`, if asked
    for.
    """

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    logits: NDArray[np.float32] | None
    stats: Stats
    placements: tuple[Placement, ...]
    visuals: tuple[Cells, ...]
    logprobs: tuple[TokenLogprobs, ...] | None = None
    dropped_before: NDArray[np.int16] | None = None
