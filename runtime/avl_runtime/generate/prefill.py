"""Reading a prompt: segment by segment, in chunks of rows, under a sequence's policy.

Hidden states can be dropped between segments (FastV, A-VL's prefill filter), and no graph holds
more than a chunk.
"""

from __future__ import annotations

from collections import abc
from collections.abc import Generator
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from avl_plugins.errors import AvlError
from avl_plugins.logits import Logits
from avl_plugins.policies import Tokens, When
from avl_runtime.execute.protocol import Chunk, PromptTooLongError
from avl_runtime.generate.choices import after_prompt, goes_on
from avl_runtime.generate.prefix import Prefix, spans
from avl_runtime.generate.probed import Probed, probing
from avl_runtime.generate.rated import Rated, rating
from avl_runtime.generate.sequence import RollbackError, Sequence
from avl_runtime.kv.by_layer import LAST, TEXT
from avl_runtime.kv.cache import Floats, Ints, SegmentCache
from avl_runtime.kv.sight import by_position
from avl_runtime.kv.standing import Standing, standing_of
from avl_runtime.package.manifest import Manifest
from avl_runtime.prompts.rows import PromptRows

T = TypeVar("T")
Doubles = NDArray[np.float64]
Reading = Generator[None, None, NDArray[np.float32]]


@dataclass(frozen=True, slots=True, eq=False)
class Behind:
    """Rows of a prompt from token number `first` of the conversation on, and what stands where."""

    first: int
    standing: Standing | None


def prefill(
    sequence: Sequence,
    manifest: Manifest,
    rows: PromptRows,
    logits: Logits = Logits.ALL,
    steps: int = 0,
    prefix: Prefix | None = None,
    factors: Doubles | None = None,
) -> Reading:
    """Read a prompt, a chunk of a segment each time, and place its rows.

    If it does not come to its end the sequence is as it was before.

    Args:
        logits: which of them the caller reads.
        steps: the most decode steps that may follow, for which there is to be room.
        prefix: what of it need not be read, and is left for others; of a new sequence. None:
            nothing.
        factors: [L, Hkv, N], as how many tokens each of the prompt's counts to rows behind its last
            picture, in the first L layers; None: as one.

    Returns:
        The last row's logits [V].

    Raises:
        PromptTooLongError: the model's context, or a cache that engines take, is too short.
        AvlError: a device has no room for its rows.
    """
    executor, start = sequence.executor, sequence.length
    given = rows.given
    executor.check_prompt(sequence.caches, sequence.seq, len(given))
    position_ids = rows.position_ids + sequence.next_position
    if sequence.restores:
        _check_distances(position_ids, manifest.dims.max_positions)
    before = sequence.snapshot()
    standing = np.stack([*position_ids, rows.counts], 1)
    sequence.grow(
        rows.token_ids.tolist(), rows.image_mask, rows.next_position, rows.chosen, standing
    )
    sequence.step = sequence.again = 0
    sequence.prefix_tokens = 0 if prefix is None else prefix.length
    positions = start + given
    ends = positions + 1 if rows.ends is None else start + rows.ends
    known = standing_of([sequence])
    chunk = Chunk(rows.hidden, positions, position_ids, rows.deepstack, ends, known)
    behind = None
    if factors is not None:
        sequence.stands.even(start, factors)
        last = start + int(np.flatnonzero(rows.image_mask)[-1])
        behind = Behind(last + 1, standing_of([sequence]))
    try:
        steps = min(steps, sequence.room_left())
        found = yield from _read(sequence, manifest, chunk, logits, steps, prefix, behind)
    except AvlError as error:
        sequence.restore(before)
        caches = sequence.caches, sequence.seq
        told = executor.explained(error, *caches, len(given))
        if told is error:
            raise
        raise told from error
    except BaseException:  # Ctrl-C too: half a prompt must not stay in the cache
        sequence.restore(before)
        raise
    else:
        if prefix is not None:
            prefix.keep()
    finally:
        if prefix is not None:
            prefix.forget()
        for cache in sequence.caches:
            cache.let_go()
    if sequence.actions:
        sequence.settled = sequence.length
    return found


def _check_distances(position_ids: Ints, context: int) -> None:
    """Refuse rows farther apart than a biased graph knows, as times of a slow video may be.

    Raises:
        PromptTooLongError: a position [axes, G] is not within the context.
    """
    last = int(position_ids.max(initial=0))
    if last >= context:
        raise PromptTooLongError(
            f"expected positions below {context} (the model's context) for positions=restore, found"
            f" {last}, of a slow video's last frames; use a shorter one, or another positions="
        )


def extend(
    sequence: Sequence, manifest: Manifest, hidden: NDArray[Any], token_ids: abc.Sequence[int]
) -> NDArray[np.float32]:
    """Read S text tokens that go on a sequence, at once; it may be decoding in a batch.

    No action decides after them: they can be rolled back as long as none has.

    Args:
        hidden: [S, C], their embeddings.

    Returns:
        The last one's logits [V].

    Raises:
        RollbackError: the policy counts attention of text, which could not be taken back.
        PromptTooLongError: the model's context, or a cache that engines take, is too short.
        ValueError: there are none, or more than a chunk takes.
    """
    if sequence.evicts:
        raise RollbackError(
            f"expected a policy that evicts no text for {len(token_ids)} tokens at once, found one "
            "that does; read them one by one"
        )
    executor, count = sequence.executor, len(token_ids)
    if not 0 < count <= executor.chunk:
        raise ValueError(f"expected 1 to {executor.chunk} tokens at once, found {count}")
    executor.check_prompt(sequence.caches, sequence.seq, count)
    start, dims = sequence.length, manifest.dims
    positions = np.arange(start, start + count)
    ids = np.broadcast_to(np.arange(count) + sequence.next_position, (dims.position_axes, count))
    weights = np.zeros((1, 2, count), np.float32)
    rows: NDArray[Any] = hidden
    states = sequence.states()
    sequence.grow(token_ids)
    sequence.step += count
    known = standing_of([sequence])
    try:
        for index, (segment, cache) in enumerate(
            zip(manifest.segments, sequence.caches, strict=True)
        ):
            added = np.zeros((len(segment.deepstack), *hidden.shape), hidden.dtype)
            chunk = Chunk(rows, positions, ids, added, positions + 1, known)
            sequence.leave_behind(cache, start)
            run = executor.read(
                index,
                cache,
                sequence.seq,
                chunk,
                weights,
                Logits.ALL,
                last=False,
                parked=False,
            )
            rows = run.output
            run.store(None)
    except BaseException:  # Ctrl-C too: segments must not hold different numbers of rows
        sequence.roll_back(start, states)
        raise
    return np.asarray(rows[0], np.float32)


def finished(steps: Generator[None, None, T]) -> T:
    """What is read or made in steps, made at once."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            found: T = end.value
            return found


def _read(
    sequence: Sequence,
    manifest: Manifest,
    whole: Chunk,
    logits: Logits,
    steps: int,
    prefix: Prefix | None,
    behind: Behind | None,
) -> Reading:
    """Run all segments over all rows of a prompt, `whole`, but those that are known."""
    count, mass = len(whole.positions), np.zeros((1, 0), np.float32)
    probed = probing(sequence, whole.positions)
    rows = whole if prefix is None else whole.between(prefix.length, count)
    layers = 0  # whose deepstack features have been added
    rated: Rated | None = None
    for index, segment in enumerate(manifest.segments):
        cache = sequence.caches[index]
        hidden, deepstack = rows.hidden, rows.deepstack
        if prefix is not None and index == prefix.segments:
            hidden, deepstack = prefix.before(hidden), whole.deepstack[layers:]
            rows = replace(whole, hidden=hidden, deepstack=deepstack)
        for action in sequence.actions:
            if action.before == segment.first_layer:
                scores = mass[-1] if mass.shape[1] else np.zeros(sequence.length, np.float32)
                if action.rates and rated is not None:
                    scores = rated.scores
                first, images = segment.first_layer, sequence.images_read
                kept = goes_on(sequence, action, rows.positions, scores, first, images)
                sequence.drop_before(first, np.delete(rows.positions, kept))
                rows = rows.at(kept)
        added, deepstack = np.split(rows.deepstack, [len(segment.deepstack)])
        layers += len(segment.deepstack)
        chunk = replace(rows, deepstack=added)
        if probed is not None:
            probed.begin(cache, rows.positions)
        rated = rating(sequence, manifest, index, whole, rows.positions)
        hidden, mass = yield from _run_chunks(
            sequence, index, cache, chunk, logits, steps, prefix, probed, rated, behind
        )
        rows = replace(rows, hidden=hidden, deepstack=deepstack)
        for action in sequence.actions:
            if When.PROMPT in action.when:
                after_prompt(sequence, cache, action, mass)
                cache.settle()
    if probed is not None:
        probed.decide()
    return np.asarray(rows.hidden[0], np.float32)


def _run_chunks(
    sequence: Sequence,
    index: int,
    cache: SegmentCache,
    rows: Chunk,
    logits: Logits,
    steps: int,
    prefix: Prefix | None,
    probed: Probed | None,
    rated: Rated | None,
    behind: Behind | None,
) -> Generator[None, None, tuple[NDArray[Any], Floats]]:
    """Run one segment over all rows, adding them to its cache; `logits` are read of the last.

    Returns its output rows ([N, C], or [1, V] logits) and, if an action ranks by it, the last
    row's head-mean attention by position, [L, tokens so far], or else [L, 0].
    """
    executor, count = sequence.executor, len(rows.positions)
    ranked = any(
        action.ranking.reads_attention and When.EMBEDDED < min(action.when) < When.STEP
        for action in sequence.actions
        if action.tokens is not Tokens.ANY and not action.rates
    )
    outputs = []
    mass = np.zeros((cache.layers, 0), np.float32)
    held = 0 if prefix is None or index >= prefix.segments else prefix.length
    cache.reserve(held + count, steps, executor.chunk)
    if prefix is not None and held:
        prefix.put(index, cache)
    # Rows that see a picture's tokens count otherwise are read when the cache holds these.
    cut = count if behind is None else int(rows.positions.searchsorted(behind.first))
    runs = [
        (begin + first, begin + end)
        for begin, part in ((0, rows.between(0, cut)), (cut, rows.between(cut, count)))
        for first, end in spans(len(part.positions), executor.chunk, part.row_ends)
    ]
    for begin, end in runs:
        chunk = rows.between(begin, end)
        if behind is not None and begin >= cut:
            chunk = replace(chunk, standing=behind.standing)
        ends = end == count
        weights = _row_weights(sequence, chunk.positions, probed, last=ranked and ends)
        probes = probed if weights[0, TEXT].any() else None
        raters = None
        if rated is not None and (of_raters := rated.weights(chunk.positions)).any():
            weights[0, rated.row], raters = of_raters, rated
        wanted = logits if ends else Logits.NONE
        sequence.leave_behind(cache, int(chunk.positions[0]))
        run = executor.read(index, cache, sequence.seq, chunk, weights, wanted, last=ends)
        outputs.append(run.output)
        fresh = None
        if sequence.evicts or probes is not None or raters is not None or (ranked and ends):
            masses = run.masses()
            if raters is not None:
                raters.note(cache, masses, chunk.positions)
            if probes is not None:
                probes.note(cache, masses, chunk.positions)
            if ranked and ends:
                mass = by_position(cache, sequence.seq, masses, chunk.positions, sequence.length)
            if sequence.evicts:
                cache.add_mass(sequence.seq, masses.mass_active)
                fresh = masses.mass_new[:, :, :, TEXT]
        run.store(fresh)
        if prefix is not None and not ends:
            prefix.note(index, cache, run)
        yield
    last = index == len(sequence.caches) - 1
    return (outputs[-1] if last else np.concatenate(outputs)), mass


def _row_weights(
    sequence: Sequence, positions: Ints, probed: Probed | None, *, last: bool
) -> NDArray[np.float32]:
    """[1, 2, n]: what makes a mass of the last row's attention, and of all text rows' or probes'.

    Where one of them is not wanted its weights are 0, which makes it cheap.
    """
    weights = np.zeros((1, 2, len(positions)), np.float32)
    weights[0, LAST, -1] = last
    if sequence.evicts:
        weights[0, TEXT] = ~sequence.image_mask[positions]
    elif probed is not None:
        weights[0, TEXT] = probed.weights(positions)
    return weights
