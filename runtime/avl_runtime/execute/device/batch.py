"""Decode steps on a device: queued whole, often as a recorded graph, and waited for once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from avl_plugins.graph_io import (
    BATCH,
    DEEPSTACK,
    HIDDEN,
    MOST_WEIGHTINGS,
    NEW,
    POSITIONS,
    ROW_STANDING,
    WEIGHTINGS,
    WEIGHTS,
    named,
)
from avl_plugins.policies import Action, TextBudget
from avl_runtime.execute.check import Checked, Drafted
from avl_runtime.execute.device import growth
from avl_runtime.execute.device.backend import DeviceBackend
from avl_runtime.execute.device.cache import DeviceCache
from avl_runtime.execute.device.protocol import Graph
from avl_runtime.execute.device.steps import SegmentSteps, Text
from avl_runtime.execute.device.tensors import Masses, Upload
from avl_runtime.execute.protocol import Member, Step
from avl_runtime.kv.cache import Ints, SegmentCache
from avl_runtime.kv.masses import add, fresh
from avl_runtime.kv.standing import of_new

_NEVER = np.iinfo(np.int32).max  # a position, or a number of rows, that nothing reaches


class Stepped:
    """Which batch has run the last step: engines keep shapes, and recordings hold them.

    Attributes:
        by: the batch's own mark.
    """

    __slots__ = ("by",)

    def __init__(self) -> None:
        self.by: object = None


class DeviceBatch:
    """See `protocol.Batch`; rows stay on the device.

    What a step reads from the host is one small pinned array, and what comes back are the logits.
    Where the host selects rows (in an order, or of more rows, than the kernels declare), it waits
    once more. `records` says whether steps are recorded and replayed, where the segments can be.
    """

    records = True

    def __init__(
        self,
        backend: DeviceBackend,
        caches: list[DeviceCache],
        members: Sequence[Member],
        steps: int,
        stepped: Stepped,
    ) -> None:
        """
        Args:
            stepped: of all batches on the backend.

        Raises:
            OutOfDeviceMemoryError: there is no room.
        """
        self._backend, self._members, self._steps_left = backend, list(members), steps
        self._stepped, self._mark = stepped, object()
        self._caches = caches
        self.caches: list[SegmentCache] = list(caches)
        self._positions: Ints = np.zeros(len(members), np.int64)
        self._text, self._text_upload = self._text_inputs(steps)
        self._logits: NDArray[Any] = np.zeros(0)
        self._segments: list[SegmentSteps] = []
        self._graphs: dict[bool, Graph] = {}
        self._run_before: set[bool] = set()
        self._masses: dict[int, Masses] = {}
        self._bind()

    def run(self, step: Step) -> NDArray[np.float32]:
        self._masses = {}
        self._positions = step.positions
        if any(steps.outdated for steps in self._segments):
            self._bind()
        if self._stepped.by is not self._mark:
            self._stepped.by = self._mark
            self._graphs, self._run_before = {}, set()
        reads = step.reads_parked
        upload = self._step
        upload.host[POSITIONS][..., 0] = step.position_ids[0]
        upload.host[HIDDEN][:, 0] = self._backend.element.encode(step.hidden)
        if ROW_STANDING in upload.host:
            at, ids = step.positions[:, None], step.position_ids[0][:, None]
            axes = self._backend.manifest.dims.position_axes
            upload.host[ROW_STANDING][...] = of_new(step.standing, at, ids, axes)
        for steps in self._segments:
            steps.note(upload, step.positions, reads, step.standing)
        if self._text is not None:
            upload.host["budget"][:] = [self._budget(each) for each in self._members]
        self._queue(any(reads))
        self._backend.device.synchronize()
        found = np.array(self._backend.element.decode(self._logits)[:, 0], np.float32)
        for steps in self._segments:
            if steps.books is not None:
                steps.count_rows()
        self._steps_left -= 1
        return found

    def did(self, segment: int, seq: int, action: Action) -> bool:
        return self._segments[segment].books is not None

    def masses(self, segment: int) -> Masses:
        if segment not in self._masses:
            self._masses[segment] = self._segments[segment].outputs.download_masses()
            self._backend.device.synchronize()
        return self._masses[segment]

    def append(self, segment: int, steps: int) -> None:
        if self._segments[segment].books is not None:
            return
        cache, masses = self._caches[segment], None
        gathers = [each.evicts for each in self._members]
        if any(gathers):
            masses = self.masses(segment)
            add(cache, masses, gathers)
        cache.note(self._positions, fresh(masses))

    def evict(self, segment: int, seq: int, action: Action) -> bool:
        return False  # a step has done it, or the host selects

    def check(self, drafted: Drafted, steps: int) -> Checked:
        raise ValueError("expected no drafts where most_answers is 1, found some")

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

    def _budget(self, member: Member) -> tuple[int, int]:
        """Text rows that may stay, and how many of them for being recent."""
        for action in member.actions:
            if isinstance(action, TextBudget):
                allowed = action.budget(member.text_after_image)
                return allowed, action.ranking.recent(allowed)
        return _NEVER, 0

    def _bind(self) -> None:
        """Make room for the next rows, and say where everything is."""
        backend, batch = self._backend, len(self._members)
        self._segments, self._graphs, self._run_before = [], {}, set()
        dims, stored = backend.manifest.dims, backend.element.stored
        for cache in self._caches:
            cache.claim()
            rooms = [growth.grown(backend, top, self._steps_left) for top in cache.tops]
            if cache.shared or cache.forked or cache.active_rooms != rooms:
                cache.resize(rooms)
        self._segments = [
            SegmentSteps(backend, index, cache, self._members, self._text)
            for index, cache in enumerate(self._caches)
        ]
        manifest = backend.manifest
        inputs = manifest.graph_of(manifest.segments[0]).inputs([])
        sizes = {BATCH: batch, NEW: 1, WEIGHTINGS: MOST_WEIGHTINGS}
        shapes = {value.name: value.sized(sizes) for value in inputs}
        fields: dict[str, tuple[tuple[int, ...], Any]] = {
            HIDDEN: (shapes[HIDDEN], stored),
            POSITIONS: (shapes[POSITIONS], np.int64),
            "budget": ((batch, 2), np.int32),
        }
        if ROW_STANDING in shapes:
            fields[ROW_STANDING] = (shapes[ROW_STANDING], np.int64)
        for steps in self._segments:
            fields |= steps.fields()
        self._step = Upload(backend.memory, fields)
        self._fixed = Upload(
            backend.memory,
            {
                WEIGHTS: (shapes[WEIGHTS], np.float32),
                "nothing": (shapes[HIDDEN], stored),  # text has no image features
            },
        )
        self._fixed.host[WEIGHTS][...] = 1
        self._fixed.queue()
        self._bind_segments()
        size = batch * dims.vocab_size * stored.itemsize
        self._logits = backend.device.pinned(size).view(stored).reshape(batch, 1, -1)

    def _bind_segments(self) -> None:
        hidden = self._step.tensors[HIDDEN]
        for steps, part in zip(self._segments, self._backend.manifest.segments, strict=True):
            inputs = {
                HIDDEN: hidden,
                POSITIONS: self._step.tensors[POSITIONS],
                WEIGHTS: self._fixed.tensors[WEIGHTS],
            }
            if ROW_STANDING in self._step.tensors:
                inputs[ROW_STANDING] = self._step.tensors[ROW_STANDING]
            for layer in part.deepstack:
                inputs[named(DEEPSTACK, layer)] = self._fixed.tensors["nothing"]
            steps.bind(self._step, inputs)
            hidden = steps.outputs.output_tensor

    def _text_inputs(self, most: int) -> tuple[Text | None, Upload | None]:
        if not any(each.evicts for each in self._members):
            return None, None
        batch = len(self._members)
        tokens = max(len(each.image_mask) for each in self._members) + max(1, most)
        upload = Upload(
            self._backend.memory,
            {"image_mask": ((batch, tokens), np.int8), "first_image": ((batch,), np.int32)},
        )
        for seq, member in enumerate(self._members):
            mask = member.image_mask
            upload.host["image_mask"][seq, : len(mask)] = mask
            upload.host["first_image"][seq] = int(mask.argmax()) if mask.any() else _NEVER
        upload.queue()
        return Text(upload.address("image_mask"), upload.address("first_image"), tokens), upload
