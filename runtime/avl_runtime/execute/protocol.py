"""What the runtime asks of a backend, and of what runs its decoder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from avl_plugins.errors import AvlError
from avl_plugins.logits import Logits
from avl_plugins.policies import Action
from avl_runtime.execute.check import Checked, Drafted
from avl_runtime.kv.cache import Floats, Ints, NewRows, SegmentCache
from avl_runtime.kv.sight import Masses
from avl_runtime.kv.standing import Standing
from avl_runtime.vision import Kind

GPUS = ("ort-cuda", "tensorrt", "tensorrt-rtx")  # backends that need one
BACKENDS = ("auto", "ort-cpu", *GPUS)
PARKS = ("device", "host")  # where parked rows lie between refreshes
# How cached rows are kept; auto: as the package computes. The last have parked rows in fewer bits.
KV = ("auto", "fp32", "fp16", "int8", "int8-int4", "int8-int2")
COMPUTES = ("auto", "fp32", "bf16")  # what many rows are multiplied in on a CPU (`host.compute`)


class BackendError(AvlError):
    """A backend is unknown, not available, or cannot load a package."""


class PromptTooLongError(AvlError):
    """A conversation does not fit into the model's context, or into what engines take."""


class Backend(Protocol):
    """Graphs of one package, loaded.

    Attributes:
        dtype: of the rows that the host hands over.
    """

    @property
    def name(self) -> str: ...

    @property
    def dtype(self) -> np.dtype[Any]: ...

    def encode(self, kind: Kind, inputs: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        """Run an encoder on one picture's or video's `Media.inputs`.

        Returns what `Manifest.encoded` names: features [..., C], for a decoder with deepstack
        layers [K, tokens, C], and in packages that tell it attention [..., 3].
        """
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Chunk:
    """New rows of a sequence on their way through a segment.

    hidden [n, C], positions [n] in the conversation, position_ids [axes, n] for RoPE, deepstack
    [k, n, C] for the segment's k deepstack layers, ends [n] the first positions behind them that
    they do not attend to, standing of the conversation's tokens where attention is biased.
    """

    hidden: NDArray[Any]
    positions: Ints
    position_ids: Ints
    deepstack: NDArray[Any]
    ends: Ints
    standing: Standing | None = None

    @property
    def row_ends(self) -> Ints:
        """[n], how many of these rows each attends to."""
        return self.positions.searchsorted(self.ends)

    def between(self, begin: int, end: int) -> Chunk:
        """The rows from `begin` to `end` - 1."""
        return self.at(slice(begin, end))

    def at(self, part: slice | Ints) -> Chunk:
        """Some of the rows, by a slice or their indices."""
        return replace(
            self,
            hidden=self.hidden[part],
            positions=self.positions[part],
            position_ids=self.position_ids[:, part],
            deepstack=self.deepstack[:, part],
            ends=self.ends[part],
        )


class Pass(Protocol):
    """A run of a segment over a chunk, with all rows that its sequence holds.

    Attributes:
        output: [n, C] hidden states, or of the last segment [1, V] logits of the last row.
    """

    @property
    def output(self) -> NDArray[Any]: ...

    @property
    def rows(self) -> tuple[NewRows, ...]:
        """Planes of the new rows, which stay as they are; only where `Executor.shares`."""
        ...

    @property
    def states(self) -> list[NDArray[Any]]:
        """What layers with a state made of theirs, [1, ...] each; only where `Executor.shares`."""
        ...

    def masses(self) -> Masses:
        """Attention that keys received, of one sequence, weighted by the run's row weights."""
        ...

    def store(self, mass: Floats | None) -> None:
        """Add the new rows to the cache, with an initial H2O mass [L, 1, Hkv, n] or zeros."""
        ...


class Member(Protocol):
    """What a batch asks of a sequence whose prompt has been read."""

    @property
    def actions(self) -> Sequence[Action]: ...

    @property
    def evicts(self) -> bool:
        """Whether an action ranks text rows, so that text rows' attention is counted."""
        ...

    @property
    def image_mask(self) -> NDArray[np.bool_]:
        """[tokens so far], which positions hold image tokens."""
        ...

    @property
    def image_tokens(self) -> int:
        """How many image tokens the decoder was given, those dropped since included."""
        ...

    @property
    def text_after_image(self) -> int:
        """How many text tokens there are behind the first image token."""
        ...

    @property
    def evictable_mask(self) -> NDArray[np.bool_]:
        """[tokens so far], which positions hold text behind the first image token."""
        ...


@dataclass(slots=True, eq=False)
class Step:
    """A decode step's inputs, for B sequences that are one token ahead of their caches.

    Attributes:
        hidden: [B, C] embeddings of the newest tokens.
        position_ids: [1, B], the same on each axis of RoPE, as text has it.
        positions: [B], the tokens' positions in their conversations.
        due: for each sequence, what decides after the step.
        reads_parked: for each sequence, whether the step reads its parked rows.
        logits: which of them somebody reads.
        standing: of the conversations' tokens, where attention is biased.
    """

    hidden: NDArray[Any]
    position_ids: Ints
    positions: Ints
    due: Sequence[Sequence[Action]]
    reads_parked: Sequence[bool]
    logits: Logits
    standing: Standing | None = None


class Batch(Protocol):
    """Sequences that decode together.

    Attributes:
        caches: of each segment, all sequences in one.
    """

    caches: list[SegmentCache]

    def run(self, step: Step) -> NDArray[np.float32]:
        """Run all segments; logits [B, V] of the tokens that follow.

        What `did` names is done, new rows with it where it names everything; the rest is the
        caller's: `masses`, moves in `caches`, `append`.
        """
        ...

    def did(self, segment: int, seq: int, action: Action) -> bool:
        """Whether the last step has carried out an action on a segment's rows by itself.

        Only for actions and rankings that the kernel declares.
        """
        ...

    def masses(self, segment: int) -> Masses:
        """Attention of the last step, if something was due that reads it."""
        ...

    def append(self, segment: int, steps: int) -> None:
        """Add the last step's rows to the cache, unless the step has.

        Of sequences whose policy ranks text, the step's attention is added to what their rows have
        received.

        Args:
            steps: how many more rows may come.
        """
        ...

    def evict(self, segment: int, seq: int, action: Action) -> bool:
        """Carry out an action on a sequence's text rows, behind `append`; whether it has been.

        Only for actions that the kernel declares.
        """
        ...

    def check(self, drafted: Drafted, steps: int) -> Checked:
        """Run several new rows of one sequence, or of all; see `Executor.most_answers`.

        Args:
            steps: how many more rows may come.
        """
        ...


class Executor(Protocol):
    """Runs a package's decoder on one backend, and says where its caches lie.

    Attributes:
        chunk: new rows that a pass takes at most.
        most_rows: rows that a cache takes at most, None for any number.
        most_sequences: that a batch takes at most.
        most_answers: rows of a sequence that a batch may `check` at once; 1 where graphs give the
            last one's logits alone, or layers keep a state.
        turn: held while something runs or rows move, where threads must take turns; reentrant.
        dtype: of rows as the host hands them over.
        kernels: which kernels of avl's own run on a CPU, for people; None: none.
        kv: how cached rows are kept, of `KV`, or the type that the package computes in.
        shares: whether rows of a run can be kept for other sequences.
        repeats: whether a step can be run again, as its rows are not added by itself.
        at_hand: whether the host can write the rows of a cache.
    """

    shares: bool
    repeats: bool
    at_hand: bool
    chunk: int
    most_rows: int | None
    most_sequences: int
    most_answers: int
    turn: AbstractContextManager[Any]

    @property
    def name(self) -> str: ...

    @property
    def kernels(self) -> str | None: ...

    @property
    def kv(self) -> str: ...

    @property
    def dtype(self) -> np.dtype[Any]: ...

    def new_caches(self) -> list[SegmentCache]:
        """Empty caches of one sequence, one for each segment."""
        ...

    def read(
        self,
        segment: int,
        cache: SegmentCache,
        seq: int,
        chunk: Chunk,
        weights: NDArray[np.float32],
        logits: Logits,
        *,
        last: bool,
        parked: bool = True,
    ) -> Pass:
        """Run a segment over a chunk of one sequence of a cache.

        Args:
            weights: [1, 2, n]: what makes a mass of the last row, and one of text rows or probes.
            logits: which of them somebody reads.
            last: whether it is the last chunk, after which only steps may come.
            parked: whether parked rows are read, as prompts do, or left out.
        """
        ...

    def check_prompt(self, caches: Sequence[SegmentCache], seq: int, added: int) -> None:
        """Refuse a prompt of so many tokens if caches cannot take it.

        Raises:
            PromptTooLongError: they cannot.
        """
        ...

    def explained(
        self, error: AvlError, caches: Sequence[SegmentCache], seq: int, added: int
    ) -> AvlError:
        """What ended a prompt of so many tokens, in words that say what would fit."""
        ...

    def batch(
        self,
        parts: Sequence[Sequence[tuple[SegmentCache, int]]],
        members: Sequence[Member],
        steps: int,
    ) -> Batch:
        """Sequences as a batch; the caches that they come from give up their rows.

        Args:
            parts: for each segment, each sequence's cache and its place there.
            steps: how many more rows may come.

        Raises:
            AvlError: a device has no room for them.
        """
        ...

    @property
    def row_bytes(self) -> list[tuple[int, int]]:
        """Bytes of an active row, in all KV heads, and of a parked one, of each layer with rows."""
        ...

    @property
    def state_bytes(self) -> int:
        """Bytes of a sequence's states, in all layers that keep one."""
        ...

    def dense_bytes(self, rows: int, steps: int, limit: int) -> int:
        """Bytes of a dense cache after `rows` of prompt and `steps` of at most `limit`."""
        ...

    def device_bytes(self) -> dict[str, int] | None:
        """What is in a device's memory now, as `Stats.device_bytes`; None where there is none."""
        ...
