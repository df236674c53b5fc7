"""Decode: one token a step for all sequences that run, whatever their policies."""

from __future__ import annotations

import functools
from collections import abc

import numpy as np
from numpy.typing import NDArray

from avl_plugins.logits import Logits
from avl_plugins.policies import Action, Tokens
from avl_runtime.execute.check import Checked
from avl_runtime.execute.protocol import Batch, Executor, Step
from avl_runtime.generate.check import Asked, Check, drafted
from avl_runtime.generate.choices import after_step, text_after_step
from avl_runtime.generate.sequence import Sequence
from avl_runtime.generate.weighing import weights_of
from avl_runtime.kv.standing import standing_of
from avl_runtime.package.manifest import Manifest
from avl_runtime.prompts.embedding import Embedding

# Rows of all members in one check: from 64 on linears may be computed otherwise (AMX), and tokens
# would depend on how many are drafted.
MOST_TOGETHER = 63

Lying = tuple[NDArray[np.bool_], NDArray[np.bool_], tuple[int, ...]]


class Decoder:
    """Sequences that decode together; they join and leave between steps.

    Rows of several sequences lie in one batch, which is made anew when members change.
    """

    def __init__(self, executor: Executor, manifest: Manifest, embedding: Embedding) -> None:
        self._executor, self._manifest, self._embedding = executor, manifest, embedding
        self._members: list[Sequence] = []
        self._batch: Batch | None = None
        self._steps_left = 0

    @property
    def members(self) -> tuple[Sequence, ...]:
        """Those that run, in the order of `run`'s tokens."""
        return tuple(self._members)

    def join(self, sequences: abc.Sequence[Sequence], steps: int) -> None:
        """Add sequences whose prompts have been read.

        Args:
            steps: how many tokens the longest of all members may still get.

        Raises:
            TypeError: one has its rows on another backend.
            AvlError: there is no room for them.
        """
        for sequence in sequences:
            if sequence.executor is not self._executor:
                raise TypeError(
                    f"expected sequences begun on this {self._executor.name}, found one begun "
                    "elsewhere"
                )
        self._form([*self._members, *sequences], steps)

    def leave(self, sequence: Sequence, *, keep: bool) -> None:
        """Take a sequence out, at once; see `leave_together`."""
        self.leave_together([(sequence, keep)])

    def leave_together(self, leaving: abc.Sequence[tuple[Sequence, bool]]) -> None:
        """Take sequences out, at once; those that stay are put side by side anew a single time.

        Args:
            leaving: each with whether its rows go on in caches of its own; else they are freed.
        """
        gone = {self._index(sequence) for sequence, _ in leaving}
        rest = [each for index, each in enumerate(self._members) if index not in gone]
        shared = len(self._members) > 1
        for sequence, keep in leaving:
            caches, seq = sequence.caches, sequence.seq
            for cache in caches:
                cache.claim()
            if keep and shared:
                sequence.caches, sequence.seq = [cache.taken(seq) for cache in caches], 0
            elif not keep:
                sequence.caches = []
        self._members, self._batch = rest, None
        if rest:
            self._form(rest, self._steps_left)

    def run(
        self,
        tokens: abc.Sequence[int],
        logits: Logits = Logits.ALL,
        drafting: abc.Collection[Sequence] = (),
    ) -> NDArray[np.float32]:
        """One step: each member's newest token in, the next token's logits [B, V] out.

        The array is overwritten by the next step.

        Args:
            logits: which of them somebody reads.
            drafting: members that read their active rows alone: what follows is a draft, and the
                caller takes the step back. Other members of a policy that lets tokens be drafted
                read all rows. Nothing is decided for either, but by `Check.keep`.

        Raises:
            AvlError: a device's cache is full and cannot grow.
        """
        batch, members = self._batch, self._members
        if batch is None or len(tokens) != len(members):
            raise ValueError(f"expected a token for each of {len(members)} members")
        positions = np.array([each.length for each in members], np.int64)
        position_ids = np.array([[each.next_position for each in members]], np.int64)
        for each in members:
            if each in drafting:  # it goes back to a token that still sees what windows leave
                continue
            for cache in batch.caches:
                each.leave_behind(cache, each.length)
        for each, token in zip(members, tokens, strict=True):
            each.grow([int(token)])
            each.step += 1
        due = [() if each.drafting is not None else each.due() for each in members]
        reads = [
            each not in drafting
            and (each.drafting is not None or any(one.reads_parked for one in actions))
            for each, actions in zip(members, due, strict=True)
        ]
        weighs = any(
            each.image_tokens and any(one.weighs for one in actions)
            for each, actions in zip(members, due, strict=True)
        )
        step = Step(
            self._embedding.lookup(np.asarray(tokens, np.int64)),
            position_ids,
            positions,
            due,
            reads,
            Logits.ALL if weighs else logits,
            standing_of(members),
        )
        found = batch.run(step)
        if weighs and (weights := weights_of(due, found, [one.image_tokens for one in members])):
            # No row has been added yet, and rows that a kernel has moved are still read or not.
            step.standing = standing_of(members, weights)
            found = batch.run(step)
            for seq in weights:
                members[seq].again += 1
        # A run leaves neither code nor data of ours in the processor's caches. Rows move after the
        # last one, so that a step fetches what moves them once and not once a segment.
        for index in range(len(self._manifest.segments)):
            self._follow(batch, index, due)
        for each in members:
            if each.evicts:  # what text rows have gathered cannot be taken back
                each.settled = each.length
        if not drafting:
            self._steps_left -= 1
        return found

    def check(self, asked: abc.Sequence[Asked], logits: Logits, steps: int) -> list[Check]:
        """Members' newest tokens in, and drafts behind each; what follows each of these tokens.

        Weights and rows are read once for the tokens of a member, and weights once for all where
        every member is asked. No row is added but by `Check.keep`.

        Args:
            asked: members that differ, of a policy whose steps for these tokens all read the same
                rows and move none, unless it lets tokens be drafted by active rows.
            logits: which of them somebody reads.
            steps: how many tokens the longest of all members may still get.

        Raises:
            ValueError: there are more tokens than the backend gives logits of.
        """
        batch, most = self._batch, self._executor.most_answers
        if batch is None or any(not 0 < len(tokens) <= most for _, tokens in asked):
            raise ValueError(f"expected members with 1 to {most} tokens each")
        self._steps_left = min(self._steps_left, steps)
        for each, _ in asked:  # the newest token stays, whatever becomes of those behind it
            for cache in batch.caches:
                each.leave_behind(cache, each.length)
        order = sorted(asked, key=lambda one: one[0].seq)
        together = len(asked) * max(len(tokens) for _, tokens in asked) <= MOST_TOGETHER
        whole = together and len(asked) == len(self._members)
        found = {}
        for part in [order] if whole else [[one] for one in order]:
            run = batch.check(drafted(part, self._embedding, logits), self._steps_left)
            for index, (sequence, tokens) in enumerate(part):
                rows = run.logits[index, : len(tokens)]
                again = functools.partial(self._again, batch, sequence)
                found[sequence.seq] = Check(
                    rows, sequence, tokens, self._manifest, run, index, again
                )
        return [found[sequence.seq] for sequence, _ in asked]

    def _again(self, batch: Batch, sequence: Sequence, tokens: abc.Sequence[int]) -> Checked:
        """A run over some of a member's checked tokens alone, whose logits nobody reads."""
        asked = drafted([(sequence, tokens)], self._embedding, Logits.NONE)
        return batch.check(asked, self._steps_left)

    def placement(self, sequence: Sequence) -> Lying:
        """Which image tokens of a member are active, and which parked, in layers that keep rows.

        Returns:
            Two arrays [layers, image tokens], image tokens in prompt order, and how many active
            rows, text too, a KV head of each layer holds. Active is what one head at least holds.
        """
        for cache in sequence.caches:
            cache.recall()
        return placement(sequence)

    def _follow(self, batch: Batch, index: int, due: abc.Sequence[tuple[Action, ...]]) -> None:
        """What is left to do of a step in a segment: refresh cores, add the row, evict text."""
        cache = batch.caches[index]
        moved = False
        texts: list[tuple[Sequence, list[Action]]] = []
        for each, actions in zip(self._members, due, strict=True):
            mine = []
            for action in actions:
                if not action.moves:
                    continue
                if batch.did(index, each.seq, action):
                    each.settled = each.length
                elif action.tokens is Tokens.TEXT:
                    mine.append(action)
                else:
                    masses = batch.masses(index) if action.ranking.reads_attention else None
                    after_step(each, cache, action, masses)
                    moved = True
            if mine:
                texts.append((each, mine))
        if moved:
            cache.settle()
        batch.append(index, self._steps_left)
        if texts:
            for each, mine in texts:
                left = [action for action in mine if not batch.evict(index, each.seq, action)]
                text_after_step(each, cache, left)
            cache.settle()

    def _form(self, members: list[Sequence], steps: int) -> None:
        """Make a batch of `members`, whatever they were part of."""
        self._batch = None
        parts = [
            [(each.caches[index], each.seq) for each in members]
            for index in range(len(self._manifest.segments))
        ]
        batch = self._executor.batch(parts, members, steps)
        for seq, each in enumerate(members):
            each.caches, each.seq = batch.caches, seq
        self._members, self._batch, self._steps_left = members, batch, steps

    def _index(self, sequence: Sequence) -> int:
        for index, each in enumerate(self._members):
            if each is sequence:
                return index
        raise ValueError("expected a member, found a sequence that does not run")


def placement(sequence: Sequence) -> Lying:
    """As `Decoder.placement`, of a sequence whose book-keeping is up to date."""
    mask, seq = sequence.image_mask, sequence.seq
    layers = sum(cache.layers for cache in sequence.caches)
    active = np.zeros((layers, len(mask)), np.bool_)
    parked = np.zeros_like(active)
    first = 0
    for cache in sequence.caches:
        for layer in range(cache.layers):
            length, held = cache.active_len[layer, seq], cache.parked_len[layer, seq]
            active[first + layer, cache.positions[layer, seq, :, :length]] = True
            parked[first + layer, cache.parked_positions[layer, seq, :held]] = True
        first += cache.layers
    rows = [count for cache in sequence.caches for count in cache.active_len[:, seq].tolist()]
    return active[:, mask], parked[:, mask], tuple(rows)
