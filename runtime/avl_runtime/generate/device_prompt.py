"""Prompts on a device: read in chunks, rows placed by the host's choice, moved by kernels."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from avl_plugins.cpu.logits import Logits
from avl_plugins.policies import Plan
from avl_runtime.execute.device.backend import DeviceBackend
from avl_runtime.execute.device.books import DeviceBooks
from avl_runtime.execute.device.cache import DeviceCache
from avl_runtime.execute.device.protocol import OutOfDeviceMemoryError
from avl_runtime.execute.device.tensors import Nothing, Outputs, Upload, cache_inputs
from avl_runtime.generate.conversation import (
    Chunk,
    Conversation,
    PromptTooLongError,
    attention_by_position,
)
from avl_runtime.kv.cache import SegmentCache
from avl_runtime.prompts.rows import PromptRows


class DeviceConversation(Conversation):
    """A conversation whose rows are on a device.

    Attributes:
        backend: that reads its prompts.
        books: of the caches, while decode steps keep them on the device.
    """

    def __init__(self, backend: DeviceBackend) -> None:
        segments = backend.manifest.segments
        super().__init__(
            backend.manifest,
            [DeviceCache(backend.place, part.last_layer - part.first_layer) for part in segments],
        )
        self.backend = backend
        self.books: list[DeviceBooks] = []

    @property
    def device_caches(self) -> list[DeviceCache]:
        """`caches`, with what they are said again for the type checker."""
        return [_on_device(cache) for cache in self.caches]

    def room_left(self) -> int:
        """Tokens that the model's context and the caches' largest room can still take."""
        held = max((int(cache.active_len[0]) for cache in self.caches), default=0)
        return min(super().room_left(), self.backend.limits.cache_rows - held)

    def prefill(
        self, rows: PromptRows, plan: Plan, logits: Logits = Logits.ALL
    ) -> NDArray[np.float32]:
        """As `Conversation.prefill`.

        Raises:
            PromptTooLongError: the model's context, or a cache that segments take, is too short.
            OutOfDeviceMemoryError: the device has no room for its rows.
        """
        for books in self.books:
            books.recall()
        self.books = []
        self._check_room(len(rows.token_ids))
        device = self.backend.device
        free, total = device.memory()
        try:
            return super().prefill(rows, plan, logits)
        except OutOfDeviceMemoryError as error:
            raise self._does_not_fit(len(rows.token_ids), free, total) from error
        finally:
            for cache in self.device_caches:
                cache.shared = False  # the copy made for a failure is gone, or is what is left

    def _check_room(self, added: int) -> None:
        most = self.backend.limits.cache_rows
        held = max(int(cache.active_len[0]) for cache in self.caches)
        if held + added > most:
            raise PromptTooLongError(
                f"expected at most {most} cached rows, which is what the engines were built for, "
                f"found {held + added}; build them with --max-context {held + added}, or shorten "
                "the prompt"
            )

    def _does_not_fit(self, added: int, free: int, total: int) -> OutOfDeviceMemoryError:
        """What a prompt needs, and what would fit."""
        place, dims = self.backend.place, self.backend.manifest.dims
        held = max(int(cache.active_len[0]) for cache in self.caches)
        need = 2 * dims.num_layers * place.nbytes(1, place.room(held + added))
        fits = max(0, free // (2 * dims.num_layers * place.nbytes(1, 1)) - held)
        return OutOfDeviceMemoryError(
            need,
            free,
            total,
            f" for the KV rows of a prompt of {added} tokens",
            f"about {fits} tokens fit: use fewer or smaller pictures, --policy avl+fastv",
        )

    def _run_chunks(
        self, index: int, cache: SegmentCache, rows: Chunk, plan: Plan, logits: Logits
    ) -> tuple[NDArray[Any], NDArray[np.float32]]:
        cache = _on_device(cache)
        count, most = len(rows.positions), self.backend.limits.prompt_rows
        cache.reserve(int(cache.active_len[0]) + count)
        element = self.backend.element
        outputs = []
        mass = np.zeros((0, self.length), np.float32)
        for begin in range(0, count, most):
            chunk = rows.between(begin, begin + most)
            run = _Pass(self.backend, index, chunk, self._row_weights(chunk.positions), cache)
            masses = None
            if plan.text is not None or begin + most >= count:
                masses = run.outputs.download_masses()
            outputs.append(run.finish())
            if masses is not None and begin + most >= count:
                mass = attention_by_position(cache, masses, chunk.positions, self.length)
            new_mass = None
            if plan.text is not None and masses is not None:
                length = int(cache.active_len[0])
                cache.add_mass(0, masses.mass_active[:, 0, :, 1, :length])
                new_mass = masses.mass_new[:, :, :, 1]
            cache.add(run.outputs.k_new, run.outputs.v_new, chunk.positions, new_mass)
        last = index == len(self.backend.segments) - 1
        return (element.decode(outputs[-1]) if last else np.concatenate(outputs)), mass


def _on_device(cache: SegmentCache) -> DeviceCache:
    if not isinstance(cache, DeviceCache):
        raise TypeError("expected a cache on the device")
    return cache


class _Pass:
    """One run of a segment over a chunk of a prompt."""

    def __init__(
        self,
        backend: DeviceBackend,
        index: int,
        chunk: Chunk,
        weights: NDArray[np.float32],
        cache: DeviceCache,
    ) -> None:
        segment, element = backend.manifest.segments[index], backend.element
        self._backend = backend
        ids = np.ascontiguousarray(chunk.position_ids)
        values: dict[str, NDArray[Any]] = {
            "hidden": element.encode(chunk.hidden[None]),
            "position_ids": ids if len(ids) == 1 else ids[:, None],
            "row_weights": weights,
            "active_len": cache.active_len,
            "parked_len": cache.parked_len,
        }
        for layer, added in zip(segment.deepstack, chunk.deepstack, strict=True):
            values[f"deepstack.{layer}"] = element.encode(added[None])
        upload = Upload(
            backend.memory, {name: (array.shape, array.dtype) for name, array in values.items()}
        )
        for name, array in values.items():
            upload.host[name][...] = array
        upload.queue()
        nothing = Nothing(cache.place, 1)
        has_parked = bool(cache.parked_len.any())
        parked_rows = cache.parked_room if has_parked else nothing.rows
        sizes = (1, len(chunk.positions), cache.active_room, parked_rows)
        self.outputs = Outputs(
            cache.place,
            segment,
            backend.manifest.dims,
            sizes,
            last=index == len(backend.segments) - 1,
        )
        inputs = {
            name: tensor
            for name, tensor in upload.tensors.items()
            if name not in ("active_len", "parked_len")
        }
        parked_len = upload.address("parked_len") if has_parked else None
        if has_parked:
            cache.fetch()
        backend.segments[index].run(
            {
                **inputs,
                **cache_inputs(
                    cache, segment.first_layer, upload.address("active_len"), parked_len, nothing
                ),
                **self.outputs.tensors(parked_rows),
            },
            "prompt",
        )
        self._kept = (upload, nothing)  # until the run is done

    def finish(self) -> NDArray[Any]:
        """Wait, and return the output rows [n, C] or [1, V] as they are stored."""
        _, *shape = self.outputs.shape
        rows = np.empty(shape, self._backend.element.stored)
        self._backend.device.download(rows, self.outputs.output.address)
        self._backend.device.synchronize()
        return rows
