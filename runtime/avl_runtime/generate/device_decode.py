"""Decode on a device: a step is queued whole, often as a recorded graph, and waited for once."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from avl_plugins.cpu.logits import Logits
from avl_plugins.errors import AvlError
from avl_plugins.policies import Plan
from avl_runtime.execute.device.backend import DeviceBackend
from avl_runtime.execute.device.cache import DeviceCache, stacked
from avl_runtime.execute.device.protocol import Graph
from avl_runtime.execute.device.steps import SegmentSteps, Text
from avl_runtime.execute.device.tensors import Upload
from avl_runtime.generate import device_growth as growth
from avl_runtime.generate.conversation import Conversation
from avl_runtime.generate.device_prompt import DeviceConversation
from avl_runtime.generate.selection import HostSelection, placement
from avl_runtime.prompts.embedding import Embedding

_NEVER = np.iinfo(np.int32).max


class BatchTooLargeError(AvlError):
    """More sequences than the engines were built for."""


class DeviceDecoder:
    """As `decode.Decoder`, with rows that stay on the device.

    What a step reads from the host is one small pinned array, and what comes back are the logits.
    Where the host selects rows (at random, or more than the kernels rank), it waits once more.
    `records` says whether steps are recorded and replayed, where the segments can be.
    """

    records = True

    def __init__(
        self,
        backend: DeviceBackend,
        embedding: Embedding,
        conversations: Sequence[DeviceConversation],
        plan: Plan,
        max_steps: int,
    ) -> None:
        """
        Raises:
            BatchTooLargeError: the engines take fewer sequences.
            OutOfDeviceMemoryError: there is no room.
        """
        batch = len(conversations)
        if batch > backend.limits.batch:
            raise BatchTooLargeError(
                f"expected at most {backend.limits.batch} sequences, which is what the engines "
                f"were built for, found {batch}; build them with --max-batch {batch}"
            )
        self._backend, self._embedding, self._plan = backend, embedding, plan
        self._conversations = list(conversations)
        self._steps_left = max_steps
        self.step = 0
        self.refreshed = False
        self._selection = HostSelection(plan, self._conversations)
        self.caches: list[DeviceCache] = [
            stacked(list(segment), min(max_steps, growth.GROWTH))
            for segment in zip(*(c.device_caches for c in conversations), strict=True)
        ]
        for conversation in conversations:
            # The batch owns the rows from here on; single caches gave them up.
            conversation.caches = list(self.caches) if batch == 1 else []
        self._evictable = [
            [_evictable_rows(cache, seq, each) for seq, each in enumerate(conversations)]
            for cache in self.caches
        ]
        self._text, self._text_upload = self._text_inputs(max_steps)
        self._logits: NDArray[Any] = np.zeros(0)
        self._segments: list[SegmentSteps] = []
        self._graphs: dict[bool, Graph] = {}
        self._run_before: set[bool] = set()
        self._bind()

    @property
    def nbytes(self) -> int:
        """Bytes of K and V on the device."""
        return sum(cache.nbytes for cache in self.caches)

    def placement(
        self, seq: int, image_mask: NDArray[np.bool_]
    ) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """As `selection.placement`; waits for the device."""
        for steps in self._segments:
            if steps.books is not None:
                steps.books.recall()
        return placement(self.caches, seq, image_mask)

    def run(
        self,
        tokens: NDArray[np.int64],
        alive: NDArray[np.bool_],
        logits: Logits = Logits.ALL,
    ) -> NDArray[np.float32]:
        """As `decode.Decoder.run`; a device computes all logits.

        Raises:
            OutOfDeviceMemoryError: a cache is full and cannot grow.
        """
        self.step += 1
        seqs = np.flatnonzero(alive).tolist()
        positions = np.array([each.length for each in self._conversations], np.int64)
        if any(int(c.active_len[alive].max(initial=-1)) >= c.active_room for c in self.caches):
            self._bind()
        step = self._step
        for seq in seqs:
            conversation = self._conversations[seq]
            step.host["position_ids"][..., seq, 0] = conversation.next_position
            conversation.grow([int(tokens[seq])])
        step.host["hidden"][:, 0] = self._backend.element.encode(self._embedding.lookup(tokens))
        self.refreshed = self._plan.split is not None and self._plan.split.is_refresh(self.step)
        for steps in self._segments:
            steps.note(step, alive, positions)
        if self._plan.text is not None:
            step.host["budget"][:] = [self._budget(each) for each in self._conversations]
        self._queue(self.refreshed)
        self._backend.device.synchronize()
        found = np.array(self._backend.element.decode(self._logits)[:, 0], np.float32)
        for index, steps in enumerate(self._segments):
            self._follow(index, steps, positions, alive)
        self._steps_left -= 1
        return found

    def _queue(self, refresh: bool) -> None:
        """Queue a step: the first of its kind as it is, the second recorded, the rest replayed."""
        reads = any(steps.reads_parked(refresh) for steps in self._segments)
        # TensorRT prepares new shapes in a first run, which cannot be recorded.
        is_due = self.records and reads in self._run_before and reads not in self._graphs
        if is_due and all(steps.recordable(refresh) for steps in self._segments):
            self._graphs[reads] = self._backend.device.record(lambda: self._work(refresh))
        if reads in self._graphs:
            self._graphs[reads].replay()
        else:
            self._work(refresh)
            self._run_before.add(reads)

    def _work(self, refresh: bool) -> None:
        self._step.queue()
        for steps in self._segments:
            steps.queue_run(refresh)
            steps.queue_moves(refresh)  # parked rows on the host share the memory they come to
        self._backend.device.download(self._logits, self._segments[-1].outputs.output.address)

    def _follow(
        self,
        index: int,
        steps: SegmentSteps,
        positions: NDArray[np.int64],
        alive: NDArray[np.bool_],
    ) -> None:
        """Keep the host's books of a step; where the host selects, select and move."""
        cache, text = steps.cache, self._plan.text
        if steps.books is not None:
            cache.active_len += alive
            if text is not None:
                for seq in np.flatnonzero(alive).tolist():
                    conversation = self._conversations[seq]
                    count = self._evictable[index][seq] + int(conversation.text_after_image > 0)
                    kept = min(count, text.budget(conversation.text_after_image))
                    cache.active_len[seq] -= count - kept
                    self._evictable[index][seq] = kept
            return
        masses = None
        if steps.reads_parked(self.refreshed) or text is not None:
            masses = steps.outputs.download_masses()
            self._backend.device.synchronize()
        first_layer = self._backend.manifest.segments[index].first_layer
        seqs = np.flatnonzero(alive).tolist()
        append = partial(cache.note, positions, alive)
        self._selection.follow(cache, first_layer, masses, seqs, self.step, append)

    def _budget(self, conversation: Conversation) -> tuple[int, int]:
        """Text rows that may stay, and how many of them for being recent."""
        text = self._plan.text
        if text is None:
            return 0, 0
        allowed = text.budget(conversation.text_after_image)
        return allowed, allowed - int(allowed * text.heavy)

    def _unbind(self) -> None:
        """Bring the books to the host and free everything but the rows."""
        for steps in self._segments:
            if steps.books is not None:
                steps.books.recall()
        self._segments, self._graphs, self._run_before = [], {}, set()
        for conversation in self._conversations:
            conversation.books = []

    def _bind(self) -> None:
        """Make room for the next rows, and say where everything is."""
        backend, batch = self._backend, len(self._conversations)
        self._unbind()
        dims, stored = backend.manifest.dims, backend.element.stored
        for cache in self.caches:
            top = int(cache.active_len.max())
            rows = growth.grown(backend, top, self._steps_left)
            if cache.shared or cache.active_room != rows:
                cache.resize(rows)
        self._segments = [
            SegmentSteps(backend, index, cache, self._plan, self._text)
            for index, cache in enumerate(self.caches)
        ]
        axes = () if dims.position_axes == 1 else (dims.position_axes,)
        fields: dict[str, tuple[tuple[int, ...], Any]] = {
            "hidden": ((batch, 1, dims.hidden_size), stored),
            "position_ids": ((*axes, batch, 1), np.int64),
            "budget": ((batch, 2), np.int32),
        }
        for steps in self._segments:
            fields |= steps.fields()
        self._step = Upload(backend.memory, fields)
        self._fixed = Upload(
            backend.memory,
            {
                "row_weights": ((batch, 2, 1), np.float32),
                "nothing": ((batch, 1, dims.hidden_size), stored),  # text has no image features
            },
        )
        self._fixed.host["row_weights"][...] = 1
        self._fixed.queue()
        self._bind_segments()
        size = batch * dims.vocab_size * stored.itemsize
        self._logits = backend.device.pinned(size).view(stored).reshape(batch, 1, -1)
        for conversation in self._conversations:
            conversation.books = [steps.books for steps in self._segments if steps.books]

    def _bind_segments(self) -> None:
        hidden = self._step.tensors["hidden"]
        for steps, part in zip(self._segments, self._backend.manifest.segments, strict=True):
            inputs = {
                "hidden": hidden,
                "position_ids": self._step.tensors["position_ids"],
                "row_weights": self._fixed.tensors["row_weights"],
            }
            for layer in part.deepstack:
                inputs[f"deepstack.{layer}"] = self._fixed.tensors["nothing"]
            steps.bind(self._step, inputs)
            hidden = steps.outputs.output_tensor

    def _text_inputs(self, max_steps: int) -> tuple[Text | None, Upload | None]:
        if self._plan.text is None:
            return None, None
        batch = len(self._conversations)
        tokens = max(each.length for each in self._conversations) + max(1, max_steps)
        upload = Upload(
            self._backend.memory,
            {"image_mask": ((batch, tokens), np.int8), "first_image": ((batch,), np.int32)},
        )
        for seq, conversation in enumerate(self._conversations):
            mask = conversation.image_mask
            upload.host["image_mask"][seq, : len(mask)] = mask
            upload.host["first_image"][seq] = int(mask.argmax()) if mask.any() else _NEVER
        upload.queue()
        return Text(upload.address("image_mask"), upload.address("first_image"), tokens), upload


def _evictable_rows(cache: DeviceCache, seq: int, conversation: Conversation) -> int:
    """How many of a head's rows a text budget may drop; every head holds as many."""
    positions = cache.positions[0, seq, 0, : cache.active_len[seq]]
    return int(np.count_nonzero(conversation.evictable(positions)))
